"""The `faqs` command as a user runs it: a process of its own, its exit status, its last line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_SPACE

from faqs.cli import cli
from faqs.errors import FaqsError
from hwcost import HwcostError, run_cli

CONFIG = f"""
rounds = 2
clients = 2
alpha = 2.0
[space]
stem_channels = {TINY_SPACE["stem_channels"]}
stages = {[list(stage) for stage in TINY_SPACE["stages"]]}
[training]
local_epochs = 1
personal_epochs = 1
batch_size = 64
"""


def faqs(*arguments: str, cwd: Path, code: int = 0, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", "from faqs.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == code, done.stderr + done.stdout
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def folder(tmp_path: Path, profile_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    return tmp_path


def failure(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """What the command, run in this process, says on stderr when it refuses."""
    with pytest.raises(SystemExit) as caught:
        run_cli(cli, "faqs", arguments, errors=(FaqsError, HwcostError))
    said = capsys.readouterr().err
    assert caught.value.code == code and "Traceback" not in said
    if code == 1:
        assert said.count("\n") == 1 and said.startswith("faqs: error: "), said
    return said


def test_search_ends_with_one_document_and_leaves_a_complete_run(folder: Path) -> None:
    options = ("--config", "tiny.toml", "--profile", "rpi4.json", "--budget", "1:size=3.9kB", "--seed", "3")
    found = last_line(faqs("search", *options, "--out", "run", "--json", cwd=folder))
    assert found["run"] == "run" and found["rounds"] == 2
    assert set(found["bytes"]) == {"payload_up", "payload_down", "wire_up", "wire_down"}
    assert all(isinstance(count, int) and count > 0 for count in found["bytes"].values())
    assert [client["id"] for client in found["clients"]] == [0, 1]
    for client in found["clients"]:
        assert client["device"] == "rpi4" and client["measured_latency_s"] is None
        assert client["predicted_latency_s"] > 0 and 0 <= client["accuracy"] <= 1
    assert found["clients"][1]["budget"] == {"size": 3900.0} and found["clients"][1]["size_bytes"] <= 3900
    run = folder / "run"
    assert last_line(faqs("show", "run", "--json", cwd=folder)) == found
    for client in (0, 1):
        for name in ("architecture.json", "model.onnx", "check.json", "weights.safetensors"):
            assert (run / "clients" / str(client) / name).is_file()
        checked = json.loads((run / "clients" / str(client) / "check.json").read_text())
        # Hardly trained: scores of classes lie a few steps apart, and rounding ties decide some images.
        assert abs(checked["accuracy_torch"] - checked["accuracy_onnx"]) <= 3 * checked["tolerance"], checked
        assert checked["agreement"] >= 0.9, checked
    models = [(run / "clients" / str(client) / "model.onnx").read_bytes() for client in (0, 1)]
    (run / "clients/0/model.onnx").unlink()
    exported = last_line(faqs("export", "run", "--json", cwd=folder))
    assert [Path(folder / path).read_bytes() for path in exported["models"]] == models
    assert len(last_line(faqs("check", "run", "--json", cwd=folder))["clients"]) == 2
    (run / "report.html").unlink()
    assert last_line(faqs("report", "run", "--json", cwd=folder))["report"] == "run/report.html"
    assert "<html" in (run / "report.html").read_text()


def test_bad_input_is_one_line_with_the_rule_and_nothing_is_left_behind(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    np.savez(folder / "object.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    (folder / "torn.json").write_bytes((folder / "rpi4.json").read_bytes()[:5000])
    (folder / "bad.toml").write_text("rounds = ")
    base = ("search", "--config", "tiny.toml", "--out", "run")
    with_profile = (*base, "--profile", "rpi4.json")
    cases = {
        base: "pass --profile",
        (*base, "--profile", "none.json"): "no profile at none.json",
        (*base, "--profile", "torn.json"): "torn.json is not a profile of version 2",
        (*with_profile, "--clients", "0"): "greater than or equal to 1, got 0",
        (*with_profile, "--clients", "60", "--alpha", "0.1"): "use a larger alpha or fewer clients",
        (*with_profile, "--clients", "600"): "use fewer clients or more data",
        (*with_profile, "--alpha", "0"): "alpha: Input should be greater than 0",
        (*with_profile, "--data", "none.npz"): "no such file",
        (*with_profile, "--data", "object.npz"): "cannot read the data",
        (*with_profile, "--budget", "latency"): "write it like latency=5ms",
        (*with_profile, "--budget", "latency=5kB"): "a time is a number with a unit",
        (*with_profile, "--budget", "7:latency=5ms"): "with a client below 2",
        (*with_profile, "--weight", "latency=much"): "--weight takes a number",
        (*with_profile, "--budget", "latency=1us"): "the cheapest reachable latency is",
        (*with_profile, "--budget", "size=500B"): "the cheapest reachable size is",
        ("search", "--config", "bad.toml", "--profile", "rpi4.json", "--out", "run"): "is not a TOML file",
        ("search", "--config", "none.toml", "--out", "run"): "cannot read the configuration",
        ("search", "--resume", "none"): "a run folder has a config.json",
        ("show", "none"): "a run folder has a config.json",
    }
    for arguments, message in cases.items():
        assert message in failure(capsys, *arguments), arguments
        assert not (folder / "run").exists(), arguments
    failure(capsys, "search", "--rounds", "0", code=2)
    failure(capsys, "search", "--resume", "run", "--seed", "1", code=2)
    failure(capsys, "serch", code=2)


def test_a_profile_without_a_needed_operator_names_it_and_what_to_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    document = json.loads((folder / "rpi4.json").read_text())
    document["rows"] = [row for row in document["rows"] if row["operator"]["kind"] != "gemm"]
    (folder / "rpi4.json").write_text(json.dumps(document))
    message = failure(capsys, "search", "--config", "tiny.toml", "--profile", "rpi4.json", "--out", "run")
    assert "gemm(m=1,k=8,n=10" in message and "hwcost fit" in message


def test_a_full_disk_is_one_line_and_nothing_is_half_written(folder: Path) -> None:
    limited = ("bash", "-c", 'ulimit -f 8; exec "$@"', "limited")
    options = ("search", "--config", "tiny.toml", "--profile", "rpi4.json", "--out", "run")
    done = faqs(*options, cwd=folder, code=1, prefix=limited)
    assert "cannot write run" in done.stderr.splitlines()[-1] and "nothing was half-written" in done.stderr
    assert not list((folder / "run").rglob("*.tmp"))
    for document in (folder / "run").rglob("*.json"):
        json.loads(document.read_text())


def test_a_killed_search_resumes_to_the_bytes_of_an_unbroken_one(folder: Path) -> None:
    options = ("search", "--config", "tiny.toml", "--profile", "rpi4.json", "--rounds", "3")
    faqs(*options, "--out", "whole", cwd=folder)
    command = [sys.executable, "-c", "from faqs.cli import main; main()", *options, "--out", "torn"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (folder / "torn" / "rounds.jsonl").exists():
            try:
                process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
        process.kill()
    faqs("search", "--resume", "torn", cwd=folder)
    timed = {"timing.json", "check.json", "result.json", "report.html"}
    whole = {
        str(path.relative_to(folder / "whole")): path.read_bytes()
        for path in (folder / "whole").rglob("*")
        if path.is_file() and path.name not in timed
    }
    assert {name: (folder / "torn" / name).read_bytes() for name in whole} == whole
