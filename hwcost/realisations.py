"""Which bits are real on a device: the kernels behind every precision, and how long they take beside float's.

Fewer bits are not faster by themselves: a kernel for them may be missing, or slow. So a ratio compares an operator with
itself, its latency over that of its own row in float, and a family's ratio is the median of its operators'.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, Final

import numpy as np

from hwcost.features import family
from hwcost.ops import FLOAT, PRECISIONS, Conv, Gemm, Operator, Precision
from hwcost.profiles import Profile, Row

_KINDS: Final = ("conv", "gemm", "pool", "elementwise", "node", "boundary")


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and how far they reach: at 5, 25, 50, 75 and 95 %."""

    low: float
    lower: float
    median: float
    upper: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread | None":
        """None of none."""
        return cls(*np.percentile(values, (5, 25, 50, 75, 95)).tolist()) if values else None


@dataclass(frozen=True)
class Realised:
    """A group of operators at one precision, on the kernels of `runs_as`: another precision's where it has none.

    `rows` are those kernels' rows; `ratios` their latencies over the same operators' in float, where float was
    profiled too.
    """

    group: str
    precision: Precision
    runs_as: Precision
    rows: tuple[Row, ...]
    ratios: tuple[float, ...]

    @property
    def unpacked(self) -> bool:
        """Whether this precision is one of storage only."""
        return self.runs_as != self.precision

    @property
    def native_share(self) -> float:
        """The share of the operators that compute at this precision."""
        return 0.0 if self.unpacked else sum(row.native for row in self.rows) / len(self.rows)

    @property
    def way(self) -> str:
        """`native`, `not native`, `mixed` where operators differ, or `as w8a8`: on that precision's kernels."""
        if self.unpacked:
            return f"as {self.runs_as}"
        return {1.0: "native", 0.0: "not native"}.get(self.native_share, "mixed")

    @property
    def is_compared(self) -> bool:
        """Whether there is anything but float itself to compare with float."""
        return bool(self.ratios) and self.runs_as != FLOAT

    @cached_property
    def kernels(self) -> dict[str, int]:
        """What the runtime executes, and for how many of the operators; the commonest first."""
        return dict(Counter(row.realisation for row in self.rows).most_common())

    @cached_property
    def slower(self) -> dict[str, tuple[int, float]]:
        """Realisations that were tried and not chosen: for how many operators, and the median of how many times longer
        they took; the commonest first."""
        ratios: defaultdict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            for name, other_s in row.others.items():
                ratios[name].append(other_s / row.latency_s)
        return {
            name: (len(found), median(found)) for name, found in sorted(ratios.items(), key=lambda one: -len(one[1]))
        }

    @cached_property
    def latency_s(self) -> Spread:
        """Seconds of the operators."""
        spread = Spread.of([row.latency_s for row in self.rows])
        assert spread is not None, "a group has rows"
        return spread

    @cached_property
    def ratio(self) -> Spread | None:
        """The ratios to float; None where no operator has both."""
        return Spread.of(list(self.ratios))

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        ratio = self.ratio
        return {
            "family": self.group,
            "precision": str(self.precision),
            "weight_bits": self.precision.weight_bits,
            "activation_bits": self.precision.activation_bits,
            "runs": self.way,
            "runs_as": str(self.runs_as),
            "native_share": self.native_share,
            "operators": len(self.rows),
            "sources": sorted({row.source for row in self.rows}),
            "kernels": self.kernels,
            "slower": {name: {"operators": count, "ratio": ratio} for name, (count, ratio) in self.slower.items()},
            "latency_s": self.latency_s.median,
            "compared": len(self.ratios),
            "ratio": None if ratio is None else ratio.median,
            "ratio_5": None if ratio is None else ratio.low,
            "ratio_95": None if ratio is None else ratio.high,
        }


def printable(text: str) -> str:
    """A name from somebody else's file, with what terminals obey and plots cannot hold written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def kind_or_family(op: Operator) -> str:
    """The families of convolutions and products of matrices; of other operators the kind."""
    return family(op) if isinstance(op, Conv | Gemm) else op.kind


def realised(profile: Profile, group: Callable[[Operator], str] = family) -> tuple[Realised, ...]:
    """Every group of operators, at every precision that rows, or the profile's realisations, say something of."""
    rows: defaultdict[tuple[str, str], defaultdict[Precision, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in profile.rows:
        rows[row.operator.kind, group(row.operator)][row.precision].append(row)
    found = []
    for (kind, name), by_precision in sorted(rows.items(), key=lambda item: (_KINDS.index(item[0][0]), item[0][1])):
        runs_as = {precision: precision for precision in by_precision}
        for entry in profile.realisations:
            if entry.kind == kind and entry.runs_as in by_precision:
                runs_as.setdefault(entry.precision, entry.runs_as)
        for precision, kernel in sorted(runs_as.items(), key=lambda item: _order(item[0])):
            kernels = by_precision[kernel]
            ratios = [_over_float(profile, row) for row in kernels]
            found.append(
                Realised(name, precision, kernel, tuple(kernels), tuple(one for one in ratios if one is not None))
            )
    return tuple(found)


def _order(precision: Precision) -> tuple[int, str]:
    return PRECISIONS.index(Precision(precision.weight_bits, precision.activation_bits)), precision.kernel


def _over_float(profile: Profile, row: Row) -> float | None:
    beside = profile.find(row.operator, FLOAT)
    return row.latency_s / beside.latency_s if beside is not None and beside.precision == FLOAT else None
