"""How much longer kernels take in long runs than in short ones.

A timing is the shortest of many runs. One of a third of a millisecond finds moments in which nobody disturbs it, and
caches, predictors and clock as it left them a moment ago; of runs of ten milliseconds and more none does. Rows are
timed in short runs, networks run as long as they take. A few common kernels in turn, in more and more rounds, tell how
much that is.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from hwcost.errors import MeasurementError
from hwcost.kernels import prepare, run_time
from hwcost.ops import FLOAT, INT8, Conv
from hwcost.profiles import Int8Form, RunLength
from hwcost.runtime import Runtime, UnusableError, refusals

_KERNELS: Final = (
    (Conv.square(32, 32, 56, 3), FLOAT),
    (Conv.square(32, 32, 56, 3), INT8),
    (Conv.square(64, 64, 56, 1), FLOAT),
    (Conv.square(96, 96, 56, 3, groups=96), FLOAT),
)
"""Some 0.1 ms each, as in most networks, and few weights."""
_ROUNDS: Final = (1, 3, 8, 25, 80)
_TIME_S: Final = 0.25
"""As long as a network runs in one pass."""
_LONGEST_S: Final = 0.25
"""Runs are told up to this length: longer ones do not fit a pass."""


def time_lengths(runtime: Runtime, form: Int8Form, seed: int, threads: int) -> dict[int, float]:
    """One pass over all lengths, or over those that the runtime has room for: seconds of a run, by its rounds; raises
    `UnusableError`."""
    found: dict[int, float] = {}
    try:
        with refusals("kernels in turn"):
            kernels = [prepare(op, precision, form, seed, runtime, threads) for op, precision in _KERNELS]
            for rounds in _ROUNDS:
                if found and rounds * found[_ROUNDS[0]] > _LONGEST_S:
                    break
                found[rounds] = run_time(kernels, rounds, runtime, threads, _TIME_S)
    except UnusableError:
        raise
    except MeasurementError:
        pass  # and what is known is known
    return found


def run_lengths(passes: Sequence[Mapping[int, float]]) -> tuple[RunLength, ...]:
    """What every pass has."""
    rounds = sorted(set[int].intersection(*map(set, passes))) if passes else ()
    return tuple(RunLength(rounds=count, run_s=tuple(runs[count] for runs in passes)) for count in rounds)
