"""Packages of another architecture, unpacked into a folder: what this system has installed is not touched.

apt reads the system's own list of archives under a configuration of its own, so signatures are checked as ever, and
what depends on what is apt's to say.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

from hwcost.emulation.programs import run

_ARCHITECTURE: Final = "arm64"
_WANTED: Final = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_UNNEEDED: Final = ("dpkg_", "tar_", "perl-base_", "debconf_")
"""Of what those depend on: programs that nobody calls there."""


def unpack_system(root: Path, work: Path) -> None:
    """Fetch the packages and unpack them into `root`; `work` is for apt. Raises `MeasurementError`."""
    environment = {**os.environ, "APT_CONFIG": str(_configuration(work)), "DEBIAN_FRONTEND": "noninteractive"}
    # An archive without this architecture is complained of; what matters is whether the packages can be had.
    subprocess.run(("apt-get", "update"), env=environment, capture_output=True, check=False)
    _apt(("apt-get", "install", "-y", "-qq", "--download-only", "--no-install-recommends", *_WANTED), environment)
    packages = sorted((work / "cache" / "archives").glob("*.deb"))
    for package in packages:
        if not package.name.startswith(_UNNEEDED):
            _apt(("dpkg-deb", "--extract", str(package), str(root)), environment)


def _configuration(work: Path) -> Path:
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "state" / "status").touch()
    path = work / "apt.conf"
    path.write_text(
        f'APT::Architecture "{_ARCHITECTURE}";\n'
        f'APT::Architectures {{ "{_ARCHITECTURE}"; }};\n'
        f'APT::Sandbox::User "";\n'
        f'Dir::State "{work / "state"}";\n'
        f'Dir::State::status "{work / "state" / "status"}";\n'
        f'Dir::Cache "{work / "cache"}";\n'
        'Acquire::Languages "none";\n',
        encoding="utf-8",
    )
    return path


def _apt(command: tuple[str, ...], environment: dict[str, str]) -> None:
    run(
        command,
        environment,
        if_missing="emulated machines are made of Debian packages, use a Debian or Ubuntu for it",
        if_failed=f"see whether the system's archives serve {_ARCHITECTURE} packages",
    )
