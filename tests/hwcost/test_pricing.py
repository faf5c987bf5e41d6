import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwcost.composition import Composition
from hwcost.errors import FitError, ProfileError, UnknownOperatorError
from hwcost.fit import fit_path, fit_profile, write_fit
from hwcost.ops import FLOAT, INT8, Conv, Operator, Pool, Precision
from hwcost.pricing import COMPOSITION, CostModel, load_cost_model
from hwcost.profiles import Profile, write_profile
from hwcost.space import SearchSpace
from hwcost.testing import plausible_profile, random_convolutions
from hwcost.waits import USES, Wait, Waits

SPACE = SearchSpace.for_image((1, 8, 8), 10)
UNSEEN = Conv.square(12, 40, 8, 3)
WAITED = (
    Wait(bytes=2**22, s_per_byte=0.0),
    Wait(bytes=2**23, s_per_byte=2e-10),
    Wait(bytes=2**26, s_per_byte=4e-10),
)
COMPOSITIONS = Composition(
    networks=8,
    factors={
        "float pointwise": 1.5,
        "float spatial": 1.5,
        "float product": 1.5,
        "float data": 0.5,
        "int8 pointwise": 1.25,
        "int8 spatial": 1.25,
        "int8 product": 1.25,
        "int8 data": 0.75,
    },
    kernel_s=1e-7,
    near_bytes=2**30,
    waits=Waits(of=dict.fromkeys(USES, WAITED)),
    s_per_byte={"product tensors": 2e-11, "data tensors": 2e-11, "near tensors": 1e-11},
    measured_width=0.05,
    predicted_width=0.2,
)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return plausible_profile(SPACE.operators())


@pytest.fixture(scope="module")
def model(profile: Profile) -> CostModel:
    return CostModel(profile, fit_profile(profile, names=["linear"]))


@pytest.fixture(scope="module")
def composed(profile: Profile) -> CostModel:
    """Whose fit has learnt from whole networks."""
    fit = fit_profile(profile, names=["linear"])
    assert fit.composition is None
    return CostModel(profile, replace(fit, composition=COMPOSITIONS))


def test_exact_rows_win_over_predictions(profile: Profile, model: CostModel) -> None:
    for row in profile.rows:
        price = model.price(row.operator, INT8)
        assert (price.latency_s, price.source, price.label) == (row.latency_s, "measured", "measured")
        assert (price.low_s, price.high_s) == row.interval_s


def test_four_bit_convolutions_cost_what_the_int8_kernel_costs(model: CostModel) -> None:
    stem = next(op for op, _ in SPACE.fixed_layers() if isinstance(op, Conv))
    for op in (stem, UNSEEN):
        price = model.price(op, Precision(4, 8))
        assert price == model.price(op, INT8)
        assert price.runs_as == INT8


def test_one_kernel_behind_three_bit_widths_is_priced_once(model: CostModel) -> None:
    prices = model.prices([(UNSEEN, Precision(bits, 8)) for bits in (2, 4, 8)])
    assert prices[0].source == "predicted"
    assert all(price is prices[0] for price in prices)


def test_without_weights_only_the_activation_bits_matter(model: CostModel) -> None:
    pool = Pool.global_average(32, 2, 2)
    assert model.price(pool, Precision(4, 8)) == model.price(pool, INT8)


def test_a_prediction_says_which_rows_it_comes_from(profile: Profile, model: CostModel) -> None:
    price = model.price(UNSEEN, INT8)
    assert (price.source, price.rows, price.label) == ("predicted", ("measured",), "predicted from measured rows")
    assert 0 < price.low_s < price.latency_s < price.high_s
    estimated = plausible_profile(SPACE.operators(), source="estimated")
    other = CostModel(estimated, fit_profile(estimated, names=["linear"])).price(UNSEEN, INT8)
    assert other.label == "predicted from estimated rows"
    assert other.high_s / other.low_s > price.high_s / price.low_s


def test_an_operator_far_outside_the_profile_is_flagged(model: CostModel) -> None:
    assert not model.price(Conv(16, 90, 8, 8, (1, 1)), INT8).extrapolated
    assert model.price(Conv.square(512, 512, 64, 3), INT8).extrapolated


def test_without_a_fit_the_unprofiled_is_an_error_that_says_what_to_run(profile: Profile) -> None:
    model = CostModel(profile)
    assert model.price_all(SPACE.layers(SPACE.largest)).sources == ("measured",)
    with pytest.raises(UnknownOperatorError, match=r"no row of conv\(in_channels=12,.* at w8a8.*run `hwcost fit`"):
        model.price(UNSEEN, INT8)


def test_an_unprofiled_family_is_an_error_not_zero(model: CostModel) -> None:
    op: Operator = Pool("max", 16, 8, 8, (2, 2), (2, 2))
    with pytest.raises(UnknownOperatorError, match=r"family pool.max at w8a8 .* run `hwcost profile`"):
        model.price(op, INT8)


def test_an_unprofiled_precision_is_an_error_not_another_precisions_price(model: CostModel) -> None:
    with pytest.raises(UnknownOperatorError, match=r"family conv.dense at w32a32"):
        model.price(UNSEEN, FLOAT)


def test_many_operators_cost_what_each_costs_alone(model: CostModel) -> None:
    layers = [(op, INT8) for op in random_convolutions(np.random.default_rng(1), 40)]
    together = model.prices([*layers, *layers])
    assert together[:40] == together[40:]
    for layer, price in zip(layers, together, strict=False):
        assert model.price(*layer).latency_s == pytest.approx(price.latency_s, rel=1e-9)


def test_a_network_costs_its_overhead_and_its_layers(profile: Profile, model: CostModel) -> None:
    layers = SPACE.layers(SPACE.largest)
    total = model.price_all(layers)
    assert len(total.prices) == len(layers)
    assert total.latency_s == pytest.approx(profile.run_overhead_s + sum(price.latency_s for price in total.prices))
    widest = profile.run_overhead_s + sum(price.high_s for price in total.prices)
    assert total.high_s == pytest.approx(widest * (1 + COMPOSITION))
    assert total.low_s < total.latency_s < total.high_s


def test_the_interval_of_a_network_holds_when_all_errors_go_one_way() -> None:
    ops = [op for op, _ in SPACE.layers(SPACE.largest)]
    slow = CostModel(plausible_profile(list(dict.fromkeys(ops)), noise=0.0))
    total = slow.price_all(SPACE.layers(SPACE.largest))
    worst = sum(price.high_s for price in total.prices) + total.run_overhead_s
    assert total.high_s >= worst * 1.09


def test_a_profile_without_a_fit_is_loaded(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(ProfileError, match="no profile at"):
        load_cost_model(path)
    write_profile(profile, path)
    assert load_cost_model(path).fit is None
    write_fit(fit_profile(profile, names=[]), fit_path(path))
    assert load_cost_model(path).price(UNSEEN, INT8).source == "predicted"


def test_a_stale_fit_is_refused(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "p.json"
    write_profile(profile, path)
    write_fit(fit_profile(profile, names=[]), fit_path(path))
    write_profile(profile.model_copy(update={"run_overhead_s": 9e-6}), path)
    with pytest.raises(FitError, match=r"one state of its profile: .* run `hwcost fit` again"):
        load_cost_model(path)


@pytest.mark.parametrize("op", [UNSEEN, Pool.global_average(40, 2, 2), *SPACE.operators()[:6]], ids=str)
def test_a_price_is_that_of_the_kernel_by_itself_times_its_factor_and_the_change_to_it(
    model: CostModel, composed: CostModel, op: Operator
) -> None:
    alone, price = model.price(op, INT8), composed.price(op, INT8)
    factor = COMPOSITIONS.factors["int8 product" if op.macs else "int8 data"]
    assert (price.source, price.rows, price.runs_as) == (alone.source, alone.rows, alone.runs_as)
    expected = [one * factor + 1e-7 for one in (alone.latency_s, alone.low_s, alone.high_s)]
    assert [price.latency_s, price.low_s, price.high_s] == pytest.approx(expected)
    width = COMPOSITIONS.measured_width if price.source == "measured" else COMPOSITIONS.predicted_width
    assert price.part_s == pytest.approx((price.latency_s * math.exp(-width), price.latency_s * math.exp(width)))


def test_without_networks_a_part_is_the_price_and_what_adding_up_misses(model: CostModel) -> None:
    for op in (UNSEEN, *SPACE.operators()[:3]):
        price = model.price(op, INT8)
        assert price.part_s == pytest.approx((price.low_s * (1 - COMPOSITION), price.high_s * (1 + COMPOSITION)))


@pytest.mark.parametrize("layers", [SPACE.layers(SPACE.largest), [(UNSEEN, INT8), *SPACE.layers(SPACE.largest)] * 3])
def test_the_parts_of_a_network_add_up_to_its_interval(
    model: CostModel, composed: CostModel, layers: list[tuple[Operator, Precision]]
) -> None:
    for one in (model, composed):
        total = one.price_all(layers)
        assert total.shared_s == 0  # of such small networks caches hold all weights
        parts = [sum(price.part_s[end] for price in total.prices) for end in (0, 1)]
        overhead = [total.run_overhead_s * share for share in (1 - COMPOSITION, 1 + COMPOSITION)]
        assert [total.low_s, total.high_s] == pytest.approx(np.add(parts, overhead))
        assert total.latency_s == pytest.approx(total.run_overhead_s + sum(price.latency_s for price in total.prices))
    assert composed.price_all(layers).latency_s > model.price_all(layers).latency_s


def test_weights_that_caches_do_not_hold_cost_a_network_time(model: CostModel, composed: CostModel) -> None:
    large = Conv(512, 512, 2, 2, (3, 3), pads=(1, 1, 1, 1))  # of every weight, four products
    layers = [(large, Precision(4, 8))] * 40  # which run as int8 kernels, whose weights are 8 bits wide
    total = composed.price_all(layers)
    weight_bytes = 40 * (large.weights + 8 * large.channels)
    tensors_s = 40 * 4096 * COMPOSITIONS.s_per_byte["product tensors"]  # in so long a call
    assert total.shared_s == pytest.approx(weight_bytes * WAITED[-1].s_per_byte + tensors_s)
    kernels_s = sum(price.latency_s for price in total.prices)
    assert total.latency_s == pytest.approx(total.run_overhead_s + total.shared_s + kernels_s)
    assert total.low_s < total.latency_s < total.high_s
    few = composed.price_all(layers[:4])
    assert composed.price_all(layers[:1]).shared_s == 0 < few.shared_s < total.shared_s / 10
    assert model.price_all(layers).shared_s == 0


def test_a_network_of_more_predictions_is_less_sure(composed: CostModel) -> None:
    layers = SPACE.layers(SPACE.largest)
    sure, less = composed.price_all(layers), composed.price_all([*layers, (UNSEEN, INT8)])
    assert less.high_s / less.low_s > sure.high_s / sure.low_s
