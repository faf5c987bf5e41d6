"""A search on an imported table, where 4- and 2-bit convolutions are real: fewer bits are then less time."""

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config, tiny_fields

from faqs.config import parse_config
from faqs.preference import Preference, project
from faqs.prepare import prepare
from faqs.record import read_run
from faqs.runs import RunFolder
from faqs.search import search
from hwcost import CostModel, LookupTable, SearchSpace, build_table
from hwcost.cli import cli
from hwcost.console import run_cli
from hwcost.ops import key


@pytest.fixture
def imported(tmp_path: Path, cost_model: CostModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The profile that `hwcost import` makes of the int8 rows of the estimated Pi, with narrow convolutions besides."""
    monkeypatch.chdir(tmp_path)
    lines = ["operator,precision,latency_us"]
    for row in cost_model.profile.rows:
        shares = {"w8a8": 1.0, "w4a8": 0.6, "w2a8": 0.4} if row.operator.kind == "conv" else {"w8a8": 1.0}
        if str(row.precision) == "w8a8":
            lines += [f'"{key(row.operator)}",{bits},{1e6 * row.latency_s * share}' for bits, share in shares.items()]
    Path("npu.csv").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as caught:
        run_cli(cli, "hwcost", ["import", "npu.csv", "--device", "npu", "--overhead", "1us"])
    assert caught.value.code == 0
    return tmp_path / "profiles" / "npu.json"


def bits_within(table: LookupTable, share: float) -> set[int]:
    """Of the network decided within `share` times the least latency, where wider weights score more and nothing else
    counts; the bits of its blocks."""
    scores = np.array([[float(choice.weight_bits) for choice in table.space.choices] for _ in table.space.blocks])
    decided = project(scores, table, Preference({"latency": share * table.cheapest("latency_s")}))
    return {choice.weight_bits for choice in decided if choice.weight_bits}


def test_budgets_on_time_take_bits_where_narrow_kernels_are_real_and_nowhere_else(
    imported: Path, cost_model: CostModel, space: SearchSpace
) -> None:
    real = prepare(parse_config(tiny_fields(profiles=[str(imported)]), "test")).tables[0]
    assert real.sources == ("imported",)
    assert bits_within(real, 20.0) == {8} and bits_within(real, 1.001) == {2}
    unpacked = build_table(space, cost_model)
    assert bits_within(unpacked, 20.0) == bits_within(unpacked, 1.001) == {8}


def test_a_search_runs_on_an_imported_profile(imported: Path, tmp_path: Path) -> None:
    config = tiny_config(rounds=1, clients=1).model_copy(update={"profiles": [str(imported)]})
    run = RunFolder.create(tmp_path / "run", config, prepare(config))
    search(run, lambda *_: None)
    (client,) = read_run(run.path).clients
    assert client.decided.device == "npu" and client.decided.latency_sources == ("imported",)
