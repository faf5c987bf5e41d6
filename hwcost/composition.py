"""What a network costs beyond the sum of its kernels, learnt from random networks that the profiler ran whole.

A kernel timed alone, again and again, finds caches and branch predictors as it left them. Inside a network it does not,
and what that costs depends on what it does: arithmetic in registers hardly notices, moving data does. So every class of
kernels has a factor, close to 1, and every change from one kernel to another may cost more or less than rows hold. And
a kernel timed alone finds its weights in a cache, which those of a large network do not fit: so weights cost time by
the byte, the more the larger the network. All this is what makes the predictions of the measured networks right.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from hwcost.ops import Gemm, Operator, Precision, weight_bytes

KernelClass = Literal["float product", "int8 product", "float data", "int8 data"]
"""Products (convolutions, matrices) and kernels that only move or map data, by the type of the activations."""
WeightClass = Literal["float convolution", "int8 convolution", "matrix"]

Layers = Iterable[tuple[Operator, Precision, int]]
"""Kernels at their realised precision, and how often one call executes each."""
Values = NDArray[np.float64]

CLASSES: Final = get_args(KernelClass)
WEIGHT_CLASSES: Final = get_args(WeightClass)
_SPREADS: Final = np.array([0.1] * len(CLASSES) + [5e-11] * len(WEIGHT_CLASSES) + [1e-7])
"""Standard deviations before anything is known: of a factor around 1, of seconds per byte around 0, and per kernel."""
_KERNEL_S: Final = -8e-8
"""What is expected of a kernel among others: that half of what a change of kernel adds to its row is too much. Few
networks of large kernels cannot tell that from factors."""
_WEIGHTS: Final = slice(len(CLASSES), len(CLASSES) + len(WEIGHT_CLASSES))
_LEAST: Final = 0.25
"""Share of its own latency that a kernel costs inside a network at least."""
_ERROR: Final = 0.03
"""Standard deviation of a network's error that remains."""
_ROUNDS: Final = 20
_COVERAGE: Final = 0.9
_HELD_BYTES, _HOT_BYTES, _LOST_BYTES = 2 * 1024**2, 8 * 1024**2, 32 * 1024**2
"""Weights that caches hold all of, of a network from call to call or of a kernel that runs alone, and none of."""


class Composition(BaseModel):
    """What was learnt: a factor per class of kernels, seconds that every kernel takes longer (or less long) among
    others, seconds per byte of weights from memory, and the half-widths (natural logarithm) of a network's interval,
    where its kernels were measured and where they are predicted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    networks: int = Field(ge=1)
    factors: dict[KernelClass, PositiveFloat]
    kernel_s: float
    weight_s_per_byte: dict[WeightClass, NonNegativeFloat]
    measured_width: NonNegativeFloat
    predicted_width: NonNegativeFloat

    def inside_s(self, op: Operator, precision: Precision, seconds: float) -> float:
        """Seconds inside a network of a kernel that takes so many by itself."""
        return max(seconds * self.factors[kernel_class(op, precision)] + self.kernel_s, _LEAST * seconds)

    def weights_s(self, layers: Layers) -> float:
        """Seconds of one call that a network's weights cost because caches do not hold them."""
        rates = [self.weight_s_per_byte[name] for name in WEIGHT_CLASSES]
        return float(bytes_from_memory(layers) @ np.array(rates))


def kernel_class(op: Operator, precision: Precision) -> KernelClass:
    """The class of the kernel that runs an operator at a (realised) precision."""
    if precision.activation_bits == 8:
        return "int8 product" if op.macs else "int8 data"
    return "float product" if op.macs else "float data"


def bytes_from_memory(layers: Layers) -> Values:
    """Bytes of weights that one call of a network reads from memory, by class, [weight classes]."""
    sums, total = np.zeros(len(WEIGHT_CLASSES)), 0
    for op, precision, count in layers:
        name: WeightClass = "float convolution" if precision.activation_bits == 32 else "int8 convolution"
        stored = weight_bytes(op, precision)
        # What no cache holds came from memory when timed alone, too.
        hot = 1 - _between(stored, _HOT_BYTES, _LOST_BYTES)
        sums[WEIGHT_CLASSES.index("matrix" if isinstance(op, Gemm) else name)] += count * stored * hot
        total += count * stored
    return sums * _between(total, _HELD_BYTES, _LOST_BYTES)


def _between(size: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, by the logarithm."""
    return min(max(math.log(max(size, 1.0) / low) / math.log(high / low), 0.0), 1.0)


def _solve(sums: Values, overhead_s: float, whole_s: Values) -> Values:
    """The change of each factor from 1, seconds per byte and per kernel: least squares on relative errors with a normal
    prior; networks that nothing explains count less (Huber)."""
    shares = sums / whole_s[:, None] * _SPREADS
    target = 1 - (overhead_s + sums[:, : len(CLASSES)].sum(axis=1) + _KERNEL_S * sums[:, -1]) / whole_s
    weights, change = np.ones(len(whole_s)), np.zeros(len(_SPREADS))
    for _ in range(_ROUNDS):
        curvature = (shares * weights[:, None]).T @ shares + np.eye(len(_SPREADS)) * _ERROR**2
        change = np.linalg.solve(curvature, (shares * weights[:, None]).T @ target)
        error = np.abs(target - shares @ change)
        weights = np.minimum(1.0, _ERROR / np.maximum(error, 1e-9))
    found: Values = change * _SPREADS
    found[-1] += _KERNEL_S
    found[_WEIGHTS] = np.maximum(found[_WEIGHTS], 0.0)
    return found


def compose(
    measured: Values,
    predicted: Values,
    from_memory: Values,
    counts: Values,
    overhead_s: float,
    whole_s: Sequence[float],
) -> Composition:
    """From sums of kernels in seconds by class [networks, classes], as measured and as predicted without having been
    fitted on; bytes from memory [networks, weight classes]; kernels that one call executes [networks]; and the
    networks' own seconds.

    Factors follow from the measured sums. A half-width is the 90 % quantile of the errors of networks that were left
    out of the factors, stretched by what so few cannot show (split conformal prediction).
    """
    whole = np.asarray(whole_s, dtype=np.float64)
    beside = np.column_stack([from_memory, counts])
    sums = {"measured": np.hstack([measured, beside]), "predicted": np.hstack([predicted, beside])}
    errors: dict[str, list[float]] = {name: [] for name in sums}
    for out in range(len(whole)):
        rest = np.arange(len(whole)) != out
        change = _solve(sums["measured"][rest], overhead_s, whole[rest])
        for name, array in sums.items():
            said = overhead_s + array[out, : len(CLASSES)].sum() + array[out] @ change
            errors[name].append(abs(math.log(max(float(said), 1e-9) / whole[out])))
    change = _solve(sums["measured"], overhead_s, whole)
    widths = {name: _quantile(found) for name, found in errors.items()}
    return Composition(
        networks=len(whole),
        factors=dict(zip(CLASSES, (1 + change[: len(CLASSES)]).tolist(), strict=True)),
        kernel_s=float(change[-1]),
        weight_s_per_byte=dict(zip(WEIGHT_CLASSES, change[_WEIGHTS].tolist(), strict=True)),
        measured_width=widths["measured"],
        predicted_width=max(widths.values()),
    )


def _quantile(errors: Sequence[float]) -> float:
    rank = math.ceil((len(errors) + 1) * _COVERAGE)
    return sorted(errors)[min(rank, len(errors)) - 1] * max(1.0, rank / len(errors))
