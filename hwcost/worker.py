"""Timings in a process of their own: both ends of the pipe.

`python -m hwcost.worker` reads a JSON document a line from its standard input, a `Task` or a `Survey`, and answers each
with one line: a `Timing`, a `Site`, or a `Refusal`. It needs nothing but that, so it may stand at the other end of a
network too. It ends when its input does, and when one task takes too long. What the runtime breaks is one process,
never the measurement: the operator is reported, and the next one has a new process.
"""

import faulthandler
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hwcost.errors import MeasurementError
from hwcost.timing import InProcess, Site, Survey, Task, Timing

# 1: first version.
WORKER_VERSION: Final = 1

_TASK_S: Final = 60.0
"""Seconds after which a task hangs."""
_GRACE_S: Final = 5.0
_END_S: Final = 0.5
_START_S: Final = 120.0
_ATTEMPTS: Final = 2
_HERE: Final = (sys.executable, "-P", "-m", "hwcost.worker")
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ready(BaseModel):
    """The first line of all: the runtime could be loaded."""

    model_config = _STRICT

    format: Literal["hwcost-worker"] = "hwcost-worker"
    version: Literal[1] = WORKER_VERSION


class Refusal(BaseModel):
    """Why there is no answer."""

    model_config = _STRICT

    reason: str


_REQUEST: Final = TypeAdapter[Task | Survey](Task | Survey)
_ANSWER: Final = TypeAdapter[Timing | Site | Refusal](Timing | Site | Refusal)


class _Ended(Exception):
    """A process that gives no answer; the text says how it ended."""


class Worker:
    """Takes timings in child processes, a new one for every stage. A context manager: no child outlives it."""

    def __init__(self, command: Sequence[str] = _HERE, task_s: float = _TASK_S) -> None:
        """`command` starts a process that speaks as this module's head says; a task may last `task_s`."""
        self._command, self._task_s = tuple(command), task_s
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._stage: int | None = None

    def take(self, task: Task) -> Timing:
        """One timing; what kills or hangs its process twice is refused. Raises `MeasurementError` where none starts."""
        if self._stage not in (None, task.stage):
            self._stop()
        self._stage, how = task.stage, ""
        for _ in range(_ATTEMPTS):
            try:
                answer = self._ask(task)
            except _Ended as end:
                how = str(end)
                continue
            if isinstance(answer, Timing):
                return answer
            how = answer.reason if isinstance(answer, Refusal) else "answered something else"
        return Timing(
            point=task.point,
            stage=task.stage,
            refused=f"what is measured must run to its end, the process that ran {task.label} {how}: "
            "leave it out or use another version of onnxruntime",
        )

    def survey(self, wanted: Survey) -> Site:
        """Where the timings are taken; raises `MeasurementError`."""
        try:
            answer = self._ask(wanted)
        except _Ended as end:
            raise self._unusable(str(end)) from None
        if isinstance(answer, Refusal):
            raise MeasurementError(answer.reason)
        if not isinstance(answer, Site):
            raise self._unusable("answered something else")
        return answer

    def _unusable(self, how: str) -> MeasurementError:
        return MeasurementError(
            f"timings are taken in a process that loads onnxruntime, `{' '.join(self._command)}` {how}: "
            "see whether it starts, and use another version of onnxruntime if it does not"
        )

    def _ask(self, request: Task | Survey) -> Timing | Site | Refusal:
        process = self._process or self._start()
        try:
            assert process.stdin is not None
            process.stdin.write(request.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise self._ended("") from None
        return _ANSWER.validate_json(self._line(self._task_s + _GRACE_S))

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that is ready; raises `MeasurementError`."""
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise self._unusable(f"does not start ({error.strerror})") from error
        self._process, self._answers = process, queue.SimpleQueue()
        assert process.stdout is not None
        threading.Thread(target=_listen, args=(process.stdout, self._answers), daemon=True).start()
        try:
            Ready.model_validate_json(self._line(_START_S))
        except _Ended as end:
            raise self._unusable(str(end)) from None
        except ValidationError:
            self._stop()
            raise self._unusable(f"does not speak version {WORKER_VERSION} of this package's worker") from None
        return process

    def _line(self, seconds: float) -> bytes:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            line = b""
            how = f"gave no answer in {seconds:.0f} s"
        else:
            how = ""
        if not line.endswith(b"\n"):
            raise self._ended(how)
        return line

    def _ended(self, how: str) -> _Ended:
        """Ends the process, if it has not ended, and says how it did."""
        code = self._stop()
        if not how and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        return _Ended(how or f"ended with exit code {code}")

    def _stop(self) -> int:
        """The exit code of the process, which is no more; negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):  # where it is gone already
            process.stdin.close()
        try:
            return process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()


def _listen(answers: IO[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
    """Hand on every line, and an empty one at the end."""
    with answers:
        for line in answers:
            lines.put(line)
    lines.put(b"")


def serve(requests: IO[bytes], answers: IO[bytes], task_s: float) -> None:
    """Answer requests until there are no more. A task that takes longer than `task_s` ends this process at once."""

    def answer(document: BaseModel) -> None:
        answers.write(document.model_dump_json().encode() + b"\n")
        answers.flush()

    here = InProcess()
    answer(Ready())
    with Path(os.devnull).open("w") as nowhere:
        for line in requests:
            faulthandler.dump_traceback_later(task_s, exit=True, file=nowhere)
            try:
                request = _REQUEST.validate_json(line)
                answer(here.take(request) if isinstance(request, Task) else here.survey(request))
            except Exception as error:  # noqa: BLE001 - the edge of a process: whatever it is, the other side is told
                answer(Refusal(reason=f"{type(error).__name__}: {error}"))
            finally:
                faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Entry point of `python -m hwcost.worker`. What the runtime prints goes to stderr; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers, _TASK_S)


if __name__ == "__main__":
    main()
