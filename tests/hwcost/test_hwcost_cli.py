"""The `hwcost` command as users type it: results on stdout, words on stderr, exit codes, and nothing half-written."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from onnx_models import float_model

import hwcost
from hwcost.cli import cli
from hwcost.console import run_cli, writing
from hwcost.devices import class_of, known_devices
from hwcost.errors import OutputError
from hwcost.machine import facts_here
from hwcost.model import read_model
from hwcost.ops import key
from hwcost.profiles import read_profile, write_profile
from hwcost.space import SearchSpace

COMMANDS = (
    "adapt",
    "emulator",
    "profile",
    "fit",
    "predict",
    "check",
    "show",
    "devices",
    "predictors",
    "compare",
    "import",
    "export",
)
HWCOST = (sys.executable, "-m", "hwcost.cli")
SMALL = ("--image", "1,8,8", "--samples", "0", "--precision", "w8a8")


class Ran:
    """What one run of the command left: code, stdout, stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        with pytest.raises(SystemExit) as caught:
            run_cli(cli, "hwcost", [str(argument) for argument in arguments])
        self.code = caught.value.code
        self.out, self.err = capsys.readouterr()

    @property
    def document(self) -> dict[str, Any]:
        loaded = json.loads(self.out.splitlines()[-1])
        assert isinstance(loaded, dict)
        return loaded

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        assert self.code == 1 and self.out == ""
        (line,) = [line for line in self.err.splitlines() if "..." not in line]
        assert line.startswith("hwcost: error: ")
        return line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rpi4(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert Ran(capsys, "profile", "--device", "rpi4", "--estimate", *SMALL[:4]).code == 0
    return folder / "profiles" / "rpi4.json"


def test_help_is_light_and_has_an_example() -> None:
    """Every --help in one fresh process, and none of the slow libraries loaded by any."""
    script = f"""
import sys
from hwcost.cli import cli
for arguments in ([], *([name] for name in {COMMANDS})):
    try:
        cli.main([*arguments, "--help"], prog_name="hwcost")
    except SystemExit as end:
        assert end.code == 0, end.code
slow = {{"torch", "sklearn", "xgboost", "onnxruntime", "onnx", "flwr", "pandas", "pyarrow", "matplotlib"}}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Usage: hwcost") == ran.stdout.count("Example") == len(COMMANDS) + 1
    assert set(cli.commands) == set(COMMANDS)


def test_a_board_that_is_not_here_is_estimated_and_it_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "profile", "--device", "rpi4", "--estimate", *SMALL[:4], "--json")
    assert ran.code == 0
    assert "rpi4 is not this machine, so nothing was timed" in ran.err
    assert "To measure for real, run the same command on the board" in ran.err
    assert read_profile(folder / "profiles" / "rpi4.json").sources == ("estimated",)
    assert (ran.document["device"], list(ran.document["sources"])) == ("rpi4", ["estimated"])


def test_the_contract_works_from_an_empty_folder(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "fit", "--predictor", "linear")
    assert ran.code == 0 and "rpi4" in ran.out and "roofline" in ran.out and "flops" in ran.out
    assert "rows are estimated: the errors say how well those are reproduced" in ran.out
    assert (rpi4.parent / "rpi4.fit.safetensors").exists()
    (entry,) = Ran(capsys, "fit", rpi4, "--predictor", "linear", "--json").document["fits"]
    assert entry["device"] == "rpi4" and {"family", "precision", "chosen", "errors"} <= entry["families"][0].keys()


def test_this_machine_is_measured_and_a_model_just_as_it_runs_here(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = float_model(folder / "m.onnx")
    ran = Ran(capsys, "profile", *SMALL, "--passes", "1", "--model", model, "--json")
    assert ran.code == 0
    (path,) = (folder / "profiles").iterdir()
    profile = read_profile(path)
    assert path.name == f"{profile.device}.json" and profile.device.startswith("host-")
    assert profile.sources == ("measured",) and ran.document["profile"] == f"profiles/{path.name}"
    layers = read_model(model).layers
    assert layers and all(profile.find(op, precision) is not None for _, op, precision in layers)

    checked = Ran(capsys, "check", model, "--profile", path, "--time", "200ms", "--json")
    fields = {"model", "bits", "predicted_s", "interval_s", "measured_s", "error", "noise_floor", "uncovered_share"}
    assert checked.code == 0 and {*fields, "operators"} <= checked.document.keys()
    assert checked.document["uncovered_share"] == 0 and checked.document["measured_s"] > 0
    assert [entry["source"] for entry in checked.document["operators"]] == ["measured"] * len(layers)
    assert all(entry["measured_s"] > 0 for entry in checked.document["operators"])
    shown = Ran(capsys, "check", model, "--profile", path, "--time", "200ms").out
    assert "predicted" in shown and "measured" in shown and "off by" in shown


def test_an_interrupted_measurement_keeps_its_journal(folder: Path) -> None:
    out, journal = folder / "p.json", folder / "p.json.partial.jsonl"
    running = subprocess.Popen(
        [*HWCOST, "profile", *SMALL, "--out", str(out)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    await_lines(running, journal, 8)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert f"what was done so far is in {journal}: run the same command again to go on from there" in err
    assert not out.exists() and journal.exists()


def await_lines(running: "subprocess.Popen[Any]", journal: Path, count: int, holding: str = "") -> None:
    """Until the journal of a measurement under way has so many lines that hold a text."""
    while running.poll() is None:
        if journal.exists() and sum(holding in line for line in journal.read_text().splitlines()) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"the measurement ended before {journal} had {count} lines with {holding}")


def test_a_killed_measurement_loses_no_finished_timing(folder: Path) -> None:
    """Killed while it widens its sample: the same operators come next, and the child dies with its parent."""
    out, journal = folder / "p.json", folder / "p.json.partial.jsonl"
    command = [*HWCOST, "profile", "--image", "1,8,8", "--precision", "w8a8", "--passes", "1", "--out", str(out)]
    running = subprocess.Popen([*command, "--budget", "60s"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    await_lines(running, journal, 1, '"families"')
    await_lines(running, journal, 65, '"stage":1')  # more than every stage has beside rows
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.kill()
    running.wait(timeout=60)
    head, *entries = journal.read_text().rpartition("\n")[0].splitlines()
    assert children and sum("families" in entry for entry in entries) == 1
    last = next(index for index, entry in reversed(list(enumerate(entries))) if '"point":"row' in entry)
    marked = json.loads(entries[last])
    marked["run_s"] = 1.0  # as if it had been timed at a second: to be seen again in the profile
    journal.write_text("\n".join([head, *entries[:last], json.dumps(marked), *entries[last + 1 :]]) + "\n")
    spent_s = marked["at_s"]

    again = subprocess.run([*command, "--budget", f"{spent_s + 8}s"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"resuming the measurement that {journal} holds" in again.stderr
    assert not journal.exists() and not any(Path(f"/proc/{child}").exists() for child in children)
    rows = {f"row: {key(row.operator)} at {row.precision}": row for row in read_profile(out).rows}
    timed = [json.loads(entry) for entry in entries if '"point":"row' in entry]
    assert rows.keys() >= {entry["point"] for entry in timed if entry["run_s"]}
    assert len(rows) > len(timed) > 47
    assert rows[marked["point"]].latency_s == pytest.approx(1.0 / marked["copies"], rel=0.01)


def test_predict_prints_the_total_and_where_it_comes_from(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = float_model(rpi4.parent / "m.onnx")
    wide = ("profile", "--device", "rpi4", "--estimate", "--samples", "300")
    assert Ran(capsys, *wide).code == 0 and Ran(capsys, "fit", "--predictor", "roofline").code == 0
    ran = Ran(capsys, "predict", model, "--profile", rpi4, "--allow-uncovered")
    assert ran.code == 0 and "predicted from estimated rows" in ran.out
    document = Ran(capsys, "predict", model, "--profile", rpi4, "--json", "--allow-uncovered").document
    low_s, high_s = document["interval_s"]
    assert 0 < low_s < document["predicted_s"] < high_s and document["bits"] == 32
    assert (
        "has 32: leave --bits out"
        in Ran(capsys, "predict", model, "--profile", rpi4, "--bits", "8", "--allow-uncovered").error
    )


def test_a_check_elsewhere_is_refused(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = float_model(rpi4.parent / "m.onnx")
    assert "checked on the machine of its profile" in Ran(capsys, "check", model, "--profile", rpi4).error


def test_show_says_how_each_width_runs(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "show", rpi4)
    assert ran.code == 0 and "Cortex-A72 (estimated)" in ran.out and "as w8a8" in ran.out
    assert "estimated: QLinearConv (" in ran.out
    realisations = Ran(capsys, "show", rpi4, "--json").document["realisations"]
    runs = {(entry["family"], entry["precision"]): entry["runs"] for entry in realisations}
    assert runs["conv.dense", "w4a8"] == "as w8a8" and runs["gemm", "w4a32"] == "not native"


def test_show_draws_where_it_may(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "show", rpi4, "--plot", "rpi4.svg")
    assert ran.code == 0 and ran.out.endswith("Plot: rpi4.svg\n")
    assert "estimated rows (none of them timed" in (rpi4.parent.parent / "rpi4.svg").read_text()
    assert "got rpi4.jpeg: rename it" in Ran(capsys, "show", rpi4, "--plot", "rpi4.jpeg").error
    assert "cannot write profiles/rpi4.json/p.png" in Ran(
        capsys, "show", rpi4, "--plot", f"{rpi4}/p.png"
    ).error.replace(f"{rpi4.parent.parent}/", "")


def test_devices_and_predictors_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devices = Ran(capsys, "devices", "--json").document["devices"]
    assert [entry["name"] for entry in devices] == ["host", *known_devices()]
    assert devices[0]["this_machine"] is True
    ways = {entry["name"]: entry["ways"] for entry in devices}
    assert ways["rpi4"] == ["over ssh", "emulated", "estimated"] and ways["rpi5"] == ["over ssh"]
    assert [entry["name"] for entry in devices[1:] if entry["this_machine"]] == [class_of(facts_here())] * bool(
        class_of(facts_here())
    )
    assert "rpi4" in Ran(capsys, "devices").out
    names = Ran(capsys, "predictors", "--json").document["predictors"]
    assert {"roofline", "linear", "forest", "boosted", "mlp"} <= {entry["name"] for entry in names}
    assert "roofline" in Ran(capsys, "predictors").out


def test_nothing_of_another_machine_replaces_measurements(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = read_profile(rpi4)
    write_profile(
        profile.model_copy(
            update={"rows": tuple(row.model_copy(update={"source": "measured"}) for row in profile.rows)}
        ),
        rpi4,
    )
    before = rpi4.read_bytes()
    assert "only measurements replace measurements" in Ran(capsys, "profile", "--device", "rpi4").error
    assert rpi4.read_bytes() == before
    error = Ran(capsys, "profile", "--out", rpi4).error
    assert "one machine's measurements: profile rpi4 is of Cortex-A72" in error and "--out" in error
    assert rpi4.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile", "--device", "rpi9"], "a device is one of host, neoverse-n1, rpi4, rpi5, "),
        (
            ["profile", "--device", "rpi5"],
            "there are none for rpi5: measure one, `hwcost profile --device rpi5` on",
        ),
        (["profile", "--device", "rpi4", "--precision", "w3a8"], "a precision is one of w32a32, w8a8, "),
        (["profile", "--device", "rpi4", "--precision", "w4a8"], "ask for w8a8, narrower weights run on its kernels"),
        (["show", "none.json"], "no profile at none.json: make one with `hwcost profile"),
        (["fit", "none.json"], "no profile at none.json"),
        (["fit"], "a fit needs a profile, got none in profiles: make one with `hwcost profile`"),
        (["predict", "m.onnx", "--profile", "none.json"], "no profile at none.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in Ran(capsys, *arguments).error
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile", "--image", "3,32"], "an image is channels,height,width, got 3,32"),
        (["profile", "--image", "3,x,3"], "sizes are positive numbers with commas between"),
        (["profile", "--budget", "soon"], "a time is a number with a unit"),
        (["profile", "--device", "rpi4", "--threads", "2"], "what is not measured is for one thread"),
        (["predict", "m.onnx"], "Missing option '--profile'"),
        (["predict", "m.onnx", "--profile", "p", "--shape", "1,2"], "a shape is written name=1,3,224,224; got '1,2'"),
        (["predict", "m.onnx", "--profile", "p", "--bits", "5"], "'5' is not one of '8', '32'"),
        (["improve"], "No such command 'improve'"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    ran = Ran(capsys, *arguments)
    assert (ran.code, ran.out) == (2, "") and message in ran.err
    assert list(folder.iterdir()) == []


def test_a_corrupt_profile_names_the_file_and_the_field(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = rpi4.read_text()
    rpi4.write_text(good[: len(good) // 2])
    assert f"{rpi4} is not a profile of version 2: the document: " in Ran(capsys, "show", rpi4).error
    document = json.loads(good)
    document["rows"][3]["latency_s"] = "fast"
    rpi4.write_text(json.dumps(document))
    for command in ("show", "fit"):
        assert "rows.3.latency_s" in Ran(capsys, command, rpi4).error
    assert not (rpi4.parent / "rpi4.fit.safetensors").exists()


def test_an_operator_without_a_price_is_named(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = float_model(rpi4.parent / "m.onnx", extra="Erf")
    error = Ran(capsys, "predict", model, "--profile", rpi4).error
    assert "needs a price on rpi4, got none for 9 of" in error and "and 6 more" in error


def test_a_corrupt_model_is_one_line(rpi4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = rpi4.parent / "m.onnx"
    model.write_bytes(b"not a protobuf at all")
    assert "is not an ONNX model" in Ran(capsys, "predict", model, "--profile", rpi4).error


def test_a_full_disk_is_one_line_and_leaves_the_old_file(rpi4: Path) -> None:
    """The limit on file sizes stands for the disk: the same system call fails, half-way through the file."""
    before = rpi4.read_bytes()
    ran = subprocess.run(
        [*HWCOST, "profile", "--device", "rpi4", "--out", str(rpi4)], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    (line,) = ran.stderr.splitlines()
    reason = "File too large; free some space or write elsewhere, nothing was half-written"
    assert line == f"hwcost: error: cannot write {rpi4}: {reason}"
    assert rpi4.read_bytes() == before and list(rpi4.parent.iterdir()) == [rpi4]


def test_a_device_without_space_says_so(tmp_path: Path) -> None:
    expected = pytest.raises(OutputError, match=r"cannot write .*: No space left on device; free some space")
    with expected, writing(tmp_path), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


def test_the_unforeseen_is_one_line_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("hwcost.machine.host_device_name", broken)
    ran = Ran(capsys, "devices")
    assert ran.error.startswith("hwcost: error: unexpected ZeroDivisionError: two lines")
    assert ran.error.endswith("HWCOST_DEBUG=1 shows where)")
    monkeypatch.setitem(os.environ, "HWCOST_DEBUG", "1")
    assert "Traceback" in Ran(capsys, "devices").err


def test_a_closed_pipe_ends_quietly(folder: Path) -> None:
    running = subprocess.Popen([*HWCOST, "predictors"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    assert "Traceback" not in running.stderr.read()
    running.wait()
    running.stderr.close()


def test_the_emulated_profile_is_shipped_and_says_what_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "profile", "--device", "rpi4", "--json")
    assert ran.code == 0 and ran.document["sources"].keys() == {"emulated"}
    assert "nothing was timed" in ran.err and "emulated profile that this package ships" in ran.err
    assert "not for milliseconds" in ran.err
    target = folder / "profiles" / "rpi4.json"
    shipped = Path(hwcost.__file__).parent / "devices" / "rpi4.profile.json"
    repository = Path(__file__).parents[2] / "profiles" / "rpi4.json"
    assert target.read_bytes() == shipped.read_bytes() == repository.read_bytes()
    assert len(shipped.read_bytes()) < 3_000_000
    rows = read_profile(target).rows
    spaces = {op for image in ((1, 8, 8), (3, 32, 32)) for op in SearchSpace.for_image(image, 10).operators()}
    assert spaces <= {row.operator for row in rows} and all(row.source == "emulated" for row in rows)
    assert "emulated" in Ran(capsys, "show", target).out
    int8 = Ran(capsys, "profile", "--device", "rpi4", "--precision", "w8a8", "--json").document
    assert 0 < sum(int8["sources"].values()) < len(rows)


def test_other_ways_are_of_devices_that_are_not_at_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--emulate is of a device that is not at hand" in Ran(capsys, "profile", "--emulate").err
    assert "rpi5 does not" in Ran(capsys, "profile", "--device", "rpi5", "--emulate").error
    assert "executed for it with --emulate" in Ran(capsys, "profile", "--device", "rpi4", "--model", "m.onnx").err
    found = Ran(capsys, "emulator", "--json").document
    assert found["devices"] == ["neoverse-n1", "rpi4"] and found["ready"] == (not found["missing"])
