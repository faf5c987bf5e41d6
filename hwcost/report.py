"""What the `hwcost` command prints of a profile, a fit, a prediction and a check.

Where a number was not measured, the word that says so stands beside it.
"""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hwcost.console import print_table
from hwcost.ops import PRECISIONS, key
from hwcost.profiles import Profile
from hwcost.realisations import Realised, kind_or_family, printable, realised
from hwcost.units import format_seconds

if TYPE_CHECKING:
    from hwcost.check import Check, Prediction
    from hwcost.compare import Comparison, FamilyComparison, Pair
    from hwcost.fit import Fit

_ROWS: Final = 5
"""Rows shown at either end of a profile."""
_OPERATORS: Final = 10
"""Operators shown of a model."""
_KERNELS: Final = 6
"""Kernels shown of a group of operators."""
_WIDTH: Final = 118
"""Columns of a text that is broken into lines."""
_BAR: Final = 48
"""Columns of the longest bar."""
_LONGEST: Final = 2.5
"""Ratio of a bar that is drawn in full; what is beyond ends in an arrow."""
_NATIVE, _PARTLY, _UNPACKED, _BEYOND = "█▒░▶"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _half_width(share: float) -> str:
    """Small ones as `±5.0 %`, large ones as the factor that they are: `x/÷ 3.0`."""
    return f"±{_percent(share)}" if share < 0.5 else f"x/÷ {1 + share:.1f}"


def _counts(profile: Profile) -> dict[str, int]:
    return {source: sum(row.source == source for row in profile.rows) for source in profile.sources}


def profile_document(profile: Profile, path: Path) -> dict[str, Any]:
    """A profile without its rows, as JSON values."""
    return {
        "profile": str(path),
        "device": profile.device,
        "machine": profile.machine.model_dump(mode="json"),
        "created": profile.created,
        "rows": len(profile.rows),
        "sources": _counts(profile),
        "int8_form": profile.int8_form,
        "run_overhead_s": profile.run_overhead_s,
        "noise_floor": profile.noise_floor,
        "realisations": [entry.document() for entry in realised(profile)],
        "notes": list(profile.notes),
    }


def show_profile(profile: Profile, path: Path, *, in_full: bool = False) -> None:
    """Machine, sources, how each precision runs, the slowest and the fastest rows; `in_full`: bars and kernels too."""
    machine, counts = profile.machine, _counts(profile)
    lines = {
        "machine": f"{machine.cpu}, {machine.architecture}, {machine.cores} cores, threads used: {machine.threads}",
        "runtime": f"onnxruntime {machine.onnxruntime}; {machine.system}",
        "features": " ".join(machine.features) or "unknown",
        "rows": f"{', '.join(f'{count} {source}' for source, count in counts.items())}; {profile.created}",
        "int8 form": f"{profile.int8_form} (activations, weights)",
        "one call": f"{format_seconds(profile.run_overhead_s)} without operators",
    }
    if "measured" in counts:
        lines["noise floor"] = _percent(profile.noise_floor)
    print(f"{profile.device}: {path}")
    for name, text in (*lines.items(), *(("note", text) for text in profile.notes)):
        print(f"  {name:<12}  {text}")
    _show_realisations(profile, in_full)
    by_latency = sorted(profile.rows, key=lambda row: row.latency_s)
    for title, rows in (("slowest", by_latency[::-1][:_ROWS]), ("fastest", by_latency[:_ROWS])):
        entries = [
            (key(row.operator), str(row.precision), format_seconds(row.latency_s), row.realisation, row.source)
            for row in rows
        ]
        print_table(
            f"The {title} of {len(by_latency)} rows:",
            ("operator", "precision", "latency", "realisation", "source"),
            entries,
        )


def _show_realisations(profile: Profile, in_full: bool) -> None:
    """The matrix of groups and precisions; bars of the ratios to float, and the kernels behind them."""
    found = realised(profile, kind_or_family)
    groups = {entry.group: [one for one in found if one.group == entry.group] for entry in found}
    columns = [one for one in PRECISIONS if any(entry.precision == one for entry in found)]
    others = any(entry.precision.kernel for entry in found)
    table: list[tuple[str, ...]] = []
    for group, entries in groups.items():
        ways = {entry.precision: _lines(entry) for entry in entries}
        cells = [(group,), *(ways.get(column, ("-",)) for column in columns)]
        if others:
            kernels = [f"{one.precision.kernel} {_ratio(one)}" for one in entries if one.precision.kernel]
            cells.append(tuple(kernels) or ("-",))
        table += zip_longest(*cells, fillvalue="")
    sources = "" if profile.sources == ("measured",) else f"; {' and '.join(profile.sources)}"
    print("How each precision (bits of weights and activations) runs, and how long beside the same operators in float")
    title = f"(0.50x: half as long; the median of so many operators{sources}):"
    print_table(title, ("operators", *map(str, columns), *(["other kernels"] if others else [])), table)
    if in_full:
        _show_bars([entries for entries in groups.values() if any(entry.is_compared for entry in entries)])
        _show_kernels(found)


def _lines(entry: Realised) -> tuple[str, ...]:
    way = f"{100 * entry.native_share:.0f} % native" if entry.way == "mixed" else entry.way
    return (way, f"{_ratio(entry)} ({len(entry.ratios)})") if entry.is_compared and not entry.unpacked else (way,)


def _ratio(entry: Realised) -> str:
    return _times(entry.ratio.median) if entry.ratio else "-"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def _show_bars(groups: Sequence[Sequence[Realised]]) -> None:
    """The ratios to float against bits, where there are any."""
    if not groups:
        return
    print("Latency against bits: the median beside the same operators in float, and the range of nine in ten of them")
    print(f"({_NATIVE} native, {_PARTLY} not native for all, {_UNPACKED} stored only: unpacked for a wider kernel):")
    most = max(entry.ratio.median for entries in groups for entry in entries if entry.ratio)
    scale = _BAR / min(most, _LONGEST)
    for entries in groups:
        print(f"  {entries[0].group}")
        for entry in entries:
            if entry.ratio:
                fill = _UNPACKED if entry.unpacked else _NATIVE if entry.native_share == 1 else _PARTLY
                length = max(1, round(scale * min(entry.ratio.median, _LONGEST)))
                bar = fill * (length - 1) + (_BEYOND if entry.ratio.median > _LONGEST else fill)
                low, high = _times(entry.ratio.low), _times(entry.ratio.high)
                words = f"{low} to {high}, {len(entry.ratios)} operators" if entry.is_compared else ""
                words = entry.way if entry.unpacked else words
                bits = f"{entry.precision.weight_bits:>4} bits  {entry.precision!s:<12}"
                print(f"{bits}  {bar:<{_BAR}} {_ratio(entry):>6}  {words}".rstrip())


def _show_kernels(found: Sequence[Realised]) -> None:
    """What the runtime executes, and for how many operators."""
    print("Kernels, and how many of the operators they run:")
    for entry in found:
        if not entry.unpacked:
            names = [f"{name} ({count})" for name, count in entry.kernels.items()]
            more = [f"and {len(names) - _KERNELS} more"] if len(names) > _KERNELS else []
            head = f"  {entry.group:<14}  {entry.precision!s:<12}  "
            slower = [f"{name} ({count}, {_times(ratio)})" for name, (count, ratio) in entry.slower.items()]
            text = ", ".join(names[:_KERNELS] + more) + (f"; tried and slower: {', '.join(slower)}" if slower else "")
            print(textwrap.fill(printable(text), _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)))


def show_fit(profile: Profile, fit: "Fit", path: Path) -> None:
    """The error table: per family, the chosen predictor beside the two baselines."""
    rows = []
    for entry in fit.report:
        errors = {error.predictor: error for error in entry.errors}
        chosen = errors.get(entry.chosen)
        rows.append(
            (
                entry.family,
                str(entry.precision),
                str(entry.rows),
                entry.chosen,
                _percent(chosen.mape if chosen else None),
                _percent(chosen.within_10 if chosen else None),
                *(_percent(errors[name].mape if name in errors else None) for name in ("flops", "roofline")),
                _half_width(entry.interval),
                _percent(entry.coverage),
            )
        )
    columns = (
        "family",
        "precision",
        "rows",
        "chosen",
        "its error",
        "within 10 %",
        "flops",
        "roofline",
        "interval",
        "held by it",
    )
    print_table(f"{profile.device}: mean errors on held-out operators; kept in {path}", columns, rows)
    if profile.sources == ("measured",):
        print(f"noise floor of the measurements: {_percent(profile.noise_floor)}")
    else:
        print(
            f"rows are {' and '.join(profile.sources)}: the errors say how well those are reproduced, not how far they "
            "are from the device; the intervals include both"
        )


def show_prediction(prediction: "Prediction", operators_s: Sequence[float | None] | None = None) -> None:
    """The slowest operators, what each took where it was run, the total with its interval, and what was left out."""
    total, operators = prediction.total, prediction.operators
    slowest = sorted(range(len(operators)), key=lambda place: -operators[place].price.latency_s)
    rows = []
    for place in slowest[:_OPERATORS]:
        operator = operators[place]
        latency_s = operator.price.latency_s
        took_s = None if operators_s is None else operators_s[place]
        rows.append(
            (
                operator.name,
                operator.operator.kind,
                str(operator.precision),
                format_seconds(latency_s),
                *(() if operators_s is None else _beside(latency_s, took_s)),
                _percent(latency_s / total.latency_s),
                operator.price.label + (", extrapolated" if operator.price.extrapolated else ""),
            )
        )
    title = f"{prediction.model} on {prediction.device}: the slowest of {len(slowest)} operators"
    measured = () if operators_s is None else ("measured", "off by")
    print_table(title, ("node", "kind", "precision", "predicted", *measured, "share", "source"), rows)
    print(
        f"predicted: {format_seconds(total.latency_s)}, between {format_seconds(total.low_s)} and "
        f"{format_seconds(total.high_s)} ({', '.join(total.sources)}); of it {format_seconds(total.run_overhead_s)} is "
        "the call itself"
    )
    if prediction.uncovered:
        more = len(prediction.uncovered) - _OPERATORS
        print(
            f"left out: {len(prediction.uncovered)} nodes without a price, {_percent(prediction.uncovered_share)} of "
            f"the tensor elements: {', '.join(prediction.uncovered[:_OPERATORS])}{f' and {more} more' * (more > 0)}"
        )


def _beside(predicted_s: float, measured_s: float | None) -> tuple[str, str]:
    """A measurement, and how far the prediction is from it."""
    if measured_s is None:
        return "-", "-"
    return format_seconds(measured_s), f"{100 * (predicted_s / measured_s - 1):+.0f} %"


def show_check(checked: "Check") -> None:
    """The prediction beside the measurement, per operator and in total."""
    show_prediction(checked.prediction, checked.operators_s)
    print(
        f"measured:  {format_seconds(checked.measured_s)}; the prediction is off by {100 * checked.error:+.1f} % "
        f"(noise floor {_percent(checked.noise_floor)}), the measurement lies "
        f"{'within' if checked.within_interval else 'OUTSIDE'} its interval"
    )
    if checked.machine_speed is not None:
        print(
            f"machine:   {checked.machine_speed:.3f} times as fast as when it was profiled (kernels timed again); the "
            f"prediction is for that, as profiled it would be {format_seconds(checked.profiled_s)}"
        )
    for warning in checked.warnings:
        print(f"beware:    {warning}")


def show_comparison(comparison: "Comparison") -> None:
    """What differs of the two machines, the ratios per family, and the operators that disagree most."""
    first, second = comparison.first.device, comparison.second.device
    print(f"{second} against {first}: a ratio is the latency of {second} over that of {first}")
    for name, (one, other) in comparison.differences.items():
        print(f"  {name:<14}  {_brief(one)} | {_brief(other)}")
    columns = ("family", "precision", "both", f"only {first}", f"only {second}", "ratio", "5 % to 95 %", "Spearman")
    rows = [_compared(entry) for entry in (*comparison.families, comparison.overall)]
    print_table("Operators that both have, by family:", (*columns, "within noise"), rows)
    farthest = [_paired(pair) for pair in comparison.extremes[:_ROWS]]
    title = f"The ratios farthest from the median of {comparison.overall.ratio:.3g}:"
    print_table(title, ("operator", "precision", first, second, "ratio"), farthest)
    if comparison.contradictions:
        gains = [
            (key(entry.operator), f"{entry.first_gain:.2f}", f"{entry.second_gain:.2f}", "yes" if entry.clear else "no")
            for entry in comparison.contradictions[:_ROWS]
        ]
        print_table("Operators that int8 makes faster on one only:", ("operator", first, second, "clear"), gains)
    clear = sum(entry.clear for entry in comparison.contradictions)
    print(
        f"int8 gains (float over int8) of opposite sign: {len(comparison.contradictions)} of {comparison.int8_gains}, "
        f"{clear} of them beyond the intervals"
    )
    agreeing = sum(pair.intervals_overlap for pair in comparison.pairs)
    print(
        f"{'the same machine' if comparison.same_machine else 'two machines'}: {agreeing} of {len(comparison.pairs)} "
        "rows agree within their intervals"
    )


def _brief(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _compared(entry: "FamilyComparison") -> tuple[str, ...]:
    return (
        entry.family,
        entry.precision,
        *map(str, (entry.both, entry.only_first, entry.only_second)),
        "-" if entry.ratio is None else f"{entry.ratio:.3g}",
        "-" if entry.ratio is None else f"{entry.ratio_5:.3g} to {entry.ratio_95:.3g}",
        "-" if entry.spearman is None else f"{entry.spearman:.3f}",
        _percent(entry.within_noise),
    )


def _paired(pair: "Pair") -> tuple[str, ...]:
    latencies = (format_seconds(price.latency_s) for price in (pair.first, pair.second))
    return key(pair.operator), str(pair.precision), *latencies, f"{pair.ratio:.3g}"
