"""What emulation needs on this machine: programs of the system, and a small system of the device's architecture.

The programs are QEMU, llvm-mca and a C compiler, from the system's packages. The rest lies in a cache folder of the
user's: packages of the emulated architecture unpacked beside each other (no chroot, nothing is installed), wheels of
onnxruntime and numpy for it in the very versions that are installed here, the agent, and the compiled plugin. It is
made under another name and renamed once it is complete.
"""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Final

from hwcost.devices import DeviceClass
from hwcost.emulation.foreign import unpack_system
from hwcost.emulation.programs import run
from hwcost.errors import MeasurementError
from hwcost.files import write_atomically

PROGRAMS: Final = {
    "qemu-aarch64": "qemu-user",
    "llvm-mca": "llvm",
    "llvm-mc": "llvm",
    "gcc": "gcc libc6-dev",
    "setarch": "util-linux",
}
"""What is called, and which Debian packages bring it."""

_LIBRARIES: Final = ("onnxruntime", "numpy")
_PLATFORMS: Final = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_LAYOUT: Final = 1
"""Raised when the emulated system is put together in another way."""
GUEST: Final = "hwcost/guest.py"
"""Where the agent lies in an emulated machine."""
Say = Callable[[str], None]


def _packaged(*names: str) -> bytes:
    return files("hwcost").joinpath(*names).read_bytes()


def _digest(*contents: bytes) -> str:
    return hashlib.blake2b(b"\0".join(contents), digest_size=4).hexdigest()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwcost" / "emulator"


@dataclass(frozen=True)
class Tools:
    """Where things are, or would be, on this machine."""

    cache: Path

    @classmethod
    def here(cls) -> "Tools":
        return cls(_cache())

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of the libraries that run in the emulated machine: those that are installed here."""
        return {name: metadata.version(name) for name in _LIBRARIES}

    @property
    def name(self) -> str:
        """What the emulated system holds: `1-onnxruntime1.32.0-numpy2.4.6`."""
        return "-".join((str(_LAYOUT), *(f"{name}{version}" for name, version in self.versions.items())))

    @property
    def folder(self) -> Path:
        return self.cache / self.name

    @property
    def root(self) -> Path:
        """The system that all emulated machines share."""
        return self.folder / "root"

    @cached_property
    def plugin(self) -> Path:
        """Compiled from the source of this version."""
        return self.folder / f"trace-{_digest(_packaged('emulation', 'plugin', 'trace.c'))}.so"

    @staticmethod
    def python(root: Path) -> Path:
        """The emulated machine's Python."""
        found = sorted((root / "usr" / "bin").glob("python3.*"))
        if not found:
            raise MeasurementError(f"an emulated machine has a Python, {root} has none: {INSTALL}")
        return found[-1]

    @staticmethod
    def program(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            raise MeasurementError(
                f"emulation calls {name} of the package {PROGRAMS[name]}, which is not here: {INSTALL}"
            )
        return found

    def missing(self) -> tuple[str, ...]:
        """What `install` would bring, in words; nothing where all is there."""
        packages = self.missing_packages()
        found = [f"Debian packages {' '.join(packages)}"] if packages else []
        if not self.root.is_dir():
            libraries = " and ".join(f"{name} {version}" for name, version in self.versions.items())
            found.append(f"a system for aarch64 with {libraries} in {self.folder}")
        if not self.plugin.is_file():
            found.append(f"the tracing plugin {self.plugin.name}, compiled")
        return tuple(found)

    @staticmethod
    def missing_packages() -> tuple[str, ...]:
        packages = dict.fromkeys(text for name, text in PROGRAMS.items() if shutil.which(name) is None)
        return tuple(" ".join(packages).split())

    def check(self) -> None:
        """Raises `MeasurementError` where something is missing, with all of it."""
        if not sys.platform.startswith("linux"):
            raise MeasurementError(
                f"devices are emulated on Linux only, this is {platform.system()}: leave --emulate out"
            )
        if missing := self.missing():
            raise MeasurementError(f"emulation needs its tools, missing here: {'; '.join(missing)}: {INSTALL}")

    def machine(self, device: DeviceClass) -> Path:
        """The root of an emulated machine of this class: what all share, its own files about its processor, and the
        agent, `GUEST`."""
        assert device.emulation is not None, "whoever emulates a class has asked whether it can be"
        own = {name: text.encode() for name, text in device.emulation.system_files(device.cores).items()}
        own["hwcost/agent.py"] = _packaged("agent.py")
        own[GUEST] = _packaged("emulation", "guest.py")
        digest = _digest(*(part for name, data in sorted(own.items()) for part in (name.encode(), data)))
        target = self.folder / "machines" / f"{device.name}-{digest}"
        if not target.is_dir():
            target.parent.mkdir(exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=target.parent))
            made.chmod(0o755)
            for entry in self.root.iterdir():
                made.joinpath(entry.name).symlink_to(entry)
            for name, data in own.items():
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
            _rename(made, target)
        return target

    def install(self, say: Say) -> None:
        """Bring what is missing, saying what; raises `MeasurementError` where that fails or somebody else has to."""
        if packages := self.missing_packages():
            command = ("apt-get", "install", "-y", "--no-install-recommends", *packages)
            if os.geteuid() != 0 or shutil.which("apt-get") is None:
                raise MeasurementError(
                    f"emulation needs the packages {' '.join(packages)}, which the system's administrator installs: "
                    f"run `sudo {' '.join(command)}`, or their like on a system that is not Debian, and this again"
                )
            say(f"installing {' '.join(packages)}")
            run(command)
        self.folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            if not self.root.is_dir():
                self._make_root(made, say)
                _rename(made / "root", self.root)
            if not self.plugin.is_file():
                say("compiling the tracing plugin")
                source, built = made / "trace.c", made / "trace.so"
                source.write_bytes(_packaged("emulation", "plugin", "trace.c"))
                run(("gcc", "-O2", "-shared", "-fPIC", "-o", str(built), str(source)))
                built.rename(self.plugin)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _make_root(self, folder: Path, say: Say) -> None:
        root = folder / "root"
        root.mkdir()
        say("fetching a Python for aarch64 and the libraries under it from the system's package archive")
        unpack_system(root, folder / "apt")
        shutil.rmtree(folder / "apt")
        version = self.python(root).name.removeprefix("python")
        wheels = folder / "wheels"
        for name, wanted in self.versions.items():
            say(f"fetching {name} {wanted} for aarch64")
            platforms = [f"--platform={one}_aarch64" for one in _PLATFORMS]
            run(
                (
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
                    *(*platforms, f"--python-version={version}", "--implementation=cp", f"--dest={wheels}"),
                    f"{name}=={wanted}",
                )
            )
        packages = root / "usr" / "lib" / "python3" / "dist-packages"
        packages.mkdir(parents=True, exist_ok=True)
        for wheel in sorted(wheels.iterdir()):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(packages)
        shutil.rmtree(wheels)


INSTALL: Final = "`hwcost emulator --install` says what it brings and brings it"


def _rename(made: Path, target: Path) -> None:
    """Unless another process was faster."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise
