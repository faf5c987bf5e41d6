"""Another machine, through a real sshd on this one: what is measured there, what is said where it cannot be, and what
becomes of a connection that is cut."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import Loopback, missing
from onnx_models import float_model

from hwcost.cli import cli
from hwcost.console import run_cli
from hwcost.errors import MeasurementError
from hwcost.machine import detect_machine
from hwcost.measure import Measurements, measure_operators
from hwcost.ops import FLOAT, INT8, Conv, Elementwise, Gemm, Precision
from hwcost.pipe import Piped
from hwcost.profiles import read_profile
from hwcost.runtime import Given, Runtime, UnusableError
from hwcost.ssh import split_target
from hwcost.timing import Request, Survey, Task, Timings

REQUESTS: list[Request] = [
    (Conv.square(64, 64, 14, 3), INT8),
    (Conv.square(64, 64, 14, 1), FLOAT),
    (Gemm(1, 256, 100), Precision(4, 32)),
    (Elementwise("add", (1, 32, 14, 14)), FLOAT),
]


def is_clean(board: Loopback) -> bool:
    """Whether there soon is no file and no process of an agent's."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not list(board.tmp.iterdir()) and not agents():
            return True
        time.sleep(0.05)
    return False


def agents() -> list[int]:
    """Processes of agents that came through a connection, a supervisor before its child."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-c" in words and any(word.startswith(b"import sys;sys.version_info>=") for word in words):
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    if lacking := missing():
        pytest.skip(lacking)
    made = Loopback(tmp_path_factory.mktemp("board"))
    yield made
    made.stop()


def measured(runtime: Runtime, journal: Path | None = None) -> Measurements:
    timings = Timings(runtime)
    return measure_operators(
        REQUESTS, int8_form="u8u8", machine=detect_machine(), passes=1, journal=journal, take=timings.take_all
    )


def test_another_machine_is_measured_as_this_one_is_and_nothing_stays_there(board: Loopback, tmp_path: Path) -> None:
    model = float_model(tmp_path / "m.onnx")
    with board.reached() as there, Piped() as here:
        site = Timings(there).survey(Survey(threads=1, seed=0))
        assert site.machine == detect_machine()
        remote, local = measured(there), measured(here)
        assert there.shortest_s(Given(model), {"x": _zeros(model)}, 0.0) > 0
    assert [(row.operator, row.precision) for row in remote.rows] == REQUESTS
    for row, other in zip(remote.rows, local.rows, strict=True):
        kernel, other_kernel = (one.realisation.split(",")[0] for one in (row, other))  # of two levels either may win
        assert (kernel, row.native, row.source) == (other_kernel, other.native, other.source)
        assert 1 / 3 < row.latency_s / other.latency_s < 3
    assert is_clean(board)


def _zeros(model: Path) -> object:
    from hwcost.onnxfile import example_feeds, load_model

    return example_feeds(load_model(model), 0)["x"]


def test_a_cut_connection_is_made_again_and_no_finished_timing_is_lost(board: Loopback, tmp_path: Path) -> None:
    said: list[str] = []
    journal = tmp_path / "journal.jsonl"
    seen = bytearray()

    def cut_twice() -> None:
        for lines in (10, 30):
            while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
                time.sleep(0.005)
            seen[:] = journal.read_bytes()
            assert board.cut()

    cutting = threading.Thread(target=cut_twice)
    cutting.start()
    with board.reached(say=said.append, sleep=lambda seconds: None) as there:
        found = measured(there, journal)
    cutting.join()
    assert sum(text.startswith(f"the connection to {board.target} was lost (") for text in said) == 2
    assert journal.read_bytes().startswith(bytes(seen).rpartition(b"\n")[0])
    with Piped() as here:
        alone = tmp_path / "alone.jsonl"
        measured(here, alone)
    assert points(journal) == points(alone)
    assert len(found.rows) == len(REQUESTS) and not found.skipped
    assert is_clean(board)


def points(journal: Path) -> list[str]:
    """What was timed, as often as it was; the overhead is timed again while noise contradicts it."""
    entries = map(json.loads, journal.read_text().splitlines()[1:])
    return sorted(entry["point"] for entry in entries if "overhead" not in entry["point"])


def test_a_machine_that_does_not_come_back_is_given_up_after_growing_pauses(tmp_path: Path) -> None:
    if lacking := missing():
        pytest.skip(lacking)
    own = Loopback(tmp_path)
    pauses: list[float] = []
    said: list[str] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            own.start()

    with own.reached(say=said.append, sleep=sleep) as there:
        there.facts()
        own.stop()
        assert there.facts().cores >= 1
        assert pauses == sorted(pauses) and len(pauses) == 3
        assert any("does not answer" in text and "Connection refused" in text for text in said)
        own.stop()
        with pytest.raises(UnusableError, match=r"does not reach .* any more \(.*\): run the same command again"):
            there.facts()
        assert 120 < sum(pauses[3:]) < 1200


def test_what_ends_the_program_there_is_not_taken_for_a_lost_connection(board: Loopback) -> None:
    said: list[str] = []
    with board.reached(say=said.append) as there:
        there.facts()
        watching, working = agents()
        stopping = threading.Timer(0.3, os.kill, (working, signal.SIGSEGV))
        stopping.start()
        request = REQUESTS[1]
        timings = Timings(there)
        task = _task(request)
        kernel_s = timings.take(task).run_s
        stopping.join()
        refused = timings.take(task.model_copy(update={"point": "again"}))
        assert kernel_s is not None and refused.run_s is not None
        assert agents()[0] != watching
        (working,) = agents()[1:]
        os.kill(working, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="was ended by SIGKILL"):
            there.facts()
        assert there.facts().cores >= 1
    assert said == []


def _task(request: Request) -> Task:
    return Task(point="row", requests=(request,), int8_form="u8u8", seed=0, threads=1)


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], str]:
    def script(text: str) -> str:
        path = tmp_path / "a python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return script


def library(folder: Path, code: str) -> str:
    """Runs the real Python with an onnxruntime that is this code."""
    (folder / "lib").mkdir()
    (folder / "lib" / "onnxruntime.py").write_text(code)
    return f'PYTHONPATH="{folder}/lib" exec "{sys.executable}" "$@"'


def test_an_illegal_instruction_is_explained(board: Loopback, tmp_path: Path, fake: Callable[[str], str]) -> None:
    wheel = library(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    for text in (wheel, "kill -ILL $$"):
        with board.reached(python=fake(text)) as there, pytest.raises(UnusableError) as caught:
            there.facts()
        assert "it ends with an illegal instruction: this build is for newer processors" in str(caught.value)
        assert "pip install 'onnxruntime!=1.21.*'" in str(caught.value)
    assert is_clean(board)


def test_what_is_missing_there_is_said_with_what_to_do(
    board: Loopback, tmp_path: Path, fake: Callable[[str], str]
) -> None:
    missing = library(tmp_path, "raise ImportError('no such wheel')")
    for text, reason in (
        (
            missing,
            r"cannot import onnxruntime \(no such wheel\): run `.*a python -m pip install numpy onnxruntime` there",
        ),
        ("echo broken >&2; exit 3", r"it ended with exit code 3 \(broken\): see whether"),
        ("exit 64", "is older: name a newer one with --python"),
        ("echo Welcome to this board; exec cat", "answered what is no answer"),
    ):
        with board.reached(python=fake(text)) as there, pytest.raises(UnusableError, match=reason):
            there.facts()
    with (
        board.reached(python="no-such-python") as there,
        pytest.raises(UnusableError, match="does not run no-such-python"),
    ):
        there.facts()


def test_targets_are_those_that_ssh_takes_and_nothing_that_it_would_take_for_an_option() -> None:
    assert split_target("pi@raspberrypi.local") == ("pi@raspberrypi.local", "")
    assert split_target("board:2222") == ("board", "2222")
    assert split_target("pi@[fe80::1%eth0]:22") == ("pi@fe80::1%eth0", "22")
    for text in ("", "-oProxyCommand=x", "pi@-x", "a b", "pi@", "@host", "host:port", "pi@host:22:22"):
        with pytest.raises(MeasurementError, match="a machine is named USER@HOST, USER@HOST:PORT or as in ssh's"):
            split_target(text)


# The command


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        run_cli(cli, "hwcost", [str(argument) for argument in arguments])
    return caught.value.code, *capsys.readouterr()


def profile(board: Loopback, *more: object) -> list[object]:
    return ["profile", "--ssh", board.target, "--ssh-config", board.config, "--python", sys.executable, *more]


def test_what_cannot_be_reached_is_one_line_and_exit_code_1(
    board: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stranger = board.configured("stranger-key", key="stranger")
    unknown = board.configured("unknown-host", known="nothing")
    for arguments, reason in (
        (profile(board, "--ssh-config", unknown), "Host key verification failed"),
        (profile(board, "--ssh-config", stranger), "Permission denied"),
        (profile(board, "--ssh", "pi@127.0.0.1:1"), "Connection refused"),
        (profile(board, "--ssh", "pi@no-such-host.invalid"), "Could not resolve hostname"),
        (profile(board, "--ssh-option", "NoSuchOption=1"), "Bad configuration option"),
        (profile(board, "--ssh", "-oProxyCommand=touch"), "a machine is named USER@HOST"),
    ):
        code, out, err = ran(capsys, *arguments)
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert line.startswith("hwcost: error: ") and reason in line
    assert not list(tmp_path.glob("profiles/*"))
    code, _, err = ran(capsys, "profile", "--python", "python3")
    assert code == 2 and "are about another machine: add --ssh" in err


def test_a_machine_is_not_called_what_it_is_not(
    board: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ran(capsys, *profile(board, "--device", "rpi4"))
    assert (code, out) == (1, "")
    assert f"--device rpi4 is for a Raspberry Pi 4 (BCM2711, 4 x Cortex-A72 at 1.5 GHz), {board.target} is a " in err
    assert "to measure it all the same, give it another name, like --device " in err
    code, _, err = ran(capsys, *profile(board, "--device", "My Board"))
    assert code == 1 and "a device's name is up to 64 small letters, digits and . _ -, got 'My Board'" in err


def test_a_profile_over_ssh_has_a_name_of_ones_own_and_checks_a_model_there(
    board: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = float_model(tmp_path / "m.onnx")
    small = ("--image", "1,8,8", "--samples", 0, "--precision", "w8a8", "--passes", 1, "--model", model)
    code, _, err = ran(capsys, *profile(board, "--device", "my-board", *small, "--json"))
    assert code == 0, err
    path = tmp_path / "profiles" / "my-board.json"
    made = read_profile(path)
    assert (made.device, made.sources, made.machine) == ("my-board", ("measured",), detect_machine())
    assert not list(tmp_path.glob("profiles/*.partial.jsonl"))
    there = ("--ssh", board.target, "--ssh-config", board.config, "--python", sys.executable)
    code, out, err = ran(capsys, "check", model, "--profile", path, "--time", "100ms", *there, "--json")
    assert code == 0, err
    assert json.loads(out)["measured_s"] > 0
    assert is_clean(board)
