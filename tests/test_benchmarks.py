"""The benchmarks run and record what the README shows; what they measure is for `make bench`, never for a test."""

import ast
import gzip
import importlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import loopback
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from hwcost import SearchSpace, write_profile
from hwcost.testing import plausible_profile

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "= Benchmark(" in path.read_text(encoding="utf-8"))
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def recorded() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (BENCHMARKS / "results").rglob("*") if path.is_file()}


def quick(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON document that a quick run ends with; nothing of the recorded results may change."""
    before = recorded()
    done = run(script, "--quick", *arguments)
    assert done.returncode == 0, done.stderr
    assert recorded() == before
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert document["quick"] and document["claim"].startswith("Claim: ")
    assert document["machine"]["cpu"] and document["versions"]["onnxruntime"]
    return document


def test_every_benchmark_says_what_it_claims_and_leaves_a_result() -> None:
    assert SCRIPTS
    for script in SCRIPTS:
        docstring = ast.get_docstring(ast.parse((BENCHMARKS / f"{script}.py").read_text(encoding="utf-8")))
        assert docstring and docstring.startswith("Claim: "), script
        assert list((BENCHMARKS / "results").glob(f"{script.removeprefix('bench_')}.*")), script
    shown = run("bench_transcript", "--help").stdout
    assert "Claim: " in shown and "--seed" in shown and "--quick" in shown


def test_prediction_judges_every_way_on_the_same_networks(tmp_path: Path) -> None:
    out = tmp_path / "prediction.json"
    document = quick("bench_prediction", "--seed", "3", "--out", str(out))
    assert json.loads(out.read_text()) == document
    ways = {way["way"]: way for way in document["ways"]}
    assert list(ways) == [
        "measured twice",
        "every operator profiled",
        "half of the operators profiled",
        "no operator profiled",
        "FLOPs only",
    ]
    assert {way["networks"] for way in ways.values()} == {len(document["networks"])} == {3}
    shares = [ways[f"{what} profiled"]["predicted_share"] for what in ("every operator", "no operator")]
    assert shares[0] == 0 and shares[1] > 0.5
    assert all(len(network["samples_s"]) == 2 for network in document["networks"])


def test_devices_that_disagree_are_told_apart(tmp_path: Path) -> None:
    space = SearchSpace.for_image((1, 8, 8), 10)
    profile = plausible_profile(space.operators())
    rows = [
        row.model_copy(update={"latency_s": 4 * row.latency_s, "interval_s": (row.latency_s, 9 * row.latency_s)})
        if getattr(row.operator, "depthwise", False) and row.operator.kernel == (5, 5)
        else row
        for row in profile.rows
    ]
    paths = [tmp_path / "one.json", tmp_path / "other.json"]
    write_profile(profile, paths[0])
    write_profile(profile.model_copy(update={"rows": tuple(rows), "device": "other"}), paths[1])
    document = quick("bench_devices", "--profiles", *map(str, paths))
    assert [one["device"] for one in document["devices"]] == ["plausible", "other"]
    assert len(document["search"]) == 4 and {one["device"] for one in document["search"]} == {"plausible", "other"}
    assert all(one["latency_s"] <= one["budget_s"] for one in document["search"])
    assert any(one["differ"] > 0 for one in document["decisions"])


def test_siblings_whose_differences_are_known_are_found() -> None:
    results = quick("bench_adapt")["results"]
    assert {one["case"] for one in results} >= {"one factor", "a factor for every kernel path"}
    for one in results:
        assert one["ways"]["adapted"]["mape"] > 0 and 0 <= one["ways"]["adapted"]["inside"] <= 1
    by_path = next(one for one in results if one["case"] == "a factor for every kernel path" and one["samples"] == 20)
    assert by_path["ways"]["adapted"]["mape"] < by_path["ways"]["one factor"]["mape"] and by_path["unseen"]


def test_each_device_of_a_published_table_is_new_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = np.array(["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"])
    lines = ["arch_idx,arch_str,slow,fast,odd"]
    for index, drawn in enumerate(rng.integers(0, 5, (400, 6))):
        one, two, three, four, five, six = names[drawn]
        cell = f"|{one}~0|+|{two}~0|{three}~1|+|{four}~0|{five}~1|{six}~2|"
        work = 1 + 2 * (drawn == 3).sum() + (drawn == 2).sum()
        lines.append(f"{index},{cell},{9 * work + drawn[0]},{work},{work + (drawn == 4).sum()}")
    with gzip.open(tmp_path / "nasbench201_cifar10_ms.csv.gz", "wt") as file:
        file.write("\n".join(lines))
    document = quick("bench_transfer", "--data", str(tmp_path), "--out", str(tmp_path / "transfer.json"))
    assert [one["device"] for one in document["devices"]] == ["slow", "fast", "odd"]
    for one in document["devices"]:
        assert one["methods"]["10"]["transfer"]["spearman"][0] > 0.95
    without = run("bench_transfer", "--quick")
    assert without.returncode == 0 and "--data" in without.stderr and not without.stdout
    unknown = run("bench_transfer", "--quick", "--data", str(tmp_path), "--device", "other")
    assert unknown.returncode == 1 and "a column of the table, slow, fast, odd, got 'other'" in unknown.stderr


def test_tables_are_built_for_spaces_that_were_not_profiled_and_steps_counted_beside_their_costs(
    tmp_path: Path,
) -> None:
    profile = tmp_path / "profile.json"
    write_profile(plausible_profile(SearchSpace.for_image((1, 8, 8), 10).operators()), profile)
    document = quick("bench_lookup", "--profile", str(profile))
    profiled, _, largest = document["build"]
    assert profiled["predicted_share"] == 0 and largest["predicted_share"] == 1
    assert largest["networks_log10"] == pytest.approx(7 * math.log10(18) + 15 * math.log10(19))
    assert largest["layers"] > largest["operators"] > 100
    assert largest["faster_than_one_by_one"]["median"] == pytest.approx(
        largest["one_by_one_s"]["median"] / largest["build_s"]["median"]
    )
    (step,) = document["training"]
    assert step["share"]["median"] == pytest.approx(step["costs_s"]["median"] / step["step_s"]["median"])


def test_predictors_are_judged_on_networks_without_an_operator_of_theirs(tmp_path: Path) -> None:
    work = tmp_path / "work"
    document = quick("predictors", "--seed", "3", "--work", str(work))
    networks, ways = document["networks"], document["ways"]
    assert {one["bits"] for one in networks} == {8, 32} and len(networks) == 6
    assert {"as profiled", "every kernel predicted", "flops alone", "linear alone", "measured again"} <= set(ways)
    halves = [[a * b for a, b in zip(one["samples_s"], one["speeds"], strict=True)] for one in networks]
    again = statistics.mean(abs(first / second - 1) for first, second in halves)
    assert ways["measured again"]["all"]["mape"] == pytest.approx(again)
    assert all(way["all"]["networks"] == 6 and way["all"]["mape"] > 0 for way in ways.values())
    assert 0 < document["profile"]["strict_rows"] <= document["profile"]["rows"]
    for one in networks:
        for name, error in one["error"].items():
            measured_s = statistics.median(a * b for a, b in zip(one["samples_s"], one["speeds"], strict=True))
            assert error == pytest.approx(one["predicted_s"][name] / measured_s - 1)
    assert {"as profiled", "every kernel predicted"} == set(document["as_run"])
    kept = json.loads((work / "timings.json").read_text())
    assert kept == {Path(path).name: kept[Path(path).name] for path in kept} and len(kept) == 6
    assert {one["predictor"] for one in document["kernels"]} >= {"chosen", "flops", "linear"}
    beyond = {(one["name"], one["bits"]) for one in networks if abs(one["error"]["every kernel predicted"]) > 0.1}
    assert {(one["name"], one["bits"]) for one in document["misses"]} == beyond or not beyond
    for one in document["misses"]:
        (kernels,) = (
            other["kernels"] for other in networks if (other["name"], other["bits"]) == (one["name"], one["bits"])
        )
        assert 0 <= one["not_timed"] < kernels and 1 <= len(one["families"]) <= 4  # a few have no price in a hurry
        assert one["kernels"] > -1 and one["composition"] > -1


def test_models_of_others_are_checked_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    from networks import held_out_networks

    one, _ = held_out_networks(tmp_path / "models", seed=3, generated=1, light=False)
    (tmp_path / "models" / "broken.onnx").write_bytes(b"no model")
    (tmp_path / "models" / "again.onnx").write_bytes(one.path.read_bytes())
    document = quick("bench_models", "--models", str(tmp_path / "models"), "--work", str(tmp_path / "work"))
    assert len(document["models"]) == 2 and document["groups"]["all"]["models"] == 2
    assert all(row["measured_s"] > 0 and row["predicted_s"] > 0 for row in document["models"])
    (left_out,) = document["left_out"]
    assert left_out["model"] == "broken.onnx" and left_out["reason"]


def test_the_wire_is_compared_with_entropy_and_with_plain_compression() -> None:
    (row,) = quick("bench_wire")["rows"]
    assert row["bits"] == pytest.approx(row["entropy_bits"], rel=0.2)
    assert row["smaller_than_fp32"] == pytest.approx(32 / row["bits"])
    assert row["smaller_than_plain_zstd"] == pytest.approx(row["plain_zstd_bits"] / row["bits"])
    assert 0 < row["squared_error_share"] < 1


def test_steps_of_the_supernet_are_compared_with_those_of_plain_networks() -> None:
    steps = {(one["step"], one["against"]): one for one in quick("bench_step")["steps"]}
    assert {("supernet k3e6", "plain k3e6"), ("gates", "plain k5e6"), ("multi-path", "plain k3e6")} < set(steps)
    for one in steps.values():
        assert 0 < one["ratio"]["least"] <= one["ratio"]["median"] <= one["ratio"]["most"] and one["memory"] > 0
    assert steps["multi-path", "plain k3e6"]["memory"] > 1.5


def test_another_machine_is_compared_with_this_one_measured_twice() -> None:
    if lacking := loopback.missing():
        pytest.skip(lacking)
    document = quick("bench_remote")
    assert 0 < document["kernels"] <= 6 and document["passes"] == 2
    for found in (document["here_again"], document["over_ssh"]):
        assert 0 < found["ratio"]["least"] <= found["ratio"]["median"] <= found["ratio"]["most"]
        assert 0 <= found["within_floor"] <= 1
    assert set(document["seconds_per_timing"]) == {"here", "here again", "over ssh"}


def test_the_search_counts_its_bytes_and_budgets() -> None:
    document = quick("bench_search", "--seed", "5")
    (found,) = document["runs"]
    assert (found["seed"], found["rounds"], len(found["clients"])) == (5, 1, 4)
    assert found["within_table"] == [4, 4] and found["within_budget_measured"][1] == 3
    traffic = found["traffic"]
    assert 0 < traffic["payload"]["up_bytes"] < traffic["wire"]["up_bytes"] < found["fedavg_message_bytes"]
    for level in traffic.values():
        expected = 2 * found["fedavg_message_bytes"] / (level["up_bytes"] + level["down_bytes"])
        assert level["fewer_than_fedavg"] == pytest.approx(expected)


def test_federations_are_compared_by_bytes_and_accuracy(tmp_path: Path) -> None:
    document = quick("communication", "--work", str(tmp_path), "--arms", "A,AM,A2,B,B2,C1,C2,ceiling-1")
    arms = document["arms"]
    assert list(arms)[:7] == ["A", "AM", "A2", "B", "B2", "C1", "C2"]
    names = {f"{level}_{way}" for level in ("payload", "wire") for way in ("up", "down")}
    names |= {"accuracy_global", "accuracy_personal", "bytes_to_target", "round_s"}
    for arm in ("A", "AM", "A2", "B", "C1", "C2", "ceiling-1"):
        assert names <= set(arms[arm]) and arms[arm]["payload_up"] < arms[arm]["wire_up"]
        assert 0 <= arms[arm]["accuracy_global"] <= 1 and 0 <= arms[arm]["accuracy_personal"] <= 1
    assert arms["B2"]["computed"] and arms["B2"]["accuracy_global"] is None
    assert arms["C2"]["payload_up"] < arms["A2"]["payload_up"] < arms["A"]["payload_up"] < arms["B"]["payload_up"]
    assert (document["seeds"], document["rounds"], document["clients"]) == ([0], 2, 3)
    sent = [arms[arm]["wire_up"] + arms[arm]["wire_down"] for arm in ("A", "C2")]
    assert document["ratios"]["C2/A"]["wire"] == pytest.approx(sent[0] / sent[1])
    for difference in (document["differences"]["C2-A"][name] for name in ("accuracy_global", "accuracy_personal")):
        assert difference["low"] <= difference["mean"] <= difference["high"]
    assert document["ceilings"]["1, seed 0"]["architecture"]
    kept = {path.name for path in (tmp_path / "results").iterdir()}
    assert kept == {f"{arm}-0.json" for arm in ("A", "AM", "A2", "B", "C1", "C2", "ceiling-1")}
    module = [sys.executable, "-m", "benchmarks.communication", "--report", "--results", str(tmp_path / "results")]
    other = subprocess.run(module, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert other.returncode == 1 and "of another regime (train_images 300, not 10000; " in other.stderr


def test_rounds_of_two_federations_are_timed_beside_each_other() -> None:
    document = quick("bench_rounds", "--seed", "1")
    of_b, of_c2 = (document["rounds"][arm] for arm in ("B", "C2"))
    assert {arm: len(times) for arm, times in document["seconds"].items()} == {"B": 1, "C2": 1}
    assert min(of_b["least"], of_c2["least"]) > 0
    assert document["ratio"] == pytest.approx(of_c2["median"] / of_b["median"])
    assert "give --data the folder with CIFAR-10, or --quick" in run("bench_rounds").stderr


def test_a_federation_that_is_killed_ends_with_the_same_result(tmp_path: Path) -> None:
    options = ("--quick", "--rounds", "4", "--seeds", "3")
    for arm in ("A2", "C2"):
        straight, killed = tmp_path / f"{arm} straight", tmp_path / f"{arm} killed"
        assert run("communication", *options, "--arms", arm, "--work", str(straight)).returncode == 0
        kill_after_first_round([*options, "--arms", arm, "--work", str(killed)])
        again = run("communication", *options, "--arms", arm, "--work", str(killed))
        assert again.returncode == 0 and "round 1 of 4" not in again.stderr and "round 4 of 4" in again.stderr
        results = []
        for work in (straight, killed):
            document = json.loads((work / "results" / f"{arm}-3.json").read_text())
            assert len(document.pop("timing")["round_s"]) == len(document["curve"]) == 4
            results.append(document)
        assert results[0] == results[1]


def kill_after_first_round(options: list[str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "communication.py"), *options]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("round 1 of 4" in line for line in process.stderr)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def test_federations_need_data_to_be_computed(tmp_path: Path) -> None:
    done = run("communication", "--results", str(tmp_path))
    assert done.returncode == 0 and "nothing is computed" in done.stderr
    arms = json.loads(done.stdout.splitlines()[-1])["arms"]
    assert arms.pop("B2")["payload_up"] == 8_029_000 and set(arms.values()) == {None}
    unknown = run("communication", "--arms", "A,Z")
    assert unknown.returncode == 2 and "an arm is one of A, AM, A2, B, B2, C1, C2, or ceiling-CLIENT" in unknown.stderr


def test_the_transcript_holds_commands_and_no_place_on_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "transcript.txt"
    document = quick("bench_transcript", "--out", str(out))
    text = out.read_text(encoding="utf-8")
    assert document["exit_codes"] == [0, 0] and text.startswith("$ hwcost profile --device rpi4")
    assert "..." in text and "not this machine" in text
    assert str(tmp_path.parent) not in text and str(ROOT) not in text


def test_the_readme_shows_the_recorded_results() -> None:
    done = run("readme", "--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_readme_is_told_and_rewritten(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(text.replace("<!-- end:wire -->", "typed by hand\n<!-- end:wire -->"), encoding="utf-8")
    stale = run("readme", "--check", "--readme", str(readme))
    assert stale.returncode == 1 and "got others: run benchmarks/readme.py" in stale.stderr
    assert "typed by hand" in readme.read_text(encoding="utf-8")
    assert run("readme", "--readme", str(readme)).returncode == 0
    assert run("readme", "--check", "--readme", str(readme)).returncode == 0
    assert "typed by hand" not in readme.read_text(encoding="utf-8")


def test_a_readme_without_a_block_is_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Nothing\n", encoding="utf-8")
    done = run("readme", "--readme", str(readme))
    assert done.returncode == 1 and "<!-- begin:transcript -->" in done.stderr and "put the two lines in" in done.stderr
    assert readme.read_text(encoding="utf-8") == "# Nothing\n"


def test_a_missing_result_names_the_command_that_makes_it(tmp_path: Path) -> None:
    done = run("readme", "--check", "--results", str(tmp_path))
    assert done.returncode == 1 and "run `make bench`" in done.stderr


def held_out(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = run("networks", str(folder), "--no-light", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["networks"]
    return found


def test_a_held_out_network_depends_on_its_seed_and_index_alone(tmp_path: Path) -> None:
    three, two, other = held_out(tmp_path, "--generated", "3"), tmp_path / "two", tmp_path / "other"
    assert [(one["bits"], bool(one["int8_style"])) for one in three] == [(32, False), (8, True)] * 3
    assert len({one["family"] for one in three}) == len({one["name"] for one in three}) == 3
    written = {one["path"]: Path(one["path"]).stat().st_mtime_ns for one in three}
    assert held_out(tmp_path, "--generated", "2") == three[:4]
    assert {path: Path(path).stat().st_mtime_ns for path in written} == written
    for again, first in zip(held_out(two, "--generated", "2"), three, strict=False):
        assert Path(again["path"]).read_bytes() == Path(first["path"]).read_bytes()
    for seeded in held_out(other, "--generated", "1", "--seed", "1"):
        assert Path(seeded["path"]).name not in {Path(path).name for path in written}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".onnx"]


def test_a_held_out_network_is_valid_and_its_int8_file_computes_nearly_the_same(tmp_path: Path) -> None:
    found = held_out(tmp_path, "--generated", "2")
    outputs = [outputs_on_noise(onnx.load(one["path"])) for one in found]
    for one, output in zip(found, outputs, strict=True):
        model = onnx.load(one["path"])
        onnx.checker.check_model(model, full_check=True)
        kinds = {node.op_type for node in model.graph.node}
        assert ("QuantizeLinear" in kinds) == (one["bits"] == 8)
        assert np.isfinite(output).all() and output.std() > 0
    for fp32, int8 in zip(outputs[::2], outputs[1::2], strict=True):
        assert np.abs(fp32 - int8).max() > 0 and np.corrcoef(fp32.ravel(), int8.ravel())[0, 1] > 0.9


def outputs_on_noise(model: onnx.ModelProto) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    noise = np.random.default_rng(0).standard_normal(given.shape, np.float32)
    (output,) = session.run(None, {given.name: noise})
    return np.asarray(output)


def test_placeholder_weights_become_random_initializers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    networks = importlib.import_module("networks")
    folder = Path(next(iter(importlib.import_module("onnx.backend.test").__path__))) / "data" / "light"
    placeholder = onnx.load(folder / "light_shufflenet.onnx")
    model = networks.with_random_weights(placeholder, np.random.default_rng(0))
    assert len(model.graph.input) == 1
    kinds = Counter(node.op_type for node in placeholder.graph.node)
    assert kinds.pop("ConstantOfShape") > 200
    assert Counter(node.op_type for node in model.graph.node) == kinds
    weights = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.data_type == 1]
    assert len(weights) > 200 and all(weight.std() > 0 for weight in weights)
    assert np.isfinite(outputs_on_noise(model)).all()


def test_networks_are_refused_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken", encoding="utf-8")
    done = run("networks", str(tmp_path / "file"), "--no-light", "--generated", "1")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "cannot write" in done.stderr
    assert run("networks", str(tmp_path), "--generated", "-1").returncode == 2


def test_emulation_is_compared_with_the_trial_it_comes_from() -> None:
    from hwcost.emulation.tools import Tools

    if missing := Tools.here().missing():
        pytest.skip(f"emulation needs its tools (`hwcost emulator --install`), missing: {'; '.join(missing)}")
    document = quick("bench_emulation")
    equal = [row["equal"] for row in document["repeats"]]
    assert equal == [True] * 8
    assert all(row["difference"] == 0 for row in document["repeats"])
    assert all(abs(row["gain_error"]) < 0.1 for row in document["operators"])
    assert [row["paths"][0] for row in document["operators"]] == ["fmla"] * 4
