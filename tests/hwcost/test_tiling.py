import math

import numpy as np
import pytest

from hwcost.features import FEATURE_NAMES, feature_matrix
from hwcost.hardware import Hardware
from hwcost.ops import FLOAT, INT8, PLAIN, Boundary, Conv, Gemm, Node, Operator, Pool, Precision
from hwcost.sizes import broadcast_span, valid_taps
from hwcost.tiling import ALGORITHMS

AVX512 = Hardware.of(("avx512f", "avx2"), "x86_64", {"L1d": 32768, "L2": 1048576})
VNNI = Hardware.of(("avx512f", "avx2", "avx512_vnni"), "x86_64", {"L1d": 32768, "L2": 1048576}, "u8s8")
NEON = Hardware.of(("asimd",), "aarch64", {"L1d": 32768, "L2": 1048576})


def _counts(op: Operator, precision: Precision, hardware: Hardware | None = None) -> dict[str, float]:
    row = dict(zip(FEATURE_NAMES, feature_matrix([(op, precision)], hardware)[0].tolist(), strict=True))
    return {name.removeprefix("log_"): math.exp(value) if value else 0.0 for name, value in row.items()}


def _algorithm(op: Operator, precision: Precision, hardware: Hardware | None = None) -> str:
    counts = _counts(op, precision, hardware)
    return next(name for name in ALGORITHMS if counts[f"algorithm_{name}"])


@pytest.mark.parametrize(
    ("op", "precision", "expected"),
    [
        (Conv.square(3, 32, 32, 3), FLOAT, "channels_first"),
        (Conv.square(16, 32, 32, 1), FLOAT, "pointwise"),
        (Conv.square(12, 32, 32, 3), FLOAT, "direct"),
        (Conv.square(24, 24, 32, 3, groups=24), FLOAT, "depthwise"),
        (Conv.square(24, 24, 32, 3, groups=24), INT8, "depthwise"),
        (Conv.square(18, 16, 32, 1), FLOAT, "product"),
        (Conv.square(18, 16, 32, 3), FLOAT, "unfolded"),
        (Conv.square(18, 32, 4, 3), FLOAT, "expanded"),
        (Conv.square(32, 32, 32, 3, groups=8), FLOAT, "unfolded"),
        (Conv.square(64, 64, 32, 3, groups=8), FLOAT, "direct"),
        (Conv.square(16, 32, 32, 1), INT8, "product"),
        (Conv.square(16, 32, 32, 1, stride=2), INT8, "unfolded"),
        (Conv.square(16, 32, 32, 1), PLAIN, "product"),
        (Gemm(1, 64, 10), FLOAT, "product"),
    ],
)
def test_the_algorithm_is_the_one_the_runtime_takes(op: Operator, precision: Precision, expected: str) -> None:
    assert _algorithm(op, precision) == expected


def test_wider_vectors_block_wider_and_arm_not_at_all() -> None:
    assert _algorithm(Conv.square(64, 64, 32, 3, groups=8), FLOAT, AVX512) == "unfolded"
    assert _algorithm(Conv.square(16, 32, 32, 3), FLOAT, AVX512) == "direct"
    assert _algorithm(Conv.square(16, 32, 32, 3), FLOAT, NEON) == "unfolded"
    assert NEON.l3 == 0 and NEON.lanes == 4


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (Conv.square(24, 24, 32, 3, groups=24), "depthwise"),
        (Conv.square(24, 24, 32, 3, stride=2, groups=24), "unfolded"),
        (Conv.square(24, 24, 32, 5, groups=24), "unfolded"),
        (Conv(24, 24, 32, 32, (3, 3), dilation=(2, 2), pads=(2, 2, 2, 2), groups=24), "unfolded"),
        (Conv(24, 48, 32, 32, (3, 3), pads=(1, 1, 1, 1), groups=24), "unfolded"),
    ],
)
def test_arm_reads_rows_of_some_depthwise_windows_and_unfolds_the_others(op: Conv, expected: str) -> None:
    assert _algorithm(op, FLOAT, NEON) == _algorithm(op, PLAIN, NEON) == expected
    counts = _counts(op, FLOAT, NEON)
    assert counts["cycles"] > 0 and (counts["unfolded"] + counts["strided"] > 0) == (expected == "unfolded")


def test_a_started_tile_costs_a_whole_one() -> None:
    cycles = [_counts(Conv.square(16, made, 12, 1), FLOAT)["cycles"] for made in (8, 9, 16, 32)]
    assert cycles[0] <= cycles[1] == pytest.approx(cycles[2])
    assert cycles[3] == pytest.approx(12 * 12 / 3 * 16 * 6)  # tiles of 3 x 32: six cycles of two multiplications a step
    int8 = [_counts(Conv.square(16, made, 12, 1), INT8)["cycles"] for made in (9, 16, 17, 24)]
    assert int8[0] == pytest.approx(int8[1]) and int8[2] == pytest.approx(int8[3])


def test_outputs_on_padding_are_taken_one_by_one() -> None:
    padded = Conv(16, 32, 9, 9, (3, 3), pads=(1, 1, 1, 1))
    bare = Conv(16, 32, 11, 11, (3, 3))
    assert padded.output_width == bare.output_width == 9
    # Two of nine outputs of a row lie on padding; of the other seven, three and three are tiles and one is single.
    assert _counts(padded, FLOAT)["tiles"] == pytest.approx(9 * 2 * (2 + 3))
    assert _counts(bare, FLOAT)["tiles"] == pytest.approx(9 * 2 * 3)
    assert _counts(bare, FLOAT)["skipped_taps"] == 0 < _counts(padded, FLOAT)["skipped_taps"]


def test_an_upright_line_without_pads_and_strides_is_laid_down() -> None:
    def work(op: Conv) -> dict[str, float]:
        counts = _counts(op, FLOAT, AVX512)
        return {name: counts[name] for name in ("cycles", "tiles", "single_steps", "calls", "taps")}

    assert work(Conv(256, 512, 512, 1, (5, 1))) == work(Conv(256, 512, 1, 512, (1, 5)))
    padded = Conv(256, 512, 512, 1, (5, 1), pads=(2, 0, 2, 0)), Conv(256, 512, 1, 512, (1, 5), pads=(0, 2, 0, 2))
    strided = Conv(256, 512, 512, 1, (5, 1), (2, 1)), Conv(256, 512, 1, 512, (1, 5), (1, 2))
    for upright, lying in (padded, strided):  # 1.8 times as long, one output at a time
        assert work(upright)["single_steps"] > 10 * work(lying)["single_steps"]


def test_a_recurrent_layer_is_a_product_of_a_row_at_every_step_and_one_of_all_inputs() -> None:
    def layer(steps: int, inputs: int, hidden: int, ways: int = 2) -> dict[str, float]:
        weights = [f"=float32[{ways},{4 * hidden},{size}]" for size in (inputs, hidden)]
        reads = (f"float32[{steps},1,{inputs}]", *weights, f"=float32[{ways},{8 * hidden}]")
        return _counts(Node("LSTM", reads, (f"float32[{steps},{ways},1,{hidden}]",), "{}", version=14), FLOAT, AVX512)

    product = _counts(Gemm(1, 64, 256), FLOAT, AVX512)
    assert layer(80, 512, 64)["cycles"] == pytest.approx(160 * product["cycles"])
    assert layer(80, 16, 64)["cycles"] == layer(80, 512, 64)["cycles"]
    assert layer(80, 512, 64)["costly"] - layer(80, 16, 64)["costly"] == pytest.approx(80 * 2 * 256 * 496)


def test_only_a_relu_is_folded_into_a_float_kernel() -> None:
    folded, clipped = (Conv.square(16, 32, 12, 3, activation=name) for name in ("relu", "clip"))
    assert _counts(folded, FLOAT)["activated"] == 0
    assert _counts(clipped, FLOAT)["activated"] == pytest.approx(clipped.output_elements)
    assert _counts(clipped, INT8)["activated"] == 0


def test_taps_are_counted_where_windows_lie_on_input() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        size, kernel, stride, dilation, pad = (int(generator.integers(1, high)) for high in (20, 6, 4, 3, 4))
        out = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        if out < 1:
            continue
        expected = sum(
            0 <= position * stride - pad + tap * dilation < size for position in range(out) for tap in range(kernel)
        )
        assert valid_taps(size, kernel, stride, dilation, pad, out) == expected


@pytest.mark.parametrize(
    ("op", "form", "hardware", "expected"),
    [
        (Conv.square(16, 32, 32, 3), "u8s8", VNNI, "indirect"),
        (Conv.square(16, 32, 32, 1), "u8s8", None, "indirect"),
        (Conv.square(16, 20, 32, 3), "u8s8", VNNI, "indirect"),
        (Conv.square(16, 20, 32, 3), "u8s8", None, "unfolded"),  # outputs in eights there
        (Conv.square(16, 12, 32, 3), "u8s8", VNNI, "unfolded"),
        (Conv.square(18, 32, 32, 1), "u8s8", VNNI, "product"),
        (Conv.square(16, 32, 32, 3), "u8u8", VNNI, "unfolded"),
        (Conv.square(16, 32, 32, 3), "s8s8", VNNI, "unfolded"),
        (Conv.square(16, 32, 32, 3, groups=2), "u8s8", VNNI, "unfolded"),
        (Conv.square(48, 48, 32, 3, groups=48), "u8s8", VNNI, "indirect"),
        (Conv.square(24, 24, 32, 3, groups=24), "u8s8", VNNI, "depthwise"),
        (Conv.square(64, 32, 32, 3), "s8s8", NEON, "indirect"),
        (Conv.square(64, 32, 32, 1), "s8s8", NEON, "product"),
        (Conv.square(32, 32, 32, 3), "s8s8", NEON, "unfolded"),
        (Conv.square(24, 24, 32, 3, groups=24), "s8s8", NEON, "indirect"),
    ],
)
def test_signed_weights_are_read_through_pointers_where_the_runtime_can(
    op: Operator, form: str, hardware: Hardware | None, expected: str
) -> None:
    assert _algorithm(op, Precision(8, 8, form), hardware) == expected


def test_the_usual_int8_kernel_is_the_devices() -> None:
    op = Conv.square(16, 32, 32, 3)
    named, usual = (feature_matrix([(op, Precision(8, 8, form))], VNNI) for form in ("u8s8", ""))
    assert (named == usual).all() and _algorithm(op, INT8, AVX512) == "unfolded"


def test_tiles_of_pointers_are_always_whole() -> None:
    op = Conv(16, 80, 5, 5, (3, 3))  # nine outputs: two rows of six; 80 channels: five vectors in two blocks
    counts = _counts(op, INT8, VNNI)
    assert counts["tiles"] == pytest.approx(2 * 5)
    assert counts["calls"] == pytest.approx(2 * 2)
    assert counts["cycles"] == pytest.approx(2 * 9 * 4 * 6 * 5)
    assert counts["unfolded"] == pytest.approx(9 * 9)


def test_lines_that_share_places_of_a_cache_are_evicted_all_at_once() -> None:
    def share(channels: int, side: int) -> float:
        transpose = Boundary("transpose", (1, channels, side, side), (0, 2, 3, 1))
        return _counts(transpose, INT8, VNNI)["evicted_columns_l1"] / transpose.output_elements

    assert share(4, 64) == share(60, 16) == share(64, 60) == 0
    places = VNNI.l1 // 4096  # 64 x 64 bytes apart, lines share the same few
    assert share(72, 48) == 0  # 2304 bytes apart: sixteen times as many
    assert share(places - 1, 64) == 0 and share(places + 2, 64) == pytest.approx(1)
    lines = VNNI.l1 // 64  # 28 x 28 bytes apart, they use all of the cache, with what is written in between
    assert share(lines * 7 // 8, 28) == 0 < share(lines * 15 // 16, 28) < 1 == pytest.approx(share(lines, 28))


def test_what_is_left_of_a_block_of_channels_is_turned_position_by_position() -> None:
    whole, rest, less = (Boundary("reorder_output", (1, channels, 32, 32)) for channels in (48, 44, 12))
    assert _counts(whole, FLOAT, VNNI)["rest_positions"] == _counts(whole, FLOAT, VNNI)["evicted_rests"] == 0
    for op in (rest, less):  # 12 lines in places for 8
        assert _counts(op, FLOAT, VNNI)["rest_positions"] == pytest.approx(32 * 32)
        assert _counts(op, FLOAT, VNNI)["evicted_rests"] == pytest.approx(12 * 32 * 32)
    apart = Boundary("reorder_output", (1, 12, 31, 32))
    assert _counts(apart, FLOAT, VNNI)["evicted_rests"] == 0


def test_a_hard_activation_is_a_pass_of_its_own_and_not_a_costly_one() -> None:
    hard, costly = (_counts(Conv.square(16, 32, 12, 3, activation=name), FLOAT) for name in ("hardswish", "sigmoid"))
    assert hard["activated"] == costly["activated"] == hard["hard"] == pytest.approx(32 * 12 * 12)
    assert hard["costly"] == costly["hard"] == 0


def test_padding_is_not_unfolded_and_no_place_of_a_window() -> None:
    line = Conv(8, 8, 2, 96, (5, 5), pads=(2, 2, 2, 2), groups=8)
    counts = _counts(line, PLAIN, VNNI)
    rows, columns = 2 + 2, 5 * 96 - 2 * (2 + 1)  # of five taps each
    assert counts["unfolded"] == pytest.approx(8 * rows * columns)
    pool = Pool("average", 24, 8, 8, (3, 3), (1, 1), (1, 1, 1, 1))
    assert _counts(pool, INT8, VNNI)["window_elements"] == pytest.approx(24 * (3 * 8 - 2) ** 2)


def test_short_blocks_are_copied_by_a_call_each() -> None:
    def copied(last: int) -> float:
        return _counts(Boundary("transpose", (1, 8, 6, last), (0, 2, 1, 3)), INT8, VNNI)["copied_blocks"]

    assert copied(9) == pytest.approx(48) and copied(8) == 0


def test_signed_weights_have_kernels_of_four_rows_without_wide_vectors() -> None:
    op = Conv.square(18, 16, 6, 1)  # 36 positions, one task
    usual, signed = (_counts(op, Precision(8, 8, kernel))["tiles"] for kernel in ("", "u8s8"))
    assert (usual, signed) == (pytest.approx(6), pytest.approx(9))


@pytest.mark.parametrize(
    ("large", "small", "span", "along"),
    [
        ((1, 280, 7, 7), (1, 280, 1, 1), 49, False),
        ((1, 280, 7, 7), (280, 1, 1), 49, False),
        ((1, 280, 7, 7), (), 280 * 49, False),
        ((1, 7, 7, 280), (280,), 280, True),
        ((1, 16, 7, 7), (16, 7, 7), 16 * 49, True),
        ((1, 280, 1, 1), (), 1, False),  # an axis of 1 that the number lacks repeats both
        ((1, 280, 1, 1), (1,), 1, False),
        ((1, 280, 1, 1), (1, 1, 1), 280, False),
        ((1, 280, 1, 4), (), 4, False),
        ((1, 280, 1, 64), (1, 1, 1, 1), 280 * 64, False),
        ((1, 280), (), 280, False),
    ],
)
def test_a_loop_over_two_shapes_runs_as_far_as_onnxruntime_joins_their_axes(
    large: tuple[int, ...], small: tuple[int, ...], span: int, along: bool
) -> None:
    assert broadcast_span(large, small) == (span, along)


def test_a_number_added_to_a_gate_is_added_one_by_one() -> None:
    def runs(number: str) -> float:
        gate = "float32[1,280,1,1]"
        return _counts(Node("Add", (gate, number), (gate,)), FLOAT)["runs"]

    assert runs("=float32[]") == pytest.approx(280) and runs("=float32[1,1,1,1]") == pytest.approx(1, abs=1)


@pytest.mark.parametrize(
    ("columns", "halves", "narrow", "masked"),
    [(8, 1, True, False), (12, 2, False, True), (16, 2, False, False), (20, 3, True, True), (24, 3, True, False)],
)
def test_an_int8_product_with_short_vectors_ends_in_half_a_tile_and_a_masked_store(
    columns: int, halves: int, narrow: bool, masked: bool
) -> None:
    row = dict(zip(FEATURE_NAMES, feature_matrix([(Gemm(40, 64, columns), INT8)], Hardware(lanes=8))[0], strict=True))
    steps = 40 * 64 / 2 / 2  # rows by pairs of the depth, in half tiles of eight columns
    assert math.exp(row["log_cycles"]) == pytest.approx(steps * halves, rel=0.1)
    assert (row["log_single_steps"] > 0) == narrow
    assert row["log_masked_stores"] == pytest.approx(math.log(40) if masked else 0)
    for lanes in (4, 16):
        other = feature_matrix([(Gemm(40, 64, columns), INT8)], Hardware(lanes=lanes, blocked=lanes > 4))[0]
        assert other[FEATURE_NAMES.index("log_masked_stores")] == 0
