"""How much longer operators take on a device than on its sibling, from a few of them measured on both.

The ratio of the two latencies is, in logarithms, a sum of parts: one for all operators, one for each class of kernels
(float or int8, products or data), for each kind, and for each family at each precision; each with a level, and a curve
over the operator's size and intensity, since small operators are the runtime's and large ones the arithmetic's or the
memory's. Every part is normally distributed around nothing, so a part that few samples speak of stays near the parts
above it, and what no sample speaks of stays uncertain. How large parts and single deviations are is averaged over, by
how probable each makes the samples. Single deviations have heavy tails, so one odd operator moves little.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hwcost.composition import CLASSES, kernel_class
from hwcost.errors import TransferError
from hwcost.features import column, family, feature_matrix
from hwcost.ops import Operator, Precision

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

_COMMON: Final = 2.0
"""Standard deviation, in natural logarithms, of the part that all operators share: devices differ by factors."""
_LEVELS: Final = ((0.02, 0.3, 1.0), (0.02, 0.25, 0.8), (0.02, 0.2, 0.6))
"""Those of classes, of kinds, and of families at a precision, each averaged over by itself: samples of one class say
nothing of how far classes lie apart."""
_CURVES: Final = (0.4, 0.3, 0.25, 0.2)
"""Those of the curves: of all operators, a class, a kind, a family."""
_BENDS: Final = (0.1, 0.5, 1.3)
"""Factors of the curves, averaged over."""
_REACH: Final = 2.0
"""How far apart, in natural logarithms of latency and intensity, operators still tell of each other."""
_DEVIATIONS: Final = (0.02, 0.06, 0.15, 0.35, 0.8)
"""Scales of a single operator's own deviation, averaged over."""
_FREEDOM: Final = 4.0
_ROUNDS: Final = 8
_POOL: Final = 1200
_DESIGN: Final = (0.3, 0.25, 0.2, 0.7)
"""Levels and bend for which operators are chosen."""
_DESIGN_DEVIATION: Final = 0.15
_QUANTILE: Final = 1.645
"""Of the normal distribution, for intervals of 90 %."""
_NEGLIGIBLE: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Shift:
    """Natural logarithm of the ratio of each operator's latencies, and the half-width of its interval of about 90 %."""

    log_ratio: Values
    width: Values


@dataclass(frozen=True, eq=False)
class Sibling:
    """Operators at their precisions with latencies on the device that is known, in seconds."""

    layers: tuple[tuple[Operator, Precision], ...]
    latency_s: Values

    @cached_property
    def _place(self) -> Values:
        """Where each lies: logarithms of latency and intensity, [operators, 2]."""
        intensity = feature_matrix(self.layers)[:, column("log_intensity")]
        return np.column_stack([np.log(self.latency_s), intensity])

    @cached_property
    def _groups(self) -> tuple[Indices, ...]:
        """The class, kind and family of each operator, as numbers."""
        classes = np.array([CLASSES.index(kernel_class(op, precision)) for op, precision in self.layers])
        families = [(family(op), str(precision)) for op, precision in self.layers]
        kinds = [(name.partition(".")[0], text.split(":")[0]) for name, text in families]
        return classes, _numbered(kinds), _numbered(families)

    def _parts(self, first: Indices, second: Indices) -> tuple[Values, ...]:
        """What covariances are sums of, [first, second]: the curves, and whose groups are the same."""
        apart = ((self._place[first][:, None] - self._place[second][None]) ** 2).sum(axis=2)
        near = np.exp(-0.5 * apart / _REACH**2)
        same = [(numbers[first][:, None] == numbers[second][None]).astype(np.float64) for numbers in self._groups]
        curves = _CURVES[0] ** 2 + sum(curve**2 * one for curve, one in zip(_CURVES[1:], same, strict=True))
        return near * curves, *same

    def choose(self, count: int, seed: int) -> tuple[int, ...]:
        """The operators to measure, one after the other that which leaves the least variance over all of them.

        Raises `TransferError` where there are not so many."""
        if not 1 <= count <= len(self.layers):
            raise TransferError(f"at least 1 and at most {len(self.layers)} operators are chosen, got {count}")
        pool = np.random.default_rng(seed).permutation(len(self.layers))[: max(_POOL, count)]
        covariance = _covariance(self._parts(pool, pool), *_DESIGN)
        chosen: list[int] = []
        for _ in range(count):
            own = np.diag(covariance) + _DESIGN_DEVIATION**2
            gain = (covariance**2).sum(axis=0) / own
            gain[chosen] = -np.inf
            best = int(np.argmax(gain))
            chosen.append(best)
            covariance = covariance - np.outer(covariance[:, best], covariance[best]) / own[best]
        return tuple(pool[chosen].tolist())

    def shift(self, items: Sequence[int], latency_s: Sequence[float], noise: float = 0.0) -> Shift:
        """From latencies of some operators on the new device in seconds, known up to `noise` as a share, those of all.

        Raises `TransferError`."""
        places, measured_s = np.asarray(items, dtype=np.int64), np.asarray(latency_s, dtype=np.float64)
        if not len(places) or places.shape != measured_s.shape or not (measured_s > 0).all():
            raise TransferError(
                f"a device is told from its sibling by at least one operator with its latency, got {len(places)} "
                f"operators and {len(measured_s)} latencies: measure some"
            )
        ratios = np.log(measured_s / self.latency_s[places])
        found = []
        everything = np.arange(len(self.layers))
        parts = self._parts(everything, places)
        for sizes in product(*_LEVELS, _BENDS):
            reach = _covariance(parts, *sizes)
            for deviation in _DEVIATIONS:
                evidence, pull, whole = _explained(ratios, reach[places], math.hypot(deviation, noise))
                found.append((evidence, sizes, deviation, pull, whole))
        evidences = np.array([one[0] for one in found])
        weights = np.exp(evidences - evidences.max())
        weights /= weights.sum()
        mean: Values = np.zeros(len(everything))
        square: Values = np.zeros(len(everything))
        total = 0.0
        for (_, sizes, deviation, pull, whole), weight in zip(found, weights.tolist(), strict=True):
            if weight > _NEGLIGIBLE:
                reach = _covariance(parts, *sizes)
                said = reach @ pull
                variance = _variance(*sizes) - (reach * np.linalg.solve(whole, reach.T).T).sum(axis=1)
                variance = np.maximum(variance, 0.0) + deviation**2 * _FREEDOM / (_FREEDOM - 2)
                mean, square, total = mean + weight * said, square + weight * (said**2 + variance), total + weight
        mean = mean / total
        return Shift(mean, _QUANTILE * np.sqrt(np.maximum(square / total - mean * mean, 0.0)))


def _covariance(parts: tuple[Values, ...], *sizes: float) -> Values:
    """Of the logarithms of ratios: `sizes` are the standard deviations of the groups, and the factor of the curves."""
    *levels, bend = sizes
    total: Values = _COMMON**2 + bend**2 * parts[0]
    for level, same in zip(levels, parts[1:], strict=True):
        total = total + level**2 * same
    return total


def _variance(*sizes: float) -> float:
    *levels, bend = sizes
    return _COMMON**2 + sum(level**2 for level in levels) + bend**2 * sum(curve**2 for curve in _CURVES)


def _numbered(names: Sequence[tuple[str, str]]) -> Indices:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def _explained(ratios: Values, among: Values, deviation: float) -> tuple[float, Values, Values]:
    """How probable the samples are (Laplace's approximation), what each pulls, and their covariance: a heavy-tailed
    deviation is a normal one whose precision is found in rounds."""
    precision: Values = np.ones(len(ratios))
    pull: Values = precision
    whole: Values = among
    for turn in range(_ROUNDS):
        whole = among + np.diag(deviation**2 / precision)
        pull = np.linalg.solve(whole, ratios).astype(np.float64)
        error = (ratios - among @ pull) / deviation
        if turn < _ROUNDS - 1:
            precision = (_FREEDOM + 1) / (_FREEDOM + error**2)
    constant = math.lgamma((_FREEDOM + 1) / 2) - math.lgamma(_FREEDOM / 2) - 0.5 * math.log(_FREEDOM * math.pi)
    likelihood = len(ratios) * (constant - math.log(deviation))
    likelihood -= (_FREEDOM + 1) / 2 * float(np.log1p(error**2 / _FREEDOM).sum())
    volume = np.linalg.slogdet(whole)[1] - np.log(deviation**2 / precision).sum()
    return float(likelihood - 0.5 * pull @ among @ pull - 0.5 * volume), pull, whole
