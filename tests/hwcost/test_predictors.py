import math
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

import hwcost.predictors
from hwcost.errors import FitError, UnknownPredictorError
from hwcost.features import column, feature_matrix
from hwcost.hardware import Hardware
from hwcost.ops import FLOAT, INT8, PLAIN, Boundary, Conv
from hwcost.predictors import load_predictor, predictor_names
from hwcost.predictors.base import Calibration, Predictor
from hwcost.predictors.boosted import BoostedPredictor
from hwcost.predictors.borrowed import BorrowedPredictor
from hwcost.predictors.forest import ForestPredictor, Trees
from hwcost.predictors.linear import FlopsPredictor, LinearPredictor, TiledPredictor, _non_negative
from hwcost.predictors.mlp import MlpPredictor
from hwcost.predictors.nnmeter import NnMeterPredictor
from hwcost.predictors.roofline import RooflinePredictor
from hwcost.testing import PredictorContract, plausible_rows

Learned = TypeVar("Learned", bound=Predictor)


class TestFlops(PredictorContract):
    predictor = FlopsPredictor
    worst_median_error = 0.5


class TestRoofline(PredictorContract):
    predictor = RooflinePredictor


class TestLinear(PredictorContract):
    predictor = LinearPredictor


class TestTiled(PredictorContract):
    predictor = TiledPredictor


class TestForest(PredictorContract):
    predictor = ForestPredictor


class TestBoosted(PredictorContract):
    predictor = BoostedPredictor


class TestMlp(PredictorContract):
    predictor = MlpPredictor


class TestNnMeter(PredictorContract):
    predictor = NnMeterPredictor
    worst_median_error = 0.5


class TestBorrowed(PredictorContract):
    predictor = BorrowedPredictor


def test_few_rows_borrow_from_their_relatives_and_keep_their_own_level() -> None:
    features, latency_s = plausible_rows(0, 80)
    base = TiledPredictor.fit(features, latency_s, np.random.default_rng(0))
    unseen, unseen_s = plausible_rows(1, 30)
    fitted = BorrowedPredictor.adapt(base, features[:3], 2.5 * latency_s[:3])
    assert fitted.log_factor == pytest.approx(math.log(2.5), abs=0.1)
    assert np.median(np.abs(np.exp(fitted.log_latency(unseen)) / (2.5 * unseen_s) - 1)) < 0.1
    again = BorrowedPredictor.from_state(fitted.state())
    np.testing.assert_array_equal(again.log_latency(unseen), fitted.log_latency(unseen))


def test_built_in_names_load_their_class() -> None:
    assert predictor_names() == ("flops", "roofline", "linear", "tiled", "forest", "boosted", "mlp", "nn-meter")
    assert all(load_predictor(name).name == name for name in predictor_names())


def test_unknown_predictor_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownPredictorError,
        match="one of flops, roofline, linear, tiled, forest, boosted, mlp, nn-meter, got 'oracle'",
    ):
        load_predictor("oracle")


def _register(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    points = EntryPoints(EntryPoint(name, value, hwcost.predictors.GROUP) for name, value in entries)
    monkeypatch.setattr(hwcost.predictors, "entry_points", lambda group: points.select(group=group))


def test_an_entry_point_adds_a_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, ("mine", "hwcost.predictors.linear:LinearPredictor"))
    assert predictor_names()[-1] == "mine"
    assert load_predictor("mine") is LinearPredictor


def test_two_predictors_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, ("mlp", "other.package:Mlp"))
    with pytest.raises(UnknownPredictorError, match=r"given once, got 'mlp' .* uninstall one"):
        predictor_names()


def test_an_entry_point_that_is_no_predictor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, ("mine", "hwcost.ops:Conv"), ("gone", "hwcost.nowhere:Predictor"))
    with pytest.raises(UnknownPredictorError, match=r"subclass of hwcost.Predictor, got hwcost.ops:Conv"):
        load_predictor("mine")
    with pytest.raises(UnknownPredictorError, match=r"'gone' cannot be loaded from hwcost.nowhere:Predictor"):
        load_predictor("gone")


def test_roofline_finds_the_constants_of_its_own_law() -> None:
    features, _ = plausible_rows(0, 80)
    truth = RooflinePredictor(np.log([3e-6, 1 / 2e10, 1 / 1e9]), tile=1)
    fitted = RooflinePredictor.fit(features, np.exp(truth.log_latency(features)), np.random.default_rng(0))
    assert fitted.tile == 1
    np.testing.assert_allclose(fitted.theta, truth.theta, atol=0.05)


def test_linear_never_has_a_negative_coefficient() -> None:
    fitted = LinearPredictor.fit(*plausible_rows(0, 50), np.random.default_rng(0))
    assert (fitted.coefficients >= 0).all()


def test_non_negative_least_squares_meets_its_optimality_conditions() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        design, target = generator.normal(size=(30, 8)), generator.normal(size=30)
        gram, moment = design.T @ design, design.T @ target
        found = _non_negative(gram, moment, np.zeros(8))
        slope = moment - gram @ found
        assert (found >= 0).all() and (slope <= 1e-9).all() and np.abs(slope * found).max() < 1e-9
        from_elsewhere = _non_negative(gram, moment, np.maximum(generator.normal(size=8), 0))
        np.testing.assert_allclose(from_elsewhere, found, atol=1e-9)


def test_the_tiled_model_finds_what_each_count_costs_and_each_algorithm_apart() -> None:
    generator = np.random.default_rng(0)
    ops = [Conv.square(8 * int(a), 8 * int(b), 14, int(k)) for a, b, k in generator.integers(1, 9, (300, 3))]
    ops += [Conv.square(3, 8 * int(b), int(h), 3) for b, h in generator.integers(4, 40, (60, 2))]
    features = feature_matrix((op, FLOAT) for op in ops)
    cycles = np.exp(features[:, column("log_cycles")])
    first = features[:, column("algorithm_channels_first")]
    latency_s = 1e-6 + cycles * np.where(first > 0, 1e-9, 3e-10)
    fitted = TiledPredictor.fit(features, latency_s, generator)
    assert np.median(np.abs(np.exp(fitted.log_latency(features)) / latency_s - 1)) < 0.01
    assert fitted.shares(features).sum(axis=1) == pytest.approx(1.0)


def noisy(predictor: type[Learned], seed: int, noise: float) -> Learned:
    """Fitted on latencies that are off by so much, natural logarithm."""
    features, latency_s = plausible_rows(seed, 300)
    latency_s = latency_s * np.exp(np.random.default_rng(seed).normal(0, noise, 300))
    return predictor.fit(features, latency_s, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_boosted_correction_never_falls_where_what_costs_time_grows(seed: int) -> None:
    fitted = noisy(BoostedPredictor, seed, 0.2)
    generator = np.random.default_rng([seed, 1])
    inputs = fitted._seen(plausible_rows(seed + 10, 400)[0])[:, fitted.columns]
    before = fitted.correction(inputs)
    assert 5 < fitted.rising.sum() < len(fitted.columns)
    for place in np.flatnonzero(fitted.rising):
        more = inputs.copy()
        more[:, place] += generator.exponential(0.5, len(inputs))
        assert (fitted.correction(more) >= before - 1e-6).all()
    free = np.flatnonzero(~fitted.rising)
    fewer = [fitted.correction(inputs + 0.5 * (np.arange(inputs.shape[1]) == place)) < before - 1e-6 for place in free]
    assert np.any(fewer)


@pytest.mark.parametrize("predictor", [RooflinePredictor, TiledPredictor, ForestPredictor, BoostedPredictor])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_more_channels_or_a_larger_map_are_not_predicted_to_take_less_time(
    predictor: type[RooflinePredictor | TiledPredictor | ForestPredictor | BoostedPredictor], seed: int
) -> None:
    """Of whole tiles: a rest of a tile may well take longer than a whole one."""
    fitted = noisy(predictor, seed, 0.05)
    for kernel in (1, 3):
        wider = [Conv.square(64, 16 * count, 14, kernel) for count in range(1, 24)]
        larger = [Conv.square(64, 64, 8 * count, kernel) for count in range(1, 10)]
        for ops in (wider, larger):
            steps = np.diff(fitted.log_latency(feature_matrix([(op, INT8) for op in ops])))
            assert steps.min() >= 0


@pytest.mark.parametrize("predictor", [ForestPredictor, BoostedPredictor])
def test_trees_in_numpy_equal_the_library_that_grew_them(predictor: type[ForestPredictor]) -> None:
    import xgboost
    from sklearn.ensemble import RandomForestRegressor

    inputs = np.random.default_rng(0).integers(0, 6, (200, 20)).astype(np.float64) / 4
    target = inputs[:, 0] * inputs[:, 1] - inputs[:, 2]
    model = predictor(RooflinePredictor(np.zeros(3), 0), np.arange(20, dtype=np.int32), np.array([-9.0, 9.0]))
    model.learn(inputs, target, np.random.default_rng(3))
    draws = np.random.default_rng(3)
    seed = int(draws.integers(2**31))
    if predictor is ForestPredictor:
        forest = RandomForestRegressor(n_estimators=30, max_features=0.33, min_samples_leaf=2, random_state=seed)
        expected = forest.fit(inputs.astype(np.float32), target).predict(inputs)
    else:
        from hwcost.predictors.boosted import _BAGS, _PARAMETERS, _ROUNDS

        data = xgboost.DMatrix(inputs.astype(np.float32), label=target)
        seeds = [seed, *(int(draws.integers(2**31)) for _ in range(_BAGS - 1))]
        rising = {"monotone_constraints": tuple(model.rising.astype(int).tolist())}
        bags = [xgboost.train({**_PARAMETERS, **rising, "seed": seed}, data, _ROUNDS).predict(data) for seed in seeds]
        expected = np.mean(bags, axis=0)
    np.testing.assert_allclose(model.correction(inputs), expected, atol=2e-6)


def test_learned_predictors_start_from_the_plain_model_that_predicts_better() -> None:
    features, latency_s = plausible_rows(0, 60)
    roofline = RooflinePredictor.fit(features, latency_s, np.random.default_rng(0))
    linear = LinearPredictor.fit(features, latency_s, np.random.default_rng(0))
    for truth in (roofline, linear):
        boosted = BoostedPredictor.fit(features, np.exp(truth.log_latency(features)), np.random.default_rng(0))
        assert boosted.plain.name == truth.name
        assert BoostedPredictor.from_state(boosted.state()).plain.name == truth.name


def test_trees_with_a_cycle_are_refused_not_walked_for_ever() -> None:
    def numbers(*values: int) -> np.ndarray:
        return np.array(values, dtype=np.int32)

    leaves = np.zeros(3, dtype=np.float32)
    Trees(numbers(0), numbers(0, 0, 0), leaves, numbers(1, 1, 2), numbers(2, 1, 2), leaves)
    with pytest.raises(FitError, match=r"nodes of stored trees are consistent.*run `hwcost fit` again"):
        Trees(numbers(0), numbers(0, 0, 0), leaves, numbers(1, 0, 2), numbers(2, 0, 2), leaves)


def test_fitting_the_mlp_leaves_torch_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    MlpPredictor.fit(*plausible_rows(0, 110), np.random.default_rng(0))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_predicting_needs_numpy_only(tmp_path: Path) -> None:
    features, latency_s = plausible_rows(0, 110)
    for name in (*predictor_names(), "borrowed"):
        fitted = load_predictor(name).fit(features, latency_s, np.random.default_rng(0))
        np.savez(tmp_path / f"{name}.npz", features=features, **fitted.state())
    code = """
import sys
import numpy as np
from hwcost.predictors import load_predictor, predictor_names
for name in (*predictor_names(), "borrowed"):
    with np.load(f"{sys.argv[1]}/{name}.npz", allow_pickle=False) as file:
        state = dict(file)
    features = state.pop("features")
    assert np.isfinite(load_predictor(name).from_state(state).log_latency(features)).all()
print([name for name in ("torch", "sklearn", "xgboost", "onnxruntime", "flwr") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_interval_holds_ninety_per_cent_of_unseen_operators() -> None:
    features, latency_s = plausible_rows(0, 400)
    fitted = RooflinePredictor.fit(features[:100], latency_s[:100], np.random.default_rng(0))
    residuals = fitted.log_latency(features[100:200]) - np.log(latency_s[100:200])
    estimate = fitted.predict(features[200:], Calibration.of(features[:100], residuals))
    held = (estimate.low_s <= latency_s[200:]) & (latency_s[200:] <= estimate.high_s)
    assert 0.85 <= held.mean() <= 0.98


def test_without_residuals_the_interval_is_a_factor_of_two() -> None:
    features, _ = plausible_rows(0, 1)
    calibration = Calibration.of(features, np.zeros(0))
    estimate = calibration.estimate(features, np.log([1e-3]))
    np.testing.assert_allclose([estimate.low_s[0], estimate.high_s[0]], [0.5e-3, 2e-3])


def test_few_residuals_stretch_the_interval() -> None:
    features, _ = plausible_rows(0, 3)
    assert Calibration.of(features, np.array([0.1, -0.2, 0.1])).log_width == pytest.approx(0.2 * 4 / 3)
    assert Calibration.of(features, np.zeros(3), floor=0.05).log_width == 0.05


def test_an_unseen_kernel_size_is_an_extrapolation() -> None:
    features = feature_matrix((Conv.square(32, 32, 16, kernel), INT8) for kernel in (1, 3, 5))
    calibration = Calibration.of(features, np.full(20, 0.05))
    unseen = feature_matrix([(Conv.square(32, 32, 16, 7), INT8)])
    assert unseen[0, column("kernel_width")] == 7.0
    assert calibration.estimate(unseen, np.zeros(1)).extrapolated.all()


@pytest.mark.parametrize(("residual", "per_octave"), [(0.05, 0.05), (3.0, math.log(2))])
def test_outside_of_what_was_fitted_an_interval_grows_by_its_width_or_a_factor_of_two_an_octave(
    residual: float, per_octave: float
) -> None:
    features = feature_matrix((Conv.square(32, 32, size, 3), INT8) for size in (4, 8, 16))
    calibration = Calibration.of(features, np.full(20, residual))
    outside = feature_matrix((Conv.square(32, 32, size, 3), INT8) for size in (32, 64))  # two octaves of work each
    estimate = calibration.estimate(outside, np.zeros(2))
    widths = np.log(estimate.high_s)
    assert widths[1] - widths[0] == pytest.approx(2 * per_octave) and widths[0] > residual


def test_features_of_another_width_are_refused() -> None:
    features, latency_s = plausible_rows(0, 5)
    fitted = FlopsPredictor.fit(features, latency_s, np.random.default_rng(0))
    with pytest.raises(FitError, match=r"features are \[operators, \d+\], got \(5, 3\)"):
        fitted.predict(features[:, :3], Calibration.of(features, np.zeros(0)))


def test_what_one_large_row_is_off_does_not_become_the_cost_of_a_byte_from_memory() -> None:
    """A sum that takes 0.1 ns a multiplication, but 1.5 times that in the only row that no cache holds."""

    def depthwise(channels: int, side: int) -> Conv:
        return Conv.square(channels, channels, side, 3, groups=channels)

    small = [depthwise(channels, side) for channels in (8, 24, 40, 96, 200) for side in (7, 14, 28, 56)]
    rows, unseen = [*small, depthwise(33, 150)], depthwise(32, 480)
    latency_s = np.array([1e-10 * op.macs for op in rows])
    latency_s[-1] *= 1.5
    hardware = Hardware.of((), "x86_64", {"L1d": 32768, "L2": 2**20, "L3": 2**24})
    fitted = TiledPredictor.fit(
        feature_matrix([(op, PLAIN) for op in rows], hardware), latency_s, np.random.default_rng(0)
    )
    (said,) = np.exp(fitted.log_latency(feature_matrix([(unseen, PLAIN)], hardware)))
    assert 0.7 < said / (1e-10 * unseen.macs) < 1.8  # 5 by a sum that is free to


@pytest.mark.parametrize("times", [0.2, 1.0, 30.0])
def test_a_way_of_few_rows_keeps_its_own_level_however_far_that_is_from_others(times: float) -> None:
    """Transposes that take 0.1 ns an element, and some that go by indices, which take so many times as long."""

    def indexed(side: int, channels: int) -> Boundary:
        return Boundary("transpose", (1, side, side, 2, channels), (0, 4, 3, 1, 2))

    shapes = [(channels, side, side) for channels in (24, 88, 160) for side in (7, 14, 28, 56)]
    plain = [Boundary("transpose", (1, *shape), (0, 2, 3, 1)) for shape in shapes]
    plain += [Boundary("transpose", (1, *shape[1:], shape[0]), (0, 3, 1, 2)) for shape in shapes]
    few = [indexed(*sizes) for sizes in ((3, 226), (32, 12), (64, 8), (56, 40), (64, 68), (417, 8))]
    rows, unseen = [*plain, *few], [indexed(*sizes) for sizes in ((24, 80), (12, 160), (16, 64), (100, 20))]
    latency_s = np.array([1e-10 * op.output_elements * (times if op in few else 1.0) for op in rows])
    fitted = TiledPredictor.fit(feature_matrix([(op, INT8) for op in rows]), latency_s, np.random.default_rng(0))
    said = np.exp(fitted.log_latency(feature_matrix([(op, INT8) for op in unseen])))
    np.testing.assert_allclose(said, [times * 1e-10 * op.output_elements for op in unseen], rtol=0.3)
