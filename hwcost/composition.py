"""What a network costs beyond the sum of its kernels, learnt from random networks that the profiler ran whole.

A kernel timed alone, again and again, finds caches and branch predictors as it left them. Inside a network it does not,
and what that costs depends on what it does: arithmetic in registers hardly notices, moving data does. So every role of
kernels has a factor, close to 1, and every change from one kernel to another may cost more or less than rows hold. And
a kernel timed alone finds its weights and tensors in a cache, which those of a large network push out: so weights and
large tensors cost time by the byte, the more the larger what a call touches, its working set. What only moves or maps
tensors finds them in the second cache when it is timed, and often not in a network, whatever that needs in all. All
this is what makes the predictions of the measured networks right, by the median of their passes: a network is wanted as
it usually runs. What the caches hold is nowhere to be read, and several sizes explain a profile's networks alike; so
each counts by how right it makes those that were left out.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from hwcost.hardware import spilled
from hwcost.ops import Conv, Node, Operator, Precision, bytes_moved, weight_bytes
from hwcost.predictors.base import conformal_width

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
Stream = Literal["weights used once", "weights used again", "tensors", "near tensors"]
"""What a kernel reads or writes that caches may have lost: weights, by how often each is multiplied, since what waits
for every byte of its weights does so when it is timed alone too, and as long for the second cache as for the last;
tensors that the last cache loses; and those that the second one loses, of kernels that only move or map data."""

Layers = Iterable[tuple[Operator, Precision, int]]
"""Kernels at their realised precision, and how often one call executes each."""
Values = NDArray[np.float64]

CLASSES: Final = get_args(KernelClass)
ROLES: Final = get_args(Role)
STREAMS: Final = get_args(Stream)
_POINTWISE: Final[dict[KernelClass, Role]] = {"float product": "float pointwise", "int8 product": "int8 pointwise"}
_SPATIAL: Final[dict[KernelClass, Role]] = {"float product": "float spatial", "int8 product": "int8 spatial"}
_SPREADS: Final = np.array([0.05] * len(ROLES) + [5e-11, 5e-11, 2e-11, 2e-11] + [0.4])
"""Standard deviations before anything is known: of a factor around 1, of seconds per byte around 0, and of seconds per
kernel around 0, in shortest kernels."""
_RATES: Final = slice(len(ROLES), len(ROLES) + len(STREAMS))
_LEAST: Final = 0.25
"""Share of its own latency that a kernel costs inside a network at least."""
_ERROR: Final = 0.03
"""Standard deviation of a network's error that remains."""
_ROUNDS: Final = 20
_OUTLIER: Final = 0.1
_DOUBT: Final = 0.001
"""A mean error of networks left out that is larger by so much says e times less for what caches may hold."""
_LEAST_CREDIT: Final = 0.02
_LOST: Final = 8
"""A working set of so many times what the caches hold finds nothing of it there."""
_TENSORS: Final = 2
"""A working set is all weights, and so many times the tensors that the kernel with the largest reads and writes."""
_REUSE: Final = 8.0
"""Multiplications per weight below which a kernel waits for its weights."""
_AROUND: Final = 4
"""Until a place is used again, a network moves about so many times what the kernel does that uses it."""
_SHORT_LIVED_BYTES: Final = 0.25 * 1024**2, 2 * 1024**2
"""Tensors of a kernel that are still near when the next one reads them, all and none."""
_ALONE: Final = 2
"""Of weights of so many times what the caches hold of a kernel that runs alone, its row contains that they wait; and a
network whose working set is so large finds none of those that it uses once."""


class Held(BaseModel):
    """What caches hold all of, in bytes: the working set of a network that finds again there the weights that it uses
    more than once, and what the last one leaves to a kernel that runs alone, or to a network for weights used once."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    together: PositiveFloat
    alone: PositiveFloat


HELD: Final = tuple(
    Held(together=2**together * 1024**2, alone=2**alone * 1024**2) for alone in (2, 3, 4, 5) for together in range(5)
)
"""What caches may hold, 1 to 16 and 4 to 32 MiB: how much each of these counts is told by networks left out."""
_HELD_TENSORS: Final = 2 * 1024**2
"""The working set that finds its tensors again. Networks left out say 1, 2 or 4 MiB, all equally well: at 16 MiB, where
weights may still be held, the tensors of networks of few large ones are not."""


class Memory(BaseModel):
    """Seconds per byte that caches do not hold, if they hold so much: already counted by how credible that is."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    held: Held
    s_per_byte: dict[Stream, NonNegativeFloat]

    def slower(self, factor: float) -> "Memory":
        return self.model_copy(update={"s_per_byte": {name: s * factor for name, s in self.s_per_byte.items()}})


class Composition(BaseModel):
    """What was learnt: a factor per role of kernels, seconds that every kernel takes longer (or less long) among
    others, the bytes of the second cache, what memory costs by what caches may hold, to be added up, and the
    half-widths (natural logarithm) of a network's interval, where its kernels were measured and where they are
    predicted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    networks: int = Field(ge=1)
    factors: dict[Role, PositiveFloat]
    kernel_s: float
    near_bytes: PositiveFloat
    memory: tuple[Memory, ...]
    measured_width: NonNegativeFloat
    predicted_width: NonNegativeFloat

    def inside_s(self, op: Operator, precision: Precision, seconds: float) -> float:
        """Seconds inside a network of a kernel that takes so many by itself."""
        return max(seconds * self.factors[role(op, precision)] + self.kernel_s, _LEAST * seconds)

    def memory_s(self, layers: Layers) -> float:
        """Seconds of one call that a network costs because caches do not hold its weights and tensors."""
        rates = np.array([[one.s_per_byte[name] for name in STREAMS] for one in self.memory])
        return float((bytes_from_memory(layers, [one.held for one in self.memory], self.near_bytes) * rates).sum())

    def slower(self, factor: float) -> "Composition":
        """That of a device whose kernels all take so many times as long."""
        memory = tuple(one.slower(factor) for one in self.memory)
        return self.model_copy(update={"kernel_s": self.kernel_s * factor, "memory": memory})


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


def bytes_from_memory(layers: Layers, caches: Sequence[Held], near_bytes: float) -> Values:
    """Bytes that one call of a network moves although kernels timed alone found them in a cache, [caches, streams], for
    all that caches may hold and the second one's `near_bytes`."""
    count, moved, stored, waits, maps = np.array([_kernel(*layer) for layer in layers]).reshape(-1, 5).T
    total, all_weights, largest = (count * (moved + stored)).sum(), (count * stored).sum(), moved.max(initial=0.0)
    inside, alone = _AROUND * (moved + stored), moved  # bytes until a place is used again
    beyond = spilled(inside, near_bytes) - spilled(alone, near_bytes)
    near = (count * moved * beyond * maps).sum() * spilled(total, near_bytes)

    def lost(size: float, times: float = _LOST) -> float:
        return float(_between(all_weights + _TENSORS * largest, size, times * size))

    far = (count * moved * _between(moved, *_SHORT_LIVED_BYTES)).sum() * lost(_HELD_TENSORS)
    found = []
    for held in caches:
        warm = count * stored * (1 - _between(stored, held.alone, _ALONE * held.alone))
        once, again = (warm * waits).sum(), (warm * (1 - waits)).sum()
        found.append((once * lost(held.alone, _ALONE), again * lost(held.together), far, near))
    return np.array(found)


def _kernel(op: Operator, precision: Precision, count: int) -> tuple[float, ...]:
    """How often it runs, bytes of the tensors and of the weights that it moves, the share of these that it waits for,
    and whether it only moves or maps data."""
    weights = weight_bytes(op, precision)
    stored = 0 if isinstance(op, Node) and op.op_type == "Gather" else weights  # not its table
    waits = min(_REUSE * op.weights / max(op.macs, 1), 1.0)
    return count, bytes_moved(op, precision) - weights, stored, waits, not op.macs


def _between(size: Values | float, low: float, high: float) -> Values:
    """0 up to `low`, 1 from `high` on, by the logarithm."""
    share: Values = np.clip(np.log(np.maximum(size, 1.0) / low) / math.log(high / low), 0.0, 1.0)
    return share


def _solve(sums: Values, overhead_s: float, whole_s: Values) -> Values:
    """The change of each factor from 1, seconds per byte, and shortest kernels per kernel: least squares on relative
    errors with a normal prior; networks that nothing explains count less (Huber), and a byte never saves time."""
    shares = sums / whole_s[:, None] * _SPREADS
    target = 1 - (overhead_s + sums[:, : len(ROLES)].sum(axis=1)) / whole_s
    free = np.ones(len(_SPREADS), dtype=bool)
    change = np.zeros(len(_SPREADS))
    while True:
        weights, design = np.ones(len(whole_s)), shares[:, free]
        for _ in range(_ROUNDS):
            curvature = (design * weights[:, None]).T @ design + np.eye(int(free.sum())) * _ERROR**2
            change[free] = np.linalg.solve(curvature, (design * weights[:, None]).T @ target)
            error = np.abs(target - shares @ change)
            weights = np.minimum(1.0, _ERROR / np.maximum(error, 1e-9))
        if not (change[_RATES] < 0).any():
            break
        free[_RATES] &= change[_RATES] >= 0
        change = np.zeros(len(_SPREADS))
    found: Values = change * _SPREADS
    return found


def _left_out(sums: Values, overhead_s: float, whole_s: Values) -> Values:
    """For each network what the sums of the others say, as `_solve` does, [networks, sums]."""
    every = np.arange(len(whole_s))
    return np.array([_solve(sums[every != out], overhead_s, whole_s[every != out]) for out in every])


def _ratios(sums: Values, changes: Values, overhead_s: float, whole_s: Values) -> Values:
    """What comes of each network's sums by its changes, in its own seconds."""
    said = overhead_s + sums[:, : len(ROLES)].sum(axis=1) + (sums * changes).sum(axis=1)
    ratios: Values = np.maximum(said / whole_s, 1e-9)
    return ratios


def _credits(ratios: Values) -> Values:
    """How much each of `HELD` counts, in sum 1, from what it says of networks left out, [caches, networks]."""
    error = np.minimum(np.abs(np.log(ratios)), _OUTLIER).mean(axis=1)
    credit = np.exp((error.min() - error) / _DOUBT)
    credit[credit < _LEAST_CREDIT * credit.sum()] = 0
    found: Values = credit / credit.sum()
    return found


def compose(
    measured: Values,
    predicted: Values,
    from_memory: Values,
    counts: Values,
    samples_s: Sequence[Sequence[float]],
    *,
    overhead_s: float,
    shortest_s: float,
    near_bytes: float,
) -> Composition:
    """From sums of kernels in seconds by role [networks, roles], as measured and as predicted without having been
    fitted on; bytes from memory for each of `HELD` and for `near_bytes` [caches, networks, streams]; kernels that
    one call executes [networks]; and the networks' own seconds, of every pass. A call costs `overhead_s`, the shortest
    kernel of the profile `shortest_s`.

    All follows from the measured sums and the median of the passes. What caches may hold is averaged over (Hoeting et
    al., Bayesian model averaging, 1999, with errors of networks left out in place of likelihoods). A half-width is the
    conformal quantile of such errors.
    """
    whole = np.array([median(passes) for passes in samples_s])
    designs = [np.hstack([measured, memory, shortest_s * counts[:, None]]) for memory in from_memory]
    left_out = [_left_out(design, overhead_s, whole) for design in designs]
    unseen = [np.hstack([predicted, design[:, len(ROLES) :]]) for design in designs]
    of_measured, of_predicted = (
        np.array([_ratios(*pair, overhead_s, whole) for pair in zip(sums, left_out, strict=True)])
        for sums in (designs, unseen)
    )
    credits = _credits(of_measured)
    widths = [conformal_width(np.abs(np.log(credits @ ratios))) for ratios in (of_measured, of_predicted)]
    changes = credits[:, None] * np.array([_solve(design, overhead_s, whole) for design in designs])
    change = changes.sum(axis=0)
    return Composition(
        networks=len(whole),
        factors=dict(zip(ROLES, (1 + change[: len(ROLES)]).tolist(), strict=True)),
        kernel_s=float(change[-1]) * shortest_s,
        near_bytes=near_bytes,
        memory=tuple(
            Memory(held=held, s_per_byte=dict(zip(STREAMS, one[_RATES].tolist(), strict=True)))
            for held, credit, one in zip(HELD, credits, changes, strict=True)
            if credit
        ),
        measured_width=widths[0],
        predicted_width=max(widths),
    )
