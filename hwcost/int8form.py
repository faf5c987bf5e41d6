"""Which number formats of int8 are exact and fast on a machine.

CPUs without 8-bit dot products may saturate u8 x s8 sums in 16 bits, so the answer is compared with exact integers.
"""

from typing import Final, get_args

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from hwcost.errors import MeasurementError
from hwcost.graph import Candidate, candidates
from hwcost.ops import INT8, Conv, key
from hwcost.profiles import Int8Form
from hwcost.runtime import Given, Here, Runtime, refusals

_PROBE_S: Final = 0.024


def choose_int8_form(runtime: Runtime | None = None, *, threads: int = 1, seed: int = 0) -> Int8Form:
    """The fastest number formats whose convolutions are exact there, by default on this machine; raises
    `MeasurementError` if none is."""
    runtime = runtime or Here()
    probes = (Conv.square(32, 32, 14, 3), Conv.square(64, 64, 14, 1), Conv.square(64, 64, 14, 3, groups=64))
    times: dict[Int8Form, float] = {}
    for form in get_args(Int8Form):
        total, exact = 0.0, True
        for op in probes:
            (candidate,) = candidates(op, INT8, form, np.random.default_rng(seed))
            with refusals(f"{key(op)} at {INT8}"):
                given = Given(candidate.model.SerializeToString(), threads)
                (answer,) = runtime.run(given, candidate.feeds)
                total += runtime.shortest_s(given, candidate.feeds, _PROBE_S)
            expected = integer_convolution(candidate, op)
            exact = exact and int(np.abs(answer.astype(np.int64) - expected).max()) <= 1
        if exact:
            times[form] = total
    if not times:
        raise MeasurementError(
            f"int8 convolutions must be exact in one of {', '.join(get_args(Int8Form))}, got none there: "
            "use another version of onnxruntime"
        )
    return min(times, key=lambda form: times[form])


def integer_convolution(candidate: Candidate, op: Conv) -> npt.NDArray[np.int64]:
    """What a `QLinearConv` must answer, in exact integers up to the last rounding; (batch, channels, height, width)."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in candidate.model.graph.initializer}
    (node,) = candidate.model.graph.node
    x_scale, x_zero, weights, w_scale, w_zero, y_scale, y_zero, bias = (constants[name] for name in node.input[1:])
    x = candidate.feeds[node.input[0]].astype(np.int64) - int(x_zero)
    top, left, bottom, right = op.pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    extent = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(op.dilation, op.kernel, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(2, 3))
    windows = windows[:, :, :: op.stride[0], :: op.stride[1], :: op.dilation[0], :: op.dilation[1]]
    grouped = windows.reshape(op.batch, op.groups, -1, *windows.shape[2:])
    centred = weights.astype(np.int64) - w_zero.astype(np.int64)[:, None, None, None]
    sums = np.einsum("bgchwij,gocij->bgohw", grouped, centred.reshape(op.groups, -1, *centred.shape[1:]), optimize=True)
    sums = sums.reshape(op.batch, op.out_channels, *sums.shape[3:]) + bias[:, None, None]
    scaled = sums * (x_scale * w_scale / y_scale).astype(np.float32)[:, None, None]
    limits = np.iinfo(y_zero.dtype)
    answer: npt.NDArray[np.int64] = np.clip(np.rint(scaled) + int(y_zero), limits.min, limits.max).astype(np.int64)
    return answer
