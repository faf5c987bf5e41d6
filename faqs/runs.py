"""The run folder: what a search leaves behind, one document per noun, and the checkpoint it can be resumed from.

Everything but `timing.json`, `check.json` and `result.json` is free of times and paths of the machine, so that the same
seed gives the same bytes. The checkpoint is one file, replaced whole after every round: a run that is killed goes on
from the last finished round to the same result.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faqs.config import SearchConfig, config_from_json
from faqs.deltas import Arrays
from faqs.errors import RunError
from faqs.ledger import Ledger
from faqs.prepare import Prepared
from faqs.strategy import ServerState
from hwcost import BlockChoice, LookupTable, pack, unpack, write_atomically

# 1: first version.
# 2: the server carries scores of choices; clients keep theirs.
# 3: both kept the trends of movements.
# 4: neither does.
RUN_VERSION = 4


@dataclass(frozen=True)
class RoundReport:
    """What a round did. `accuracy[k]`, `decisions[k]`: client k's decided network on its held-out share; missing where
    `refused[k]` says why."""

    round: int
    loss: float
    coverage: float
    accuracy: Mapping[int, float]
    decisions: Mapping[int, Sequence[str]]
    refused: Mapping[int, str]


@dataclass(frozen=True)
class Checkpoint:
    """A run between two rounds. `nodes`: the state of every client, by node id; `lost`: clients to be set up again."""

    state: ServerState
    ledger: Ledger
    lost: frozenset[int]
    reports: tuple[RoundReport, ...]
    nodes: Mapping[int, bytes]


class RunFolder:
    """The documents of one run below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: SearchConfig, prepared: Prepared) -> "RunFolder":
        """A new run; raises `RunError` where a run or anything else stands already."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"a new run needs an empty folder, got {path} with something in it: choose another --out, or go on "
                f"with --resume {path}"
            )
        run = cls(path)
        for client, table in enumerate(prepared.tables):
            run.write(f"clients/{client}/table.json", table.to_json())
        run.write_json("devices.json", {name: asdict(device) for name, device in prepared.devices.items()})
        run.write_json("config.json", {"run_version": RUN_VERSION, **config.model_dump()})
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run; raises `RunError`."""
        if not (path / "config.json").is_file():
            raise RunError(f"a run folder has a config.json, got {path} without: name the --out of a search")
        return cls(path)

    @property
    def config(self) -> SearchConfig:
        """Raises `RunError` or `ConfigError`."""
        fields = self.read_json("config.json")
        if fields.pop("run_version", None) != RUN_VERSION:
            raise RunError(f"{self.path / 'config.json'} is not a run of version {RUN_VERSION}: search again")
        return config_from_json(json.dumps(fields), str(self.path / "config.json"))

    def table(self, client: int) -> LookupTable:
        """The cost table of a client's device."""
        return LookupTable.from_json(self.read(f"clients/{client}/table.json").decode())

    def read(self, name: str) -> bytes:
        """Raises `RunError` when the document is not there."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise RunError(
                f"the run {self.path} has no readable {name} ({error.strerror}): search or export again"
            ) from None

    def read_json(self, name: str) -> dict[str, Any]:
        """An object; raises `RunError` when it is missing or damaged."""
        try:
            document = json.loads(self.read(name))
        except ValueError as error:
            raise RunError(f"{self.path / name} is damaged ({error}): search or export again") from None
        if not isinstance(document, dict):
            raise RunError(f"{self.path / name} is damaged (an object is expected): search or export again")
        return document

    def read_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Arrays of a safetensors document; raises `RunError`."""
        try:
            return unpack(self.read(name))[1]
        except ValueError as error:
            raise RunError(f"{self.path / name} is damaged ({error}): search or export again") from None

    def write(self, name: str, content: str | bytes) -> None:
        """Whole or not at all; raises `OSError`."""
        write_atomically(self.path / name, content.encode() if isinstance(content, str) else content)

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        self.write(name, json.dumps(document, indent=1, allow_nan=False) + "\n")

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint, then the documents that people read and that follow from it."""
        state = checkpoint.state
        arrays: dict[str, NDArray[Any]] = {f"weights/{name}": value for name, value in state.weights.items()}
        for moment in ("first", "second"):
            arrays.update({f"{moment}/{name}": value for name, value in getattr(state, moment).items()})
        for client, reference in enumerate(state.references):
            arrays.update({f"reference/{client}/{name}": value for name, value in reference.items()})
        arrays.update({f"node/{node}": np.frombuffer(data, np.uint8) for node, data in checkpoint.nodes.items()})
        head = {
            "version": RUN_VERSION,
            "round": state.round,
            "samples": state.samples,
            "decisions": [[str(choice) for choice in decision] for decision in state.decisions],
            "lost": sorted(checkpoint.lost),
            "names": list(state.weights),
            "scores": state.scores,
            "ledger": checkpoint.ledger.to_json(),
            "reports": [asdict(report) for report in checkpoint.reports],
        }
        self.write("checkpoint.safetensors", pack(json.dumps(head, allow_nan=False), arrays))
        lines = [self._round_line(report, checkpoint.ledger) for report in checkpoint.reports]
        self.write("rounds.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        self.write_json("ledger.json", checkpoint.ledger.to_json())
        self.write("supernet.safetensors", pack("shared weights", state.weights))

    def load_checkpoint(self) -> Checkpoint | None:
        """The last finished round, None when there is none yet; raises `RunError` when it is damaged."""
        name = "checkpoint.safetensors"
        if not (self.path / name).exists():
            return None
        data = self.read(name)
        try:
            text, arrays = unpack(data)
            head = json.loads(text)
            if head["version"] != RUN_VERSION:
                raise ValueError(f"version {head['version']}, not {RUN_VERSION}")
            clients = range(len(head["samples"]))
            state = ServerState(
                _group(arrays, "weights", head["names"]),
                [_group(arrays, f"reference/{client}", head["names"]) for client in clients],
                [tuple(map(BlockChoice.parse, decision)) for decision in head["decisions"]],
                [int(count) for count in head["samples"]],
                int(head["round"]),
                head["scores"],
                *(_moments(arrays, moment) for moment in ("first", "second")),
            )
            return Checkpoint(
                state,
                Ledger.from_json(head["ledger"]),
                frozenset(head["lost"]),
                tuple(_report(fields) for fields in head["reports"]),
                {int(key[5:]): value.tobytes() for key, value in arrays.items() if key.startswith("node/")},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.path / name} cannot be resumed from ({error}): search again with another --out"
            ) from None

    @staticmethod
    def _round_line(report: RoundReport, ledger: Ledger) -> dict[str, Any]:
        totals = ledger.select(round=report.round).totals()
        names = ("payload_up", "payload_down", "wire_up", "wire_down")
        return {**asdict(report), "bytes": {name: totals[name] for name in names}}


def _group(arrays: Mapping[str, NDArray[Any]], prefix: str, names: Sequence[str]) -> Arrays:
    return {name: arrays[f"{prefix}/{name}"].copy() for name in names}


def _moments(arrays: Mapping[str, NDArray[Any]], moment: str) -> Arrays:
    start = f"{moment}/"
    return {name.removeprefix(start): value.copy() for name, value in arrays.items() if name.startswith(start)}


def _report(fields: Mapping[str, Any]) -> RoundReport:
    by_client = {
        name: {int(client): value for client, value in fields[name].items()}
        for name in ("accuracy", "decisions", "refused")
    }
    return RoundReport(fields["round"], fields["loss"], fields["coverage"], **by_client)
