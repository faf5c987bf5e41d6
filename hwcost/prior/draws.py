"""Sizes as published networks have them, drawn at random: widths, planes, feature maps, tokens."""

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from hwcost.ops import ActivationName, Operator

Draw = Callable[[np.random.Generator], Operator]
Shape = tuple[int, ...]
_Picked = TypeVar("_Picked")

IMAGES: Final = (8, 16, 28, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 416, 640)
LARGE_IMAGES: Final = (320, 416, 480, 512, 608, 640, 800, 960)
"""What detectors look at."""
CLASSES: Final = (2, 10, 35, 100, 200, 1000)
FOLDED: Final[tuple[ActivationName, ...]] = ("none", "relu", "clip")
MELTED: Final[tuple[ActivationName, ...]] = ("hardswish", "hardswish", "hardsigmoid", "leakyrelu", "sigmoid")
"""Activations that become part of a float convolution, and of no int8 one."""
CHANNELS_LAST: Final = (0, 2, 3, 1)
CHANNELS_FIRST: Final = (0, 3, 1, 2)
HEADS: Final = (1, 2, 3, 4, 6, 8, 12)


_USUAL_SIDES: Final = (7, 14, 28, 56, 112)
_OFTEN_USUAL: Final = 0.2
"""What most published networks make of an image of 224, and how often a side is such."""
_OFTEN_LARGE: Final = 0.1
"""Share of feature maps, and of convolutions' planes, that are as large as a detector's first ones."""
_LARGE: Final = 7.5e5, 4e6
"""Elements of such a map: what no cache holds."""


def pick(rng: np.random.Generator, choices: Sequence[_Picked]) -> _Picked:
    return choices[int(rng.integers(len(choices)))]


def draw_width(rng: np.random.Generator, most: int = 1024) -> int:
    """A number of channels, even over the octaves: mostly a multiple of 8, now and then of 4, or any."""
    count = math.exp(rng.uniform(math.log(8), math.log(most)))
    unit = pick(rng, (16, 8, 8, 8, 4, 1))
    return max(round(count / unit), 1) * unit


def draw_side(rng: np.random.Generator, smallest: int = 1) -> int:
    """The side of a feature map: an image's, halved some times; halving rounds either way. Often one of ImageNet's."""
    image, halvings = pick(rng, IMAGES), int(rng.integers(0, 6))
    side, own = (image >> halvings) + pick(rng, (0, 0, 0, 0, 1, -1)), rng.spawn(1)[0]
    return max(pick(own, _USUAL_SIDES) if own.random() < _OFTEN_USUAL else side, smallest)


def draw_sides(rng: np.random.Generator, smallest: int = 1) -> tuple[int, int]:
    height = draw_side(rng, smallest)
    return height, height if rng.random() < 0.8 else draw_side(rng, smallest)


def _large(rng: np.random.Generator) -> np.random.Generator | None:
    """Draws the sizes of what is to be as large as a detector's; like that of a usual side, by numbers of its own."""
    own = rng.spawn(1)[0]
    return own if own.random() < _OFTEN_LARGE else None


def _large_sides(rng: np.random.Generator) -> tuple[int, int]:
    """Of a large image, or halved once or twice."""
    image, other, halvings = pick(rng, LARGE_IMAGES), pick(rng, LARGE_IMAGES), int(rng.integers(0, 3))
    return image >> halvings, (image if rng.random() < 0.5 else other) >> halvings


def draw_planes(rng: np.random.Generator, channels: int) -> tuple[int, int]:
    """The sides of what a convolution reads, of which so many channels are to be stored."""
    (height, width), large = draw_sides(rng), _large(rng)
    if large is not None:
        height, width = _large_sides(large)
        while height * width * channels > _LARGE[1]:
            height, width = height // 2, width // 2
    return height, width


def draw_map(rng: np.random.Generator, smallest: int = 1) -> tuple[int, int, int, int]:
    """(1, channels, height, width), wider where the plane is smaller; now and then one that no cache holds."""
    height, width = draw_sides(rng, smallest)
    channels, large = draw_width(rng, min(2048, max(16, 12_000 // max(height, width)))), _large(rng)
    if large is not None:
        height, width = _large_sides(large)
        fewest, most = map(math.log, _LARGE)
        elements = math.exp(large.uniform(fewest, most))
        channels = max(round(elements / (height * width) / 8), 1) * 8
    return 1, channels, height, width


def channels_last(shape: Shape) -> Shape:
    """A feature map with its channels last."""
    return shape[0], *shape[2:], shape[1]


def draw_tokens(rng: np.random.Generator) -> tuple[int, int, int]:
    """(1, tokens, width) of a small transformer."""
    return 1, pick(rng, (16, 17, 49, 50, 64, 65, 128, 144, 196, 197, 256)), draw_width(rng, 768)
