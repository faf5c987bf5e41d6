"""A profile of a device from its sibling's and a few measurements: rows shifted, the fit shifted, intervals honest.

Every row of the sibling is multiplied by the ratio that the measured operators suggest for it (`hwcost.sibling`), and
says `adapted`; measured operators stay as they were measured. The sibling's fitted predictors go along. An interval
holds what the samples leave open, which is little for operators like those measured and much for others.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from hwcost.composition import kernel_class
from hwcost.errors import TransferError
from hwcost.features import RANGE_FEATURES, column, family, feature_matrix, hardware_of
from hwcost.fit import FamilyReport, Fit, FittedFamily
from hwcost.graph import other_kernels, supported_precisions
from hwcost.measure import DEFAULT_PASSES, Clock, measure_operators
from hwcost.ops import Operator, Precision
from hwcost.predictors.shifted import ShiftedPredictor
from hwcost.profiles import Int8Form, Machine, Profile, Row
from hwcost.sibling import Shift, Sibling
from hwcost.tables import read_rows
from hwcost.timing import Site, Survey, Timings
from hwcost.whole import Progress

DEFAULT_SAMPLES: Final = 20
_TABLE_NOISE: Final = 0.10
_LONGEST_S: Final = 0.1
"""An operator that the sibling takes longer for is not asked for: timing it says no more than timing a shorter one."""

Layer = tuple[Operator, Precision]


@dataclass(frozen=True)
class Samples:
    """Operators measured on the device, and what else is known of it."""

    rows: tuple[Row, ...]
    machine: Machine
    int8_form: Int8Form
    noise_floor: float
    run_overhead_s: float | None = None
    notes: tuple[str, ...] = ()


def measure_samples(
    source: Profile,
    count: int = DEFAULT_SAMPLES,
    *,
    budget_s: float | None = None,
    passes: int = DEFAULT_PASSES,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    timings: Timings | None = None,
    clock: Clock | None = None,
) -> Samples:
    """Measure `count` operators of a sibling's profile, those that say most of all its rows; the same for a seed.

    Timings are taken in this process unless `timings` says where. Raises `TransferError` where there is nothing to
    learn: the profile is of this very machine, or `count` is too small; and `MeasurementError`.
    """
    timings = timings or Timings()
    site = timings.survey(Survey(threads=threads, seed=seed))
    if "measured" in source.sources and source.machine.is_same_hardware(site.machine):
        raise TransferError(
            f"a profile is adapted to another machine, and {source.device} is of this one ({site.machine.cpu}): use it "
            "as it is, or measure again with `hwcost profile`"
        )
    layers = [row.layer for row in source.rows if _measurable(row, site)]
    sibling = _sibling(source, layers)
    _check_count(count, layers, source)
    asked = [layers[place] for place in sibling.choose(count, seed)]
    found = measure_operators(
        asked,
        int8_form=site.int8_form,
        machine=site.machine,
        passes=passes,
        seed=seed,
        budget_s=budget_s,
        progress=progress,
        skip_unsupported=True,
        take=timings.take_all,
        clock=clock,
    )
    return Samples(
        found.rows,
        site.machine,
        site.int8_form,
        found.noise_floor,
        found.run_overhead_s,
        (*site.warnings, *found.notes),
    )


def _measurable(row: Row, site: Site) -> bool:
    precisions = (*supported_precisions(row.operator), *other_kernels(row.operator, site.int8_form))
    return row.precision in precisions and row.latency_s <= _LONGEST_S


def _check_count(count: int, layers: Sequence[Layer], source: Profile) -> None:
    classes = sorted({kernel_class(*layer) for layer in layers})
    if not len(classes) <= count <= len(layers):
        raise TransferError(
            f"a profile is adapted by at least one operator for each of its classes of kernels ({', '.join(classes)}) "
            f"and at most the {len(layers)} that can be measured, got {count} for {source.device}: ask for "
            f"{'more' if count < len(classes) else 'fewer'}"
        )


def _sibling(source: Profile, layers: Sequence[Layer], predicted_s: dict[Layer, float] | None = None) -> Sibling:
    latency_s = {row.layer: row.latency_s for row in source.rows} | (predicted_s or {})
    return Sibling(tuple(layers), np.array([latency_s[layer] for layer in layers]))


def read_samples(
    path: Path,
    source: Profile,
    *,
    noise: float | None = None,
    overhead_s: float | None = None,
    cpu: str | None = None,
    int8_form: Int8Form | None = None,
) -> Samples:
    """Operators from a table of measurements, as `hwcost.importing` reads it; the fastest of equal ones counts.

    What a table cannot say of the machine is the sibling's, and a note says so. Raises `TableError`.
    """
    fastest: dict[Layer, Row] = {}
    for row in read_rows(path, _TABLE_NOISE if noise is None else noise):
        if row.layer not in fastest or row.latency_s < fastest[row.layer].latency_s:
            fastest[row.layer] = row
    machine = source.machine.model_copy(
        update={
            "cpu": cpu or f"unknown, like {source.machine.cpu}"[:200],
            "system": "imported table",
            "python": "unknown",
        }
    )
    widths = [row.interval_s[1] / row.latency_s - 1 for row in fastest.values()]
    floor = float(np.median(widths)) if noise is None else noise
    note = f"{len(fastest)} operators imported from {path.name}, not measured here; caches, cores as of {source.device}"
    return Samples(tuple(fastest.values()), machine, int8_form or source.int8_form, floor, overhead_s, (note,))


def adapt_profile(source: Profile, samples: Samples, device: str, fit: Fit | None = None) -> tuple[Profile, Fit | None]:
    """The sibling's profile brought to `device` by what was measured there, and its fit, if there is one.

    Operators that the sibling has no row of count where its fit can predict them. Raises `TransferError` where too few
    are known.
    """
    if device == source.device:
        raise TransferError(f"a device has a name of its own, got {device!r}, the sibling's: choose another")
    kept = [row for row in source.rows if row.precision.kernel != samples.int8_form]
    predicted_s = _predicted(source, fit, [row for row in samples.rows if source.find(*row.layer) is None])
    layers = [*(row.layer for row in kept), *predicted_s]
    places = {layer: place for place, layer in enumerate(layers)}
    known = [row for row in samples.rows if row.layer in places]
    if not known:
        raise TransferError(
            f"a device is told from its sibling by operators that both have, got {len(samples.rows)} of which profile "
            f"{source.device} knows none: measure operators of it (`hwcost export` lists them)"
        )
    classes = {kernel_class(*row.layer) for row in kept}
    if len(known) < len(classes):
        raise TransferError(
            f"a profile is adapted by at least as many operators as it has classes of kernels, {len(classes)}, got "
            f"{len(known)} that profile {source.device} knows: measure more"
        )
    sibling = _sibling(source, layers, predicted_s)
    shift = sibling.shift([places[row.layer] for row in known], [row.latency_s for row in known], samples.noise_floor)
    measured = {row.layer: row for row in samples.rows}
    ends = zip(kept, shift.log_ratio.tolist(), shift.width.tolist(), strict=False)
    shifted = [_shifted(row, log_ratio, width) for row, log_ratio, width in ends if row.layer not in measured]
    factor = float(np.exp(np.median(shift.log_ratio)))
    overhead_s = samples.run_overhead_s or min(source.run_overhead_s * factor, 1.0)
    adapted = Profile(
        device=device,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=samples.machine,
        int8_form=samples.int8_form,
        run_overhead_s=overhead_s,
        noise_floor=samples.noise_floor,
        weights_state=source.weights_state,
        notes=_notes(source, samples, known, shift, len(shifted)),
        realisations=source.realisations,
        rows=(*measured.values(), *shifted),
    )
    return adapted, None if fit is None else _shifted_fit(fit, adapted, factor)


def _predicted(source: Profile, fit: Fit | None, rows: Sequence[Row]) -> dict[Layer, float]:
    """Seconds on the sibling of operators that it has no row of, by its fit."""
    found: dict[Layer, float] = {}
    for row in rows:
        op, precision = row.operator, source.realised_as(*row.layer)
        if fit is not None and fit.knows(family(op), precision):
            features = feature_matrix([(op, precision)], hardware_of(source.machine, source.int8_form))
            found[row.layer] = float(fit.predict(family(op), precision, features).latency_s[0])
    return found


def _shifted(row: Row, log_ratio: float, width: float) -> Row:
    latency_s = row.latency_s * math.exp(log_ratio)
    return Row(
        operator=row.operator,
        precision=row.precision,
        realisation=row.realisation.removeprefix("estimated: "),
        native=row.native,
        source="adapted",
        latency_s=latency_s,
        interval_s=(latency_s * math.exp(-width), latency_s * math.exp(width)),
    )


def _notes(source: Profile, samples: Samples, known: Sequence[Row], shift: Shift, count: int) -> tuple[str, ...]:
    ratios = np.exp(np.quantile(shift.log_ratio, [0.05, 0.5, 0.95])).tolist()
    notes = [
        f"adapted from profile {source.device} ({', '.join(source.sources)}; {source.machine.cpu}) by {len(known)} "
        f"operators: {count} rows are its latencies times {ratios[1]:.3g} (median; 5 % to 95 %: {ratios[0]:.3g} to "
        f"{ratios[2]:.3g})",
        "whether a kernel is native, and which one runs, is what the other device does",
    ]
    if len(known) < len(samples.rows):
        notes.append(f"{len(samples.rows) - len(known)} measured operators are unknown there, and stand for themselves")
    if samples.run_overhead_s is None:
        notes.append("one call without operators: the other device's, times that median")
    return (*notes, *samples.notes)


def _shifted_fit(fit: Fit, adapted: Profile, factor: float) -> Fit:
    """The sibling's predictors brought to the adapted rows; each family's interval holds what its rows leave open."""
    groups: defaultdict[tuple[str, Precision], list[Row]] = defaultdict(list)
    for row in adapted.rows:
        groups[family(row.operator), adapted.realised_as(*row.layer)].append(row)
    families = []
    for entry in fit.families:
        rows = groups.get((entry.report.family, entry.report.precision))
        if rows:
            families.append(_shifted_family(entry, rows, adapted))
    composition = fit.composition and fit.composition.slower(factor)
    return Fit(adapted.device, adapted.digest, fit.seed, fit.folds, tuple(families), composition)


def _shifted_family(entry: FittedFamily, rows: Sequence[Row], adapted: Profile) -> FittedFamily:
    precision = entry.report.precision
    features = feature_matrix(
        ((row.operator, precision) for row in rows), hardware_of(adapted.machine, adapted.int8_form)
    )
    latency_s = np.array([row.latency_s for row in rows])
    predictor = ShiftedPredictor.adapt(entry.predictor, features, latency_s)
    open_ = [math.log(row.interval_s[1] / row.latency_s) for row in rows if row.source == "adapted"]
    width = float(np.median(open_)) if open_ else 0.0
    ranges = features[:, [column(name) for name in RANGE_FEATURES]]
    calibration = replace(
        entry.calibration,
        floor=max(entry.calibration.floor, adapted.noise_floor),
        systematic=(width, width),
        lows=ranges.min(axis=0),
        highs=ranges.max(axis=0),
    )
    typical = float(np.median(calibration.widths(features, np.log(latency_s))))
    report = FamilyReport(
        family=entry.report.family,
        precision=precision,
        rows=len(rows),
        sources=tuple(sorted({row.source for row in rows})),
        chosen=ShiftedPredictor.name,
        interval=math.expm1(typical + width),
    )
    return FittedFamily(report, predictor, calibration)
