"""What a predictor sees of an operator: one function, for fitting and for predicting.

Predictors are fitted per (family, realised precision), so a row needs no one-hot codes of kinds. It holds sizes and
geometry; how the innermost axes lie in memory; what fits which cache; and the counts of `hwcost.tiling`, how many tiles
and calls a kernel takes. Sizes are natural logarithms, since latency spans five decades.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwcost.ops import Boundary, Conv, Gemm, Node, Operator, Pool, Precision
from hwcost.profiles import Machine
from hwcost.tiling import ALGORITHMS, WORK, Columns, Hardware, convolution_work, product_work

ROUTES = ("copy", "inwards", "outwards", "scattered")
"""How a transpose runs: as a copy, with one axis moved in or out (onnxruntime's SingleAxisTranspose), or by indices."""

_GENERAL = (
    "log_macs",
    "log_macs_tiled_8",
    "log_macs_tiled_16",
    "log_bytes",
    "log_read_bytes",
    "log_output_bytes",
    "log_weight_bytes",
    "log_input_elements",
    "log_output_elements",
    "log_weights",
    "log_intensity",
    "log_reduction",
    "log_window_elements",
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
    "residual",
    "in_fill_8",
    "out_fill_8",
    "out_fill_16",
    "row_fill_8",
    "costly_activation",
    "log_tensors",
    "log_run",
    "log_runs",
    "log_innermost",
    "log_broadcast",
    "log_block_bytes",
    "log_planes",
    "rows_fill_8",
    "columns_fill_8",
    "log_scratch",
    "bytes_in_l1",
    "bytes_in_l2",
    "bytes_in_l3",
    "weights_in_l2",
    "log_spilled_l1",
    "log_spilled_l2",
    "log_spilled_l3",
)
FEATURE_NAMES = (
    *_GENERAL,
    *(f"log_{name}" for name in WORK),
    *(f"algorithm_{name}" for name in ALGORITHMS),
    *(f"route_{name}" for name in ROUTES),
)
"""Names of the columns of `feature_matrix`, in order. `log_` is the natural logarithm of a count of at least 1 (0 for
none); a `fill` is the share of a tile of that width which carries something; `..._in_l1` is how often bytes fit that
cache, a logarithm between -3 and 3; `spilled` are the bytes where they do not. `run` is the stretch of elements that a
kernel handles in one go (copies, normalises or reduces), `broadcast` how many outputs share the smallest input."""

SIZE_FEATURES = ("log_macs", "log_bytes", "log_input_elements", "log_output_elements", "log_weights", "log_reduction")
"""The columns that say how large an operator is: the fitted range, and what makes operators near-identical."""

WAYS = (*(f"algorithm_{name}" for name in ALGORITHMS), *(f"route_{name}" for name in ROUTES))
"""The columns that say by which way a kernel computes; at most one of them is 1."""

RANGE_FEATURES = (
    *SIZE_FEATURES,
    "log_output_bytes",
    "log_in_channels",
    "log_out_channels",
    "log_plane",
    "log_output_plane",
    "kernel_height",
    "kernel_width",
    "stride",
    "dilation",
    "log_groups",
    "residual",
    "costly_activation",
    "log_tensors",
    "log_run",
    "log_broadcast",
    *WAYS,
)
"""The columns whose fitted range an operator must lie in, or its price is an extrapolation."""

_INDEX = {name: column for column, name in enumerate(FEATURE_NAMES)}
_FOLDED = ("none", "relu")
_COSTLY = ("sigmoid", "hardswish", "hardsigmoid", "tanh", "leakyrelu")


def column(name: str) -> int:
    """Position of a feature in `FEATURE_NAMES`."""
    return _INDEX[name]


def way_of(features: NDArray[np.float64]) -> NDArray[np.int64]:
    """1 + the index in `WAYS` of how each operator is computed, 0 where that is not told apart: [operators]."""
    ways = features[:, [_INDEX[name] for name in WAYS]]
    found: NDArray[np.int64] = np.where(ways.max(axis=1, initial=0.0) > 0.5, ways.argmax(axis=1) + 1, 0)
    return found


def family(op: Operator) -> str:
    """Operators that one predictor can describe: `conv.dense`, `conv.depthwise`, `conv.grouped`, `gemm`,
    `pool.<function>`, `elementwise.<function>`, `boundary.<function>`, `node.<type>`, the last with what makes a node
    of a type another kernel: `node.Add.scalar`, `node.ReduceMean.rows`, `node.Resize.linear`. Pools whose channels fill
    the runtime's blocks are other kernels too (`pool.max.blocked`)."""
    if isinstance(op, Conv):
        return f"conv.{'depthwise' if op.depthwise else 'grouped' if op.groups > 1 else 'dense'}"
    if isinstance(op, Gemm):
        return op.kind
    if isinstance(op, Node):
        return ".".join(filter(None, ("node", op.op_type, _variant(op))))
    if isinstance(op, Pool) and not op.channels_in % _LEAST_BLOCK:
        return f"pool.{op.function}.blocked"
    return f"{op.kind}.{op.function}"


_LEAST_BLOCK = 8
_BROADCASTING = ("Add", "Mul", "Sub", "Div", "QLinearAdd", "QLinearMul")


@lru_cache(maxsize=65536)
def _variant(op: Node) -> str:
    """What, besides its type, decides which loops a node runs; empty where nothing does."""
    reads, out = op.reads, op.writes[0].shape
    if op.op_type in ("Resize", "Upsample"):
        return str(json.loads(op.attributes).get("mode", "nearest"))
    if op.op_type == "Pow" and len(reads) > 1:
        return f"to_{reads[1].values}" if reads[1].values else ""
    if op.op_type.startswith("Reduce"):
        rank = len(reads[0].shape)
        given = json.loads(op.attributes).get("axes") or (reads[1].values.split(",") if len(reads) > 1 else ())
        axes = sorted(int(float(axis)) % max(rank, 1) for axis in given if axis != "")
        if rank - 1 not in axes:
            return "columns" if axes else "all"
        return "rows" if len(axes) == 1 else "planes"
    if op.op_type in _BROADCASTING:
        operands = [tensor.shape for tensor in (reads[0::3] if op.op_type.startswith("QLinear") else reads)[:2]]
        other = min(operands, key=math.prod)
        if math.prod(other) == 1:
            return "scalar"
        if other == out:
            return "same"
        return "channels" if other[-1] == 1 else "rows"
    return ""


_SIZES = (
    "batch",
    "in_channels",
    "out_channels",
    "groups",
    "height",
    "width",
    "kernel_height",
    "kernel_width",
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
    "scratch",
    "route",
    "shape",
    "constant",
)
"""Integers taken from each operator; everything else follows from them. `shape`: 1 a convolution, 2 a product; bytes
are 0 where the precision decides."""

_NOTHING = {"pad_top", "pad_left", "padding", "costly", "clipped", "residual", "weights", "parameters", "macs"}
_NOTHING |= {"read_bytes", "write_bytes", "block", "rows", "columns", "planes", "scratch", "route", "shape"}
_DEFAULT = {name: 0 if name in _NOTHING else 1 for name in _SIZES}


@lru_cache(maxsize=65536)
def _sizes(op: Operator) -> tuple[int, ...]:
    """`_SIZES` of an operator, in order."""
    if isinstance(op, Conv):
        own = _convolution_sizes(op)
    elif isinstance(op, Gemm):
        own = {
            "in_channels": op.k,
            "out_channels": op.n,
            "height": op.m,
            "out_height": op.m,
            "costly": op.activation in _COSTLY,
            "clipped": op.activation == "clip",
            "shape": 2,
            "run": op.n,
        }
    elif isinstance(op, Pool):
        own = _pool_sizes(op)
    elif isinstance(op, Node):
        own = _node_sizes(op)
    else:
        own = _tensor_sizes(op.shape)
        if isinstance(op, Boundary):
            own |= {"read_bytes": 4 * op.input_elements} if op.function == "quantize" else {}
            own |= {"write_bytes": 4 * op.output_elements} if op.function == "dequantize" else {}
            if op.function == "transpose":
                own |= _transpose_sizes(op.shape, op.permutation)
    if not isinstance(op, (Conv, Node)):
        own |= {"weights": op.weights, "parameters": op.channels, "macs": op.macs}
        own |= {"input_elements": op.input_elements, "output_elements": op.output_elements}
        own |= {"tensors": 2 + (op.input_elements > op.output_elements)}
        own.setdefault("smallest", op.output_elements)
    return tuple(int(own.get(name, default)) for name, default in _DEFAULT.items())


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
        "stride_height": op.stride[0],
        "stride_width": op.stride[1],
        "dilation_height": op.dilation[0],
        "dilation_width": op.dilation[1],
        "pad_top": op.pads[0],
        "pad_left": op.pads[1],
        "padding": sum(op.pads),
        "out_height": out_height,
        "out_width": out_width,
        "costly": op.activation in _COSTLY,
        "clipped": op.activation == "clip",
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


def _pool_sizes(op: Pool) -> dict[str, int]:
    return {
        "batch": op.batch,
        "in_channels": op.channels_in,
        "out_channels": op.channels_in,
        "height": op.height,
        "width": op.width,
        "kernel_height": op.kernel[0],
        "kernel_width": op.kernel[1],
        "stride_height": op.stride[0],
        "stride_width": op.stride[1],
        "pad_top": op.pads[0],
        "pad_left": op.pads[1],
        "padding": sum(op.pads),
        "out_height": op.output_height,
        "out_width": op.output_width,
        "run": op.output_width,
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
        return {"route": 0, "block": block, "rows": 1, "columns": 1, "planes": 1}
    # `moved[i]` is where the i-th axis of the input goes; the innermost of them meets the innermost of the output.
    rows, columns = sizes[moved[-1]], sizes[len(moved) - 1]
    leading = next((place for place, axis in enumerate(moved) if axis != place), 0)
    cycle = moved[leading:]
    outer, inner = (len(groups[place]) for place in (cycle[0], cycle[-1]))
    route = 3 if len(cycle) != 2 or min(outer, inner) > 1 else 1 if inner > 1 else 2
    planes = math.prod(sizes) // (rows * columns * block)
    return {"route": route, "block": block, "rows": rows, "columns": columns, "planes": planes, "run": block}


def _node_sizes(op: Node) -> dict[str, int]:
    """Of a general node: the tensors it streams, and the stretch along the axis that its attributes name."""
    streams = [tensor for tensor in op.reads if not tensor.constant and tensor.shape]
    written = max(op.writes, key=lambda tensor: tensor.elements)
    first = max(streams, key=lambda tensor: tensor.elements, default=written)
    main = first if first.elements >= written.elements else written
    own = _tensor_sizes(main.shape)
    attributes: dict[str, Any] = json.loads(op.attributes)
    shape = first.shape if op.op_type not in ("Concat", "QLinearConcat") else written.shape
    axis = attributes.get("axis", -1)
    axes = attributes.get("axes", axis)
    axis = min((value % max(len(shape), 1) for value in axes), default=0) if isinstance(axes, list) else axis
    inside = math.prod(shape[axis % len(shape) :]) if shape else 1
    others = [tensor.elements for tensor in op.reads if tensor.shape and not tensor.values]
    kernel = attributes.get("kernel_shape", ())
    own |= {
        "run": inside,
        "tensors": len(streams) + len(op.writes),
        "smallest": min(others, default=1),
        "input_elements": op.input_elements,
        "output_elements": op.output_elements,
        "weights": op.weights,
        "macs": op.macs,
        "read_bytes": sum(tensor.bytes for tensor in op.reads if not tensor.constant),
        "write_bytes": sum(tensor.bytes for tensor in op.writes),
        "scratch": max(first.elements // max(written.elements, 1), written.elements // max(first.elements, 1)),
        "kernel_height": kernel[0] if kernel else attributes.get("size", 1),
        "kernel_width": kernel[1] if len(kernel) > 1 else 1,
    }
    if "MatMul" in op.op_type and len(written.shape) > 1:
        left, right = (tensor for tensor in op.reads if len(tensor.shape) > 1)
        own |= {
            "batch": math.prod(written.shape[:-2]),
            "in_channels": left.shape[-1],
            "out_channels": written.shape[-1],
            "height": 1,
            "width": 1,
            "out_height": written.shape[-2],
            "out_width": 1,
            "shape": 2,
            "constant": right.constant,
        }
    return own


def hardware_of(machine: Machine) -> Hardware:
    """What decides how kernels tile on the machine of a profile."""
    return Hardware.of(machine.features, machine.architecture, machine.cache_bytes)


def _log(counts: NDArray[Any]) -> NDArray[np.float64]:
    logarithms: NDArray[np.float64] = np.log(np.maximum(counts, 1.0))
    return logarithms


def _fill(sizes: NDArray[Any], tile: int) -> NDArray[np.float64]:
    share: NDArray[np.float64] = sizes / np.maximum(-(-sizes // tile) * tile, 1)
    return share


def _work(s: Columns, int8: NDArray[np.bool_], hardware: Hardware) -> tuple[Columns, NDArray[np.int64]]:
    """Counts of `WORK` and index in `ALGORITHMS` (-1 for neither convolution nor product) of all operators."""
    work = {name: np.zeros(len(int8), dtype=np.int64) for name in WORK}
    algorithm = np.full(len(int8), -1, dtype=np.int64)
    for shape, count in ((1, convolution_work), (2, product_work)):
        mask = s["shape"] == shape
        if mask.any():
            part, algorithm[mask] = count({name: sizes[mask] for name, sizes in s.items()}, int8[mask], hardware)
            for name, values in part.items():
                work[name][mask] = values
    return work, algorithm


def feature_matrix(ops: Iterable[tuple[Operator, Precision]], hardware: Hardware | None = None) -> NDArray[np.float64]:
    """The features of operators on the kernels of their (realised) precision: float64 [operators, features].

    `hardware` decides tiles and caches; None is a common core with 256-bit vectors.
    """
    pairs = list(ops)
    if not pairs:
        return np.zeros((0, len(FEATURE_NAMES)))
    hardware = hardware or Hardware()
    table = np.array([_sizes(op) for op, _ in pairs], dtype=np.int64).T
    s = dict(zip(_SIZES, table, strict=True))
    bits = {precision: (precision.weight_bits, precision.activation_bits) for precision in {pair[1] for pair in pairs}}
    weight_bits, activation_bits = np.array([bits[precision] for _, precision in pairs], dtype=np.int64).T
    kernels = [precision.kernel for _, precision in pairs]
    s["plain"] = np.array([kernel == "plain" for kernel in kernels], dtype=np.int64)
    s["signed"] = np.array([kernel.endswith("s8") for kernel in kernels], dtype=np.int64)
    int8 = activation_bits == 8
    # Requantising clips for nothing; a float kernel folds a ReLU, everything else is a pass of its own.
    s["activation"] = s["costly"] | (s["clipped"] & ~int8)
    work, algorithm = _work(s, int8, hardware)
    features = _general(s, weight_bits, activation_bits, hardware)
    features |= {f"log_{name}": _log(values) for name, values in work.items()}
    features |= {f"algorithm_{name}": algorithm == index for index, name in enumerate(ALGORITHMS)}
    moves = s["planes"] > 0
    features |= {f"route_{name}": moves & (s["route"] == index) for index, name in enumerate(ROUTES)}
    return np.column_stack([features[name] for name in FEATURE_NAMES]).astype(np.float64)


def _general(
    s: Columns, weight_bits: NDArray[np.int64], activation_bits: NDArray[np.int64], hardware: Hardware
) -> dict[str, NDArray[Any]]:
    """The columns of `_GENERAL`."""
    read = np.where(s["read_bytes"] > 0, s["read_bytes"], s["input_elements"] * activation_bits // 8)
    written = np.where(s["write_bytes"] > 0, s["write_bytes"], s["output_elements"] * activation_bits // 8)
    stored = -(-s["weights"] * weight_bits // 8) + s["parameters"] * np.where(weight_bits == 32, 4, 8)
    moved = read + written + stored
    plane, out_plane = s["height"] * s["width"], s["out_height"] * s["out_width"]
    window = s["kernel_height"] * s["kernel_width"]
    taken, made = s["in_channels"] // s["groups"], s["out_channels"] // s["groups"]
    depthwise = (s["shape"] == 1) & (s["groups"] > 1) & (taken == 1)
    filled = np.where(depthwise, s["out_channels"], made)
    elements = np.maximum(s["input_elements"], s["output_elements"])
    reduction = np.where(s["macs"] > 0, s["macs"] // np.maximum(s["output_elements"], 1), window)

    def tiled(tile: int) -> NDArray[np.float64]:
        """Logarithm of the multiply-accumulates when the channels are filled up to whole tiles."""
        return np.where(s["macs"] > 0, _log(s["macs"]) - np.log(_fill(filled, tile)), 0.0)

    caches = {"l1": hardware.l1, "l2": hardware.l2, "l3": hardware.l3}
    return {
        "log_macs": _log(s["macs"]),
        "log_macs_tiled_8": tiled(8),
        "log_macs_tiled_16": tiled(16),
        "log_bytes": _log(moved),
        "log_read_bytes": _log(read),
        "log_output_bytes": _log(written),
        "log_weight_bytes": _log(stored),
        "log_input_elements": _log(s["input_elements"]),
        "log_output_elements": _log(s["output_elements"]),
        "log_weights": _log(s["weights"]),
        "log_intensity": _log(np.maximum(s["macs"], s["output_elements"])) - _log(moved),
        "log_reduction": _log(reduction),
        "log_window_elements": _log(s["output_elements"] * window),
        "log_in_channels": _log(s["in_channels"]),
        "log_out_channels": _log(s["out_channels"]),
        "log_plane": _log(plane),
        "log_output_plane": _log(out_plane),
        "log_output_width": _log(s["out_width"]),
        "kernel_height": np.minimum(s["kernel_height"], 16),
        "kernel_width": np.minimum(s["kernel_width"], 16),
        "stride": s["stride_height"] * s["stride_width"],
        "dilation": s["dilation_height"] * s["dilation_width"],
        "log_groups": _log(s["groups"]),
        "depthwise": depthwise,
        "padded": s["padding"] > 0,
        "residual": s["residual"],
        "in_fill_8": _fill(taken, 8),
        "out_fill_8": _fill(filled, 8),
        "out_fill_16": _fill(filled, 16),
        "row_fill_8": _fill(s["out_width"], 8),
        "costly_activation": s["costly"],
        "log_tensors": _log(s["tensors"]),
        "log_run": _log(s["run"]),
        "log_runs": _log(elements // np.maximum(s["run"], 1)),
        "log_innermost": _log(np.where(s["width"] > 1, s["width"], s["in_channels"])),
        "log_broadcast": _log(s["output_elements"] // np.maximum(s["smallest"], 1)),
        "log_block_bytes": _log(s["block"] * activation_bits // 8),
        "log_planes": _log(s["planes"]),
        "rows_fill_8": _fill(s["rows"], 8),
        "columns_fill_8": _fill(s["columns"], 8),
        "log_scratch": _log(s["scratch"]),
        **{f"bytes_in_{name}": _fits(moved, size) for name, size in caches.items()},
        "weights_in_l2": _fits(stored, hardware.l2),
        **{f"log_spilled_{name}": _log(moved * (moved > size)) for name, size in caches.items()},
    }


def _fits(stored: NDArray[np.int64], cache: int) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.clip(math.log(max(cache, 1)) - _log(stored), -3.0, 3.0)
    return ratio
