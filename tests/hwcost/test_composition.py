"""What a network costs beyond the sum of its kernels: found again from sums that were made with it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from hwcost.composition import (
    ROLES,
    STREAMS,
    Composition,
    Sums,
    bytes_from_memory,
    compose,
    kernel_class,
    lengthened_s,
    role,
    sums_of,
)
from hwcost.ops import FLOAT, INT8, PLAIN, Boundary, Conv, Elementwise, Gemm, Node, Operator, Pool, Precision
from hwcost.waits import USES, Wait, Waits

FACTORS = np.array([1.02, 0.97, 1.06, 1.05, 0.96, 1.04, 1.1, 0.94])
RATES = np.array([1.5e-11, 5e-12, 1e-11])
WAITED, LONGER, KERNEL_BYTES = np.array([0.6, 0.8]), 0.04, 3e4
KERNEL_S = -1.5e-7
OVERHEAD_S = 8e-6
MEBIBYTE = 1024**2
NEAR = 1024 * MEBIBYTE
"""A second cache that loses nothing."""
CURVE = tuple(
    Wait(bytes=size * MEBIBYTE, s_per_byte=s_per_byte)
    for size, s_per_byte in ((1, 0.0), (4, 2e-11), (32, 2e-11), (64, 7e-11), (128, 8e-11))
)
WAITS = Waits(of=dict.fromkeys(USES, CURVE), brought_per_s=1.5625e9)
"""Of a second cache of 1 MiB and a last one of 32."""
FLAT = Composition(
    networks=1,
    factors=dict.fromkeys(ROLES, 1.0),
    kernel_s=0.0,
    near_bytes=NEAR,
    s_per_byte=dict(zip(STREAMS, RATES.tolist(), strict=True)),
    measured_width=0.0,
    predicted_width=0.0,
)


class Made:
    """Networks whose times follow from known factors, rates, waits that count `WAITED` times, and long runs that take a
    share of `LONGER` more; `noise`: of the whole, log-normal; `drift`: by how much two passes of one network differ,
    log-normal."""

    def __init__(
        self, count: int = 32, *, noise: float = 0.0, seed: int = 0, predicted: float = 0.1, drift: float = 0.0
    ) -> None:
        rng = np.random.default_rng(seed)
        size = np.exp(rng.uniform(np.log(3e-4), np.log(2e-2), count))
        shares = rng.dirichlet((1.0,) * len(ROLES), count)
        self.measured = shares * size[:, None]
        self.predicted = self.measured * np.exp(rng.normal(0, predicted, self.measured.shape))
        self.from_memory = size[:, None] * rng.uniform(0, 6e9, (count, len(STREAMS)))
        self.waits_s = size[:, None] * rng.uniform(-0.1, 0.3, (count, len(USES)))
        self.lengthened_s = size * rng.uniform(0, 1, count)
        self.counts = np.exp(rng.uniform(np.log(10), np.log(300), count)).round()
        self.kernels_wait_s = self.counts * rng.uniform(0, 5e-11, count)
        self.whole_s = OVERHEAD_S + self.measured @ FACTORS + self.waits_s @ WAITED + LONGER * self.lengthened_s
        self.whole_s += self.from_memory @ RATES + self.counts * KERNEL_S + KERNEL_BYTES * self.kernels_wait_s
        self.whole_s *= np.exp(rng.normal(0, noise, count))
        self.passes = np.exp(rng.normal(0, drift, (3, count)))

    def compose(self, take: slice = slice(None), versions: int = 1) -> Composition:
        """As so many versions of each architecture, one after the other."""
        samples_s: list[list[float]] = (self.whole_s * self.passes).T[take].tolist()
        waits = (self.waits_s, self.lengthened_s, self.kernels_wait_s)
        columns = (self.measured, self.predicted, *waits, self.from_memory, self.counts)
        networks = [Sums(*one) for one in zip(*(column[take] for column in columns), strict=True)]
        architectures = [f"network 0/{place // versions}" for place in range(len(networks))]
        found = {"shortest_s": -2 * KERNEL_S, "waits": WAITS, "near_bytes": NEAR}
        return compose(networks, samples_s, architectures, overhead_s=OVERHEAD_S, **found)

    def said(self, found: Composition, sums: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The networks' seconds as a composition says them."""
        shared = self.from_memory @ rates(found) + self.waits_s @ [found.waited[name] for name in USES]
        shared = shared + found.kernel_bytes * self.kernels_wait_s + found.longer * self.lengthened_s
        return OVERHEAD_S + sums @ factors(found) + shared + self.counts * found.kernel_s


def factors(found: Composition) -> npt.NDArray[Any]:
    return np.array([found.factors[name] for name in ROLES])


def rates(found: Composition) -> npt.NDArray[Any]:
    return np.array([found.s_per_byte[name] for name in STREAMS])


def test_known_factors_and_rates_are_found_again() -> None:
    made = Made(120)
    found = made.compose()
    assert found.networks == 120
    np.testing.assert_allclose(factors(found), FACTORS, atol=0.035)
    np.testing.assert_allclose(rates(found), RATES, atol=6e-12)
    assert [found.waited[name] for name in USES] == pytest.approx(WAITED.tolist(), abs=0.1) and found.waits == WAITS
    assert found.longer == pytest.approx(LONGER, abs=0.02)
    assert found.kernel_bytes == pytest.approx(KERNEL_BYTES, rel=0.2)
    assert found.kernel_s == pytest.approx(KERNEL_S, abs=8e-8)
    np.testing.assert_allclose(made.said(found, made.measured), made.whole_s, rtol=0.02)


def test_nothing_to_learn_is_no_change() -> None:
    made = Made()
    made.waits_s = np.zeros((32, len(USES)))
    made.whole_s = OVERHEAD_S + made.measured.sum(axis=1)
    found = made.compose()
    np.testing.assert_allclose(factors(found), 1, atol=0.004)
    assert found.measured_width < 0.01
    assert (rates(found) >= 0).all() and rates(found).max() < 2e-12 and abs(found.kernel_s) < 3e-8


def test_neither_tensors_nor_waits_ever_make_a_network_faster() -> None:
    made = Made()
    made.waits_s = np.abs(made.waits_s)
    made.whole_s = OVERHEAD_S + made.measured.sum(axis=1) - made.from_memory @ RATES * 0.5
    assert (rates(made.compose()) >= 0).all()
    made.whole_s = OVERHEAD_S + made.measured.sum(axis=1) - 2 * made.waits_s.sum(axis=1)
    assert set(made.compose().waited.values()) == {0}
    made.whole_s = OVERHEAD_S + made.measured.sum(axis=1) - 0.1 * made.lengthened_s
    assert made.compose().longer == 0


def test_waits_count_as_they_were_measured_where_networks_say_nothing_of_them() -> None:
    made = Made()
    made.waits_s = np.zeros((32, len(USES)))
    assert made.compose().waited == pytest.approx(dict.fromkeys(USES, 1))


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


def test_versions_of_an_architecture_that_are_off_alike_do_not_vouch_for_each_other() -> None:
    held = []
    for seed in range(30):
        made = Made(96, noise=0.01, seed=seed, predicted=0.0)
        alike = np.exp(np.random.default_rng(seed).normal(0, 0.04, 48)).repeat(2)
        made.whole_s = made.whole_s * alike
        found = made.compose(slice(48), versions=2)
        assert found.measured_width > 0.8 * made.compose(slice(48)).measured_width
        error = np.abs(np.log(made.said(found, made.measured) / made.whole_s))[48:]
        held.append(float(np.mean(error <= found.measured_width)))
    assert 0.88 <= np.mean(held) <= 0.98


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
    assert faster.inside_s(op, FLOAT, 1e-6) == pytest.approx(0.1e-6)


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


def test_weights_that_are_used_once_are_waited_for_apart_from_others() -> None:
    gemm, many = Gemm(1, 1024, 255), Gemm(9, 1024, 255)
    composition = FLAT.model_copy(update={"waits": WAITS, "waited": {"once": 0.5, "again": 1.0}})
    saved_s = [5e-5 - composition.inside_s(op, FLOAT, 5e-5) for op in (gemm, many)]
    assert saved_s[1] == pytest.approx(2 * saved_s[0]) and saved_s[0] > 0


def test_what_is_spent_in_a_long_run_counts_by_how_much_longer_it_is_than_the_run_of_a_row() -> None:
    relu, conv = Elementwise("relu", (1, 8)), Conv.square(64, 64, 56, 3)
    middle = 3e-3 * 10**0.5
    assert lengthened_s([(relu, FLOAT, 29, 1e-4)]) == lengthened_s([]) == 0  # 2.9 ms
    assert lengthened_s([(relu, FLOAT, 1000, middle / 1000)]) == pytest.approx(0.5 * middle)
    assert lengthened_s([(relu, FLOAT, 300, 1e-4)]) == pytest.approx(3e-2)
    assert lengthened_s([(relu, FLOAT, 9000, 1e-4)]) == pytest.approx(0.9)
    assert lengthened_s([(conv, FLOAT, 100, middle)]) == pytest.approx(50 * middle)  # a row's run of half that length
    assert lengthened_s([(conv, FLOAT, 1, 0.2)]) == 0
    composition = FLAT.model_copy(update={"longer": 0.05})
    assert composition.shared_s([(relu, FLOAT, 300, 1e-4)]) == pytest.approx(0.05 * 3e-2, rel=1e-3)


def test_weights_that_a_network_keeps_near_cost_it_less_than_rows_hold_and_others_more() -> None:
    composition = FLAT.model_copy(update={"waits": WAITS})
    gemm, seconds = Gemm(1, 512, 470), 5e-5  # 1 MB, of which a row went through 4
    inside_s = composition.inside_s(gemm, FLOAT, seconds)
    assert inside_s == pytest.approx(seconds - 4 * (gemm.weights + 470) * 2e-11, rel=0.01)
    few, many = (count * inside_s + composition.shared_s([(gemm, FLOAT, count, 1e-5)]) for count in (1, 120))
    assert few == pytest.approx(inside_s) and few < seconds < many / 120
    assert composition.inside_s(gemm, FLOAT, 2e-5) == pytest.approx(0.1 * 2e-5)


def test_the_sums_of_a_network_are_those_of_its_kernels() -> None:
    gemm, add = Gemm(1, 512, 500), Elementwise("add", (1, 64, 128, 128))
    found = sums_of([(gemm, FLOAT, 40, 5e-5, 6e-5), (add, INT8, 2, 1e-4, 9e-5)], WAITS, NEAR)
    said = {
        name: seconds for name, *seconds in zip(ROLES, found.measured, found.predicted, strict=True) if any(seconds)
    }
    assert said == {"float product": pytest.approx([2e-3, 2.4e-3]), "int8 data": pytest.approx([2e-4, 1.8e-4])}
    timed = [(gemm, FLOAT, 40, 5e-5), (add, INT8, 2, 1e-4)]
    waits_s, kernels_s = WAITS.network_s(timed)
    rows_s = [40 * WAITS.row_s(gemm, FLOAT, 5e-5), 0]
    assert found.waits_s.tolist() == pytest.approx((waits_s - rows_s).tolist()) and waits_s[0] > rows_s[0]
    assert found.lengthened_s == lengthened_s(timed)
    assert found.kernels_wait_s == kernels_s > 0
    assert found.kernels == 42 and found.from_memory.tolist() == bytes_from_memory(timed, NEAR).tolist()


def test_what_belongs_to_kernels_is_waited_for_as_well_where_a_network_goes_through_much() -> None:
    gemm, relu = Gemm(1, 1024, 240), Elementwise("relu", (1, 8))
    composition = FLAT.model_copy(update={"waits": WAITS, "kernel_bytes": 5e4})
    near, far = ([(gemm, FLOAT, count, 1e-9), (relu, FLOAT, 200, 1e-9)] for count in (1, 200))
    assert composition.shared_s(near) == 0
    more_s = composition.shared_s(far) - FLAT.model_copy(update={"waits": WAITS}).shared_s(far)
    assert more_s == pytest.approx(400 * 5e4 * 8e-11)
    halved = composition.model_copy(update={"waited": dict.fromkeys(USES, 0.5)})
    waits_s, _ = WAITS.network_s(far)
    assert composition.shared_s(far) - halved.shared_s(far) == pytest.approx(0.5 * waits_s.sum())


def test_large_tensors_push_out_weights() -> None:
    small, add = Gemm(1, 512, 500), Elementwise("add", (1, 64, 128, 128))  # 1 MiB; reads and writes three of 4 MiB
    kernels = [(small, FLOAT, 1, 0.0)]
    waits = [WAITS.network_s([*kernels, *more])[0].sum() for more in ([], [(add, FLOAT, 2, 0.0)])]
    assert waits[0] == pytest.approx(0, abs=1e-7) and waits[1] == pytest.approx(4 * (small.weights + 500) * 2e-11)
    assert not bytes_from_memory(kernels, NEAR).any() and FLAT.shared_s([(small, FLOAT, 1, 1e-5)]) == 0


def test_the_longer_a_call_takes_the_less_it_finds_of_weights_and_tensors() -> None:
    small, add = Gemm(1, 512, 400), Elementwise("add", (1, 64, 128, 128))
    of_weights = [WAITS.network_s([(small, FLOAT, 1, seconds)])[0].sum() for seconds in (1e-5, 3e-4, 1e-2, 1.0)]
    stored = 4 * (small.weights + 400)
    assert of_weights[0] == 0 and of_weights[1] == pytest.approx(3e-12 * stored, rel=0.05)
    assert of_weights[2:] == pytest.approx([2e-11 * stored, 8e-11 * stored], rel=0.05)

    def tensors(seconds: float) -> list[float]:
        return bytes_from_memory([(small, FLOAT, 5, seconds / 10), (add, FLOAT, 5, seconds / 10)], NEAR).tolist()

    assert tensors(2.9e-3) == [0, 0, 0]
    assert tensors(0.03) == pytest.approx([5 * 4 * 912, 5 * 12 * MEBIBYTE, 0])
    assert tensors(0.3) == pytest.approx(tensors(0.03))
    assert tensors(3e-3 * 10**0.5) == pytest.approx([0.5 * bytes_ for bytes_ in tensors(0.03)])
    few_s, many_s = (FLAT.shared_s([(add, FLOAT, 2, seconds)]) for seconds in (1e-3, 0.1))
    assert (few_s, many_s) == (0, pytest.approx(24 * MEBIBYTE * RATES[1]))


def test_what_maps_tensors_loses_them_from_the_second_cache_where_a_network_needs_that_for_more() -> None:
    def near(op: Operator, count: int) -> float:
        return float(bytes_from_memory([(op, FLOAT, count, 1e-4)], 2 * MEBIBYTE)[2])

    relu = Elementwise("relu", (1, 64, 64, 32))  # moves 1 MiB: its row lost an eighth of it, a network more
    assert near(relu, 40) == pytest.approx(40 * MEBIBYTE * 7 / 8)
    assert 0 < near(relu, 2) < 2 * near(relu, 40) / 40 and near(Elementwise("relu", (1, 64, 64, 4)), 2) == 0
    assert near(Elementwise("relu", (1, 64, 256, 256)), 40) == 0  # 32 MiB: its row lost all of them
    assert near(Conv.square(64, 64, 48, 3), 40) == 0


def test_of_a_table_only_the_rows_that_are_looked_up_are_touched() -> None:
    table = Node("Gather", ("=float32[200000,64]", "int64[1,40]"), ("float32[1,40,64]",), '{"axis":0}')
    assert not bytes_from_memory([(table, FLOAT, 1, 1e-6)], NEAR).any()
    assert bytes_from_memory([(table, FLOAT, 1, 1.0)], NEAR).sum() < 10 * 40 * 64 * 4
    assert not WAITS.network_s([(table, FLOAT, 1, 1.0)])[0].any()
    assert WAITS.row_s(table, FLOAT, 1e-6) == 0


def test_of_two_passes_the_shorter_one_counts() -> None:
    made, other = Made(120), Made(120)
    made.passes, other.passes = (np.array([[1.0], [1.1]]) * np.ones(120) for _ in range(2))
    other.passes[:, ::2] = other.passes[::-1, ::2]
    assert made.compose() == other.compose()
    found = made.said(made.compose(), made.measured)
    assert np.median(np.abs(found / made.whole_s - 1)) < 0.05


def test_the_more_passes_differ_the_less_is_learnt_from_them() -> None:
    made, learnt = Made(24), list[float]()
    for longer in (1.0, 1.05, 1.2):
        made.passes = np.array([[1.0], [longer]]) * np.ones(24)
        found = made.compose()
        learnt.append(float(np.abs(factors(found) - 1).sum() + rates(found).sum() / 2e-11))
    assert learnt[0] > learnt[1] > learnt[2] > 0


def test_a_network_costs_what_the_median_of_its_passes_says() -> None:
    made = Made(120)
    made.passes = np.array([[0.99], [1.0], [1.5]]) * np.ones(120)
    found = made.compose()
    np.testing.assert_allclose(made.said(found, made.measured), made.whole_s, rtol=0.02)


def test_a_slower_device_waits_longer_for_memory_and_between_kernels() -> None:
    composition = Made().compose()
    slower = composition.slower(3.0)
    np.testing.assert_allclose(rates(slower), 3 * rates(composition))
    assert slower.waits == WAITS.slower(3.0)
    assert (slower.waited, slower.kernel_bytes) == (composition.waited, composition.kernel_bytes)
    assert slower.longer == composition.longer
    assert slower.kernel_s == pytest.approx(3 * composition.kernel_s) and slower.factors == composition.factors


@pytest.mark.parametrize(
    "change", [{"factors": {"other": 1.0}}, {"networks": 0}, {"measured_width": -0.1}, {"more": 1}]
)
def test_a_composition_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Composition.model_validate(FLAT.model_dump() | change)
