"""How fast a machine is now, beside how fast it was when its profile was measured: some of its kernels timed again.

Clocks, neighbours and temperature change; a prediction speaks of the machine as it was. On a shared machine that is 5 %
within minutes, more than most predictions are off, and nearly alike for all kernels: so one factor tells the two apart.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from hwcost.basis import settled
from hwcost.features import family
from hwcost.profiles import Profile, Row
from hwcost.timing import Task, Timings

_MOST: Final = 24
_LEAST: Final = 3
_SHORTEST_S, _LONGEST_S = 2e-5, 1e-3
"""Long enough that the cost of a call does not matter, and short enough to be timed at once."""


def anchors(profile: Profile) -> tuple[Row, ...]:
    """The rows that tell a machine's speed: settled ones of middling length, one of each of the largest families. Rows
    of a single timing do where no row has more."""
    once = max((len(row.samples_s) for row in profile.rows), default=0) <= 1
    families: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in profile.rows:
        fit = row.source == "measured" and _SHORTEST_S <= row.latency_s <= _LONGEST_S
        if fit and (once or settled(row.samples_s)):
            families[family(row.operator), str(row.precision)].append(row)
    largest = sorted(families.items(), key=lambda item: (-len(item[1]), item[0]))[:_MOST]
    return tuple(sorted(rows, key=lambda row: row.latency_s)[len(rows) // 2] for _, rows in largest)


def time_anchors(profile: Profile, rows: Sequence[Row], timings: Timings) -> list[float]:
    """The seconds that these rows' kernels take now, one timing each; infinite where the runtime refuses one. `timings`
    keeps kernels from one time to the next."""
    tasks = [
        Task(
            point="anchor",
            requests=(row.layer,),
            int8_form=profile.int8_form,
            seed=0,
            threads=profile.machine.threads,
            copies=row.copies,
            realisation=row.realisation,
        )
        for row in rows
    ]
    runs_s = (math.inf if timing.run_s is None else timing.run_s for timing in timings.take_all(tasks))
    return [(run_s - profile.run_overhead_s) / row.copies for row, run_s in zip(rows, runs_s, strict=True)]


def machine_speed(rows: Sequence[Row], passes: Sequence[Sequence[float]]) -> float | None:
    """The profile's seconds over those of now, the fastest of several passes over `rows`, in the median: 0.9 is a
    machine that takes a ninth longer. None where too few rows could be timed."""
    now_s = [min(times) for times in zip(*passes, strict=True)]
    ratios = [row.latency_s / seconds for row, seconds in zip(rows, now_s, strict=True) if 0 < seconds < math.inf]
    return statistics.median(ratios) if len(ratios) >= _LEAST else None


def speed_between(rows: Sequence[Row], before_s: Sequence[float], after_s: Sequence[float]) -> float | None:
    """How fast the machine was between two timings of these rows: the mean of both; None as for `machine_speed`."""
    speeds = [speed for times in (before_s, after_s) if (speed := machine_speed(rows, [times])) is not None]
    return statistics.fmean(speeds) if speeds else None
