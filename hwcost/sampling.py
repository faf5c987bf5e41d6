"""Which operators a profile measures: those of search spaces, and a seeded sample of what other networks execute.

A predictor is fitted per family and learns most from operators like those it will be asked about. So every family of
`hwcost.prior` has a share of the sample, enough to fit and to hold out. What takes long to time is left out; where time
grows with the work, as under emulation, large operators can be made rare instead, so that the range of sizes stays.
"""

import heapq
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np

from hwcost.errors import InvalidOperatorError, InvalidSpaceError
from hwcost.features import family
from hwcost.graph import other_kernels, supported_precisions
from hwcost.ops import FLOAT, Operator, Precision, key, tensor_bytes
from hwcost.prior import FAMILIES, Draw
from hwcost.profiles import Int8Form
from hwcost.space import SearchSpace

_MOST_MACS: Final = 400_000_000
_MOST_BYTES: Final = 48_000_000
_MOST_WEIGHTS: Final = 40_000_000
_WEIGHT_ONLY_EVERY: Final = 3
"""One in so many matrix products of a sample is measured with weights of 8, 4 and 2 bits beside float activations:
these take as long as all its other precisions, and few networks have them."""
_MOST_DRAWS: Final = 2_000
"""Draws in vain after which a family has no more operators."""
_WHOLE: Final = sum(share for share, _ in FAMILIES.values())
_FIRST: Final = 4
"""Operators of each family of predictors with which a spread sample begins."""
_ELEMENT_WORK: Final = 30
"""An element that is read or written is as much work as so many multiply-accumulates, which vectors do."""


def default_operators(
    images: Iterable[tuple[int, int, int]], seed: int = 0, count: int | None = None
) -> tuple[Operator, ...]:
    """What `hwcost profile` measures: every operator of the search spaces of these images (channels, height, width),
    and `count` of other networks; None is every family's whole share."""
    spaces = [SearchSpace.for_image(image, 10) for image in images]
    operators = [op for space in spaces for op in space.operators()]
    return tuple(dict.fromkeys((*operators, *prior_operators(seed, count))))


def prior_operators(seed: int, count: int | None = None, usual_work: float = math.inf) -> tuple[Operator, ...]:
    """`count` distinct operators of real networks, each family in proportion to its share (None: the whole shares).

    Of operators with so many times `usual_work` only one in so many is kept, another drawn in its place; work is in
    multiply-accumulates. The same for the same seed, in any process, and the first ones of any larger sample. Raises
    `InvalidSpaceError`.
    """
    wanted = _WHOLE if count is None else count
    families = [_ranked(name, stream) for name, stream in family_streams(seed, usual_work).items()]
    merged = (op for _, _, op in heapq.merge(*families, key=lambda one: one[:2]))
    found: dict[Operator, None] = {}  # two families may draw the same
    try:
        while len(found) < wanted:
            found[next(merged)] = None
        return tuple(found)
    except _FamilyExhausted:
        raise InvalidSpaceError(
            f"a sample of operators holds as many as its families have, got a wish for {wanted}: ask for fewer"
        ) from None


def spread_operators(seed: int, count: int | None = None, usual_work: float = math.inf) -> tuple[Operator, ...]:
    """The operators of `prior_operators`' whole shares, or the `count` of them that tell most where each costs dearly.

    First a few of every family that has a predictor of its own, as far apart in size as there are, so that little lies
    outside of what was seen; then each family by its share, the farthest from those before first.
    """
    families: defaultdict[str, list[Operator]] = defaultdict(list)
    for op in prior_operators(seed, max(count or 0, _WHOLE), usual_work):
        families[family(op)].append(op)
    ranked = [
        (max(place + 1 - _FIRST, 0) / len(members), place, op)
        for members in families.values()
        for place, op in enumerate(_farthest_first(members))
    ]
    return tuple(op for _, _, op in sorted(ranked, key=lambda one: one[:2])[:count])


def _farthest_first(operators: Sequence[Operator]) -> Iterator[Operator]:
    """The largest, then always the one whose size is farthest from the nearest before: Gonzalez, Clustering to minimize
    the maximum intercluster distance (1985)."""
    counts = [(op.macs, op.input_elements, op.output_elements, op.weights) for op in operators]
    sizes = np.log(np.array(counts, dtype=np.float64) + 1)
    distance = sizes.sum(axis=1)
    for _ in operators:
        place = int(distance.argmax())
        yield operators[place]
        distance = np.minimum(distance, np.abs(sizes - sizes[place]).sum(axis=1))
        distance[place] = -1.0


def family_streams(seed: int, usual_work: float = math.inf) -> dict[str, Iterator[Operator]]:
    """The distinct operators of each family, in the order of drawing, until it has no more; large ones are rare."""
    return {name: _stream(name, draw, seed, usual_work) for name, (_, draw) in FAMILIES.items()}


def sampled_requests(op: Operator, form: Int8Form) -> tuple[tuple[Operator, Precision], ...]:
    """At which precisions a sampled operator is measured on a device of this int8 form: all that have a kernel, those
    that exported networks make a runtime use beside its choice included; weight-only ones of some matrix products."""
    some = zlib.crc32(key(op).encode()) % _WEIGHT_ONLY_EVERY == 0
    kinds = (*supported_precisions(op), *other_kernels(op, form))
    return tuple((op, kind) for kind in kinds if some or kind.weight_bits == 32 or kind.activation_bits == 8)


class _FamilyExhausted(Exception):
    """A family was asked for more operators than it has."""


def _ranked(name: str, stream: Iterator[Operator]) -> Iterator[tuple[float, str, Operator]]:
    """The operators of a family, ranked so that every prefix of a merge holds the shares."""
    share, _ = FAMILIES[name]
    for place, op in enumerate(stream):
        yield (place + 0.5) / share, name, op
    raise _FamilyExhausted


def _stream(name: str, draw: Draw, seed: int, usual_work: float) -> Iterator[Operator]:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    found: set[Operator] = set()
    while True:
        drawn = (_drawn(draw, rng) for _ in range(_MOST_DRAWS))
        new = (op for op in drawn if op is not None and op not in found and _affordable(op))
        op = next((op for op in new if _work(op) <= usual_work or rng.random() * _work(op) < usual_work), None)
        if op is None:
            return
        yield op
        found.add(op)


def _drawn(draw: Draw, rng: np.random.Generator) -> Operator | None:
    try:
        return draw(rng)
    except InvalidOperatorError:  # a window that does not fit its plane
        return None


def _affordable(op: Operator) -> bool:
    activations = tensor_bytes(op, FLOAT)
    return op.macs <= _MOST_MACS and activations <= _MOST_BYTES and op.weights <= _MOST_WEIGHTS


def _work(op: Operator) -> int:
    return op.macs + _ELEMENT_WORK * (op.input_elements + op.output_elements)
