"""What a predictor sees of an operator: one function, for fitting and for predicting.

Predictors are fitted per (family, realised precision), so a row needs no one-hot codes of kinds: it holds sizes
(natural logarithms, since latency spans five decades), window geometry, and how well the channels fill the vector
and tile widths of 8 and 16 that CPU kernels work in.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hwcost.ops import Boundary, Conv, Gemm, Operator, Pool, Precision, activation_bytes, bytes_moved, weight_bytes

FEATURE_NAMES = (
    "log_macs",
    "log_macs_tiled_8",
    "log_macs_tiled_16",
    "log_bytes",
    "log_output_bytes",
    "log_weight_bytes",
    "log_input_elements",
    "log_output_elements",
    "log_weights",
    "log_intensity",
    "log_reduction",
    "log_in_channels",
    "log_out_channels",
    "log_plane",
    "log_output_plane",
    "log_output_width",
    "kernel_height",
    "kernel_width",
    "stride",
    "dilation",
    "log_groups",
    "depthwise",
    "padded",
    "in_fill_8",
    "out_fill_8",
    "out_fill_16",
    "row_fill_8",
    "costly_activation",
    "moved_axis",
)
"""Names of the columns of `feature_row`, in order. `log_` is the natural logarithm of a count of at least 1 (0 for
none); a `fill` is the share of a tile of that width which carries channels, 1 when the channels divide by it."""

SIZE_FEATURES = ("log_macs", "log_bytes", "log_input_elements", "log_output_elements", "log_weights", "log_reduction")
"""The columns that say how large an operator is: the fitted range, and what makes operators near-identical."""

_INDEX = {name: column for column, name in enumerate(FEATURE_NAMES)}


def column(name: str) -> int:
    """Position of a feature in `FEATURE_NAMES`."""
    return _INDEX[name]


def family(op: Operator) -> str:
    """Operators that one predictor can describe: `conv.dense`, `conv.depthwise`, `conv.grouped`, `gemm`,
    `pool.<function>`, `elementwise.<function>`, `boundary.<function>`."""
    if isinstance(op, Conv):
        return f"conv.{'depthwise' if op.depthwise else 'grouped' if op.groups > 1 else 'dense'}"
    if isinstance(op, Gemm):
        return op.kind
    return f"{op.kind}.{op.function}"


def _log(count: float) -> float:
    return math.log(max(count, 1.0))


def _fill(size: int, tile: int) -> float:
    return size / (math.ceil(size / tile) * tile)


def feature_row(op: Operator, precision: Precision) -> tuple[float, ...]:
    """The features of an operator on the kernels of `precision` (the realised one), in the order of `FEATURE_NAMES`."""
    kernel, stride, dilation, groups, batch = (1, 1), 1, 1, 1, 1
    depthwise, padded, costly, moved_axis = False, False, False, 0.0
    if isinstance(op, Conv):
        in_channels, out_channels, batch = op.in_channels, op.out_channels, op.batch
        plane, out_plane, out_width = op.height * op.width, op.output_height * op.output_width, op.output_width
        kernel, stride, dilation, groups = op.kernel, math.prod(op.stride), math.prod(op.dilation), op.groups
        depthwise, padded = op.depthwise, any(op.pads)
        costly = op.activation not in ("none", "relu", "clip")
    elif isinstance(op, Gemm):
        in_channels, out_channels, plane, out_plane, out_width = op.k, op.n, op.m, op.m, op.m
        costly = op.activation not in ("none", "relu", "clip")
    elif isinstance(op, Pool):
        in_channels = out_channels = op.channels_in
        plane, out_plane, out_width = op.height * op.width, op.output_height * op.output_width, op.output_width
        kernel, stride, padded, batch = op.kernel, math.prod(op.stride), any(op.pads), op.batch
    else:
        shape = op.shape
        in_channels = out_channels = shape[1] if len(shape) > 1 else shape[0]
        plane = out_plane = math.prod(shape[2:])
        out_width = shape[-1]
        if isinstance(op, Boundary) and op.permutation:
            # 0 when the innermost axis stays innermost (rows are copied), else how far apart neighbours land.
            moved_axis = _log(math.prod(shape[op.permutation[-1] + 1 :]))
    window = kernel[0] * kernel[1]
    per_position = out_plane * batch * window
    per_group_in, per_group_out = in_channels // groups, out_channels // groups

    def tiled(tile: int) -> float:
        """Multiply-accumulates when the channels are filled up to whole tiles."""
        if not op.macs:
            return 0.0
        if depthwise:
            return _log(per_position * math.ceil(out_channels / tile) * tile)
        return _log(per_position * per_group_in * math.ceil(per_group_out / tile) * tile * groups)

    moved = bytes_moved(op, precision)
    return (
        _log(op.macs),
        tiled(8),
        tiled(16),
        _log(moved),
        _log(activation_bytes(op, precision)),
        _log(weight_bytes(op, precision)),
        _log(op.input_elements),
        _log(op.output_elements),
        _log(op.weights),
        math.log(max(op.macs, op.output_elements) / moved),
        _log(per_group_in * window if op.macs else window),
        _log(in_channels),
        _log(out_channels),
        _log(plane),
        _log(out_plane),
        _log(out_width),
        float(kernel[0]),
        float(kernel[1]),
        float(stride),
        float(dilation),
        _log(groups),
        float(depthwise),
        float(padded),
        _fill(per_group_in, 8),
        _fill(per_group_out if not depthwise else out_channels, 8),
        _fill(per_group_out if not depthwise else out_channels, 16),
        _fill(out_width, 8),
        float(costly),
        moved_axis,
    )


def feature_matrix(ops: Iterable[tuple[Operator, Precision]]) -> NDArray[np.float64]:
    """`feature_row` of each (operator, realised precision): float64 [operators, features]."""
    rows = [feature_row(op, precision) for op, precision in ops]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(FEATURE_NAMES))
