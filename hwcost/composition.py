"""What a network costs beyond the sum of its kernels, learnt from random networks that the profiler ran whole.

A kernel timed alone, again and again, finds caches and branch predictors as it left them. Inside a network it does not,
and what that costs depends on what it does: arithmetic in registers hardly notices, moving data does. So every role of
kernels has a factor, close to 1, and every change from one kernel to another may cost more or less than rows hold.

Weights are waited for as long as it takes from where they are (`hwcost.waits`). The copies that a row was timed with
had to come from somewhere, too: that wait is taken off the row, and the network's is added. What the runtime itself
keeps of every kernel comes from there as well, small things that lie apart and are waited for one by one, as long in
all as for so many bytes of weights. How often the wait counts is learnt, of weights that are used once, and of others.

Caches are not a network's alone: others bring what is theirs, so the longer a call takes, the less it finds of its
weights, and of its tensors, which then cost time by the byte. What only moves or maps tensors finds them in the second
cache when it is timed, and often not in a network, whatever that needs in all. And a long run is disturbed where the
shortest of many short ones, which a row is, was not: a share of its kernels' own time. All this is what makes the
predictions of the measured networks right, by the median of their passes: a network is wanted as it usually runs.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median, median_low
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from hwcost.features import hardware_of
from hwcost.hardware import row_copies, spilled
from hwcost.ops import Conv, Operator, Precision, tensor_bytes, weight_bytes
from hwcost.predictors.base import conformal_width
from hwcost.profiles import Network, Profile, Use
from hwcost.space import Layer
from hwcost.waits import USES, Kernels, Values, Waits, stored_bytes, use, waits_of

KernelClass = Literal["float product", "int8 product", "float data", "int8 data"]
"""Products (convolutions, matrices) and kernels that only move or map data, by the type of the activations."""
Role = Literal[
    "float pointwise",
    "float spatial",
    "float product",
    "float data",
    "int8 pointwise",
    "int8 spatial",
    "int8 product",
    "int8 data",
]
"""The same, with convolutions over all channels told from other products: those of one pixel and those of more."""
Stream = Literal["product tensors", "data tensors", "near tensors"]
"""What a kernel reads or writes that caches may have lost: tensors of products, and of kernels that only move or map
data, where a network takes long; and of the latter what the second cache loses in any network."""

CLASSES: Final = get_args(KernelClass)
ROLES: Final = get_args(Role)
STREAMS: Final = get_args(Stream)
_POINTWISE: Final[dict[KernelClass, Role]] = {"float product": "float pointwise", "int8 product": "int8 pointwise"}
_SPATIAL: Final[dict[KernelClass, Role]] = {"float product": "float spatial", "int8 product": "int8 spatial"}
_SPREADS: Final = np.array([0.05] * len(ROLES) + [0.25] * len(USES) + [0.05, 5e4] + [2e-11, 2e-11, 1e-11] + [0.4])
"""Standard deviations before anything is known: of a factor around 1, of what waits for weights count around 1, of the
share that long runs take longer around 0, of bytes that a kernel is waited for around 0, of seconds per byte around 0
(less for what only the second cache loses: it comes from the next one), and of seconds per kernel around 0, in shortest
kernels."""
_KNOWN: Final = len(ROLES) + len(USES)
"""Sums that are seconds already: of the roles, and of the waits for weights."""
_BOUNDS: Final = (
    np.array([-np.inf] * len(ROLES) + [-1.0] * len(USES) + [0.0, 0.0] + [0.0] * len(STREAMS) + [-np.inf]) / _SPREADS
)
"""Neither a wait nor a byte ever saves time: the least that any of them may change by, in those deviations."""
_LEAST: Final = 0.1
"""Share of its own latency that a kernel costs inside a network at least."""
_ERROR: Final = 0.03
"""Standard deviation of a network's error that remains, beside that of its own seconds."""
_ROUNDS: Final = 20
_AROUND: Final = 4
"""Until a place is used again, a network moves about so many times what the kernel does that uses it."""
_LONG_S: Final = 3e-3, 3e-2
"""Runs that are not long at all, and wholly: of the former, caches hold the tensors as if nobody else used them, and
some are not disturbed."""


class Composition(BaseModel):
    """What was learnt: a factor per role of kernels, seconds that every kernel takes longer (or less long) among
    others, how long weights are waited for, how many times that counts, and for how many bytes as long a kernel's own
    things; the share that kernels take longer in a long run; the bytes of the second cache, seconds per byte of tensors
    that caches do not hold, and the half-widths (natural logarithm) of a network's interval, where its kernels were
    measured and where they are predicted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    networks: int = Field(ge=1)
    factors: dict[Role, PositiveFloat]
    kernel_s: float
    waits: Waits = Waits()
    waited: dict[Use, NonNegativeFloat] = dict.fromkeys(USES, 1.0)
    kernel_bytes: NonNegativeFloat = 0.0
    longer: NonNegativeFloat = 0.0
    near_bytes: PositiveFloat
    s_per_byte: dict[Stream, NonNegativeFloat]
    measured_width: NonNegativeFloat
    predicted_width: NonNegativeFloat

    def inside_s(self, op: Operator, precision: Precision, seconds: float) -> float:
        """Seconds inside a network of a kernel that takes so many by itself, were all weights in the nearest cache."""
        waited_s = self.waited[use(op)] * self.waits.row_s(op, precision, seconds)
        return max(seconds * self.factors[role(op, precision)] + self.kernel_s - waited_s, _LEAST * seconds)

    def shared_s(self, kernels: Kernels) -> float:
        """Seconds of one call that belong to no kernel alone: a network waits for weights and what belongs to kernels,
        and for tensors that caches do not hold, and is disturbed as long runs are."""
        found = bytes_from_memory(kernels, self.near_bytes) @ [self.s_per_byte[name] for name in STREAMS]
        waits_s, kernels_s = self.waits.network_s(kernels)
        waited_s = waits_s @ [self.waited[name] for name in USES]
        return float(found + waited_s) + self.kernel_bytes * kernels_s + self.longer * lengthened_s(kernels)

    def slower(self, factor: float) -> "Composition":
        """That of a device whose kernels all take so many times as long."""
        rates = {name: seconds * factor for name, seconds in self.s_per_byte.items()}
        changed = {"kernel_s": self.kernel_s * factor, "s_per_byte": rates, "waits": self.waits.slower(factor)}
        return self.model_copy(update=changed)


class Sums(NamedTuple):
    """What the kernels of a network amount to in one call: seconds by role, as measured and as predicted without having
    been fitted on [roles]; seconds that it waits for weights longer than its rows did [uses], seconds in a run that is
    longer than those of its rows, and seconds that it would wait for one byte of every kernel; bytes from memory
    [streams]; and how many kernels it executes."""

    measured: Values
    predicted: Values
    waits_s: Values
    lengthened_s: float
    kernels_wait_s: float
    from_memory: Values
    kernels: float


def kernel_class(op: Operator, precision: Precision) -> KernelClass:
    """The class of the kernel that runs an operator at a (realised) precision."""
    if precision.activation_bits == 8:
        return "int8 product" if op.macs else "int8 data"
    return "float product" if op.macs else "float data"


def role(op: Operator, precision: Precision) -> Role:
    """The role of the kernel that runs an operator at a (realised) precision."""
    kind = kernel_class(op, precision)
    if isinstance(op, Conv) and op.groups == 1:
        return (_POINTWISE if op.kernel == (1, 1) else _SPATIAL)[kind]
    return kind


def lengthened_s(kernels: Kernels) -> float:
    """Seconds of a network's kernels, by how much longer its run is than those of their rows."""
    if not kernels:
        return 0.0
    runs_s = [row_copies(int(weight_bytes(op, at)), seconds) * seconds for op, at, _, seconds in kernels]
    all_s = np.array([count * seconds for _, _, count, seconds in kernels])
    return float(all_s @ (_long(all_s.sum()) - _long(np.array(runs_s))))


def _long(run_s: Values | float) -> Values:
    """How long runs are, from 0 to 1, by the logarithm."""
    none, wholly = _LONG_S
    share: Values = np.clip(np.log(np.maximum(run_s, none) / none) / math.log(wholly / none), 0.0, 1.0)
    return share


def sums_of(kernels: Sequence[tuple[Operator, Precision, int, float, float]], waits: Waits, near_bytes: float) -> Sums:
    """Those of a network's kernels: each with its (realised) precision, how often one call executes it, and its seconds
    as measured and as predicted."""
    by_role = np.zeros((2, len(ROLES)))
    for op, precision, count, *seconds in kernels:
        by_role[:, ROLES.index(role(op, precision))] += count * np.array(seconds)
    timed = [kernel[:4] for kernel in kernels]
    waits_s, kernels_wait_s = waits.network_s(timed)
    for op, precision, count, own_s, _ in kernels:
        waits_s[USES.index(use(op))] -= count * waits.row_s(op, precision, own_s)
    return Sums(
        measured=by_role[0],
        predicted=by_role[1],
        waits_s=waits_s,
        lengthened_s=lengthened_s(timed),
        kernels_wait_s=kernels_wait_s,
        from_memory=bytes_from_memory(timed, near_bytes),
        kernels=sum(count for _, _, count, _ in timed),
    )


def bytes_from_memory(kernels: Kernels, near_bytes: float) -> Values:
    """Bytes of each stream that one call of a network moves although kernels timed alone found them in a cache, the
    second one of which holds `near_bytes`."""
    count, moved, stored, maps, seconds = _columns(kernels)
    total = (count * (moved + stored)).sum()
    inside, alone = _AROUND * (moved + stored), moved  # bytes until a place is used again
    beyond = spilled(inside, near_bytes) - spilled(alone, near_bytes)
    near = (count * moved * beyond * maps).sum() * spilled(total, near_bytes)
    products, data = ((count * moved)[maps == kind].sum() * _long((count * seconds).sum()) for kind in (0, 1))
    return np.array([products, data, near])


def _columns(kernels: Kernels) -> Values:
    """What `_kernel` tells of each, [5, kernels]."""
    return np.array([_kernel(*kernel) for kernel in kernels]).reshape(-1, 5).T


def _kernel(op: Operator, precision: Precision, count: int, seconds: float) -> tuple[float, ...]:
    """How often it runs, bytes of the tensors and of the weights that it moves, whether it only moves or maps data, and
    its seconds."""
    return count, tensor_bytes(op, precision), stored_bytes(op, precision), not op.macs, seconds


def _error(samples_s: Sequence[Sequence[float]]) -> float:
    """Standard deviation of a network's error: of what remains, and of its own seconds, about as much as its two
    shortest passes differ in the median over all networks."""
    shortest = [sorted(passes)[:2] for passes in samples_s]
    return math.hypot(_ERROR, median(math.log(two[-1] / two[0]) for two in shortest))


def _solve(sums: Values, overhead_s: float, whole_s: Values, expected: float) -> Values:
    """The change of each factor from 1 and of how much waits count, bytes of a kernel, seconds per byte, and shortest
    kernels per kernel: least squares on relative errors, of which so large ones are `expected`, with a normal prior;
    networks that nothing explains count less (Huber), and neither a wait nor a byte saves time."""
    shares = sums / whole_s[:, None] * _SPREADS
    target = 1 - (overhead_s + sums[:, :_KNOWN].sum(axis=1)) / whole_s
    free = np.ones(len(_SPREADS), dtype=bool)
    change = np.zeros(len(_SPREADS))
    while True:
        weights, design = np.ones(len(whole_s)), shares[:, free]
        left = target - shares[:, ~free] @ change[~free]
        for _ in range(_ROUNDS):
            curvature = (design * weights[:, None]).T @ design + np.eye(int(free.sum())) * expected**2
            change[free] = np.linalg.solve(curvature, (design * weights[:, None]).T @ left)
            error = np.abs(target - shares @ change)
            weights = np.minimum(1.0, expected / np.maximum(error, 1e-9))
        below = free & (change < _BOUNDS)
        if not below.any():
            found: Values = change * _SPREADS
            return found
        change[below], free = _BOUNDS[below], free & ~below


def _left_out(sums: Values, overhead_s: float, whole_s: Values, expected: float, of: NDArray[np.int64]) -> Values:
    """For each network what the sums of the others say, as `_solve` does, [networks, sums]; `of` which architecture it
    is a version, [networks]."""
    others = [of != out for out in np.unique(of)]
    found: Values = np.array([_solve(sums[rest], overhead_s, whole_s[rest], expected) for rest in others])
    return found[of]


def _ratios(sums: Values, changes: Values, overhead_s: float, whole_s: Values) -> Values:
    """What comes of each network's sums by its changes, in its own seconds."""
    said = overhead_s + sums[:, :_KNOWN].sum(axis=1) + (sums * changes).sum(axis=1)
    ratios: Values = np.maximum(said / whole_s, 1e-9)
    return ratios


def learnt(
    profile: Profile, unseen_s: Mapping[Layer, float], without_row_s: Mapping[Layer, float]
) -> Composition | None:
    """What a profile's networks say; None where they say nothing. `unseen_s` are predictions of its rows by what was
    not fitted on them, `without_row_s` of kernels that have none; a network with others is left out."""
    near_bytes, waits = max(hardware_of(profile.machine, profile.int8_form).l2, 1), waits_of(profile.weights)
    sums, measured = list[Sums](), list[Network]()
    for network in profile.networks:
        kernels = []
        for part in network.parts:
            layer = part.operator, part.precision
            row, predicted_s = profile.find(*layer), without_row_s.get(layer)
            if row is not None:
                kernels.append((*row.layer, part.count, row.latency_s, unseen_s.get(row.layer, row.latency_s)))
            elif predicted_s is not None:
                kernels.append((*layer, part.count, predicted_s, predicted_s))
        if len(kernels) == len(network.parts):
            sums.append(sums_of(kernels, waits, near_bytes))
            measured.append(network)
    if not sums:
        return None
    return compose(
        sums,
        [network.samples_s for network in measured],
        [network.architecture for network in measured],
        overhead_s=profile.run_overhead_s,
        shortest_s=min(row.latency_s for row in profile.rows),
        waits=waits,
        near_bytes=near_bytes,
    )


def compose(
    networks: Sequence[Sums],
    samples_s: Sequence[Sequence[float]],
    architectures: Sequence[str],
    *,
    overhead_s: float,
    shortest_s: float,
    waits: Waits,
    near_bytes: float,
) -> Composition:
    """From the sums of networks' kernels, by `waits` and for the second cache's `near_bytes`, and the networks' own
    seconds, of every pass, each a version of one of `architectures`. A call costs `overhead_s`, the shortest kernel of
    the profile `shortest_s`.

    All follows from the measured sums and the median of the passes, of two the shorter one: what others add comes and
    goes. The more passes differ, the less is learnt from them. A half-width is the conformal quantile of the errors
    of all versions, each architecture's by what the others say: its versions are off alike.
    """
    _, of = np.unique(np.array(architectures), return_inverse=True)
    whole = np.array([median_low(passes) for passes in samples_s])
    rest = [
        [*one.waits_s, one.lengthened_s, one.kernels_wait_s, *one.from_memory, shortest_s * one.kernels]
        for one in networks
    ]
    design, unseen = (np.hstack([[getattr(one, name) for one in networks], rest]) for name in ("measured", "predicted"))
    expected = _error(samples_s)
    left_out = _left_out(design, overhead_s, whole, expected, of)
    errors = [np.abs(np.log(_ratios(sums, left_out, overhead_s, whole))) for sums in (design, unseen)]
    widths = [conformal_width(error) for error in errors]
    change = _solve(design, overhead_s, whole, expected)
    waited = np.maximum(1 + change[len(ROLES) : _KNOWN], 0.0).tolist()
    return Composition(
        networks=len(whole),
        factors=dict(zip(ROLES, (1 + change[: len(ROLES)]).tolist(), strict=True)),
        kernel_s=float(change[-1]) * shortest_s,
        waits=waits,
        waited=dict(zip(USES, waited, strict=True)),
        longer=float(change[_KNOWN]),
        kernel_bytes=float(change[_KNOWN + 1]),
        near_bytes=near_bytes,
        s_per_byte=dict(zip(STREAMS, change[_KNOWN + 2 : -1].tolist(), strict=True)),
        measured_width=widths[0],
        predicted_width=max(widths),
    )
