"""The plot of latency against bits: what each width of numbers costs on a device, by the kernels that really run.

A family of operators is a row of two panels: on the left its latencies at each precision; on the right, the same
operators' beside themselves in float, since the operators on the left may differ between precisions.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hwcost.errors import OutputError
from hwcost.files import write_atomically
from hwcost.ops import FLOAT
from hwcost.profiles import Profile
from hwcost.realisations import Realised, Spread, kind_or_family, printable, realised
from hwcost.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = ("svg", "png", "pdf")

_LOOKS: Final[dict[str, dict[str, Any]]] = {
    "native": {"facecolor": "#9cc7ea", "edgecolor": "#1f5f94"},
    "native for some": {"facecolor": "#f7e3bd", "edgecolor": "#96600f", "hatch": "...."},
    "not native": {"facecolor": "#f6c6ab", "edgecolor": "#a8410d", "hatch": "////"},
    "stored only: unpacked for a wider kernel": {"facecolor": "white", "edgecolor": "#6d7480", "linestyle": "--"},
}
_SETTINGS: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hwcost",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 8.5,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
    "grid.color": "#dfe3e8",
}
_NAME: Final = 44
"""Characters of a kernel's name."""
_WORDS: Final = 150
"""Characters of a line above the panels."""
_WIDTH_INCHES, _LINE_INCHES, _GAP_INCHES, _MARGIN_INCHES = 12.0, 0.23, 0.38, 1.9


def write_plot(profile: Profile, path: Path) -> None:
    """Draw latency against bits into `path`, whole or not at all; raises `OutputError` for a suffix it cannot draw."""
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise OutputError(f"a plot is written as {', '.join(f'.{name}' for name in FORMATS)}, got {path}: rename it")
    import matplotlib.style

    with matplotlib.style.context(["default", _SETTINGS]):
        stream = io.BytesIO()
        undated = {"CreationDate": None} if suffix == "pdf" else {"Date": None} if suffix == "svg" else None
        _draw(profile).savefig(stream, format=suffix, dpi=150, metadata=undated)
    write_atomically(path, stream.getvalue())


def _draw(profile: Profile) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    found = realised(profile, kind_or_family)
    compared = {entry.group for entry in found if entry.is_compared}
    names = dict.fromkeys(entry.group for entry in found if entry.group in compared or not compared)
    groups = [[entry for entry in found if entry.group == name] for name in names]
    lines = [len(entries) for entries in groups]
    height = _MARGIN_INCHES + sum(_LINE_INCHES * count + _GAP_INCHES for count in lines)
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    sizes = [count + 0.4 for count in lines]
    panels = figure.subplots(len(groups), 2 if compared else 1, sharex="col", squeeze=False, height_ratios=sizes)
    for row, entries in zip(panels, groups, strict=True):
        _draw_latencies(row[0], entries)
        if compared:
            _draw_ratios(row[1], entries)
    shown = [entry for entries in groups for entry in entries]
    _label_latencies(panels[-1][0], [entry.latency_s for entry in shown])
    if compared:
        _label_ratios(panels[-1][1], [entry.ratio for entry in shown if entry.ratio is not None])
    figure.suptitle(_title(profile), x=0.01, ha="left", fontsize=9.5)
    looks = {_look(entry) for entry in shown}
    patches = [Patch(label=name, **_LOOKS[name]) for name in _LOOKS if name in looks]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    return figure


def _title(profile: Profile) -> str:
    machine = profile.machine
    known = "" if machine.onnxruntime == "unknown" else f"onnxruntime {machine.onnxruntime}, "
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    counts = " and ".join(f"{sum(row.source == one for row in profile.rows)} {one}" for one in profile.sources)
    timed = "" if profile.sources == ("measured",) else " (not all of them timed by hwcost on the device)"
    timed = timed if "measured" in profile.sources else " (none of them timed by hwcost on the device)"
    lines = (
        f"{profile.device}: latency against bits",
        f"{machine.cpu}, {known}{threads}; {counts} rows{timed}, {profile.created}",
        "w8a8: 8-bit weights, 8-bit activations. Line: median, also as text, with the number of operators; box: the "
        "middle half of them; whiskers: nine in ten.",
    )
    return "\n".join(textwrap.fill(printable(line), _WORDS) for line in lines)


def _look(entry: Realised) -> str:
    """The name of how a group's boxes look."""
    return list(_LOOKS)[3 if entry.unpacked else {"native": 0, "mixed": 1}.get(entry.way, 2)]


def _draw_latencies(axes: "Axes", entries: Sequence[Realised]) -> None:
    """Boxes over seconds, each labelled with its precision and its commonest kernel."""
    axes.set_title(entries[0].group, loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xscale("log")
    for place, entry in enumerate(entries):
        words = f"{format_seconds(entry.latency_s.median)} ({len(entry.rows)})"
        _draw_box(axes, place, entry.latency_s, _look(entry), words)
    axes.set_yticks(range(len(entries)), [_name(entry) for entry in entries])
    _frame(axes, len(entries))


def _draw_ratios(axes: "Axes", entries: Sequence[Realised]) -> None:
    """Boxes over the ratios to float, on the lines of the latencies."""
    axes.set_xscale("log", base=2)
    axes.axvline(1.0, color="#30363d", linewidth=0.9)
    for place, entry in enumerate(entries):
        if entry.ratio is not None and entry.runs_as != FLOAT:
            _draw_box(axes, place, entry.ratio, _look(entry), f"{entry.ratio.median:.2f}x ({len(entry.ratios)})")
        elif entry.runs_as == FLOAT:
            _write(axes, place, "1x, itself")
    axes.set_yticks(range(len(entries)), [""] * len(entries))
    _frame(axes, len(entries))


def _name(entry: Realised) -> str:
    """`QLinearConv u8u8  w8a8`: what runs, and the precision, nearest to the axis."""
    if entry.unpacked:
        return f"{entry.way}   {entry.precision}"
    first, *others = entry.kernels
    more = f" +{len(others)}" if others else ""
    return f"{textwrap.shorten(printable(first), _NAME, placeholder=' ...')}{more}   {entry.precision}"


def _draw_box(axes: "Axes", place: int, spread: Spread, look: str, words: str) -> None:
    colour = _LOOKS[look]["edgecolor"]
    axes.plot([spread.low, spread.high], [place, place], color=colour, linewidth=1.0, zorder=2)
    axes.barh(place, spread.upper - spread.lower, 0.62, spread.lower, linewidth=0.9, zorder=3, **_LOOKS[look])
    axes.plot([spread.median] * 2, [place - 0.4, place + 0.4], color=colour, linewidth=2.2, zorder=4)
    _write(axes, place, words)


def _write(axes: "Axes", place: int, words: str) -> None:
    """Beside the panel, where no box can lie."""
    axes.text(1.01, place, words, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color="#30363d")


def _frame(axes: "Axes", lines: int) -> None:
    axes.set_ylim(lines - 0.4, -0.6)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", which="both", length=0)


def _label_latencies(axes: "Axes", spreads: Sequence[Spread]) -> None:
    axes.set_xlabel("latency of one execution (logarithmic)")
    _scale(axes, 10, spreads, format_seconds)


def _label_ratios(axes: "Axes", spreads: Sequence[Spread]) -> None:
    axes.set_xlabel("latency / that of the same operator in float, w32a32 (logarithmic)")
    _scale(axes, 2, spreads, "{:.3g}x".format)


def _scale(axes: "Axes", base: int, spreads: Sequence[Spread], text_of: Callable[[float], str]) -> None:
    """Limits that hold every whisker, and ticks at powers of the base, or between them where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(spread.low for spread in spreads) / 1.3, max(spread.high for spread in spreads) * 1.3
    axes.set_xlim(low, high)
    steps = (1.0,) if base == 2 or high / low > 100 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(base, subs=steps, numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text_of(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
