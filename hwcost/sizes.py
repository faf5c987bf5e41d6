"""The integers that describe an operator: sizes, geometry, and how what it touches lies in memory.

Taken from each operator once and remembered; everything that `hwcost.features` computes follows from them.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from hwcost.errors import InvalidOperatorError
from hwcost.ops import BRANCHING, Boundary, Conv, Gemm, Node, Operator, Pool, TensorType

ROUTES = ("copy", "inwards", "outwards", "blocks", "scattered", "spans", "repeats", "other", "doubles")
"""How data moves. A transpose: as a copy, with one axis of elements moved in or out, in blocks, or by indices
(onnxruntime's SingleAxisTranspose and its fall-back). A node with a smaller input, or a reduction: in spans that lie
together, or with one value for a whole span; `other`: in a mode of its own (interpolation, most powers); `doubles`:
every element of a plane twice each way, which resizing has a loop for."""
_REPEATING = tuple(1 + ROUTES.index(name) for name in ("spans", "repeats"))

_BLOCK = 16  # channels of a block, of the wider vectors
_COSTLY = ("sigmoid", "tanh")
_HARD = ("hardswish", "hardsigmoid", "leakyrelu")
_COSTLY_NODES = ("Div",)

SIZES = (
    "batch",
    "in_channels",
    "out_channels",
    "groups",
    "height",
    "width",
    "kernel_height",
    "kernel_width",
    "taps_height",
    "taps_width",
    "stride_height",
    "stride_width",
    "dilation_height",
    "dilation_width",
    "pad_top",
    "pad_left",
    "padding",
    "out_height",
    "out_width",
    "costly",
    "hard",
    "mapped",
    "clipped",
    "residual",
    "input_elements",
    "output_elements",
    "weights",
    "parameters",
    "macs",
    "read_bytes",
    "write_bytes",
    "tensors",
    "run",
    "smallest",
    "block",
    "rows",
    "columns",
    "planes",
    "rest",
    "scratch",
    "route",
    "shape",
    "constant",
    "branches",
    "surprises",
    "repeated",
)
"""Integers taken from each operator; everything else follows from them. `shape`: 1 a convolution, 2 a product, 3 a
window without weights; `taps`: places of windows along a side that lie in the plane and not in its padding, summed over
the outputs (0: no window moves over a plane); `rest`: channels beyond the last whole block; `branches`: on elements,
taken or not by what these are, and `surprises` those of them that nothing foretells; `repeated`: whether a smaller
tensor is taken again for every run of a larger one; `route`: 1 + the index in `ROUTES`; bytes are 0 where the precision
decides."""

_NOTHING = {
    *("pad_top", "pad_left", "padding", "costly", "hard", "mapped", "clipped", "residual", "weights", "parameters"),
    *("macs", "branches", "surprises", "repeated", "read_bytes", "write_bytes", "scratch", "route"),
    *("block", "rows", "columns", "planes", "rest", "shape", "taps_height", "taps_width"),
}
_DEFAULT = {name: 0 if name in _NOTHING else 1 for name in SIZES}


@contextmanager
def sound(op: Node) -> Iterator[None]:
    """Raises `InvalidOperatorError` where a node lacks an input or an attribute of its type, or has another's."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidOperatorError(
            f"a node has the inputs and attributes of its type, got {op}: repair the file that it is of"
        ) from error


@lru_cache(maxsize=65536)
def sizes(op: Operator) -> tuple[int, ...]:
    """`SIZES` of an operator, in order."""
    if isinstance(op, Conv):
        own = _convolution_sizes(op)
    elif isinstance(op, Gemm):
        own = {
            "in_channels": op.k,
            "out_channels": op.n,
            "height": op.m,
            "out_height": op.m,
            "shape": 2,
            "run": op.n,
            **_activation_sizes(op.activation),
        }
    elif isinstance(op, Pool):
        own = _pool_sizes(op)
    elif isinstance(op, Node):
        with sound(op):
            own = _node_sizes(op)
    else:
        own = _tensor_sizes(op.shape)
        if isinstance(op, Boundary):
            own |= {"read_bytes": 4 * op.input_elements} if op.function == "quantize" else {}
            own |= {"write_bytes": 4 * op.output_elements} if op.function == "dequantize" else {}
            if op.function == "transpose":
                own |= _transpose_sizes(op.shape, op.permutation)
            elif op.function.startswith("reorder"):  # a transpose of every block of channels, and of what remains
                whole, rest = divmod(op.shape[1], _BLOCK)
                own |= {"block": 1, "rows": math.prod(op.shape[2:]), "columns": _BLOCK}
                own |= {"planes": op.shape[0] * whole, "rest": rest}
    if not isinstance(op, (Conv, Node)):
        own |= {"weights": op.weights, "parameters": op.channels, "macs": op.macs}
        own |= {"input_elements": op.input_elements, "output_elements": op.output_elements}
        own |= {"tensors": 2 + (op.input_elements > op.output_elements)}
        own.setdefault("smallest", op.output_elements)
    return tuple(int(own.get(name, default)) for name, default in _DEFAULT.items())


def _activation_sizes(name: str) -> dict[str, int]:
    return {"costly": name in _COSTLY, "hard": name in _HARD, "clipped": name == "clip"}


def _convolution_sizes(op: Conv) -> dict[str, int]:
    out_height, out_width = op.output_height, op.output_width
    weights = op.out_channels * (op.in_channels // op.groups) * op.kernel[0] * op.kernel[1]
    positions = op.batch * out_height * out_width
    output = positions * op.out_channels
    return {
        "batch": op.batch,
        "in_channels": op.in_channels,
        "out_channels": op.out_channels,
        "groups": op.groups,
        "height": op.height,
        "width": op.width,
        "kernel_height": op.kernel[0],
        "kernel_width": op.kernel[1],
        "taps_height": valid_taps(op.height, op.kernel[0], op.stride[0], op.dilation[0], op.pads[0], out_height),
        "taps_width": valid_taps(op.width, op.kernel[1], op.stride[1], op.dilation[1], op.pads[1], out_width),
        "stride_height": op.stride[0],
        "stride_width": op.stride[1],
        "dilation_height": op.dilation[0],
        "dilation_width": op.dilation[1],
        "pad_top": op.pads[0],
        "pad_left": op.pads[1],
        "padding": sum(op.pads),
        "out_height": out_height,
        "out_width": out_width,
        **_activation_sizes(op.activation),
        "residual": op.residual,
        "input_elements": op.batch * op.in_channels * op.height * op.width + op.residual * output,
        "output_elements": output,
        "weights": weights,
        "parameters": op.out_channels,
        "macs": weights * positions,
        "tensors": 2 + op.residual,
        "run": out_width,
        "smallest": output,
        "shape": 1,
    }


def valid_taps(size: int, kernel: int, stride: int, dilation: int, pad: int, out: int) -> int:
    """Places of windows along one axis that fall on input instead of padding, summed over the outputs."""
    found = 0
    for tap in range(min(kernel, (size - 1 + pad) // dilation + 1)):  # those behind lie on input for no output
        start = tap * dilation - pad  # where this tap of the first window is
        found += max(min((size - 1 - start) // stride, out - 1) - max(-(start // stride), 0) + 1, 0)
    return found


def _pool_sizes(op: Pool) -> dict[str, int]:
    out = (op.output_height, op.output_width)
    return {
        "batch": op.batch,
        "in_channels": op.channels_in,
        "out_channels": op.channels_in,
        "height": op.height,
        "width": op.width,
        "kernel_height": op.kernel[0],
        "kernel_width": op.kernel[1],
        "taps_height": valid_taps(op.height, op.kernel[0], op.stride[0], 1, op.pads[0], out[0]),
        "taps_width": valid_taps(op.width, op.kernel[1], op.stride[1], 1, op.pads[1], out[1]),
        "stride_height": op.stride[0],
        "stride_width": op.stride[1],
        "pad_top": op.pads[0],
        "pad_left": op.pads[1],
        "padding": sum(op.pads),
        "out_height": out[0],
        "out_width": out[1],
        "run": op.output_width,
        "shape": 3,
    }


def _tensor_sizes(shape: Sequence[int]) -> dict[str, int]:
    """Of an operator on one tensor: channels are its second axis, the plane is what follows."""
    channels = shape[1] if len(shape) > 1 else math.prod(shape)
    plane = math.prod(shape[2:])
    last = shape[-1] if shape else 1
    return {
        "in_channels": channels,
        "out_channels": channels,
        "height": plane // last if len(shape) > 2 else 1,
        "out_height": plane // last if len(shape) > 2 else 1,
        "width": last if len(shape) > 2 else 1,
        "out_width": last if len(shape) > 2 else 1,
        "run": last,
    }


def _transpose_sizes(shape: Sequence[int], permutation: Sequence[int]) -> dict[str, int]:
    """What is really moved: axes of one element are left out and axes that stay neighbours are one axis; then an
    innermost axis that stays is a `block`, and two axes that change places are `rows` and `columns` of `planes`."""
    groups: list[list[int]] = []
    for axis in (axis for axis in permutation if shape[axis] > 1):
        between = range(groups[-1][-1] + 1, axis) if groups else range(0)
        if groups and groups[-1][-1] < axis and all(shape[skipped] == 1 for skipped in between):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    sizes = [math.prod(shape[axis] for axis in group) for group in groups]
    order = sorted(range(len(groups)), key=lambda place: groups[place][0])
    kept = bool(order) and order[-1] == len(order) - 1
    moved = order[:-1] if kept else order
    block = sizes[-1] if kept else 1
    if not moved:
        return {"route": 1, "block": block, "rows": 1, "columns": 1, "planes": 1}
    # `moved[i]` is where the i-th axis of the input goes; the innermost of them meets the innermost of the output.
    rows, columns = sizes[moved[-1]], sizes[len(moved) - 1]
    leading = next((place for place, axis in enumerate(moved) if axis != place), 0)
    cycle = moved[leading:]
    outer, inner = (len(groups[place]) for place in (cycle[0], cycle[-1]))
    route = 5 if len(cycle) != 2 or min(outer, inner) > 1 else 4 if kept else 2 if inner > 1 else 3
    planes = math.prod(sizes) // (rows * columns * block)
    return {"route": route, "block": block, "rows": rows, "columns": columns, "planes": planes, "run": block}


def _node_sizes(op: Node) -> dict[str, int]:
    """Of a general node: the tensors it streams, and the stretch along the axis that its attributes name. What is no
    product reads constants as it reads what others have made."""
    read = [tensor for tensor in op.reads if not tensor.constant or not (op.macs or tensor.values)]
    streams = [tensor for tensor in read if tensor.shape]
    written = max(op.writes, key=lambda tensor: tensor.elements)
    first = max(streams, key=lambda tensor: tensor.elements, default=written)
    main = first if first.elements >= written.elements else written
    own = _tensor_sizes(main.shape)
    attributes: dict[str, Any] = json.loads(op.attributes)
    shape = first.shape if op.op_type not in ("Concat", "QLinearConcat") else written.shape
    axis = attributes.get("axis", 0 if op.op_type == "Gather" else -1)
    inside = math.prod(shape[axis % len(shape) :]) if shape else 1
    run, route = _span(op, first.shape, written.shape, attributes)
    others = [tensor.elements for tensor in op.reads if tensor.shape and not tensor.values]
    kernel = attributes.get("kernel_shape", ())
    own |= {
        "run": run or inside,
        "route": route,
        "repeated": route in _REPEATING and not op.op_type.startswith("Reduce"),
        "costly": op.op_type in _COSTLY_NODES,
        "tensors": len(streams) + len(op.writes),
        "smallest": min(others, default=1),
        "input_elements": sum(tensor.elements for tensor in read if not tensor.constant or tensor.elements > 1),
        "output_elements": op.output_elements,
        "weights": op.weights if op.macs else 0,
        "macs": op.macs,
        "read_bytes": sum(tensor.bytes for tensor in read),
        "write_bytes": sum(tensor.bytes for tensor in op.writes),
        "scratch": max(first.elements // max(written.elements, 1), written.elements // max(first.elements, 1)),
        "kernel_height": kernel[0] if kernel else attributes.get("size", 1),
        "kernel_width": kernel[1] if len(kernel) > 1 else 1,
    }
    if op.op_type == "Gather":  # touches what it copies, however long its table is
        table, indices = op.reads[:2]
        place = axis % len(table.shape)
        own |= _tensor_sizes(written.shape) | {
            "run": math.prod(table.shape[place + 1 :]),
            "smallest": min(written.elements, table.elements),
            "input_elements": written.elements,
            "read_bytes": written.bytes + (0 if indices.values else indices.bytes),
            "scratch": 1 if table.constant else own["scratch"],
        }
    if op.op_type == "Slice":  # as long as what it takes
        own |= {"input_elements": written.elements, "read_bytes": written.bytes}
    if op.op_type == "QLinearConcat":
        scaled = zip(op.inputs[2::3], op.inputs[3::3], strict=True)
        own["mapped"] = sum(TensorType.parse(x).elements for x, scale in scaled if not scale.endswith(":1"))
    if op.op_type in BRANCHING:
        own["branches"] = own["surprises"] = written.elements
    if turned := turned_softmax(op):
        planes, rows, columns = turned
        own |= {"run": rows, "block": 1, "planes": planes, "rows": rows, "columns": columns}
        if columns > first.shape[-1]:  # axes that change places over a third: one element at a time
            own["mapped"] = 2 * written.elements
    if "Pool" in op.op_type and len(kernel) == 2 and len(written.shape) == 4:
        strides, pads = attributes.get("strides", (1, 1)), attributes.get("pads", (0, 0, 0, 0))
        own |= {
            "stride_height": strides[0],
            "stride_width": strides[1],
            "pad_top": pads[0],
            "pad_left": pads[1],
            "padding": sum(pads),
            "out_height": written.shape[2],
            "out_width": written.shape[3],
            "run": written.shape[3],
            "taps_height": valid_taps(first.shape[2], kernel[0], strides[0], 1, pads[0], written.shape[2]),
            "taps_width": valid_taps(first.shape[3], kernel[1], strides[1], 1, pads[1], written.shape[3]),
            "shape": 4,
        }
        if op.op_type == "MaxPool" and first.dtype != "float32":
            maxima = sum(1 / place for place in range(1, math.prod(kernel) + 1))  # in a random order
            own |= {"branches": written.elements * math.prod(kernel), "surprises": int(written.elements * maxima)}
    matrices = [tensor for tensor in op.reads if len(tensor.shape) > 1]
    if "MatMul" in op.op_type and len(written.shape) > 1 and len(matrices) == 2:
        *before, lines, places = written.shape
        own |= _product(math.prod(before), lines, op.contracted, places, matrices[1].constant)
    if op.op_type in ("LSTM", "GRU", "RNN"):  # a product at every step, and before them one of all inputs
        (steps, batch, inputs), (ways, gates, hidden) = op.reads[0].shape, op.reads[2].shape
        own |= _product(steps * ways, batch, hidden, gates, constant=True)
        own["mapped"] = steps * ways * batch * gates * inputs
    if op.op_type in ("ConvTranspose", "ConvInteger"):
        own |= _products_of_filters(op, attributes.get("group", 1))
    return own


def _products_of_filters(op: Node, groups: int) -> dict[str, int]:
    """Of a convolution that is a product and no more: filters times the input, whose windows are added to where they
    lie (transposed); or all windows, copied beside each other, times the filters (of integers)."""
    (batch, channels, *plane), filters = op.reads[0].shape, op.reads[1].shape
    if op.op_type == "ConvTranspose":
        depth, rows, columns = channels // groups, math.prod(filters[1:]), math.prod(plane)
        mapped = rows * columns
    else:
        depth, rows, columns = math.prod(filters[1:]), math.prod(op.writes[0].shape[2:]), filters[0] // groups
        mapped = rows * depth if (depth, rows) != (channels // groups, math.prod(plane)) else 0
    product = _product(batch * groups, rows, depth, columns, op.op_type == "ConvInteger")
    return {**product, "mapped": batch * groups * mapped}


def _product(batch: int, rows: int, depth: int, columns: int, constant: bool) -> dict[str, int]:
    """So many products of [rows, depth] and [depth, columns], the second factor being `constant` or not."""
    taken, made = {"in_channels": depth, "height": 1, "width": 1}, {"out_channels": columns, "out_width": 1}
    return {"batch": batch, **taken, **made, "out_height": rows, "shape": 2, "constant": constant}


def turned_softmax(op: Node) -> tuple[int, int, int] | None:
    """Sizes before, along and behind the axis of a softmax, where the runtime turns that axis inwards and back again;
    None where it need not. Until ONNX's version 13 a softmax went over all axes from its own on."""
    if op.op_type not in _SOFTMAXES:
        return None
    attributes, shape = json.loads(op.attributes), op.reads[0].shape
    place = attributes.get("axis", -1) % max(len(shape), 1)
    behind = math.prod(shape[place + 1 :])
    if attributes.get("opset", op.version) < _SOFTMAX_OF_ONE_AXIS or behind == 1:
        return None
    return math.prod(shape[:place]), shape[place], behind


def reduced_axes(op: Node) -> tuple[int, ...]:
    """The axes that a reduction goes over, rising; empty where it does not say: all."""
    reads = op.reads
    rank = len(reads[0].shape)
    given = json.loads(op.attributes).get("axes") or (reads[1].values.split(",") if len(reads) > 1 else ())
    return tuple(sorted(int(float(axis)) % max(rank, 1) for axis in given if axis != ""))


_SOFTMAXES = ("Softmax", "LogSoftmax", "QLinearSoftmax")
_SOFTMAX_OF_ONE_AXIS = 13
_BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "QLinearAdd", "QLinearMul", "Where", "Min", "Max", "Sum", "Mean"),
    *("Mod", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
}
_COPYING = {"Slice", "Pad", "Split", "Gather", "Expand", "DepthToSpace", "SpaceToDepth"}
_INTERPOLATING = {"linear", "cubic"}


def _span(op: Node, read: Sequence[int], written: Sequence[int], attributes: dict[str, Any]) -> tuple[int, int]:
    """Elements that a node handles in one go (0: what its axis says), and 1 + the index in `ROUTES`."""
    if op.op_type.startswith("Reduce"):
        axes = reduced_axes(op)
        if axes and axes[-1] < len(read) - 1:
            return math.prod(read[axes[-1] + 1 :]), 7
        return math.prod(read) // max(math.prod(written), 1), 6
    if op.op_type == "BatchNormalization" and len(read) > 2:
        return math.prod(read[2:]), 7
    if op.op_type == "Slice" and (stepped := stepped_axis(op)) is not None:
        return _alike(read[stepped + 1 :], written[stepped + 1 :]), 0
    if op.op_type in _COPYING:
        return _alike(read, written, partial=True), 0
    if op.op_type == "Pow":
        return 0, 0 if any(tensor.values in ("2", "3", "2.0", "3.0") for tensor in op.reads) else 8
    if attributes.get("mode") in _INTERPOLATING:
        return 0, 8
    if op.op_type == "Resize" or (op.op_type == "Upsample" and not op.domain):
        return 0, 9 if doubles(op) else 0
    if "axis" in attributes or op.macs:
        return 0, 0
    taken = operands(op)
    if op.op_type not in _BROADCASTING:  # a single number is a setting
        taken = tuple(tensor for tensor in taken if tensor.elements > 1)
    shapes = [t.shape for t in taken if not t.values and len(t.shape) <= len(written)]
    small = min(shapes, key=math.prod, default=written)
    span, follows = broadcast_span(written, small)
    if span < math.prod(written):
        return span, 6 if follows else 7
    return (span if op.op_type in _BROADCASTING else 0), 0


def stepped_axis(op: Node) -> int | None:
    """The innermost axis along which a slice takes not every element, as far as its constants tell."""
    rank = len(op.reads[0].shape)
    told = [TensorType.parse(text).values for text in op.inputs[3:5] if text]
    if len(told) < 2 or not all(told):
        return None
    axes, steps = ([int(float(value)) for value in text.split(",")] for text in told)
    return max((axis % rank for axis, step in zip(axes, steps, strict=True) if abs(step) != 1), default=None)


def doubles(op: Node) -> bool:
    """Whether a resize repeats every pixel of its planes twice each way: onnxruntime's `UpsampleNearest2x`."""
    read, attributes = op.reads[0].shape, json.loads(op.attributes)
    if op.domain or len(read) != 4 or op.writes[0].shape != (*read[:2], 2 * read[2], 2 * read[3]):
        return False
    ways = attributes.get("coordinate_transformation_mode"), attributes.get("nearest_mode")
    return attributes.get("mode", "nearest") == "nearest" and (op.version < 11 or ways == ("asymmetric", "floor"))


def operands(op: Node) -> tuple[TensorType, ...]:
    """The tensors that a node computes on; between those of 8-bit ones stand their scales and zero-points."""
    return op.reads[:4:3] if op.op_type.startswith("QLinear") else op.reads


def broadcast_span(large: Sequence[int], small: Sequence[int]) -> tuple[int, bool]:
    """Elements that one call of a loop over a tensor and a smaller one takes, and whether the smaller one runs along
    with it (it stands still otherwise): what onnxruntime's `Broadcaster` (core/providers/cpu/math) makes of the shapes.

    It joins axes from the last on while neither tensor begins or ends to repeat. An axis of 1 that both shapes have
    joins any other; one that the smaller lacks is a repetition of the larger too, and ends the span: a number added to
    280 x 1 x 1 elements is added 280 times.
    """
    common = list(zip(large[::-1], small[::-1], strict=False))
    while len(common) > 1 and common[0] == (1, 1):
        common.pop(0)
    pairs = common[:1] + [pair for pair in common[1:] if pair != (1, 1)]
    pairs += [(size, 1) for size in large[::-1][len(small) :]]
    if not pairs:
        return 1, True
    first = tuple(size > 1 for size in pairs[0])
    span = 1
    for pair in pairs:
        if tuple(size > 1 for size in pair) != first:
            break
        span *= pair[0]
    return span, first[1]


def _alike(first: Sequence[int], second: Sequence[int], partial: bool = False) -> int:
    """Elements of the innermost axes that two shapes share; with `partial` also the shorter of the next."""
    span = 1
    for one, other in zip(first[::-1], second[::-1], strict=False):
        if one != other:
            return span * (min(one, other) if partial else 1)
        span *= one
    return span
