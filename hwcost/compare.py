"""Two profiles side by side: how the costs of the operators that both know relate, and where they contradict.

A ratio is always the second profile's latency over the first's. A precision that a device runs on a wider kernel is
compared by that kernel's row, so that a real 4-bit convolution stands beside what the other device does instead.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hwcost.errors import FitError, ProfileError
from hwcost.features import family
from hwcost.fit import spearman
from hwcost.ops import FLOAT, INT8, Operator, Precision, key
from hwcost.pricing import CostModel, Price, load_cost_model
from hwcost.profiles import Profile, read_profile
from hwcost.space import Layer

_WHOLE = {"device", "version", "int8_form", "run_overhead_s", "noise_floor", "weights_state"}


@dataclass(frozen=True)
class Pair:
    """One operator at one precision on both devices; `within_noise`: apart by no more than both noise floors."""

    operator: Operator
    precision: Precision
    first: Price
    second: Price
    within_noise: bool

    @property
    def ratio(self) -> float:
        return self.second.latency_s / self.first.latency_s

    @property
    def intervals_overlap(self) -> bool:
        return self.first.low_s <= self.second.high_s and self.second.low_s <= self.first.high_s

    def document(self) -> dict[str, Any]:
        return {
            "operator": key(self.operator),
            "family": family(self.operator),
            "precision": str(self.precision),
            "first_s": self.first.latency_s,
            "second_s": self.second.latency_s,
            "sources": [self.first.label, self.second.label],
            "ratio": self.ratio,
            "within_noise": self.within_noise,
            "intervals_overlap": self.intervals_overlap,
        }


@dataclass(frozen=True)
class FamilyComparison:
    """One family at one precision: how many operators both have and one alone has; of those that both have, the
    median ratio, the ratios at 5 and 95 %, Spearman's rank correlation of the latencies (None with fewer than 3), and
    the shares within noise and with overlapping intervals. None where both have none."""

    family: str
    precision: str
    both: int
    only_first: int
    only_second: int
    ratio: float | None = None
    ratio_5: float | None = None
    ratio_95: float | None = None
    spearman: float | None = None
    within_noise: float | None = None
    intervals_overlap: float | None = None


@dataclass(frozen=True)
class Contradiction:
    """An operator that is faster at int8 than in float on one device and slower on the other.

    The gains are float latency over int8 latency; `clear`: in both profiles the two intervals lie apart.
    """

    operator: Operator
    first_gain: float
    second_gain: float
    clear: bool

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "operator": key(self.operator)}


@dataclass(frozen=True)
class Comparison:
    """Two profiles, the operators that both price, and those that only one has."""

    first: Profile
    second: Profile
    pairs: tuple[Pair, ...]
    only_first: tuple[Layer, ...]
    only_second: tuple[Layer, ...]

    @property
    def same_machine(self) -> bool:
        """Whether a difference is one of measurements, not of devices."""
        return self.first.machine.fingerprint == self.second.machine.fingerprint

    @cached_property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """What differs of the machines, their versions and the profiles as a whole, rows apart."""
        sides = [
            {**profile.machine.model_dump(mode="json"), **profile.model_dump(mode="json", include=_WHOLE)}
            | {"sources": list(profile.sources)}
            for profile in (self.first, self.second)
        ]
        return {name: (value, sides[1][name]) for name, value in sides[0].items() if value != sides[1][name]}

    @cached_property
    def families(self) -> tuple[FamilyComparison, ...]:
        """By family and precision."""
        groups: defaultdict[tuple[str, Precision], tuple[list[Pair], list[int]]] = defaultdict(lambda: ([], [0, 0]))
        for pair in self.pairs:
            groups[family(pair.operator), pair.precision][0].append(pair)
        for side, layers in enumerate((self.only_first, self.only_second)):
            for op, precision in layers:
                groups[family(op), precision][1][side] += 1
        return tuple(
            _summary(name, str(precision), pairs, *alone)
            for (name, precision), (pairs, alone) in sorted(groups.items())
        )

    @cached_property
    def overall(self) -> FamilyComparison:
        """All families and precisions together."""
        return _summary("all", "all", self.pairs, len(self.only_first), len(self.only_second))

    @cached_property
    def extremes(self) -> tuple[Pair, ...]:
        """All pairs, first those whose ratio is farthest from the median: a device that is slower throughout does not
        disagree with a faster one."""
        middle = math.log(float(np.median([pair.ratio for pair in self.pairs])))
        return tuple(sorted(self.pairs, key=lambda pair: -abs(math.log(pair.ratio) - middle)))

    @cached_property
    def int8_gains(self) -> int:
        """How many operators both price in float and at int8."""
        return len(self._gains)

    @cached_property
    def contradictions(self) -> tuple[Contradiction, ...]:
        """The operators whose int8 gain differs in sign, the largest differences first."""
        found = [gain for gain in self._gains if (gain.first_gain > 1) != (gain.second_gain > 1)]
        return tuple(sorted(found, key=lambda gain: -abs(math.log(gain.first_gain / gain.second_gain))))

    @cached_property
    def _gains(self) -> tuple[Contradiction, ...]:
        by_layer = {(pair.operator, pair.precision): pair for pair in self.pairs}
        both = [
            (pair, by_layer[pair.operator, INT8])
            for pair in self.pairs
            if pair.precision == FLOAT and (pair.operator, INT8) in by_layer
        ]
        return tuple(
            Contradiction(
                slow.operator,
                slow.first.latency_s / fast.first.latency_s,
                slow.second.latency_s / fast.second.latency_s,
                _apart(slow.first, fast.first) and _apart(slow.second, fast.second),
            )
            for slow, fast in both
        )

    def document(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "devices": [self.first.device, self.second.device],
            "same_machine": self.same_machine,
            "differences": {name: list(values) for name, values in self.differences.items()},
            "overall": asdict(self.overall),
            "families": [asdict(entry) for entry in self.families],
            "int8_gains": self.int8_gains,
            "int8_contradictions": [entry.document() for entry in self.contradictions],
            "operators": [pair.document() for pair in self.extremes],
        }


def compare_profiles(first: CostModel, second: CostModel, *, predicted: bool = False) -> Comparison:
    """Pair the rows of two profiles; `predicted`: what only one has is priced by the other's fit, where that can.

    Raises `ProfileError` where nothing can be paired, `FitError` where there is no fit to predict with.
    """
    if predicted and first.fit is None and second.fit is None:
        raise FitError("a prediction needs a fit beside one of the two profiles, got none: run `hwcost fit`")
    layers = tuple(dict.fromkeys(_layers(first.profile) + _layers(second.profile)))
    prices = [_prices(model, layers, predicted) for model in (first, second)]
    noise = math.log1p(first.profile.noise_floor) + math.log1p(second.profile.noise_floor)
    pairs = []
    for layer in layers:
        if layer in prices[0] and layer in prices[1]:
            one, other = prices[0][layer], prices[1][layer]
            near = abs(math.log(other.latency_s / one.latency_s)) <= noise
            pairs.append(Pair(layer[0], layer[1], one, other, near))
    if not pairs:
        raise ProfileError(_nothing_shared(first.profile, second.profile, predicted))
    only_first, only_second = (
        tuple(layer for layer in layers if layer in mine and layer not in other)
        for mine, other in (prices, prices[::-1])
    )
    return Comparison(first.profile, second.profile, tuple(pairs), only_first, only_second)


def compare_files(first: Path, second: Path, *, predicted: bool = False) -> Comparison:
    """`compare_profiles` of two files, whose fits are read only where they are wanted."""
    one, other = (load_cost_model(path) if predicted else CostModel(read_profile(path)) for path in (first, second))
    return compare_profiles(one, other, predicted=predicted)


def _layers(profile: Profile) -> tuple[Layer, ...]:
    return tuple((row.operator, row.precision) for row in profile.rows)


def _prices(model: CostModel, layers: Sequence[Layer], predicted: bool) -> dict[Layer, Price]:
    """The prices of those layers that a profile has, or its fit can predict."""

    def known(op: Operator, precision: Precision) -> bool:
        runs_as = model.runs_as(op, precision)
        if model.profile.find(op, precision) or model.profile.find(op, runs_as):
            return True
        return predicted and model.fit is not None and model.fit.knows(family(op), runs_as)

    wanted = [layer for layer in layers if known(*layer)]
    return dict(zip(wanted, model.prices(wanted), strict=True))


def _nothing_shared(first: Profile, second: Profile, predicted: bool) -> str:
    kinds = [{(family(op), precision) for op, precision in _layers(profile)} for profile in (first, second)]
    if kinds[0] & kinds[1] and not predicted:
        remedy = "run `hwcost fit` and compare with --predicted, so that a fit prices what only one has"
    else:
        remedy = "profile one of them with operators of the other"
    return (
        f"profiles are compared by operators that both have, and those of {first.device} and {second.device} share "
        f"none: {remedy}"
    )


def _apart(first: Price, second: Price) -> bool:
    return first.high_s < second.low_s or second.high_s < first.low_s


def _summary(name: str, precision: str, pairs: Sequence[Pair], only_first: int, only_second: int) -> FamilyComparison:
    if not pairs:
        return FamilyComparison(name, precision, 0, only_first, only_second)
    ratios = np.array([pair.ratio for pair in pairs])
    latencies_s = np.array([(pair.first.latency_s, pair.second.latency_s) for pair in pairs])
    middle, low, high = np.percentile(ratios, (50, 5, 95)).tolist()
    return FamilyComparison(
        name,
        precision,
        len(pairs),
        only_first,
        only_second,
        middle,
        low,
        high,
        spearman(latencies_s[:, 0], latencies_s[:, 1]),
        sum(pair.within_noise for pair in pairs) / len(pairs),
        sum(pair.intervals_overlap for pair in pairs) / len(pairs),
    )
