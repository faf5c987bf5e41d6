"""Two plain models: proportional to the work (the baseline everybody starts with), and a sum of counts.

The sum has non-negative coefficients, so that it stays positive and grows with every count, also where nothing was
profiled: t = sum_i c_i x_i, c_i >= 0, least squares on the relative error.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from hwcost.features import column
from hwcost.predictors.base import Predictor, State, Values, take

_COUNTS = (
    ("log_macs",),
    ("log_macs_tiled_16",),
    ("log_input_elements",),
    ("log_output_elements",),
    ("log_weights",),
    ("log_output_plane", "log_reduction"),
    ("log_output_elements", "log_reduction"),
)
"""Each count as the product of the features named; the last two: elements of the unfolded input, and of all windows."""

_RIDGE = 1e-6
_SWEEPS = 500


@dataclass(frozen=True, eq=False)
class FlopsPredictor(Predictor):
    """Seconds proportional to the multiply-accumulates (to the elements written where there are none)."""

    name = "flops"
    log_s_per_operation: float

    @staticmethod
    def _work(features: Values) -> Values:
        macs = features[:, column("log_macs")]
        return np.where(macs > 0, macs, features[:, column("log_output_elements")])

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        target = cls.check_rows(features, latency_s)
        return cls(float(np.median(target - cls._work(features))))

    def log_latency(self, features: Values) -> Values:
        return self._work(features) + self.log_s_per_operation

    def state(self) -> State:
        return {"log_s_per_operation": np.array(self.log_s_per_operation)}

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(float(take(state, "log_s_per_operation").item()))


def _counts(features: Values) -> Values:
    """1 and the counts, [rows, 1 + counts]."""
    columns = [np.exp(features[:, [column(name) for name in names]].sum(axis=1)) for names in _COUNTS]
    return np.column_stack([np.ones(len(features)), *columns])


def _non_negative(design: Values, target: Values) -> Values:
    """argmin |design c - target|^2 + ridge |c|^2 over c >= 0, by cyclic coordinate descent (convex: it converges)."""
    gram = design.T @ design + _RIDGE * len(design) * np.eye(design.shape[1])
    moment = design.T @ target
    solution = np.zeros(design.shape[1])
    for _ in range(_SWEEPS):
        before = solution.copy()
        for index in range(len(solution)):
            rest = moment[index] - gram[index] @ solution + gram[index, index] * solution[index]
            solution[index] = max(rest / gram[index, index], 0.0)
        if np.abs(solution - before).max() <= 1e-9 * max(np.abs(solution).max(), 1e-30):
            break
    return solution


@dataclass(frozen=True, eq=False)
class LinearPredictor(Predictor):
    """`coefficients`: seconds per call and per unit of each count, all at least 0."""

    name = "linear"
    min_rows = 3
    coefficients: Values

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        cls.check_rows(features, latency_s)
        relative = _counts(features) / latency_s[:, None]
        scale = np.sqrt((relative**2).mean(axis=0))
        return cls(_non_negative(relative / scale, np.ones(len(features))) / scale)

    def log_latency(self, features: Values) -> Values:
        return np.log(_counts(features) @ self.coefficients)

    def state(self) -> State:
        return {"coefficients": self.coefficients}

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(take(state, "coefficients", 1 + len(_COUNTS)))
