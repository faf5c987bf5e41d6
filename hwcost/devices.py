"""Device classes: kinds of machines known by name, whether or not one is at hand.

A device class is facts about a kind of machine, each with its source, in one TOML file in `devices/`; another class is
another file. It serves to recognise such a machine, here or at the other end of a connection, so that profiling it
means measuring. Without one, its costs can be estimated (`hwcost.estimate`) where the file has what that takes; a class
without never pretends.
"""

import re
import tomllib
from importlib.resources import files
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from hwcost.errors import UnknownDeviceError
from hwcost.machine import Facts, facts_here
from hwcost.profiles import DEVICE_NAME, Int8Form

HOST: Final = "host"
"""The device name that means: measure the machine this runs on."""

KernelClass = Literal["pointwise", "dense", "depthwise", "gemm"]
ElementClass = Literal["arithmetic", "transcendental", "window", "quantise", "dequantise_weight"]
NumberFormat = Literal["float", "int8"]
IntervalClass = Literal["float", "int8", "untraced"]


_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Recognition(BaseModel):
    """How such a machine is told from others: by the model that a board's firmware states, else by its processor.

    `models` are parts of that model's name. Without them `architecture` agrees, `cores` holds part of the processor's
    name (empty: any), and it has all `features` and none of `lacks`, by the system's own names.
    """

    model_config = _STRICT

    models: tuple[str, ...] = ()
    architecture: str = ""
    cores: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def holds(self, facts: Facts) -> bool:
        if self.models:
            return any(text in facts.model for text in self.models)
        return (
            bool(self.architecture)
            and facts.architecture == self.architecture
            and (not self.cores or any(core in facts.core for core in self.cores))
            and facts.flags.issuperset(self.features)
            and facts.flags.isdisjoint(self.lacks)
        )


class Rates(BaseModel):
    """What an estimate needs: the runtime's own kernels on such a core, per cycle, and what a call and a node cost.

    `calibration`: wall-clock cycles per traced cycle; `interval_factor`: the truth lies within estimate / factor and
    estimate x factor.
    """

    model_config = _STRICT

    int8_form: Int8Form
    run_overhead_s: PositiveFloat
    node_overhead_s: PositiveFloat
    calibration: PositiveFloat
    macs_per_cycle: dict[NumberFormat, dict[KernelClass, PositiveFloat]]
    cycles_per_element: dict[NumberFormat, dict[ElementClass, PositiveFloat]]
    interval_factor: dict[IntervalClass, float]


class Emulation(BaseModel):
    """How a device's kernels are run and priced without one (`hwcost.emulation`).

    `qemu_cpu`, `mca_cpu`: the core by its names in QEMU and in llvm-mca, `dispatch` micro-operations a cycle.
    `calibration`: wall-clock cycles per cycle of a trace, `calibrated_by` says whence. The truth lies within latency /
    `interval_factor` and latency x `interval_factor`, or the other factor where memory is the limit. `cpuinfo`: what
    the system says of each processor, which is `{number}` in it; `files`: others that a program reads, by their path.
    """

    model_config = _STRICT

    qemu_cpu: str
    mca_cpu: str
    mca_attributes: str = ""
    dispatch: PositiveInt
    calibration: PositiveFloat
    calibrated_by: str
    interval_factor: float = Field(ge=1)
    memory_interval_factor: float = Field(ge=1)
    cpuinfo: str
    files: dict[str, str] = {}

    def system_files(self, cores: int) -> dict[str, str]:
        """What a program reads about its processor, by paths below the root."""
        processors = "\n".join(self.cpuinfo.replace("{number}", str(number)) for number in range(cores))
        folder = "sys/devices/system/cpu"
        listed = {f"{folder}/{name}": f"0-{cores - 1}\n" for name in ("present", "possible", "online")}
        return {"proc/cpuinfo": processors, **listed, f"{folder}/kernel_max": "255\n", **self.files}


class DeviceClass(BaseModel):
    """What is known of a kind of machine; per-cycle figures are of one core, sizes in bytes, clocks in hertz.

    `sources`: field name -> where its value comes from. `estimate` is there where it can be estimated,
    `emulation` where it can be emulated.
    """

    model_config = _STRICT

    name: str
    description: str
    recognised_by: Recognition
    revised: str
    cpu: str
    architecture: str
    cores: PositiveInt
    clock_hz: PositiveFloat
    features: tuple[str, ...] = Field(min_length=1)
    memory_bytes_per_s: PositiveFloat
    cache_bytes: dict[str, PositiveInt]
    peak_macs_per_cycle: dict[NumberFormat, PositiveFloat]
    sources: dict[str, str]
    estimate: Rates | None = None
    emulation: Emulation | None = None


def known_devices() -> tuple[str, ...]:
    """Names of the device classes that are shipped, sorted (`host` is not one: it is whatever is measured)."""
    folder = files("hwcost") / "devices"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def check_name(name: str) -> None:
    """Raises `UnknownDeviceError` for what no profile may be called."""
    if not re.fullmatch(DEVICE_NAME, name):
        raise UnknownDeviceError(
            f"a device's name is up to 64 small letters, digits and . _ -, got {name!r}: write it like my-board"
        )


def load_device(name: str) -> DeviceClass:
    """The device class of that name; raises `UnknownDeviceError` with the names there are."""
    if name not in known_devices():
        raise UnknownDeviceError(
            f"a device is one of {', '.join((HOST, *known_devices()))}, got {name!r}: "
            f"`--device {HOST}` measures the machine it runs on, whatever that is, and with --ssh any name will do"
        )
    text = (files("hwcost") / "devices" / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return DeviceClass.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        first = str(error).replace("\n", " ")
        raise UnknownDeviceError(
            f"the facts of device {name} are unreadable: {first}; install the package again"
        ) from None


def runs_here(device: DeviceClass, facts: Facts | None = None) -> bool:
    """True where this machine, or the one that tells these facts, is of that class."""
    return device.recognised_by.holds(facts or facts_here())


def class_of(facts: Facts) -> str:
    """The name of the class that a machine is of, empty where it is of none."""
    return next((name for name in known_devices() if runs_here(load_device(name), facts)), "")
