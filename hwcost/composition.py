"""What a network costs beyond the sum of its kernels, learnt from random networks that the profiler ran whole.

A kernel timed alone, again and again, finds caches and branch predictors as it left them. Inside a network it does not,
and what that costs depends on what it does: arithmetic in registers hardly notices, moving data does. So every class of
kernels has a factor, close to 1: those that make the predictions of the measured networks right. It is the constant per
data type that on other networks took sums of kernels from 3.4 to 2.0 % (float) and from 5.6 to 3.2 % (int8), by class.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from hwcost.ops import Operator, Precision

KernelClass = Literal["float product", "int8 product", "float data", "int8 data"]
"""Products (convolutions, matrices) and kernels that only move or map data, by the type of the activations."""

CLASSES: Final = get_args(KernelClass)
_SPREAD: Final = 0.1
"""Standard deviation of a factor around 1, before anything is known."""
_ERROR: Final = 0.03
"""Standard deviation of a network's error that remains."""
_ROUNDS: Final = 20
_COVERAGE: Final = 0.9


class Composition(BaseModel):
    """What was learnt: a factor per class, and the half-widths (natural logarithm) of a network's interval, where its
    kernels were measured and where they are predicted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    networks: int = Field(ge=1)
    factors: dict[KernelClass, PositiveFloat]
    measured_width: NonNegativeFloat
    predicted_width: NonNegativeFloat


def kernel_class(op: Operator, precision: Precision) -> KernelClass:
    """The class of the kernel that runs an operator at a (realised) precision."""
    if precision.activation_bits == 8:
        return "int8 product" if op.macs else "int8 data"
    return "float product" if op.macs else "float data"


def solve_factors(
    seconds: NDArray[np.float64], overhead_s: float, measured_s: Sequence[float]
) -> dict[KernelClass, float]:
    """A factor per class from `seconds` [networks, classes], the sums of kernels, and the whole networks' time.

    Least squares on relative errors with a normal prior around 1; networks that nothing explains count less (Huber).
    """
    whole = np.asarray(measured_s, dtype=np.float64)
    shares = seconds / whole[:, None]
    target = 1 - overhead_s / whole - shares.sum(axis=1)
    weights, change = np.ones(len(whole)), np.zeros(len(CLASSES))
    for _ in range(_ROUNDS):
        curvature = (shares * weights[:, None]).T @ shares + np.eye(len(CLASSES)) * (_ERROR / _SPREAD) ** 2
        change = np.linalg.solve(curvature, (shares * weights[:, None]).T @ target)
        error = np.abs(target - shares @ change)
        weights = np.minimum(1.0, _ERROR / np.maximum(error, 1e-9))
    return {name: float(1 + delta) for name, delta in zip(CLASSES, change, strict=True)}


def compose(
    measured: NDArray[np.float64], predicted: NDArray[np.float64], overhead_s: float, whole_s: Sequence[float]
) -> Composition:
    """From sums of kernels by class, [networks, classes] in seconds, as measured and as predicted without having been
    fitted on, and the networks' own seconds.

    Factors follow from the measured sums. A half-width is the 90 % quantile of the errors of networks that were left
    out of the factors, stretched by what so few cannot show (split conformal prediction).
    """
    whole = np.asarray(whole_s, dtype=np.float64)
    factors = solve_factors(measured, overhead_s, whole_s)
    errors: dict[str, list[float]] = {"measured": [], "predicted": []}
    for out in range(len(whole)):
        rest = np.arange(len(whole)) != out
        found = solve_factors(measured[rest], overhead_s, whole[rest].tolist()) if rest.any() else factors
        weights = np.array([found[name] for name in CLASSES])
        for name, sums in (("measured", measured), ("predicted", predicted)):
            errors[name].append(abs(math.log((overhead_s + float(sums[out] @ weights)) / whole[out])))
    widths = {name: _quantile(found) for name, found in errors.items()}
    return Composition(
        networks=len(whole),
        factors=factors,
        measured_width=widths["measured"],
        predicted_width=max(widths.values()),
    )


def _quantile(errors: Sequence[float]) -> float:
    rank = math.ceil((len(errors) + 1) * _COVERAGE)
    return sorted(errors)[min(rank, len(errors)) - 1] * max(1.0, rank / len(errors))
