"""Which operators a profile measures: those of the default search spaces, and a seeded sample of real networks' own.

A predictor learns most from operators like those it will be asked about, so the sample walks through published
families at random sizes and widths and takes what their blocks execute: plain convolutions (VGG, arXiv 1409.1556),
residual bottlenecks (ResNet, 1512.03385), dense growth (DenseNet, 1608.06993), inverted residuals (MobileNetV2,
1801.04381), and the classifiers, activations and layout changes between them. What takes long to time is left out.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from hwcost.errors import InvalidSpaceError
from hwcost.ops import ActivationName, Boundary, Conv, Elementwise, ElementwiseFunction, Gemm, Operator, Pool
from hwcost.space import SearchSpace

_IMAGES: Final = (8, 16, 28, 32, 64, 96, 112, 160, 192, 224)
_WIDTHS: Final = (8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
_ACTIVATIONS: Final[tuple[ElementwiseFunction, ...]] = (
    "relu",
    "clip",
    "sigmoid",
    "hardswish",
    "hardsigmoid",
    "tanh",
    "leakyrelu",
    "softmax",
)
_MOST_MACS: Final = 150_000_000
_MOST_ELEMENTS: Final = 1_000_000
_MOST_WEIGHTS: Final = 2_500_000
_MOST_WALKS: Final = 10_000


def default_operators(seed: int = 0, count: int = 150) -> tuple[Operator, ...]:
    """What `hwcost profile` measures: every operator of the 8x8 and 32x32 search spaces, and `count` more."""
    spaces = (SearchSpace.for_image((1, 8, 8), 10), SearchSpace.for_image((3, 32, 32), 10))
    operators = dict.fromkeys(op for space in spaces for op in space.operators())
    return tuple(dict.fromkeys((*operators, *prior_operators(seed, count))))


def prior_operators(seed: int, count: int) -> tuple[Operator, ...]:
    """`count` distinct operators of real network families; the same for the same seed, in any process."""
    rng = np.random.default_rng(seed)
    walks = (_plain, _bottleneck, _dense, _inverted_residual, _head, _around)
    found: dict[Operator, None] = {}
    for walk in range(_MOST_WALKS):
        for op in walks[walk % len(walks)](rng):
            if len(found) == count:
                return tuple(found)
            if _affordable(op):
                found[op] = None
    raise InvalidSpaceError(
        f"a sample of operators holds as many as these families have, got a wish for {count}: ask for fewer"
    )


def _affordable(op: Operator) -> bool:
    size = max(op.input_elements, op.output_elements)
    return op.macs <= _MOST_MACS and size <= _MOST_ELEMENTS and op.weights <= _MOST_WEIGHTS


def _pick(rng: np.random.Generator, choices: tuple[int, ...]) -> int:
    return choices[int(rng.integers(len(choices)))]


def _plane(rng: np.random.Generator) -> tuple[int, int]:
    """Channels and side of a feature map: an image halved some times, wider the deeper."""
    image, halvings = _pick(rng, _IMAGES), int(rng.integers(0, 6))
    side = max(image >> halvings, 1)
    widths = tuple(width for width in _WIDTHS if width <= 48 * 2**halvings)
    return _pick(rng, widths), side


def _plain(rng: np.random.Generator) -> Iterator[Operator]:
    """A stem, a convolution, and a maximum pool."""
    channels, side = _plane(rng)
    image, kernel = _pick(rng, _IMAGES), _pick(rng, (3, 3, 5, 7))
    yield Conv.square(3, _pick(rng, (16, 24, 32, 64)), image, kernel, stride=_pick(rng, (1, 2)), activation="relu")
    yield Conv.square(channels, _pick(rng, (channels, 2 * channels)), side, 3, activation="relu")
    if side >= 2:
        yield Pool("max", channels, side, side, (2, 2), (2, 2))


def _bottleneck(rng: np.random.Generator) -> Iterator[Operator]:
    """1x1, 3x3 and 1x1 convolutions, their shortcut and their sum."""
    channels, side = _plane(rng)
    stride, wide = _pick(rng, (1, 2)), channels * _pick(rng, (1, 4))
    yield Conv.square(wide, channels, side, 1, activation="relu")
    yield Conv.square(channels, channels, side, 3, stride, activation="relu", groups=_pick(rng, (1, 1, 2, 4)))
    after = (side - 1) // stride + 1
    yield Conv.square(channels, wide, after, 1)
    yield Conv.square(wide, wide, side, 1, stride=2)
    yield Elementwise("add", (1, wide, after, after))


def _dense(rng: np.random.Generator) -> Iterator[Operator]:
    """Growth by concatenation, and a transition."""
    channels, side = _plane(rng)
    growth = _pick(rng, (12, 24, 32))
    yield Conv.square(channels, 4 * growth, side, 1, activation="relu")
    yield Conv.square(4 * growth, growth, side, 3)
    yield Elementwise("concat", (1, channels + growth, side, side))
    if side >= 3:
        yield Pool("average", channels, side, side, (2, 2), (2, 2))
        yield Pool("max", channels, side, side, (3, 3), (2, 2), (1, 1, 1, 1))


def _inverted_residual(rng: np.random.Generator) -> Iterator[Operator]:
    """Expansion, depthwise convolution and projection, with and without an activation inside the kernel."""
    channels, side = _plane(rng)
    activations: tuple[ActivationName, ...] = ("none", "relu", "clip")
    activation = activations[int(rng.integers(len(activations)))]
    hidden = channels * _pick(rng, (1, 3, 4, 6))
    kernel, stride = _pick(rng, (3, 3, 5, 5, 7)), _pick(rng, (1, 1, 2))
    after = (side - 1) // stride + 1
    yield Conv.square(channels, hidden, side, 1, activation=activation)
    yield Conv.square(hidden, hidden, side, kernel, stride, groups=hidden, activation=activation)
    yield Conv.square(hidden, _pick(rng, _WIDTHS), after, 1)
    yield Elementwise("add", (1, channels, side, side))
    yield Elementwise("mul", (1, hidden, after, after))


def _head(rng: np.random.Generator) -> Iterator[Operator]:
    """Global pooling and classifiers."""
    channels, side = _plane(rng)
    classes = _pick(rng, (2, 10, 35, 100, 200, 1000))
    yield Pool.global_average(channels, side, side)
    yield Gemm(1, channels, classes)
    yield Gemm(_pick(rng, (1, 1, 8, 64)), _pick(rng, _WIDTHS), _pick(rng, _WIDTHS), activation="relu")
    yield Gemm(_pick(rng, (1, 4, 16, 49)), _pick(rng, _WIDTHS), _pick(rng, _WIDTHS))
    yield Boundary("dequantize", (1, classes))


def _around(rng: np.random.Generator) -> Iterator[Operator]:
    """What stands between kernels: activations, layout changes, quantisation."""
    channels, side = _plane(rng)
    image, shape = _pick(rng, _IMAGES), (1, channels, side, side)
    yield Elementwise(_ACTIVATIONS[int(rng.integers(len(_ACTIVATIONS)))], shape)
    yield Boundary("transpose", shape, (0, 2, 3, 1))
    yield Boundary("transpose", (1, side, side, channels), (0, 3, 1, 2))
    yield Boundary("quantize", (1, 3, image, image) if rng.integers(2) else shape)
    yield Boundary("dequantize", shape)
    yield Boundary("reshape", shape)
    if channels % 16 == 0:
        yield Boundary("reorder_input", shape)
        yield Boundary("reorder_output", shape)
