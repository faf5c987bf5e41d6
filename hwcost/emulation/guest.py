"""What runs inside the emulated machine: the measurement agent, and one command more, to trace a run.

This file and `agent.py` lie beside each other there; nothing else of the package does. A trace begins and ends with a
system call that means nothing to the system and everything to the plugin (`plugin/trace.c`).

How many instructions a run takes depends a little on where memory lies, and so on all that a process did before. So
every trace is taken in a process of its own, a child of one that has loaded the runtime and done nothing since.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    from hwcost import agent
else:
    agent = importlib.import_module("agent")

_LSEEK: Final = 62
_MAGIC: Final = 0x68776370
_WARM_UPS: Final = 2
"""Runs before the one that is traced: the first plans memory, the second allocates what was planned."""
_WARM: Final = b"w"
_TRACE: Final = b"t"
_LONGEST: Final = 2**12


class TracedAgent(agent.Agent):
    """Traces runs; a trace is known by its number. `ask` and `told` lead to the process whose children take them."""

    ask: int
    told: int

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._count = 0

    def do_warm(self, request: agent.Request) -> agent.Answer:
        """Run a model where later traces are forked from: what is translated then need not be translated again."""
        self._told(request, _WARM, 0)
        return None, ()

    def do_trace(self, request: agent.Request) -> agent.Answer:
        """Trace one run of a session that has run before; the number of the trace."""
        number, self._count = self._count, self._count + 1
        self._told(request, _TRACE, number)
        return number, ()

    def _told(self, request: agent.Request, what: bytes, number: int) -> None:
        path = self.folder / "request"
        blobs = request.blobs
        with path.open("wb") as stream:
            # As long for every number: where memory lies depends on lengths, too.
            head = {**request.head, "number": f"{number:09d}", "blobs": [len(blob) for blob in blobs]}
            agent.write_frame(stream, head, blobs)
        os.write(self.ask, what + os.fsencode(path))
        refused = os.read(self.told, _LONGEST).decode(errors="replace").strip("\0")
        if refused == "ended":
            raise SystemExit(1)
        if refused:
            raise RuntimeError(refused)


def _trace(path: bytes) -> str:
    """Do what the file at `path` asks for; what the runtime refuses, in words."""
    with open(path, "rb") as stream:  # noqa: PTH123
        frame = io.BytesIO(stream.read())
    head = agent.read_line(frame)
    assert head is not None
    request = agent.Request(head, [agent.exactly(frame, size) for size in head["blobs"]])
    call: Any = ctypes.CDLL(None).syscall

    def mark(number: int) -> None:
        call(_LSEEK, ctypes.c_long(-1), ctypes.c_long(number), ctypes.c_long(_MAGIC))

    number = 2 * int(head["number"])
    try:
        with agent.Agent(Path(os.fsdecode(path)).parent).running(request) as running:
            feeds = request.feeds
            for _ in range(_WARM_UPS):
                running.run(None, feeds)
            mark(number + 1)
            running.run(None, feeds)
            mark(number + 2)
    except Exception as error:  # noqa: BLE001 - the edge of a process: whatever it is, the other side is told
        return str(error) or type(error).__name__
    return ""


def _serve_traces(asked: int, tell: int) -> None:
    """A child for every path that is asked for, until nobody asks."""
    gc.disable()  # when it runs would depend on how many traces there were
    while path := os.read(asked, _LONGEST):
        what, path = path[:1], path[1:]
        if what == _WARM:
            os.write(tell, _trace(path).encode()[: _LONGEST // 2] or b"\0")
            continue
        child = os.fork()
        if child == 0:
            os.write(tell, _trace(path).encode()[: _LONGEST // 2] or b"\0")
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            os.write(tell, b"ended")


def serve() -> int:
    """Entry point: an agent, and beside it the process whose children trace."""
    with suppress(ImportError, OSError):  # which is told where somebody asks
        agent.any_refusal()  # loads the runtime
    asked, ask = os.pipe()
    told, tell = os.pipe()
    if os.fork() == 0:
        os.close(ask)
        os.close(told)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        _serve_traces(asked, tell)
        os._exit(0)
    os.close(asked)
    os.close(tell)
    TracedAgent.ask, TracedAgent.told = ask, told
    return agent.main(TracedAgent)


if __name__ == "__main__":
    sys.exit(serve())
