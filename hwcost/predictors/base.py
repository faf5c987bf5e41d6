"""What every latency predictor is: fitted once on rows of one family at one precision, then a pure function.

A predictor learns the logarithm of the latency, so predictions are positive and relative errors count alike over five
decades. Its interval does not come from itself but from a `Calibration`, the errors it made on operators it was not
fitted on; so the intervals of all predictors mean the same. A fitted predictor is its arrays: `state` and `from_state`
carry them to a file and back, without pickle, and predicting needs nothing but numpy.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hwcost.errors import FitError
from hwcost.features import FEATURE_NAMES, RANGE_FEATURES, SIZE_FEATURES, WAYS, column, way_of

Values = NDArray[np.float64]
State = dict[str, np.ndarray]

COVERAGE = 0.90
"""Share of unseen operators that an interval is calibrated to hold."""

_LOG_RANGE = (math.log(1e-10), math.log(1e5))
_TOLERANCE = 0.25  # how far outside the fitted range (natural log) an operator may lie before it is an extrapolation
_OCTAVE = math.log(2.0)
_RANGE_COLUMNS = [column(name) for name in RANGE_FEATURES]
_SIZES = len(SIZE_FEATURES)  # the first of the range
_KNOTS = 6
_ROWS_PER_KNOT = 25
_PRIOR_ROWS = 10


@dataclass(frozen=True, eq=False)
class Estimate:
    """Predictions: latency and the ends of its interval in seconds, float64 [operators]; `extrapolated` is bool."""

    latency_s: Values
    low_s: Values
    high_s: Values
    extrapolated: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Spread:
    """How much larger or smaller errors are than those of the whole family: by way of computing, and by latency.

    `ways`: [1 + ways]. `knots`: [2, knots], logarithms of latencies (rising) and factors between which to interpolate.
    """

    ways: Values
    knots: Values

    def __post_init__(self) -> None:
        rising = self.knots.ndim == 2 and len(self.knots) == 2 and (np.diff(self.knots[0]) >= 0).all()
        if (
            not rising
            or self.ways.shape != (1 + len(WAYS),)
            or not (self.ways > 0).all()
            or not (self.knots[1] > 0).all()
        ):
            raise FitError(
                "the spread of a calibration has positive factors at rising latencies: run `hwcost fit` again"
            )

    @classmethod
    def even(cls) -> "Spread":
        """The same everywhere."""
        return cls(np.ones(1 + len(WAYS)), np.array([[0.0], [1.0]]))

    @classmethod
    def of(cls, features: Values, log_latency: Values, log_residuals: Values) -> "Spread":
        """From held-out residuals at predicted latencies; even where they are few."""
        error = np.abs(log_residuals)
        mean = float(error.mean()) if len(error) else 0.0
        if len(error) < 2 * _ROWS_PER_KNOT or mean == 0:
            return cls.even()
        way = way_of(features)
        counts = np.bincount(way, minlength=1 + len(WAYS))
        sums = np.bincount(way, weights=error, minlength=1 + len(WAYS))
        ways = (sums + _PRIOR_ROWS * mean) / (counts + _PRIOR_ROWS) / mean
        parts = np.array_split(np.argsort(log_latency, kind="stable"), min(_KNOTS, len(error) // _ROWS_PER_KNOT))
        scaled = error / (mean * ways[way])
        factors = [(scaled[part].sum() + _PRIOR_ROWS) / (len(part) + _PRIOR_ROWS) for part in parts]
        return cls(ways, np.array([[float(log_latency[part].mean()) for part in parts], factors]))

    def at(self, features: Values, log_latency: Values) -> Values:
        """The factor at each operator."""
        factor: Values = self.ways[way_of(features)] * np.interp(log_latency, *self.knots)
        return factor


def conformal_width(scores: Values) -> float:
    """The conformal quantile of absolute errors, place (m + 1) * COVERAGE among them, between two neighbours where that
    is no whole number: so on average just that share of new ones is held, of few errors too. With too few for that
    place the largest one, stretched by what is missing; with none a factor of two."""
    count = len(scores)
    if count == 0:
        return math.log(2.0)
    place = (count + 1) * COVERAGE
    if place > count:
        return float(scores.max()) * math.ceil(place) / count
    return float(np.interp(place, np.arange(1, count + 1), np.sort(scores)))


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far off a predictor is, in natural logarithms of the latency.

    `log_width`: half-width that held `COVERAGE` of the held-out rows, where `spread` is 1; never below `floor`.
    `systematic`: (below, above), added for rows that were not measured, whose error all rows share. `lows`, `highs`:
    the fitted range of `RANGE_FEATURES`; outside it the interval widens by its own width per octave, but by no more
    than a factor of two (costs grow with a size, and no faster than by its square), and the estimate is flagged.
    """

    log_width: float
    systematic: tuple[float, float]
    lows: Values
    highs: Values
    spread: Spread
    floor: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.log_width, self.floor, *self.systematic, *self.lows, *self.highs)
        if (
            not np.isfinite(numbers).all()
            or min(self.log_width, self.floor, *self.systematic) < 0
            or (self.lows > self.highs).any()
        ):
            raise FitError(f"a calibration has finite widths of at least 0 and rising ranges, got {self}")

    @classmethod
    def of(
        cls,
        features: Values,
        log_residuals: Values,
        floor: float = 0.0,
        systematic: tuple[float, float] = (0.0, 0.0),
        log_latency: Values | None = None,
    ) -> "Calibration":
        """From the features fitted on [rows, features] and the held-out residuals [m], log predicted - log true.

        With the held-out predictions `log_latency` [rows] the width follows what errors depend on.
        """
        spread, scores = Spread.even(), np.abs(log_residuals)
        if log_latency is not None and len(log_residuals):
            spread = Spread.of(features, log_latency, log_residuals)
            scores = scores / spread.at(features, log_latency)
        fitted = features[:, _RANGE_COLUMNS]
        width = max(conformal_width(scores), floor)
        return cls(width, systematic, fitted.min(axis=0), fitted.max(axis=0), spread, floor)

    def widths(self, features: Values, log_latency: Values) -> Values:
        """Half-widths within the fitted range, [operators]."""
        return np.maximum(self.log_width * self.spread.at(features, log_latency), self.floor)

    def estimate(self, features: Values, log_latency: Values) -> Estimate:
        """The interval around predictions, by how far each operator lies outside the fitted range."""
        seen = features[:, _RANGE_COLUMNS]
        outside = np.maximum(np.maximum(self.lows - seen, seen - self.highs), 0.0)
        farthest = outside.max(axis=1)
        octaves = np.maximum(outside[:, :_SIZES].max(axis=1), np.minimum(farthest, 1.0)) / _OCTAVE
        extrapolated = farthest > _TOLERANCE
        log_latency = np.clip(log_latency, *_LOG_RANGE)
        width = self.widths(features, log_latency)
        width = width + np.where(extrapolated, octaves, 0.0) * np.minimum(width, _OCTAVE)
        low = np.exp(np.clip(log_latency - width - self.systematic[0], *_LOG_RANGE))
        high = np.exp(np.clip(log_latency + width + self.systematic[1], *_LOG_RANGE))
        return Estimate(np.exp(log_latency), low, high, extrapolated)


class Predictor(ABC):
    """A latency model of one family of operators at one precision. Instances are fitted and do not change.

    Subclasses have a `name`, say how few rows they can be fitted on, and import heavy libraries only inside `fit`. One
    `on_request` is fitted where it is named only: it is there to be compared with, and takes long.
    `hwcost.testing.PredictorContract` tests a subclass.
    """

    name: ClassVar[str]
    min_rows: ClassVar[int] = 1
    on_request: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        """Fit on features [rows, features] and seconds [rows]; every random draw comes from `generator`.

        Raises `FitError` for rows it cannot be fitted on (`check_rows`)."""

    @abstractmethod
    def log_latency(self, features: Values) -> Values:
        """Natural logarithm of the seconds, [operators]."""

    @abstractmethod
    def state(self) -> State:
        """All that is needed to predict again, as arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: State) -> Self:
        """The inverse of `state`; raises `FitError` for arrays that are missing or contradict each other."""

    def predict(self, features: Values, calibration: Calibration) -> Estimate:
        """Seconds with an interval for operators [operators, features]: always positive and finite."""
        if features.ndim != 2 or features.shape[1] != len(FEATURE_NAMES):
            raise FitError(f"features are [operators, {len(FEATURE_NAMES)}], got {features.shape}")
        return calibration.estimate(features, self.log_latency(features))

    @classmethod
    def check_rows(cls, features: Values, latency_s: Values) -> Values:
        """The logarithm of the latencies, after refusing what nothing can be fitted on."""
        if features.ndim != 2 or features.shape != (len(latency_s), len(FEATURE_NAMES)):
            raise FitError(
                f"a predictor is fitted on features [rows, {len(FEATURE_NAMES)}] and seconds [rows], "
                f"got {features.shape} and {latency_s.shape}"
            )
        if len(latency_s) < cls.min_rows:
            raise FitError(
                f"{cls.name} needs at least {cls.min_rows} rows, got {len(latency_s)}: profile more operators"
            )
        if not (np.isfinite(features).all() and np.isfinite(latency_s).all() and (latency_s > 0).all()):
            raise FitError("latencies to fit on are positive and finite, and features finite: profile the device again")
        return np.log(latency_s)


def take(state: State, name: str, *shape: int | None) -> np.ndarray:
    """An array of a state, its number of axes and its fixed sizes checked (None: any); raises `FitError`."""
    array = state.get(name)
    if array is None:
        raise FitError(f"a predictor's state lacks the array {name!r}: run `hwcost fit` again")
    matches = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not matches or not np.isfinite(array).all():
        raise FitError(f"the array {name!r} of a predictor is finite and of shape {shape}, got {array.shape}")
    return array


def prefixed(prefix: str, state: State) -> State:
    """The same arrays under `prefix.name`."""
    return {f"{prefix}.{name}": array for name, array in state.items()}


def unprefixed(prefix: str, state: State) -> State:
    """The arrays whose name starts with `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): array for name, array in state.items() if name.startswith(f"{prefix}.")}
