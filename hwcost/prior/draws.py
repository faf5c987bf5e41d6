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
CLASSES: Final = (2, 10, 35, 100, 200, 1000)
FOLDED: Final[tuple[ActivationName, ...]] = ("none", "relu", "clip")
MELTED: Final[tuple[ActivationName, ...]] = ("hardswish", "hardswish", "hardsigmoid", "leakyrelu", "sigmoid")
"""Activations that become part of a float convolution, and of no int8 one."""
CHANNELS_LAST: Final = (0, 2, 3, 1)
CHANNELS_FIRST: Final = (0, 3, 1, 2)
HEADS: Final = (1, 2, 3, 4, 6, 8, 12)


def pick(rng: np.random.Generator, choices: Sequence[_Picked]) -> _Picked:
    return choices[int(rng.integers(len(choices)))]


def draw_width(rng: np.random.Generator, most: int = 1024) -> int:
    """A number of channels, even over the octaves: mostly a multiple of 8, now and then of 4, or any."""
    count = math.exp(rng.uniform(math.log(8), math.log(most)))
    unit = pick(rng, (16, 8, 8, 8, 4, 1))
    return max(round(count / unit), 1) * unit


def draw_side(rng: np.random.Generator, smallest: int = 1) -> int:
    """The side of a feature map: an image's, halved some times; halving rounds either way."""
    image, halvings = pick(rng, IMAGES), int(rng.integers(0, 6))
    return max((image >> halvings) + pick(rng, (0, 0, 0, 0, 1, -1)), smallest)


def draw_sides(rng: np.random.Generator, smallest: int = 1) -> tuple[int, int]:
    height = draw_side(rng, smallest)
    return height, height if rng.random() < 0.8 else draw_side(rng, smallest)


def draw_map(rng: np.random.Generator, smallest: int = 1) -> tuple[int, int, int, int]:
    """(1, channels, height, width), wider where the plane is smaller."""
    height, width = draw_sides(rng, smallest)
    return 1, draw_width(rng, min(2048, max(16, 12_000 // max(height, width)))), height, width


def channels_last(shape: Shape) -> Shape:
    """A feature map with its channels last."""
    return shape[0], *shape[2:], shape[1]


def draw_tokens(rng: np.random.Generator) -> tuple[int, int, int]:
    """(1, tokens, width) of a small transformer."""
    return 1, pick(rng, (16, 17, 49, 50, 64, 65, 128, 144, 196, 197, 256)), draw_width(rng, 768)
