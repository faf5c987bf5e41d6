"""Draws of the operators that have a kernel of their own in every profile: convolutions, products, pools, layouts."""

from typing import Final

import numpy as np

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
from hwcost.prior.draws import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    CLASSES,
    FOLDED,
    HEADS,
    MELTED,
    Shape,
    channels_last,
    draw_map,
    draw_planes,
    draw_sides,
    draw_tokens,
    draw_width,
    pick,
)


def _convolution(
    rng: np.random.Generator, taken: int, made: int, kernel: tuple[int, int], stride: int, groups: int = 1
) -> Conv:
    """With a plane that its kernel fits into, padded as networks pad it: to keep the size, or not at all."""
    height, width = draw_planes(rng, max(taken, made // stride**2))
    dilation = pick(rng, (2, 4)) if max(kernel) > 1 and stride == 1 and rng.random() < 0.04 else 1
    pads = [dilation * (size - 1) // 2 for size in kernel]
    if rng.random() < 0.1 and min(height, width) >= max(kernel) * dilation:
        pads = [0, 0]
    odd = int(stride == 2 and max(kernel) > 1 and rng.random() < 0.15)  # one side padded more, as TensorFlow does
    starts = [max(pad - odd, 0) for pad in pads]
    return Conv(
        taken,
        made,
        max(height, kernel[0]),
        max(width, kernel[1]),
        kernel,
        (stride, stride),
        (starts[0], starts[1], pads[0], pads[1]),
        (dilation, dilation),
        groups,
        pick(rng, MELTED if rng.random() < 0.08 else FOLDED),
    )


def dense(rng: np.random.Generator) -> Operator:
    """A stem, a pointwise convolution (as bottlenecks, growths, expansions and projections are), or a spatial one."""
    kind = rng.random()
    if kind < 0.1:
        kernel, stride = pick(rng, (3, 3, 5, 7, 11)), pick(rng, (1, 2, 2, 4))
        return _convolution(rng, pick(rng, (1, 3, 3, 3)), draw_width(rng, 96), (kernel, kernel), stride)
    if kind < 0.5:
        narrow = rng.random() < 0.15  # fewer channels than a block, as thin networks have next to their largest planes
        taken = pick(rng, (4, 8, 8, 12)) if narrow else draw_width(rng, 2048)
        return _convolution(rng, taken, draw_width(rng, 128 if narrow else 2048), (1, 1), pick(rng, (1,) * 5 + (2,)))
    taken, made = draw_width(rng, 512), draw_width(rng, 512)
    if kind < 0.75:
        made = taken = pick(rng, (taken, made))
    window = pick(rng, ((3, 3),) * 10 + ((5, 5),) * 3 + ((7, 7), (2, 2), (4, 4), (1, 3), (3, 1), (1, 7), (7, 1)))
    stride = window[0] if window in ((2, 2), (4, 4)) else pick(rng, (1, 1, 1, 2))
    return _convolution(rng, taken, made, window, stride)


def line(rng: np.random.Generator) -> Operator:
    """Of sound, of a sensor, of text: one axis, the width or the height; the first layer with a long window and
    stride."""
    upright, activation = rng.random() < 0.5, pick(rng, FOLDED)

    def along(size: int, other: int) -> tuple[int, int]:
        return (size, other) if upright else (other, size)

    if rng.random() < 0.2:
        length, kernel = pick(rng, (400, 640, 832, 1000, 4000, 16000)), pick(rng, (16, 40, 64, 80, 128, 256))
        window, stride = along(kernel, 1), along(pick(rng, (kernel // 4, kernel // 2)), 1)
        return Conv(pick(rng, (1, 1, 2, 3)), draw_width(rng, 258), *along(length, 1), window, stride)
    length, kernel = (
        pick(rng, (1, 4, 8, 16, 25, 49, 64, 80, 100, 128, 250, 500, 1000)),
        pick(rng, (1, 3, 3, 5, 7, 9, 25)),
    )
    taken, made, pads = draw_width(rng, 512), draw_width(rng, 512), along(kernel // 2, 0)
    groups, stride = 1, along(pick(rng, (1, 1, 1, 2)), 1)
    if rng.random() < 0.25:
        made = groups = taken
    return Conv(taken, made, *along(length, 1), along(kernel, 1), stride, (*pads, *pads), (1, 1), groups, activation)


def residual(rng: np.random.Generator) -> Operator:
    """The last convolution of a residual block, with what it is added to."""
    height, width = draw_sides(rng)
    kernel, activation = pick(rng, (1, 1, 3)), pick(rng, FOLDED[:2])
    taken, made, pad = draw_width(rng, 512), draw_width(rng, 1024 if kernel == 1 else 512), kernel // 2
    taken, made = (max(round(width / 8), 1) * 8 for width in (taken, made))  # what fills no block does not fuse
    return Conv(taken, made, height, width, (kernel, kernel), pads=(pad,) * 4, activation=activation, residual=True)


def depthwise(rng: np.random.Generator) -> Operator:
    channels, kernel = draw_width(rng, 1536), pick(rng, (3, 3, 3, 5, 5, 7))
    if rng.random() < 0.3:  # of no whole vector: another kernel
        channels |= 1
    return _convolution(rng, channels, channels, (kernel, kernel), pick(rng, (1, 1, 2)), channels)


def scaling(rng: np.random.Generator) -> Operator:
    """A batch norm that could not be folded: the runtime makes a 1x1 depthwise convolution of it."""
    _, channels, height, width = draw_map(rng)
    return Conv(channels, channels, height, width, (1, 1), groups=channels, activation=pick(rng, FOLDED[:2]))


def grouped(rng: np.random.Generator) -> Operator:
    """Groups of equal width (ResNeXt, RegNet), or few groups (ShuffleNet, AlexNet)."""
    groups = pick(rng, (2, 2, 3, 4, 4, 8, 16, 32))
    taken, made = (groups * max(round(draw_width(rng, 512) / groups / 4), 1) * 4 for _ in range(2))
    if rng.random() < 0.6:
        made = taken
    kernel, stride = pick(rng, ((1, 1), (1, 1), (3, 1), (3, 1), (3, 2), (5, 1)))
    return _convolution(rng, taken, made, (kernel, kernel), stride, groups)


def classifier(rng: np.random.Generator) -> Operator:
    return Gemm(1, draw_width(rng, 4096), pick(rng, (*CLASSES, draw_width(rng, 4096), draw_width(rng, 4096))))


def excitation(rng: np.random.Generator) -> Operator:
    """A pointwise convolution of a 1x1 plane, as squeeze-and-excitation has."""
    wide, narrow = draw_width(rng, 1152), draw_width(rng, 96)
    taken, made = pick(rng, ((wide, narrow), (narrow, wide)))
    activation: ActivationName = pick(rng, ("none", "relu"))
    return Conv(taken, made, 1, 1, (1, 1), activation=activation)


def large_classifier(rng: np.random.Generator) -> Operator:
    """Weights that no cache holds: before the last layers (AlexNet, VGG), or of as many letters as there are, for
    every place of a line (recognisers of text)."""
    if rng.random() < 0.5:
        return Gemm(pick(rng, (12, 20, 40, 80)), draw_width(rng, 1024), pick(rng, (6625, 8210, 18385)))
    return Gemm(1, pick(rng, (4096, 6400, 9216, 12544, 18432, 25088)), pick(rng, (1000, 2048, 4096)))


def product(rng: np.random.Generator) -> Operator:
    return Gemm(draw_tokens(rng)[1], draw_width(rng, 1536), draw_width(rng, 1536), pick(rng, FOLDED[:2]))


_POOLED: Final = ((2, 2, 0), (2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (5, 1, 2), (7, 1, 3))
"""Windows of pools, their strides and padding."""
_AVERAGED: Final = (*_POOLED, (2, 2, 0), *((3, 1, 1),) * 5)
"""Of averages, more as inceptions and transitions of densenets have them."""


def pool(function: PoolFunction, rng: np.random.Generator) -> Operator:
    _, channels, height, width = draw_map(rng, smallest=3)
    if rng.random() < 0.25:  # channels that fill no block, so that another kernel runs
        channels += int(rng.integers(1, 8))
    if function in ("global_average", "global_max"):
        return Pool(function, channels, height, width, (height, width))
    kernel, stride, pad = pick(rng, _AVERAGED if function == "average" else _POOLED)
    if function == "average" and rng.random() < 0.2:
        return Pool(function, channels, height, width, (height, width))
    kernel = min(kernel, height + 2 * pad, width + 2 * pad)
    return Pool(function, channels, height, width, (kernel, kernel), (stride, stride), (pad, pad, pad, pad))


def elementwise(function: ElementwiseFunction, rng: np.random.Generator) -> Operator:
    return Elementwise(function, draw_map(rng) if rng.random() < 0.8 else draw_tokens(rng))


def boundary(function: BoundaryFunction, rng: np.random.Generator) -> Operator:
    shape = draw_map(rng)
    if function == "reorder_input":  # the runtime blocks channels by fours at least
        return Boundary(function, (1, max(shape[1] // 4, 1) * 4, *shape[2:]))
    if function in ("quantize", "dequantize"):
        small: tuple[Shape, ...] = (
            (1, pick(rng, (*CLASSES, draw_width(rng)))),
            draw_tokens(rng),
            (1, 3, *draw_sides(rng)),
        )
        return Boundary(function, pick(rng, (shape, shape, *small)))
    return Boundary(function, shape)


def weights(rng: np.random.Generator) -> Operator:
    """Weights that are stored in 8 bits and read anew in every run."""
    kernel = pick(rng, (1, 1, 3, 3, 5))
    return Boundary("dequantize", (draw_width(rng, 512), draw_width(rng, 512), kernel, kernel))


def to_channels_last(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng) if rng.random() < 0.8 else (1, 3, *draw_sides(rng))
    return Boundary("transpose", shape, CHANNELS_LAST)


def to_channels_first(rng: np.random.Generator) -> Operator:
    return Boundary("transpose", channels_last(draw_map(rng)), CHANNELS_FIRST)


def shuffle(rng: np.random.Generator) -> Operator:
    """The transpose of a channel shuffle, or of attention heads, or of the last two axes."""
    kind = rng.random()
    if kind < 0.4:
        _, channels, height, width = draw_map(rng)
        groups = pick(rng, (2, 2, 3, 4, 8))
        each = max(channels // groups, 1)
        last = (1, height, width, groups, each)  # the runtime may have moved the channels before
        turned = (
            ((1, groups, each, height, width), (0, 2, 1, 3, 4)),
            (last, pick(rng, ((0, 4, 3, 1, 2), (0, 1, 2, 4, 3)))),
        )
        return Boundary("transpose", *pick(rng, turned))
    _, tokens, width = draw_tokens(rng)
    heads = pick(rng, HEADS)
    if kind < 0.8:
        permutation = pick(rng, ((0, 2, 1, 3), (0, 2, 3, 1)))
        return Boundary("transpose", (1, tokens, heads, max(width // heads, 1)), permutation)
    return Boundary("transpose", (1, tokens, width), (0, 2, 1))
