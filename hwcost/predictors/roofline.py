"""The roofline, fitted: an operator takes a fixed start, and then as long as the slower of arithmetic and memory.

    t = start + (compute^4 + memory^4)^(1/4),  compute = work / peak,  memory = bytes / bandwidth

The fourth-power norm is a maximum with a rounded corner, which makes the three constants fittable by damped least
squares on log t. Work counts the multiply-accumulates of whole tiles (of 1, 8 or 16 output channels: what fits
best), since a kernel computes full vectors. A weak prior keeps it sane with one row.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from hwcost.features import column
from hwcost.predictors.base import Predictor, State, Values, take

_TILES = ("log_macs", "log_macs_tiled_8", "log_macs_tiled_16")
# Natural logarithms of 1 us, of seconds per operation at 5 GMAC/s, of seconds per byte at 5 GB/s: a small CPU core.
_PRIOR = np.log([1e-6, 1 / 5e9, 1 / 5e9])
_PRIOR_WIDTH, _ERROR_WIDTH = 3.0, 0.1
_CORNER = 4.0
_STEPS = 40


def _logs(features: Values, tile: int) -> Values:
    """Logarithms of (1, work, bytes), [rows, 3]. Without multiply-accumulates work is every input of every window."""
    window = features[:, column("log_output_elements")] + features[:, column("log_reduction")]
    macs = features[:, column("log_macs")]
    work = np.where(macs > 0, features[:, column(_TILES[tile])], window)
    return np.stack([np.zeros(len(features)), work, features[:, column("log_bytes")]], axis=1)


def _log_time(logs: Values, theta: Values) -> tuple[Values, Values]:
    """Log seconds [rows], and its derivative by the three log constants [rows, 3]."""
    terms = logs + theta
    corner = np.logaddexp(_CORNER * terms[:, 1], _CORNER * terms[:, 2]) / _CORNER
    log_time = np.logaddexp(terms[:, 0], corner)
    derivative = np.exp(terms - np.stack([log_time, corner, corner], axis=1))
    derivative[:, 1:] = derivative[:, 1:] ** _CORNER * np.exp(corner - log_time)[:, None]
    return log_time, derivative


def _solve(logs: Values, target: Values) -> tuple[float, Values]:
    """Levenberg-Marquardt on Huber-weighted log-residuals; the objective reached, and the constants."""

    def objective(theta: Values) -> float:
        error = np.abs(_log_time(logs, theta)[0] - target) / _ERROR_WIDTH
        loss = np.where(error < 2.0, error**2, 4.0 * error - 4.0).sum()
        return float(loss + (((theta - _PRIOR) / _PRIOR_WIDTH) ** 2).sum())

    theta = _PRIOR + np.median(target - _log_time(logs, _PRIOR)[0])
    best, damping = objective(theta), 1e-2
    for _ in range(_STEPS):
        predicted, derivative = _log_time(logs, theta)
        error = predicted - target
        weight = np.minimum(1.0, 2.0 * _ERROR_WIDTH / np.maximum(np.abs(error), 1e-12)) / _ERROR_WIDTH**2
        gradient = derivative.T @ (weight * error) + (theta - _PRIOR) / _PRIOR_WIDTH**2
        curvature = derivative.T @ (weight[:, None] * derivative) + np.eye(3) / _PRIOR_WIDTH**2
        trial = theta - np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
        value = objective(trial)
        if value < best:
            small = best - value < 1e-6 * best
            theta, best, damping = trial, value, damping / 4
            if small:
                break
        else:
            damping *= 8
            if damping > 1e8:
                break
    return best, theta


@dataclass(frozen=True, eq=False)
class RooflinePredictor(Predictor):
    """`theta`: log start in s, log s per unit of work, log s per byte; `tile` indexes the channel tiles 1, 8, 16."""

    name = "roofline"
    theta: Values
    tile: int

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        target = cls.check_rows(features, latency_s)
        candidates = []
        for tile in range(len(_TILES)):
            logs = _logs(features, tile)
            if tile and np.array_equal(logs, _logs(features, 0)):
                continue
            candidates.append((*_solve(logs, target), tile))
        _, theta, tile = min(candidates, key=lambda candidate: candidate[0])
        return cls(theta, tile)

    def log_latency(self, features: Values) -> Values:
        return _log_time(_logs(features, self.tile), self.theta)[0]

    def state(self) -> State:
        return {"theta": self.theta, "tile": np.array(self.tile, dtype=np.int64)}

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(take(state, "theta", 3), int(take(state, "tile").item()) % len(_TILES))
