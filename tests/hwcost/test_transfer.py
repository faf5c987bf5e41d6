"""A few samples of a new device find its costs, its way to execute things, and how sure they make of it."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hwcost.errors import TransferError
from hwcost.fit import spearman
from hwcost.transfer import Transfer

Values = NDArray[np.float64]
ITEMS = 600


def counts(seed: int = 0) -> dict[str, Values]:
    """Two ways to count three operations: all of them, and those that are not idle."""
    rng = np.random.default_rng(seed)
    every = rng.integers(0, 6, (ITEMS, 3))
    used = rng.binomial(every, 0.6)
    ones = np.ones(ITEMS)
    return {"all": np.column_stack([ones, every]), "used": np.column_stack([ones, used])}


def device(features: Values, costs: tuple[float, ...], noise: float, seed: int) -> Values:
    rng = np.random.default_rng(seed)
    latency_s: Values = features @ np.array(costs) * 1e-3 * np.exp(noise * rng.standard_normal(len(features)))
    return latency_s


def known(ways: dict[str, Values]) -> Values:
    return np.column_stack(
        [
            device(ways["all"], (2.0, 1.0, 3.0, 0.5), 0.02, 1),
            device(ways["all"], (4.0, 3.0, 4.0, 2.0), 0.02, 2),
            device(ways["used"], (1.0, 2.0, 5.0, 0.2), 0.02, 3),
            device(ways["used"], (9.0, 7.0, 20.0, 3.0), 0.02, 4),
        ]
    )


@pytest.mark.parametrize("way", ["all", "used"])
def test_ten_samples_find_the_costs_of_a_device_and_how_it_executes(way: str) -> None:
    ways = counts()
    transfer = Transfer.learn(ways, known(ways))
    truth_s = device(ways[way], (30.0, 50.0, 70.0, 5.0), 0.0, 5)
    items = transfer.choose(10, seed=0)
    found = transfer.predict(items, truth_s[list(items)].tolist())
    assert found.ways[way] > 0.9 and sum(found.ways.values()) == pytest.approx(1)
    assert np.abs(found.latency_s / truth_s - 1).mean() < 0.05
    assert (spearman(found.latency_s, truth_s) or 0) > 0.99


def test_a_device_may_execute_as_no_known_one_does() -> None:
    ways = counts()
    ways["most"] = np.column_stack([np.ones(ITEMS), ways["all"][:, 1:].max(axis=1)])
    transfer = Transfer.learn(ways, known(ways))
    truth_s = device(ways["most"], (2.0, 6.0), 0.01, 5)
    items = transfer.choose(10, seed=0)
    found = transfer.predict(items, truth_s[list(items)].tolist())
    assert found.ways["most"] > 0.9 and np.abs(found.latency_s / truth_s - 1).mean() < 0.05


def test_one_slow_sample_of_ten_does_little_harm() -> None:
    ways = counts()
    transfer = Transfer.learn(ways, known(ways))
    truth_s = device(ways["all"], (3.0, 2.0, 6.0, 1.0), 0.01, 5)
    items = list(transfer.choose(10, seed=0))
    sampled_s = truth_s[items]
    sampled_s[4] *= 1.6
    found = transfer.predict(items, sampled_s.tolist())
    assert np.abs(found.latency_s / truth_s - 1).mean() < 0.06


def test_intervals_hold_most_items_and_shrink_with_samples() -> None:
    ways = counts()
    transfer = Transfer.learn(ways, known(ways))
    inside, widths = [], []
    for seed in range(8):
        truth_s = device(ways["all"], (3.0, 2.0, 6.0, 1.0), 0.04, 50 + seed)
        for count in (4, 30):
            items = list(transfer.choose(count, seed))
            found = transfer.predict(items, truth_s[items].tolist())
            inside.append(float(((found.low_s <= truth_s) & (truth_s <= found.high_s)).mean()))
            widths.append(float(np.median(found.high_s / found.low_s)))
    assert 0.8 < np.mean(inside) < 1
    assert np.median(widths[1::2]) < np.median(widths[::2])


def test_chosen_items_are_distinct_repeat_for_a_seed_and_leave_out_what_is_there() -> None:
    ways = counts()
    transfer = Transfer.learn(ways, known(ways))
    items = transfer.choose(12, seed=3)
    assert items == transfer.choose(12, seed=3) and len(set(items)) == 12
    more = transfer.choose(5, seed=3, had=items)
    assert len(set(more) | set(items)) == 17


def test_chosen_items_say_more_than_the_worst_ones_could() -> None:
    ways = counts()
    transfer = Transfer.learn(ways, known(ways))
    truth_s = device(ways["all"], (3.0, 2.0, 6.0, 1.0), 0.02, 9)
    alike = np.argsort(np.abs(ways["all"] - np.median(ways["all"], axis=0)).sum(axis=1))[:10].tolist()
    errors = []
    for items in (list(transfer.choose(10, seed=0)), alike):
        found = transfer.predict(items, truth_s[items].tolist())
        errors.append(float(np.abs(found.latency_s / truth_s - 1).mean()))
    assert errors[0] < errors[1]


def test_latencies_that_a_known_device_lacks_are_left_out() -> None:
    ways = counts()
    latency_s = known(ways)
    latency_s[::3, 1] = np.nan
    transfer = Transfer.learn(ways, latency_s)
    truth_s = device(ways["all"], (3.0, 2.0, 6.0, 1.0), 0.0, 5)
    items = list(transfer.choose(10, seed=0))
    assert np.isfinite(transfer.predict(items, truth_s[items].tolist()).high_s).all()


def test_what_cannot_be_learnt_from_is_refused_in_words() -> None:
    ways = counts()
    latency_s = known(ways)
    with pytest.raises(TransferError, match="a known device, got 2 ways and latencies"):
        Transfer.learn(ways, latency_s[:, :0])
    with pytest.raises(TransferError, match="features of way 'all' are finite"):
        Transfer.learn({"all": ways["all"][:-1]}, latency_s)
    with pytest.raises(TransferError, match="is 0 for every item"):
        Transfer.learn({"all": ways["all"] * [1, 1, 1, 0]}, latency_s)
    with pytest.raises(TransferError, match="positive seconds"):
        Transfer.learn(ways, -latency_s)
    with pytest.raises(TransferError, match="at least as many latencies as way 'all'"):
        Transfer.learn(ways, np.where(np.arange(ITEMS)[:, None] < 3, latency_s, np.nan))
    transfer = Transfer.learn(ways, latency_s)
    with pytest.raises(TransferError, match="measure at least one"):
        transfer.predict([], [])
    with pytest.raises(TransferError, match="measure at least one"):
        transfer.predict([ITEMS], [1.0])
    with pytest.raises(TransferError, match="positive and finite"):
        transfer.predict([0], [0.0])
    with pytest.raises(TransferError, match="are chosen, got 0"):
        transfer.choose(0, seed=0)


def test_a_table_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    from nasbench201 import Cell, distinct, read_table, ways_to_count

    with pytest.raises(SystemExit, match="latency tables are wanted"):
        read_table(tmp_path)
    texts = (
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|",
        "|none~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|skip_connect~2|",  # the same, by another node
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|nor_conv_1x1~1|skip_connect~2|",
        "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",  # what nothing reads
        "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",
    )
    cells = tuple(map(Cell.parse, texts))
    classes = distinct(cells)
    assert classes[0] == classes[1] and classes[3] == classes[4] and len(set(classes.tolist())) == 3
    ways = ways_to_count(cells)
    assert ways["eager"][3].tolist() == [1, 1, 0, 1, 0] and ways["converted"][3].tolist() == [1, 1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="six edges"):
        Cell.parse("|none~0|")
