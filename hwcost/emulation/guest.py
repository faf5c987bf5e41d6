"""What runs inside the emulated machine: the measurement agent, and one command more, to trace a run.

This file and `agent.py` lie beside each other there; nothing else of the package does. A trace begins and ends with a
system call that means nothing to the system and everything to the plugin (`plugin/trace.c`).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    from hwcost.agent import Agent, Answer, Request, UnfedError, main
else:
    from agent import Agent, UnfedError, main

_LSEEK: Final = 62
_MAGIC: Final = 0x68776370
_WARM_UPS: Final = 2
"""Runs before the one that is traced: the first plans memory, the second allocates what was planned."""


class TracedAgent(Agent):
    """Traces runs; the place of a trace is its number."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._call: Any = ctypes.CDLL(None).syscall
        self._call.restype = ctypes.c_long
        self._count = 0

    def _mark(self, number: int) -> None:
        self._call(_LSEEK, ctypes.c_long(-1), ctypes.c_long(number), ctypes.c_long(_MAGIC))

    def do_trace(self, request: Request) -> Answer:
        """Trace one run of a session that has run before; the number of the trace."""
        with self.running(request) as running:
            feeds = request.feeds
            missing = [one.name for one in running.get_inputs() if one.name not in feeds]
            if missing:
                raise UnfedError(f"a traced model is fed every one of its inputs, got none for {', '.join(missing)}")
            for _ in range(_WARM_UPS):
                running.run(None, feeds)
            number, self._count = self._count, self._count + 1
            self._mark(2 * number + 1)
            running.run(None, feeds)
            self._mark(2 * number + 2)
        return number, ()


if __name__ == "__main__":
    sys.exit(main(TracedAgent))
