"""How long a byte of weights is waited for, by what came between since it was used last: the measured streams of
`hwcost.weights`, read.

Weights are waited for as long as it takes from where they are: a cache, if one holds all that a run goes through until
it comes back to them, or memory. The last cache is not one guest's alone: others bring what is theirs, so the longer a
run takes, the less it finds. How much they bring shows in two streams of which one goes through its weights ten times
as fast: the slow one loses its own at fewer bytes, and both lose them alike where the bytes that others brought
meanwhile are added. Between two hours this may differ by a factor of six.

What memory takes at last differs with the use: weights that are used once are fetched ahead as fast as memory delivers,
between uses of others one is waited for by itself.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, field_validator

from hwcost.hardware import TURNS, row_copies
from hwcost.ops import Node, Operator, Precision, tensor_bytes, weight_bytes, weight_uses
from hwcost.profiles import Use, WeightStream

Kernels = Sequence[tuple[Operator, Precision, int, float]]
"""Kernels at their realised precision, how often one call executes each, and its seconds."""
Values = NDArray[np.float64]

USES: Final[tuple[Use, ...]] = get_args(Use)
_TENSORS: Final = 2
"""A working set is all weights, and so many times the tensors that the kernel with the largest reads and writes."""
_BROUGHT: Final = 1 / 8
"""Share of what memory delivers that others bring, where streams do not tell: seen on two servers in quiet hours."""
_SHARES: Final = (0.0, *np.geomspace(1 / 32, 4, 43).tolist())
"""What it is looked for among."""
_TELLING: Final = 0.03
"""A stream tells it whose bytes take so much longer from memory, as a share of what they take from the nearest
cache."""
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Wait(BaseModel):
    """Seconds that a byte of weights takes longer than from the nearest cache, where so many bytes come between, those
    of others among them."""

    model_config = _STRICT

    bytes: PositiveFloat
    s_per_byte: NonNegativeFloat


class Waits(BaseModel):
    """The waits for weights of each use, by rising bytes, and the bytes that others bring between in a second; nothing
    is waited for where there are none."""

    model_config = _STRICT

    of: dict[Use, tuple[Wait, ...]] = {}
    brought_per_s: NonNegativeFloat = 0.0

    @field_validator("of")
    @classmethod
    def _of_every_use(cls, of: dict[Use, tuple[Wait, ...]]) -> dict[Use, tuple[Wait, ...]]:
        if of and not all(map(of.get, USES)):
            raise ValueError(f"there are waits of {' and '.join(USES)}, or none, got those of {sorted(of)}")
        return of

    def row_s(self, op: Operator, precision: Precision, seconds: float) -> float:
        """How long the row of a kernel that takes so many seconds waited for its weights: as long as for those of all
        its copies, and what these read and write in turn."""
        stored = stored_bytes(op, precision)
        if not self.of or not stored:
            return 0.0
        count = row_copies(stored, seconds)
        own = count * stored + min(count, TURNS) * tensor_bytes(op, precision)
        return stored * self._byte_s(use(op), own, count * seconds)

    def network_s(self, kernels: Kernels) -> tuple[Values, float]:
        """How long one call of a network waits for its weights [uses], and for one byte of every kernel."""
        if not self.of or not kernels:
            return np.zeros(len(USES)), 0.0
        stored = np.zeros(len(USES))
        for op, precision, count, _ in kernels:
            stored[USES.index(use(op))] += count * stored_bytes(op, precision)
        tensors = max(tensor_bytes(op, precision) for op, precision, _, _ in kernels)
        own, run_s = float(stored.sum()) + _TENSORS * tensors, sum(count * seconds for _, _, count, seconds in kernels)
        byte_s = np.array([self._byte_s(name, own, run_s) for name in USES])
        return stored * byte_s, float(sum(count for _, _, count, _ in kernels) * byte_s[USES.index("again")])

    def slower(self, factor: float) -> "Waits":
        """Those of a device that takes so many times as long for everything, and so do its neighbours."""
        longer = {
            name: tuple(Wait(bytes=wait.bytes, s_per_byte=wait.s_per_byte * factor) for wait in waits)
            for name, waits in self.of.items()
        }
        return Waits(of=longer, brought_per_s=self.brought_per_s / factor)

    def _byte_s(self, name: Use, own: float, run_s: float) -> float:
        """Seconds of a byte, by the logarithm of the bytes in between, of its own and those that others bring."""
        waits = self.of[name]
        between = math.log(max(own + self.brought_per_s * run_s, 1.0))
        sizes = [math.log(wait.bytes) for wait in waits]
        return float(np.interp(between, sizes, [wait.s_per_byte for wait in waits]))


def use(op: Operator) -> Use:
    """How often an operator uses each of its weights."""
    return "once" if weight_uses(op) <= 1 else "again"


def stored_bytes(op: Operator, precision: Precision) -> int:
    """Bytes of weights that a run of an operator goes through: of a table only what is looked up, which are tensors."""
    return 0 if isinstance(op, Node) and op.op_type == "Gather" else weight_bytes(op, precision)


class _Stream(NamedTuple):
    """One use: bytes of weights, seconds of a run over them, and of each byte how much longer that takes than from the
    nearest cache, the median of the passes; more bytes never come sooner. All by rising bytes."""

    bytes: Values
    run_s: Values
    wait_s: Values

    @classmethod
    def of(cls, streams: Sequence[WeightStream]) -> "_Stream":
        rising = sorted(streams, key=lambda one: one.bytes)
        sizes = np.array([one.bytes for one in rising], dtype=np.float64)
        seconds = np.array([median(one.s_per_byte) for one in rising])
        longer = seconds - seconds.min()
        return cls(sizes, sizes * seconds, np.minimum.accumulate(longer[::-1])[::-1])

    @property
    def tells(self) -> bool:
        """Whether it tells a cache from memory."""
        nearest_s = float((self.run_s / self.bytes).min())
        return float(self.wait_s[-1]) > _TELLING * nearest_s

    def between(self, brought_per_s: float) -> Values:
        """The bytes that come between, those of others among them."""
        return self.bytes + brought_per_s * self.run_s


def waits_of(streams: Sequence[WeightStream]) -> Waits:
    """What the streams of a profile say; where those of one use are missing, the other's stand for them."""
    found = {
        name: _Stream.of(of_use) for name in USES if (of_use := [stream for stream in streams if stream.use == name])
    }
    if not found:
        return Waits()
    brought_per_s = _brought_per_s(found)
    curves = {
        name: tuple(
            Wait(bytes=size, s_per_byte=more)
            for size, more in zip(stream.between(brought_per_s).tolist(), stream.wait_s.tolist(), strict=True)
        )
        for name, stream in found.items()
    }
    return Waits(
        of={name: curves.get(name) or next(iter(curves.values())) for name in USES}, brought_per_s=brought_per_s
    )


def _brought_per_s(streams: Mapping[Use, _Stream]) -> float:
    """Bytes that others bring in a second: with these added, what both uses wait, as a share of what they wait for
    memory, is most alike by what came between."""
    longest_s = max(float(stream.wait_s[-1]) for stream in streams.values())
    if not longest_s:
        return 0.0
    telling = [stream for stream in streams.values() if stream.tells]
    if len(telling) < len(USES):
        return _BROUGHT / longest_s
    apart = [_apart(telling[0], telling[1], share / longest_s) for share in _SHARES]
    return float(_SHARES[int(np.argmin(apart))] / longest_s)


def _apart(first: _Stream, other: _Stream, brought_per_s: float) -> float:
    """How far two streams' shares of their waits for memory lie apart in the square mean, over the logarithm of the
    bytes in between that both reach."""
    places = [np.log(stream.between(brought_per_s)) for stream in (first, other)]
    shares = [stream.wait_s / stream.wait_s[-1] for stream in (first, other)]
    low, high = max(place[0] for place in places), min(place[-1] for place in places)
    if low >= high:
        return math.inf
    grid = np.linspace(low, high, 256)
    one, two = (np.interp(grid, place, share) for place, share in zip(places, shares, strict=True))
    return float(np.mean((one - two) ** 2))
