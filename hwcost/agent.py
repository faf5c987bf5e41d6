"""The measurement agent: all that is the same wherever onnxruntime runs, here or on a board.

Sessions with the same options everywhere, the stopwatch, weights that are a copy's own, what the system says of itself;
and a loop that does these things for somebody at the other end of a pipe (`python agent.py`). A board needs this one
file, Python 3.9, numpy and onnxruntime, and nothing else of the package: so nothing else is imported here, and those
two only inside functions, since what a machine is can be told without them, and where they are missing or break.

A frame, either way, is one line of JSON and then its blobs. `{"do": "shortest", ..., "blobs": [[digest, size, sent]]}`
asks: what was not sent again is what both sides kept. `{"answer": ..., "blobs": [size]}` answers; so do `refused` (what
onnxruntime said, and of which kind) and `failed` (what nobody foresaw).

The loop runs in a child process. Its parent waits for the end of either: where the other end of the pipe is gone it
kills the child, even in the middle of a run, and it leaves no file behind. Its exit code is the child's, 128 more than
the number of the signal that ended it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property, lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

# From 1.29 on onnxruntime tells its makers of every session, from threads of its own in the process that is measured.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Optimise = Literal["all", "extended", "none"]
"""What the runtime makes of a graph: everything, blocked layouts included; fusions only; nothing."""
Timer = Callable[[Callable[[], object], float], float]
"""`timer(run, seconds)`: the duration in seconds of the shortest call of `run`, tried for about that long."""
Limit = Callable[[Callable[[], Any], Callable[[], None]], Any]
"""`limit(work, stop)`: what `work` returns; or calls `stop`, which makes the runtime give it up, and raises."""
Answer = tuple[Any, Sequence[bytes]]

FORMAT: Final = "hwcost-agent"
# 1: first version. 2: models that are held to be timed with the next.
VERSION: Final = 2
HEADER_BYTES: Final = 2**24
"""The longest line of a frame."""
FRAME_BYTES: Final = 2**31
"""What the blobs of a frame hold at most."""
ALONE: Final = "--alone"
"""The argument of `agent.py` that makes it serve in the process itself: where nothing forks, or somebody watches it."""

_KEPT_BYTES: Final = 2**26
_LEAST_KEPT_BYTES: Final = 1024
_MOST_IDLE_S: Final = 3600
"""After so long without a request the other end is taken to be gone: a dead link says nothing."""
_LEAST_RUNS: Final = 3
_TURNS, _LEAST_TURNS, _AGREED = 4, 2, 1.02
"""How often each of several sessions is timed at most and at least, and the ratio up to which two times agree."""
_PIECES, _PIECE_S = 5, 2e-3
"""Into so many pieces a timing is cut by asking for the machine's pace, more where they would be longer than this."""
_PATIENCE: Final = 2e4
_MOST_PATIENCE_S: Final = 1.0
"""How long an undisturbed timing is waited for: so many times the square of the seconds that it takes, since a longer
one is wanted better, and no longer than this."""
_IN_VAIN_S: Final = 3.0
"""After so long without an undisturbed run the machine is taken to be slower than it was."""
_UNDISTURBED: Final = 1.1
"""A piece of arithmetic takes at most so many times the shortest one; one beside somebody else 1.2 times and more."""
_ACQUAINTED: Final = 2000
"""Pieces of arithmetic of which the shortest is the machine's pace at first."""
_BASE, _EXPONENT, _MODULUS = 2**500 + 7, 2**9 - 1, 2**512 - 569
_LEVELS: Final = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "none": "ORT_DISABLE_ALL"}
_ALIGNED: Final = 64
_COUNTED, _IN_A_ROW = 3, 8
"""Of the runs in which nodes are timed, so many in a row, one in so many counts: the shortest ones."""
_KERNEL: Final = "_kernel_time"
"""How the name of an event ends that is a node's own time."""
_CLOCK_S: Final = 1e-6
"""What the runtime's own profile counts in; it rounds down."""
_SIGNALLED: Final = 128
_RUNS_ON: Final = 36
"""Place in `/proc/thread-self/stat`, after the name in parentheses, of the core that a thread runs on."""
_SYSTEM_TEXTS: Final = (
    "/proc/cpuinfo",
    "/proc/device-tree/model",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "/sys/class/thermal/thermal_zone0/temp",
    *(f"/sys/devices/system/cpu/cpu0/cache/index{n // 3}/{('level', 'type', 'size')[n % 3]}" for n in range(18)),
)
_LONGEST_TEXT: Final = 2**17
_BOARD_QUESTIONS: Final = ("get_throttled", "measure_temp")
"""What the Raspberry Pi's own `vcgencmd` is asked."""


class UnfedError(ValueError):
    """A model was to be timed without one of its inputs."""


# --- sessions, which are the same everywhere


@lru_cache(None)
def runtime_errors() -> tuple[type[Exception], ...]:
    """What the runtime raises when it refuses a model or an input."""
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    names = ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException", "EPFail", "NoSuchFile")
    own = (getattr(runtime, name) for name in (*names, "NoModel", "InvalidProtobuf"))
    return (*own, UnicodeDecodeError)  # the last: of a message that quotes a damaged name


def any_refusal() -> tuple[type[Exception], ...]:
    """Those, and what it raises where it runs out of memory or has an output that is no array of numpy's."""
    return (*runtime_errors(), RuntimeError, MemoryError)


def session(
    model: bytes | str | Path,
    threads: int = 1,
    *,
    optimise: Optimise = "all",
    save_as: Path | None = None,
    weights_in: Path | None = None,
    weights: Mapping[str, Array] | None = None,
    settings: Mapping[str, str] | None = None,
    limit: Limit | None = None,
    timed_as: Path | None = None,
) -> Any:
    """A CPU session of a serialised model or a file, the same everywhere: sequential, spinning as by default, silent.

    The runtime logs and prints nothing: what it refuses arrives as one of `runtime_errors`. `save_as` keeps the
    optimised model there; `weights_in` is the folder of those weights of a serialised model that lie in files of their
    own, `weights` are such weights in memory, which have to outlive the session; `settings` are further session
    configuration entries; `timed_as` is how the path of a profile of every node begins, which the session then keeps.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    if weights_in is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_in))
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[optimise])
    if save_as is not None:
        options.optimized_model_filepath = str(save_as)
    if timed_as is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(timed_as)
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
    source = str(model) if isinstance(model, Path) else model
    make = partial(onnxruntime.InferenceSession, source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    return make() if limit is None else limit(make, partial(options.set_load_cancellation_flag, True))


def shapes_of(running: Any, feeds: Mapping[str, Array], limit: Limit | None = None) -> dict[str, tuple[int, list[int]]]:
    """ONNX element type and shape of every output that is a tensor, from one run that leaves them where they are."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    outputs = [value.name for value in running.get_outputs()]
    given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
    run = partial(running.run_with_ort_values, outputs, given, options)
    values = run() if limit is None else limit(run, partial(setattr, options, "terminate", True))
    named = zip(outputs, values)  # noqa: B905 - strict is not in 3.9
    return {name: (value.element_type(), value.shape()) for name, value in named if value.is_tensor()}


def _arithmetic() -> object:
    """Some ten microseconds of multiplications that no memory, address or earlier work makes faster or slower."""
    return pow(_BASE, _EXPONENT, _MODULUS)


@lru_cache(None)
def _node_of(core: int) -> str:
    """The memory that is a core's own, by its name; empty where the system knows of one only."""
    return next((path.name for path in Path(f"/sys/devices/system/cpu/cpu{core}").glob("node[0-9]*")), "")


class Cores:
    """The cores of which a thread may use any, and which have the memory of the one that it runs on: it is moved from
    one to the next. A context manager, at whose end it may use all again; the system is asked once one is needed."""

    def __enter__(self) -> Cores:
        self._before: set[int] = set()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stay_on(self._before)

    @cached_property
    def _order(self) -> list[int]:
        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        told = _text("/proc/thread-self/stat").rpartition(")")[2].split()[_RUNS_ON:]
        nodes = {core: _node_of(core) for core in sorted(own)}
        here = int(told[0]) if told else next(iter(nodes), 0)
        return [core for core, node in nodes.items() if node == nodes.get(here, node)]

    def __len__(self) -> int:
        return max(len(self._order), 1)

    def next(self) -> None:
        """To the core that it was on longest ago."""
        if len(self._order) > 1:
            self._before = self._before or os.sched_getaffinity(0)
            self._order.append(self._order.pop(0))
            self._stay_on({self._order[0]})

    def _stay_on(self, cores: set[int]) -> None:
        with suppress(OSError):  # somebody has taken them away meanwhile
            if cores:
                os.sched_setaffinity(0, cores)


class Stopwatch:
    """The shortest of repeated calls, in seconds, while nobody else slows the machine: a `Timer`.

    Who shares a core takes a third to a half of its pace, for a millisecond or for half a second. So a short piece of
    arithmetic is timed between calls: where it takes about as long as ever before and after some, these were
    undisturbed. Where it does not, the next ones run on another core. One call to warm up, then as many as fit in the
    seconds, three at least, and more as soon as a core is undisturbed until those of half of the seconds were; within
    some patience, since others may never rest. A machine that has become slower for good is taken as it is.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        arithmetic: Callable[[], object] = _arithmetic,
        cores: Callable[[], Cores] = Cores,
    ) -> None:
        self._clock, self._arithmetic, self._cores = clock, arithmetic, cores
        self._fastest_s, self._in_vain_s = math.inf, 0.0

    def __call__(self, run: Callable[[], object], seconds: float) -> float:
        with self._cores() as cores:
            return self._shortest(run, seconds, cores)

    def _shortest(self, run: Callable[[], object], seconds: float, cores: Cores) -> float:
        if self._fastest_s == math.inf:
            self._fastest_s = self._pace_s(_ACQUAINTED)
        run()
        paces_s = [self._pace_s()]
        best, runs, calm_s, began = math.inf, 0, 0.0, self._clock()
        piece_s = min(seconds / _PIECES, _PIECE_S)
        now, give_up = began, began + max(seconds, min(_PATIENCE * seconds**2, _MOST_PATIENCE_S))
        while (hurried := runs < _LEAST_RUNS or now < began + seconds) or (calm_s < seconds / 2 and now < give_up):
            looked = 0
            while self._disturbed(paces_s[-1]) and (looked < len(cores) if hurried else now < give_up):
                cores.next()
                paces_s.append(self._pace_s())
                looked, now = looked + 1, self._clock()
            piece = now
            while True:
                start = self._clock()
                run()
                now = self._clock()
                best = min(best, now - start)
                runs += 1
                if now - piece >= piece_s:
                    break
            paces_s.append(self._pace_s())
            if not any(map(self._disturbed, paces_s[-2:])):
                calm_s += now - piece
            now = self._clock()
        self._fastest_s = min(self._fastest_s, *paces_s)
        self._in_vain_s = 0.0 if calm_s else self._in_vain_s + now - began
        if self._in_vain_s > _IN_VAIN_S:
            self._fastest_s, self._in_vain_s = min(paces_s), 0.0
        return best

    def _disturbed(self, pace_s: float) -> bool:
        return pace_s > self._fastest_s * _UNDISTURBED

    def _pace_s(self, times: int = 3) -> float:
        """Seconds of the shortest piece of arithmetic."""
        best = math.inf
        for _ in range(times):
            start = self._clock()
            self._arithmetic()
            best = min(best, self._clock() - start)
        return best


stopwatch: Final = Stopwatch()
"""The one of this process."""


def _fed(running: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What every run of a session is given; raises `UnfedError`."""
    missing = [one.name for one in running.get_inputs() if one.name not in feeds]
    if missing:
        raise UnfedError(f"a timed model is fed every one of its inputs, got none for {', '.join(missing)}: feed them")
    return dict(feeds)


def shortest_runs(
    held: Sequence[tuple[Any, Mapping[str, Array]]], seconds: float, timer: Timer = stopwatch
) -> list[float]:
    """Seconds of the shortest run of each of these sessions with their feeds: timed once where there is one, otherwise
    in turn, twice each, and up to twice more where both times differ. Who takes the last cache or memory away does so
    for longer than one is timed for, and arithmetic does not tell; then it is another's turn. Raises `UnfedError`."""
    found = [(partial(running.run, None, _fed(running, feeds)), list[float]()) for running, feeds in held]
    for turn in range(_TURNS if len(held) > 1 else 1):
        for run, runs_s in found:
            if turn < _LEAST_TURNS or sorted(runs_s)[1] > _AGREED * min(runs_s):
                runs_s.append(timer(run, seconds))
    return [min(runs_s) for _, runs_s in found]


def node_times(
    running: Any, telling: Any, feeds: Mapping[str, Array], seconds: float, most_runs: int
) -> tuple[float, dict[str, float]]:
    """Seconds of a run, and those of each node inside one, by its name, of two sessions of a model, of which the second
    keeps a profile: a few runs of each in turn, for the first ones find caches full of the other's weights, as often as
    fits into the seconds, 1 to `most_runs` times; of each the mean of the shortest third. The profile counts whole
    microseconds, rounded down, so half of one is added; and it makes every node longer, so that these add up to more
    than a run. Raises `UnfedError`."""
    given = _fed(running, feeds)
    begins = time.perf_counter()
    for one in (running, telling):
        one.run(None, given)
    now = time.perf_counter()
    in_a_row = max(min(_IN_A_ROW, most_runs, int(seconds / (2 * (now - begins)))), 1)
    runs_s, begins = list[float](), now
    while not runs_s or (len(runs_s) + in_a_row <= most_runs and now - begins < seconds):
        for _ in range(in_a_row):
            start = time.perf_counter()
            running.run(None, given)
            runs_s.append(time.perf_counter() - start)
        for _ in range(in_a_row):
            telling.run(None, given)
        now = time.perf_counter()
    told: list[dict[str, float]] = [{}]
    path = Path(telling.end_profiling())
    events = json.loads(path.read_bytes())
    path.unlink()
    for event in events:
        name = str(event.get("name"))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            node = name[: -len(_KERNEL)]
            told[-1][node] = told[-1].get(node, 0.0) + (event["dur"] + 0.5) * _CLOCK_S
        elif name == "model_run":
            told.append({})
    counted = max(len(runs_s) // _COUNTED, 1)
    shortest = sorted(told[1:-1], key=lambda times: sum(times.values()))[:counted]
    names = shortest[0] if shortest else ()  # a profile that is full says no more
    nodes_s = {node: sum(times.get(node, 0.0) for times in shortest) / len(shortest) for node in names}
    return sum(sorted(runs_s)[:counted]) / counted, nodes_s


def own_copy(value: Array, number: int) -> Array:
    """A copy of a constant, where the runtime would place it; weights get other first elements, so that no two
    numbers' are equal."""
    import numpy as np

    memory = np.empty(value.nbytes + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    own: Array = memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    own[...] = value
    if number and own.ndim > 1 and own.size > 1:
        digits = np.array([number % 100, number // 100], dtype=own.dtype)
        own.reshape(-1)[:2] = digits / own.dtype.type(1000) if own.dtype.kind == "f" else digits
    return own


# --- what the system says of itself


def _text(path: str) -> str:
    """Contents of a system file, stripped; empty where the system does not have it."""
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - a file that tells no size
            return stream.read(_LONGEST_TEXT).decode("utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _board(question: str) -> str:
    """What a Raspberry Pi's firmware answers; empty on any other machine."""
    command = shutil.which("vcgencmd")
    if command is None:
        return ""
    try:
        asked = subprocess.run([command, question], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"vcgencmd failed ({error})"
    return asked.stdout.strip() or f"vcgencmd failed ({' '.join(asked.stderr.split())})"


def system_facts() -> dict[str, Any]:
    """What this system tells of its processor, its load and its versions, in its own words."""
    texts = {path: _text(path) for path in _SYSTEM_TEXTS}
    versions = {one.metadata["Name"]: one.version for one in metadata.distributions(name="onnxruntime")}
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": platform.processor(),
        "python": platform.python_version(),
        "onnxruntime": versions.get("onnxruntime", "unknown"),
        "cores": os.cpu_count() or 1,
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "texts": {path: text for path, text in texts.items() if text},
        "board": {question: answer for question in _BOARD_QUESTIONS if (answer := _board(question))},
    }


# --- frames


class Store:
    """Blobs that both ends of a pipe remember, by their digest, the last used ones; both follow the same rule."""

    def __init__(self, most_bytes: int = _KEPT_BYTES) -> None:
        self._most_bytes, self._held_bytes = most_bytes, 0
        self._blobs: OrderedDict[str, bytes] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._blobs

    def __getitem__(self, digest: str) -> bytes:
        return self._blobs[digest]

    def keep(self, blobs: Mapping[str, bytes]) -> None:
        """Those of one frame, in its order."""
        for digest, blob in blobs.items():
            if not _LEAST_KEPT_BYTES <= len(blob) <= self._most_bytes // 4:
                continue
            if digest not in self._blobs:
                self._held_bytes += len(blob)
            self._blobs[digest] = blob
            self._blobs.move_to_end(digest)
        while self._held_bytes > self._most_bytes:
            self._held_bytes -= len(self._blobs.popitem(last=False)[1])


def digest_of(blob: bytes) -> str:
    return hashlib.blake2b(blob, digest_size=16).hexdigest()


def exactly(stream: BinaryIO, size: int) -> bytes:
    """So many bytes; raises `EOFError` where the stream ends before."""
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"a frame of {size} bytes ended after {len(data)}")
    return data


def read_line(stream: BinaryIO) -> dict[str, Any] | None:
    """The head of the next frame, None at the end of the stream; raises `ValueError` for what is none."""
    line = stream.readline(HEADER_BYTES)
    if not line:
        return None
    head = json.loads(line) if line.endswith(b"\n") else None
    if not isinstance(head, dict):
        raise ValueError("a frame begins with one line of JSON, an object")
    return head


def write_frame(stream: BinaryIO, head: Mapping[str, Any], blobs: Sequence[bytes]) -> None:
    stream.write(json.dumps(head, allow_nan=False).encode() + b"\n")
    for blob in blobs:
        stream.write(blob)
    stream.flush()


class Request:
    """What the other end asks for: `head` says it, arrays and bytes are among its blobs."""

    def __init__(self, head: dict[str, Any], blobs: list[bytes]) -> None:
        self.head, self.blobs = head, blobs

    @property
    def model(self) -> bytes:
        """Put together from its parts, of which some are in other models too, and are not sent again."""
        return b"".join(self.blobs[place] for place in self.head["model"])

    def array(self, told: Mapping[str, Any]) -> Array:
        """A copy, in memory like that of any other array."""
        import numpy as np

        return np.frombuffer(self.blobs[told["blob"]], np.dtype(told["dtype"])).reshape(told["shape"]).copy()

    @property
    def feeds(self) -> dict[str, Array]:
        return {name: self.array(told) for name, told in self.head.get("feeds", {}).items()}

    @property
    def weights(self) -> dict[str, Array]:
        """Many of them are the same array but for its first elements: that array is sent once."""
        bases = [self.array(told) for told in self.head.get("bases", [])]
        return {name: own_copy(bases[base], number) for name, (base, number) in self.head.get("weights", {}).items()}

    def write_files(self, folder: Path) -> None:
        """The weights that lie in files of their own."""
        for name, blob in self.head.get("files", {}).items():
            path = folder.joinpath(name)
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"files lie in the folder for them, got {name!r}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.blobs[blob])


class Agent:
    """Does what is asked for, with one session at a time. Subclass it for further commands: each is a method `do_NAME`.

    `folder` is its own, for files that the runtime wants to have; it is somebody else's to remove.
    """

    timer: Timer = stopwatch

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = ExitStack()
        self._waiting: list[tuple[Any, dict[str, Array]]] = []

    def do_facts(self, request: Request) -> Answer:
        return system_facts(), ()

    def do_load(self, request: Request) -> Answer:
        """Load what everything else needs; `missing` names what is not there, `reason` says why."""
        versions = {}
        for name in ("numpy", "onnxruntime"):
            try:
                versions[name] = str(__import__(name).__version__)
            except (ImportError, OSError) as error:
                return {"missing": name, "reason": str(error), "python": sys.executable}, ()
        any_refusal()
        return versions, ()

    @contextmanager
    def running(self, request: Request, **more: Any) -> Iterator[Any]:
        """A session of the request's model."""
        head, weights = request.head, request.weights  # which have to outlive the session
        with tempfile.TemporaryDirectory(dir=self.folder) if "files" in head else nullcontext() as folder:
            if folder:
                request.write_files(Path(folder))
            yield session(
                request.model,
                head["threads"],
                optimise=head["optimise"],
                settings=head.get("settings"),
                weights=weights,
                weights_in=Path(folder) if folder else None,
                **more,
            )

    def do_optimise(self, request: Request) -> Answer:
        """The model that the runtime makes of one, and the file of weights beside it, empty if there is none."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            target, beside = Path(name, "optimised.onnx"), Path(name, request.head["weights_file"])
            with self.running(request, save_as=target):
                return {}, (target.read_bytes(), beside.read_bytes() if beside.exists() else b"")

    def do_run(self, request: Request) -> Answer:
        """Every output of one run, as arrays."""
        import numpy as np

        with self.running(request) as running:
            answers = running.run(None, request.feeds)
        if not all(isinstance(answer, np.ndarray) and not answer.dtype.hasobject for answer in answers):
            raise RuntimeError("an output is no array")
        told = [{"dtype": answer.dtype.str, "shape": answer.shape} for answer in answers]
        return told, [answer.tobytes() for answer in answers]

    def do_shapes(self, request: Request) -> Answer:
        with self.running(request) as running:
            return shapes_of(running, request.feeds), ()

    def do_hold(self, request: Request) -> Answer:
        """Load a model, to be timed with the next `shortest`; where that fails, none is held."""
        try:
            self._waiting.append((self._held.enter_context(self.running(request)), request.feeds))
        except BaseException:
            self._let_go()
            raise
        return {}, ()

    def _let_go(self) -> None:
        self._waiting.clear()
        self._held.close()

    def do_shortest(self, request: Request) -> Answer:
        """Of all models that are held, and of this one."""
        self.do_hold(request)
        seconds = request.head["seconds"]
        try:
            return shortest_runs(self._waiting, seconds, self.timer), ()
        finally:
            self._let_go()

    def do_nodes(self, request: Request) -> Answer:
        head = request.head
        with self.running(request) as running, self.running(request, timed_as=self.folder / "nodes") as telling:
            return node_times(running, telling, request.feeds, head["seconds"], head["most_runs"]), ()

    def answer(self, request: Request) -> tuple[dict[str, Any], Sequence[bytes]]:
        """The head and the blobs of the answer to one request, whatever comes of it."""
        try:
            answer, blobs = getattr(self, f"do_{request.head['do']}")(request)
        except UnfedError as error:
            return {"refused": str(error), "kind": "unfed"}, ()
        except Exception as error:  # noqa: BLE001 - the edge of a process: whatever it is, the other side is told
            text = str(error)
            if "onnxruntime" not in sys.modules or not isinstance(error, any_refusal()):
                return {"failed": f"{type(error).__name__}: {text}"}, ()
            return {"refused": text, "kind": "memory" if isinstance(error, MemoryError) else "runtime"}, ()
        return {"answer": answer}, blobs


def serve(agent: Agent, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    store = Store()
    wait = getattr(signal, "alarm", lambda seconds: None)
    write_frame(answers, {"format": FORMAT, "version": VERSION, "python": platform.python_version()}, ())
    wait(_MOST_IDLE_S)
    while (head := read_line(requests)) is not None:
        wait(0)
        blobs: dict[str, bytes] = {}
        for digest, size, sent in head["blobs"]:
            blobs[digest] = exactly(requests, size) if sent else store[digest]
        store.keep(blobs)
        request = Request(head, [blobs[digest] for digest, _, _ in head["blobs"]])
        told, made = agent.answer(request)
        write_frame(answers, {**told, "blobs": [len(blob) for blob in made]}, made)
        wait(_MOST_IDLE_S)


# --- the process


def _serve_here(made_by: Callable[[Path], Agent], folder: Path) -> None:
    """Over standard input and output. What the runtime prints goes to stderr."""
    os.environ["TMPDIR"] = str(folder)  # for what a library keeps in such a place without being asked
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(made_by(folder), sys.stdin.buffer, answers)


def _leave(number: int, frame: object) -> None:
    sys.exit(_SIGNALLED + number)


def _serve_in_child(made_by: Callable[[Path], Agent], folder: Path) -> int:
    """The exit code of a child process that serves; it is killed once nobody is at the other end of the pipe."""
    ended, held = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ended)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            _serve_here(made_by, folder)
        except BaseException:  # noqa: BLE001 - a child must never go on where its parent does
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(held)
    try:
        poll = select.poll()
        poll.register(ended, 0)
        poll.register(0, getattr(select, "POLLRDHUP", 0))
        poll.poll()
        gone = not any(descriptor == ended for descriptor, _ in poll.poll(0))
    finally:
        os.kill(child, signal.SIGKILL)  # which a process that has ended does not notice
        status = os.waitpid(child, 0)[1]
    if gone:
        return 0
    return _SIGNALLED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(made_by: Callable[[Path], Agent] = Agent) -> int:
    """Entry point of `python agent.py`; an interrupt is for the other end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forks = hasattr(os, "fork") and hasattr(select, "poll") and ALONE not in sys.argv[1:]
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)
    with tempfile.TemporaryDirectory(prefix="hwcost-agent-") as name:
        if forks:
            return _serve_in_child(made_by, Path(name))
        _serve_here(made_by, Path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
