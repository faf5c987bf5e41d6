"""What somebody else's file may take of this machine: memory and time, so that neither it nor the reader hangs.

Linux promises more memory than it has and ends processes when it runs out, so an allocation that would push the system
there has to fail before. It fails inside the library that asks for it, which reports it like any other refusal.
"""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

_Result = TypeVar("_Result")
_MEMINFO: Final = Path("/proc/meminfo")
_STATUS: Final = Path("/proc/self/status")
_GROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
"""Where the control group of a container is seen, in version 2 and in version 1."""
_SHARE: Final = 0.9  # of the available memory; the rest is for whoever else needs some meanwhile
_ONE_AT_A_TIME: Final = threading.RLock()  # the limit is the process's, not the thread's


def _bytes(path: Path, line: str) -> int | None:
    """The number in a line of a file of the system, times 1024 where it is in kB; None where there is none."""
    try:
        found = re.search(rf"^{line}(\d+)( kB)?$", path.read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * (1024 if found[2] else 1) if found else None


def _left_in_group(group: Path) -> int | None:
    """Bytes that a container may still take, files that it need not keep in memory left out; None without a limit."""
    limit = _bytes(group / "memory.max", "") or _bytes(group / "memory.limit_in_bytes", "")
    used = _bytes(group / "memory.current", "") or _bytes(group / "memory.usage_in_bytes", "")
    if limit is None or used is None:
        return None
    return max(limit - used + (_bytes(group / "memory.stat", "(?:total_)?inactive_file ") or 0), 0)


def available_bytes() -> int | None:
    """Memory that can still be taken without anything having to give way; None where the system does not say."""
    parts = (_bytes(_MEMINFO, r"MemAvailable:\s+"), *map(_left_in_group, _GROUPS))
    return min((int(part * _SHARE) for part in parts if part is not None), default=None)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Within, this process's memory (files mapped into it left out) grows by no more than what is available now.

    What asks for more gets a `MemoryError`, or what its library makes of one. Only on Linux; elsewhere nothing is held.
    """
    available, taken = available_bytes(), _bytes(_STATUS, r"VmData:\s+")
    if sys.platform != "linux" or available is None or taken is None:
        yield
        return
    import resource

    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        known = (limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_DATA, (min(taken + available, *known, sys.maxsize), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def within(seconds: float, work: Callable[[], _Result], stop: Callable[[], None]) -> _Result:
    """What `work` returns or raises; `TimeoutError` once it has taken `seconds`, an interrupt at once.

    `work` has a thread of its own, since native code cannot be interrupted. Where it is given up, `stop` is called, and
    it may go on until it looks, at the latest until the process ends.
    """
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised again where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except BaseException:
        stop()
        raise
