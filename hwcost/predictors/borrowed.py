"""For a family of a few rows: what all its relatives cost, times a factor, and what its own arithmetic adds.

Relatives are families at the same precision: those that move or map data, whose sum of counts knows starts, bytes and
spans, so that what is left for an operator type is its arithmetic, by the element; and the kinds of convolutions.

    t = factor (base + s_per_work * work)

Work is every input of every window: an element of a map, a multiply-accumulate of a convolution. The factor is
expected to be 1, the more so the fewer the rows.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from hwcost.features import column
from hwcost.predictors.base import Predictor, State, Values, prefixed, take, unprefixed
from hwcost.predictors.linear import TiledPredictor
from hwcost.predictors.roofline import RooflinePredictor

_BASES: Final[tuple[type[Predictor], ...]] = (TiledPredictor, RooflinePredictor)
_WORK: Final = [column("log_output_elements"), column("log_reduction")]
_S_PER_WORK: Final = np.array([0.0, *np.exp(np.arange(np.log(1e-13), np.log(1e-6), 0.15))])
_ROW_ERROR, _FACTOR_ERROR = 0.1, 0.5
"""How far a row is from what it should be, and a factor from 1, in natural logarithms."""
_ROUNDS: Final = 5


@dataclass(frozen=True, eq=False)
class BorrowedPredictor(Predictor):
    """`base` fitted on relatives; `log_factor`, the natural logarithm of the factor, and `s_per_work` of the rows."""

    name = "borrowed"
    base: Predictor
    log_factor: float
    s_per_work: float = 0.0

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        """Without relatives: the roofline of the rows themselves."""
        return cls(RooflinePredictor.fit(features, latency_s, generator), 0.0)

    @classmethod
    def adapt(cls, base: Predictor, features: Values, latency_s: Values) -> Self:
        """A base fitted on relatives, brought to these rows: least absolute error in logarithms, over all candidates
        for the seconds of a unit of work."""
        target, said, work = cls.check_rows(features, latency_s), base.log_latency(features), _log_work(features)
        found = []
        for s_per_work in _S_PER_WORK.tolist():
            left = target - _log_sum(said, work, s_per_work)
            log_factor = float(np.median(left))
            for _ in range(_ROUNDS):
                weight = 1 / np.maximum(np.abs(left - log_factor), _ROW_ERROR)
                log_factor = float((weight @ left) / (weight.sum() + _ROW_ERROR / _FACTOR_ERROR**2))
            loss = np.abs(left - log_factor).sum() / _ROW_ERROR + (log_factor / _FACTOR_ERROR) ** 2
            found.append((float(loss), s_per_work, log_factor))
        _, s_per_work, log_factor = min(found)
        return cls(base, log_factor, s_per_work)

    def log_latency(self, features: Values) -> Values:
        said = self.base.log_latency(features)
        return _log_sum(said, _log_work(features), self.s_per_work) + self.log_factor

    def state(self) -> State:
        own = {"log_factor": np.array(self.log_factor), "s_per_work": np.array(self.s_per_work)}
        return {**own, **prefixed(self.base.name, self.base.state())}

    @classmethod
    def from_state(cls, state: State) -> Self:
        factor, s_per_work = (float(take(state, name).item()) for name in ("log_factor", "s_per_work"))
        kind = next((kind for kind in _BASES if unprefixed(kind.name, state)), _BASES[0])
        return cls(kind.from_state(unprefixed(kind.name, state)), factor, max(s_per_work, 0.0))


def _log_work(features: Values) -> Values:
    work: Values = features[:, _WORK].sum(axis=1)
    return work


def _log_sum(log_s: Values, log_work: Values, s_per_work: float) -> Values:
    """Logarithm of so many seconds and those of the work."""
    total: Values = np.logaddexp(log_s, log_work + math.log(s_per_work)) if s_per_work else log_s
    return total
