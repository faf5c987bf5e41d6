"""Which operators to measure next: those of the families that predictors know least.

A family of the prior may hold several kinds of kernel, each with a predictor or, by the way it computes, with
coefficients of its own. A sample begins with a few rows of every kind, whatever its family's share: of one or two rows
nothing follows for other sizes. Then come the families' shares; once it holds them all, each batch is dealt by share
times error: the error that a quick predictor makes on operators of the family that it was not fitted on, near-identical
ones held out together. It follows from the first timing of every row alone, and from the seed, so it can be decided
again.

Where whole networks are measured, their kernels come beside the sample, so that an hour in which all takes long leaves
fewer of both.

Of a family's next operators whichever is of a kind that has hardly any rows comes first, so that rare kinds have enough
to be fitted on; and so does what moves as many bytes, beside the caches of the machine, as hardly any row of its kind,
for what a byte costs changes there.
"""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hwcost.errors import FitError
from hwcost.features import WAYS, family, feature_matrix, way_of
from hwcost.fit import grouped_folds
from hwcost.hardware import WHOLLY_HELD, WHOLLY_SPILLED, Hardware
from hwcost.ops import Conv, Gemm, Operator, Precision, bytes_moved
from hwcost.predictors import load_predictor
from hwcost.prior import FAMILIES
from hwcost.sampling import family_streams
from hwcost.tiling import ALGORITHMS
from hwcost.timing import Request

_PREDICTORS: Final = ("tiled", "roofline")
"""Quick ones: the second where there are too few rows for the first."""
_FOLDS: Final = 4
_PRIOR_ROWS: Final = 10
"""Rows of the overall error that every family's error starts from."""
_WORST: Final = math.log(2.0)
_MANY_LOOPS: Final = {place + 1 for place, way in enumerate(WAYS) if way.removeprefix("algorithm_") in ALGORITHMS}
_ENOUGH, _ENOUGH_OF_LOOPS = 6, 16
_ENOUGH_ALIKE: Final = (2, 2, 2, 0, 1)
"""Rows from which on a kind of kernel is drawn as often as the prior has it: in all by its way, more where a dozen
loops have costs of their own, and those that move as many bytes, by how many of `_REACHES` and of what the last cache
holds these are beyond."""
_FIRST_BYTES: Final = (1 / 4, 4, 1 / 64)
"""What the rows of every kind with which a sample begins move, over the second cache, as near as there are: one of a
size that is common, one that tells what a byte costs beyond it, one that tells what a call costs."""
_REACHES: Final = (WHOLLY_HELD, WHOLLY_SPILLED, 2 * WHOLLY_SPILLED)
"""What moves between so many times the second cache is alike, and what moves more than the last one holds."""
_BESIDE: Final = 0.6
"""Share of what stands beside the sample in a batch, counted in operators: one of the sample is a row or two."""
_BESIDE_NAME: Final = "whole networks"
_AHEAD: Final = 100
"""Among so many next operators of a family at least those of rare kinds are looked for."""

_Kind = tuple[str, Precision, int, int]
"""Family, precision, way of computing as `way_of` tells it, and what else makes it another kernel, as `_apart` does."""
_Drawn = tuple[tuple[Request, ...], tuple[tuple[_Kind, float], ...]]
"""What is measured of an operator, and of each of these the kind and the bytes that it moves, over the second cache."""


class AdaptiveSample:
    """Operators of all families, a batch at a time; `requests_of` says what is measured of one. What stands `beside`
    them comes in its order, and takes half of the time until it ends."""

    def __init__(
        self,
        seed: int,
        requests_of: Callable[[Operator], tuple[Request, ...]],
        hardware: Hardware | None = None,
        beside: Iterable[Request] = (),
    ) -> None:
        self._seed, self._requests_of, self._hardware = seed, requests_of, hardware or Hardware()
        self._beside, self._taken = list(dict.fromkeys(beside)), 0
        self._cache = self._hardware.l2 or Hardware.l2
        self._last = self._hardware.l3 / self._cache
        self._streams = family_streams(seed)
        self._next: defaultdict[str, list[_Drawn]] = defaultdict(list)
        self._rows: Counter[_Kind] = Counter()
        self._alike: Counter[tuple[_Kind, int]] = Counter()
        self._dealt: Counter[str] = Counter()
        self._family: dict[Request, str] = {}
        self._errors: NDArray[np.float64] = np.zeros(0)

    def choose(self, size: int, rows: Sequence[tuple[Request, float]]) -> dict[str, int]:
        """How many operators of which family come next, `size` in all, given the latencies so far in seconds."""
        beside = min(math.ceil(_BESIDE * size), len(self._beside) - self._taken)
        families = self._of_families(size - beside, rows)
        return {**families, _BESIDE_NAME: beside} if beside else families

    def _of_families(self, size: int, rows: Sequence[tuple[Request, float]]) -> dict[str, int]:
        errors = held_out_errors(rows, self._seed, self._hardware)
        self._errors = np.array(list(errors.values()))
        if lacking := self._lacking([request for request, _ in rows]):
            return _dealt(min(size, sum(lacking.values())), lacking, {})
        shares = {name: float(share) for name, (share, _) in FAMILIES.items()}
        if self._dealt.total() < sum(shares.values()):
            return _dealt(size, shares, self._dealt)
        overall = float(self._errors.mean()) if len(self._errors) else 1.0
        found: defaultdict[str, list[float]] = defaultdict(lambda: [overall] * _PRIOR_ROWS)
        for request, error in errors.items():
            if request in self._family:
                found[self._family[request]].append(error)
        weights = {name: share * float(np.mean(found[name])) for name, share in shares.items()}
        return _dealt(size, weights, {})

    def draw(self, families: Mapping[str, int]) -> tuple[Request, ...]:
        """What is measured of the next operators of these families; fewer where a family has no more."""
        requests: list[Request] = []
        for name, count in families.items():
            if name == _BESIDE_NAME:
                requests += self._beside[self._taken : self._taken + count]
                self._taken += count
                continue
            self._dealt[name] += count
            for _ in range(count):
                found = self._drawn(name)
                self._family.update(dict.fromkeys(found, name))
                requests += found
        return tuple(requests)

    def _ahead(self, name: str) -> list[_Drawn]:
        """The next operators of a family, as many as are looked at; none at its end."""
        ahead = self._next[name]
        if len(ahead) < _AHEAD:
            ahead += self._described([self._requests_of(op) for op in islice(self._streams.get(name, ()), _AHEAD)])
        return ahead

    def _lacking(self, measured: Sequence[Request]) -> dict[str, int]:
        """How many of its next operators a family lacks for a few rows of every kind; all that it lacks are above 0."""
        known = Counter(kind for _, kinds in self._described([measured]) for kind, _ in kinds)
        found = {}
        for name in FAMILIES:
            wanted: Counter[tuple[str, int, int]] = Counter()
            for _, kinds in self._ahead(name):
                for kind, _ in kinds:
                    alike, have = (kind[0], *kind[2:]), max(known[kind], self._rows[kind])
                    wanted[alike] = max(wanted[alike], len(_FIRST_BYTES) - have)
            if more := wanted.total():
                found[name] = more
        return found

    def _drawn(self, name: str) -> tuple[Request, ...]:
        """What is measured of the next operator of a family, one of a rare kind before others; nothing at its end."""
        ahead = self._ahead(name)
        if not ahead:
            return ()
        place = min(range(len(ahead)), key=lambda place: self._held(ahead[place]))
        found, kinds = ahead.pop(place)
        self._rows.update(kind for kind, _ in kinds)
        self._alike.update((kind, self._reach(moved)) for kind, moved in kinds)
        return found

    def _held(self, drawn: _Drawn) -> tuple[float, float]:
        """How well the kinds of an operator are known, and how far it is from the size that is asked for: 0 once there
        are a few rows of each."""
        _, kinds = drawn
        fewest, moved = min(((self._rows[kind], moved) for kind, moved in kinds), default=(len(_FIRST_BYTES), 0.0))
        if fewest < len(_FIRST_BYTES):
            return fewest - len(_FIRST_BYTES), abs(math.log(moved / _FIRST_BYTES[fewest]))
        rows = (self._rows[kind] / _enough(kind) for kind, _ in kinds)
        near = ((kind, self._reach(moved)) for kind, moved in kinds)
        alike = (self._alike[one] / enough for one in near if (enough := _ENOUGH_ALIKE[one[1]]))
        return float(min([1.0, *rows, *alike])), 0.0

    def _reach(self, moved: float) -> int:
        """How many bounds of what is alike these bytes, over the second cache, are beyond."""
        return sum(moved > bound for bound in (*_REACHES, max(_REACHES[-1], self._last)))

    def _described(self, requests: Sequence[Sequence[Request]]) -> list[_Drawn]:
        ways = iter(way_of(feature_matrix(chain(*requests), self._hardware)).tolist())

        def described(op: Operator, precision: Precision) -> tuple[_Kind, float]:
            kind = family(op), precision, next(ways), _apart(op, precision)
            return kind, max(bytes_moved(op, precision), 1) / self._cache

        return [(tuple(found), tuple(described(op, precision) for op, precision in found)) for found in requests]

    def state(self) -> str:
        """The error of the quick predictor on what it had not seen, in words; nothing before the first."""
        if not len(self._errors):
            return ""
        relative = np.expm1(self._errors)
        median, within = 100 * float(np.median(relative)), 100 * float(np.mean(relative <= 0.1))
        return f", held-out error {median:.1f} %, {within:.0f} % within 10 %"


def _apart(op: Operator, precision: Precision) -> int:
    """Whether it is a product of one row; and whether a float convolution makes a pass of its own over what it has
    made, to clip it or for a function that costs more."""
    if isinstance(op, Gemm):
        return int(op.m == 1 and not _narrow(precision))
    if isinstance(op, Conv) and precision.activation_bits > 8 and op.activation not in ("none", "relu"):
        return 1 if op.activation == "clip" else 2
    return 0


def _narrow(precision: Precision) -> bool:
    """Whether weights have fewer bits than what they are multiplied with: dear to time, and rare in networks."""
    return precision.weight_bits < precision.activation_bits


def _enough(kind: _Kind) -> int:
    _, precision, way, _ = kind
    return _ENOUGH_OF_LOOPS if way in _MANY_LOOPS and not _narrow(precision) else _ENOUGH


def _dealt(size: int, weights: Mapping[str, float], held: Mapping[str, int]) -> dict[str, int]:
    """`size` dealt in proportion to positive weights, what each holds already counted."""
    counts: Counter[str] = Counter(held)
    for _ in range(size):
        counts[min(weights, key=lambda name: ((counts[name] + 0.5) / weights[name], name))] += 1
    return {name: more for name in weights if (more := counts[name] - held.get(name, 0))}


def held_out_errors(
    rows: Sequence[tuple[Request, float]], seed: int, hardware: Hardware | None = None
) -> dict[Request, float]:
    """How far the quick predictor is off each row, in natural logarithms, at most a factor of two.

    `rows` have latencies in seconds, `hardware` is what they were measured on; those of families that are too small to
    hold any out are left out.
    """
    groups: defaultdict[tuple[str, Precision], list[tuple[Request, float]]] = defaultdict(list)
    for request, latency_s in rows:
        groups[family(request[0]), request[1]].append((request, latency_s))
    kinds, errors = [load_predictor(name) for name in _PREDICTORS], dict[Request, float]()
    for (name, precision), members in sorted(groups.items()):
        features = feature_matrix((request for request, _ in members), hardware)
        measured_s = np.array([latency_s for _, latency_s in members])
        rng = np.random.default_rng([seed, zlib.crc32(f"{name}/{precision}".encode())])
        for mask in grouped_folds(features, _FOLDS, rng):
            unseen = [request for (request, _), held in zip(members, mask, strict=True) if held]
            for kind in kinds:
                with suppress(FitError):
                    fitted = kind.fit(features[~mask], measured_s[~mask], rng)
                    error = np.abs(fitted.log_latency(features[mask]) - np.log(measured_s[mask]))
                    errors.update(zip(unseen, np.minimum(error, _WORST).tolist(), strict=True))
                    break
    return errors
