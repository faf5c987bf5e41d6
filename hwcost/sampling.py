"""Which operators a profile measures: those of search spaces, and a seeded sample of what other networks execute.

A predictor is fitted per family and learns most from operators like those it will be asked about. So every family has a
share of the sample, enough to fit and to hold out, and draws its operators at the sizes and widths of published
networks: plain convolutions (VGG, arXiv 1409.1556), residual bottlenecks (ResNet, 1512.03385), dense growth (DenseNet,
1608.06993), inverted residuals (MobileNetV2, 1801.04381), grouped convolutions (ResNeXt, 1611.05431; ShuffleNet,
1707.01083), and what stands between and behind them. What takes long to time is left out.
"""

import heapq
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final, TypeVar, get_args

import numpy as np

from hwcost.errors import InvalidSpaceError
from hwcost.ops import (
    ActivationName,
    Boundary,
    BoundaryFunction,
    Conv,
    Elementwise,
    ElementwiseFunction,
    Gemm,
    Operator,
    Pool,
    PoolFunction,
)
from hwcost.space import SearchSpace

_IMAGES: Final = (8, 16, 28, 32, 64, 96, 112, 160, 192, 224)
_WIDTHS: Final = (8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
_CLASSES: Final = (2, 10, 35, 100, 200, 1000)
_FOLDED: Final[tuple[ActivationName, ...]] = ("none", "relu", "clip")
_CHANNELS_LAST: Final = (0, 2, 3, 1)
_CHANNELS_FIRST: Final = (0, 3, 1, 2)
_MOST_MACS: Final = 100_000_000
_MOST_ELEMENTS: Final = 600_000
_MOST_WEIGHTS: Final = 2_500_000
_MOST_DRAWS: Final = 2_000
"""Draws in vain after which a family has no more operators."""

_Draw = Callable[[np.random.Generator], Operator]
_Picked = TypeVar("_Picked")


def default_operators(
    images: Iterable[tuple[int, int, int]], seed: int = 0, count: int | None = None
) -> tuple[Operator, ...]:
    """What `hwcost profile` measures: every operator of the search spaces of these images (channels, height, width),
    and `count` of other networks; None is every family's whole share."""
    spaces = [SearchSpace.for_image(image, 10) for image in images]
    operators = [op for space in spaces for op in space.operators()]
    return tuple(dict.fromkeys((*operators, *prior_operators(seed, count))))


def prior_operators(seed: int, count: int | None = None) -> tuple[Operator, ...]:
    """`count` distinct operators of real networks, each family in proportion to its share (None: the whole shares).

    The same for the same seed, in any process, and the first ones of any larger sample. Raises `InvalidSpaceError`.
    """
    wanted = sum(share for share, _ in _FAMILIES.values()) if count is None else count
    families = [_ranked(name, share, draw, seed) for name, (share, draw) in _FAMILIES.items()]
    try:
        return tuple(op for _, _, op in islice(heapq.merge(*families), wanted))
    except _FamilyExhausted:
        raise InvalidSpaceError(
            f"a sample of operators holds as many as its families have, got a wish for {wanted}: ask for fewer"
        ) from None


class _FamilyExhausted(Exception):
    """A family was asked for more operators than it has."""


def _ranked(name: str, share: int, draw: _Draw, seed: int) -> Iterator[tuple[float, str, Operator]]:
    """The operators of a family in the order of drawing, ranked so that every prefix of a merge holds the shares."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    found: set[Operator] = set()
    while True:
        op = next((op for op in (draw(rng) for _ in range(_MOST_DRAWS)) if op not in found and _affordable(op)), None)
        if op is None:
            raise _FamilyExhausted
        yield (len(found) + 0.5) / share, name, op
        found.add(op)


def _affordable(op: Operator) -> bool:
    size = max(op.input_elements, op.output_elements)
    return op.macs <= _MOST_MACS and size <= _MOST_ELEMENTS and op.weights <= _MOST_WEIGHTS


def _pick(rng: np.random.Generator, choices: tuple[_Picked, ...]) -> _Picked:
    return choices[int(rng.integers(len(choices)))]


def _plane(rng: np.random.Generator, smallest: int = 1) -> tuple[int, int]:
    """Channels and side of a feature map: an image halved some times, wider the deeper."""
    image, halvings = _pick(rng, _IMAGES), int(rng.integers(0, 6))
    side = max(image >> halvings, smallest)
    return _pick(rng, tuple(width for width in _WIDTHS if width <= 48 * 2**halvings)), side


def _shape(rng: np.random.Generator) -> tuple[int, int, int, int]:
    channels, side = _plane(rng)
    return 1, channels, side, side


def _image(rng: np.random.Generator) -> tuple[int, int, int, int]:
    side = _pick(rng, _IMAGES)
    return 1, _pick(rng, (1, 3, 3)), side, side


def _dense(rng: np.random.Generator) -> Operator:
    """A stem, a plain convolution, a bottleneck's, a shortcut, a growth, an expansion or a projection."""
    channels, side = _plane(rng)
    wide, hidden, growth = 4 * channels, channels * _pick(rng, (3, 4, 6)), _pick(rng, (12, 24, 32))
    kinds = (
        (_pick(rng, (1, 3, 3)), _pick(rng, (16, 24, 32, 64)), _pick(rng, _IMAGES), _pick(rng, (3, 3, 5, 7)), (1, 2)),
        (channels, _pick(rng, (channels, 2 * channels)), side, 3, (1,)),
        (wide, channels, side, 1, (1,)),
        (channels, channels, side, 3, (1, 2)),
        (channels, wide, side, 1, (1,)),
        (channels, _pick(rng, (channels, 2 * channels)), side, 1, (2,)),
        (4 * growth, growth, side, 3, (1,)),
        (channels, hidden, side, 1, (1,)),
        (hidden, _pick(rng, _WIDTHS), side, 1, (1,)),
    )
    taken, made, size, kernel, strides = _pick(rng, kinds)
    return Conv.square(taken, made, size, kernel, _pick(rng, strides), activation=_pick(rng, _FOLDED))


def _depthwise(rng: np.random.Generator) -> Operator:
    channels, side = _plane(rng)
    hidden = channels * _pick(rng, (1, 3, 4, 6))
    kernel, stride = _pick(rng, (3, 3, 5, 5, 7)), _pick(rng, (1, 1, 2))
    return Conv.square(hidden, hidden, side, kernel, stride, groups=hidden, activation=_pick(rng, _FOLDED))


def _grouped(rng: np.random.Generator) -> Operator:
    channels, side = _plane(rng)
    groups = _pick(rng, tuple(groups for groups in (2, 4, 8, 32) if 4 * groups <= channels))
    kernel, stride = _pick(rng, ((1, 1), (3, 1), (3, 1), (3, 2)))
    return Conv.square(channels, channels, side, kernel, stride, groups=groups, activation=_pick(rng, _FOLDED))


def _classifier(rng: np.random.Generator) -> Operator:
    return Gemm(1, _pick(rng, (*_WIDTHS, 640, 1280, 2048)), _pick(rng, (*_CLASSES, *_WIDTHS)))


def _product(rng: np.random.Generator) -> Operator:
    rows, activation = _pick(rng, (2, 4, 8, 16, 49, 64, 196)), _pick(rng, _FOLDED[:2])
    return Gemm(rows, _pick(rng, _WIDTHS), _pick(rng, _WIDTHS), activation)


def _pool(function: PoolFunction, rng: np.random.Generator) -> Operator:
    channels, side = _plane(rng, smallest=3)
    if function in ("global_average", "global_max"):
        return Pool(function, channels, side, side, (side, side))
    kernel, stride, pad = _pick(rng, ((2, 2, 0), (3, 2, 1), (3, 1, 1)))
    return Pool(function, channels, side, side, (kernel, kernel), (stride, stride), (pad, pad, pad, pad))


def _elementwise(function: ElementwiseFunction, rng: np.random.Generator) -> Operator:
    batch, channels, height, width = _shape(rng)
    if function == "concat":
        return Elementwise(function, (batch, channels + _pick(rng, (12, 24, 32, channels)), height, width))
    if function == "softmax" and rng.integers(2):
        return Elementwise(function, (batch, _pick(rng, (*_CLASSES, *_WIDTHS))))
    return Elementwise(function, (batch, channels, height, width))


def _boundary(function: BoundaryFunction, rng: np.random.Generator) -> Operator:
    batch, channels, height, width = _shape(rng)
    if function in ("reorder_input", "reorder_output"):  # the runtime blocks channels that fill its blocks
        return Boundary(function, (batch, max(channels // 16, 1) * 16, height, width))
    if function == "quantize" and rng.integers(2):
        return Boundary(function, _image(rng))
    if function == "dequantize" and rng.integers(2):
        return Boundary(function, (batch, _pick(rng, (*_CLASSES, *_WIDTHS))))
    return Boundary(function, (batch, channels, height, width))


def _to_channels_last(rng: np.random.Generator) -> Operator:
    return Boundary("transpose", _image(rng) if rng.integers(2) else _shape(rng), _CHANNELS_LAST)


def _to_channels_first(rng: np.random.Generator) -> Operator:
    batch, channels, height, width = _shape(rng)
    return Boundary("transpose", (batch, height, width, channels), _CHANNELS_FIRST)


_ENOUGH: Final = 10
_MORE_IN_SPACES: Final = {"add": 4, "global_average": 8, "quantize": 8, "reshape": 8}
"""Functions of which the search spaces themselves have some."""
_FAMILIES: Final[dict[str, tuple[int, _Draw]]] = {
    "dense convolution": (48, _dense),
    "depthwise convolution": (10, _depthwise),
    "grouped convolution": (16, _grouped),
    "product of one row": (15, _classifier),
    "product of more rows": (15, _product),
    "to channels last": (8, _to_channels_last),
    "to channels first": (8, _to_channels_first),
    **{
        name: (_MORE_IN_SPACES.get(name, _ENOUGH), partial(draw, name))
        for draw, function in (
            (_pool, PoolFunction),
            (_elementwise, ElementwiseFunction),
            (_boundary, BoundaryFunction),
        )
        for name in get_args(function)
        if name != "transpose"
    },
}
"""The share of each family, and how it draws an operator. Matrix products have a kernel at most bit-widths, so there
are no more of them than needed."""
