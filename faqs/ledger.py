"""The byte ledger: what every message of a run cost, kept as data so that each figure can be traced to its messages.

Four sizes of each message, because claims about traffic differ by which one is meant:
ideal (L0: active weights times bits / 8), payload (L1: our blob), flower (L2: Flower's `count_bytes()` of the records),
wire (L3: the serialised messages that cross). Messages of the setup, failed ones and refused ones count like any other.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from faqs.errors import RunError

Direction: TypeAlias = Literal["up", "down"]
Kind: TypeAlias = Literal["setup", "train", "final"]
Totals: TypeAlias = dict[str, float]

# History of the JSON form:
# 1  {"version", "columns", "rows"}: a row per message, in the order in which they were sent.
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One message between the server and a client; "up" is client to server. `refused`: it arrived and was not used.

    Raises `RunError` for values that no message can have.
    """

    round: int
    client: int
    direction: Direction
    kind: Kind
    ideal_bytes: float
    payload_bytes: int
    flower_bytes: int
    wire_bytes: int
    refused: bool = False

    def __post_init__(self) -> None:
        for name in ("round", "client", "payload_bytes", "flower_bytes", "wire_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise RunError(f"a ledger's {name} is a whole number from 0 up, got {value!r}; the ledger is damaged")
        ideal = self.ideal_bytes
        if type(ideal) not in (int, float) or not math.isfinite(ideal) or ideal < 0:
            raise RunError(f"a ledger's ideal_bytes is a finite number from 0 up, got {ideal!r}; the ledger is damaged")
        if self.direction not in get_args(Direction) or self.kind not in get_args(Kind):
            rule = f"a ledger's messages go up or down and are of kind {', '.join(get_args(Kind))}"
            raise RunError(f"{rule}, got {self.direction!r} and {self.kind!r}; the ledger is damaged")
        if type(self.refused) is not bool:
            raise RunError(f"a ledger's refused is true or false, got {self.refused!r}; the ledger is damaged")


_COLUMNS = [column.name for column in fields(Entry)]
_LEVELS = ("ideal", "payload", "flower", "wire")


class Ledger:
    """Entries in the order in which they were sent, and their sums."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = list(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def append(self, entry: Entry) -> None:
        """Add the next message."""
        self._entries.append(entry)

    def select(self, *, kind: Kind | None = None, round: int | None = None, client: int | None = None) -> "Ledger":
        """The part of the ledger that agrees with every argument given."""
        return Ledger(
            entry
            for entry in self._entries
            if kind in (None, entry.kind) and round in (None, entry.round) and client in (None, entry.client)
        )

    def totals(self) -> Totals:
        """Bytes by level and direction (`payload_up`, `wire_down`, ...), and `messages_*` and `refused_*` as counts."""
        sums: Totals = {}
        for direction in get_args(Direction):
            entries = [entry for entry in self._entries if entry.direction == direction]
            for level in _LEVELS:
                sums[f"{level}_{direction}"] = sum(getattr(entry, f"{level}_bytes") for entry in entries)
            sums[f"messages_{direction}"] = len(entries)
            sums[f"refused_{direction}"] = sum(entry.refused for entry in entries)
        return sums

    def by_round(self) -> dict[int, Totals]:
        """The totals of each round that has a message, in order."""
        return {round: self.select(round=round).totals() for round in sorted({entry.round for entry in self})}

    def by_client(self) -> dict[int, Totals]:
        """The totals of each client that has a message, in order."""
        return {client: self.select(client=client).totals() for client in sorted({entry.client for entry in self})}

    def to_json(self) -> dict[str, Any]:
        """The ledger as plain JSON values; `from_json` gives the same ledger back."""
        return {
            "version": VERSION,
            "columns": list(_COLUMNS),
            "rows": [list(astuple(entry)) for entry in self._entries],
        }

    @classmethod
    def from_json(cls, document: object) -> "Ledger":
        """The ledger of `to_json`'s values; raises `RunError`, naming the row, for anything else."""
        if not isinstance(document, dict) or document.get("version") != VERSION:
            got = document.get("version") if isinstance(document, dict) else type(document).__name__
            raise RunError(f"this is version {VERSION} of the ledger, got {got!r}; read it with the faqs that wrote it")
        rows = document.get("rows")
        if document.get("columns") != _COLUMNS or not isinstance(rows, list):
            raise RunError(f"a ledger has rows of the columns {', '.join(_COLUMNS)}, got others; the ledger is damaged")
        ledger = cls()
        for number, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != len(_COLUMNS):
                raise RunError(f"ledger row {number}: a row has {len(_COLUMNS)} values, got {row!r}; restore the file")
            try:
                ledger.append(Entry(*row))
            except RunError as error:
                raise RunError(f"ledger row {number}: {error}") from None
        return ledger
