"""Timing operators: how a profile is measured.

The time of a small kernel drowns in the cost of one call, so a run holds many copies of it, and the cost of a call is
the intercept of the line through few and many copies. In a network another kernel comes next, and caches and branch
predictors have to change over: the kernels of a small network, in its order, say how much that costs a kernel, and
every row holds it. Noise only ever adds time and comes in bursts that last seconds, so each operator is timed in
several passes that lie far apart, in a new random order each, and the minimum counts; the spread of the passes goes
into the interval. Sessions live for one pass, so each sees other memory. Weights are hot, as they are in a network that
fits the caches.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, get_args

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from hwcost.errors import MeasurementError, UnsupportedPrecisionError
from hwcost.graph import Candidate, candidates, supported_precisions
from hwcost.journal import Conditions, Journal, Timing
from hwcost.kernels import copies_for, prepare, run_time
from hwcost.machine import detect_machine, quietness
from hwcost.ops import FLOAT, INT8, Conv, Elementwise, Gemm, Operator, Precision, key
from hwcost.profiles import Int8Form, Machine, Profile, Realisation, Row
from hwcost.runtime import Timer, minimum_time, refusals, session
from hwcost.runtime import time_model as time_model
from hwcost.space import SearchSpace
from hwcost.units import format_seconds

Request = tuple[Operator, Precision]
Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`."""

_PASS_S: Final = 0.012
_REPEATS: Final = 3
"""Timings per pass of what every row leans on: the overhead and the noise."""
_LEAST_NOISE: Final = 0.005
_BURST_ATTEMPTS: Final = 20
_BURST_PAUSE_S: Final = 0.5
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


def choose_int8_form(*, threads: int = 1, seed: int = 0, timer: Timer = minimum_time) -> Int8Form:
    """The fastest number formats whose convolutions are exact on this machine; raises `MeasurementError` if none is.

    CPUs without 8-bit dot products may saturate u8 x s8 sums in 16 bits, so each form is compared with exact integers.
    """
    probes = (Conv.square(32, 32, 14, 3), Conv.square(64, 64, 14, 1), Conv.square(64, 64, 14, 3, groups=64))
    times: dict[Int8Form, float] = {}
    for form in get_args(Int8Form):
        total, exact = 0.0, True
        for op in probes:
            (candidate,) = candidates(op, INT8, form, np.random.default_rng(seed))
            with refusals(f"{key(op)} at {INT8}"):
                running = session(candidate.model.SerializeToString(), threads)
                (answer,) = running.run(None, candidate.feeds)
            expected = integer_convolution(candidate, op)
            exact = exact and int(np.abs(answer.astype(np.int64) - expected).max()) <= 1
            total += timer(partial(running.run, None, candidate.feeds), 2 * _PASS_S)
        if exact:
            times[form] = total
    if not times:
        raise MeasurementError(
            f"int8 convolutions must be exact in one of {', '.join(get_args(Int8Form))}, got none on this machine: "
            "use another version of onnxruntime"
        )
    return min(times, key=lambda form: times[form])


def integer_convolution(candidate: Candidate, op: Conv) -> npt.NDArray[np.int64]:
    """What a `QLinearConv` must answer, in exact integers up to the last rounding; (batch, channels, height, width)."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in candidate.model.graph.initializer}
    (node,) = candidate.model.graph.node
    x_scale, x_zero, weights, w_scale, w_zero, y_scale, y_zero, bias = (constants[name] for name in node.input[1:])
    x = candidate.feeds[node.input[0]].astype(np.int64) - int(x_zero)
    top, left, bottom, right = op.pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    extent = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(op.dilation, op.kernel, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(2, 3))
    windows = windows[:, :, :: op.stride[0], :: op.stride[1], :: op.dilation[0], :: op.dilation[1]]
    grouped = windows.reshape(op.batch, op.groups, -1, *windows.shape[2:])
    centred = weights.astype(np.int64) - w_zero.astype(np.int64)[:, None, None, None]
    sums = np.einsum("bgchwij,gocij->bgohw", grouped, centred.reshape(op.groups, -1, *centred.shape[1:]), optimize=True)
    sums = sums.reshape(op.batch, op.out_channels, *sums.shape[3:]) + bias[:, None, None]
    scaled = sums * (x_scale * w_scale / y_scale).astype(np.float32)[:, None, None]
    limits = np.iinfo(y_zero.dtype)
    answer: npt.NDArray[np.int64] = np.clip(np.rint(scaled) + int(y_zero), limits.min, limits.max).astype(np.int64)
    return answer


@dataclass(frozen=True)
class _Point:
    """One thing to be timed once a pass, or more often: a row, or what every row leans on.

    Several requests run in turn, `copies` rounds of them.
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


_FEW = _Point("overhead", (_OVERHEAD_PROBE,), 16, _REPEATS)
_MANY = _Point("overhead", (_OVERHEAD_PROBE,), 160, _REPEATS)
_ALONE = {probe: _Point("alone", (probe,), 120) for probe in _SWITCH_PROBES}
_FEW_TURNS = _Point("in turn", _SWITCH_PROBES, 3, _REPEATS)
_MANY_TURNS = _Point("in turn", _SWITCH_PROBES, 12, _REPEATS)
_REFERENCES = tuple(_Point("reference", (probe,), 0, _REPEATS) for probe in _NOISE_PROBES)
_BASIS = (_FEW, _MANY, *_ALONE.values(), _FEW_TURNS, _MANY_TURNS, *_REFERENCES)


@dataclass(frozen=True)
class Measurements:
    """What a run of `measure_operators` found. `skipped` names operators and reasons; `notes` are for the profile."""

    rows: tuple[Row, ...]
    run_overhead_s: float
    switch_s: float
    noise_floor: float
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def measure_operators(
    requests: Sequence[Request],
    *,
    int8_form: Int8Form,
    machine: Machine,
    passes: int = 3,
    seed: int = 0,
    budget_s: float | None = None,
    journal: Path | None = None,
    progress: Progress | None = None,
    skip_unsupported: bool = False,
    timer: Timer = minimum_time,
    clock: Callable[[], float] = time.monotonic,
) -> Measurements:
    """Time every requested (operator, precision) on this machine, with `machine.threads` threads.

    `budget_s` ends the run early, but never before every operator had one pass. `journal` is a file to resume from; it
    is left there for the caller to delete once the result is safe. Raises `MeasurementError` naming the operator that
    the runtime refuses (listed in `skipped` instead with `skip_unsupported`), `UnsupportedPrecisionError` for a
    precision that has no kernel.
    """
    if passes < 1 or not requests:
        raise MeasurementError(
            f"a measurement has at least one pass and one operator, got passes={passes} and {len(requests)} operators: "
            "ask for more"
        )
    rows = [_Point("row", (request,)) for request in dict.fromkeys(requests)]
    points = [*_BASIS, *rows]
    conditions = Conditions(fingerprint=machine.fingerprint, int8_form=int8_form, seed=seed)
    total, done, start = passes * len(points), 0, clock()
    with Journal(journal, conditions) as book:
        run = _Run(book, int8_form, seed, machine.threads, skip_unsupported, timer)
        for number in range(passes):
            order = [int(index) for index in np.random.default_rng([seed, number]).permutation(len(points))]
            if number == 0:
                # The first passes of the overhead decide how many copies of everything else are made.
                order.sort(key=lambda index: points[index] not in (_FEW, _MANY))
            for point in (points[index] for index in order):
                done += 1
                if number and budget_s is not None and clock() - start > budget_s:
                    continue
                if progress is not None:
                    progress(done, total, f"pass {number + 1} of {passes}: {point.requests[0][0].kind}")
                begun = len(book.of(point.name))
                while len(book.of(point.name)) < (number + 1) * point.repeats and not run.refused(point):
                    run.time(point)
                if number == 0 and point in (_FEW, _MANY) and len(book.of(point.name)) > begun:
                    run.settle()
        finished = min(len(book.of(point.name)) // point.repeats for point in points if not run.refused(point))
        notes = (
            (f"stopped in pass {finished + 1} of {passes}: the budget of {format_seconds(budget_s or 0)} was used up",)
            if finished < passes
            else ()
        )
        return run.summary(rows, notes)


@dataclass(frozen=True)
class _Run:
    """A measurement under way: its journal, and the conditions that every timing shares."""

    book: Journal
    form: Int8Form
    seed: int
    threads: int
    skip_unsupported: bool
    timer: Timer

    def refused(self, point: _Point) -> bool:
        return any(timing.refused for timing in self.book.of(point.name))

    def time(self, point: _Point) -> None:
        """One more timing of a point, with the kernel and the number of copies of its first one."""
        before = self.book.of(point.name)
        wanted, count = (before[0].realisation, before[0].copies) if before else ("", point.copies)
        wanted = wanted if len(point.requests) == 1 else ""
        try:
            with refusals(point.label):
                kernels = [
                    prepare(op, precision, self.form, self.seed, self.threads, self.timer, wanted)
                    for op, precision in point.requests
                ]
                count = count or copies_for(kernels[0], self.overhead_s, self.threads, self.timer)
                run_s = run_time(kernels, count, self.threads, self.timer, _PASS_S)
        except MeasurementError as error:
            if not self.skip_unsupported or point.role != "row":
                raise
            self.book.add(Timing(point=point.name, refused=str(error)))
        else:
            realisation, native = kernels[0].realisation, kernels[0].native
            timing = Timing(point=point.name, run_s=run_s, copies=count, realisation=realisation, native=native)
            self.book.add(timing)

    def samples(self, point: _Point) -> list[float]:
        """Seconds of a run of this point, per timing."""
        return [timing.run_s for timing in self.book.of(point.name) if timing.run_s is not None]

    def settle(self) -> None:
        """Time the overhead's two points again while they contradict each other: a burst of noise lasts seconds."""
        for _ in range(_BURST_ATTEMPTS):
            if not (self.samples(_FEW) and self.samples(_MANY)) or self._intercept_s > 0:
                return
            time.sleep(_BURST_PAUSE_S)
            self.time(_FEW)
            self.time(_MANY)

    @property
    def _intercept_s(self) -> float:
        few_s, many_s = min(self.samples(_FEW)), min(self.samples(_MANY))
        return few_s - _FEW.copies * (many_s - few_s) / (_MANY.copies - _FEW.copies)

    @property
    def overhead_s(self) -> float:
        """Seconds of one call without operators: where the line through few and many copies meets zero."""
        if self._intercept_s <= 0:
            few_s, many_s = min(self.samples(_FEW)), min(self.samples(_MANY))
            raise MeasurementError(
                f"a call of the runtime takes time, got {format_seconds(few_s)} for {_FEW.copies} operators and "
                f"{format_seconds(many_s)} for {_MANY.copies}: let the machine come to rest and measure again"
            )
        return self._intercept_s

    @property
    def switch_s(self) -> float:
        """Seconds that a kernel takes longer after another one than after itself: caches and predictors change over.

        In turn, a round's time is the slope between few and many, since the inputs of so many kernels cost a call time.
        """
        few_s, many_s = min(self.samples(_FEW_TURNS)), min(self.samples(_MANY_TURNS))
        round_s = (many_s - few_s) / (_MANY_TURNS.copies - _FEW_TURNS.copies)
        points = [_ALONE[probe] for probe in _SWITCH_PROBES]
        alone_s = sum((min(self.samples(point)) - self.overhead_s) / point.copies for point in points)
        return max(0.0, (round_s - alone_s) / len(points))

    def summary(self, points: Sequence[_Point], notes: Sequence[str]) -> Measurements:
        spreads = [(median(times) - min(times)) / min(times) for times in map(self.samples, _REFERENCES)]
        noise, overhead_s, switch_s = median(spreads), self.overhead_s, self.switch_s
        skipped = [timing.refused for point in points for timing in self.book.of(point.name) if timing.refused]
        rows = [self._row(point, overhead_s, switch_s, noise) for point in points if not self.refused(point)]
        said = [*notes, f"each row holds {format_seconds(switch_s)} for the change from another kernel to this one"]
        if skipped:
            said.append(f"{len(skipped)} operators were skipped because onnxruntime refused them")
        return Measurements(tuple(rows), overhead_s, switch_s, noise, tuple(skipped), tuple(said))

    def _row(self, point: _Point, overhead_s: float, switch_s: float, noise: float) -> Row:
        """The row of a point; its interval is where another measurement like this one would probably lie."""
        (op, precision), first = point.requests[0], self.book.of(point.name)[0]
        alone = [(run_s - overhead_s) / first.copies for run_s in self.samples(point)]
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
            source="measured",
            latency_s=latency_s,
            interval_s=(max(latency_s - margin_s, latency_s / 2), max(latency_s + margin_s, median(samples))),
            samples_s=tuple(samples),
            copies=first.copies,
        )


def profile_machine(
    operators: Sequence[Operator],
    *,
    device: str,
    precisions: Sequence[Precision] | None = None,
    passes: int = 3,
    seed: int = 0,
    threads: int = 1,
    budget_s: float | None = None,
    journal: Path | None = None,
    progress: Progress | None = None,
    skip_unsupported: bool = False,
    timer: Timer = minimum_time,
) -> Profile:
    """Measure these operators here, at every precision that has a kernel or at those of `precisions` that have one.

    Raises like `measure_operators`, and `UnsupportedPrecisionError` where no operator has any of `precisions`.
    """
    requests = [
        (op, precision)
        for op in operators
        for precision in supported_precisions(op)
        if precisions is None or precision in precisions
    ]
    if operators and not requests:
        raise UnsupportedPrecisionError(
            f"a profile measures precisions that have a kernel, got {', '.join(map(str, precisions or ()))} for "
            f"{len(operators)} operators that have none of these: measure w8a8, narrower weights run on its kernels"
        )
    machine, warnings = detect_machine(threads), quietness()
    form = choose_int8_form(threads=threads, seed=seed, timer=timer)
    found = measure_operators(
        requests,
        int8_form=form,
        machine=machine,
        passes=passes,
        seed=seed,
        budget_s=budget_s,
        journal=journal,
        progress=progress,
        skip_unsupported=skip_unsupported,
        timer=timer,
    )
    return Profile(
        device=device,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine,
        int8_form=form,
        run_overhead_s=found.run_overhead_s,
        noise_floor=found.noise_floor,
        notes=(*warnings, *found.notes),
        realisations=tuple(_realisations(found.rows)),
        rows=found.rows,
    )


def _realisations(rows: Sequence[Row]) -> Iterator[Realisation]:
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
