"""The profile file: what was measured (or estimated) on one device, and on which machine.

A number without its machine is not a measurement: every profile carries the machine, the runtime and the raw samples,
and two profiles of different machines are never merged. Kernels and boundaries are rows; the cost of one `run()` call
is a field; layer times are sums of rows. Bit-widths that run on another width's kernel are declared once, in
`realisations`, instead of being repeated as rows.
"""

import codecs
import hashlib
import json
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from hwcost.errors import ProfileError, UnknownOperatorError, first_fault
from hwcost.files import read_file, write_atomically
from hwcost.ops import Operator, Precision

# 2: any node is an operator; concatenation and softmax are such nodes; later, rows may be `adapted`. 1: first version.
PROFILE_VERSION: Final = 2

DEVICE_NAME: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_MOST_BYTES: Final = 2**28
_WITH_NETWORKS: Final = "weights", "subnormal_s"
"""What is measured with whole networks, and only then."""

Source = Literal["measured", "emulated", "estimated", "imported", "adapted"]
"""`adapted`: another device's latency, shifted by what some operators of this one took."""
Use = Literal["once", "again"]
"""How often a kernel uses each of its weights."""
Int8Form = Literal["u8u8", "u8s8", "s8s8"]
"""Number formats of activations and weights in int8 kernels; which ones are fast and exact depends on the CPU."""


def _parse_precision(value: object) -> object:
    return Precision.parse(value) if isinstance(value, str) else value


PrecisionField = Annotated[
    Precision, BeforeValidator(_parse_precision), PlainSerializer(str, return_type=str, when_used="json")
]
Seconds = Annotated[float, Field(gt=0, le=1e6)]
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(BaseModel):
    """Where and with what a profile was made. Sizes in bytes, clocks in hertz."""

    model_config = _STRICT

    cpu: str
    architecture: str
    features: tuple[str, ...] = ()
    cores: int = Field(ge=1)
    cache_bytes: dict[str, int] = {}
    governor: str = "unknown"
    threads: int = Field(default=1, ge=1)
    affinity: tuple[int, ...] = ()
    system: str = "unknown"
    python: str = "unknown"
    onnxruntime: str = "unknown"

    @property
    def fingerprint(self) -> str:
        """Equal for runs that may be compared: CPU, features, cores, threads and runtime version."""
        return hashlib.sha256("\n".join(map(str, (*self._hardware, self.onnxruntime))).encode()).hexdigest()[:16]

    @property
    def _hardware(self) -> tuple[object, ...]:
        return self.cpu, self.architecture, *self.features, self.cores, self.threads

    def is_same_hardware(self, other: "Machine") -> bool:
        """Whether both are one machine, used in the same way, whatever the version of the runtime."""
        return self._hardware == other._hardware


class Realisation(BaseModel):
    """How a precision of one operator kind runs on the device: on which precision's kernel, natively or not."""

    model_config = _STRICT

    kind: Literal["conv", "gemm", "pool", "elementwise", "boundary", "node"]
    precision: PrecisionField
    runs_as: PrecisionField
    native: bool
    description: str


class Row(BaseModel):
    """One operator at one precision. `samples_s` are the passes' minima, seconds per execution.

    `others` are realisations that were slower than `realisation` in a short trial beside it, in seconds per execution.
    """

    model_config = _STRICT

    operator: Operator
    precision: PrecisionField
    realisation: str
    native: bool
    source: Source
    latency_s: Seconds
    interval_s: tuple[Seconds, Seconds]
    samples_s: tuple[Seconds, ...] = ()
    copies: int = Field(default=1, ge=1)
    others: dict[str, Seconds] = {}

    @model_validator(mode="after")
    def _interval_holds_latency(self) -> "Row":
        if not self.interval_s[0] <= self.latency_s <= self.interval_s[1]:
            raise ValueError(f"interval_s must hold latency_s={self.latency_s}, got {self.interval_s}")
        return self

    @property
    def layer(self) -> tuple[Operator, Precision]:
        return self.operator, self.precision


class Part(BaseModel):
    """A kernel of a network, and how often one call executes it."""

    model_config = _STRICT

    operator: Operator
    precision: PrecisionField
    count: int = Field(default=1, ge=1)


class Network(BaseModel):
    """A whole network that was run when the profile was made: its kernels, and the passes' minima, seconds per call."""

    model_config = _STRICT

    name: str
    parts: tuple[Part, ...] = Field(min_length=1)
    samples_s: tuple[Seconds, ...] = Field(min_length=1)

    @property
    def architecture(self) -> str:
        """The first two words of its name, which versions of one network share: `network 0/3`."""
        return " ".join(self.name.split()[:2])


class WeightStream(BaseModel):
    """How long a kernel that uses its weights as often as that takes for each byte of them where so many bytes came
    between, those of its other copies: seconds of every pass."""

    model_config = _STRICT

    use: Use = "again"
    bytes: int = Field(ge=1)
    s_per_byte: tuple[Seconds, ...] = Field(min_length=1)


class Profile(BaseModel):
    """All that is known of one device. `run_overhead_s` is the cost of one call of the runtime, without operators,
    `subnormal_s` what a vector of weights takes longer for each use when one of them is subnormal (0: not known)."""

    model_config = _STRICT

    format: Literal["hwcost-profile"] = "hwcost-profile"
    version: Literal[2] = PROFILE_VERSION
    device: str = Field(pattern=DEVICE_NAME)
    created: str
    machine: Machine
    int8_form: Int8Form
    run_overhead_s: Seconds
    noise_floor: float = Field(ge=0)
    weights_state: Literal["hot", "cold"] = "hot"
    notes: tuple[str, ...] = ()
    realisations: tuple[Realisation, ...] = ()
    weights: tuple[WeightStream, ...] = ()
    subnormal_s: float = Field(default=0.0, ge=0)
    networks: tuple[Network, ...] = ()
    rows: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_are_distinct(self) -> "Profile":
        if len(self._by_layer) != len(self.rows):
            raise ValueError("every (operator, precision) has one row, got a row twice")
        return self

    @cached_property
    def _by_layer(self) -> dict[tuple[Operator, Precision], Row]:
        return {row.layer: row for row in self.rows}

    @cached_property
    def _realised(self) -> dict[tuple[str, Precision], Realisation]:
        return {(entry.kind, entry.precision): entry for entry in self.realisations}

    def realised_as(self, op: Operator, precision: Precision) -> Precision:
        """The precision whose kernel runs this operator on this device."""
        precision = precision.usual_on(self.int8_form)
        entry = self._realised.get((op.kind, precision))
        return precision if entry is None else entry.runs_as

    def find(self, op: Operator, precision: Precision) -> Row | None:
        """The row of exactly this operator, by the kernel that realises the precision; None if not profiled."""
        return self._by_layer.get((op, precision)) or self._by_layer.get((op, self.realised_as(op, precision)))

    def describe_realisation(self, op: Operator, precision: Precision) -> Realisation:
        """How this operator runs at this precision; raises `UnknownOperatorError` where no row says so."""
        entry = self._realised.get((op.kind, precision))
        if entry is not None:
            return entry
        for row in self.rows:
            if row.operator.kind == op.kind and row.precision == precision:
                return Realisation(
                    kind=op.kind, precision=precision, runs_as=precision, native=row.native, description=row.realisation
                )
        raise UnknownOperatorError(
            f"profile {self.device} has no {op.kind} at {precision}: profile the device with that precision"
        )

    @property
    def sources(self) -> tuple[Source, ...]:
        """The distinct sources of the rows, sorted."""
        return tuple(sorted({row.source for row in self.rows}))

    @cached_property
    def digest(self) -> str:
        """Changes whenever anything in the profile changes; ties a fitted predictor to its profile."""
        return hashlib.sha256(self.to_json()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """The file's bytes: the head indented, one network and one row a line."""
        apart = {"networks", "rows", *(name for name in _WITH_NETWORKS if not getattr(self, name))}
        head = self.model_dump_json(indent=1, exclude=apart).removesuffix("\n}")
        networks = ",\n".join(network.model_dump_json() for network in self.networks)
        rows = ",\n".join(row.model_dump_json(exclude=None if row.others else {"others"}) for row in self.rows)
        return f'{head},\n "networks": [\n{networks}\n ],\n "rows": [\n{rows}\n ]\n}}\n'.encode()

    def check_same_machine(self, machine: Machine) -> None:
        """Raises `ProfileError` when measurements of `machine` must not stand beside these."""
        if machine.fingerprint != self.machine.fingerprint:
            raise ProfileError(
                f"a profile holds one machine's measurements: profile {self.device} is of {self.machine.cpu} with "
                f"onnxruntime {self.machine.onnxruntime} and {self.machine.threads} threads, got {machine.cpu} with "
                f"onnxruntime {machine.onnxruntime} and {machine.threads} threads: write to another file with --out"
            )

    def with_rows_of(self, older: "Profile") -> "Profile":
        """This profile, and the rows that only `older` has, unless they were adapted from another device, and its whole
        networks, and what was measured with them, if this has none: those go with rows of their own time. Raises
        `ProfileError` when it is of another machine."""
        older.check_same_machine(self.machine)
        kept = {layer: row for layer, row in older._by_layer.items() if row.source != "adapted"}
        rows = {**kept, **self._by_layer}
        whole = self if self.networks else older
        measured_with_them = {name: getattr(whole, name) for name in ("networks", *_WITH_NETWORKS)}
        return self.changed(**measured_with_them, rows=tuple(rows.values()))

    def changed(self, **fields: object) -> "Profile":
        """The same but for these fields, and with a digest of its own, which a copy would not have."""
        own = {name: getattr(self, name) for name in Profile.model_fields}
        return Profile.model_validate({**own, **fields})


def check_device_name(device: str) -> None:
    """Raises `ProfileError` for what no profile's device can be named."""
    if re.fullmatch(DEVICE_NAME, device) is None:
        raise ProfileError(f"a device is named with at most 64 of a-z, 0-9, '.', '_' and '-', got {device!r}")


def read_profile(path: Path) -> Profile:
    """Read and validate; raises `ProfileError` naming the file, the path of the wrong field, and the rule."""
    try:
        data = read_file(path, _MOST_BYTES).removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise ProfileError(f"no profile at {path}: make one with `hwcost profile --device NAME --out {path}`") from None
    except OSError as error:
        raise ProfileError(f"cannot read profile {path}: {error.strerror}: give the path of a profile") from error
    try:
        profile = Profile.model_validate_json(data)
        json.loads(data, object_pairs_hook=_without_duplicates)
    except ValidationError as error:
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        fault = f"{first_fault(error)}{more}"
    except ValueError as error:
        fault = str(error)
    else:
        return profile
    raise ProfileError(
        f"{path} is not a profile of version {PROFILE_VERSION}: {fault}; restore the file or profile the device again"
    )


def _without_duplicates(pairs: list[tuple[str, object]]) -> None:
    """Refuse an object that says one thing twice: which of the two holds?"""
    names = Counter(name for name, _ in pairs)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"every field is given once, got {twice[0][:100]!r} twice")


def write_profile(profile: Profile, path: Path) -> None:
    """Write whole or not at all; raises `OSError`."""
    write_atomically(path, profile.to_json())
