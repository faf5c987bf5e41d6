"""Estimates: always called so, always with a wide interval, and in line with the traces of the board's kernels."""

import pytest

from hwcost.devices import load_device
from hwcost.errors import UnsupportedPrecisionError
from hwcost.estimate import estimate_latency, estimate_profile
from hwcost.ops import FLOAT, INT8, Boundary, Conv, Elementwise, Gemm, Operator, Pool, Precision
from hwcost.space import SearchSpace

PI = load_device("rpi4")
assert PI.estimate is not None
PI_RATES = PI.estimate
OPERATORS: tuple[Operator, ...] = SearchSpace.for_image((3, 32, 32), 10).operators()

# Inverted residuals of MobileNetV2: expansion, output channels, repeats, stride (arXiv 1801.04381, table 2).
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2() -> list[Operator]:
    layers: list[Operator] = [Conv.square(3, 32, 224, 3, 2)]
    channels, size = 32, 112
    for expansion, out_channels, repeats, first_stride in MOBILENET_V2:
        for index in range(repeats):
            stride, hidden = first_stride if index == 0 else 1, channels * expansion
            if expansion > 1:
                layers.append(Conv.square(channels, hidden, size, 1))
            layers.append(Conv.square(hidden, hidden, size, 3, stride, groups=hidden))
            size //= stride
            layers.append(Conv.square(hidden, out_channels, size, 1))
            if stride == 1 and channels == out_channels:
                layers.append(Elementwise("add", (1, channels, size, size)))
            channels = out_channels
    return [*layers, Conv.square(320, 1280, 7, 1), Pool.global_average(1280, 7, 7), Gemm(1, 1280, 1000)]


@pytest.mark.parametrize(("precision", "traced_macs_per_cycle"), [(FLOAT, 2.69), (INT8, 5.05)])
def test_a_whole_network_comes_out_near_its_own_trace(precision: Precision, traced_macs_per_cycle: float) -> None:
    """The network's trace was not used: the estimate sums operator classes traced one by one."""
    layers = mobilenet_v2()
    estimated_s = sum(estimate_latency(PI, op, precision) for op in layers)
    traced_s = sum(op.macs for op in layers) / traced_macs_per_cycle * PI_RATES.calibration / PI.clock_hz
    assert 0.75 < estimated_s / traced_s < 1.25


def test_every_row_says_estimated_and_how_and_carries_a_wide_interval() -> None:
    profile = estimate_profile(PI, OPERATORS)
    assert profile.sources == ("estimated",)
    for row in profile.rows:
        low_s, high_s = row.interval_s
        assert row.realisation.startswith("estimated: ") and not row.samples_s
        assert row.latency_s / low_s >= 2 and high_s / row.latency_s >= 2


def test_the_machine_is_the_board_and_says_that_it_was_not_there() -> None:
    profile = estimate_profile(PI, OPERATORS)
    assert profile.device == "rpi4" and profile.machine.cpu == "Cortex-A72 (estimated)"
    assert profile.machine.architecture == "aarch64" and profile.int8_form == "s8s8"
    assert "estimated, not measured" in profile.notes[0] and "run the same command on the board" in profile.notes[0]


def test_narrow_weights_run_on_the_int8_kernel_and_say_so() -> None:
    profile = estimate_profile(PI, OPERATORS)
    conv = next(op for op in OPERATORS if isinstance(op, Conv))
    for bits in (2, 4):
        realisation = profile.describe_realisation(conv, Precision(bits, 8))
        assert not realisation.native and realisation.runs_as == INT8
        assert profile.find(conv, Precision(bits, 8)) == profile.find(conv, INT8)


def test_fewer_bits_in_a_matmul_on_float_activations_do_not_pay_on_this_core() -> None:
    """The core has no dot product: the runtime unpacks the weights to float on every run."""
    gemm = Gemm(1, 512, 512)
    profile = estimate_profile(PI, [gemm])
    float_row = profile.find(gemm, FLOAT)
    assert float_row is not None
    for bits in (8, 4, 2):
        row = profile.find(gemm, Precision(bits, 32))
        assert row is not None and not row.native and row.latency_s > float_row.latency_s


def test_int8_pays_on_this_core_where_it_was_traced_to() -> None:
    for op in (Conv.square(64, 64, 28, 1), Conv.square(64, 64, 14, 3), Conv.square(64, 64, 28, 3, groups=64)):
        assert 1.2 < estimate_latency(PI, op, FLOAT) / estimate_latency(PI, op, INT8) < 2.4


def test_nothing_is_free() -> None:
    reshape = Boundary("reshape", (1, 10))
    assert estimate_latency(PI, reshape, FLOAT) == PI_RATES.node_overhead_s > 0


def test_the_same_operators_give_the_same_bytes() -> None:
    assert estimate_profile(PI, OPERATORS).to_json() == estimate_profile(PI, OPERATORS).to_json()


def test_a_precision_without_a_kernel_is_refused_with_what_to_ask_for() -> None:
    with pytest.raises(
        UnsupportedPrecisionError, match=r"got w4a8 for operators that have none of these: ask for w8a8"
    ):
        estimate_profile(PI, OPERATORS, precisions=[Precision(4, 8)])
