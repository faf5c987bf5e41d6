"""What the learned predictors share: a plain model does the physics, a learner its remaining log-residual.

So they fall back to physics where they know nothing, and grow with an operator's size where nothing was profiled.
"""

from abc import abstractmethod
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hwcost.errors import FitError
from hwcost.features import FEATURE_NAMES, RISING, column
from hwcost.predictors.base import Predictor, State, Values, prefixed, take, unprefixed
from hwcost.predictors.linear import LinearPredictor, TiledPredictor
from hwcost.predictors.roofline import RooflinePredictor

_PLAIN: tuple[type[Predictor], ...] = (RooflinePredictor, LinearPredictor, TiledPredictor)


_PARTS = 3


def fit_plain(features: Values, latency_s: Values) -> Predictor:
    """The plain model with the smallest error on rows it was not fitted on, a third at a time; all rows if few."""
    return _fit_plain(features.tobytes(), latency_s.tobytes())


@lru_cache(maxsize=32)
def _fit_plain(features_bytes: bytes, latency_bytes: bytes) -> Predictor:
    """Remembered, since every learner asks for the same folds."""
    latency_s = np.frombuffer(latency_bytes)
    features = np.frombuffer(features_bytes).reshape(len(latency_s), -1)
    generator = np.random.default_rng(0)
    rows = len(latency_s)
    part = generator.permutation(rows) % _PARTS if rows >= 4 * _PARTS else np.zeros(rows, dtype=np.int64)
    errors = []
    for kind in _PLAIN:
        error = np.full(rows, np.inf)
        for index in np.unique(part):
            held = part == index
            fitted = ~held if held.sum() < rows else held
            if fitted.sum() >= kind.min_rows:
                model = kind.fit(features[fitted], latency_s[fitted], generator)
                error[held] = np.abs(model.log_latency(features[held]) - np.log(latency_s[held]))
        errors.append(float(np.minimum(error, 1.0).mean()))
    return _PLAIN[int(np.argmin(errors))].fit(features, latency_s, generator)


class ResidualPredictor(Predictor):
    """Base of the learned ones: a fitted plain model, times what is learned of its error.

    The learner sees the features that vary, the logarithm of what the plain model says, and the share of each of its
    terms. Its correction is kept within what was seen while fitting, so it cannot run away outside.
    """

    def __init__(self, plain: Predictor, columns: NDArray[np.int32], limits: Values) -> None:
        self.plain = plain
        self.columns = columns
        self.limits = limits

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        target = cls.check_rows(features, latency_s)
        plain = fit_plain(features, latency_s)
        residual = target - plain.log_latency(features)
        model = cls(plain, np.zeros(0, dtype=np.int32), np.array([residual.min(), residual.max()]))
        seen = model._seen(features)
        varies = np.ptp(seen, axis=0) > 1e-9
        varies[0] = True
        model.columns = np.flatnonzero(varies).astype(np.int32)
        model.learn(seen[:, model.columns], residual, generator)
        return model

    def _seen(self, features: Values) -> Values:
        base = self.plain.log_latency(features)
        shares = self.plain.shares(features) if isinstance(self.plain, TiledPredictor) else features[:, :0]
        return np.column_stack([base, features, shares])

    @property
    def rising(self) -> NDArray[np.bool_]:
        """Of which inputs more never takes less time: what the plain model says, and the features in `RISING`."""
        return np.isin(self.columns, [0, *(1 + column(name) for name in RISING)])

    def log_latency(self, features: Values) -> Values:
        seen = self._seen(features)
        return seen[:, 0] + np.clip(self.correction(seen[:, self.columns]), *self.limits)

    def state(self) -> State:
        return {
            "limits": self.limits,
            "columns": self.columns,
            **prefixed(self.plain.name, self.plain.state()),
            **prefixed("learned", self.learned_state()),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        found = [kind for kind in _PLAIN if unprefixed(kind.name, state)]
        kind = found[0] if found else _PLAIN[0]
        plain = kind.from_state(unprefixed(kind.name, state))
        columns = take(state, "columns", None).astype(np.int32)
        model = cls(plain, columns, take(state, "limits", 2))
        if len(columns) and (
            columns.min() < 0 or columns.max() >= model._seen(np.zeros((1, len(FEATURE_NAMES)))).shape[1]
        ):
            raise FitError("a predictor's columns are those of its features, got others: run `hwcost fit` again")
        model.restore(unprefixed("learned", state))
        return model

    @abstractmethod
    def learn(self, inputs: Values, residual: Values, generator: np.random.Generator) -> None:
        """Learn log-residuals [rows] of inputs [rows, columns]."""

    @abstractmethod
    def correction(self, inputs: Values) -> Values:
        """The learned log-residual, [operators]."""

    @abstractmethod
    def learned_state(self) -> State:
        """The arrays of what was learned."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """The inverse of `learned_state`."""
