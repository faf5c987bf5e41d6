"""What a network costs beyond the sum of its kernels, learnt from random networks that the profiler ran whole.

A kernel timed alone, again and again, finds caches and branch predictors as it left them. Inside a network it does not,
and what that costs depends on what it does: arithmetic in registers hardly notices, moving data does. So every class of
kernels has a factor, close to 1: those that make the predictions of the measured networks right. It is the constant per
data type that on other networks took sums of kernels from 3.4 to 2.0 % (float) and from 5.6 to 3.2 % (int8), by class.
"""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hwcost.ops import Operator, Precision

KernelClass = Literal["float product", "int8 product", "float data", "int8 data"]
"""Products (convolutions, matrices) and kernels that only move or map data, by the type of the activations."""

CLASSES: Final = get_args(KernelClass)
_SPREAD: Final = 0.1
"""Standard deviation of a factor around 1, before anything is known."""
_ERROR: Final = 0.03
"""Standard deviation of a network's error that remains."""
_ROUNDS: Final = 20


def kernel_class(op: Operator, precision: Precision) -> KernelClass:
    """The class of the kernel that runs an operator at a (realised) precision."""
    if precision.activation_bits == 8:
        return "int8 product" if op.macs else "int8 data"
    return "float product" if op.macs else "float data"


def solve_factors(seconds: NDArray[np.float64], overhead_s: float, measured_s: Sequence[float]) -> dict[str, float]:
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
