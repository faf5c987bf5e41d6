"""What a predictor sees of an operator: one function, for fitting and for predicting.

Predictors are fitted per (family, realised precision), so a row needs no one-hot codes of kinds. It holds sizes and
geometry; how the innermost axes lie in memory; what fits which cache; and the counts of `hwcost.tiling`, how many tiles
and calls a kernel takes. Sizes are natural logarithms, since latency spans five decades.
"""

import json
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwcost.hardware import Hardware, spilled
from hwcost.ops import Conv, Gemm, Node, Operator, Pool, Precision
from hwcost.profiles import Int8Form, Machine
from hwcost.sizes import ROUTES, SIZES, doubles, operands, reduced_axes, sizes, sound, stepped_axis, turned_softmax
from hwcost.tiling import ALGORITHMS, WORK, Columns, convolution_work, product_work

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
    "log_run_rests",
    "log_innermost",
    "log_broadcast",
    "log_block_bytes",
    "log_planes",
    "rows_fill_8",
    "columns_fill_8",
    "log_scratch",
    "log_tap_positions",
    "log_row_calls",
    "log_hard",
    "log_costly",
    "log_whole_blocks",
    "log_block_rests",
    "log_aliased_reads",
    "log_aliased_writes",
    "log_evicted_rows_l1",
    "log_evicted_rows_l2",
    "log_evicted_columns_l1",
    "log_evicted_columns_l2",
    "log_rest_positions",
    "log_evicted_rests",
    "log_copied_blocks",
    "log_forgotten_branches",
    "read_alignment",
    "write_alignment",
    "bytes_in_l1",
    "bytes_in_l2",
    "bytes_in_l3",
    "weights_in_l2",
    "log_spilled_l1",
    "log_spilled_l2",
    "log_spilled_l3",
    "log_spilled_half_l3",
    "log_spilled_quarter_l3",
)
FEATURE_NAMES = (
    *_GENERAL,
    *(f"log_{name}" for name in WORK),
    *(f"algorithm_{name}" for name in ALGORITHMS),
    *(f"route_{name}" for name in ROUTES),
)
"""Names of the columns of `feature_matrix`, in order. `log_` is the natural logarithm of a count of at least 1 (0 for
none); a `fill` is the share of a tile of that width which carries something; `..._in_l1` is how often bytes fit that
cache, a logarithm between -3 and 3; `spilled` the bytes that it does not hold. `run` is the stretch of elements that a
kernel handles in one go (copies, normalises or reduces), `broadcast` how many outputs share the smallest input.
`evicted` are elements of a transpose whose cache lines are gone before the next elements of them are used: lines that
lie a power of two apart share few places of a cache. `aliased` reads do so in pages, and writes lie whole pages apart;
`rest_positions` and `evicted_rests` are those of channels that fill no block. `copied_blocks` are moved by a call each,
`forgotten_branches` more than a branch predictor remembers from one call to the next. `run_rests` are elements beyond
whole vectors, of nodes that take a small tensor again for every run of a large one."""

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
    "log_hard",
    "log_tensors",
    "log_run",
    "log_broadcast",
    *WAYS,
)
"""The columns whose fitted range an operator must lie in, or its price is an extrapolation."""

RISING = (
    "log_macs",
    "log_macs_tiled_8",
    "log_macs_tiled_16",
    "log_bytes",
    "log_read_bytes",
    "log_output_bytes",
    "log_weight_bytes",
    "log_reduction",
    "log_window_elements",
    "log_input_elements",
    "log_output_elements",
    "log_weights",
    "log_in_channels",
    "log_out_channels",
    "log_plane",
    "log_output_plane",
    "log_runs",
)
"""The columns of which more never takes less time while all others stay."""

_WAYS = 8
"""Of a cache's lines, so many may lie a power of two of bytes apart; what has twelve or sixteen is near enough."""
_LINE, _PAGE = 64, 4096  # bytes
_VECTOR = 16
"""Elements that a node's loop takes at once; what a run has beyond whole ones goes one by one."""
_REMEMBERED = 50_000
"""Branches that a branch predictor remembers all of; of eight times as many it remembers none."""

_INDEX = {name: column for column, name in enumerate(FEATURE_NAMES)}


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
    `pool.<function>`, `pool.average.whole`, `elementwise.<function>`, `boundary.<function>`, `node.<type>`, the last
    with what makes a node of a type another kernel: `node.arithmetic.scalar`, `node.ReduceMean.rows`,
    `node.Softmax.turned` (not over the last axis), `node.Slice.steps` (along it), `node.Resize.linear.last` (channels
    last), `node.Resize.nearest.doubled` (every pixel twice each way)."""
    if isinstance(op, Conv):
        return f"conv.{'depthwise' if op.depthwise else 'grouped' if op.groups > 1 else 'dense'}"
    if isinstance(op, Gemm):
        return op.kind
    if isinstance(op, Node):
        name = "arithmetic" if op.op_type in _ARITHMETIC else op.op_type
        return ".".join(filter(None, ("node", name, _variant(op))))
    if isinstance(op, Pool) and op.function == "average" and (op.output_height, op.output_width) == (1, 1):
        return "pool.average.whole"  # a window like the plane sums up in one loop
    return f"{op.kind}.{op.function}"


_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceSum")
"""Common enough that each way through a tensor has predictors of its own."""
_ARITHMETIC = ("Add", "Mul", "Sub", "Div")
"""One loop but for the instruction."""
_BROADCASTING = (*_ARITHMETIC, "PRelu", "QLinearAdd", "QLinearMul")


@lru_cache(maxsize=65536)
def _variant(op: Node) -> str:
    """What, besides its type, decides which loops a node runs; empty where nothing does."""
    with sound(op):
        return _loops(op)


def _loops(op: Node) -> str:
    reads, out = op.reads, op.writes[0].shape
    if op.op_type in ("Resize", "Upsample"):
        shape = reads[0].shape
        last = len(shape) > 2 and shape[-1] == out[-1] and shape[1] != out[1]
        doubled = ".doubled" if doubles(op) else ""
        return str(json.loads(op.attributes).get("mode", "nearest")) + (".last" if last else doubled)
    if op.op_type == "Pow" and len(reads) > 1:
        return f"to_{reads[1].values}" if reads[1].values in ("2", "3") else ""  # others all go through pow()
    if op.op_type == "Attention":
        return "" if op.domain else "alone"  # ONNX's, without a projection
    if turned_softmax(op):
        return "turned"
    if op.op_type == "ConvInteger":
        return reads[1].dtype  # signed weights have a kernel of their own
    if op.op_type == "Slice":
        return "steps" if stepped_axis(op) == len(reads[0].shape) - 1 else ""  # one element at a time
    if op.op_type in _REDUCTIONS:
        axes, shape = reduced_axes(op), reads[0].shape
        if not axes:
            return "all"
        if axes[-1] < len(shape) - 1:
            return "middle" if math.prod(shape[: axes[0]]) > 1 else "columns"
        return "rows" if len(axes) == 1 else "planes"
    if op.op_type in _BROADCASTING:
        other = min((tensor.shape for tensor in operands(op)[:2]), key=math.prod)
        if math.prod(other) == 1:
            return "scalar"
        if other == out:
            return "same"
        return "channels" if other[-1] == 1 else "rows"
    return ""


def hardware_of(machine: Machine, int8_form: Int8Form) -> Hardware:
    """What decides how kernels tile on the machine of a profile."""
    return Hardware.of(machine.features, machine.architecture, machine.cache_bytes, int8_form)


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
    pools = (s["shape"] == 3) & (int8 | (s["blocked"] > 0))
    s = s | {"groups": np.where(pools, s["in_channels"], s["groups"]), "signed": s["signed"] * (s["shape"] != 3)}
    for mask, count in (
        (s["shape"] == 1, convolution_work),
        (s["shape"] == 2, product_work),
        (pools, convolution_work),
    ):
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
    table = np.array([sizes(op) for op, _ in pairs], dtype=np.int64).T
    s = dict(zip(SIZES, table, strict=True))
    bits = {precision: (precision.weight_bits, precision.activation_bits) for precision in {pair[1] for pair in pairs}}
    weight_bits, activation_bits = np.array([bits[precision] for _, precision in pairs], dtype=np.int64).T
    kernels = [precision.kernel for _, precision in pairs]
    s["plain"] = np.array([kernel == "plain" for kernel in kernels], dtype=np.int64)
    forms = [kernel or hardware.int8_form for kernel in kernels]
    s["signed"] = np.array([form.endswith("s8") for form in forms], dtype=np.int64)
    s["signed_input"] = np.array([form.startswith("s8") for form in forms], dtype=np.int64)
    int8 = activation_bits == 8
    s["blocked"] = (s["shape"] == 3) & ~int8 & (s["in_channels"] % hardware.lanes == 0) & hardware.blocked
    # Requantising clips for nothing; a float kernel folds a ReLU, everything else is a pass of its own.
    s["activation"] = s["costly"] | s["hard"] | (s["clipped"] & ~int8)
    work, algorithm = _work(s, int8, hardware)
    features = _general(s, weight_bits, activation_bits, hardware)
    features |= {f"log_{name}": _log(values) for name, values in work.items()}
    features |= {f"algorithm_{name}": algorithm == index for index, name in enumerate(ALGORITHMS)}
    features |= {f"route_{name}": s["route"] == index + 1 for index, name in enumerate(ROUTES)}
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
    inside = s["taps_height"] * s["taps_width"]
    taken, made = s["in_channels"] // s["groups"], s["out_channels"] // s["groups"]
    depthwise = (s["shape"] == 1) & (s["groups"] > 1) & (taken == 1)
    filled = np.where(depthwise, s["out_channels"], made)
    elements = np.maximum(s["input_elements"], s["output_elements"])
    windows = (s["shape"] >= 3) & (s["blocked"] == 0)  # over one channel after the other
    reduction = np.where(s["macs"] > 0, s["macs"] // np.maximum(s["output_elements"], 1), window)

    def tiled(tile: int) -> NDArray[np.float64]:
        """Logarithm of the multiply-accumulates when the channels are filled up to whole tiles."""
        return np.where(s["macs"] > 0, _log(s["macs"]) - np.log(_fill(filled, tile)), 0.0)

    element = np.maximum(activation_bits // 8, 1) * np.maximum(s["block"], 1)
    turned = s["planes"] * s["rows"] * s["columns"] * s["block"]
    rests = np.where(s["rest"] > 0, s["output_elements"] - turned, 0)
    moves = (s["planes"] + s["rest"] > 0) & (s["block"] == 1)
    whole = np.where(moves, (s["rows"] // 8) * (s["columns"] // 8) * s["planes"], 0)
    read_step, write_step = (np.gcd(s[name] * element, _PAGE) for name in ("rows", "columns"))
    copied = (s["planes"] > 0) & ~np.isin(element, (1, 2, 4, 8))

    def lost(lines: NDArray[np.int64], step: str, cache: int) -> NDArray[np.float64]:
        """Share of so many `lines`, as far apart as `step` is long and walked in turn, that is lost before they come up
        again: all where more share a place than it has ways (what is kept longest goes first), with what is written
        in between, 8 bytes a line; places come again after a power of two of bytes."""
        length = s[step] * element
        period = 2 ** max(int(math.log2(max(cache, _WAYS) / _WAYS)), 0)
        apart = np.where(length < _LINE, length, np.maximum(np.gcd(length, period), _LINE))
        share: NDArray[np.float64] = np.clip((lines * (apart + 8) - cache) / period, 0.0, 1.0)
        return share

    def evicted(lines: str, step: str, cache: int) -> NDArray[np.float64]:
        """Elements of transposes whose lines are lost; half a line is there again when its elements are moved."""
        late: NDArray[np.float64] = np.clip(2 * s[step] * element / _LINE - 1, 0.0, 1.0)
        return turned * lost(s[lines], step, cache) * late

    read_again = evicted("columns", "rows", hardware.l1)
    # What is read takes a place now and then, and what it pushes out comes back in the place of the next.
    rests_lost = sum(lost(s["rest"] + more, "rows", hardware.l1) for more in (-1, 0, 1)) / 3
    caches = {"l1": hardware.l1, "l2": hardware.l2, "l3": hardware.l3}
    shared = {"half_l3": hardware.l3 // 2, "quarter_l3": hardware.l3 // 4}  # neighbours leave so much of it
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
        "log_window_elements": _log(s["output_elements"] * np.where(inside > 0, inside / out_plane, window)),
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
        "log_run_rests": _log(s["repeated"] * (elements // np.maximum(s["run"], 1)) * (s["run"] % _VECTOR)),
        "log_innermost": _log(np.where(s["width"] > 1, s["width"], s["in_channels"])),
        "log_broadcast": _log(s["output_elements"] // np.maximum(s["smallest"], 1)),
        "log_block_bytes": _log(s["block"] * activation_bits // 8),
        "log_planes": _log(s["planes"]),
        "rows_fill_8": _fill(s["rows"], 8),
        "columns_fill_8": _fill(s["columns"], 8),
        "log_scratch": _log(s["scratch"]),
        "log_tap_positions": _log(s["batch"] * out_plane * window * windows),
        "log_row_calls": _log(s["batch"] * s["in_channels"] * s["out_height"] * s["kernel_height"] * windows),
        "log_hard": _log(s["hard"] * s["output_elements"]),
        "log_costly": _log(s["costly"] * s["output_elements"] + s["mapped"]),
        "log_whole_blocks": _log(whole),
        "log_block_rests": _log(np.where(moves, s["output_elements"] - 64 * whole, 0)),
        "log_aliased_reads": _log(read_again * (read_step >= _PAGE) * _log(s["columns"] * _PAGE / max(hardware.l1, 1))),
        "log_aliased_writes": _log(s["output_elements"] * (s["planes"] > 0) * (write_step >= _PAGE)),
        "log_evicted_rows_l1": _log(evicted("rows", "columns", hardware.l1)),
        "log_evicted_rows_l2": _log(evicted("rows", "columns", hardware.l2)),
        "log_evicted_columns_l1": _log(read_again),
        "log_evicted_columns_l2": _log(evicted("columns", "rows", hardware.l2)),
        "log_rest_positions": _log(rests // np.maximum(s["rest"], 1)),
        "log_evicted_rests": _log(rests * rests_lost),
        "log_copied_blocks": _log(copied * (s["output_elements"] // np.maximum(s["block"], 1))),
        "log_forgotten_branches": _log(s["surprises"] * np.clip(_log(s["branches"] / _REMEMBERED) / math.log(8), 0, 1)),
        "read_alignment": np.where(s["planes"] > 0, _log(read_step), 0.0),
        "write_alignment": np.where(s["planes"] > 0, _log(write_step), 0.0),
        **{f"bytes_in_{name}": _fits(moved, size) for name, size in caches.items()},
        "weights_in_l2": _fits(stored, hardware.l2),
        **{f"log_spilled_{name}": _log(moved * spilled(moved, size)) for name, size in (caches | shared).items()},
    }


def _fits(stored: NDArray[np.int64], cache: int) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.clip(math.log(max(cache, 1)) - _log(stored), -3.0, 3.0)
    return ratio
