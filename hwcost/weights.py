"""How long weights are waited for, by how much a run goes through before it comes back to them.

A kernel finds its weights in the nearest cache that holds all of what came between: the others of a network, or the
other copies of itself with which it is timed. One kernel in ever more copies, each with weights of its own, tells what
a byte costs from every cache and from memory, and how much each of them holds now, whatever a guest is told of them and
its neighbours leave. The kernel is a convolution of 49 pixels, which goes through its weights about as fast as networks
do: what is used once goes through them ten times as fast, and finds them in a cache that others would have taken.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from hwcost.errors import MeasurementError
from hwcost.kernels import prepare, run_time
from hwcost.ops import FLOAT, Conv
from hwcost.profiles import Int8Form, WeightStream
from hwcost.runtime import Runtime, UnusableError, refusals

_KERNEL: Final = Conv(256, 256, 7, 7, (1, 1))
_COPIES: Final = tuple(2**octave for octave in range(10))
"""Of a quarter of a MiB each: up to 128 MiB."""
PASS_S: Final = 0.25
"""How long a network runs in one pass, and so does each number of copies here: the shortest of more runs is a luckier
one, of which caches have kept more."""
_LEAST_SHARE: Final = 0.1
"""Of a run that is no longer than a call, so much is taken to be the kernels'."""


def time_weights(runtime: Runtime, form: Int8Form, seed: int, threads: int) -> dict[int, float]:
    """One pass over all sizes, or over those that the runtime has room for: seconds of a run, by the bytes of the
    weights of all its copies; raises `UnusableError`."""
    found: dict[int, float] = {}
    try:
        with refusals("copies of one kernel"):
            kernel = prepare(_KERNEL, FLOAT, form, seed, runtime, threads)
            for count in _COPIES:
                found[count * kernel.constant_bytes] = run_time([kernel], count, runtime, threads, PASS_S)
    except UnusableError:
        raise
    except MeasurementError:
        pass  # and what is known is known
    return found


def weight_streams(passes: Sequence[Mapping[int, float]], overhead_s: float) -> tuple[WeightStream, ...]:
    """What every pass has, a run less the seconds that a call costs."""
    sizes = sorted(set[int].intersection(*map(set, passes))) if passes else ()
    return tuple(
        WeightStream(
            bytes=size,
            s_per_byte=tuple(max(runs[size] - overhead_s, _LEAST_SHARE * runs[size]) / size for runs in passes),
        )
        for size in sizes
    )
