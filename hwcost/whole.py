"""Whole networks, run where operators are measured: what a sum of kernels misses is learnt from them.

They are looked at before their kernels are timed, and run in passes that lie as far apart as the measurement is long,
since neighbours disturb whole minutes: between the timings of rows and after them. Each is told at the speed that the
machine had for its rows: some of these are timed again between them (`hwcost.speed`). How long weights are waited for
is measured with every pass (`hwcost.weights`): it tells how a network finds its own from how its rows found theirs.

Half of a network's kernels take a tenth of its time: they are predicted from others, and their rows are other kernels'.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hwcost.errors import MeasurementError, ModelError
from hwcost.features import hardware_of
from hwcost.files import write_atomically
from hwcost.model import read_model
from hwcost.onnxfile import example_feeds, load_model
from hwcost.ops import Operator, Precision, bytes_moved
from hwcost.prior.networks import random_network
from hwcost.profiles import Int8Form, Network, Part, Profile, Row, Use
from hwcost.quantising import INT8_STYLES, quantised
from hwcost.runtime import Runtime, UnusableError, time_model
from hwcost.speed import anchors, speed_between, time_anchors
from hwcost.subnormal import time_subnormal
from hwcost.timing import Request, Timings
from hwcost.weights import PASS_S, time_weights, weight_streams

_MOST_NETWORKS: Final = 24
_LEAST_NETWORKS: Final = 8
_SHARE: Final = 1 / 15
"""Networks per second of a measurement's budget: drawing, running and measuring the kernels of one takes a sixth."""
_PASSES, _LEAST_PASSES = 3, 2
_PASSES_SHARE: Final = 0.3
"""Share of the budget for all passes over networks; where somebody disturbs them there are fewer."""
_TIMED: Final = 0.9
"""Share of a network's work that its timed kernels do at least."""
_MACS_PER_S, _INT8_MACS_PER_S, _BYTES_PER_S, _ELEMENTS_PER_S = 3e10, 6e10, 1e10, 1e9
_KERNEL_S: Final = 5e-7
"""Work as it takes some processor's time: near enough to tell a network's large kernels from its small ones."""
_BETWEEN, _ANCHORS_S = 16, 1.0
"""Networks between two timings of what tells the machine's speed, and the seconds that one takes."""

Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`."""


@dataclass(frozen=True)
class WholeNetwork:
    """A network on disk, and the kernels that a machine executes for it, in order."""

    name: str
    path: Path
    layers: tuple[Request, ...]

    def measured(self, samples_s: Sequence[float]) -> Network:
        """What a profile keeps of it; `samples_s` are the passes' minima, seconds per call."""
        parts = Counter(self.layers)
        return Network(
            name=self.name,
            parts=tuple(
                Part(operator=op, precision=precision, count=count) for (op, precision), count in parts.items()
            ),
            samples_s=tuple(samples_s),
        )


def affordable_networks(budget_s: float) -> int:
    """How many networks a measurement of this length runs; none where too few would say too little."""
    count = min(int(budget_s * _SHARE), _MOST_NETWORKS)
    return count if count >= _LEAST_NETWORKS else 0


def whole_networks(
    folder: Path, count: int, seed: int, runtime: Runtime, left_out: Callable[[str], None] = lambda text: None
) -> Iterator[WholeNetwork]:
    """`count` random networks in float, and each in int8 in one of the usual styles, as `runtime` executes them;
    written to `folder`. One that it refuses is left out, which `left_out` is told. The next are drawn while one is
    executed to be read."""
    drawing = ThreadPoolExecutor(max_workers=1)
    try:
        for index, written in enumerate([drawing.submit(_written, folder, seed, index) for index in range(count)]):
            for version, path in written.result().items():
                yield from _read(f"network {seed}/{index} {version}", path, runtime, left_out)
    finally:
        drawing.shutdown(cancel_futures=True)


def _written(folder: Path, seed: int, index: int) -> dict[str, Path]:
    """The files of both versions of a random network, by their names."""
    model, style = random_network(seed, index), tuple(INT8_STYLES)[index % len(INT8_STYLES)]
    wide, narrow = folder / f"{index}.onnx", folder / f"{index}.int8.onnx"
    write_atomically(wide, model.SerializeToString())
    write_atomically(narrow, quantised(model, example_feeds(load_model(wide), seed), style).SerializeToString())
    return {"float": wide, f"int8 {style}": narrow}


def _read(name: str, path: Path, runtime: Runtime, left_out: Callable[[str], None]) -> Iterator[WholeNetwork]:
    try:
        found = read_model(path, runtime=runtime)
    except UnusableError:
        raise
    except (ModelError, MeasurementError) as error:
        left_out(f"{name}: {error}")
    else:
        yield WholeNetwork(name, path, tuple((op, precision) for _, op, precision in found.layers))


def large_kernels(layers: Sequence[Request]) -> list[Request]:
    """The fewest of a network's kernels that do nine tenths of its work, each once."""
    counts = Counter(layers)
    work_s = {(op, precision): count * _rough_s(op, precision) for (op, precision), count in counts.items()}
    large, left_s = set[Request](), _TIMED * sum(work_s.values())
    for layer in sorted(work_s, key=lambda layer: -work_s[layer]):
        if left_s <= 0:
            break
        large.add(layer)
        left_s -= work_s[layer]
    return [layer for layer in counts if layer in large]


def _rough_s(op: Operator, precision: Precision) -> float:
    macs_s = op.macs / (_INT8_MACS_PER_S if precision.activation_bits == 8 else _MACS_PER_S)
    return macs_s + bytes_moved(op, precision) / _BYTES_PER_S + op.output_elements / _ELEMENTS_PER_S + _KERNEL_S


def time_network(network: WholeNetwork, threads: int, seed: int, runtime: Runtime, seconds: float = PASS_S) -> float:
    """Seconds of one call, the minimum of one pass in a session of its own."""
    feeds = example_feeds(load_model(network.path), seed)
    latency_s, _ = time_model(network.path, feeds, threads=threads, seconds=seconds, passes=1, runtime=runtime)
    return latency_s


@dataclass(frozen=True)
class _Run:
    """One run of a network: the minimum of a pass, and what the rows took, in seconds, that were timed before and after
    it to tell the machine's speed."""

    latency_s: float
    rows: tuple[Row, ...]
    before_s: list[float]
    after_s: list[float]

    def sample_s(self, profile: Profile) -> float:
        """Its seconds at the speed that the machine had for the rows of a profile."""
        rows = [profile.find(row.operator, row.precision) or row for row in self.rows]
        return self.latency_s * (speed_between(rows, self.before_s, self.after_s) or 1.0)


class NetworkRuns:
    """So many `whole_networks` in `folder`, and the passes in which they are timed."""

    def __init__(self, folder: Path, count: int, form: Int8Form, *, seed: int, threads: int, runtime: Runtime) -> None:
        self._folder, self._count, self._form = folder, count, form
        self._seed, self._threads, self._runtime = seed, threads, runtime
        self._networks: list[tuple[WholeNetwork, list[_Run]]] = []
        self._weights: list[dict[tuple[Use, int], float]] = []
        self._passes, self._done, self._pass_s = _PASSES, 0, 0.0
        self._left_out: list[str] = []

    def first(self, now: Callable[[], float], budget_s: float | None, progress: Progress) -> float:
        """A look at each, `now` being seconds of a clock; answers how many seconds all passes will take, of a budget
        for the whole measurement."""
        spent_s = 0.0
        for network in whole_networks(self._folder, self._count, self._seed, self._runtime, self._left_out.append):
            began_s = now()
            try:
                time_network(network, self._threads, self._seed, self._runtime, 0.0)
            except UnusableError:
                raise
            except MeasurementError as error:
                self._left_out.append(f"{network.name}: {error}")
                continue
            spent_s += now() - began_s + PASS_S
            self._networks.append((network, []))
            progress(len(self._networks), 2 * self._count, f"whole networks: {network.name}")
        if budget_s is not None:
            self._passes = min(max(int(_PASSES_SHARE * budget_s / max(spent_s, 1e-9)), _LEAST_PASSES), _PASSES)
        began_s = now()
        self._time_weights()
        self._pass_s = spent_s + _ANCHORS_S * math.ceil(len(self._networks) / _BETWEEN) + now() - began_s
        return self._passes * self._pass_s

    def kernels(self) -> list[Request]:
        """Those of the networks that are to be timed, as a profile of this int8 form names them."""
        return [kernel for network, _ in self._networks for kernel in self._kernels(network)]

    def among(self, share: float, profile: Callable[[], Profile], progress: Progress) -> None:
        """A pass, if one but the last is due when this share of the rows' time is over: they lie far apart. `profile`
        gives what is known of the rows by then."""
        if self._networks and self._done < self._passes - 1 and self._done <= share * self._passes:
            self._pass(profile(), progress)

    def told(self, profile: Profile, left_s: Callable[[], float], progress: Progress) -> Profile:
        """The profile, and with it the passes over those networks of which it has all `kernels`: nothing is learnt from
        others. They are told at the speed that the machine had when the rows were timed. What passes are missing
        comes first, but of those beyond the least only what `left_s`, the seconds left of the budget, has room for."""
        known = {(row.operator, row.precision) for row in profile.rows}
        count = len(self._networks)
        self._networks = [pair for pair in self._networks if known.issuperset(self._kernels(pair[0]))]
        notes = [f"a whole network was left out, {text}" for text in self._left_out]
        if unknown := count - len(self._networks):
            notes.append(f"{unknown} whole networks were left out, not all of their kernels were timed")
        while self._networks and self._done < self._passes:
            if self._done >= _LEAST_PASSES and left_s() < self._pass_s:
                break
            self._pass(profile, progress)
        return profile.changed(
            notes=(*profile.notes, *notes),
            weights=weight_streams(self._weights, profile.run_overhead_s),
            subnormal_s=self._time_subnormal(profile),
            networks=tuple(
                network.measured([run.sample_s(profile) for run in runs]) for network, runs in self._networks
            ),
        )

    def _pass(self, profile: Profile, progress: Progress) -> None:
        rows, timings = anchors(profile), Timings(self._runtime)
        self._runtime.renew()
        before_s = time_anchors(profile, rows, timings)
        for start in range(0, len(self._networks), _BETWEEN):
            what = f"whole networks, pass {self._done + 1} of {self._passes}"
            progress(self._done * len(self._networks) + start, self._passes * len(self._networks), what)
            some = self._networks[start : start + _BETWEEN]
            seconds = [time_network(network, self._threads, self._seed, self._runtime) for network, _ in some]
            after_s = time_anchors(profile, rows, timings)
            for (_, runs), latency_s in zip(some, seconds, strict=True):
                runs.append(_Run(latency_s, rows, before_s, after_s))
            before_s = after_s
        self._time_weights()
        self._done += 1

    def _kernels(self, network: WholeNetwork) -> list[Request]:
        return [(op, precision.usual_on(self._form)) for op, precision in large_kernels(network.layers)]

    def _time_subnormal(self, profile: Profile) -> float:
        lanes = hardware_of(profile.machine, self._form).lanes
        return time_subnormal(self._runtime, self._form, self._seed, self._threads, lanes)

    def _time_weights(self) -> None:
        if self._networks:
            self._weights.append(time_weights(self._runtime, self._form, self._seed, self._threads))
