"""The benchmarks run and record what the README shows; what they measure is for `make bench`, never for a test."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("bench_*.py"))
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def quick(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON document that a quick run ends with; nothing of the recorded results may change."""
    before = {path: path.read_bytes() for path in (BENCHMARKS / "results").iterdir()}
    done = run(script, "--quick", *arguments)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in (BENCHMARKS / "results").iterdir()} == before
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


def test_the_wire_is_compared_with_entropy_and_with_plain_compression() -> None:
    (row,) = quick("bench_wire")["rows"]
    assert row["bits"] == pytest.approx(row["entropy_bits"], rel=0.2)
    assert row["smaller_than_fp32"] == pytest.approx(32 / row["bits"])
    assert row["smaller_than_plain_zstd"] == pytest.approx(row["plain_zstd_bits"] / row["bits"])
    assert 0 < row["squared_error_share"] < 1


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
