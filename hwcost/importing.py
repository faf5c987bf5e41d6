"""A profile from a measurement table: other runtimes, and accelerators whose 2- and 4-bit kernels are real.

What a profile holds and a table cannot know is handed in, or assumed, and the profile's notes say which.
"""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

from hwcost.errors import TableError
from hwcost.features import family
from hwcost.ops import PRECISIONS, Conv, Gemm, Precision
from hwcost.profiles import Int8Form, Machine, Profile, Realisation, Row
from hwcost.space import Layer, SearchSpace
from hwcost.tables import read_rows

ASSUMED_NOISE: Final = 0.10
"""Noise, as a share of the latency, of a table that says nothing of it; the half-width of a row's interval then."""
ASSUMED_OVERHEAD_S: Final = 10e-6
"""Seconds of one call of the runtime without operators, where nobody says."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def import_profile(
    path: Path,
    device: str,
    *,
    overhead_s: float | None = None,
    noise: float | None = None,
    cpu: str | None = None,
    int8_form: Int8Form = "s8s8",
) -> Profile:
    """A profile of `device` from a table, every row `source: imported`; None is assumed, and the notes say so.

    `noise` is a share: the noise floor, and the half-width of the intervals that the table does not give. An operator
    at one precision that stands in several rows is repeated measurement: the fastest counts, the others stay as
    samples. Weights of a width that no row of their kind of operator has are held in the next wider one that has rows.
    Raises `TableError` naming file, row and column; one wrong row is enough.
    """
    if _NAME.fullmatch(device) is None:
        raise TableError(f"a device is named with at most 64 of a-z, 0-9, '.', '_' and '-', got {device!r}")
    rows = read_rows(path, ASSUMED_NOISE if noise is None else noise)
    distinct = _fastest(rows)
    held = _held_wider(distinct)
    widths = [math.sqrt(row.interval_s[1] / row.interval_s[0]) - 1 for row in distinct]
    noise_floor = min(ASSUMED_NOISE, median(widths)) if noise is None else noise
    notes = [
        f"imported from {path.name}, not measured here",
        f"noise {noise:.1%}, as given; so are the intervals that the table does not give"
        if noise is not None
        else f"noise {noise_floor:.1%} from the table's intervals; {ASSUMED_NOISE:.0%} is assumed where it gives none",
        f"one call without operators: {'assumed, the table does not say' if overhead_s is None else 'as given'}",
    ]
    if len(distinct) < len(rows):
        notes.append(f"{len(rows) - len(distinct)} of {len(rows)} rows repeat others: the fastest of each counts")
    notes += [f"{entry.kind} at {entry.precision} runs as {entry.runs_as}: {entry.description}" for entry in held]
    profile = Profile(
        device=device,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=Machine(cpu=cpu or f"{device} (imported)", architecture="unknown", cores=1, system="imported table"),
        int8_form=int8_form,
        run_overhead_s=ASSUMED_OVERHEAD_S if overhead_s is None else overhead_s,
        noise_floor=noise_floor,
        notes=tuple(notes),
        realisations=held,
        rows=distinct,
    )
    missing = missing_for_search(profile)
    if missing:
        note = f"a search needs some operators of every family, and this table has none of {', '.join(missing)}"
        profile = profile.changed(notes=(*profile.notes, note))
    return profile


def missing_for_search(profile: Profile) -> tuple[str, ...]:
    """The families and precisions, like `pool.global_average w8a8`, of which the default search spaces have operators
    and a profile has none, so that not even a fit can price them."""
    space = SearchSpace.for_image((3, 32, 32), 10)
    layers = {
        layer for block in space.blocks for choice in space.choices for layer in space.block_layers(block, choice)
    }
    needed = {(family(op), profile.realised_as(op, precision)) for op, precision in (*space.fixed_layers(), *layers)}
    had = {(family(row.operator), row.precision) for row in profile.rows}
    return tuple(f"{name} {precision}" for name, precision in sorted(needed - had))


def _fastest(rows: Sequence[Row]) -> tuple[Row, ...]:
    """One row per operator and precision, in the order of the first; the latencies of repeated ones are its samples."""
    groups: dict[Layer, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.layer, []).append(row)
    return tuple(_fastest_of(group) for group in groups.values())


def _fastest_of(group: Sequence[Row]) -> Row:
    if len(group) == 1:
        return group[0]
    fastest = min(group, key=lambda row: row.latency_s)
    return fastest.model_copy(update={"samples_s": tuple(row.latency_s for row in group)})


def _held_wider(rows: Sequence[Row]) -> tuple[Realisation, ...]:
    """How weights below 8 bits run where a kind of layer has no row of that width: any runtime can hold them in a wider
    one, which costs what that one costs."""
    had: dict[str, set[Precision]] = {}
    for row in rows:
        if isinstance(row.operator, Conv | Gemm):
            had.setdefault(row.operator.kind, set()).add(row.precision)
    held = []
    for kind, precisions in had.items():
        for narrow in (precision for precision in PRECISIONS if precision.activation_bits == 8):
            wider = [
                precision
                for precision in sorted(precisions.intersection(PRECISIONS))
                if precision.activation_bits == 8 and precision.weight_bits > narrow.weight_bits
            ]
            if narrow not in precisions and wider:
                held.append(
                    {
                        "kind": kind,
                        "precision": narrow,
                        "runs_as": wider[0],
                        "native": False,
                        "description": f"no row has {narrow.weight_bits}-bit weights, so they are held wider",
                    }
                )
    return tuple(map(Realisation.model_validate, held))
