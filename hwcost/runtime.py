"""onnxruntime as the rest of the package sees it: here, or wherever an agent runs; its refusals as our errors.

`Runtime` is what measuring and reading models need of it. `Here` is this process; `hwcost.pipe` has the one in another
process or on another machine. Both do the same work by the same code, `hwcost.agent`.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hwcost.agent import (
    Limit,
    Optimise,
    Timer,
    UnfedError,
    any_refusal,
    node_times,
    own_copy,
    runtime_errors,
    session,
    shapes_of,
    shortest_runs,
    stopwatch,
)
from hwcost.errors import HwcostError, MeasurementError
from hwcost.limits import within
from hwcost.machine import Facts, facts_here

Array = npt.NDArray[Any]

RUNTIME_ERRORS: Final = runtime_errors()
"""What the runtime raises when it refuses a model or an input."""


class RefusedError(RuntimeError):
    """What onnxruntime said when it refused a model or an input."""


class EndedError(RuntimeError):
    """The process in which onnxruntime ran gives no answer; the text says how it ended."""


class UnusableError(MeasurementError):
    """There is no process in which onnxruntime runs, and none can be had."""


class Weights(NamedTuple):
    """A constant handed over beside a model: an array, with other first elements for every number but 0."""

    base: Array
    number: int = 0

    @property
    def value(self) -> Array:
        return own_copy(self.base, self.number)


@dataclass(frozen=True)
class Given:
    """A model to be run: its bytes or its file, and how. `weights_in` is the folder of weights in files of their own,
    `weights` are those in memory; `contains` are large pieces of its bytes that it has more than once, or others have.
    """

    model: bytes | Path
    threads: int = 1
    optimise: Optimise = "all"
    settings: Mapping[str, str] | None = None
    weights: Mapping[str, Weights] | None = None
    weights_in: Path | None = None
    contains: Sequence[bytes] = ()


Job = tuple[Given, Mapping[str, Array]]
"""A model, and what it is fed."""


class Runtime(Protocol):
    """onnxruntime somewhere.

    A model that it refuses is a `RefusedError` (a `MemoryError` where memory runs out, a `TimeoutError` after
    `most_s`), a process that ends an `EndedError`; then the next call has a new one, or is an `UnusableError`.
    """

    def facts(self) -> Facts:
        """What the system there tells of itself now."""

    def renew(self) -> None:
        """What follows runs in a new process, where there are processes."""

    def optimised(self, given: Given, target: Path, weights_file: str = "", most_s: float | None = None) -> None:
        """Write the model that the runtime makes of one to `target`, here, and `weights_file`, if `given.settings`
        name one, beside it."""

    def run(self, given: Given, feeds: Mapping[str, Array]) -> list[Array]:
        """Every output of one run."""

    def shapes(
        self, given: Given, feeds: Mapping[str, Array], most_s: float | None = None
    ) -> dict[str, tuple[int, tuple[int, ...]]]:
        """ONNX element type and shape of every output that is a tensor, from one run."""

    def shortest_s(self, given: Given, feeds: Mapping[str, Array], seconds: float) -> float:
        """Seconds of the shortest run, tried for about `seconds` in a session of its own."""

    def shortest_each_s(self, jobs: Sequence[Job], seconds: float) -> list[float]:
        """The same of each of several models, all of which are loaded before the first is run; in turn, until two times
        of a model agree."""

    def node_times(
        self, given: Given, feeds: Mapping[str, Array], seconds: float, most_runs: int
    ) -> tuple[float, dict[str, float]]:
        """Seconds of a run, and of each node inside one, by its name: see `hwcost.agent.node_times`."""


@contextmanager
def _refused() -> Iterator[None]:
    """The runtime's exceptions as `Runtime` promises them."""
    try:
        yield
    except UnfedError as error:
        raise MeasurementError(str(error)) from None
    except MemoryError:
        raise
    except any_refusal() as error:
        raise RefusedError(str(error)) from error


def _limit(most_s: float | None) -> Limit | None:
    return None if most_s is None else partial(within, most_s)


@dataclass(frozen=True)
class Here:
    """The runtime in this process, with a stopwatch of one's own where wanted."""

    timer: Timer = stopwatch

    def facts(self) -> Facts:
        return facts_here()

    def renew(self) -> None:
        """There is one process."""

    def _session(self, given: Given, **more: Any) -> tuple[Any, dict[str, Array]]:
        """A session, and its weights, which have to outlive it."""
        weights = {name: one.value for name, one in (given.weights or {}).items()}
        running = session(
            given.model,
            given.threads,
            optimise=given.optimise,
            settings=given.settings,
            weights=weights,
            weights_in=given.weights_in,
            **more,
        )
        return running, weights

    def optimised(self, given: Given, target: Path, weights_file: str = "", most_s: float | None = None) -> None:
        with _refused():
            self._session(given, save_as=target, limit=_limit(most_s))

    def run(self, given: Given, feeds: Mapping[str, Array]) -> list[Array]:
        with _refused():
            running, _ = self._session(given)
            answers = running.run(None, dict(feeds))
        if not all(isinstance(answer, np.ndarray) for answer in answers):
            raise RefusedError("an output is no array")
        return list(answers)

    def shapes(
        self, given: Given, feeds: Mapping[str, Array], most_s: float | None = None
    ) -> dict[str, tuple[int, tuple[int, ...]]]:
        with _refused():
            running, _ = self._session(given)
            found = shapes_of(running, feeds, _limit(most_s))
            return {name: (kind, tuple(shape)) for name, (kind, shape) in found.items()}

    def shortest_s(self, given: Given, feeds: Mapping[str, Array], seconds: float) -> float:
        return self.shortest_each_s([(given, feeds)], seconds)[0]

    def shortest_each_s(self, jobs: Sequence[Job], seconds: float) -> list[float]:
        with _refused():
            held = [(self._session(given), feeds) for given, feeds in jobs]
            return shortest_runs([(running, feeds) for (running, _), feeds in held], seconds, self.timer)

    def node_times(
        self, given: Given, feeds: Mapping[str, Array], seconds: float, most_runs: int
    ) -> tuple[float, dict[str, float]]:
        with _refused(), tempfile.TemporaryDirectory(prefix="hwcost-") as name:
            running, telling = self._session(given), self._session(given, timed_as=Path(name, "nodes"))
            return node_times(running[0], telling[0], feeds, seconds, most_runs)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn the runtime's exceptions into one line that names `what`."""
    try:
        yield
    except HwcostError:
        raise
    except EndedError as error:
        raise MeasurementError(
            f"what is measured must run to its end, the process that ran {what} {error}: "
            "leave it out or use another version of onnxruntime"
        ) from error
    except any_refusal() as error:
        reason = " ".join(str(error).split())[:300]
        raise MeasurementError(
            f"onnxruntime must be able to run what is measured, it refused {what}: {reason}: "
            "leave it out or use another version of onnxruntime"
        ) from error


def time_model(
    model: bytes | str | Path,
    feeds: Mapping[str, Array],
    *,
    threads: int = 1,
    seconds: float = 1.0,
    passes: int = 3,
    weights_in: Path | None = None,
    runtime: Runtime | None = None,
) -> tuple[float, tuple[float, ...]]:
    """End-to-end seconds of one `run()` of a model: the minimum over passes, each in a fresh session, and the passes.

    `seconds` is spent in all; `weights_in` is the folder of those weights of a serialised model that lie in files of
    their own; `runtime` runs it, by default this process. Raises `MeasurementError` where it refuses the model.
    """
    if passes < 1:
        raise MeasurementError(f"a timing has at least one pass, got passes={passes}: ask for more")
    given = Given(Path(model) if isinstance(model, str) else model, threads, weights_in=weights_in)
    runtime = runtime or Here()
    with refusals("the model" if isinstance(model, bytes) else str(model)):
        samples = tuple(runtime.shortest_s(given, feeds, seconds / passes) for _ in range(passes))
    return min(samples), samples
