"""What every row leans on, timed in every pass: the cost of a call, of a change of kernel, and the machine's noise.

The time of a small kernel drowns in the cost of one call, so a run holds many copies of it, and the cost of a call is
the intercept of the line through few and many copies. In a network another kernel comes next, and caches and branch
predictors have to change over: the kernels of a small network, in its order, say how much that costs a kernel, and
every row holds it. References say how much timings scatter, and when the machine was slow.

A small difference of large times is wrong by more than itself where a clock changes between them. So what is taken from
each other is timed together, one after the other, in every stage, and the quietest stage holds.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from hwcost.errors import MeasurementError
from hwcost.journal import Journal
from hwcost.kernels import HELD_ELEMENTS, held_outputs
from hwcost.ops import FLOAT, INT8, Conv, Elementwise, Gemm, key
from hwcost.profiles import Row
from hwcost.space import SearchSpace
from hwcost.timing import Request
from hwcost.units import format_seconds

AGREEMENT: Final = 0.015
"""How far the two shortest timings of a settled row lie apart at most, as a share; quiet machines repeat within it."""
_REPEATS: Final = 3
"""Timings per stage of what every row leans on."""
_LEAST_NOISE: Final = 0.005
_OVERHEAD_ERROR: Final = 0.1
"""Share of the overhead that may be wrong; it widens the intervals of the smallest operators."""

_OVERHEAD_PROBE: Final[Request] = (Elementwise("add", (1, 24, 4, 4)), INT8)
_NOISE_PROBES: Final[tuple[Request, ...]] = (
    (Conv.square(32, 32, 14, 3), FLOAT),
    (Conv.square(32, 32, 14, 1), INT8),
    (Conv.square(48, 48, 8, 3, groups=48), INT8),
    (Gemm(1, 256, 128), FLOAT),
)


def _network_like() -> tuple[Request, ...]:
    """The int8 kernels of the largest default network for 8x8 images, in the order in which it executes them."""
    space = SearchSpace.for_image((1, 8, 8), 10)
    fixed = space.fixed_layers()
    blocks = space.layers(space.largest)[len(fixed) :]
    stem = next(place for place, (op, _) in enumerate(fixed) if isinstance(op, Conv)) + 1
    return tuple((op, INT8) for op, _ in (*fixed[:stem], *blocks, *fixed[stem:]))


_SWITCH_PROBES: Final = _network_like()


@dataclass(frozen=True)
class Point:
    """One thing to be timed once a stage, or more often: a row, or what every row leans on.

    Several requests run in turn, `copies` rounds of them (0: as many as a timing needs).
    """

    role: str
    requests: tuple[Request, ...]
    copies: int = 0
    repeats: int = 1

    @property
    def label(self) -> str:
        return " and ".join(f"{key(op)} at {precision}" for op, precision in self.requests)

    @property
    def name(self) -> str:
        return f"{self.role}: {self.label}" + (f", {self.copies} copies" if self.copies else "")


FEW: Final = Point("overhead", (_OVERHEAD_PROBE,), 16, _REPEATS)
MANY: Final = Point("overhead", (_OVERHEAD_PROBE,), 160, _REPEATS)
REFERENCES: Final = tuple(Point("reference", (probe,), 0, _REPEATS) for probe in _NOISE_PROBES)
_ALONE: Final = {probe: Point("alone", (probe,), 120) for probe in _SWITCH_PROBES}
_FEW_TURNS: Final = Point("in turn", _SWITCH_PROBES, 2, _REPEATS)
_MANY_TURNS: Final = Point("in turn", _SWITCH_PROBES, 4, _REPEATS)
"""Few enough for the second cache: on one of 512 KiB every round beyond six, of 63 kB of weights each, takes 80 us
longer, 3 us a kernel, of which a network of as many kernels and fewer weights shows nothing."""
_SHORT: Final = Point("held", ((Elementwise("relu", (1, HELD_ELEMENTS - 1)), FLOAT),), 120)
_HELD: Final = Point("held", ((Elementwise("relu", (1, HELD_ELEMENTS)), FLOAT),), 120)
TOGETHER: Final = (FEW, MANY, _SHORT, _HELD, *_ALONE.values(), _FEW_TURNS, _MANY_TURNS)
"""Points whose differences count."""
BASIS: Final = (*TOGETHER, *REFERENCES)


def settled(samples_s: Sequence[float]) -> bool:
    """Whether a row needs no further timing: the two shortest agree."""
    shortest = sorted(samples_s)[:2]
    return len(shortest) == 2 and shortest[1] <= shortest[0] * (1 + AGREEMENT)


@dataclass(frozen=True)
class Basis:
    """What the timings of a journal say about calls, changes of kernel, and noise; and the rows that follow."""

    book: Journal

    def samples(self, point: Point) -> list[float]:
        """Seconds of a run of this point, per timing."""
        return [timing.run_s for timing in self.book.of(point.name) if timing.run_s is not None]

    def _shortest(self, point: Point) -> dict[int, float]:
        """Seconds of the shortest run of this point in each stage that timed it."""
        found: dict[int, float] = {}
        for timing in self.book.of(point.name):
            if timing.run_s is not None:
                found[timing.stage] = min(timing.run_s, found.get(timing.stage, timing.run_s))
        return found

    def _quietest(self, *points: Point) -> tuple[float, ...]:
        """The shortest run of each point, in seconds, in that stage of those that timed all where they took least, each
        beside its shortest of all; nothing where no stage did."""
        by_point = [self._shortest(point) for point in points]
        stages = set.intersection(*map(set, by_point))
        if not stages:
            return ()
        best = [min(shortest.values()) for shortest in by_point]

        def slowness(stage: int) -> tuple[float, int]:
            return sum(shortest[stage] / least for shortest, least in zip(by_point, best, strict=True)), stage

        quietest = min(stages, key=slowness)
        return tuple(shortest[quietest] for shortest in by_point)

    @property
    def contradictory(self) -> bool:
        """Whether few copies and many, both timed, leave nothing for the call itself."""
        runs_s = self._quietest(FEW, MANY)
        return bool(runs_s) and _intercept_s(*runs_s) <= 0

    @property
    def overhead_s(self) -> float:
        """Seconds of one call without operators: where the line through few and many copies meets zero.

        Raises `MeasurementError` for timings that contradict each other.
        """
        few_s, many_s = self._quietest(FEW, MANY)
        if (intercept_s := _intercept_s(few_s, many_s)) <= 0:
            raise MeasurementError(
                f"a call of the runtime takes time, got {format_seconds(few_s)} for {FEW.copies} operators and "
                f"{format_seconds(many_s)} for {MANY.copies}: let the machine come to rest and measure again"
            )
        return intercept_s

    @property
    def switch_s(self) -> float:
        """Seconds that a kernel takes longer after another one than after itself: caches and predictors change over.

        In turn, a round's time is the slope between few and many, since the inputs of so many kernels cost a call time.
        """
        points = [_ALONE[probe] for probe in _SWITCH_PROBES]
        few_s, many_s, few_turns_s, many_turns_s, *runs_s = self._quietest(FEW, MANY, _FEW_TURNS, _MANY_TURNS, *points)
        round_s = (many_turns_s - few_turns_s) / (_MANY_TURNS.copies - _FEW_TURNS.copies)
        call_s = _intercept_s(few_s, many_s)
        alone_s = sum((run_s - call_s) / point.copies for run_s, point in zip(runs_s, points, strict=True))
        return max(0.0, (round_s - alone_s) / len(points))

    @property
    def held_s(self) -> float:
        """Seconds of the node that keeps an output alive: an operator that just needs one against one that does not."""
        held_s, short_s = self._quietest(_HELD, _SHORT)
        return max(0.0, (held_s - short_s) / held_outputs(_HELD.requests[0][0], _HELD.copies))

    @property
    def noise(self) -> float:
        """How far the middle timing of a reference lies above its shortest, as a share; of the middle reference."""
        return median((median(times) - min(times)) / min(times) for times in map(self.samples, REFERENCES))

    def slowdowns(self) -> tuple[float, ...]:
        """By how much the references ran slower than at best in each stage, as shares; that of the middle reference."""
        by_stage: defaultdict[int, list[float]] = defaultdict(list)
        for point in REFERENCES:
            shortest = self._shortest(point)
            best = min(shortest.values())
            for stage, run_s in shortest.items():
                by_stage[stage].append(run_s / best - 1)
        return tuple(map(median, by_stage.values()))

    def row(self, point: Point, overhead_s: float, switch_s: float, noise: float) -> Row:
        """The row of a point; its interval is where another measurement like this one would probably lie.

        Raises `MeasurementError` where a run took no longer than a call.
        """
        (op, precision), first = point.requests[0], self.book.of(point.name)[0]
        besides_s = overhead_s + self.held_s * held_outputs(op, first.copies)
        alone = [(run_s - besides_s) / first.copies for run_s in self.samples(point)]
        if min(alone) <= 0:
            raise MeasurementError(
                f"an operator takes time, got none beyond the call itself for {point.label}: "
                "let the machine come to rest and measure again"
            )
        samples = [alone_s + switch_s for alone_s in alone]
        latency_s = min(samples)
        margin_s = max(noise, _LEAST_NOISE) * latency_s + _OVERHEAD_ERROR * overhead_s / first.copies + switch_s / 2
        return Row(
            operator=op,
            precision=precision,
            realisation=first.realisation,
            native=first.native,
            others={name: min(alone) * ratio + switch_s for name, ratio in first.others.items()},
            source="measured",
            latency_s=latency_s,
            interval_s=(max(latency_s - margin_s, latency_s / 2), max(latency_s + margin_s, median(samples))),
            samples_s=tuple(samples),
            copies=first.copies,
        )


def _intercept_s(few_s: float, many_s: float) -> float:
    """Seconds of a run without copies, from runs of few and of many."""
    return few_s - FEW.copies * (many_s - few_s) / (MANY.copies - FEW.copies)
