"""The report of a run: one HTML file that loads nothing else, for people who look rather than read.

It is made from the documents of the run folder alone, checked while they are read, so that what is shown is what was
stored; bytes are summed from the ledger's messages and costs come from the clients' tables. What was not measured is
said in words before any number. The same folder gives the same bytes.
"""

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from faqs.ledger import Kind
from faqs.preference import METRIC_OF, format_metric, over_budget
from faqs.record import ClientRecord, RunRecord, read_run
from hwcost import SKIP, format_bytes, format_seconds, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#0a0b0c"  # replaced by the text colour of the page, so that plots follow a light or dark theme
_SERIES = ("#3b8ecb", "#e07b39", "#3ba66b", "#c65d9c", "#8c7ae6", "#b59a2a", "#2fa7a7", "#d1545b")
_UP, _DOWN = _SERIES[0], _SERIES[1]
_MARKERS = "osD^vPX*"
_BITS = {2: "#f2c14e", 4: "#58b9ac", 8: "#3f6fb5"}
_MANY_CLIENTS: Final = 10
"""From here on, a plot shows the mean and the range instead of a line per client."""

_SOURCES = {
    "adapted": "They are another device's latencies, shifted by the ratios that a few operators timed on this one have "
    "to theirs; these operators were not timed themselves.",
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


def build_report(run: Path) -> str:
    """The report of the run folder `run` as HTML; raises `RunError` naming the file and the field that is wrong."""
    import jinja2

    documents = read_run(run)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("faqs"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    totals = documents.ledger.totals()
    verdicts = [_verdict(client) for client in documents.clients]
    return environment.get_template("report.html.j2").render(
        run=documents,
        device_names=sorted({device.device for device in documents.devices.values()}),
        notices=_notices(documents),
        totals=totals,
        moved={level: totals[f"{level}_up"] + totals[f"{level}_down"] for level, _, _ in _LEVELS},
        budgets=Counter(kind for kind, _ in verdicts),
        verdicts=verdicts,
        unmeasured=sum(words.endswith("not measured") for _, words in verdicts),
        levels=_LEVELS,
        kinds=[(words, documents.ledger.select(kind=kind).totals()) for kind, words in _KINDS],
        training=documents.ledger.select(kind="train").totals(),
        refused=[(r.round, client, reason) for r in documents.rounds for client, reason in sorted(r.refused.items())],
        cells=[_cells(client) for client in documents.clients],
        plots=_plots(documents),
        bits=_BITS,
        metric_of=METRIC_OF,
        format_bytes=_unbroken(format_bytes),
        format_seconds=_unbroken(format_seconds),
        format_metric=_unbroken(format_metric),
        times_fewer=_times_fewer,
    )


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all; raises `RunError` and `OSError`."""
    path = run / "report.html"
    write_atomically(path, build_report(run).encode())
    return path


def _notices(run: RunRecord) -> list[dict[str, Any]]:
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


def _verdict(client: ClientRecord) -> tuple[str, str]:
    """Whether a client is within its budget: a class of the page (good, bad, none), and words."""
    budget, cost = client.decided.budget, client.decided.cost
    if not budget:
        return "none", "no budget"
    if over_budget(cost, budget):
        return "bad", "missed, by the table"
    within = client.check.within_budget if client.check else None
    if within is None:
        return "good", "met, by the table; not measured" if "latency" in budget else "met, by the table"
    return ("good", "met, measured") if within else ("bad", "missed, as measured")


def _unbroken(text_of: Callable[..., str]) -> Callable[..., str]:
    """The same text, with spaces at which no line is broken."""
    return lambda *arguments: text_of(*arguments).replace(" ", "\N{NO-BREAK SPACE}")


def _times_fewer(reference: float, moved: float) -> str:
    """`17.4 times fewer`, or `1.2 times more` than the reference."""
    if not moved:
        return "none at all instead of some"
    ratio = reference / moved
    return f"{ratio:.3g} times fewer" if ratio >= 1 else f"{1 / ratio:.3g} times more"


def _cells(client: ClientRecord) -> list[dict[str, Any]]:
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


def _plots(run: RunRecord) -> list[dict[str, str]]:
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
    drawings: tuple[tuple[str, str, Callable[[Axes, RunRecord], str], float], ...] = (
        ("accuracy", "Accuracy over rounds", _draw_accuracy, 2.9),
        ("loss", "Training loss over rounds", _draw_loss, 2.9),
        ("coverage", "Coverage of the shared weights", _draw_coverage, 2.9),
        ("bytes", "Bytes per training round", _draw_bytes, 2.9),
        ("cumulative", "Bytes so far", _draw_cumulative, 2.9),
        ("latency", "Latency: predicted and measured", _draw_latency, 1.5 + 0.32 * len(run.clients)),
        ("bits", "Weight bits per block", _draw_bits, 1.5 + 0.25 * len(run.clients)),
    )
    plots = []
    with matplotlib.style.context(["default", settings]):
        for name, title, draw, height in drawings:
            plots.append(_plot(name, title, draw, height, run))
    return plots


def _plot(
    name: str, title: str, draw: "Callable[[Axes, RunRecord], str]", height: float, run: RunRecord
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


def _frame(axes: "Axes", run: RunRecord, xlabel: str = "round", ylabel: str = "") -> None:
    """Grid, labels, and the phases of the search as shades: warm-up before the decisions, frozen after them."""
    import matplotlib.ticker

    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.15)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    last = run.rounds[-1].round
    for start, end, words in ((0, run.config.warmup, "warm-up"), (run.config.search_end, last + 1, "frozen")):
        if start < end:
            axes.axvspan(start - 0.5, end - 0.5, color=_INK, alpha=0.06, linewidth=0)
            axes.text((start + end - 1) / 2, 1.0, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom")


def _draw_accuracy(axes: "Axes", run: RunRecord) -> str:
    final = run.rounds[-1].round + 1
    _frame(axes, run, ylabel="accuracy, own held-out share")
    if len(run.clients) < _MANY_CLIENTS:
        for index, client in enumerate(run.clients):
            points = [(r.round, r.accuracy[client.id]) for r in run.rounds if client.id in r.accuracy]
            color, marker = _SERIES[index % len(_SERIES)], _MARKERS[index % len(_MARKERS)]
            axes.plot(*_columns(points), color=color, marker=marker, label=f"client {client.id}")
            axes.plot([final], [client.decided.accuracy], color=color, marker=marker, markersize=8, linestyle="")
    else:
        known = [(r.round, list(r.accuracy.values())) for r in run.rounds if r.accuracy]
        numbers = [number for number, _ in known]
        lows, highs = ([pick(values) for _, values in known] for pick in (min, max))
        axes.fill_between(numbers, lows, highs, color=_SERIES[0], alpha=0.25, linewidth=0, label="range over clients")
        axes.plot(numbers, [sum(v) / len(v) for _, v in known], color=_SERIES[0], label="mean")
        scores = [client.decided.accuracy for client in run.clients]
        axes.plot([final] * len(scores), scores, "_", color=_SERIES[1], label="personalised")
    _legend(axes)
    low, high = min(c.decided.accuracy for c in run.clients), max(c.decided.accuracy for c in run.clients)
    return (
        "Each client's decided network on its own held-out share after every round; the large marks at the end are the "
        f"personalised networks, from {low:.3f} to {high:.3f}."
    )


def _draw_loss(axes: "Axes", run: RunRecord) -> str:
    _frame(axes, run, ylabel="loss, mean over clients")
    axes.plot(*_columns((r.round, r.loss) for r in run.rounds), color=_SERIES[0], marker="o")
    return f"The clients' mean training loss goes from {run.rounds[0].loss:.3g} to {run.rounds[-1].loss:.3g}."


def _draw_bytes(axes: "Axes", run: RunRecord) -> str:
    _frame(axes, run)
    rounds = run.ledger.select(kind="train").by_round()
    numbers = list(rounds)
    for shift, direction, color in ((-0.2, "up", _UP), (0.2, "down", _DOWN)):
        for level, alpha in (("wire", 0.4), ("payload", 1.0)):
            axes.bar(
                [number + shift for number in numbers],
                [totals[f"{level}_{direction}"] for totals in rounds.values()],
                0.38,
                color=color,
                alpha=alpha,
                label=f"{level} {direction}",
            )
    _byte_ticks(axes)
    _legend(axes, 2)
    if not numbers:
        return "No training message was sent."
    each = [rounds[number]["wire_up"] + rounds[number]["wire_down"] for number in (numbers[0], numbers[-1])]
    return (
        f"All clients together, up (left bar) and down (right bar); the pale top is what the wire adds to the payload. "
        f"First round {format_bytes(each[0])} on the wire, last round {format_bytes(each[1])}; FedAvg in float would "
        f"move {format_bytes(run.fedavg_round_bytes)} a round (computed)."
    )


def _draw_cumulative(axes: "Axes", run: RunRecord) -> str:
    _frame(axes, run)
    rounds = run.ledger.by_round()
    for direction, color in (("up", _UP), ("down", _DOWN)):
        for level, style in (("wire", "-"), ("payload", ":")):
            sums = list(accumulate(totals[f"{level}_{direction}"] for totals in rounds.values()))
            axes.plot(list(rounds), sums, style, color=color, label=f"{level} {direction}")
    numbers = [entry.round for entry in run.rounds]
    reference = [run.fedavg_round_bytes / 2 * (index + 1) for index in range(len(numbers))]
    axes.plot(numbers, reference, "--", color=_INK, label="FedAvg fp32 (computed)")
    axes.set_yscale("log")
    _byte_ticks(axes)
    _legend(axes, 2)
    moved = run.ledger.totals()
    return (
        "Every message counts, set-up and personalisation too; logarithmic. In the end "
        f"{format_bytes(moved['wire_up'])} went up and {format_bytes(moved['wire_down'])} down; FedAvg in float: "
        f"{format_bytes(run.fedavg_bytes / 2)} each way (computed)."
    )


def _draw_latency(axes: "Axes", run: RunRecord) -> str:
    seconds = [value for client in run.clients for value in client.decided.latency_interval_s]
    seconds += [client.measured_s for client in run.clients if client.measured_s]
    scale, unit = (1e3, "ms") if max(seconds) >= 1e-3 else (1e6, "us")
    for row, client in enumerate(run.clients):
        low_s, high_s = client.decided.latency_interval_s
        budget_s = client.decided.budget.get("latency")
        axes.plot([low_s * scale, high_s * scale], [row, row], color=_SERIES[0], linewidth=5, alpha=0.35,
                  solid_capstyle="butt", label="interval" if row == 0 else None)  # fmt: skip
        axes.plot([client.decided.cost["latency_s"] * scale], [row], "o", color=_SERIES[0], markersize=6,
                  label="predicted" if row == 0 else None)  # fmt: skip
        if client.measured_s is not None:
            axes.plot([client.measured_s * scale], [row], "D", color=_SERIES[1], markersize=6, zorder=3)
        if budget_s is not None:
            axes.plot([budget_s * scale], [row], "|", color=_INK, markersize=14, markeredgewidth=2, zorder=4)
    axes.plot([], [], "D", color=_SERIES[1], markersize=6, label="measured")
    axes.plot([], [], "|", color=_INK, markersize=9, markeredgewidth=2, label="budget")
    if max(seconds) > 20 * min(seconds):
        axes.set_xscale("log")
    _client_rows(axes, run, lambda client: f"{client.id} · {client.decided.device}")
    axes.set_xlabel(f"latency of one call, {unit}")
    axes.grid(alpha=0.15, axis="x")
    _legend(axes)
    measured = [client for client in run.clients if client.measured_s is not None]
    if not measured:
        return "Predictions with their intervals. No model was measured: no client's device is this machine."
    inside = sum(client.check.within_interval is True for client in measured if client.check)
    return (
        f"Predictions with their intervals; {len(measured)} of {len(run.clients)} models were measured on this "
        f"machine, {inside} within the interval."
    )


def _draw_bits(axes: "Axes", run: RunRecord) -> str:
    from matplotlib.colors import ListedColormap

    order = list(_BITS)
    rows = [
        [order.index(c.weight_bits) if c != SKIP else math.nan for c in client.architecture] for client in run.clients
    ]
    axes.pcolormesh(
        rows, cmap=ListedColormap(list(_BITS.values())), vmin=-0.5, vmax=len(order) - 0.5, edgecolors="none",
        rasterized=len(rows) * len(rows[0]) > 3000,
    )  # fmt: skip
    if len(rows) <= 40:
        for y, client in enumerate(run.clients):
            for x, choice in enumerate(client.architecture):
                color = _INK if choice == SKIP else "white" if choice.weight_bits == 8 else "black"
                words = "skip" if choice == SKIP else str(choice.weight_bits)
                axes.text(x + 0.5, y + 0.5, words, ha="center", va="center", color=color, fontsize=8)
    _client_rows(axes, run, lambda client: f"client {client.id}", shift=0.5)
    blocks = range(len(rows[0]))
    axes.set_xticks([block + 0.5 for block in blocks], [str(block) for block in blocks])
    axes.set_xlabel("block")
    axes.tick_params(length=0)
    counts = Counter(choice.weight_bits for client in run.clients for choice in client.architecture)
    total = sum(counts.values())
    shares = [f"{counts[bits] / total:.0%} of the blocks at {bits} bits" for bits in order if counts[bits]]
    return ", ".join([*shares, *([f"{counts[0] / total:.0%} skipped"] if counts[0] else [])]) + "."


def _draw_coverage(axes: "Axes", run: RunRecord) -> str:
    _frame(axes, run, ylabel="share trained by anyone")
    axes.plot(*_columns((r.round, r.coverage) for r in run.rounds), color=_SERIES[2], marker="o")
    axes.set_ylim(0, 1.05)
    least = min(run.rounds, key=lambda r: r.coverage)
    return f"Shared weights that at least one client trained; least in round {least.round}: {least.coverage:.0%}."


def _legend(axes: "Axes", columns: int = 4) -> None:
    """Above the plot, where it hides nothing."""
    axes.figure.legend(loc="outside upper center", ncols=columns, columnspacing=1.0, handletextpad=0.4)


def _byte_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))


def _columns(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    listed = list(points)
    return [x for x, _ in listed], [y for _, y in listed]


def _client_rows(axes: "Axes", run: RunRecord, label: Callable[[ClientRecord], str], shift: float = 0.0) -> None:
    """A row a client from the top; of very many clients only some are named."""
    step = 1 + len(run.clients) // 40
    shown = list(enumerate(run.clients))[::step]
    axes.set_yticks([row + shift for row, _ in shown], [label(client) for _, client in shown])
    axes.set_ylim(len(run.clients) - 0.5 + shift, -0.5 + shift)
