"""onnxruntime at the other end of a pipe: an agent in a process of its own, here or wherever its command leads.

What the runtime breaks is one process, never the measurement: whoever asked learns how it ended, and the next question
starts a new one. No process outlives this one: each ends when its input does. What an agent says is checked, since it
may be on somebody else's machine; weights that it has seen are not sent twice.
"""

import json
import math
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO, Final, Literal, Self, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from hwcost import agent
from hwcost.agent import FRAME_BYTES, HEADER_BYTES, VERSION, Store, digest_of
from hwcost.errors import MeasurementError
from hwcost.machine import Facts
from hwcost.runtime import Array, EndedError, Given, Job, RefusedError, UnusableError

LOCAL: Final = (sys.executable, "-P", str(agent.__file__))
"""An agent of this Python, on this machine."""

_REQUEST_S: Final = 60.0
"""Seconds after which a request hangs."""
_GRACE_S: Final = 5.0
_END_S: Final = 1.0
_MOST_COMPLAINTS: Final = 20
_LONGEST_COMPLAINT: Final = 500
_START_S: Final = 120.0
_SIGNALLED: Final = 128
_Valid = TypeVar("_Valid")
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ready(BaseModel):
    """The first line of all: an agent of this version listens."""

    model_config = _STRICT

    format: Literal["hwcost-agent"]
    version: Literal[2]
    python: str


class Loaded(BaseModel):
    """Whether the libraries could be loaded, and which versions they are."""

    model_config = _STRICT

    numpy: str = ""
    onnxruntime: str = ""
    missing: str = ""
    reason: str = ""
    python: str = ""


class _Said(BaseModel):
    """The head of an answer: one of its three fields."""

    model_config = _STRICT

    answer: JsonValue = None
    refused: str = ""
    kind: Literal["", "unfed", "memory", "runtime"] = ""
    failed: str = ""
    blobs: list[int] = []


class _Told(BaseModel):
    """An array among the blobs."""

    model_config = _STRICT

    dtype: str = Field(pattern=r"^[<>|=]?[biufc]\d{1,2}$")
    shape: tuple[int, ...] = Field(max_length=64)

    def read(self, blob: bytes) -> Array:
        dtype = np.dtype(self.dtype)
        if min(self.shape, default=0) < 0 or math.prod(self.shape) * dtype.itemsize != len(blob):
            raise ValueError(f"an array of {self.dtype}{list(self.shape)} has other bytes than {len(blob)}")
        return np.frombuffer(blob, dtype).reshape(self.shape)


_ARRAYS: Final = TypeAdapter(list[_Told])
_SHAPES: Final = TypeAdapter(dict[str, tuple[int, tuple[int, ...]]])
_Seconds = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
_ALL_SECONDS: Final[TypeAdapter[list[float]]] = TypeAdapter(list[_Seconds])
_NODE_SECONDS: Final[TypeAdapter[tuple[float, dict[str, float]]]] = TypeAdapter(tuple[_Seconds, dict[str, _Seconds]])


@dataclass
class Frame:
    """A request under construction: its head, and its blobs by digest, each once."""

    head: dict[str, Any]
    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, blob: bytes) -> int:
        """Its place among the blobs."""
        digest = digest_of(blob)
        self.blobs.setdefault(digest, blob)
        return list(self.blobs).index(digest)

    def array(self, value: Array) -> dict[str, Any]:
        value = np.asarray(value, order="C")
        return {"dtype": value.dtype.str, "shape": value.shape, "blob": self.add(value.tobytes())}


def framed(do: str, given: Given, feeds: Mapping[str, Array], **more: Any) -> Frame:
    """A request to do something with a model; weights with the same base refer to it."""
    try:
        model = given.model.read_bytes() if isinstance(given.model, Path) else given.model
        files = _files_beside(given, model)
    except OSError as error:
        raise RefusedError(str(error)) from error
    frame = Frame({"do": do, "threads": given.threads, "optimise": given.optimise, **more})
    frame.head["model"] = [frame.add(part) for part in _parts(model, given.contains)]
    frame.head["feeds"] = {name: frame.array(value) for name, value in feeds.items()}
    if given.settings:
        frame.head["settings"] = dict(given.settings)
    if given.weights:
        bases = {id(one.base): one.base for one in given.weights.values()}
        places = {identity: place for place, identity in enumerate(bases)}
        frame.head["bases"] = [frame.array(base) for base in bases.values()]
        frame.head["weights"] = {name: (places[id(base)], number) for name, (base, number) in given.weights.items()}
    if files:
        frame.head["files"] = {name: frame.add(blob) for name, blob in files.items()}
    return frame


def _parts(model: bytes, contains: Sequence[bytes]) -> list[bytes]:
    """A serialised model, cut where the bytes that it contains begin and end."""
    parts = [model]
    for wanted in filter(None, dict.fromkeys(contains)):
        before, parts = parts, []
        for part in before:
            pieces = part.split(wanted) if len(part) > len(wanted) else [part]
            parts += [one for piece in pieces for one in (wanted, piece)][1:]
    return [part for part in parts if part]


def _files_beside(given: Given, model: bytes) -> dict[str, bytes]:
    """The weights of a model that lie in files of their own, by the name that it has for them."""
    folder = given.model.parent if isinstance(given.model, Path) else given.weights_in
    if folder is None:
        return {}
    from hwcost.onnxfile import weight_files

    return {name: (folder / name).read_bytes() for name in sorted(weight_files(model))}


class Piped:
    """The runtime in the process that `command` starts, a new one after each that ended. A context manager.

    A request may last `request_s`. Subclass it where the way there is another one, or for further commands.
    """

    errors: int | None = None
    """Where a process writes what it complains of: None is where this one does, `PIPE` keeps it in `complaints`."""
    end_s: float = 2.0
    """How long a process may take to end once its input did."""

    def __init__(self, command: Sequence[str] = LOCAL, request_s: float = _REQUEST_S) -> None:
        self.command, self._request_s = tuple(command), request_s
        self.complaints: deque[str] = deque(maxlen=_MOST_COMPLAINTS)
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[tuple[dict[str, Any], list[bytes]] | str] = queue.SimpleQueue()
        self._store = Store()
        self._overhears: threading.Thread | None = None

    # --- what a Runtime does

    def facts(self) -> Facts:
        answer, _ = self.ask(Frame({"do": "facts"}))
        return self._valid(TypeAdapter(Facts), answer)

    def renew(self) -> None:
        self.stop()

    def optimised(self, given: Given, target: Path, weights_file: str = "", most_s: float | None = None) -> None:
        _, blobs = self.ask(framed("optimise", given, {}, weights_file=weights_file or "none"), most_s)
        if len(blobs) != 2:
            raise self._nonsense("an optimised model is two blobs")
        target.write_bytes(blobs[0])
        if weights_file and blobs[1]:
            target.with_name(weights_file).write_bytes(blobs[1])

    def run(self, given: Given, feeds: Mapping[str, Array]) -> list[Array]:
        answer, blobs = self.ask(framed("run", given, feeds))
        told = self._valid(_ARRAYS, answer)
        try:
            return [one.read(blob) for one, blob in zip(told, blobs, strict=True)]
        except ValueError as error:
            raise self._nonsense(str(error)) from None

    def shapes(
        self, given: Given, feeds: Mapping[str, Array], most_s: float | None = None
    ) -> dict[str, tuple[int, tuple[int, ...]]]:
        return self._valid(_SHAPES, self.ask(framed("shapes", given, feeds), most_s)[0])

    def shortest_s(self, given: Given, feeds: Mapping[str, Array], seconds: float) -> float:
        return self.shortest_each_s([(given, feeds)], seconds)[0]

    def shortest_each_s(self, jobs: Sequence[Job], seconds: float) -> list[float]:
        *before, last = jobs
        for given, feeds in before:
            self.ask(framed("hold", given, feeds))
        frame = framed("shortest", *last, seconds=seconds)
        found = self._valid(_ALL_SECONDS, self.ask(frame, len(jobs) * (self._request_s + seconds))[0])
        if len(found) != len(jobs):
            raise self._nonsense(f"{len(jobs)} models are timed once each")
        return found

    def node_times(
        self, given: Given, feeds: Mapping[str, Array], seconds: float, most_runs: int
    ) -> tuple[float, dict[str, float]]:
        frame = framed("nodes", given, feeds, seconds=seconds, most_runs=most_runs)
        return self._valid(_NODE_SECONDS, self.ask(frame, self._request_s + seconds)[0])

    # --- the conversation

    def ask(self, frame: Frame, most_s: float | None = None) -> tuple[JsonValue, list[bytes]]:
        """The answer and its blobs; raises as `Runtime` says, and `UnusableError` where no process starts."""
        return self._ask(frame, most_s)

    def _ask(self, frame: Frame, most_s: float | None = None) -> tuple[JsonValue, list[bytes]]:
        process = self._process or self._start()
        blobs = [(digest, len(blob), digest not in self._store) for digest, blob in frame.blobs.items()]
        line = json.dumps({**frame.head, "blobs": blobs}, allow_nan=False)
        if sum(size for _, size, _ in blobs) > FRAME_BYTES or len(line) >= HEADER_BYTES:
            raise RefusedError("what is sent to another process is at most 2 GB in all")
        try:
            assert process.stdin is not None
            process.stdin.write(line.encode() + b"\n")
            for digest, _, sent in blobs:
                if sent:
                    process.stdin.write(frame.blobs[digest])
            process.stdin.flush()
        except OSError:
            raise self._ended("") from None
        self._store.keep(frame.blobs)
        head, made = self._receive(most_s or self._request_s)
        try:
            said = _Said.model_validate(head)
        except ValidationError:
            raise self._nonsense("its head has other fields") from None
        if said.failed:
            raise EndedError(said.failed[:300])
        if said.kind == "unfed":
            raise MeasurementError(said.refused[:1000])
        if said.kind == "memory":
            raise MemoryError(said.refused[:1000])
        if said.kind:
            raise RefusedError(said.refused[:1000])
        return said.answer, made

    def load(self) -> Loaded:
        """Make the process load the libraries; raises `EndedError` where that ends it."""
        answer, _ = self._ask(Frame({"do": "load"}), _START_S)
        return self._valid(TypeAdapter(Loaded), answer)

    def _valid(self, kind: TypeAdapter[_Valid], answer: JsonValue) -> _Valid:
        try:
            return kind.validate_json(json.dumps(answer))
        except ValidationError as error:
            raise self._nonsense(str(error.errors(include_url=False, include_input=False)[0]["msg"])) from None

    def _nonsense(self, what: str) -> EndedError:
        self.stop()
        return EndedError(f"answered what is no answer ({what[:200]})")

    def unusable(self, how: str) -> UnusableError:
        """The error of a process that cannot be used at all."""
        return UnusableError(
            f"timings are taken in a process that loads onnxruntime, `{' '.join(self.command)}` {how}: "
            "see whether it starts, and use another version of onnxruntime if it does not"
        )

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that is ready; raises `UnusableError`."""
        try:
            process = self.open()
            loaded = self.load()
        except OSError as error:
            raise self.unusable(f"does not start ({error.strerror})") from error
        except EndedError as end:
            raise self.unusable(str(end)) from None
        if loaded.missing:
            raise self.unusable(f"has no {loaded.missing} ({loaded.reason})")
        return process

    def open(self, source: bytes = b"") -> subprocess.Popen[bytes]:
        """A process that speaks this version, to which `source` was sent; raises `OSError` and `EndedError`."""
        self._process = process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, start_new_session=True
        )
        self._answers, self._store = queue.SimpleQueue(), Store()
        self.complaints.clear()
        if process.stderr is not None:
            self._overhears = threading.Thread(target=_overhear, args=(process.stderr, self.complaints), daemon=True)
            self._overhears.start()
        assert process.stdin is not None and process.stdout is not None
        threading.Thread(target=_listen, args=(process.stdout, self._answers), daemon=True).start()
        try:
            process.stdin.write(source)
            process.stdin.flush()
        except OSError:
            raise self._ended("") from None
        try:
            Ready.model_validate(self._receive(_START_S)[0])
        except ValidationError:
            raise self._nonsense(f"it does not speak version {VERSION} of this package's agent") from None
        return process

    def _receive(self, seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        try:
            answer = self._answers.get(timeout=seconds + _GRACE_S)
        except queue.Empty:
            raise self._ended(f"gave no answer in {seconds:.0f} s") from None
        if isinstance(answer, str):
            raise self._ended(answer)
        return answer

    def _ended(self, how: str) -> EndedError:
        """Ends the process, if it has not ended, and says how it did."""
        code = self.stop()
        return self.how_it_ended(code) if not how else EndedError(how)

    def how_it_ended(self, code: int) -> EndedError:
        """The error for a process that ended by itself."""
        return EndedError(ended(code))

    def stop(self) -> int:
        """The exit code of the process, which is no more."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None
        with suppress(OSError):  # where it is gone already
            process.stdin.close()
        try:
            code = process.wait(self.end_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if self._overhears is not None:
            self._overhears.join(_END_S)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _overhear(stream: IO[bytes], complaints: "deque[str]") -> None:
    with stream:
        for line in stream:
            if text := line.decode("utf-8", errors="replace").strip():
                complaints.append(text[:_LONGEST_COMPLAINT])


def ended(code: int) -> str:
    """How a process ended, in words; an agent's own exit code says which signal ended its child."""
    number = -code if code < 0 else code - _SIGNALLED
    if 0 < number < signal.NSIG:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(number).name}"
    return f"ended with exit code {code}"


def _listen(stream: IO[bytes], answers: "queue.SimpleQueue[tuple[dict[str, Any], list[bytes]] | str]") -> None:
    """Hand on every frame, and at the end why there are no more: empty where the stream just ended."""
    how = ""
    with stream:
        try:
            while (head := agent.read_line(cast(BinaryIO, stream))) is not None:
                sizes = TypeAdapter(list[int]).validate_python(head.get("blobs", []))
                if min(sizes, default=0) < 0 or sum(sizes) > FRAME_BYTES:
                    raise ValueError("a frame of an impossible size")
                answers.put((head, [agent.exactly(cast(BinaryIO, stream), size) for size in sizes]))
        except EOFError:
            pass
        except (ValueError, OSError, RecursionError) as error:
            how = f"answered what is no answer ({' '.join(str(error).split())[:200]})"
    answers.put(how)
