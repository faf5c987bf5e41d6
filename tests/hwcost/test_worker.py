"""Timings from processes of their own: what ends one is one operator's reason, and nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwcost.errors import MeasurementError
from hwcost.ops import FLOAT, Gemm, Pool
from hwcost.timing import Survey, Task
from hwcost.worker import Worker

TASK = Task(point="good", requests=((Gemm(1, 32, 10), FLOAT),), int8_form="u8u8", seed=0, threads=1, copies=4)
BROKEN = """
import os, signal, sys, time
from hwcost import timing, worker
real = timing.InProcess.take
def take(self, task):
    with open(sys.argv[1], "a") as log:
        log.write(f"{os.getpid()} {task.point}\\n")
    if task.point == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.point == "hang":
        time.sleep(60)
    if task.point == "leave":
        os._exit(3)
    if task.point == "unforeseen":
        raise ValueError("what nobody thought of")
    print("noise of the runtime", flush=True)
    return real(self, task)
timing.InProcess.take = take
worker._TASK_S = 0.5
worker.main()
"""


def task(point: str, stage: int = 0) -> Task:
    return TASK.model_copy(update={"point": point, "stage": stage})


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def broken(log: Path) -> Worker:
    return Worker((sys.executable, "-c", BROKEN, str(log)))


def test_a_timing_of_a_real_child_and_where_it_was_taken() -> None:
    with Worker() as worker:
        site = worker.survey(Survey(threads=1, seed=0))
        timing = worker.take(task("good"))
    assert site.machine.onnxruntime != "unknown"
    assert (timing.point, timing.copies, timing.realisation, timing.refused) == ("good", 4, "Gemm", "")
    assert timing.run_s is not None and 0 < timing.run_s < 1


def test_what_ends_a_process_is_that_operators_reason_and_the_next_has_a_new_process(log: Path) -> None:
    reasons = {
        "crash": "was ended by SIGSEGV",
        "leave": "ended with exit code 3",
        "hang": "ended with exit code 1",
        "unforeseen": "ValueError: what nobody thought of",
    }
    with broken(log) as worker:
        for point, reason in reasons.items():
            refused = worker.take(task(point))
            assert refused.run_s is None
            assert refused.refused.startswith("what is measured must run to its end, the process that ran gemm(m=1,")
            assert f" at w32a32 {reason}: leave it out" in refused.refused
            assert worker.take(task("good")).refused == ""
    tried = [line.split() for line in log.read_text().splitlines()]
    assert [point for _, point in tried].count("crash") == 2
    assert len({pid for pid, _ in tried}) > 5


def test_every_stage_has_a_process_of_its_own(log: Path) -> None:
    with broken(log) as worker:
        for stage in (0, 0, 1, 1):
            assert worker.take(task("good", stage)).refused == ""
    first, second, third, fourth = (int(line.split()[0]) for line in log.read_text().splitlines())
    assert first == second != third == fourth
    assert not alive(first) and not alive(third)


def test_what_the_runtime_refuses_is_said_as_in_this_process() -> None:
    refused = Pool("max", 8, 4, 4, (2, 2), (1, 1), (2, 2, 2, 2))
    with Worker() as worker:
        timing = worker.take(TASK.model_copy(update={"requests": ((refused, FLOAT),)}))
    assert timing.refused.startswith("onnxruntime must be able to run what is measured, it refused pool(function=max")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("no-such-program",), r"`no-such-program` does not start \(No such file or directory\)"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "ended with exit code 3: see whether it starts"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"), "was ended by SIGILL"),
        ((sys.executable, "-c", "print('hello'); input()"), "does not speak version 1 of this package's worker"),
    ],
)
def test_a_process_that_cannot_start_is_an_error(command: tuple[str, ...], reason: str) -> None:
    with Worker(command) as worker, pytest.raises(MeasurementError, match=reason):
        worker.survey(Survey(threads=1, seed=0))


def test_a_child_ends_with_its_parent_and_needs_nothing_heavy() -> None:
    script = """
import os, signal, sys
from hwcost.worker import Worker
from hwcost.timing import Survey
worker = Worker()
worker.survey(Survey(threads=1, seed=0))
print(worker._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL
    child, deadline = int(ran.stdout), time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
    listed = "import hwcost.worker, sys; print({name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout
    assert not {name for name in ("torch", "sklearn", "pandas", "xgboost", "click", "scipy") if f"'{name}'" in loaded}
