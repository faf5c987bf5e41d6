"""How long weights are waited for, by how much a run goes through before it comes back to them.

A kernel finds its weights in the nearest cache that holds all of what came between: the others of a network, or the
other copies of itself with which it is timed. One kernel in ever more copies, each with weights of its own, tells what
a byte costs from every cache and from memory, and how much each of them holds now, whatever a guest is told of them and
its neighbours leave. Two kernels are timed so. One is a convolution of 49 pixels, which goes through its weights about
as fast as networks do. The other uses each weight once and goes through them ten times as fast, and so finds them in a
cache that others would have taken: what these take in how long is told by both (`hwcost.waits`).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from hwcost.errors import MeasurementError
from hwcost.kernels import prepare, run_time
from hwcost.ops import FLOAT, Conv, Gemm, Operator
from hwcost.profiles import Int8Form, Use, WeightStream
from hwcost.runtime import Runtime, UnusableError, refusals

_KERNELS: Final[dict[Use, Operator]] = {"again": Conv(256, 256, 7, 7, (1, 1)), "once": Gemm(1, 256, 256)}
_COPIES: Final = (1, 4, 8, 16, 32, 48, 64, 128, 256, 512)
"""Of a quarter of a MiB each: up to 128 MiB, closest where the last cache of a server leaves off."""
PASS_S: Final = 0.25
"""How long a network runs in one pass, and so does each number of copies here: the shortest of more runs is a luckier
one, of which caches have kept more."""
_LEAST_SHARE: Final = 0.1
"""Of a run that is no longer than a call, so much is taken to be the kernels'."""


def time_weights(runtime: Runtime, form: Int8Form, seed: int, threads: int) -> dict[tuple[Use, int], float]:
    """One pass over all sizes, or over those that the runtime has room for: seconds of a run, by how often its kernels
    use their weights, and by the bytes of all copies of them; raises `UnusableError`."""
    found: dict[tuple[Use, int], float] = {}
    for use, op in _KERNELS.items():
        try:
            with refusals("copies of one kernel"):
                kernel = prepare(op, FLOAT, form, seed, runtime, threads)
                for count in _COPIES:
                    found[use, count * kernel.constant_bytes] = run_time([kernel], count, runtime, threads, PASS_S)
        except UnusableError:
            raise
        except MeasurementError:
            pass  # and what is known is known
    return found


def weight_streams(passes: Sequence[Mapping[tuple[Use, int], float]], overhead_s: float) -> tuple[WeightStream, ...]:
    """What every pass has, a run less the seconds that a call costs."""
    common = sorted(set[tuple[Use, int]].intersection(*map(set, passes))) if passes else ()
    return tuple(
        WeightStream(
            use=use,
            bytes=size,
            s_per_byte=tuple(
                max(runs[use, size] - overhead_s, _LEAST_SHARE * runs[use, size]) / size for runs in passes
            ),
        )
        for use, size in common
    )
