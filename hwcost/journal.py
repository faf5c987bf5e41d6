"""The journal of a measurement under way: a JSON line per timing, so that an interrupted run goes on where it stopped.

What the run decided on its way, which operators to add, has a line of its own: the other half decides the same.

Its first line says under which conditions the timings were taken; timings of other conditions are refused, not mixed.
A line that a power cut tore at the end is dropped.
"""

import errno
import os
from io import FileIO
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hwcost.errors import MeasurementError
from hwcost.profiles import Int8Form
from hwcost.timing import Timing

# 2: stages, times and batches. 1: first version.
JOURNAL_VERSION: Final = 2

_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Conditions(BaseModel):
    """What must agree between two halves of one measurement."""

    model_config = _STRICT

    format: Literal["hwcost-journal"] = "hwcost-journal"
    version: Literal[2] = JOURNAL_VERSION
    fingerprint: str
    int8_form: Int8Form
    seed: int


class Batch(BaseModel):
    """Operators that a stage adds to the sample: how many of each family."""

    model_config = _STRICT

    stage: int
    families: dict[str, int]


_ENTRY: Final = TypeAdapter[Timing | Batch](Timing | Batch)


class Journal:
    """Timings so far, in order of arrival; kept in `path` too where one is given. A context manager.

    `spent_s`: seconds of measuring up to the last one.
    """

    def __init__(self, path: Path | None, conditions: Conditions) -> None:
        """Continue the journal at `path`, or begin it; raises `MeasurementError` where it is of other conditions."""
        self._path = path
        self._timings: dict[str, list[Timing]] = {}
        self._batches: dict[int, Batch] = {}
        self.spent_s = 0.0
        self._stream: FileIO | None = None
        if path is None:
            return
        try:
            kept = self._read(path, conditions)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("r+b" if kept else "wb", buffering=0)
            if kept:
                self._stream.seek(kept)
                self._stream.truncate()
            else:
                self._write(conditions)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> MeasurementError:
        return MeasurementError(
            f"a measurement keeps a journal to be resumed from, got {self._path}: {error.strerror}: "
            "free some space there or choose another place"
        )

    def _read(self, path: Path, conditions: Conditions) -> int:
        """Take over the timings at `path`; answers how many bytes of it are whole lines."""
        if not path.is_file():
            return 0
        data = path.read_bytes()
        kept = data.rfind(b"\n") + 1
        lines = data[:kept].splitlines()
        if not lines:
            return 0
        try:
            found = Conditions.model_validate_json(lines[0])
            for line in lines[1:]:
                self._keep(_ENTRY.validate_json(line))
        except ValidationError:
            raise MeasurementError(
                f"{path} is not a journal of version {JOURNAL_VERSION}: delete it to measure from the start"
            ) from None
        if found != conditions:
            different = [name for name in Conditions.model_fields if getattr(found, name) != getattr(conditions, name)]
            raise MeasurementError(
                f"a measurement is resumed under its own conditions, got another {' and '.join(different)} in {path}: "
                "delete it to measure from the start"
            )
        return kept

    def _keep(self, entry: Timing | Batch) -> None:
        if isinstance(entry, Batch):
            self._batches[entry.stage] = entry
        else:
            self._timings.setdefault(entry.point, []).append(entry)
            self.spent_s = max(self.spent_s, entry.at_s)

    def _write(self, entry: BaseModel) -> None:
        if self._stream is None:
            return
        try:
            line = entry.model_dump_json().encode() + b"\n"
            if self._stream.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._unwritable(error) from error

    def of(self, point: str) -> list[Timing]:
        """The timings of one point, oldest first."""
        return self._timings.get(point, [])

    def batch(self, stage: int) -> Batch | None:
        """What was added to the sample in this stage, if that was decided."""
        return self._batches.get(stage)

    @property
    def count(self) -> int:
        """How many timings there are."""
        return sum(map(len, self._timings.values()))

    def add(self, entry: Timing | Batch) -> None:
        """Keep one more entry, on disk before this returns; raises `MeasurementError` where the disk refuses."""
        self._keep(entry)
        self._write(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
