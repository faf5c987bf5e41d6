"""A few latencies of a new device, and many of known ones, become predictions of everything on the new one.

An item is anything with a latency: a network, an operator. What it takes is taken to be a sum, of features times what
a unit of each costs on the device. Ten samples cannot tell what a unit of everything costs, but known devices say what
is usual, and how far devices differ: a normal prior on costs relative to the device's speed. Runtimes differ in what
they execute at all (one removes what nothing reads, another does not), so there are several *ways* to count features.
The samples decide between the ways, between closer and looser priors, and between levels of noise, each weighted by how
probable it makes the samples; known devices say which ways and levels are usual. Noise has heavy tails, so one slow
sample does no harm. Nothing is tuned to a device: whatever there is to choose is averaged over.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hwcost.errors import TransferError

Values = NDArray[np.float64]

_LOOSENESS: Final = (0.1, 0.3, 1.0)
"""How far a unit's cost may lie from what is usual, as a share, beyond what known devices differ by."""
_NOISES: Final = (0.004, 0.012, 0.03, 0.07, 0.15)
"""Scales of a sample's relative error."""
_FREEDOM: Final = 4.0
"""Degrees of freedom of its distribution (Student's t): heavy tails, finite variance."""
_LEAST_NOISE: Final = 0.004
_LEAST_COST: Final = 0.5
"""A unit's usual cost counts as at least this share of an even split of the latency: looseness is a share of that."""
_LEAST_SHARE: Final = 0.1
"""Of the median latency: no prediction weighs more than one of this length, however short."""
_LEAST_LATENCY: Final = 0.02
_OTHER_WAY: Final = 0.02
"""Weight of a known device in the prior of a way that is not its own."""
_UNHEARD: Final = 0.25
"""Known devices that each way counts for, beside those whose own it is: a new device may be like none of them."""
_POOL: Final = 3000
_DESIGN_LOOSENESS, _DESIGN_NOISE, _DESIGN_BETWEEN = 0.5, 0.05, 0.5
_BETWEEN_WEIGHT: Final = 0.5
"""Of telling the ways apart, when samples are chosen, beside 1 for the costs in all ways together."""
_ROUNDS, _LEVEL_ROUNDS = 6, 3
_NEGLIGIBLE: Final = 2e-3
_QUANTILE: Final = 1.645
"""Of the normal distribution, for intervals of 90 %."""


@dataclass(frozen=True, eq=False)
class Transferred:
    """Predictions of every item in seconds with intervals of about 90 %, [items]; `ways`: how probable each is."""

    latency_s: Values
    low_s: Values
    high_s: Values
    ways: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Way:
    """One way to count: features scaled to a mean of 1, [items, features]; usual costs and their covariance, in shares
    of a device's mean latency; its prior probability."""

    features: Values
    usual: Values
    covariance: Values
    probability: float

    def spread(self, looseness: float) -> Values:
        """Covariance of a new device's costs."""
        least = _LEAST_COST / len(self.usual)
        loose: Values = self.covariance + np.diag((looseness * np.maximum(np.abs(self.usual), least)) ** 2)
        return loose

    def level(self, items: NDArray[np.int64], latency_s: Values) -> float:
        """How slow a device is, from a few latencies: seconds of an item of mean latency."""
        return float(np.median(latency_s / np.maximum(self.features[items] @ self.usual, 2 * _LEAST_SHARE)))


@dataclass(frozen=True, eq=False)
class Transfer:
    """What known devices tell of a new one; made by `learn`."""

    by_way: dict[str, _Way]
    noises: Values

    @classmethod
    def learn(cls, ways: Mapping[str, Values], known_s: Values) -> "Transfer":
        """From features of each way to count, [items, features], a column of ones being what every item costs, and
        latencies of known devices in seconds [items, devices], nan where there is none. Raises `TransferError`."""
        _check(ways, known_s)
        count = known_s.shape[1]
        found = {name: _explain(features, known_s) for name, features in ways.items()}
        scales = np.array([scale for *_, scale in found.values()])
        own, best = scales.argmin(axis=0), np.maximum(scales.min(axis=0), _LEAST_NOISE)
        by_way = {}
        for place, (name, (features, costs, scale)) in enumerate(found.items()):
            weight = (best / np.maximum(scale, _LEAST_NOISE)) ** 2 + _OTHER_WAY
            weight = weight / weight.sum()
            usual = weight @ costs
            off = costs - usual
            probability = (float((own == place).sum()) + _UNHEARD) / (count + _UNHEARD * len(found))
            by_way[name] = _Way(features, usual, (off.T * weight) @ off, probability)
        near = np.exp(-0.5 * np.log(np.array(_NOISES)[:, None] / best) ** 2).sum(axis=1) + 0.3
        return cls(by_way, near / near.sum())

    @property
    def items(self) -> int:
        return len(next(iter(self.by_way.values())).features)

    def choose(self, count: int, seed: int, had: Sequence[int] = ()) -> tuple[int, ...]:
        """The `count` items to measure next: one after the other that which leaves the least variance over all items,
        in each way, and between the ways. Raises `TransferError`."""
        pool = np.random.default_rng(seed).permutation(self.items)[:_POOL]
        pool = pool[~np.isin(pool, np.asarray(had, dtype=np.int64))]
        if not 1 <= count <= len(pool):
            raise TransferError(f"at least 1 and at most {len(pool)} of {self.items} items are chosen, got {count}")
        places = np.concatenate([np.asarray(had, dtype=np.int64), pool])
        designs = self._designs(places)
        chosen: list[int] = []
        for step in range(len(had) + count):
            if step < len(had):
                best = step
            else:
                gain = sum(weight * design.gains() for design, weight in designs)
                assert isinstance(gain, np.ndarray)
                gain[[*range(len(had)), *chosen]] = -np.inf
                best = int(np.argmax(gain))
                chosen.append(best)
            for design, _ in designs:
                design.add(best)
        return tuple(places[chosen].tolist())

    def _designs(self, places: NDArray[np.int64]) -> list[tuple["_Design", float]]:
        designs, said = [], []
        for way in self.by_way.values():
            expected = np.maximum(way.features[places] @ way.usual, 3 * _LEAST_SHARE)
            said.append(expected)
            shares = way.features[places] / expected[:, None]
            designs.append((_Design(shares, way.spread(_DESIGN_LOOSENESS)), way.probability))
        if len(said) > 1:
            between = np.array(said).T
            between = between / (between @ np.array([way.probability for way in self.by_way.values()]))[:, None]
            designs.append((_Design(between, np.eye(len(said)) * _DESIGN_BETWEEN**2), _BETWEEN_WEIGHT))
        return designs

    def predict(self, items: Sequence[int], latency_s: Sequence[float]) -> Transferred:
        """Every item of the new device, from the latencies in seconds of some. Raises `TransferError`."""
        places, sampled = np.asarray(items, dtype=np.int64), np.asarray(latency_s, dtype=np.float64)
        if not len(places) or places.shape != sampled.shape or not ((places >= 0) & (places < self.items)).all():
            raise TransferError(
                f"samples are some of {self.items} items, each with its latency, got {len(places)} items and "
                f"{len(sampled)} latencies: measure at least one"
            )
        if not (np.isfinite(sampled).all() and (sampled > 0).all()):
            raise TransferError("latencies of samples are positive and finite: measure them again")
        found = [
            (name, noise, _explain_samples(way, looseness, noise, places, sampled), way.probability * usual)
            for name, way in self.by_way.items()
            for looseness in _LOOSENESS
            for noise, usual in zip(_NOISES, self.noises.tolist(), strict=True)
        ]
        evidence = np.array([one.log_evidence + math.log(prior) for _, _, one, prior in found])
        weights = np.exp(evidence - evidence.max())
        weights /= weights.sum()
        mean: Values = np.zeros(self.items)
        square: Values = np.zeros(self.items)
        total, ways = 0.0, dict.fromkeys(self.by_way, 0.0)
        for (name, noise, one, _), weight in zip(found, weights.tolist(), strict=True):
            ways[name] += weight
            if weight > _NEGLIGIBLE:
                log_s, variance = one.log_latency(self.by_way[name].features, float(np.median(sampled)))
                variance = variance + noise**2 * _FREEDOM / (_FREEDOM - 2)
                mean = mean + weight * log_s
                square = square + weight * (log_s**2 + variance)
                total += weight
        mean = mean / total
        width = _QUANTILE * np.sqrt(np.maximum(square / total - mean * mean, 0.0))
        return Transferred(np.exp(mean), np.exp(mean - width), np.exp(mean + width), ways)


def _check(ways: Mapping[str, Values], known_s: Values) -> None:
    if not ways or known_s.ndim != 2 or not known_s.shape[1]:
        raise TransferError(
            f"a transfer needs a way to count features, and a known device, got {len(ways)} ways and latencies "
            f"{known_s.shape}"
        )
    for name, features in ways.items():
        if features.ndim != 2 or len(features) != len(known_s) or not np.isfinite(features).all():
            raise TransferError(
                f"features of way {name!r} are finite, [items, features] for {len(known_s)} items, got {features.shape}"
            )
        if not np.abs(features).mean(axis=0).all():
            raise TransferError(f"a feature of way {name!r} is 0 for every item: leave it out")
        if (np.isfinite(known_s).sum(axis=0) < features.shape[1]).any():
            raise TransferError(f"a known device has at least as many latencies as way {name!r} has features")
    known = known_s[np.isfinite(known_s)]
    if (known <= 0).any() or np.isinf(known_s).any():
        raise TransferError("latencies of known devices are positive seconds, or nan where there is none")


def _explain(features: Values, known_s: Values) -> tuple[Values, Values, Values]:
    """Scaled features, each known device's costs in shares of its mean latency [devices, features], and the usual size
    of the errors that are left, in natural logarithms [devices]."""
    scaled = features / np.abs(features).mean(axis=0)
    costs, scales = [], []
    for latency_s in known_s.T:
        there = np.isfinite(latency_s)
        cost_s = _robust_costs(scaled[there], latency_s[there])
        said_s = np.maximum(scaled @ cost_s, _LEAST_SHARE * np.median(latency_s[there]))
        costs.append(cost_s / said_s.mean())
        scales.append(1.48 * float(np.median(np.abs(np.log(latency_s[there] / said_s[there])))))
    return scaled, np.array(costs), np.array(scales)


def _robust_costs(features: Values, latency_s: Values) -> Values:
    """Least squares on relative errors, those beyond three typical ones counting less (Huber)."""
    said_s: Values = np.full(len(latency_s), np.median(latency_s))
    doubt: Values = np.ones(len(latency_s))
    cost_s: Values = np.zeros(features.shape[1])
    for _ in range(_ROUNDS):
        rows, wanted = features / said_s[:, None], latency_s / said_s
        square = (rows * doubt[:, None]).T @ rows
        square = square + 1e-9 * np.trace(square) * np.eye(len(square))
        cost_s = np.linalg.solve(square, rows.T @ (wanted * doubt))
        error = np.abs(wanted - rows @ cost_s)
        doubt = np.minimum(1.0, 3 * np.median(error) / np.maximum(error, 1e-9))
        said_s = np.maximum(features @ cost_s, _LEAST_SHARE * np.median(latency_s))
    return cost_s


class _Design:
    """How sure a linear model is of all items, as samples are added one by one."""

    def __init__(self, rows: Values, covariance: Values) -> None:
        self._rows, self._covariance = rows, covariance
        self._moments = rows.T @ rows / len(rows)
        self._all = float(np.trace(covariance @ self._moments))

    def gains(self) -> Values:
        """The share of the variance before any sample that each row would take away, on average over all rows."""
        reach = self._rows @ self._covariance
        less = ((reach @ self._moments) * reach).sum(axis=1)
        gains: Values = less / (_DESIGN_NOISE**2 + (reach * self._rows).sum(axis=1)) / self._all
        return gains

    def add(self, place: int) -> None:
        row = self._rows[place]
        reach = self._covariance @ row
        self._covariance = self._covariance - np.outer(reach, reach) / (_DESIGN_NOISE**2 + row @ reach)


@dataclass(frozen=True, eq=False)
class _Explanation:
    """Costs in seconds that explain the samples, their covariance, and how probable they make the samples."""

    cost_s: Values
    covariance: Values
    log_evidence: float

    def log_latency(self, features: Values, median_s: float) -> tuple[Values, Values]:
        """Natural logarithm of every item's seconds, and its variance."""
        said_s = np.maximum(features @ self.cost_s, _LEAST_LATENCY * median_s)
        variance = ((features @ self.covariance) * features).sum(axis=1) / said_s**2
        return np.log(said_s), np.minimum(variance, 1.0)


def _explain_samples(
    way: _Way, looseness: float, noise: float, items: NDArray[np.int64], latency_s: Values
) -> _Explanation:
    """The most probable costs under one way, prior and noise; errors are relative, so what is said is found in rounds,
    and so are the samples' precisions, since a heavy-tailed error is a normal one of unknown precision. The evidence is
    Laplace's approximation."""
    features, level_s = way.features[items], way.level(items, latency_s)
    prior, expected = way.spread(looseness) * level_s**2, way.usual * level_s
    least_s, count = _LEAST_SHARE * float(np.median(latency_s)), len(items)
    said_s, precision, cost_s = np.maximum(features @ expected, least_s), np.ones(count), expected
    for turn in range(_ROUNDS):
        rows, wanted = features / said_s[:, None], latency_s / said_s
        reach = prior @ rows.T
        signal = rows @ reach
        whole = signal + np.diag(noise**2 / precision)
        pull = np.linalg.solve(whole, wanted - rows @ expected)
        cost_s = expected + reach @ pull
        error = (wanted - rows @ cost_s) / noise
        used, used_s = precision, said_s
        if turn >= 1:
            precision = (_FREEDOM + 1) / (_FREEDOM + error**2)
        if turn < _LEVEL_ROUNDS:
            said_s = np.maximum(features @ cost_s, least_s)
    constant = math.lgamma((_FREEDOM + 1) / 2) - math.lgamma(_FREEDOM / 2) - 0.5 * math.log(_FREEDOM * math.pi)
    likelihood = count * (constant - math.log(noise)) - (_FREEDOM + 1) / 2 * np.log1p(error**2 / _FREEDOM).sum()
    volume = np.linalg.slogdet(whole)[1] - np.log(noise**2 / used).sum()
    evidence = float(likelihood - 0.5 * pull @ signal @ pull - 0.5 * volume - np.log(used_s).sum())
    return _Explanation(cost_s, prior - reach @ np.linalg.solve(whole, reach.T), evidence)
