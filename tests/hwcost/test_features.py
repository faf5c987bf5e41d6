import math

import numpy as np
import pytest

from hwcost.energy import ENERGY_LABEL, energy_j, mac_energy_j
from hwcost.errors import InvalidOperatorError
from hwcost.features import FEATURE_NAMES, column, family, feature_matrix
from hwcost.hardware import Hardware, spilled
from hwcost.ops import FLOAT, INT8, Boundary, Conv, Elementwise, Gemm, Node, Operator, Pool, Precision, bytes_moved
from hwcost.sizes import ROUTES

OPERATORS: list[tuple[Operator, str]] = [
    (Conv.square(16, 32, 14, 3), "conv.dense"),
    (Conv.square(16, 16, 14, 3, groups=16), "conv.depthwise"),
    (Conv.square(16, 32, 14, 3, groups=4), "conv.grouped"),
    (Gemm(1, 64, 10), "gemm"),
    (Pool.global_average(32, 7, 7), "pool.global_average"),
    (Pool("max", 32, 14, 14, (2, 2), (2, 2)), "pool.max"),
    (Pool("max", 30, 14, 14, (2, 2), (2, 2)), "pool.max"),
    (Pool("average", 30, 14, 14, (2, 2), (2, 2)), "pool.average"),
    (Pool("average", 30, 14, 14, (14, 14)), "pool.average.whole"),
    (Elementwise("add", (1, 16, 14, 14)), "elementwise.add"),
    (Elementwise("tanh", (10,)), "elementwise.tanh"),
    (Boundary("quantize", (1, 3, 32, 32)), "boundary.quantize"),
    (Boundary("transpose", (1, 3, 32, 32), (0, 2, 3, 1)), "boundary.transpose"),
    (Node("Softmax", ("float32[1,100]",), ("float32[1,100]",), '{"axis":1}'), "node.Softmax"),
    (Node("Where", ("bool[]", "float32[2,3]", "=float32[]"), ("float32[2,3]",)), "node.Where"),
    (
        Node("ReduceMean", ("float32[1,8,4,4]",), ("float32[1,8]",), '{"axes":[-1,-2],"keepdims":0}'),
        "node.ReduceMean.planes",
    ),
]


def _row(op: Operator, precision: Precision) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, feature_matrix([(op, precision)])[0].tolist(), strict=True))


@pytest.mark.parametrize(("op", "expected"), OPERATORS)
def test_every_operator_has_a_family_and_a_finite_row(op: Operator, expected: str) -> None:
    assert family(op) == expected
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES))
    for precision in (FLOAT, INT8, Precision(4, 32)):
        assert np.isfinite(list(_row(op, precision).values())).all()


def test_a_matrix_holds_the_rows_that_its_operators_have_alone() -> None:
    pairs = [(op, precision) for op, _ in OPERATORS for precision in (FLOAT, INT8)]
    np.testing.assert_array_equal(feature_matrix(pairs), np.concatenate([feature_matrix([pair]) for pair in pairs]))


def test_sizes_are_natural_logarithms_of_the_operators_own_counts() -> None:
    op = Conv.square(12, 20, 14, 3, stride=2)
    row = _row(op, INT8)
    assert row["log_macs"] == pytest.approx(math.log(op.macs))
    assert row["log_macs_tiled_16"] == pytest.approx(math.log(op.macs * 32 / 20))
    assert row["log_reduction"] == pytest.approx(math.log(12 * 9))
    assert row["log_input_elements"] == pytest.approx(math.log(op.input_elements))
    assert row["in_fill_8"] == pytest.approx(12 / 16)
    assert row["out_fill_8"] == pytest.approx(20 / 24)
    assert row["stride"] == 4.0


def test_bytes_are_those_that_the_operator_moves() -> None:
    for op, _ in OPERATORS:
        for precision in (FLOAT, INT8):
            assert _row(op, precision)["log_bytes"] == pytest.approx(math.log(bytes_moved(op, precision)))


def test_tiles_of_a_depthwise_convolution_are_its_channels() -> None:
    row = _row(Conv.square(20, 20, 14, 3, groups=20), INT8)
    assert row["log_macs_tiled_8"] - row["log_macs"] == pytest.approx(math.log(24 / 20))
    assert row["depthwise"] == 1.0


@pytest.mark.parametrize(
    ("shape", "permutation", "route", "rows", "columns", "block"),
    [
        ((1, 3, 32, 32), (0, 2, 3, 1), "inwards", 3, 1024, 1),
        ((1, 32, 32, 3), (0, 3, 1, 2), "outwards", 1024, 3, 1),
        ((1, 8, 4, 16), (0, 2, 1, 3), "blocks", 8, 4, 16),
        ((1, 2, 29, 14, 14), (0, 2, 1, 3, 4), "blocks", 2, 29, 196),
        ((5, 1, 1, 7), (0, 3, 1, 2), "copy", 1, 1, 35),
        ((1, 5, 1, 7), (0, 2, 1, 3), "copy", 1, 1, 35),
        ((2, 3, 4), (2, 1, 0), "scattered", 2, 4, 1),
    ],
)
def test_a_transpose_is_what_it_moves_once_axes_that_stay_together_are_one(
    shape: tuple[int, ...], permutation: tuple[int, ...], route: str, rows: int, columns: int, block: int
) -> None:
    row = _row(Boundary("transpose", shape, permutation), FLOAT)
    assert [name for name in ROUTES if row[f"route_{name}"]] == [route]
    assert row["log_block_bytes"] == pytest.approx(math.log(4 * block))
    filled = [size / (math.ceil(size / 8) * 8) for size in (rows, columns)]
    assert sorted((row["rows_fill_8"], row["columns_fill_8"])) == pytest.approx(sorted(filled))
    assert row["log_planes"] == pytest.approx(math.log(math.prod(shape) / (rows * columns * block)))


def test_a_float_pool_of_whole_blocks_of_channels_is_told_from_any_other() -> None:
    blocked, plain = (Pool("max", channels, 14, 14, (2, 2), (2, 2)) for channels in (64, 62))
    assert _row(blocked, FLOAT)["algorithm_depthwise"] and not _row(plain, FLOAT)["algorithm_depthwise"]
    assert _row(plain, INT8)["algorithm_depthwise"]
    for op, precision in ((plain, FLOAT), (blocked, INT8)):
        assert _row(op, precision)["log_tap_positions"] == pytest.approx(math.log(7 * 7 * 4))
    assert _row(blocked, FLOAT)["log_tap_positions"] == _row(blocked, FLOAT)["log_row_calls"] == 0


@pytest.mark.parametrize(
    "op",
    [
        Node("Resize", (), ("float32[1]",)),
        Node("Softmax", ("float32[1,2]",), ("float32[1,2]",), '{"axis":"x"}', version=13),
        Node("ConvInteger", ("uint8[1,2]",), ("int32[1]",)),
    ],
)
def test_a_node_without_what_its_type_needs_is_refused_in_words(op: Node) -> None:
    with pytest.raises(InvalidOperatorError, match=r"has the inputs and attributes of its type, got Node\("):
        (family(op), _row(op, FLOAT))


def test_a_node_is_described_along_the_axis_that_it_works_on() -> None:
    softmax = Node("Softmax", ("float32[4,10,32]",), ("float32[4,10,32]",), '{"axis":-1}')
    assert _row(softmax, FLOAT)["log_run"] == pytest.approx(math.log(32))
    assert _row(softmax, FLOAT)["log_runs"] == pytest.approx(math.log(40))
    bins = ("float32[2,16,4,50]",)
    turned = Node("Softmax", bins, bins, '{"axis":1}', version=13)
    assert family(turned) == "node.Softmax.turned" and _row(turned, FLOAT)["log_run"] == pytest.approx(math.log(16))
    assert _row(turned, FLOAT)["log_planes"] == pytest.approx(math.log(2))
    at_once = Node("Softmax", bins, bins, '{"axis":1}', version=11)  # over all that follows, as versions before 13 do
    assert family(at_once) == "node.Softmax" and _row(at_once, FLOAT)["log_run"] == pytest.approx(math.log(3200))
    last = Node("Softmax", ("float32[2,16,4,1]",), ("float32[2,16,4,1]",), '{"axis":2}', version=13)
    assert family(last) == "node.Softmax"
    concat = Node("Concat", ("float32[1,8,5,5]", "float32[1,4,5,5]"), ("float32[1,12,5,5]",), '{"axis":1}')
    assert _row(concat, FLOAT)["log_run"] == pytest.approx(math.log(300))
    scaled = Node("Mul", ("float32[1,8,5,5]", "float32[1,8,1,1]"), ("float32[1,8,5,5]",))
    assert _row(scaled, FLOAT)["log_broadcast"] == pytest.approx(math.log(25))
    assert _row(scaled, FLOAT)["log_run"] == pytest.approx(math.log(25)) and _row(scaled, FLOAT)["route_repeats"]
    biased = Node("Add", ("float32[1,49,64]", "=float32[64]"), ("float32[1,49,64]",))
    assert _row(biased, FLOAT)["log_run"] == pytest.approx(math.log(64)) and _row(biased, FLOAT)["route_spans"]
    sliced = Node("Slice", ("float32[1,8,6,6]", "=int64[1]:4"), ("float32[1,4,6,6]",))
    assert _row(sliced, FLOAT)["log_run"] == pytest.approx(math.log(4 * 36))
    assert _row(sliced, FLOAT)["log_read_bytes"] == pytest.approx(math.log(4 * 4 * 36))
    every_other = "=int64[1]:0", "=int64[1]:6", "=int64[1]:2", "=int64[1]:2"
    rows = Node("Slice", ("float32[1,8,6,6]", *every_other), ("float32[1,8,3,6]",))
    assert family(rows) == "node.Slice" and _row(rows, FLOAT)["log_run"] == pytest.approx(math.log(6))
    every_other = "=int64[2]:0,0", "=int64[2]:6,6", "=int64[2]:-1,2", "=int64[2]:-2,2"
    both = Node("Slice", ("float32[1,8,6,6]", *every_other), ("float32[1,8,3,3]",))
    assert family(both) == "node.Slice.steps" and _row(both, FLOAT)["log_runs"] == pytest.approx(math.log(72))
    to_the_end = "=int64[2]:0,0", "=int64[2]:9.22337204e+18,6", "=int64[2]:1,3", "=int64[2]:-9.22337204e+18,1"
    backwards = Node("Slice", ("float32[1,8,6,6]", *to_the_end), ("float32[1,1,6,6]",))
    assert family(backwards) == "node.Slice" and _row(backwards, FLOAT)["log_run"] == pytest.approx(math.log(36))
    columns = Node("ReduceMean", ("float32[1,50,32]",), ("float32[1,1,32]",), '{"axes":[1],"keepdims":1}')
    assert _row(columns, FLOAT)["route_repeats"] and _row(columns, FLOAT)["log_run"] == pytest.approx(math.log(32))
    root, square = (Node("Pow", ("float32[9]", f"=float32[]:{power}"), ("float32[9]",)) for power in ("0.5", "2"))
    assert _row(root, FLOAT)["route_other"] and not _row(square, FLOAT)["route_other"]
    filters = "=float32[32,24,2,2]", "=float32[24]"
    grown = Node("ConvTranspose", ("float32[1,32,7,9]", *filters), ("float32[1,24,14,18]",), '{"group":1}')
    assert _row(grown, FLOAT)["algorithm_product"] == 1.0 and not _row(grown, FLOAT)["route_spans"]
    assert _row(grown, FLOAT)["log_packed"] == pytest.approx(math.log(32 * 63))
    assert _row(grown, FLOAT)["log_costly"] == pytest.approx(math.log(24 * 4 * 63))
    integers = "uint8[1,16,9,9]", "=int8[24,16,3,3]", "uint8[]", "=int8[]"
    window = Node("ConvInteger", integers, ("int32[1,24,9,9]",), '{"group":1,"kernel_shape":[3,3]}')
    assert family(window) == "node.ConvInteger.int8" and _row(window, INT8)["algorithm_product"] == 1.0
    assert _row(window, INT8)["log_multiplications"] == pytest.approx(math.log(81 * 24 * 144 // 32))
    assert _row(window, INT8)["log_costly"] == pytest.approx(math.log(81 * 144))
    recurrent = Node("LSTM", ("float32[8,1,32]", "=float32[1,64,32]", "=float32[1,64,16]"), ("float32[8,1,1,16]",))
    assert not any(_row(recurrent, FLOAT)[name] for name in ("route_spans", "route_repeats"))
    product = Node("MatMul", ("float32[1,6,49,32]", "float32[1,6,32,49]"), ("float32[1,6,49,49]",))
    assert _row(product, FLOAT)["algorithm_product"] == 1.0


def test_a_matrix_of_nothing_still_has_its_columns() -> None:
    assert feature_matrix([]).shape == (0, len(FEATURE_NAMES))


def test_energy_is_labelled_as_modelled_with_its_source() -> None:
    assert "modelled" in ENERGY_LABEL and "Horowitz" in ENERGY_LABEL


def test_fewer_bits_never_cost_more_energy() -> None:
    macs = [mac_energy_j(precision) for precision in (FLOAT, INT8, Precision(4, 8), Precision(2, 8))]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] == pytest.approx(4.6e-12) and macs[1] == pytest.approx(0.3e-12)
    for op, _ in OPERATORS:
        assert 0 < energy_j(op, INT8) < energy_j(op, FLOAT)


def test_energy_of_a_gemm_adds_arithmetic_cache_and_dram() -> None:
    expected = 640 * 0.3e-12 + (64 + 10) * 12.5e-12 + (640 + 80) * 162.5e-12
    assert energy_j(Gemm(1, 64, 10), INT8) == pytest.approx(expected)


def test_a_lookup_costs_what_it_copies_however_long_its_table_is() -> None:
    def lookup(rows: int, tokens: int) -> Node:
        inputs = (f"=float32[{rows},96]", f"int64[1,{tokens}]")
        return Node("Gather", inputs, (f"float32[1,{tokens},96]",), '{"axis":0}', "", 13)

    short, long, more = feature_matrix([(lookup(100, 40), FLOAT), (lookup(50000, 40), FLOAT), (lookup(100, 80), FLOAT)])
    assert (short == long).all()
    assert more[column("log_read_bytes")] - short[column("log_read_bytes")] == pytest.approx(math.log(2))
    assert short[column("log_run")] == pytest.approx(math.log(96))


def test_bytes_that_a_cache_loses_begin_at_a_third_of_it_and_rise_to_all() -> None:
    shares = spilled(np.array([0.2, 1 / 3, 1.0, 5 / 3, 4.0]) * 2**20, 2**20)
    assert shares == pytest.approx([0, 0, 0.5, 1, 1]) and float(spilled(2**20, 0)) == 1
    hardware, name = Hardware(l2=2**20), column("log_spilled_l2")
    relus = [(Elementwise("relu", (1, channels, 32, 32)), FLOAT) for channels in (32, 128, 512)]  # 0.25, 1 and 4 MiB
    lost = np.expm1(feature_matrix(relus, hardware)[:, name]) / 2**20
    assert lost == pytest.approx([0, 0.5, 4], abs=1e-5)


def test_of_a_shared_cache_neighbours_may_leave_a_half_or_a_quarter() -> None:
    relu = [(Elementwise("relu", (1, 128, 32, 32)), FLOAT)]  # 1 MiB
    features = feature_matrix(relu, Hardware(l3=4 * 2**20))[0]
    names = ("log_spilled_quarter_l3", "log_spilled_half_l3", "log_spilled_l3")
    lost = [math.expm1(features[column(name)]) / 2**20 for name in names]
    assert lost == pytest.approx([0.5, 0.125, 0], abs=1e-5)


def test_of_the_last_cache_of_a_large_machine_a_guest_counts_on_a_part() -> None:
    def last(cache_bytes: int) -> int:
        return Hardware.of(("avx512f",), "x86_64", {"L2": 2**21, "L3": cache_bytes}).l3

    assert last(32 * 2**20) == 32 * 2**20 and last(480 * 2**20) == last(64 * 2**20) == 64 * 2**20


@pytest.mark.parametrize("op_type", ["Add", "Mul", "PRelu"])
def test_what_is_no_product_reads_a_constant_as_it_reads_what_others_made(op_type: str) -> None:
    def row(other: str) -> dict[str, float]:
        return _row(Node(op_type, ("float32[1,64,14,14]", other), ("float32[1,64,14,14]",)), FLOAT)

    assert row("=float32[64,1,1]") == row("float32[64,1,1]")


def test_a_maximum_is_as_often_surprised_as_a_new_one_turns_up_in_a_random_order() -> None:
    def surprises(side: int) -> float:
        window = f'{{"kernel_shape":[{side},{side}],"strides":[1,1],"pads":[0,0,0,0]}}'
        op = Node("MaxPool", (f"uint8[1,64,{63 + side},{63 + side}]",), ("uint8[1,64,64,64]",), window)
        return math.exp(_row(op, INT8)["log_forgotten_branches"])

    assert surprises(2) / 64**3 == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4, rel=1e-5)
    orders = np.random.default_rng(0).random((20_000, 9))
    records = (orders >= np.maximum.accumulate(orders, axis=1)).sum(axis=1).mean()
    assert surprises(3) / 64**3 == pytest.approx(records, rel=0.01)
