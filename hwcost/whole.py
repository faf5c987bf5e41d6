"""Whole networks, run where operators are measured: what a sum of kernels misses is learnt from them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hwcost.errors import MeasurementError, ModelError
from hwcost.files import write_atomically
from hwcost.model import read_model
from hwcost.onnxfile import example_feeds, load_model
from hwcost.prior.networks import random_network
from hwcost.profiles import Network, Part
from hwcost.quantising import INT8_STYLES, quantised
from hwcost.runtime import Runtime, UnusableError, time_model
from hwcost.space import Layer

_MOST_NETWORKS: Final = 24
_LEAST_NETWORKS: Final = 8
_SHARE: Final = 1 / 15
"""Networks per second of a measurement's budget: drawing, running and measuring the kernels of one takes a sixth."""
_TIME_S: Final = 0.25


@dataclass(frozen=True)
class WholeNetwork:
    """A network on disk, and the kernels that a machine executes for it, in order."""

    name: str
    path: Path
    layers: tuple[Layer, ...]

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
