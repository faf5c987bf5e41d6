"""What a network costs beyond the sum of its kernels: found again from sums that were made with it."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from hwcost.composition import (
    HELD,
    ROLES,
    STREAMS,
    Composition,
    Held,
    Layers,
    Memory,
    bytes_from_memory,
    compose,
    kernel_class,
    role,
)
from hwcost.ops import FLOAT, INT8, PLAIN, Boundary, Conv, Elementwise, Gemm, Node, Operator, Pool, Precision

FACTORS = np.array([1.02, 0.97, 1.06, 1.05, 0.96, 1.04, 1.1, 0.94])
RATES = np.array([4e-11, 3e-11, 1.5e-11, 1e-11])
KERNEL_S = -1.5e-7
OVERHEAD_S = 8e-6
MEBIBYTE = 1024**2
CHOSEN = 17
NEAR = 1024 * MEBIBYTE
"""A second cache that loses nothing."""
FLAT = Composition(
    networks=1,
    factors=dict.fromkeys(ROLES, 1.0),
    kernel_s=0.0,
    near_bytes=NEAR,
    memory=(
        Memory(
            held=Held(together=2 * MEBIBYTE, alone=32 * MEBIBYTE),
            s_per_byte=dict(zip(STREAMS, RATES.tolist(), strict=True)),
        ),
    ),
    measured_width=0.0,
    predicted_width=0.0,
)


class Made:
    """Networks whose times follow from known factors and rates where caches hold `HELD[CHOSEN]`; `noise`: of the
    whole, log-normal; `drift`: by how much two passes of one network differ, log-normal."""

    def __init__(
        self, count: int = 32, *, noise: float = 0.0, seed: int = 0, predicted: float = 0.1, drift: float = 0.0
    ) -> None:
        rng = np.random.default_rng(seed)
        size = np.exp(rng.uniform(np.log(3e-4), np.log(2e-2), count))
        shares = rng.dirichlet((1.0,) * len(ROLES), count)
        self.measured = shares * size[:, None]
        self.predicted = self.measured * np.exp(rng.normal(0, predicted, self.measured.shape))
        moved = size[:, None] * rng.uniform(0, 6e9, (count, len(STREAMS)))
        lost = np.exp(rng.normal(0, 1, (len(HELD), count, 1))).cumsum(axis=0)[::-1]
        self.candidates = moved * lost / (1 + lost)
        self.from_memory = self.candidates[CHOSEN]
        self.counts = np.exp(rng.uniform(np.log(10), np.log(300), count)).round()
        self.whole_s = OVERHEAD_S + self.measured @ FACTORS + self.from_memory @ RATES + self.counts * KERNEL_S
        self.whole_s *= np.exp(rng.normal(0, noise, count))
        self.passes = np.exp(rng.normal(0, drift, (3, count)))

    def compose(self, take: slice = slice(None)) -> Composition:
        samples_s: list[list[float]] = (self.whole_s * self.passes).T[take].tolist()
        sums = (self.measured[take], self.predicted[take], self.candidates[:, take], self.counts[take])
        return compose(*sums, samples_s, overhead_s=OVERHEAD_S, shortest_s=-2 * KERNEL_S, near_bytes=NEAR)

    def said(self, found: Composition, sums: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The networks' seconds as a composition says them."""
        memory = sum(
            self.candidates[HELD.index(one.held)] @ [one.s_per_byte[name] for name in STREAMS] for one in found.memory
        )
        return OVERHEAD_S + sums @ factors(found) + memory + self.counts * found.kernel_s


def from_memory(
    layers: Layers, together: float = MEBIBYTE, near_bytes: float = NEAR, alone: float = 32 * MEBIBYTE
) -> npt.NDArray[Any]:
    """Bytes of each stream where caches hold so much of a network, and the last one so much of a kernel alone."""
    return bytes_from_memory(layers, [Held(together=together, alone=alone)], near_bytes)[0]


def factors(found: Composition) -> npt.NDArray[Any]:
    return np.array([found.factors[name] for name in ROLES])


def rates(found: Composition) -> npt.NDArray[Any]:
    return np.array([sum(one.s_per_byte[name] for one in found.memory) for name in STREAMS])


def test_known_factors_and_rates_are_found_again() -> None:
    made = Made(120)
    found = made.compose()
    assert found.networks == 120
    np.testing.assert_allclose(factors(found), FACTORS, atol=0.035)
    np.testing.assert_allclose(rates(found), RATES, atol=6e-12)
    assert found.kernel_s == pytest.approx(KERNEL_S, abs=8e-8)
    np.testing.assert_allclose(made.said(found, made.measured), made.whole_s, rtol=0.02)


def test_nothing_to_learn_is_no_change() -> None:
    made = Made()
    made.whole_s = OVERHEAD_S + made.measured.sum(axis=1)
    found = made.compose()
    np.testing.assert_allclose(factors(found), 1, atol=0.004)
    assert found.measured_width < 0.01
    assert (rates(found) >= 0).all() and rates(found).max() < 2e-12 and abs(found.kernel_s) < 3e-8


def test_weights_never_make_a_network_faster() -> None:
    made = Made()
    made.whole_s = OVERHEAD_S + made.measured.sum(axis=1) - made.from_memory @ RATES * 0.5
    assert (rates(made.compose()) >= 0).all()


@pytest.mark.parametrize("times", [0.5, 2.0, 10.0])
def test_one_network_that_nothing_explains_changes_little(times: float) -> None:
    made = Made(noise=0.01)
    sound = made.compose()
    made.whole_s[3] *= times
    found = made.compose()
    np.testing.assert_allclose(factors(found), factors(sound), atol=0.05)
    rest = np.arange(32) != 3
    error = np.abs(np.log(made.said(found, made.measured) / made.whole_s))[rest]
    assert np.median(error) < 0.02


@pytest.mark.parametrize("count", [4, 9, 24])
def test_a_few_networks_say_something_without_running_wild(count: int) -> None:
    found = Made(count, noise=0.02).compose()
    assert (np.abs(factors(found) - 1) < 0.3).all()
    assert 0 < found.measured_width <= found.predicted_width < 1


def test_intervals_hold_nine_of_ten_networks_that_were_not_seen() -> None:
    held: dict[str, list[float]] = {"measured": [], "predicted": []}
    for seed in range(30):
        made = Made(60, noise=0.03, seed=seed)
        found = made.compose(slice(30))
        for name, width in (("measured", found.measured_width), ("predicted", found.predicted_width)):
            error = np.abs(np.log(made.said(found, getattr(made, name)) / made.whole_s))[30:]
            held[name].append(float(np.mean(error <= width)))
    assert 0.85 <= np.mean(held["measured"]) <= 0.97
    assert 0.85 <= np.mean(held["predicted"]) <= 0.97


def test_intervals_hold_the_median_of_passes_at_another_time() -> None:
    held = []
    for seed in range(30):
        made = Made(60, noise=0.01, seed=seed, predicted=0.0, drift=0.03)
        found = made.compose(slice(30))
        error = np.abs(np.log(made.said(found, made.measured) / (made.whole_s * np.median(made.passes, axis=0))))[30:]
        held.append(float(np.mean(error <= found.measured_width)))
    assert 0.85 <= np.mean(held) <= 0.97


def test_predictions_are_never_said_to_be_surer_than_measurements() -> None:
    made = Made(noise=0.05, predicted=0.0)
    found = made.compose()
    assert found.predicted_width == found.measured_width > 0
    worse = Made(noise=0.05, predicted=0.5).compose()
    assert worse.predicted_width > worse.measured_width


def test_the_same_networks_compose_to_the_same() -> None:
    assert Made().compose() == Made().compose()


def test_kernels_may_cost_more_among_others_than_alone() -> None:
    made = Made(60)
    made.whole_s -= 2 * KERNEL_S * made.counts
    assert made.compose().kernel_s == pytest.approx(-KERNEL_S, abs=8e-8)


def test_a_kernel_inside_a_network_costs_its_factor_and_the_change_to_it_and_never_next_to_nothing() -> None:
    op, factor = Conv.square(8, 8, 8, 3), {"float spatial": 1.5, "int8 spatial": 0.8}
    slower = FLAT.model_copy(update={"factors": FLAT.factors | factor, "kernel_s": 2e-7})
    faster = slower.model_copy(update={"kernel_s": -2e-6})
    assert slower.inside_s(op, FLOAT, 1e-5) == pytest.approx(1.5e-5 + 2e-7)
    assert slower.inside_s(op, INT8, 1e-5) == pytest.approx(0.8e-5 + 2e-7)
    assert slower.inside_s(Elementwise("add", (1, 8)), FLOAT, 1e-5) == pytest.approx(1e-5 + 2e-7)
    assert faster.inside_s(op, FLOAT, 1e-5) == pytest.approx(1.3e-5)
    assert faster.inside_s(op, FLOAT, 1e-6) == pytest.approx(0.25e-6)


@pytest.mark.parametrize(
    ("op", "precision", "name"),
    [
        (Conv.square(8, 8, 8, 3), FLOAT, "float product"),
        (Conv.square(8, 8, 8, 3), PLAIN, "float product"),
        (Conv.square(8, 8, 8, 3), Precision(8, 8, "u8s8"), "int8 product"),
        (Gemm(1, 8, 8), Precision(4, 32), "float product"),
        (Node("MatMul", ("float32[1,2,3]", "float32[1,3,2]"), ("float32[1,2,2]",)), FLOAT, "float product"),
        (Pool.global_average(8, 4, 4), FLOAT, "float data"),
        (Elementwise("add", (1, 8)), INT8, "int8 data"),
        (Boundary("quantize", (1, 8)), INT8, "int8 data"),
        (Node("Softmax", ("float32[1,10]",), ("float32[1,10]",)), FLOAT, "float data"),
    ],
)
def test_every_kernel_has_a_class(op: Operator, precision: Precision, name: str) -> None:
    assert kernel_class(op, precision) == name


@pytest.mark.parametrize(
    ("op", "precision", "name"),
    [
        (Conv.square(8, 8, 8, 3), FLOAT, "float spatial"),
        (Conv.square(8, 8, 8, 1), FLOAT, "float pointwise"),
        (Conv.square(8, 8, 8, 1), Precision(8, 8, "u8s8"), "int8 pointwise"),
        (Conv.square(8, 8, 8, 3, groups=8), INT8, "int8 product"),
        (Gemm(1, 8, 8), FLOAT, "float product"),
        (Pool.global_average(8, 4, 4), INT8, "int8 data"),
    ],
)
def test_convolutions_over_all_channels_have_roles_of_their_own(op: Operator, precision: Precision, name: str) -> None:
    assert role(op, precision) == name


def test_bytes_come_from_memory_the_more_the_larger_the_working_set() -> None:
    """None below what caches hold; all of what is used again from eight times that, of what is used once from twice
    what the last cache leaves; and never fewer for more."""
    waits, turns = Gemm(1, 1024, 255), Gemm(40, 1024, 255)  # 1 MiB of weights, a bias and no more
    held: list[tuple[Gemm, dict[str, float], int, int, float]] = [
        (waits, {"alone": 2 * MEBIBYTE}, 0, 5, 1.0),
        (turns, {"together": 2 * MEBIBYTE}, 1, 33, 0.8),
    ]
    for gemm, small, place, most, part in held:
        for layers in ([], [(gemm, FLOAT, 1)], [(gemm, FLOAT, 1), (Pool.global_average(8, 4, 4), FLOAT, 99)]):
            assert not from_memory(layers, **small).any()
        shares, large = [], {name: 2 * size for name, size in small.items()}
        for count in (1, 2, 3, most, 60):
            found = from_memory([(gemm, FLOAT, count)], **small)
            assert found[place] >= from_memory([(gemm, FLOAT, count)], **large)[place]
            assert not found[2:].any() and found[1 - place] <= found[place] / 4  # of few products some wait
            shares.append(found[place] / (count * part * 4 * (gemm.weights + 255)))
        assert shares[0] == 0 and 0 < shares[2] < 1 == pytest.approx(shares[-1]) == pytest.approx(shares[-2])
        assert all(one <= other for one, other in pairwise(shares))


def test_weights_that_are_multiplied_often_are_told_from_those_that_a_kernel_waits_for() -> None:
    few, many = ((Gemm(rows, 512, 500), FLOAT, 40) for rows in (4, 80))
    for layer, share in ((few, 0.0), (many, 0.9)):
        once, again, _, _ = from_memory([layer], MEBIBYTE, alone=MEBIBYTE).tolist()
        assert again == pytest.approx(share * (once + again)) and once + again == 40 * 4 * (512 * 500 + 500)


def test_large_tensors_push_out_weights_and_each_other() -> None:
    small, add = Gemm(1, 512, 500), Elementwise("add", (1, 64, 128, 128))  # 1 MiB; reads and writes three of 4 MiB
    assert not from_memory([(small, FLOAT, 1)], MEBIBYTE).any()
    weights, _, tensors, _ = from_memory([(small, FLOAT, 1), (add, FLOAT, 2)], alone=MEBIBYTE).tolist()
    assert weights == 4 * (small.weights + 500) and tensors == 2 * 12 * MEBIBYTE
    assert FLAT.memory_s([(add, FLOAT, 2)]) == pytest.approx(24 * MEBIBYTE * RATES[2])
    assert FLAT.memory_s([(small, FLOAT, 1)]) == 0
    near = Elementwise("add", (1, 8, 64, 64))  # 384 KiB, still near when they are read
    few, more = (from_memory([(add, FLOAT, 1), (near, FLOAT, count)], MEBIBYTE)[2] for count in (0, 10))
    assert 0 < more - few < 0.25 * 10 * 3 * 4 * near.output_elements


def test_what_maps_tensors_loses_them_from_the_second_cache_where_a_network_needs_that_for_more() -> None:
    def near(op: Operator, count: int) -> float:
        return float(from_memory([(op, FLOAT, count)], 1024 * MEBIBYTE, 2 * MEBIBYTE)[3])

    relu = Elementwise("relu", (1, 64, 64, 32))  # moves 1 MiB: its row lost an eighth of it, a network more
    assert near(relu, 40) == pytest.approx(40 * MEBIBYTE * 7 / 8)
    assert 0 < near(relu, 2) < 2 * near(relu, 40) / 40 and near(Elementwise("relu", (1, 64, 64, 4)), 2) == 0
    assert near(Elementwise("relu", (1, 64, 256, 256)), 40) == 0  # 32 MiB: its row lost all of them
    assert near(Conv.square(64, 64, 48, 3), 40) == 0


def test_weights_are_counted_as_wide_as_they_are() -> None:
    conv = Conv.square(448, 448, 4, 3)  # 7 MiB in float
    in_float = from_memory([(conv, FLOAT, 5)], 2 * MEBIBYTE, alone=8 * MEBIBYTE)[:2].sum()
    in_int8 = from_memory([(conv, Precision(8, 8, "u8s8"), 20)], 2 * MEBIBYTE, alone=8 * MEBIBYTE)[:2].sum()
    assert in_float == pytest.approx(5 * (4 * conv.weights + 4 * 448))
    assert in_int8 == pytest.approx(20 * (conv.weights + 8 * 448))


def test_weights_that_no_cache_holds_were_timed_from_memory_already() -> None:
    assert not from_memory([(Gemm(1, 8192, 2048), FLOAT, 1)], MEBIBYTE).any()  # 64 MiB
    some = from_memory([(Gemm(1, 8192, 1536), FLOAT, 3)], MEBIBYTE)[0]
    assert 0 < some < 3 * 4 * 8192 * 1536


def test_of_a_table_only_the_rows_that_are_looked_up_are_touched() -> None:
    table = Node("Gather", ("=float32[200000,64]", "int64[1,40]"), ("float32[1,40,64]",), '{"axis":0}')
    assert not from_memory([(table, FLOAT, 1)], MEBIBYTE).any()


def test_how_much_caches_hold_is_found_by_networks_left_out() -> None:
    for seed in range(5):
        found = Made(60, noise=0.005, seed=seed).compose()
        most = max(found.memory, key=lambda one: sum(one.s_per_byte.values()))
        assert most.held == HELD[CHOSEN]


def test_what_cannot_be_told_apart_counts_alike() -> None:
    made = Made(60, noise=0.01)
    made.candidates = np.array([made.from_memory] * len(HELD))
    found = made.compose()
    assert {one.held for one in found.memory} == set(HELD)
    first, *others = found.memory
    assert all(one.s_per_byte == pytest.approx(first.s_per_byte) for one in others)
    np.testing.assert_allclose(rates(found), RATES, atol=6e-12)


def test_a_network_costs_what_the_median_of_its_passes_says() -> None:
    made = Made(60)
    made.passes = np.array([[0.9], [1.0], [1.5]]) * np.ones(60)
    found = made.compose()
    np.testing.assert_allclose(made.said(found, made.measured), made.whole_s, rtol=0.02)


def test_a_slower_device_waits_longer_for_memory_and_between_kernels() -> None:
    composition = Made().compose()
    slower = composition.slower(3.0)
    np.testing.assert_allclose(rates(slower), 3 * rates(composition))
    assert slower.kernel_s == pytest.approx(3 * composition.kernel_s) and slower.factors == composition.factors


@pytest.mark.parametrize(
    "change", [{"factors": {"other": 1.0}}, {"networks": 0}, {"measured_width": -0.1}, {"more": 1}]
)
def test_a_composition_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Composition.model_validate(FLAT.model_dump() | change)
