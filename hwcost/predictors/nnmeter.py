"""The predictor of nn-Meter (Zhang et al., MobiSys 2021), as a baseline: a random forest on a kernel's configuration.

Its features are the published ones (the side of the input, channels in and out, kernel, stride, FLOPs, parameters) and
its hyper-parameters those published for CPU convolutions (microsoft/nn-Meter, kernel_predictor.py): 320 trees of depth
70, 6 features a split. It learns milliseconds, not their logarithm, and nothing physical, so it needs many rows.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from hwcost.features import column
from hwcost.predictors.base import Predictor, State, Values
from hwcost.predictors.forest import Trees, copy_forest

_CONFIGURATION = (
    "log_in_channels",
    "log_out_channels",
    "kernel_width",
    "stride",
    "log_macs",
    "log_weights",
    "log_groups",
)
_TREES, _DEPTH, _FEATURES = 320, 70, 6
_LEAST_MS = 1e-5


def _inputs(features: Values) -> Values:
    """[rows, 8]: side of the input, and `_CONFIGURATION` as plain numbers."""
    columns = [
        np.exp(features[:, column(name)]) if name.startswith("log_") else features[:, column(name)]
        for name in _CONFIGURATION
    ]
    return np.column_stack([np.exp(features[:, column("log_plane")] / 2), *columns])


@dataclass(frozen=True, eq=False)
class NnMeterPredictor(Predictor):
    """`trees`: their sum is the latency in milliseconds."""

    name = "nn-meter"
    min_rows = 100
    on_request = True
    trees: Trees

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        from sklearn.ensemble import RandomForestRegressor

        cls.check_rows(features, latency_s)
        forest = RandomForestRegressor(
            n_estimators=_TREES,
            max_depth=_DEPTH,
            max_features=_FEATURES,
            random_state=int(generator.integers(2**31)),
            n_jobs=1,
        )
        forest.fit(_inputs(features).astype(np.float32), 1e3 * latency_s)
        return cls(copy_forest(forest))

    def log_latency(self, features: Values) -> Values:
        milliseconds: Values = np.maximum(self.trees.total(_inputs(features)), _LEAST_MS)
        return np.log(1e-3 * milliseconds)

    def state(self) -> State:
        return self.trees.state()

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(Trees.from_state(state, 1 + len(_CONFIGURATION)))
