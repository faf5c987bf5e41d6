"""How many tiles, steps and calls a convolution or a matrix product takes: what onnxruntime's CPU kernels loop over.

A kernel computes whole register tiles, so latency follows the tiles and not the multiply-accumulates: 17 channels cost
what 24 do, the last column of an odd row costs as much as three. The loops are those of onnxruntime (core/mlas/lib):
`snchwc.cpp` and `SconvKernelFma3` (float convolution in blocks of channels), `sgemm.cpp` and `convolve.cpp` (float
products, unfolded input), `qlinearconv.cc`, `qgemm.h` and `qdwconv` (int8). Everything is vectorised over operators.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from hwcost.hardware import Hardware

Counts = NDArray[np.int64]
Columns = dict[str, Counts]

ALGORITHMS = ("channels_first", "pointwise", "direct", "depthwise", "product", "unfolded", "expanded", "indirect")
"""Blocked float kernels on an unblocked input (few channels), on 1x1 windows, on any window; depthwise; a matrix
product; the same on an unfolded input, in segments or (more filters than positions) as a whole; int8 kernels for signed
weights that read the input through pointers and requantise what they hold in registers."""

WORK = (
    "cycles",
    "multiplications",
    "latency_steps",
    "single_steps",
    "tiles",
    "stores",
    "calls",
    "taps",
    "single_taps",
    "skipped_taps",
    "filter_sets",
    "activated",
    "activation_calls",
    "packed",
    "packed_rows",
    "panels",
    "unfolded",
    "unfolded_runs",
    "strided",
    "strided_runs",
    "remainders",
    "masked_stores",
    "tasks",
    "weights_read",
    "weights_again_l1",
    "weights_again_l2",
    "inputs_again",
    "inputs_again_l1",
    "inputs_again_l2",
    "outputs_again_l1",
    "outputs_again_l2",
)
"""What is counted. `cycles`: of a perfect pipeline; `multiplications` and `latency_steps`: its two bounds apart.
`..._again_l1`, `..._l2`: bytes read once more that do not fit the first or second cache."""


def _up(count: Counts, unit: Counts | int) -> Counts:
    """Quotient rounded up."""
    return -(-count // unit)


def _interior(size: Counts, kernel: Counts, stride: Counts, dilation: Counts, pad: Counts, out: Counts) -> Counts:
    """Outputs along one axis whose whole window is taken to lie on input (MlasNchwcPrepareWorkBlock)."""
    span = dilation * (kernel - 1) + 1
    whole = np.where(size >= span, (size - span) // stride + 1, 0)
    with_left = np.where(size + pad >= span, (size + pad - span) // stride + 1, out)
    return np.clip(np.where((with_left == whole) & (pad > 0), whole - 1, whole), 0, out)


def _blocked_algorithm(s: Columns, hardware: Hardware) -> Counts:
    """Index in `ALGORITHMS` of a float convolution (NchwcTransformer; MlasConvPrepare)."""
    block = hardware.lanes
    taken, made = s["in_channels"] // s["groups"], s["out_channels"] // s["groups"]
    grouped = s["groups"] > 1
    in_place = (s["kernel_height"] == 1) & (s["kernel_width"] == 1) & (s["padding"] == 0)
    usable = hardware.blocked & (s["plain"] == 0)
    depthwise = usable & grouped & (taken == 1) & (made == 1) & (s["out_channels"] % 4 == 0)
    first = usable & ~grouped & (taken < block)
    blocked = usable & ~depthwise & ~first
    blocked &= np.where(grouped, (taken % block == 0) & (made % block == 0), taken % 4 == 0)
    product = in_place & (s["stride_height"] == 1) & (s["stride_width"] == 1)
    expanded = made > s["out_height"] * s["out_width"]
    # On Arm a kernel for 3x3 windows reads their rows as they are (sconv_nchw_depthwise_multiplier_1).
    window = (s["kernel_height"], s["kernel_width"], s["stride_height"] * s["stride_width"], s["dilation_height"])
    rows = grouped & (taken == 1) & (made == 1) & np.all(np.array(window).T == (3, 3, 1, 1), axis=1)
    rows &= (not hardware.blocked) & (np.maximum(s["pad_left"], s["pad_top"]) <= 1)
    return np.select([first, blocked & in_place, blocked, depthwise | rows, product, ~expanded], [0, 1, 2, 3, 4, 5], 6)


def _float_rows(s: Columns) -> dict[str, Counts]:
    """Counts of the depthwise kernel that reads rows: four neighbouring outputs at a time, the ends one by one."""
    rows = s["batch"] * s["out_channels"] * s["out_height"]
    inner = np.maximum(s["out_width"] - 2, 0)
    fours, ends = rows * (inner // 4), rows * (inner % 4 + 2)
    return {
        "cycles": 9 * fours,
        "tiles": fours,
        "remainders": ends,
        "calls": rows,
        "filter_sets": s["batch"] * s["out_channels"],
        "activated": s["activation"] * rows * s["out_width"],
    }


def _laid_down(s: Columns) -> Columns:
    """Upright lines lying: a kernel goes along the one axis that there is, where it is neither padded nor strided."""
    upright = (s["width"] == 1) & (s["kernel_width"] == 1) & (s["padding"] == 0) & (s["stride_height"] == 1)
    pairs = [(name, name.replace("height", "width")) for name in s if "height" in name]
    turned = {one: np.where(upright, s[two], s[one]) for pair in pairs for one, two in (pair, pair[::-1])}
    return {**s, **turned}


def _float_blocked(s: Columns, algorithm: Counts, hardware: Hardware) -> dict[str, Counts]:
    """Counts of the kernels in blocks of channels: sets of four blocks of filters, rows of three outputs."""
    s = _laid_down(s)
    block, positions, filters, latency = hardware.lanes, hardware.positions, 4, 4
    unblocked, pointwise, depthwise = algorithm == 0, algorithm == 1, algorithm == 3
    taken, made = s["in_channels"] // s["groups"], s["out_channels"] // s["groups"]
    blocks = np.where(depthwise, 1, _up(made, block))
    repeats = s["batch"] * np.where(depthwise, _up(s["out_channels"], block), s["groups"])
    plane = s["out_height"] * s["out_width"]
    axis = (s[name] for name in ("width", "kernel_width", "stride_width", "dilation_width", "pad_left", "out_width"))
    one_line = pointwise & (s["stride_height"] == 1) & (s["stride_width"] == 1)
    rows, width = np.where(one_line, 1, s["out_height"]), np.where(one_line, plane, s["out_width"])
    rows_taps = np.where(one_line, 1, s["taps_height"])
    columns_taps = np.where(one_line, plane, s["taps_width"])
    inner = np.where(pointwise, width, _interior(*axis))
    full, rest = inner // positions, inner % positions
    three = (rest >= 3) * 1 if positions > 3 else np.zeros_like(rest)
    two = (rest - 3 * three) // 2
    single = width - full * positions - three * 3 - two * 2
    channels = np.where(depthwise, 1, np.where(unblocked, taken, _up(taken, block)))
    passes = np.where(pointwise, _up(taken, 128), channels)  # over the outputs
    deep = np.where(unblocked | depthwise, 1, block)  # steps of one tap
    steps = np.where(pointwise, 1, passes) * deep * np.where(pointwise, channels, 1)
    kernel_width = s["kernel_width"]
    full_steps, three_steps, two_steps = (rows_taps * kernel_width * count * steps for count in (full, three, two))
    left = np.maximum(columns_taps - (full * positions + three * 3 + two * 2) * kernel_width, 0)
    single_steps = rows_taps * left * steps
    sets, rest = blocks // filters, blocks % filters

    def over_sets(count: Counts, weight: int = 0) -> Counts:
        """Summed over the filter sets; each counts `weight` more per block of filters beyond none."""
        whole, part = (count * filters, count * rest) if weight else (count, np.where(rest > 0, count, 0))
        return repeats * (sets * whole + part)

    def bound(f: Counts | int) -> Counts:
        cycles: Counts = (
            full_steps * np.maximum(2 * latency, positions * f)
            + three_steps * np.maximum(2 * latency, 3 * f)
            + two_steps * np.maximum(2 * latency, 2 * f)
            + single_steps * np.maximum(2 * latency, f)
        ) // 2
        return cycles

    all_tiles = full + three + two + single
    all_steps = full_steps + three_steps + two_steps + single_steps
    taps = rows_taps * kernel_width * np.where(pointwise, 1, passes)
    set_count = repeats * _up(blocks, filters)
    filter_bytes = 4 * np.minimum(blocks, filters) * block * deep * s["kernel_height"] * kernel_width
    filter_bytes = filter_bytes * np.where(pointwise, _up(np.minimum(taken, 128), block), np.where(unblocked, taken, 1))
    plane_bytes = 4 * taken * s["height"] * s["width"]
    again = plane_bytes * set_count
    set_bytes = 4 * np.minimum(blocks, filters) * block * plane
    stores = over_sets(rows * width * passes, 1)
    filter_loads = over_sets(all_steps, 1) * 4 * block
    return {
        "cycles": repeats * (sets * bound(filters) + np.where(rest > 0, bound(rest), 0)),
        "multiplications": over_sets(full_steps * positions + three_steps * 3 + two_steps * 2 + single_steps, 1) // 2,
        "latency_steps": over_sets(all_steps) * latency,
        "single_steps": over_sets(single_steps) * latency,
        "tiles": over_sets(rows * all_tiles * passes),
        "stores": stores,
        "calls": over_sets(rows * passes),
        "taps": over_sets(all_tiles * taps),
        "single_taps": over_sets(single * taps),
        "skipped_taps": over_sets(np.maximum(single * taps - single_steps // np.maximum(deep, 1), 0)),
        "filter_sets": set_count,
        "activated": s["activation"] * s["batch"] * s["out_channels"] * plane,
        "activation_calls": s["activation"] * set_count * rows,
        "weights_read": 4
        * repeats
        // s["batch"]
        * blocks
        * block
        * deep
        * channels
        * s["kernel_height"]
        * kernel_width,
        "weights_again_l1": filter_loads * (filter_bytes > 0.8 * hardware.l1),
        "inputs_again": again,
        "inputs_again_l1": again * (plane_bytes > hardware.l1),
        "inputs_again_l2": again * (plane_bytes > hardware.l2),
        "outputs_again_l1": stores * (set_bytes > 0.7 * hardware.l1) * 4 * block,
        "outputs_again_l2": stores * (set_bytes > hardware.l2) * 4 * block,
    }


def _float_product(
    rows: Counts, columns: Counts, depth: Counts, count: Counts, packs: Counts, hardware: Hardware
) -> dict[str, Counts]:
    """Counts of `count` products [rows, depth] x [depth, columns]; `packs`: the right side is repacked every time."""
    tile, wide, latency = hardware.product_rows, hardware.product_columns, 4
    half = wide // 2
    rest = rows % tile
    # A rest is taken as three rows, then two or one (FgemmKernelFma3Common).
    height = (rows // tile) * tile + np.where(rest > 0, latency, 0) + np.where(rest > tile // 2, latency, 0)
    rest_columns = columns % wide
    halves = 2 * (columns // wide) + np.where(rest_columns > half, 2, np.where(rest_columns > 0, 1, 0))
    row_tiles, column_tiles, slices = _up(rows, tile), _up(columns, wide), _up(depth, 256)
    weight_bytes = 4 * rows * depth
    again = weight_bytes * _up(columns, 128) * count
    one = columns == 1
    return {
        "cycles": np.where(one, 0, height * halves * depth * count // 2),
        "multiplications": rows * columns * depth * count // wide,
        "latency_steps": np.where(one, 0, row_tiles * column_tiles * depth * count * latency),
        "single_steps": np.where((rest > 0) & ~one, column_tiles * depth * count * latency, 0),
        "tiles": row_tiles * column_tiles * count * slices,
        "stores": rows * _up(columns, hardware.lanes) * count * slices,
        "calls": count * slices * _up(columns, 128),
        "filter_sets": count,
        "packed": np.where(packs > 0, columns * depth * count, 0),
        "remainders": np.where(one, rows * depth * count, 0),
        "inputs_again": 4 * depth * columns * count,
        "inputs_again_l2": 4 * depth * columns * count * (4 * depth * columns > hardware.l2),
        "weights_again_l1": again * (weight_bytes > hardware.l1),
        "weights_again_l2": again * (weight_bytes * count > hardware.l2),
        "outputs_again_l2": 4 * rows * columns * count * (4 * rows * columns * count > hardware.l2),
    }


def _unfolded(s: Columns, depth: Counts, count: Counts) -> Counts:
    """Elements that unfolding copies: windows of [depth] at all positions, without what lies in the padding and is
    filled with zeros."""
    window = s["kernel_height"] * s["kernel_width"]
    return s["taps_height"] * s["taps_width"] * (depth // window) * count


def _float_convolution_product(s: Columns, algorithm: Counts, hardware: Hardware) -> dict[str, Counts]:
    """A float convolution that is not blocked: filters [made, depth] times the unfolded input [depth, positions]."""
    made = s["out_channels"] // s["groups"]
    plane = s["out_height"] * s["out_width"]
    depth = s["in_channels"] // s["groups"] * s["kernel_height"] * s["kernel_width"]
    count = s["groups"] * s["batch"]
    counts = _float_product(made, plane, depth, count, np.ones_like(made), hardware)
    unfolds = algorithm >= 5
    strided = s["stride_width"] > 1
    elements, runs = _unfolded(s, depth, count), s["out_height"] * depth * count
    return counts | {
        "unfolded": np.where(unfolds & ~strided, elements, 0),
        "unfolded_runs": np.where(unfolds & ~strided, runs, 0),
        "strided": np.where(unfolds & strided, elements, 0),
        "strided_runs": np.where(unfolds & strided, runs, 0),
        "taps": np.where(unfolds, depth * count, 0),
        "activated": s["activation"] * s["batch"] * s["out_channels"] * plane,
        "activation_calls": made * count,
        "weights_read": 4 * s["out_channels"] * depth,
    }


def _int8_product(
    rows: Counts, columns: Counts, depth: Counts, count: Counts, tasks: Counts, signed: Counts, hardware: Hardware
) -> dict[str, Counts]:
    """Counts of `count` int8 products, their rows split into `tasks`; `signed`: weights of the u8s8 kernels."""
    wide_vectors, short_vectors = hardware.lanes == 16, hardware.lanes == 8
    tile = np.where((signed > 0) & (not wide_vectors), 4, 6)  # QgemmU8X8KernelAvx2: six rows of pairs, four of quads
    pack = np.where(signed > 0, 4, 2)
    stride = _up(rows, tasks)
    last = rows - (tasks - 1) * stride
    wide, half, latency = 16, 8, 4 if wide_vectors else 3
    narrow = half if short_vectors else wide  # columns at most of a last tile that is no whole one
    rest = columns % wide
    if wide_vectors:  # QgemmU8X8KernelAvx512: three vectors of 16 columns, or the one or two that are left
        whole, part = columns // 48, _up(columns % 48, 16)

        def cycles(rows: Counts) -> Counts:
            left = rows % tile
            left_cycles = whole * np.maximum(latency, 3 * left) + (part > 0) * np.maximum(latency, part * left)
            return (rows // tile) * tile * (3 * whole + part) + np.where(left > 0, left_cycles, 0)

    else:
        halves = 2 * (columns // wide) + np.where(rest > half, 2, np.where(rest > 0, 1, 0))

        def cycles(rows: Counts) -> Counts:
            left = rows % tile
            return ((rows // tile) * tile + np.where(left > 0, np.maximum(latency, left), 0)) * halves // 2

    row_tiles = (tasks - 1) * _up(stride, tile) + _up(last, tile)
    panels = (tasks - 1) * _up(stride, 48) + _up(last, 48)  # PackedStrides: 48 rows, 256 columns, a depth of 384
    packs, slices, strips = _up(depth, pack), _up(depth, 384), _up(columns, 256)
    again = columns * depth * panels * count
    return {
        "cycles": ((tasks - 1) * cycles(stride) + cycles(last)) * packs * count,
        "multiplications": rows * columns * depth * count // 32,
        "latency_steps": row_tiles * _up(columns, 3 * wide if wide_vectors else wide) * packs * count,
        "single_steps": np.where((rest > 0) & (rest <= narrow), row_tiles * packs * count, 0),
        "tiles": row_tiles * _up(columns, wide) * count * slices,
        "stores": rows * _up(columns, 8) * count * slices,
        "masked_stores": rows * count * slices * ((columns % half > 0) & short_vectors),
        "packed": rows * depth * count * strips,
        "packed_rows": rows * count * strips * slices,
        "calls": tasks * count * slices * strips,
        "panels": panels * slices * strips * count,
        "filter_sets": columns * np.ones_like(rows),
        "weights_again_l1": again * (depth * np.minimum(columns, 256) > hardware.l1),
        "weights_again_l2": again * (columns * depth * count > hardware.l2),
    }


def _is_indirect(s: Columns, hardware: Hardware) -> NDArray[np.bool_]:
    """Which quantised convolutions run on the kernels for signed weights (MlasConvSymPackWSize)."""
    taken, made = s["in_channels"] // s["groups"], s["out_channels"] // s["groups"]
    arm = not hardware.blocked
    usable = (s["signed"] > 0) & (arm | (s["signed_input"] == 0))
    depthwise = (s["groups"] > 1) & (taken == 1) & (made == 1) & (s["groups"] % (8 if arm else 16) == 0)
    steps = {16: (4, 4, 16), 8: (4, 8, 16)}.get(hardware.lanes, (8, 8, 8))
    dense = (s["groups"] == 1) & (taken % steps[0] == 0) & (made % steps[1] == 0) & (made >= steps[2])
    if arm:  # others were slower there
        dense &= (s["kernel_height"] * s["kernel_width"] > 1) & (taken >= 64)
    found: NDArray[np.bool_] = usable & (depthwise | dense)
    return found


def _int8_tasks(s: Columns, unit: Counts, hardware: Hardware) -> tuple[Counts, Counts]:
    """Outputs of a task and the number of tasks, for one thread (ComputeOutputStride of qlinearconv.cc)."""
    taken, made = s["in_channels"] // s["groups"], s["out_channels"] // s["groups"]
    window, plane = s["kernel_height"] * s["kernel_width"], s["out_height"] * s["out_width"]
    depthwise = (s["groups"] > 1) & (taken == 1) & (made == 1)
    weights = np.where(depthwise, s["out_channels"] ** 2, made * taken) * window
    stride = np.maximum(unit, _up(_up(np.full_like(weights, 65536), weights), unit) * unit)
    most = hardware.int8_tasks
    stride = np.where(_up(plane, stride) > most, _up(_up(plane, most), unit) * unit, stride)
    stride = np.minimum(stride, plane)
    return stride, _up(plane, stride)


def _int8_indirect(s: Columns, hardware: Hardware) -> dict[str, Counts]:
    """Counts of the kernels for signed weights (MlasConvSym): tiles of some outputs by some vectors of channels, always
    computed whole; an output's inputs are found through a pointer for each place of the window."""
    outputs, channels = hardware.indirect_tile
    lanes = max(hardware.lanes, 8)
    depthwise = s["groups"] > 1
    unit = np.where(depthwise & (hardware.lanes == 4), 4, outputs)
    window, plane = s["kernel_height"] * s["kernel_width"], s["out_height"] * s["out_width"]
    stride, tasks = _int8_tasks(s, unit, hardware)
    last = plane - (tasks - 1) * stride
    made = s["out_channels"]
    blocks, vectors = _up(made, channels), _up(made, lanes)
    rows = s["batch"] * ((tasks - 1) * _up(stride, unit) + _up(last, unit))
    positions = s["batch"] * plane
    # A step multiplies four inputs of a channel, or one where each channel has its own.
    steps = window * np.where(depthwise, 1, _up(s["in_channels"], 4))
    filters = np.where(depthwise, 1, s["in_channels"]) * window
    again = rows * filters * np.where(depthwise, made, vectors * lanes)
    pointers = (window > 1) | (s["stride_height"] * s["stride_width"] > 1) | (s["padding"] > 0)
    return {
        "cycles": rows * steps * unit * vectors,
        "multiplications": positions * steps * made // lanes,
        "latency_steps": rows * steps * blocks,
        "single_steps": np.where(made % channels > 0, rows * steps, 0),
        "tiles": rows * vectors,
        "stores": positions * vectors,
        "calls": rows * blocks,
        "taps": rows * blocks * window,
        "unfolded": np.where(pointers, positions * window, 0),
        "unfolded_runs": np.where(pointers, positions * s["kernel_height"], 0),
        "tasks": tasks * s["batch"],
        "weights_read": made * filters,
        "weights_again_l1": again * (channels * filters > hardware.l1),
        "weights_again_l2": again * (channels * filters > hardware.l2),
        "inputs_again": positions * filters * np.where(depthwise, made, blocks),
        "inputs_again_l1": positions * filters * blocks * (240 * s["in_channels"] > hardware.l1) * ~depthwise,
        "remainders": np.where(made % lanes > 0, positions, 0),
        "filter_sets": made,  # a scale of its own each, computed in every call
    }


def _int8_convolution(s: Columns, algorithm: Counts, hardware: Hardware) -> dict[str, Counts]:
    """A quantised convolution, channels last: unfolded and multiplied in tasks of some positions, then requantised."""
    depthwise, unfolds = algorithm == 3, algorithm == 5
    taken, made = s["in_channels"] // s["groups"], s["out_channels"] // s["groups"]
    window, plane = s["kernel_height"] * s["kernel_width"], s["out_height"] * s["out_width"]
    depth, count = taken * window, s["groups"] * s["batch"]
    rows = np.where((s["signed"] > 0) & (hardware.lanes != 16), 4, 6)
    _, tasks = _int8_tasks(s, np.where(depthwise, 4, rows), hardware)
    counts = _int8_product(plane, made, depth, count, tasks, s["signed"], hardware)
    written = s["batch"] * s["out_channels"] * plane
    runs = s["kernel_height"] * np.where(s["dilation_width"] == 1, 1, s["kernel_width"])
    counts |= {
        "unfolded": np.where(unfolds, _unfolded(s, depth, count), 0),
        "unfolded_runs": np.where(unfolds, plane * runs * count, 0),
        "taps": np.where(unfolds, plane * window * count, 0),
        "remainders": plane * s["batch"] * (s["out_channels"] % 16 // 4 + s["out_channels"] % 4),
        "tasks": tasks * s["batch"],
        "filter_sets": s["out_channels"],
        "weights_read": s["out_channels"] * depth,
        "outputs_again_l1": 4 * written * (4 * written > hardware.l1),
        "outputs_again_l2": 4 * written * (4 * written > hardware.l2),
    }
    vectors, rest = s["out_channels"] // 16 + s["out_channels"] % 16 // 8, s["out_channels"] % 8
    positions = plane * s["batch"]
    own = {
        "cycles": positions * window * vectors,
        "multiplications": positions * window * s["out_channels"] // 16,
        "latency_steps": positions * rest,
        "single_steps": positions * window * rest,
        "tiles": positions * vectors,
        "taps": positions * window,
        "stores": positions * _up(s["out_channels"], 8),
        "packed": positions,
    }
    zero = np.zeros_like(plane)
    for name in ("packed_rows", "panels", "calls", "weights_again_l1", "weights_again_l2"):
        own[name] = zero
    return counts | {name: np.where(depthwise, value, counts[name]) for name, value in own.items()}


def convolution_work(s: Columns, int8: NDArray[np.bool_], hardware: Hardware) -> tuple[Columns, Counts]:
    """The counts of `WORK` and the index in `ALGORITHMS` of convolutions, each [operators].

    `s`: sizes by name, int64 [operators]; `activation` is 1 where it takes a pass of its own, `plain` 1 where weights
    are not laid out for the vector units, `signed` and `signed_input` 1 for signed int8 weights and activations.
    """
    taken = s["in_channels"] // s["groups"]
    whole = (s["kernel_height"] * s["kernel_width"] == 1) & (s["padding"] == 0)
    whole &= (s["stride_height"] == 1) & (s["stride_width"] == 1)
    depthwise = (s["groups"] > 1) & (taken == 1) & (s["out_channels"] == s["groups"])
    algorithm = np.where(int8, np.where(depthwise, 3, np.where(whole, 4, 5)), _blocked_algorithm(s, hardware))
    indirect = int8 & _is_indirect(s, hardware)
    algorithm = np.where(indirect, ALGORITHMS.index("indirect"), algorithm)
    work = {name: np.zeros_like(taken) for name in WORK}
    for mask, count in (
        (indirect, lambda s, _, hardware: _int8_indirect(s, hardware)),
        (int8 & ~indirect, _int8_convolution),
        (~int8 & (algorithm < 4) & hardware.blocked, _float_blocked),
        (~int8 & (algorithm == 3) & (not hardware.blocked), lambda s, *_: _float_rows(s)),
        (~int8 & (algorithm >= 4), _float_convolution_product),
    ):
        if mask.any():
            part = count({name: sizes[mask] for name, sizes in s.items()}, algorithm[mask], hardware)
            for name, values in part.items():
                work[name][mask] = values
    return work, algorithm


def product_work(s: Columns, int8: NDArray[np.bool_], hardware: Hardware) -> tuple[Columns, Counts]:
    """The same of matrix products: `out_height` rows, `in_channels` deep, `out_channels` wide, `batch` of them.

    `constant` is 1 where the right side is known beforehand and packed when the session loads.
    """
    rows, columns, depth, count = s["out_height"], s["out_channels"], s["in_channels"], s["batch"]
    work = {name: np.zeros_like(rows) for name in WORK}
    tasks = np.ones_like(rows)
    for mask, kernel in (
        (int8, partial(_int8_product, tasks=tasks[int8], signed=s["signed"][int8], hardware=hardware)),
        (~int8, partial(_float_product, packs=1 - s["constant"][~int8], hardware=hardware)),
    ):
        if mask.any():
            for name, values in kernel(rows[mask], columns[mask], depth[mask], count[mask]).items():
                work[name][mask] = values
    work["weights_read"] = columns * depth * np.where(int8, 1, 4) * count
    work["activated"] = s["activation"] * rows * columns * count
    return work, np.full_like(rows, ALGORITHMS.index("product"))
