"""What an operator, or a whole network, costs on a profiled device: exact rows first, then predictions, else an error.

A price says where it comes from, and is the cost inside a network: the row's or the predictor's, times the factor of
its role (`hwcost.composition`). Two intervals belong to it. Its own holds this operator's cost. Its part of a network's
interval is narrower, since errors of operators cancel in a sum as far as they are not shared: how far, the networks say
that were run when the profile was made. Without such networks nothing is known of it, and a part is the price's own
interval, widened by `COMPOSITION` for what adding up misses. Parts add up end by end, so a lookup table can carry them.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from hwcost.errors import FitError, UnknownOperatorError
from hwcost.features import family, feature_matrix, hardware_of
from hwcost.fit import Fit, fit_path, read_fit
from hwcost.ops import Operator, Precision, key
from hwcost.profiles import Profile, Source, read_profile
from hwcost.space import Layer

COMPOSITION = 0.10
"""Relative widening of an operator's interval where it stands for a part of a network's: on fourteen third-party
networks (float and int8, x86, onnxruntime) sums of kernels timed alone missed the whole by 3 to 6 % on average, and 27
of 28 by less than 10 %."""

PriceSource = Literal["measured", "emulated", "estimated", "imported", "adapted", "predicted"]


_MORE: Final = 0.3
"""Share by which what is added to a price may be wrong."""


@dataclass(frozen=True)
class Price:
    """Seconds of one execution with an interval of about 90 %, and the ends of its part of a network's interval.

    `source` is the row's own, or `predicted`; `rows` are the sources of the rows behind the number, so that a
    prediction from estimated rows stays recognisable. `runs_as` is the precision of the kernel that runs it.
    `extrapolated`: the operator lies outside what the predictor was fitted on.
    """

    latency_s: float
    low_s: float
    high_s: float
    part_s: tuple[float, float]
    source: PriceSource
    rows: tuple[Source, ...]
    runs_as: Precision
    extrapolated: bool = False

    @property
    def label(self) -> str:
        """`measured`, `estimated`, ..., or `predicted from measured rows`."""
        return self.source if self.source != "predicted" else f"predicted from {' and '.join(self.rows)} rows"

    def longer(self, seconds: float) -> "Price":
        """With so many seconds more, give or take a share of them."""
        low_s, high_s = seconds * (1 - _MORE), seconds * (1 + _MORE)
        return replace(
            self,
            latency_s=self.latency_s + seconds,
            low_s=self.low_s + low_s,
            high_s=self.high_s + high_s,
            part_s=(self.part_s[0] + low_s, self.part_s[1] + high_s),
        )

    def at_speed(self, speed: float) -> "Price":
        """On the same machine when it is so many times as fast."""
        return replace(
            self,
            latency_s=self.latency_s / speed,
            low_s=self.low_s / speed,
            high_s=self.high_s / speed,
            part_s=(self.part_s[0] / speed, self.part_s[1] / speed),
        )


@dataclass(frozen=True)
class Total:
    """A network: seconds of one call with an interval, the runtime's own share, what belongs to no layer alone (memory
    that caches do not hold, disturbances of a long run), and the price of each layer in order."""

    latency_s: float
    low_s: float
    high_s: float
    run_overhead_s: float
    shared_s: float
    prices: tuple[Price, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct labels of the prices, sorted."""
        return tuple(sorted({price.label for price in self.prices}))

    def longer(self, seconds: Sequence[float]) -> "Total":
        """With so many seconds more for each layer, give or take a share of them."""
        more_s = sum(seconds)
        return replace(
            self,
            latency_s=self.latency_s + more_s,
            low_s=self.low_s + more_s * (1 - _MORE),
            high_s=self.high_s + more_s * (1 + _MORE),
            prices=tuple(price.longer(one) for price, one in zip(self.prices, seconds, strict=True)),
        )

    def at_speed(self, speed: float) -> "Total":
        """On the same machine when it is so many times as fast."""
        return Total(
            self.latency_s / speed,
            self.low_s / speed,
            self.high_s / speed,
            self.run_overhead_s / speed,
            self.shared_s / speed,
            tuple(price.at_speed(speed) for price in self.prices),
        )


@dataclass(frozen=True)
class CostModel:
    """A profile and, if there is one, what was fitted on it; raises `FitError` when they do not belong together."""

    profile: Profile
    fit: Fit | None = None

    def __post_init__(self) -> None:
        if self.fit is not None and self.fit.profile_digest != self.profile.digest:
            raise FitError(
                f"a fit belongs to one state of its profile: profile {self.profile.device} is {self.profile.digest}, "
                f"the fit is of {self.fit.profile_digest}: run `hwcost fit` again"
            )

    @property
    def device(self) -> str:
        return self.profile.device

    def runs_as(self, op: Operator, precision: Precision) -> Precision:
        """The precision whose kernel runs this operator; without weights only the activation bits matter."""
        if not op.weights:
            precision = Precision(precision.activation_bits, precision.activation_bits)
        return self.profile.realised_as(op, precision)

    def knows(self, op: Operator, precision: Precision) -> bool:
        """Whether an operator has a price: a row, or a fitted family."""
        fitted = self.fit is not None and self.fit.knows(family(op), self.runs_as(op, precision))
        return fitted or self.profile.find(op, precision) is not None

    def price(self, op: Operator, precision: Precision) -> Price:
        """Raises `UnknownOperatorError` for what was neither profiled nor can be predicted."""
        return self.prices([(op, precision)])[0]

    def prices(self, layers: Sequence[Layer]) -> tuple[Price, ...]:
        """The price of each layer, each distinct kernel predicted once, a family in one go.

        Raises `UnknownOperatorError`."""
        known: dict[Layer, Price] = {}
        unknown: defaultdict[tuple[str, Precision], dict[Operator, list[Layer]]] = defaultdict(dict)
        for layer in dict.fromkeys(layers):
            op, precision = layer
            runs_as = self.runs_as(op, precision)
            row = self.profile.find(op, precision) or self.profile.find(op, runs_as)
            if row is None:
                unknown[family(op), runs_as].setdefault(op, []).append(layer)
                continue
            ends = (row.latency_s, *row.interval_s)
            known[layer] = self._price(op, runs_as, ends, row.source, (row.source,))
        for (name, runs_as), group in unknown.items():
            for asked, price in zip(group.values(), self._predict(name, runs_as, group), strict=True):
                known.update(dict.fromkeys(asked, price))
        return tuple(known[layer] for layer in layers)

    def _predict(self, name: str, runs_as: Precision, asked: dict[Operator, list[Layer]]) -> list[Price]:
        """The price of each operator of one family, whatever the precisions at which it was asked for."""
        op, precision = next(iter(asked.values()))[0]
        what = f"{key(op)} at {precision}" + (f" (which runs as {runs_as})" if runs_as != precision else "")
        if self.fit is None:
            raise UnknownOperatorError(
                f"profile {self.device} has no row of {what}, and no fit to predict it from: run `hwcost fit`"
            )
        if not self.fit.knows(name, runs_as):
            raise UnknownOperatorError(
                f"nothing of family {name} at {runs_as} was profiled on {self.device}, so {what} has no price: "
                f"run `hwcost profile` with such operators, then `hwcost fit`"
            )
        features = feature_matrix(
            ((op, runs_as) for op in asked), hardware_of(self.profile.machine, self.profile.int8_form)
        )
        estimate = self.fit.predict(name, runs_as, features)
        rows = self.fit.sources(name, runs_as)
        columns = (estimate.latency_s, estimate.low_s, estimate.high_s, estimate.extrapolated)
        return [
            self._price(op, runs_as, (latency_s, low_s, high_s), "predicted", rows, extrapolated)
            for op, latency_s, low_s, high_s, extrapolated in zip(
                asked, *(array.tolist() for array in columns), strict=True
            )
        ]

    def _price(
        self,
        op: Operator,
        runs_as: Precision,
        seconds: tuple[float, float, float],
        source: PriceSource,
        rows: tuple[Source, ...],
        extrapolated: bool = False,
    ) -> Price:
        """From the latency of a kernel by itself, and its interval's ends, to a price inside a network."""
        composition = self.fit.composition if self.fit is not None else None
        if composition is None:
            latency_s, low_s, high_s = seconds
            part_s = (low_s * (1 - COMPOSITION), high_s * (1 + COMPOSITION))
        else:
            latency_s, low_s, high_s = (composition.inside_s(op, runs_as, one) for one in seconds)
            width = composition.predicted_width if source == "predicted" else composition.measured_width
            # What networks showed to cancel are errors of measuring, and of predicting from measurements.
            ends_s = (latency_s, latency_s) if set(rows) == {"measured"} else (low_s, high_s)
            part_s = (ends_s[0] * math.exp(-width), ends_s[1] * math.exp(width))
        return Price(latency_s, low_s, high_s, part_s, source, rows, runs_as, extrapolated)

    def price_all(self, layers: Sequence[Layer]) -> Total:
        """A network that executes `layers` in one call; how the intervals add up is argued atop this module."""
        prices = self.prices(layers)
        overhead_s = self.profile.run_overhead_s
        composition = self.fit.composition if self.fit is not None else None
        kernels = [(op, price.runs_as, 1, price.latency_s) for (op, _), price in zip(layers, prices, strict=True)]
        shared_s = 0.0 if composition is None else composition.shared_s(kernels)
        low_s, high_s = (
            (overhead_s + shared_s) * share + sum(price.part_s[end] for price in prices)
            for end, share in enumerate((1 - COMPOSITION, 1 + COMPOSITION))
        )
        latency_s = overhead_s + shared_s + sum(price.latency_s for price in prices)
        return Total(latency_s, low_s, high_s, overhead_s, shared_s, prices)


def load_cost_model(profile_path: Path) -> CostModel:
    """Read a profile, and its fit if there is one beside it. Without a fit the profiled operators have prices, the
    others an error that says so. Raises `ProfileError`, `FitError`."""
    profile = read_profile(profile_path)
    path = fit_path(profile_path)
    return CostModel(profile, read_fit(path) if path.exists() else None)
