"""Timings from processes of their own: what ends one is one operator's reason, and nothing outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx_models import float_model

from hwcost.errors import MeasurementError
from hwcost.kernels import copies, prepare, run_time
from hwcost.model import read_model
from hwcost.onnxfile import example_feeds, load_model
from hwcost.ops import FLOAT, INT8, Conv, Gemm, Operator, Pool
from hwcost.pipe import Piped, _parts
from hwcost.runtime import EndedError, Given, Here, RefusedError, time_model
from hwcost.timing import Survey, Task, Timings

SIZES = {"good": 10, "crash": 11, "hang": 12, "leave": 13, "unforeseen": 14}
"""Outputs of a matrix product, by what the broken agent makes of it."""
BROKEN = """
import os, signal, sys, time
from hwcost import agent
class Broken(agent.Agent):
    def do_shortest(self, request):
        columns = {base["shape"][-1] for base in request.head.get("bases", [])}
        point = next(name for name, size in SIZES.items() if size * 1024 in columns)
        with open(sys.argv[1], "a") as log:
            log.write(f"{os.getpid()} {point}\\n")
        if point == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if point == "hang":
            time.sleep(60)
        if point == "leave":
            os._exit(3)
        if point == "unforeseen":
            raise OverflowError("what nobody thought of")
        print("noise of the runtime", flush=True)
        return super().do_shortest(request)
sys.exit(agent.main(Broken))
"""


def task(point: str, stage: int = 0) -> Task:
    request = (Gemm(1, 2, SIZES[point] * 1024), FLOAT)
    return Task(point=point, stage=stage, requests=(request,), int8_form="u8u8", seed=0, threads=1, copies=4)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


def gone(pid: int) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def broken(log: Path) -> Piped:
    return Piped((sys.executable, "-c", f"SIZES = {SIZES}\n{BROKEN}", str(log)), request_s=1.0)


def test_a_timing_of_a_real_process_and_where_it_was_taken_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Piped() as runtime:
        timings = Timings(runtime)
        site = timings.survey(Survey(threads=1, seed=0))
        timing = timings.take(task("good"))
    assert site.machine.onnxruntime != "unknown"
    assert (timing.point, timing.copies, timing.realisation, timing.refused) == ("good", 4, "Gemm", "")
    assert timing.run_s is not None and 0 < timing.run_s < 1
    assert list(tmp_path.iterdir()) == []


def test_what_ends_a_process_is_that_operators_reason_and_the_next_has_a_new_process(log: Path) -> None:
    reasons = {
        "crash": "was ended by SIGSEGV",
        "leave": "ended with exit code 3",
        "hang": "gave no answer in 1 s",
        "unforeseen": "OverflowError: what nobody thought of",
    }
    with broken(log) as runtime:
        timings = Timings(runtime)
        for point, reason in reasons.items():
            refused = timings.take(task(point))
            assert refused.run_s is None
            assert refused.refused.startswith("what is measured must run to its end, the process that ran gemm(m=1,")
            assert f" at w32a32 {reason}: leave it out" in refused.refused
            assert timings.take(task("good")).refused == ""
    tried = [line.split() for line in log.read_text().splitlines()]
    assert [point for _, point in tried].count("crash") == 2
    assert len({pid for pid, _ in tried}) > 5
    assert all(gone(int(pid)) for pid, _ in tried)


def test_timings_together_are_one_request_to_run_and_each_is_its_own(log: Path) -> None:
    tasks = [task("good").model_copy(update={"point": str(copies), "copies": copies}) for copies in range(1, 11)]
    with broken(log) as runtime:
        timings = list(Timings(runtime).take_all(tasks))
    assert [(timing.point, timing.copies, timing.refused) for timing in timings] == [
        (one.point, one.copies, "") for one in tasks
    ]
    assert all(timing.run_s for timing in timings) and len(log.read_text().splitlines()) == 2  # of eight, and of two


@pytest.mark.parametrize("point", ["crash", "leave", "hang", "unforeseen"])
def test_what_ends_a_process_in_which_others_are_timed_too_is_that_operators_reason(log: Path, point: str) -> None:
    with broken(log) as runtime:
        good, bad = Timings(runtime).take_all([task("good"), task(point)])
        assert good.run_s and not good.refused and not bad.run_s and f"{SIZES[point] * 1024}" in bad.refused


def test_of_models_that_are_timed_together_one_that_is_refused_leaves_none_behind(tmp_path: Path) -> None:
    path = float_model(tmp_path / "m.onnx")
    good = Given(path), example_feeds(load_model(path), 0)
    with Piped() as runtime:
        for jobs in ([good, (Given(b"not a model"), {})], [(Given(b"not a model"), {}), good]):
            with pytest.raises(RefusedError):
                runtime.shortest_each_s(jobs, 0.0)
            assert len(runtime.shortest_each_s([good, good, good], 0.0)) == 3


def test_every_stage_has_a_process_of_its_own(log: Path) -> None:
    with broken(log) as runtime:
        timings = Timings(runtime)
        for stage in (0, 0, 1, 1):
            assert timings.take(task("good", stage)).refused == ""
    first, second, third, fourth = (int(line.split()[0]) for line in log.read_text().splitlines())
    assert first == second != third == fourth
    assert gone(first) and gone(third)


@pytest.mark.parametrize("op", [Conv.square(64, 64, 6, 3), Gemm(2, 96, 64)], ids=["conv", "gemm"])
@pytest.mark.parametrize("precision", [FLOAT, INT8], ids=str)
def test_a_process_runs_what_this_one_runs(op: Operator, precision: object) -> None:
    assert precision in (FLOAT, INT8)
    with Piped() as runtime:
        here, there = (prepare(op, precision, "u8u8", 0, one, 1) for one in (Here(), runtime))
        assert here.realisation == there.realisation and here.nodes == there.nodes and here.constants == there.constants
        model, feeds, weights = copies([there], 3)
        assert weights and runtime.shortest_s(Given(model, 1, "none", weights=weights), feeds, 0.0) > 0
        # The copies' weights are all read: an output for each tells so, equal here and there.
        given = Given(model, 1, "none", weights=weights)
        np.testing.assert_array_equal(Here().run(given, feeds)[0], runtime.run(given, feeds)[0])


def test_a_model_is_read_as_it_is_here(tmp_path: Path) -> None:
    path = float_model(tmp_path / "model.onnx")
    with Piped() as runtime:
        there, here = read_model(path, runtime=runtime), read_model(path)
    assert [layer[1:] for layer in there.layers] == [layer[1:] for layer in here.layers]
    assert (there.uncovered, there.elements) == (here.uncovered, here.elements)


@pytest.mark.parametrize("contains", [(), (b"xyz",), (b"bc", b"d"), (b"abcdabcd",), (b"bcd", b"cda"), (b"",)])
def test_a_model_in_parts_is_the_model(contains: tuple[bytes, ...]) -> None:
    for model in (b"abcdabcd", b"abcd" * 3 + b"e", b"a"):
        assert b"".join(_parts(model, contains)) == model
    assert _parts(b"abcdabcd", (b"bc", b"d")) == [b"a", b"bc", b"d", b"a", b"bc", b"d"]


def test_weights_and_inputs_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    with Piped() as runtime:
        kernel = prepare(Conv.square(64, 64, 14, 3), FLOAT, "u8u8", 0, runtime, 1)
        process = runtime._process
        assert process is not None and process.stdin is not None
        write = process.stdin.write
        monkeypatch.setattr(process.stdin, "write", lambda data: sent.append(len(data)) or write(data))
        sizes = []
        for count in (7, 7, 8):
            assert run_time([kernel], count, runtime, 1, 0.0) > 0
            sizes.append(sum(sent))
            sent.clear()
    (x,), (weights, _) = kernel.inputs.values(), sorted(kernel.constants.values(), key=lambda one: -one.ByteSize())
    assert x.nbytes > 40_000 and weights.ByteSize() > 140_000
    assert sizes[0] < weights.ByteSize() + x.nbytes + 20_000
    assert max(sizes[1:]) < 20_000


def test_what_the_runtime_refuses_is_said_as_in_this_process(tmp_path: Path) -> None:
    refused = Pool("max", 8, 4, 4, (2, 2), (1, 1), (2, 2, 2, 2))
    asked = task("good").model_copy(update={"requests": ((refused, FLOAT),)})
    with Piped() as runtime:
        there = Timings(runtime).take(asked)
        with pytest.raises(RefusedError):
            runtime.shortest_s(Given(b"not a model"), {}, 0.0)
        with pytest.raises(MeasurementError, match=r"fed every one of its inputs, got none for .*: feed them"):
            time_model(float_model(tmp_path / "model.onnx"), {}, runtime=runtime)
        with pytest.raises(MeasurementError, match=r"it refused .*absent\.onnx: "):
            time_model(tmp_path / "absent.onnx", {}, runtime=runtime)
    assert there.refused.startswith("onnxruntime must be able to run what is measured, it refused pool(function=max")
    assert there == Timings().take(asked)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("no-such-program",), r"`no-such-program` does not start \(No such file or directory\)"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "ended with exit code 3: see whether it starts"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"), "was ended by SIGILL"),
        ((sys.executable, "-c", "print('hello'); input()"), "answered what is no answer"),
        ((sys.executable, "-c", "print('{}'); input()"), "does not speak version 2 of this package's agent"),
    ],
)
def test_a_process_that_cannot_start_is_an_error(command: tuple[str, ...], reason: str) -> None:
    with Piped(command) as runtime, pytest.raises(MeasurementError, match=reason):
        Timings(runtime).survey(Survey(threads=1, seed=0))


@pytest.mark.parametrize(
    "answer",
    [
        "[]",
        '{"answer": -1.0, "blobs": []}',
        '{"answer": "1", "blobs": []}',
        '{"answer": NaN, "blobs": []}',
        '{"answer": Infinity, "blobs": []}',
        '{"answer": 1.0, "blobs": [-1]}',
        '{"answer": 1.0, "blobs": [99999999999999]}',
        '{"answer": 1.0, "blobs": [], "more": 1}',
        "no JSON",
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_answer_ends_the_process_and_is_no_timing(answer: str) -> None:
    ready = json.dumps({"format": "hwcost-agent", "version": 2, "python": "3"})
    code = (
        "import json, sys\n"
        f"print({ready!r}, flush=True)\n"
        "sys.stdin.readline()\n"
        """print('{"answer": {"numpy": "2", "onnxruntime": "1"}, "blobs": []}', flush=True)\n"""
        "sys.stdin.readline()\n"
        f"print({answer!r}, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with Piped((sys.executable, "-c", code)) as runtime:
        with pytest.raises(EndedError, match="answered what is no answer"):
            runtime.shortest_s(Given(b"model"), {}, 0.0)
        assert runtime._process is None


def test_a_child_ends_with_its_parent_in_the_middle_of_a_run_and_leaves_no_file(tmp_path: Path) -> None:
    script = """
import os, signal, sys, threading
from hwcost.pipe import Piped, _parts
from hwcost.runtime import Given
from hwcost.agent import __file__ as agent
code = f'''
import sys
sys.path.insert(0, {os.path.dirname(agent)!r})
import agent, os, time
class Sleepy(agent.Agent):
    def do_facts(self, request):
        open(self.folder / "left", "w").close()
        print(os.getpid(), file=open(sys.argv[1], "w"), flush=True)
        time.sleep(60)
sys.exit(agent.main(Sleepy))
'''
runtime = Piped(("env", f"TMPDIR={sys.argv[2]}", sys.executable, "-c", code, sys.argv[1]))
threading.Thread(target=runtime.facts, daemon=True).start()
while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read().endswith("\\n"):
    pass
print(runtime._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    folder = tmp_path / "tmp"
    folder.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "pid"), str(folder)], capture_output=True, text=True
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert gone(int((tmp_path / "pid").read_text())) and gone(int(ran.stdout))
    assert list(folder.iterdir()) == []
