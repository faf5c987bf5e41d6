"""Weights that are neither 0 nor as large as 1.2e-38, and what a processor takes longer for them.

Training drives weights that nobody needs towards 0 and stops at such numbers; folding a batch norm makes more. Some
processors hand a vector instruction to microcode when one of its lanes is subnormal, 150 cycles instead of one half:
Intel, 64-ia-32 Optimization Reference Manual, "Floating-point Assists". So one weight of such a size in a vector costs
as much as all, once for each product: seconds a use, measured with one convolution that has them and has them not.
"""

import math
from dataclasses import replace
from typing import Final

import numpy as np
from onnx import TensorProto, numpy_helper

from hwcost.errors import MeasurementError
from hwcost.graph import Array
from hwcost.kernels import prepare, run_time
from hwcost.ops import FLOAT, Conv
from hwcost.profiles import Int8Form
from hwcost.runtime import Runtime, UnusableError, refusals

_KERNEL: Final = Conv(64, 64, 7, 7, (1, 1))
_SUBNORMAL: Final = np.float32(1e-40)
_SIGN_OFF, _LEAST_NORMAL = 0x7FFFFFFF, 0x00800000
"""All bits of a float but its sign, and the smallest number that has its full precision, 1.2e-38."""
_ONE_IN: Final = 8
"""Vectors of which one has such a weight: a processor that is interrupted by each takes less for each."""
_TIME_S: Final = 0.03


def subnormal_vectors(weights: Array, lanes: int) -> tuple[int, int]:
    """How many of these float32 numbers are subnormal, and how many vectors of `lanes` in their order have one."""
    bits = np.ascontiguousarray(weights).view(np.uint32).reshape(-1) & _SIGN_OFF
    places = np.flatnonzero((bits > 0) & (bits < _LEAST_NORMAL))
    return len(places), len(np.unique(places // lanes))


def time_subnormal(runtime: Runtime, form: Int8Form, seed: int, threads: int, lanes: int) -> float:
    """Seconds that each use of a vector of `lanes` weights takes longer when one of them is subnormal; 0 where the
    runtime refuses the kernel that tells; raises `UnusableError`."""
    try:
        with refusals("a kernel of subnormal weights"):
            plain = prepare(_KERNEL, FLOAT, form, seed, runtime, threads)
            spoilt = replace(plain, constants={name: _spoilt(one, lanes) for name, one in plain.constants.items()})
            plain_s, spoilt_s = (run_time([kernel], 1, runtime, threads, _TIME_S) for kernel in (plain, spoilt))
    except UnusableError:
        raise
    except MeasurementError:
        return 0.0
    vectors = math.ceil(_KERNEL.weights / (_ONE_IN * lanes))
    return max(spoilt_s - plain_s, 0.0) / (vectors * _KERNEL.output_height * _KERNEL.output_width)


def _spoilt(constant: TensorProto, lanes: int) -> TensorProto:
    """The same with a subnormal number in some of its vectors, where it is the weights of the kernel."""
    values = numpy_helper.to_array(constant)
    if values.dtype != np.float32 or values.size != _KERNEL.weights:
        return constant
    values = values.copy()
    values.reshape(-1)[:: _ONE_IN * lanes] = _SUBNORMAL
    return numpy_helper.from_array(values, constant.name)
