"""The contract of a predictor, as tests that ship: subclass, name your class, run pytest.

    class TestMine(PredictorContract):
        predictor = MyPredictor

Rows follow a law with a start, a compute and a memory term, and a few per cent of noise: not a device, but what any
latency model should be able to learn. `plausible_profile` is a whole profile of that kind, for tests that need one.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest

from hwcost.errors import FitError
from hwcost.features import feature_matrix
from hwcost.ops import INT8, Conv, Operator, Precision, bytes_moved
from hwcost.predictors.base import Calibration, Estimate, Predictor, Values
from hwcost.profiles import Machine, Profile, Realisation, Row, Source


def random_convolutions(generator: np.random.Generator, count: int) -> list[Conv]:
    """Dense convolutions of the sizes that small networks have."""
    return [
        Conv.square(
            in_channels=int(generator.integers(1, 33)) * 4,
            out_channels=int(generator.integers(1, 33)) * 4,
            size=int(generator.integers(4, 33)),
            kernel=int(generator.choice([1, 3, 5])),
            stride=int(generator.choice([1, 2])),
        )
        for _ in range(count)
    ]


def plausible_latency_s(
    op: Operator, generator: np.random.Generator, noise: float = 0.03, precision: Precision = INT8
) -> float:
    """Seconds of a kernel on a small core (half as fast in float) by a law of three terms, with log-normal noise."""
    peak = 8e9 if precision.activation_bits == 8 else 4e9
    law_s = 1e-6 + max(op.macs / peak, bytes_moved(op, precision) / 4e9)
    return law_s * float(np.exp(generator.normal(0.0, noise)))


def plausible_profile(
    ops: Sequence[Operator],
    *,
    precisions: Sequence[Precision] = (INT8,),
    source: Source = "measured",
    seed: int = 0,
    noise: float = 0.03,
) -> Profile:
    """A profile of distinct operators by the law, every row of `source`; 2- and 4-bit weights run as int8 kernels."""
    generator = np.random.default_rng(seed)
    spread = 1.02 if source == "measured" else 1.5
    rows = []
    for precision in precisions:
        for op in ops:
            latency_s = plausible_latency_s(op, generator, noise, precision)
            rows.append(
                Row(
                    operator=op,
                    precision=precision,
                    realisation="plausible kernel",
                    native=True,
                    source=source,
                    latency_s=latency_s,
                    interval_s=(latency_s / spread, latency_s * spread),
                )
            )
    unpacked = tuple(
        Realisation(
            kind=kind,
            precision=Precision(bits, 8),
            runs_as=INT8,
            native=False,
            description="unpacked to int8 on loading",
        )
        for kind in ("conv", "gemm")
        for bits in (2, 4)
    )
    return Profile(
        device="plausible",
        created="2026-01-01T00:00:00Z",
        machine=Machine(cpu="a law, not a device", architecture="none", cores=1),
        int8_form="u8u8",
        run_overhead_s=8e-6,
        noise_floor=0.01,
        realisations=unpacked,
        rows=tuple(rows),
    )


def plausible_rows(seed: int, count: int) -> tuple[Values, Values]:
    """Features [count, features] and seconds [count] of random convolutions at 8 bits."""
    generator = np.random.default_rng(seed)
    ops = random_convolutions(generator, count)
    latency_s = np.array([plausible_latency_s(op, generator) for op in ops])
    return feature_matrix((op, INT8) for op in ops), latency_s


class PredictorContract:
    """Subclass with `predictor` set; every test is about the class, none about its accuracy on a device."""

    predictor: ClassVar[type[Predictor]]
    worst_median_error: ClassVar[float] = 0.15
    """Median relative error allowed on unseen operators of the plausible law."""

    @pytest.fixture(scope="class")
    def fitted(self) -> Predictor:
        return self._fit(0, 120)

    def _fit(self, seed: int, count: int) -> Predictor:
        features, latency_s = plausible_rows(seed, count)
        return self.predictor.fit(features, latency_s, np.random.default_rng(seed))

    def _estimate(self, fitted: Predictor, features: Values) -> Estimate:
        seen, latency_s = plausible_rows(0, 120)
        return fitted.predict(features, Calibration.of(seen, fitted.log_latency(seen) - np.log(latency_s)))

    def test_has_a_name(self) -> None:
        assert self.predictor.name and self.predictor.name == self.predictor.name.strip()

    def test_unseen_operators_are_predicted(self, fitted: Predictor) -> None:
        features, latency_s = plausible_rows(1, 60)
        error = np.abs(np.exp(fitted.log_latency(features)) / latency_s - 1)
        assert np.median(error) < self.worst_median_error

    def test_predictions_are_positive_finite_and_inside_their_interval(self, fitted: Predictor) -> None:
        features = plausible_rows(2, 60)[0]
        far = features.copy()
        far[:, features.std(axis=0) > 0] *= 3.0
        for estimate in (self._estimate(fitted, features), self._estimate(fitted, far)):
            assert np.isfinite([estimate.latency_s, estimate.low_s, estimate.high_s]).all()
            assert (estimate.low_s > 0).all()
            assert (estimate.low_s <= estimate.latency_s).all()
            assert (estimate.latency_s <= estimate.high_s).all()

    def test_outside_the_fitted_range_the_estimate_is_flagged_and_wider(self, fitted: Predictor) -> None:
        inside = feature_matrix([(Conv.square(64, 64, 16, 3), INT8)])
        outside = feature_matrix([(Conv.square(1024, 1024, 64, 3), INT8)])
        near, far = self._estimate(fitted, inside), self._estimate(fitted, outside)
        assert not near.extrapolated.any()
        assert far.extrapolated.all()
        assert far.high_s[0] / far.low_s[0] > near.high_s[0] / near.low_s[0]

    def test_far_larger_operators_cost_more(self, fitted: Predictor) -> None:
        ops = [Conv.square(8 * 2**step, 8 * 2**step, 16, 3) for step in range(5)]
        assert (np.diff(fitted.log_latency(feature_matrix((op, INT8) for op in ops))) > 0).all()

    def test_the_state_is_arrays_that_predict_the_same(self, fitted: Predictor) -> None:
        state = fitted.state()
        assert all(isinstance(array, np.ndarray) and array.dtype != object for array in state.values())
        features = plausible_rows(3, 40)[0]
        restored = self.predictor.from_state(state)
        np.testing.assert_array_equal(restored.log_latency(features), fitted.log_latency(features))

    def test_the_same_seed_gives_the_same_state(self, fitted: Predictor) -> None:
        again = self._fit(0, 120).state()
        assert list(again) == list(fitted.state())
        for name, array in fitted.state().items():
            np.testing.assert_array_equal(again[name], array)

    def test_an_operator_costs_the_same_alone_and_among_others(self, fitted: Predictor) -> None:
        features = plausible_rows(4, 30)[0]
        alone = np.concatenate([fitted.log_latency(row[None]) for row in features])
        np.testing.assert_allclose(alone, fitted.log_latency(features), rtol=1e-9)

    def test_few_rows_are_fitted_or_refused(self) -> None:
        for count in range(1, 14):
            features, latency_s = plausible_rows(5, count)
            if count < self.predictor.min_rows:
                with pytest.raises(FitError, match=f"at least {self.predictor.min_rows} rows, got {count}"):
                    self.predictor.fit(features, latency_s, np.random.default_rng(0))
            else:
                model = self.predictor.fit(features, latency_s, np.random.default_rng(0))
                assert np.isfinite(model.log_latency(features)).all()

    def test_equal_rows_do_not_break_it(self) -> None:
        features, latency_s = plausible_rows(6, 1)
        count = max(self.predictor.min_rows, 2)
        model = self.predictor.fit(
            np.repeat(features, count, axis=0), np.repeat(latency_s, count), np.random.default_rng(0)
        )
        assert np.isfinite(model.log_latency(features)).all()

    def test_empty_input_is_refused(self) -> None:
        features, latency_s = plausible_rows(7, 1)
        with pytest.raises(FitError, match="needs at least"):
            self.predictor.fit(features[:0], latency_s[:0], np.random.default_rng(0))

    def test_zero_latency_is_refused(self) -> None:
        features, latency_s = plausible_rows(8, max(self.predictor.min_rows, 2))
        latency_s[0] = 0.0
        with pytest.raises(FitError, match="positive and finite"):
            self.predictor.fit(features, latency_s, np.random.default_rng(0))

    def test_a_state_without_its_arrays_is_refused(self) -> None:
        with pytest.raises(FitError, match="lacks the array"):
            self.predictor.from_state({})
