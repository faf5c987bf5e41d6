"""onnxruntime on another machine, through the system's own ssh: its keys, its configuration, its known hosts.

The agent's source goes through the connection to a Python there, which is all that has to be installed beside numpy and
onnxruntime; no file is put there, and what the agent itself keeps for a moment it removes, also when the connection is
cut. A connection that was there once and is lost is made again, after growing pauses; what was under way is repeated.

ssh's own exit code, 255, means the connection. Everything else is of the program there, which runs in a shell that says
how it ended: 128 more than the number of the signal.
"""

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from hwcost import agent
from hwcost.errors import MeasurementError
from hwcost.pipe import Frame, Piped
from hwcost.runtime import EndedError, UnusableError

_TARGET: Final = re.compile(
    r"((?P<user>[^@\s:-][^@\s:]*)@)?"
    r"(\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s@:/\[\]-][^\s@:/\[\]]*))"
    r"(:(?P<port>\d{1,5}))?"
)
_OPTIONS: Final = (
    "BatchMode=yes",  # a question would never be answered
    "ConnectTimeout=20",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
)
_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0, 60.0, 60.0)
_MOST_LOSSES: Final = 3
_CONNECTION: Final = 255
_TOO_OLD: Final = 64
_FINAL: Final = re.compile(r"Permission denied|Host key verification failed|Bad configuration")
"""What ssh says that waiting does not mend."""


class LostError(EndedError):
    """The connection is not there; the text says what ssh said."""


def split_target(text: str) -> tuple[str, str]:
    """`USER@HOST:PORT` as what ssh calls a destination and a port, empty where none is given; raises
    `MeasurementError`."""
    found = _TARGET.fullmatch(text)
    if found is None:
        raise MeasurementError(
            f"a machine is named USER@HOST, USER@HOST:PORT or as in ssh's configuration, got {text!r}: "
            "write it like pi@raspberrypi.local"
        )
    user = f"{found['user']}@" if found["user"] else ""
    return f"{user}{found['six'] or found['host']}", found["port"] or ""


class Ssh(Piped):
    """The runtime on the machine called `target`. A context manager.

    `options` are ssh's own (`NAME=VALUE`), `config` is a configuration file in the place of the usual one; `python` is
    the interpreter there. `say` tells of lost connections.
    """

    errors = subprocess.PIPE
    end_s = 10.0

    def __init__(
        self,
        target: str,
        *,
        python: str = "python3",
        options: Sequence[str] = (),
        config: Path | None = None,
        say: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
        request_s: float = 90.0,
    ) -> None:
        """Raises `MeasurementError` where there is no ssh here, or the target is none; connects when it is used."""
        destination, port = split_target(target)
        ssh = shutil.which("ssh")
        if ssh is None:
            raise MeasurementError("another machine is reached by ssh, which is not installed here: install OpenSSH")
        self.target, self.python, self.say, self._sleep = target, python, say, sleep
        self._source = Path(agent.__file__).read_bytes()
        new_enough = f"sys.version_info>=(3,9)or sys.exit({_TOO_OLD})"
        bootstrap = f"import sys;{new_enough};exec(sys.stdin.buffer.read({len(self._source)}))"
        there = f"{shlex.quote(python)} -c {shlex.quote(bootstrap)}; exit $?"
        command = [ssh, "-T", *(("-F", str(config)) if config else ())]
        for option in (*options, *_OPTIONS):
            command += ["-o", option]
        command += [*(("-p", port) if port else ()), "--", destination, f"sh -c {shlex.quote(there)}"]
        self._connected = False
        super().__init__(command, request_s)

    def ask(self, frame: Frame, most_s: float | None = None) -> tuple[JsonValue, list[bytes]]:
        for _ in range(_MOST_LOSSES):
            try:
                return super().ask(frame, most_s)
            except LostError as lost:
                self.say(f"the connection to {self.target} was lost ({lost}): connecting again")
        raise EndedError(
            f"lost its connection {_MOST_LOSSES} times (does the machine crash, is its power supply weak?)"
        )

    def how_it_ended(self, code: int) -> EndedError:
        if code == _CONNECTION:
            return LostError(self._said().rstrip(".") or "ssh said nothing")
        return super().how_it_ended(code)

    def _said(self) -> str:
        """The line of ssh's or of the program's complaints that says most: the last one, mostly."""
        lines = list(self.complaints)
        telling = [line for line in lines if _FINAL.search(line) and "WARNING" not in line]
        return (telling or lines or [""])[-1]

    def _start(self) -> subprocess.Popen[bytes]:
        """A connection and an agent that is ready; raises `UnusableError` in words that say what to do."""
        pauses = iter(_PAUSES_S if self._connected else ())
        while True:
            try:
                process = self.open(self._source)
                loaded = self.load()
            except LostError as lost:
                pause_s = None if _FINAL.search(str(lost)) else next(pauses, None)
                if pause_s is None:
                    raise self._unreachable(str(lost)) from None
                self.say(f"{self.target} does not answer ({lost}): trying again in {pause_s:.0f} s")
                self._sleep(pause_s)
            except EndedError as end:
                raise self.unusable(str(end)) from None
            else:
                if loaded.missing:
                    self.stop()
                    raise self._lacking(loaded.missing, loaded.reason)
                self._connected = True
                return process

    def _unreachable(self, said: str) -> UnusableError:
        if self._connected:
            return UnusableError(
                f"measuring needs its connection, ssh does not reach {self.target} any more ({said}): run the same "
                "command again once it does, what was timed is kept"
            )
        return UnusableError(
            f"another machine is reached by ssh without any question, `ssh {self.target}` says: {said}: "
            "make `ssh -o BatchMode=yes` work by hand first (log in once to know its host key, ssh-copy-id for a key)"
        )

    def _lacking(self, library: str, reason: str) -> UnusableError:
        return UnusableError(
            f"the agent needs numpy and onnxruntime, {self.python} on {self.target} cannot import {library} "
            f"({' '.join(reason.split())[:200]}): run `{self.python} -m pip install numpy onnxruntime` there, or name "
            "another interpreter with --python"
        )

    def unusable(self, how: str) -> UnusableError:
        if how == "was ended by SIGILL":
            return UnusableError(
                f"`import onnxruntime` must work on the machine that is measured, on {self.target} it ends with an "
                "illegal instruction: this build is for newer processors (the aarch64 wheel of 1.21 does so on a "
                f"Cortex-A72): install another version there, `{self.python} -m pip install 'onnxruntime!=1.21.*'`"
            )
        if how in ("ended with exit code 127", "ended with exit code 126"):
            return UnusableError(
                f"the agent needs Python 3.9 or newer, {self.target} does not run {self.python} ({self._said()}): "
                "install it there, or name another interpreter with --python"
            )
        if how == f"ended with exit code {_TOO_OLD}":
            return UnusableError(
                f"the agent needs Python 3.9 or newer, {self.python} on {self.target} is older: name a newer one with "
                "--python"
            )
        said = self._said()
        return UnusableError(
            f"the agent must start on {self.target}, it {how}{f' ({said})' if said else ''}: see whether "
            f"`{self.python} -c 'import onnxruntime'` works there"
        )
