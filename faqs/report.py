"""The report of a run: one HTML file that loads nothing else, for people who look rather than read.

It is made from the documents of the run folder alone, checked while they are read, so that what is shown is what was
stored; bytes are summed from the ledger's messages and costs come from the clients' tables. What was not measured is
said in words before any number. The same folder gives the same bytes.
"""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from faqs.config import SearchConfig, config_from_json
from faqs.errors import ConfigError, RunError
from faqs.ledger import Kind, Ledger
from faqs.preference import METRIC_OF, format_metric
from hwcost import (
    METRICS,
    SKIP,
    Architecture,
    BlockChoice,
    HwcostError,
    LookupTable,
    format_bytes,
    format_seconds,
    write_atomically,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Document_T = TypeVar("_Document_T")
_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(gt=0)]

_INK = "#0a0b0c"  # replaced by the text colour of the page, so that plots follow a light or dark theme
_SERIES = ("#3b8ecb", "#e07b39", "#3ba66b", "#c65d9c", "#8c7ae6", "#b59a2a", "#2fa7a7", "#d1545b")
_UP, _DOWN = _SERIES[0], _SERIES[1]
_MARKERS = "osD^vPX*"
_BITS = {2: "#f2c14e", 4: "#58b9ac", 8: "#3f6fb5"}
_MANY_CLIENTS: Final = 10
"""From here on, a plot shows the mean and the range instead of a line per client."""

_SOURCES = {
    "emulated": "They are derived from the instructions executed under an emulator and a model of the processor: "
    "good for ratios and ranking, not time on the device.",
    "estimated": "They are computed by a formula from data-sheet figures of the processor; nothing was timed, and the "
    "interval is wide for that reason.",
    "imported": "They are taken from somebody else's measurements; nothing was timed by this project.",
    "predicted": "They are predicted by a model that was fitted on other operators of the profile; these operators "
    "were not timed themselves.",
}
_LEVELS = (
    ("ideal", "L0 ideal", "active weights times bits / 8"),
    ("payload", "L1 payload", "the messages' own content: codes, scales, decisions"),
    ("flower", "L2 Flower", "the records as Flower counts them"),
    ("wire", "L3 wire", "the serialised messages that cross"),
)
_KINDS: tuple[tuple[Kind, str], ...] = (("setup", "set-up"), ("train", "training"), ("final", "personalisation"))


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class _Device(_Document):
    device: str
    int8_form: str
    sources: tuple[str, ...] = Field(min_length=1)
    noise_floor: float = Field(ge=0)


class _Round(_Document):
    round: int = Field(ge=0)
    loss: float
    coverage: _Share
    accuracy: dict[int, _Share]
    refused: dict[int, str]


class _Samples(_Document):
    train: int = Field(ge=1)
    held_out: int = Field(ge=1)


class _Decided(_Document):
    client: int
    device: str
    profile: str
    budget: dict[str, float]
    architecture: tuple[str, ...]
    cost: dict[str, float]
    latency_interval_s: tuple[_Seconds, _Seconds]
    latency_sources: tuple[str, ...] = Field(min_length=1)
    accuracy: _Share
    samples: _Samples


class _Check(_Document):
    onnx_bytes: int = Field(gt=0)
    accuracy_torch: _Share
    accuracy_onnx: _Share
    agreement: _Share
    tolerance: float
    predicted_latency_s: _Seconds
    measured_latency_s: _Seconds | None
    within_interval: bool | None
    within_budget: bool | None
    int8_form: str
    executed: dict[str, int]


class _Timing(_Document):
    total_s: float = Field(ge=0)


@dataclass(frozen=True)
class _Client:
    """What is stored of a client; `check` is None where the model was not exported yet."""

    decided: _Decided
    architecture: Architecture
    table: LookupTable
    check: _Check | None

    @property
    def id(self) -> int:
        return self.decided.client

    @property
    def measured_s(self) -> float | None:
        return self.check.measured_latency_s if self.check else None

    @property
    def measured(self) -> str:
        if self.check is None:
            return "not exported yet"
        return "not this machine" if self.measured_s is None else format_seconds(self.measured_s)

    @property
    def budget_verdict(self) -> tuple[str, str]:
        """A class for the page, and words."""
        budget, cost = self.decided.budget, self.decided.cost
        if not budget:
            return "none", "no budget"
        if any(cost[METRIC_OF[name]] > limit for name, limit in budget.items()):
            return "bad", "missed, by the table"
        within = self.check.within_budget if self.check else None
        if within is None:
            return "good", "met, by the table; not measured"
        return ("good", "met, measured") if within else ("bad", "missed, as measured")


@dataclass(frozen=True)
class _Run:
    name: str
    config: SearchConfig
    devices: dict[str, _Device]
    rounds: tuple[_Round, ...]
    ledger: Ledger
    clients: tuple[_Client, ...]
    total_s: float | None

    @cached_property
    def fedavg_round_bytes(self) -> int:
        """One round of FedAvg in float over the same largest network: 4 bytes a weight, both ways, every client."""
        space = self.clients[0].table.space
        shared = sum(op.weights for op, _ in space.layers(space.largest)) + space.classes  # the classifier's bias
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


def build_report(run: Path) -> str:
    """The report of the run folder `run` as HTML; raises `RunError` naming the file and the field that is wrong."""
    import jinja2

    documents = _read_run(run)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("faqs"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    totals = documents.ledger.totals()
    return environment.get_template("report.html.j2").render(
        run=documents,
        device_names=sorted({device.device for device in documents.devices.values()}),
        notices=_notices(documents),
        totals=totals,
        moved={level: totals[f"{level}_up"] + totals[f"{level}_down"] for level, _, _ in _LEVELS},
        budgets=Counter(client.budget_verdict[0] for client in documents.clients),
        levels=_LEVELS,
        kinds=[(words, documents.ledger.select(kind=kind).totals()) for kind, words in _KINDS],
        training=documents.ledger.select(kind="train").totals(),
        refused=[(r.round, client, reason) for r in documents.rounds for client, reason in sorted(r.refused.items())],
        cells=[_cells(client) for client in documents.clients],
        plots=_plots(documents),
        bits=_BITS,
        metric_of=METRIC_OF,
        format_bytes=format_bytes,
        format_seconds=format_seconds,
        format_metric=format_metric,
        times_fewer=_times_fewer,
    )


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all; raises `RunError` and `OSError`."""
    path = run / "report.html"
    write_atomically(path, build_report(run).encode())
    return path


def _read_run(run: Path) -> _Run:
    if not run.is_dir():
        raise RunError(f"a report is made from a run folder, got {run}: no such folder; name one that a search wrote")
    try:
        config = config_from_json(_read(run / "config.json"), str(run / "config.json"))
    except ConfigError as error:
        raise RunError(str(error)) from None
    devices = _document(run / "devices.json", dict[str, _Device])
    path = run / "ledger.json"
    try:
        ledger = Ledger.from_json(_document(path, dict[str, Any]))
    except RunError as error:
        raise RunError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    tables: dict[str, LookupTable] = {}
    timing = run / "timing.json"
    return _Run(
        run.resolve().name,
        config,
        devices,
        _read_rounds(run / "rounds.jsonl"),
        ledger,
        tuple(_read_client(run / "clients" / str(number), number, devices, tables) for number in range(config.clients)),
        _document(timing, _Timing).total_s if timing.exists() else None,
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


def _read_rounds(path: Path) -> tuple[_Round, ...]:
    lines = _read(path).splitlines()
    rounds = tuple(_parse(line, _Round, f"{path}, line {number}") for number, line in enumerate(lines, 1))
    numbers = [entry.round for entry in rounds]
    if not numbers or numbers != sorted(set(numbers)):
        raise RunError(f"{path}: round: rounds are one or more and rise, got {numbers[:20]}; restore the file")
    return rounds


def _read_client(folder: Path, number: int, devices: dict[str, _Device], tables: dict[str, LookupTable]) -> _Client:
    """`tables` holds those that were read already: clients of one device have the same."""
    path, table_path, check_path = folder / "architecture.json", folder / "table.json", folder / "check.json"
    decided, table_text = _document(path, _Decided), _read(table_path)
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
    return _Client(decided, architecture, table, _document(check_path, _Check) if check_path.exists() else None)


def _close(expected: object, got: object) -> bool:
    return isinstance(expected, float) and isinstance(got, float) and math.isclose(expected, got, rel_tol=1e-9)


def _notices(run: _Run) -> list[dict[str, Any]]:
    """One for every profile some of whose latencies are not measured."""
    notices = []
    for profile, device in sorted(run.devices.items()):
        users = [client for client in run.clients if client.decided.profile == profile]
        labels = set(device.sources).union(*(client.table.sources for client in users))
        doubtful = sorted(label for label in labels if label != "measured")
        if doubtful:
            kinds = dict.fromkeys(label.split()[0] for label in doubtful)
            notices.append(
                {
                    "device": device.device,
                    "profile": profile,
                    "clients": [client.id for client in users],
                    "labels": doubtful,
                    "partly": "measured" in labels,
                    "words": [_SOURCES.get(kind, f"Their source is called {kind!r}.") for kind in kinds],
                }
            )
    return notices


def _times_fewer(reference: float, moved: float) -> str:
    """`17.4 times fewer`, or `1.2 times more` than the reference."""
    if not moved:
        return "none at all instead of some"
    ratio = reference / moved
    return f"{ratio:.3g} times fewer" if ratio >= 1 else f"{1 / ratio:.3g} times more"


def _cells(client: _Client) -> list[dict[str, Any]]:
    """A decided block as something to draw: width for the kernel, height for the expansion, in per cent."""
    space = client.table.space
    return [
        {
            "text": str(choice),
            "skip": choice == SKIP,
            "bits": choice.weight_bits,
            "kernel": choice.kernel,
            "expansion": choice.expansion,
            "width": round(100 * choice.kernel / space.kernels[-1]),
            "height": round(100 * choice.expansion / space.expansions[-1]),
        }
        for choice in client.architecture
    ]


def _plots(run: _Run) -> list[dict[str, str]]:
    import matplotlib.style

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.markersize": 4,
    }
    settings |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    )
    drawings: tuple[tuple[str, str, Callable[[Axes, _Run], str], float], ...] = (
        ("accuracy", "Accuracy over rounds", _draw_accuracy, 2.9),
        ("loss", "Training loss over rounds", _draw_loss, 2.9),
        ("bytes", "Bytes per training round", _draw_bytes, 2.9),
        ("cumulative", "Bytes so far", _draw_cumulative, 2.9),
        ("latency", "Latency: predicted and measured", _draw_latency, 1.5 + 0.32 * len(run.clients)),
        ("bits", "Weight bits per block", _draw_bits, 1.5 + 0.25 * len(run.clients)),
        ("coverage", "Coverage of the shared weights", _draw_coverage, 2.9),
    )
    plots = []
    with matplotlib.style.context(["default", settings]):
        for name, title, draw, height in drawings:
            plots.append(_plot(name, title, draw, height, run))
    return plots


def _plot(
    name: str, title: str, draw: "Callable[[Axes, _Run], str]", height: float, run: _Run
) -> dict[str, str]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": f"faqs-{name}"}):
        figure = Figure(figsize=(4.4, min(height, 12.0)), layout="constrained")
        words = draw(figure.subplots(), run)
        return {"name": name, "title": title, "words": words, "svg": _svg(figure, name)}


def _svg(figure: "Figure", name: str) -> str:
    """The drawing for use inside a page: no header, no size of its own, no ids or styles that reach other elements."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"\s*<(metadata|defs)>\s*(?:<style.*?</style>|<rdf:.*?</rdf:RDF>)\s*</\1>", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    labels = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-words"'
    return re.sub(r"<svg[^>]*>", lambda _: f"<svg {view[0]} {labels}>", text, count=1)
