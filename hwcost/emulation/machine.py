"""onnxruntime on an emulated device: one more `Runtime`, whose stopwatch counts cycles of the device's core.

The agent runs under QEMU's user-mode emulation as the device's CPU, so the runtime chooses and runs the kernels that it
would choose there, and its answers are real. Wall clock under an emulator says nothing: the executed instructions of
one run are priced by a model of the core instead (`hwcost.emulation.cycles`), times the device's calibration.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import TypeAdapter

from hwcost.devices import DeviceClass, Emulation
from hwcost.emulation.cycles import Core, Trace
from hwcost.emulation.tools import GUEST, Tools
from hwcost.errors import MeasurementError
from hwcost.graph import candidates
from hwcost.ops import FLOAT, INT8, Conv, Gemm
from hwcost.pipe import Piped, framed
from hwcost.runtime import Array, Given, Job

_REQUEST_S: Final = 900.0
_NUMBER: Final = TypeAdapter(int)


class Emulated(Piped):
    """The runtime on an emulated device of this class. A context manager: nothing of it outlives it."""

    def __init__(self, device: DeviceClass, tools: Tools) -> None:
        self.emulation = emulation_of(device)
        self._device = device
        root = tools.machine(device)
        self._core = Core(
            self.emulation.mca_cpu,
            self.emulation.dispatch,
            self.emulation.mca_attributes,
            tools.program("llvm-mca"),
            tools.program("llvm-mc"),
        )
        self._folder = Path(tempfile.mkdtemp(prefix="hwcost-emulator-"))
        super().__init__(
            (
                *("env", "-i", "PYTHONHASHSEED=0", "PYTHONDONTWRITEBYTECODE=1", "OPENBLAS_NUM_THREADS=1"),
                *("LC_ALL=C.UTF-8", "HOME=/", f"TMPDIR={self._folder}"),
                *(tools.program("setarch"), os.uname().machine, "--addr-no-randomize"),
                *(tools.program("qemu-aarch64"), "-L", str(root), "-cpu", self.emulation.qemu_cpu),
                *("-plugin", f"{tools.plugin},folder={self._folder}"),
                *(str(tools.python(root)), str(root / GUEST), "--alone"),
            ),
            _REQUEST_S,
        )

    def open(self, source: bytes = b"") -> "subprocess.Popen[bytes]":
        process = super().open(source)
        self.load()
        for given, feeds in _warm_ups():
            self.ask(framed("warm", given, feeds))
        return process

    def trace(self, given: Given, feeds: Mapping[str, Array]) -> Trace:
        """What one run executes, in a session that has run before; one thread."""
        if given.threads != 1:
            raise MeasurementError(f"an emulated device has one thread, got {given.threads}: leave --threads out")
        number = self._valid(_NUMBER, self.ask(framed("trace", given, feeds))[0])
        path = self._folder / f"{number}.trace"
        try:
            return Trace.read(path)
        except OSError as error:
            raise MeasurementError(
                f"the emulator writes a trace to {path}, got {error.strerror}: run `hwcost emulator --install` again"
            ) from error
        finally:
            path.unlink(missing_ok=True)

    def seconds(self, cycles: float) -> float:
        """Of that many traced cycles, on the device's clock."""
        return self.emulation.calibration * cycles / self._device.clock_hz

    def cycles(self, seconds: float) -> float:
        """Traced cycles that last so long."""
        return seconds * self._device.clock_hz / self.emulation.calibration

    def seconds_between(self, few: Trace, many: Trace) -> tuple[float, dict[str, int]]:
        """By how much the second run takes longer, and how often it executes each kind of instruction more often."""
        return self.seconds(self._core.cycles_between(few, many)), dict(self._core.names_between(few, many))

    def shortest_s(self, given: Given, feeds: Mapping[str, Array], seconds: float) -> float:
        """Emulated seconds of one run, the same at every call; `seconds` of trying are not needed."""
        return self.seconds(self._core.cycles(self.trace(given, feeds)))

    def shortest_each_s(self, jobs: Sequence[Job], seconds: float) -> list[float]:
        return [self.shortest_s(given, feeds, seconds) for given, feeds in jobs]

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        shutil.rmtree(self._folder, ignore_errors=True)


def emulation_of(device: DeviceClass) -> Emulation:
    """How the class is emulated; raises `MeasurementError` where it cannot be."""
    if device.emulation is None:
        raise MeasurementError(
            f"an emulated device says how in hwcost/devices/, {device.name} does not: leave --emulate out"
        )
    return device.emulation


@cache
def _warm_ups() -> tuple[tuple[Given, dict[str, Array]], ...]:
    """Small models that make the emulator translate most of what later ones execute."""
    found = []
    for op in (Conv.square(16, 16, 4, 3), Gemm(1, 16, 16)):
        for precision in (FLOAT, INT8):
            one = candidates(op, precision, "s8s8", np.random.default_rng(0))[0]
            found.append((Given(one.model.SerializeToString()), dict(one.feeds)))
    return tuple(found)
