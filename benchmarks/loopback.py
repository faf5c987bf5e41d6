"""This machine as another one: a real OpenSSH server on the loopback interface, with keys, known hosts and a folder for
temporary files of its own, for the benchmark of measuring over ssh and for the tests of it. Nothing of the user's
own configuration is read or changed."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hwcost.ssh import Ssh

_START_S = 20.0


def missing() -> str:
    """What is not installed here, in words; empty where all is there."""
    if _sshd() is None or shutil.which("ssh-keygen") is None or shutil.which("ssh") is None:
        return "no OpenSSH server and client here: install openssh-server"
    return "" if Path("/proc/self/task").is_dir() else "sessions are found in /proc, which is not here"


def _sshd() -> str | None:
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


class Loopback:
    """An OpenSSH server, all of whose files are in `folder`, which is there and empty. It runs until `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tmp = folder, folder / "tmp"
        self.tmp.mkdir()
        for key in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.target = f"{getpass.getuser()}@127.0.0.1:{self.port}"
        (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nSetEnv TMPDIR={self.tmp}\n"
            "UsePAM no\nStrictModes no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        )
        self.config = self.configured("config")
        self.start()

    def configured(self, name: str, key: str = "user", known: str = "known") -> Path:
        """A client's configuration: this key, and these known hosts, and none else."""
        path = self.folder / name
        path.write_text(
            f"IdentityFile {self.folder}/{key}\nIdentitiesOnly yes\nStrictHostKeyChecking yes\n"
            f"UserKnownHostsFile {self.folder}/{known}\nGlobalKnownHostsFile /dev/null\n"
        )
        return path

    def start(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the server wants to lock itself in
        command = [str(_sshd()), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self._listener = subprocess.Popen(command, stderr=(self.folder / "log").open("ab"))
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"the server must listen, it says: {(self.folder / 'log').read_text()}")

    def cut(self) -> int:
        """Kill the server of every connection there is; how many processes that were."""
        killed = 0
        for process in _descendants(self._listener.pid):
            try:
                if "sshd" in Path(f"/proc/{process}/comm").read_text():
                    os.kill(process, signal.SIGKILL)
                    killed += 1
            except (FileNotFoundError, ProcessLookupError):
                continue
        return killed

    def stop(self) -> None:
        self.cut()
        self._listener.kill()
        self._listener.wait()

    def reached(self, **options: Any) -> Ssh:
        """The runtime at the other end, which is run by this Python."""
        return Ssh(self.target, **{"python": sys.executable, "config": self.config, **options})


def _descendants(pid: int) -> list[int]:
    """Processes below one, the nearest first."""
    try:
        found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return found + [below for child in found for below in _descendants(child)]
