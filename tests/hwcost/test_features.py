import math

import numpy as np
import pytest

from hwcost.energy import ENERGY_LABEL, energy_j, mac_energy_j
from hwcost.features import FEATURE_NAMES, column, family, feature_matrix, feature_row
from hwcost.ops import FLOAT, INT8, Boundary, Conv, Elementwise, Gemm, Operator, Pool, Precision

OPERATORS: list[tuple[Operator, str]] = [
    (Conv.square(16, 32, 14, 3), "conv.dense"),
    (Conv.square(16, 16, 14, 3, groups=16), "conv.depthwise"),
    (Conv.square(16, 32, 14, 3, groups=4), "conv.grouped"),
    (Gemm(1, 64, 10), "gemm"),
    (Pool.global_average(32, 7, 7), "pool.global_average"),
    (Pool("max", 32, 14, 14, (2, 2), (2, 2)), "pool.max"),
    (Elementwise("add", (1, 16, 14, 14)), "elementwise.add"),
    (Elementwise("softmax", (10,)), "elementwise.softmax"),
    (Boundary("quantize", (1, 3, 32, 32)), "boundary.quantize"),
    (Boundary("transpose", (1, 3, 32, 32), (0, 2, 3, 1)), "boundary.transpose"),
]


@pytest.mark.parametrize(("op", "expected"), OPERATORS)
def test_every_operator_has_a_family_and_a_finite_row(op: Operator, expected: str) -> None:
    assert family(op) == expected
    for precision in (FLOAT, INT8, Precision(4, 32)):
        row = feature_row(op, precision)
        assert len(row) == len(FEATURE_NAMES) == len(set(FEATURE_NAMES))
        assert np.isfinite(row).all()


def test_sizes_are_natural_logarithms_of_the_operators_own_counts() -> None:
    op = Conv.square(12, 20, 14, 3, stride=2)
    row = feature_row(op, INT8)
    assert row[column("log_macs")] == pytest.approx(math.log(op.macs))
    assert row[column("log_macs_tiled_16")] == pytest.approx(math.log(op.macs * 32 / 20))
    assert row[column("log_reduction")] == pytest.approx(math.log(12 * 9))
    assert row[column("in_fill_8")] == pytest.approx(12 / 16)
    assert row[column("out_fill_8")] == pytest.approx(20 / 24)
    assert row[column("stride")] == 4.0


def test_tiles_of_a_depthwise_convolution_are_its_channels() -> None:
    row = feature_row(Conv.square(20, 20, 14, 3, groups=20), INT8)
    assert row[column("log_macs_tiled_8")] - row[column("log_macs")] == pytest.approx(math.log(24 / 20))
    assert row[column("depthwise")] == 1.0


def test_a_transpose_that_keeps_the_innermost_axis_differs_from_one_that_moves_it() -> None:
    rows = [Boundary("transpose", (1, 8, 4, 4), order) for order in ((0, 2, 1, 3), (0, 2, 3, 1))]
    moved = [feature_row(op, FLOAT)[column("moved_axis")] for op in rows]
    assert moved == [0.0, pytest.approx(math.log(16))]


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
