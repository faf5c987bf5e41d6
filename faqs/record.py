"""What a run folder says, checked while it is read: every document of a finished search, as values.

The documents are checked against each other too (a decided network's cost is its table's, its device its table's), so
that whoever shows them shows what was stored. `check.json` and `timing.json` may be missing: a search that was not
exported yet is still a search.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from faqs.config import SearchConfig
from faqs.errors import ConfigError, RunError
from faqs.ledger import Ledger
from faqs.preference import METRIC_OF
from faqs.prepare import Device
from faqs.runs import RunFolder
from hwcost import METRICS, Architecture, BlockChoice, Conv, HwcostError, LookupTable

_Document_T = TypeVar("_Document_T")
_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(gt=0)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class RoundRecord(_Document):
    round: int = Field(ge=0)
    loss: float
    coverage: _Share
    accuracy: dict[int, _Share]
    refused: dict[int, str]


class Samples(_Document):
    train: int = Field(ge=1)
    held_out: int = Field(ge=1)


class Decided(_Document):
    """`architecture.json`: what a client decided on, what that costs by its table (SI units), and its own accuracy."""

    client: int
    device: str
    profile: str
    budget: dict[str, float]
    weights: dict[str, float]
    architecture: tuple[str, ...]
    cost: dict[str, float]
    latency_interval_s: tuple[_Seconds, _Seconds]
    latency_sources: tuple[str, ...] = Field(min_length=1)
    accuracy: _Share
    samples: Samples


class Checked(_Document):
    """`check.json`: what the exported model did here; latencies are null where the client's device is another one."""

    accuracy_torch: _Share
    accuracy_onnx: _Share
    agreement: _Share
    tolerance: float
    agrees: bool
    onnx_bytes: int = Field(gt=0)
    predicted_latency_s: _Seconds
    interval_s: tuple[_Seconds, _Seconds]
    measured_latency_s: _Seconds | None
    samples_s: tuple[_Seconds, ...]
    within_interval: bool | None
    within_budget: bool | None
    int8_form: str
    executed: dict[str, int]


class Timing(_Document):
    total_s: float = Field(ge=0)


@dataclass(frozen=True)
class ClientRecord:
    """What is stored of a client; `check` is None where the model was not exported yet."""

    decided: Decided
    device: Device
    architecture: Architecture
    table: LookupTable
    check: Checked | None

    @property
    def id(self) -> int:
        return self.decided.client

    @property
    def measured_s(self) -> float | None:
        return self.check.measured_latency_s if self.check else None


@dataclass(frozen=True)
class RunRecord:
    name: str
    config: SearchConfig
    devices: dict[str, Device]
    rounds: tuple[RoundRecord, ...]
    ledger: Ledger
    clients: tuple[ClientRecord, ...]
    total_s: float | None

    @cached_property
    def fedavg_round_bytes(self) -> int:
        """One round of FedAvg in float over the same largest network: 4 bytes a weight, both ways, every client. Batch
        norm's scales and shifts count, its statistics do not, as in the search."""
        space = self.clients[0].table.space
        layers = [op for op, _ in space.layers(space.largest)]
        norms = sum(2 * op.out_channels for op in layers if isinstance(op, Conv))
        shared = sum(op.weights for op in layers) + norms + space.classes  # the classifier's bias
        return 4 * shared * 2 * len(self.clients)

    @property
    def fedavg_bytes(self) -> int:
        return self.fedavg_round_bytes * len(self.rounds)

    @cached_property
    def exported(self) -> bool:
        return all(client.check for client in self.clients)

    @cached_property
    def mean_accuracy(self) -> float:
        """Of the exported models where there are any for all clients, else of the personalised networks."""
        scores = [c.check.accuracy_onnx if self.exported and c.check else c.decided.accuracy for c in self.clients]
        return sum(scores) / len(scores)


def read_run(run: Path) -> RunRecord:
    """Everything of a finished search; raises `RunError` naming the file, the field and what to do."""
    if not run.is_dir():
        raise RunError(f"a run is read from its folder, got {run}: no such folder; name one that a search wrote")
    try:
        config = RunFolder.open(run).config
    except ConfigError as error:
        raise RunError(str(error)) from None
    devices = _document(run / "devices.json", dict[str, Device])
    path = run / "ledger.json"
    try:
        ledger = Ledger.from_json(_document(path, dict[str, Any]))
    except RunError as error:
        raise RunError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    tables: dict[str, LookupTable] = {}
    timing = run / "timing.json"
    return RunRecord(
        run.resolve().name,
        config,
        devices,
        _read_rounds(run / "rounds.jsonl"),
        ledger,
        tuple(_read_client(run / "clients" / str(number), number, devices, tables) for number in range(config.clients)),
        _document(timing, Timing).total_s if timing.exists() else None,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(
            f"a finished run has the file {path}, and it is missing: finish the run with "
            "`faqs search --resume RUN`, or restore the file"
        ) from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not a text in UTF-8: {error.reason}; restore the file") from None


def _document(path: Path, kind: type[_Document_T]) -> _Document_T:
    return _parse(_read(path), kind, str(path))


def _parse(text: str, kind: type[_Document_T], where: str) -> _Document_T:
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "the document"
        got = repr(first["input"])
        got = got if len(got) <= 60 else f"{got[:57]}..."
        raise RunError(f"{where}: {field}: {first['msg']}, got {got}; restore the file") from None


def _read_rounds(path: Path) -> tuple[RoundRecord, ...]:
    lines = _read(path).splitlines()
    rounds = tuple(_parse(line, RoundRecord, f"{path}, line {number}") for number, line in enumerate(lines, 1))
    numbers = [entry.round for entry in rounds]
    if not numbers or numbers != sorted(set(numbers)):
        raise RunError(f"{path}: round: rounds are one or more and rise, got {numbers[:20]}; restore the file")
    return rounds


def _read_client(folder: Path, number: int, devices: dict[str, Device], tables: dict[str, LookupTable]) -> ClientRecord:
    """`tables` holds those that were read already: clients of one device have the same."""
    path, table_path, check_path = folder / "architecture.json", folder / "table.json", folder / "check.json"
    decided, table_text = _document(path, Decided), _read(table_path)
    try:
        table = tables.setdefault(table_text, tables.get(table_text) or LookupTable.from_json(table_text))
    except HwcostError as error:
        raise RunError(f"{table_path}: {error}") from None
    try:
        architecture = tuple(BlockChoice.parse(text) for text in decided.architecture)
        cost = table.cost(architecture)
    except HwcostError as error:
        raise RunError(f"{path}: architecture: {error}; restore the file") from None
    rules: list[tuple[str, object, object]] = [("client", number, decided.client)]
    rules += [("device", table.device, decided.device)]
    rules += [(f"cost.{metric}", cost[metric], decided.cost.get(metric)) for metric in METRICS]
    for field, expected, got in rules:
        if got != expected and not (field.startswith("cost.") and _close(expected, got)):
            raise RunError(f"{path}: {field}: its folder and table say {expected!r}, got {got!r}; restore the file")
    for name in decided.budget:
        if name not in METRIC_OF:
            raise RunError(f"{path}: budget: a budget is one of {', '.join(METRIC_OF)}, got {name!r}; restore the file")
    if decided.profile not in devices:
        raise RunError(
            f"{path}: profile: it is one of devices.json ({', '.join(devices)}), got {decided.profile!r}; "
            "restore the file"
        )
    checked = _document(check_path, Checked) if check_path.exists() else None
    return ClientRecord(decided, devices[decided.profile], architecture, table, checked)


def _close(expected: object, got: object) -> bool:
    return isinstance(expected, float) and isinstance(got, float) and math.isclose(expected, got, rel_tol=1e-9)
