"""For a family of a few rows: what all its relatives cost, times how much more these rows cost than that.

Relatives are families at the same precision: those that move or map data, whose sum of counts knows starts, bytes and
spans, so that the factor is what one operator type's arithmetic adds; and the kinds of convolutions.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from hwcost.predictors.base import Predictor, State, Values, prefixed, take, unprefixed
from hwcost.predictors.linear import TiledPredictor
from hwcost.predictors.roofline import RooflinePredictor

_BASES: tuple[type[Predictor], ...] = (TiledPredictor, RooflinePredictor)


@dataclass(frozen=True, eq=False)
class BorrowedPredictor(Predictor):
    """`base` fitted on relatives; `log_factor` is the median of what the rows cost beyond it, a natural logarithm."""

    name = "borrowed"
    base: Predictor
    log_factor: float

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        """Without relatives: the roofline of the rows themselves."""
        return cls(RooflinePredictor.fit(features, latency_s, generator), 0.0)

    @classmethod
    def adapt(cls, base: Predictor, features: Values, latency_s: Values) -> Self:
        """A base fitted on relatives, brought to the level of these rows."""
        return cls(base, float(np.median(cls.check_rows(features, latency_s) - base.log_latency(features))))

    def log_latency(self, features: Values) -> Values:
        return self.base.log_latency(features) + self.log_factor

    def state(self) -> State:
        return {"log_factor": np.array(self.log_factor), **prefixed(self.base.name, self.base.state())}

    @classmethod
    def from_state(cls, state: State) -> Self:
        factor = float(take(state, "log_factor").item())
        kind = next((kind for kind in _BASES if unprefixed(kind.name, state)), _BASES[0])
        return cls(kind.from_state(unprefixed(kind.name, state)), factor)
