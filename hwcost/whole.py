"""Whole networks, run where operators are measured: what a sum of kernels misses is learnt from them.

They run once before their kernels are timed, and again after. How long weights are waited for is measured beside them,
both times (`hwcost.weights`): it tells how a network finds its own from how its rows found theirs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hwcost.errors import MeasurementError, ModelError
from hwcost.files import write_atomically
from hwcost.model import read_model
from hwcost.onnxfile import example_feeds, load_model
from hwcost.prior.networks import random_network
from hwcost.profiles import Int8Form, Network, Part, WeightStream
from hwcost.quantising import INT8_STYLES, quantised
from hwcost.runtime import Runtime, UnusableError, time_model
from hwcost.timing import Request
from hwcost.weights import time_weights, weight_streams

_MOST_NETWORKS: Final = 24
_LEAST_NETWORKS: Final = 8
_SHARE: Final = 1 / 15
"""Networks per second of a measurement's budget: drawing, running and measuring the kernels of one takes a sixth."""
_TIME_S: Final = 0.25
_PASSES: Final = 4
"""Timings of a network after those of the operators, beside the one before."""
_PASSES_SHARE: Final = 0.3
"""Share of the budget for all timings of networks; where somebody disturbs them there are fewer."""


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
    written to `folder`. One that it refuses is left out, which `left_out` is told."""
    for index in range(count):
        model = random_network(seed, index)
        name = f"network {seed}/{index}"
        path = folder / f"{index}.onnx"
        write_atomically(path, model.SerializeToString())
        yield from _read(f"{name} float", path, runtime, left_out)
        style = tuple(INT8_STYLES)[index % len(INT8_STYLES)]
        narrow = folder / f"{index}.int8.onnx"
        write_atomically(narrow, quantised(model, example_feeds(load_model(path), seed), style).SerializeToString())
        yield from _read(f"{name} int8 {style}", narrow, runtime, left_out)


def _read(name: str, path: Path, runtime: Runtime, left_out: Callable[[str], None]) -> Iterator[WholeNetwork]:
    try:
        found = read_model(path, runtime=runtime)
    except UnusableError:
        raise
    except (ModelError, MeasurementError) as error:
        left_out(f"{name}: {error}")
    else:
        yield WholeNetwork(name, path, tuple((op, precision) for _, op, precision in found.layers))


def time_network(network: WholeNetwork, threads: int, seed: int, runtime: Runtime) -> float:
    """Seconds of one call, the minimum of one pass in a session of its own."""
    feeds = example_feeds(load_model(network.path), seed)
    latency_s, _ = time_model(network.path, feeds, threads=threads, seconds=_TIME_S, passes=1, runtime=runtime)
    return latency_s


class NetworkRuns:
    """So many `whole_networks` in `folder`, and the passes in which they are timed. `left_out` says which are not, and
    why."""

    def __init__(self, folder: Path, count: int, form: Int8Form, *, seed: int, threads: int, runtime: Runtime) -> None:
        self._folder, self._count, self._form = folder, count, form
        self._seed, self._threads, self._runtime = seed, threads, runtime
        self._timed: list[tuple[WholeNetwork, list[float]]] = []
        self._weights: list[dict[int, float]] = []
        self.left_out: list[str] = []

    def first(
        self, now: Callable[[], float], budget_s: float | None, progress: Callable[[int, int, str], None]
    ) -> float:
        """The first pass, `now` being seconds of a clock; answers how many seconds all `again` will take, of a budget
        for the whole measurement."""
        spent_s = 0.0
        for network in whole_networks(self._folder, self._count, self._seed, self._runtime, self.left_out.append):
            began_s = now()
            try:
                run_s = time_network(network, self._threads, self._seed, self._runtime)
            except UnusableError:
                raise
            except MeasurementError as error:
                self.left_out.append(f"{network.name}: {error}")
                continue
            spent_s += now() - began_s
            self._timed.append((network, [run_s]))
            progress(len(self._timed), 2 * self._count, f"whole networks: {network.name}")
        self._passes = _PASSES
        if budget_s is not None:
            self._passes = min(max(int(_PASSES_SHARE * budget_s / max(spent_s, 1e-9)) - 1, 1), _PASSES)
        self._time_weights()
        return self._passes * spent_s

    def kernels(self) -> list[Request]:
        """Those of the networks, one after the other, as a profile of this int8 form names them."""
        return [kernel for network, _ in self._timed for kernel in self._kernels(network)]

    def again(self, known: Iterable[Request]) -> None:
        """Further passes, over those networks whose kernels are all `known`: nothing is learnt from others."""
        known = set(known)
        whole = [one for one in self._timed if known.issuperset(self._kernels(one[0]))]
        if len(whole) < len(self._timed):
            self.left_out.append(f"{len(self._timed) - len(whole)} of them: not all of their kernels were timed")
        self._timed = whole
        for _ in range(self._passes):
            for network, samples_s in self._timed:
                samples_s.append(time_network(network, self._threads, self._seed, self._runtime))
        self._time_weights()

    def networks(self) -> tuple[Network, ...]:
        """What a profile keeps of them."""
        return tuple(network.measured(samples_s) for network, samples_s in self._timed)

    def weights(self, overhead_s: float) -> tuple[WeightStream, ...]:
        """How long weights were waited for, a call of the runtime taking so many seconds."""
        return weight_streams(self._weights, overhead_s)

    def _kernels(self, network: WholeNetwork) -> list[Request]:
        return [(op, precision.usual_on(self._form)) for op, precision in network.layers]

    def _time_weights(self) -> None:
        if self._timed:
            self._weights.append(time_weights(self._runtime, self._form, self._seed, self._threads))
