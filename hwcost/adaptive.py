"""Which operators to measure next: those of the families that predictors know least.

A sample begins with the families' shares. Once it holds them all, each batch is dealt by share times error: the error
that a quick predictor makes on operators of the family that it was not fitted on, near-identical ones held out
together. It follows from the first timing of every row alone, and from the seed, so it can be decided again.

A family of the prior may hold several kinds of kernel, each with a predictor or, by the way it computes, with
coefficients of its own. Whichever of these has hardly any rows comes first, so that rare kinds have enough to be fitted
on; and so does what moves as many bytes, beside the second cache of the machine, as hardly any row of its kind, for
what a byte costs changes there.
"""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hwcost.errors import FitError
from hwcost.features import WAYS, family, feature_matrix, way_of
from hwcost.fit import grouped_folds
from hwcost.hardware import WHOLLY_HELD, WHOLLY_SPILLED, Hardware
from hwcost.ops import Operator, Precision, bytes_moved
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
_ENOUGH: Final = [16 if way.removeprefix("algorithm_") in ALGORITHMS else 6 for way in ("", *WAYS)]
_ENOUGH_ALIKE: Final = 2
"""Rows from which on a kind of kernel is drawn as often as the prior has it: in all by its way, more where a dozen
loops have costs of their own, and those that move as many bytes."""
_REACHES: Final = (WHOLLY_HELD, WHOLLY_SPILLED, 2 * WHOLLY_SPILLED)
"""What moves between so many times the second cache is alike; nothing is rare beyond the last, where timing is dear."""
_AHEAD: Final = 100
"""Among so many next operators of a family at least those of rare kinds are looked for."""

_Kind = tuple[str, Precision, int]
"""Family, precision, and way of computing as `way_of` tells it."""
_Drawn = tuple[tuple[Request, ...], tuple[tuple[_Kind, int], ...]]


class AdaptiveSample:
    """Operators of all families, a batch at a time; `requests_of` says what is measured of one."""

    def __init__(
        self, seed: int, requests_of: Callable[[Operator], tuple[Request, ...]], hardware: Hardware | None = None
    ) -> None:
        self._seed, self._requests_of, self._hardware = seed, requests_of, hardware
        self._streams = family_streams(seed)
        self._next: defaultdict[str, list[_Drawn]] = defaultdict(list)
        self._rows: Counter[_Kind] = Counter()
        self._alike: Counter[tuple[_Kind, int]] = Counter()
        self._dealt: Counter[str] = Counter()
        self._family: dict[Request, str] = {}
        self._errors: NDArray[np.float64] = np.zeros(0)

    def choose(self, size: int, rows: Sequence[tuple[Request, float]]) -> dict[str, int]:
        """How many operators of which family come next, `size` in all, given the latencies so far in seconds."""
        errors = held_out_errors(rows, self._seed, self._hardware)
        self._errors = np.array(list(errors.values()))
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
            self._dealt[name] += count
            for _ in range(count):
                found = self._drawn(name)
                self._family.update(dict.fromkeys(found, name))
                requests += found
        return tuple(requests)

    def _drawn(self, name: str) -> tuple[Request, ...]:
        """What is measured of the next operator of a family, one of a rare kind before others; nothing at its end."""
        ahead = self._next[name]
        if len(ahead) < _AHEAD:
            ahead += self._described(list(islice(self._streams.get(name, ()), _AHEAD)))
        if not ahead:
            return ()

        def held(drawn: _Drawn) -> float:
            _, kinds = drawn
            rows = (self._rows[kind] / _ENOUGH[kind[-1]] for kind, _ in kinds)
            alike = (self._alike[one] / _ENOUGH_ALIKE for one in kinds if one[1] < len(_REACHES))
            return float(min([1.0, *rows, *alike]))

        found, kinds = ahead.pop(min(range(len(ahead)), key=lambda place: held(ahead[place])))
        self._rows.update(kind for kind, _ in kinds)
        self._alike.update(kinds)
        return found

    def _described(self, operators: Sequence[Operator]) -> list[_Drawn]:
        """What is measured of operators, and of each the kind and how many of `_REACHES` its bytes are beyond."""
        requests, hardware = [self._requests_of(op) for op in operators], self._hardware or Hardware()
        ways = iter(way_of(feature_matrix(chain(*requests), hardware)).tolist())

        def kind(op: Operator, precision: Precision) -> tuple[_Kind, int]:
            moved = bytes_moved(op, precision)
            return (family(op), precision, next(ways)), sum(moved > times * hardware.l2 for times in _REACHES)

        return [(found, tuple(kind(op, precision) for op, precision in found)) for found in requests]

    def state(self) -> str:
        """The error of the quick predictor on what it had not seen, in words; nothing before the first."""
        if not len(self._errors):
            return ""
        relative = np.expm1(self._errors)
        median, within = 100 * float(np.median(relative)), 100 * float(np.mean(relative <= 0.1))
        return f", held-out error {median:.1f} %, {within:.0f} % within 10 %"


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
