"""A predictor fitted on one device, brought to its sibling: what it says, times a factor that depends on how long."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from hwcost.errors import FitError
from hwcost.predictors import load_predictor
from hwcost.predictors.base import Predictor, State, Values, prefixed, take, unprefixed
from hwcost.predictors.roofline import RooflinePredictor

_MOST_KNOTS = 6
_ROWS_PER_KNOT = 4


@dataclass(frozen=True, eq=False)
class ShiftedPredictor(Predictor):
    """`base` of the other device; `knots` [2, knots]: natural logarithms of what it says (rising), and of the factors
    between which to interpolate."""

    name = "shifted"
    base: Predictor
    knots: Values

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        """Without another device: the roofline of the rows themselves."""
        return cls(RooflinePredictor.fit(features, latency_s, generator), np.zeros((2, 1)))

    @classmethod
    def adapt(cls, base: Predictor, features: Values, latency_s: Values) -> Self:
        """A base fitted on another device, brought to these rows."""
        wanted, said = cls.check_rows(features, latency_s), base.log_latency(features)
        order = np.argsort(said, kind="stable")
        parts = np.array_split(order, min(_MOST_KNOTS, max(1, len(order) // _ROWS_PER_KNOT)))
        return cls(base, np.array([[values[part].mean() for part in parts] for values in (said, wanted - said)]))

    def log_latency(self, features: Values) -> Values:
        said = self.base.log_latency(features)
        shifted: Values = said + np.interp(said, *self.knots)
        return shifted

    def state(self) -> State:
        return {"knots": self.knots, **prefixed(self.base.name, self.base.state())}

    @classmethod
    def from_state(cls, state: State) -> Self:
        knots = take(state, "knots", 2, None)
        if not knots.size or (np.diff(knots[0]) < 0).any():
            raise FitError("a shifted predictor has factors at rising latencies: run `hwcost adapt` again")
        names = {name.partition(".")[0] for name in state} - {"knots"}
        if len(names) != 1:
            raise FitError(f"a shifted predictor has one base, got {len(names)}: run `hwcost adapt` again")
        (base,) = names
        return cls(load_predictor(base).from_state(unprefixed(base, state)), knots)
