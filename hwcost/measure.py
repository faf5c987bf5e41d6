"""Measuring a machine: which operators are timed when, and how a profile follows.

Noise only ever adds time and comes in bursts that last seconds, so each operator is timed in several passes that lie
apart, in a new random order and a new process each, and the minimum counts. A row is settled, and timed no more, once
its two shortest timings agree. The first stage times what was asked for; further ones add operators where predictors
fail (`hwcost.adaptive`) until four fifths of the budget are spent; then passes over what is not settled take the rest.
Every stage times the references too, so slow spells show. Weights are hot, as they are in a network that fits the
caches.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from hwcost.adaptive import AdaptiveSample
from hwcost.basis import AGREEMENT, BASIS, FEW, MANY, REFERENCES, TOGETHER, Basis, Point, settled
from hwcost.errors import MeasurementError, UnsupportedPrecisionError
from hwcost.features import hardware_of
from hwcost.graph import supported_precisions
from hwcost.journal import Batch, Conditions, Journal
from hwcost.ops import INT8, Operator, Precision
from hwcost.profiles import Int8Form, Machine, Profile, Realisation, Row
from hwcost.runtime import Here, Runtime
from hwcost.sampling import sampled_requests
from hwcost.timing import Request, Survey, Take, Task, Timings
from hwcost.units import format_seconds
from hwcost.whole import NetworkRuns, Progress

DEFAULT_PASSES: Final = 5

_FIRST_SHARE: Final = 0.8
"""Share of the budget that goes to first timings, most of them undisturbed, before any operator is timed again."""
_ROUND_S: Final = 16.0
_CHOICE_SHARE: Final = 0.08
"""Share of a round that choosing its operators may take."""
_LEAST_ROUND_S: Final = 0.5
_ROWS_PER_OPERATOR: Final = 2.0
"""Of a sample, until it is known."""
_OFTEN: Final = 4
"""So many stages at first, and one in so many later, time what every row leans on; all of them the references."""
_APART_S: Final = 12.0
"""Seconds between two timings of one row, where there is time."""
_WAIT_SHARE: Final = 0.1
"""Share of the time left that may be spent waiting for that."""
_SLOW: Final = 0.05
"""How much slower the references run in a stage that is reported."""
_BURST_ATTEMPTS: Final = 20
_BURST_PAUSE_S: Final = 0.5


class Sample(Protocol):
    """Operators to be added to a measurement, a batch at a time."""

    def choose(self, size: int, rows: Sequence[tuple[Request, float]]) -> dict[str, int]:
        """How many operators of which family come next, `size` in all, given the latencies so far in seconds."""

    def draw(self, families: dict[str, int]) -> tuple[Request, ...]:
        """The next operators of these families."""

    def state(self) -> str:
        """What is known by now, in a few words."""


class Clock(Protocol):
    """Tells and spends time, in seconds."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    """The operating system's."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Measurements:
    """What a run of `measure_operators` found. `skipped` names operators and reasons; `notes` are for the profile."""

    rows: tuple[Row, ...]
    run_overhead_s: float
    switch_s: float
    noise_floor: float
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


Between = Callable[[float, Callable[[], Measurements]], None]
"""`between(share, found)`: something else has its turn, when this share of the budget is spent (1: there is none), and
may ask what was found so far."""


def measure_operators(
    requests: Sequence[Request],
    *,
    int8_form: Int8Form,
    machine: Machine,
    sample: Sample | None = None,
    passes: int = DEFAULT_PASSES,
    seed: int = 0,
    budget_s: float | None = None,
    journal: Path | None = None,
    progress: Progress | None = None,
    skip_unsupported: bool = False,
    take: Take | None = None,
    between: Between | None = None,
    clock: Clock | None = None,
) -> Measurements:
    """Time every requested (operator, precision), with `machine.threads` threads, and then more of `sample`.

    A row is timed until it is settled or had `passes` timings. `budget_s` ends the run earlier, but never before every
    request had one; without it nothing is sampled. `take` does the timings, in this process by default. `between` has
    a turn after every stage, whose time is not the budget's. `journal` is a file to resume from; it is left there for
    the caller to delete once the result is safe. Raises `MeasurementError` naming the operator that the runtime refuses
    or whose run takes no longer than a call (listed in `skipped` instead with `skip_unsupported`).
    """
    if passes < 1 or not requests:
        raise MeasurementError(
            f"a measurement has at least one pass and one operator, got passes={passes} and {len(requests)} operators: "
            "ask for more"
        )
    conditions = Conditions(fingerprint=machine.fingerprint, int8_form=int8_form, seed=seed)
    with Journal(journal, conditions) as book:
        run = _Run(
            book,
            int8_form,
            seed,
            machine.threads,
            passes,
            budget_s,
            skip_unsupported,
            take or Timings().take_all,
            clock or RealClock(),
        )
        if progress is not None:
            run.progress = progress
        if between is not None:
            run.between = between
        run.first(requests)
        if sample is not None and budget_s is not None:
            run.widen(sample, budget_s)
        run.repeat()
        return run.summary()


@dataclass
class _Run:
    """A measurement under way: its journal, the conditions that every timing shares, and its rows so far.

    A stage is a time in which every point is timed once at most; its number tells processes and timings apart.
    """

    book: Journal
    form: Int8Form
    seed: int
    threads: int
    passes: int
    budget_s: float | None
    skip_unsupported: bool
    take: Take
    clock: Clock
    rows: dict[Request, Point] = field(default_factory=dict)
    stage: int = 0
    progress: Progress = lambda done, total, what: None
    between: Between = lambda spent, found: None

    def __post_init__(self) -> None:
        self.basis = Basis(self.book)
        self._zero_s = self.clock.now() - self.book.spent_s

    @property
    def spent_s(self) -> float:
        """Seconds of measuring, those before an interruption included."""
        return self.clock.now() - self._zero_s

    @property
    def left_s(self) -> float:
        return math.inf if self.budget_s is None else self.budget_s - self.spent_s

    def first(self, requests: Iterable[Request]) -> None:
        """One timing of all that was asked for, whatever the budget."""
        self._time_all(self._added(requests), "first pass", whatever_it_takes=True)

    def widen(self, sample: Sample, budget_s: float) -> None:
        """One timing of each operator of a growing sample, until the share of the budget for that is spent."""
        operators, known, chosen_in_s = 0, len(self.rows), 0.0
        while True:
            batch = self.book.batch(self.stage + 1)
            if batch is None:
                began_s = self.spent_s
                round_s, left_s = max(_ROUND_S, chosen_in_s / _CHOICE_SHARE), _FIRST_SHARE * budget_s - began_s
                if left_s < max(_LEAST_ROUND_S, 2 * chosen_in_s):
                    return
                round_s = round_s if left_s > 1.5 * round_s else left_s
                per_operator = (len(self.rows) - known) / operators if operators else _ROWS_PER_OPERATOR
                operator_s = self.spent_s / self.book.count * max(per_operator, 1)
                size = max(1, round(round_s / operator_s))
                batch = Batch(stage=self.stage + 1, families=sample.choose(size, self._first_latencies()))
                self.book.add(batch)
                chosen_in_s = self.spent_s - began_s
            points = self._added(sample.draw(batch.families))
            if not points:
                return
            operators += sum(batch.families.values())
            self._next_stage(points, f"sampling, {operators} operators{sample.state()}")

    def repeat(self) -> None:
        """Further passes over the rows that are not settled."""
        while (points := self._unsettled()) and self.left_s > 0:
            wait_s = min(map(self._last_s, points)) + _APART_S - self.spent_s
            self.clock.sleep(max(0.0, min(wait_s, _WAIT_SHARE * self.left_s)))
            self._next_stage(points, f"again, {len(points)} of {len(self.rows)} rows")

    def _added(self, requests: Iterable[Request]) -> list[Point]:
        points = [Point("row", (request,)) for request in dict.fromkeys(requests) if request not in self.rows]
        self.rows.update((point.requests[0], point) for point in points)
        return points

    def _unsettled(self) -> list[Point]:
        return [
            point
            for point in self.rows.values()
            if (samples := self.basis.samples(point)) and len(samples) < self.passes and not settled(samples)
        ]

    def _first_latencies(self) -> list[tuple[Request, float]]:
        """Seconds by the first timing of each row: what is decided from them stays decided."""
        overhead_s = self.basis.overhead_s
        found = []
        for request, point in self.rows.items():
            for timing in self.book.of(point.name)[:1]:
                if timing.run_s is not None and timing.run_s > overhead_s:
                    found.append((request, (timing.run_s - overhead_s) / timing.copies))
        return found

    def _next_stage(self, rows: Sequence[Point], what: str) -> None:
        self.stage += 1
        self._time_all(rows, what)

    def _time_all(self, rows: Sequence[Point], what: str, whatever_it_takes: bool = False) -> None:
        """What is not yet timed in this stage of the rows and of what they lean on: the overhead first, since it
        decides how many copies of the others are made; then all that is taken from each other, which a changing clock
        must not part; and last what was timed a short while ago."""
        often = self.stage < _OFTEN or self.stage % _OFTEN == 0
        points, now_s = [*(BASIS if often else REFERENCES), *rows], self.spent_s
        order = np.random.default_rng([self.seed, self.stage]).permutation(len(points))
        recent = {point for point in rows if now_s - self._last_s(point) < _APART_S}
        queue = sorted(
            (points[index] for index in order),
            key=lambda one: (one not in (FEW, MANY), one not in TOGETHER, one in recent),
        )
        for some in ([point for point in queue if point in (FEW, MANY)], queue):
            while lacking := [point for point in some for _ in range(self._lacks(point))]:
                for place, point in enumerate(self._timed(lacking)):
                    self._report(place, len(lacking), f"{what}: {point.requests[0][0].kind}")
                    if self.left_s <= 0 and not whatever_it_takes:
                        return
                if FEW in lacking:
                    self._settle()
        began_s = self.clock.now()
        self.between(1.0 if self.budget_s is None else self.spent_s / self.budget_s, self.summary)
        self._zero_s += self.clock.now() - began_s

    def _report(self, place: int, count: int, what: str) -> None:
        if self.budget_s is None:
            self.progress(place, count, what)
        else:
            self.progress(int(min(self.spent_s, self.budget_s)), math.ceil(self.budget_s), what)

    def _lacks(self, point: Point) -> int:
        """How many timings of this stage come next: the first of all says how many copies the others have."""
        found = self.book.of(point.name)
        if not found:
            return point.repeats if point.copies else 1
        done = sum(timing.stage == self.stage for timing in found)
        return 0 if self._refused(point) else max(point.repeats - done, 0)

    def _last_s(self, point: Point) -> float:
        return max((timing.at_s for timing in self.book.of(point.name)), default=-math.inf)

    def _refused(self, point: Point) -> bool:
        return any(timing.refused for timing in self.book.of(point.name))

    def _timed(self, points: Sequence[Point]) -> Iterator[Point]:
        """Time each of some points once more, and say which."""
        for point, timing in zip(points, self.take([self._task(point) for point in points]), strict=True):
            if timing.refused and (point.role != "row" or not self.skip_unsupported):
                raise MeasurementError(timing.refused)
            self.book.add(timing.model_copy(update={"at_s": self.spent_s}))
            yield point

    def _task(self, point: Point) -> Task:
        """A timing of a point, with the kernel and the number of copies of its first one."""
        first = next(iter(self.book.of(point.name)), None)
        copies = first.copies if first else point.copies
        return Task(
            point=point.name,
            stage=self.stage,
            requests=point.requests,
            int8_form=self.form,
            seed=self.seed,
            threads=self.threads,
            copies=copies,
            realisation=first.realisation if first and len(point.requests) == 1 else "",
            overhead_s=0.0 if copies else self.basis.overhead_s,
        )

    def _settle(self) -> None:
        """Time the overhead's two points again while they contradict each other: a burst of noise lasts seconds."""
        for _ in range(_BURST_ATTEMPTS):
            if not self.basis.contradictory:
                return
            self.clock.sleep(_BURST_PAUSE_S)
            list(self._timed([FEW, MANY]))

    def summary(self) -> Measurements:
        basis, points = self.basis, list(self.rows.values())
        noise, overhead_s, switch_s = basis.noise, basis.overhead_s, basis.switch_s
        skipped = [timing.refused for point in points for timing in self.book.of(point.name) if timing.refused]
        timed = [point for point in points if not self._refused(point) and self.book.of(point.name)]
        rows, lost = list[Row](), list[str]()
        for point in timed:
            try:
                rows.append(basis.row(point, overhead_s, switch_s, noise))
            except MeasurementError as error:
                if not self.skip_unsupported:
                    raise
                lost.append(str(error))
        if lost and not rows:
            raise MeasurementError(lost[0])
        notes = [*self._stops(timed), f"each row holds {format_seconds(switch_s)} for the change from another kernel"]
        slowdowns = basis.slowdowns()
        if slow := [slowdown for slowdown in slowdowns if slowdown > _SLOW]:
            notes.append(
                f"the machine was not quiet: in {len(slow)} of {len(slowdowns)} stages the references ran up to "
                f"{100 * max(slow):.0f} % slower than at best"
            )
        if skipped:
            notes.append(f"{len(skipped)} operators were skipped because onnxruntime refused them")
        if lost:
            notes.append(f"{len(lost)} operators were left out because their runs took no longer than a call")
        return Measurements(tuple(rows), overhead_s, switch_s, noise, (*skipped, *lost), tuple(notes))

    def _stops(self, points: Sequence[Point]) -> Iterator[str]:
        """Why no more was timed."""
        counts = [(len(samples), settled(samples)) for samples in map(self.basis.samples, points)]
        done = sum(is_settled for _, is_settled in counts)
        yield f"{done} of {len(points)} rows settled: two passes within {100 * AGREEMENT:.1f} %"
        tried = sum(count >= self.passes for count, is_settled in counts if not is_settled)
        if tried:
            yield f"{tried} rows did not settle in {self.passes} passes"
        if len(points) - done - tried:
            yield (
                f"{len(points) - done - tried} rows had no further pass: the budget of "
                f"{format_seconds(self.budget_s or 0)} was used up"
            )
        if len(points) < len(self.rows) - sum(map(self._refused, self.rows.values())):
            yield "not every operator of the sample was timed: the budget was used up"


def profile_machine(
    operators: Sequence[Operator],
    *,
    device: str,
    precisions: Sequence[Precision] | None = None,
    sampled: Sequence[Operator] = (),
    exact: Sequence[Request] = (),
    networks: int = 0,
    widen: bool = False,
    passes: int = DEFAULT_PASSES,
    seed: int = 0,
    threads: int = 1,
    budget_s: float | None = None,
    journal: Path | None = None,
    progress: Progress | None = None,
    skip_unsupported: bool = False,
    runtime: Runtime | None = None,
    say: Callable[[str], None] | None = None,
    clock: Clock | None = None,
) -> Profile:
    """Measure these operators, at every precision that has a kernel or at those of `precisions` that have one.

    `sampled` stand for those of other networks, and are measured on the kernels too that a runtime chooses for these;
    `widen` adds more of them while the budget lasts. `exact` is measured just so. So many random `networks` are run
    whole, before, among and after, and their large kernels measured. All that is timed runs in `runtime`, by default in
    this process; `say` tells what is waited for. Raises like `measure_operators`, and `UnsupportedPrecisionError` where
    no operator has any of `precisions`.
    """

    def wanted(precision: Precision) -> bool:
        return precisions is None or precision in precisions

    requests = [(op, precision) for op in operators for precision in supported_precisions(op) if wanted(precision)]
    if operators and not requests:
        raise UnsupportedPrecisionError(
            f"a profile measures precisions that have a kernel, got {', '.join(map(str, precisions or ()))} for "
            f"{len(operators)} operators that have none of these: measure w8a8, narrower weights run on its kernels"
        )
    clock, runtime = clock or RealClock(), runtime or Here()
    timings = Timings(runtime, say or (lambda text: None), clock.sleep)
    began_s = clock.now()
    site = timings.survey(Survey(threads=threads, seed=seed))
    hardware = hardware_of(site.machine, site.int8_form)

    def of_sample(op: Operator) -> tuple[Request, ...]:
        return tuple(request for request in sampled_requests(op, site.int8_form) if wanted(request[1]))

    with tempfile.TemporaryDirectory(prefix="hwcost-") as folder:
        runs = NetworkRuns(Path(folder), networks, site.int8_form, seed=seed, threads=threads, runtime=runtime)
        told = progress or (lambda done, total, what: None)

        def profile_of(found: Measurements) -> Profile:
            return Profile(
                device=device,
                created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                machine=site.machine,
                int8_form=site.int8_form,
                run_overhead_s=found.run_overhead_s,
                noise_floor=found.noise_floor,
                notes=(*site.warnings, *found.notes),
                realisations=tuple(unpacked_realisations(found.rows)),
                rows=found.rows,
            )

        passes_s = runs.first(clock.now, budget_s, told)
        budget_left_s = None if budget_s is None else budget_s - (clock.now() - began_s) - passes_s
        sampling = widen and budget_s is not None
        found = measure_operators(
            [
                *requests,
                *((op, precision.usual_on(site.int8_form)) for op, precision in exact),
                *([] if sampling else runs.kernels()),
                *(request for op in sampled for request in of_sample(op)),
            ],
            int8_form=site.int8_form,
            machine=site.machine,
            sample=AdaptiveSample(seed, of_sample, hardware, beside=runs.kernels()) if sampling else None,
            passes=passes,
            seed=seed,
            budget_s=budget_left_s,
            journal=journal,
            progress=progress,
            skip_unsupported=skip_unsupported,
            take=timings.take_all,
            between=lambda share, found: runs.among(share, lambda: profile_of(found()), told),
            clock=clock,
        )
        profile = profile_of(found)
        if not networks:
            return profile
        return runs.told(profile, lambda: math.inf if budget_s is None else budget_s - (clock.now() - began_s), told)


def unpacked_realisations(rows: Sequence[Row]) -> Iterator[Realisation]:
    """Narrow weights with 8-bit activations have no kernel of their own: they run on the int8 one, and say so."""
    for kind in sorted({row.operator.kind for row in rows if row.operator.weights and row.precision == INT8}):
        for bits in (4, 2):
            yield Realisation(
                kind=kind,
                precision=Precision(bits, 8),
                runs_as=INT8,
                native=False,
                description=f"int8 kernel; {bits}-bit storage unpacked when the session loads",
            )
