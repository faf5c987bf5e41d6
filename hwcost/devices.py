"""Device classes: boards known by name, whether or not one is at hand.

A device class is facts about a kind of board, each with its source, in one TOML file beside this module. It serves two
ends: to recognise that this machine is such a board, so that profiling it means measuring; and to estimate its costs
(`hwcost.estimate`) where there is none.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from hwcost.errors import UnknownDeviceError
from hwcost.profiles import Int8Form

HOST: Final = "host"
"""The device name that means: measure the machine this runs on."""

MODEL_FILE: Final = Path("/proc/device-tree/model")
"""Where Linux on a board with a device tree says which board it is."""

KernelClass = Literal["pointwise", "dense", "depthwise", "gemm"]
ElementClass = Literal["arithmetic", "transcendental", "window", "quantise", "dequantise_weight"]
NumberFormat = Literal["float", "int8"]
IntervalClass = Literal["float", "int8", "untraced"]


class Emulation(BaseModel):
    """How a device's kernels are run and priced without one (`hwcost.emulation`).

    `qemu_cpu`, `mca_cpu`: the core by its names in QEMU and in llvm-mca, `dispatch` micro-operations a cycle;
    `calibration`: wall-clock cycles per cycle of a trace; the truth lies within latency / `interval_factor` and latency x
    `interval_factor`, or the other one where memory is the limit; `cpuinfo`: what the system says of each processor, `{number}` in it; `files`: its other files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    qemu_cpu: str
    mca_cpu: str
    mca_attributes: str = ""
    dispatch: PositiveInt
    calibration: PositiveFloat
    interval_factor: float = Field(ge=1)
    memory_interval_factor: float = Field(ge=1)
    cpuinfo: str
    files: dict[str, str] = {}

    def system_files(self, cores: int) -> dict[str, str]:
        """What a program reads about its processor, by paths below the root."""
        processors = "\n".join(self.cpuinfo.replace("{number}", str(number)) for number in range(cores))
        folder = "sys/devices/system/cpu"
        range_ = f"0-{cores - 1}\n"
        listed = {f"{folder}/{name}": range_ for name in ("present", "possible", "online")}
        return {"proc/cpuinfo": processors, **listed, f"{folder}/kernel_max": "255\n", **self.files}


class DeviceClass(BaseModel):
    """What is known of a kind of board; per-cycle figures are of one core, sizes in bytes, clocks in hertz.

    `calibration`: wall-clock cycles per traced cycle; `interval_factor`: the truth lies within estimate / factor and
    estimate x factor; `sources`: field name -> where its value comes from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    description: str
    recognised_by: tuple[str, ...] = Field(min_length=1)
    revised: str
    cpu: str
    architecture: str
    cores: PositiveInt
    clock_hz: PositiveFloat
    features: tuple[str, ...]
    int8_form: Int8Form
    memory_bytes_per_s: PositiveFloat
    run_overhead_s: PositiveFloat
    node_overhead_s: PositiveFloat
    calibration: PositiveFloat
    cache_bytes: dict[str, PositiveInt]
    peak_macs_per_cycle: dict[NumberFormat, PositiveFloat]
    macs_per_cycle: dict[NumberFormat, dict[KernelClass, PositiveFloat]]
    cycles_per_element: dict[NumberFormat, dict[ElementClass, PositiveFloat]]
    interval_factor: dict[IntervalClass, float]
    sources: dict[str, str]
    emulation: Emulation | None = None


def known_devices() -> tuple[str, ...]:
    """Names of the device classes that are shipped, sorted (`host` is not one: it is this machine)."""
    folder = files("hwcost") / "devices"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_device(name: str) -> DeviceClass:
    """The device class of that name; raises `UnknownDeviceError` with the names there are."""
    if name not in known_devices():
        raise UnknownDeviceError(
            f"a device is one of {', '.join((HOST, *known_devices()))}, got {name!r}: "
            f"`--device {HOST}` measures the machine it runs on, whatever that is"
        )
    text = (files("hwcost") / "devices" / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return DeviceClass.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        first = str(error).replace("\n", " ")
        raise UnknownDeviceError(
            f"the facts of device {name} are unreadable: {first}; install the package again"
        ) from None


def runs_here(device: DeviceClass, model_file: Path = MODEL_FILE) -> bool:
    """True where this machine is such a board, by the model that the firmware states."""
    try:
        model = model_file.read_bytes().rstrip(b"\0").decode("utf-8", errors="replace")
    except OSError:
        return False
    return any(text in model for text in device.recognised_by)
