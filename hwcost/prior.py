"""What networks are made of: families of operators, and how an operator of each is drawn.

Sizes and widths are those of published networks: plain convolutions (VGG, arXiv 1409.1556), residual bottlenecks
(ResNet, 1512.03385; ResNeXt, 1611.05431), dense growth (DenseNet, 1608.06993), inverted residuals (MobileNetV2,
1801.04381), channel shuffles (ShuffleNet, 1707.01083), attention (1706.03762; on images, 2010.11929), and what
quantisation tools and the runtime's optimiser leave between them. Draws are random on purpose: no network's operators
are copied. The widths that a draw favours are multiples of 8, as in most networks; others come up too.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar, get_args

import numpy as np

from hwcost.ops import (
    ActivationName,
    Boundary,
    BoundaryFunction,
    Conv,
    Elementwise,
    ElementwiseFunction,
    Gemm,
    Node,
    Operator,
    Pool,
    PoolFunction,
    TensorType,
)

Draw = Callable[[np.random.Generator], Operator]
Shape = tuple[int, ...]
_Picked = TypeVar("_Picked")

_IMAGES: Final = (8, 16, 28, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
_CLASSES: Final = (2, 10, 35, 100, 200, 1000)
_FOLDED: Final[tuple[ActivationName, ...]] = ("none", "relu", "clip")
_CHANNELS_LAST: Final = (0, 2, 3, 1)
_CHANNELS_FIRST: Final = (0, 3, 1, 2)
_HEADS: Final = (1, 2, 3, 4, 6, 8, 12)


def _pick(rng: np.random.Generator, choices: Sequence[_Picked]) -> _Picked:
    return choices[int(rng.integers(len(choices)))]


def _width(rng: np.random.Generator, most: int = 1024) -> int:
    """A number of channels, even over the octaves: mostly a multiple of 8, now and then of 4, or any."""
    count = math.exp(rng.uniform(math.log(8), math.log(most)))
    unit = _pick(rng, (16, 8, 8, 8, 4, 1))
    return max(round(count / unit), 1) * unit


def _side(rng: np.random.Generator, smallest: int = 1) -> int:
    """The side of a feature map: an image's, halved some times; halving rounds either way."""
    image, halvings = _pick(rng, _IMAGES), int(rng.integers(0, 6))
    return max((image >> halvings) + _pick(rng, (0, 0, 0, 0, 1, -1)), smallest)


def _sides(rng: np.random.Generator, smallest: int = 1) -> tuple[int, int]:
    height = _side(rng, smallest)
    return height, height if rng.random() < 0.8 else _side(rng, smallest)


def _map(rng: np.random.Generator, smallest: int = 1) -> tuple[int, int, int, int]:
    """(1, channels, height, width), wider where the plane is smaller."""
    height, width = _sides(rng, smallest)
    return 1, _width(rng, min(2048, max(16, 12_000 // max(height, width)))), height, width


def _last(shape: Shape) -> Shape:
    """A feature map with its channels last."""
    return shape[0], *shape[2:], shape[1]


def _tokens(rng: np.random.Generator) -> tuple[int, int, int]:
    """(1, tokens, width) of a small transformer."""
    return 1, _pick(rng, (16, 17, 49, 50, 64, 65, 128, 144, 196, 197, 256)), _width(rng, 768)


def _convolution(
    rng: np.random.Generator, taken: int, made: int, kernel: tuple[int, int], stride: int, groups: int = 1
) -> Conv:
    """With a plane that its kernel fits into, padded as networks pad it: to keep the size, or not at all."""
    height, width = _sides(rng)
    dilation = _pick(rng, (2, 4)) if max(kernel) > 1 and stride == 1 and rng.random() < 0.04 else 1
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
        _pick(rng, _FOLDED),
    )


def _dense(rng: np.random.Generator) -> Operator:
    """A stem, a pointwise convolution (as bottlenecks, growths, expansions and projections are), or a spatial one."""
    kind = rng.random()
    if kind < 0.1:
        kernel, stride = _pick(rng, (3, 3, 5, 7, 11)), _pick(rng, (1, 2, 2, 4))
        return _convolution(rng, _pick(rng, (1, 3, 3, 3)), _width(rng, 96), (kernel, kernel), stride)
    if kind < 0.5:
        return _convolution(rng, _width(rng, 2048), _width(rng, 2048), (1, 1), _pick(rng, (1, 1, 1, 1, 1, 2)))
    taken, made = _width(rng, 512), _width(rng, 512)
    if kind < 0.75:
        made = taken = _pick(rng, (taken, made))
    window = _pick(rng, ((3, 3),) * 10 + ((5, 5),) * 3 + ((7, 7), (2, 2), (4, 4), (1, 3), (3, 1), (1, 7), (7, 1)))
    stride = window[0] if window in ((2, 2), (4, 4)) else _pick(rng, (1, 1, 1, 2))
    return _convolution(rng, taken, made, window, stride)


def _residual(rng: np.random.Generator) -> Operator:
    """The last convolution of a residual block, with what it is added to."""
    height, width = _sides(rng)
    kernel, activation = _pick(rng, (1, 1, 3)), _pick(rng, _FOLDED[:2])
    taken, made, pad = _width(rng, 512), _width(rng, 1024 if kernel == 1 else 512), kernel // 2
    taken, made = (max(round(width / 8), 1) * 8 for width in (taken, made))  # what fills no block does not fuse
    return Conv(taken, made, height, width, (kernel, kernel), pads=(pad,) * 4, activation=activation, residual=True)


def _depthwise(rng: np.random.Generator) -> Operator:
    channels, kernel = _width(rng, 1536), _pick(rng, (3, 3, 3, 5, 5, 7))
    return _convolution(rng, channels, channels, (kernel, kernel), _pick(rng, (1, 1, 2)), channels)


def _scaling(rng: np.random.Generator) -> Operator:
    """A batch norm that could not be folded: the runtime makes a 1x1 depthwise convolution of it."""
    _, channels, height, width = _map(rng)
    return Conv(channels, channels, height, width, (1, 1), groups=channels, activation=_pick(rng, _FOLDED[:2]))


def _grouped(rng: np.random.Generator) -> Operator:
    """Groups of equal width (ResNeXt, RegNet), or few groups (ShuffleNet, AlexNet)."""
    groups = _pick(rng, (2, 2, 3, 4, 4, 8, 16, 32))
    taken, made = (groups * max(round(_width(rng, 512) / groups / 4), 1) * 4 for _ in range(2))
    if rng.random() < 0.6:
        made = taken
    kernel, stride = _pick(rng, ((1, 1), (1, 1), (3, 1), (3, 1), (3, 2), (5, 1)))
    return _convolution(rng, taken, made, (kernel, kernel), stride, groups)


def _classifier(rng: np.random.Generator) -> Operator:
    return Gemm(1, _width(rng, 4096), _pick(rng, (*_CLASSES, _width(rng, 4096), _width(rng, 4096))))


def _excitation(rng: np.random.Generator) -> Operator:
    """A pointwise convolution of a 1x1 plane, as squeeze-and-excitation has."""
    wide, narrow = _width(rng, 1152), _width(rng, 96)
    taken, made = _pick(rng, ((wide, narrow), (narrow, wide)))
    activation: ActivationName = _pick(rng, ("none", "relu"))
    return Conv(taken, made, 1, 1, (1, 1), activation=activation)


def _large_classifier(rng: np.random.Generator) -> Operator:
    """Weights that no cache holds (AlexNet, VGG)."""
    return Gemm(1, _pick(rng, (4096, 6400, 9216, 12544, 18432, 25088)), _pick(rng, (1000, 2048, 4096)))


def _product(rng: np.random.Generator) -> Operator:
    return Gemm(_tokens(rng)[1], _width(rng, 1536), _width(rng, 1536), _pick(rng, _FOLDED[:2]))


def _pool(function: PoolFunction, rng: np.random.Generator) -> Operator:
    _, channels, height, width = _map(rng, smallest=3)
    if function in ("global_average", "global_max"):
        return Pool(function, channels, height, width, (height, width))
    kernel, stride, pad = _pick(rng, ((2, 2, 0), (2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (5, 1, 2), (7, 1, 3)))
    if function == "average" and rng.random() < 0.2:
        return Pool(function, channels, height, width, (height, width))
    kernel = min(kernel, height + 2 * pad, width + 2 * pad)
    return Pool(function, channels, height, width, (kernel, kernel), (stride, stride), (pad, pad, pad, pad))


def _elementwise(function: ElementwiseFunction, rng: np.random.Generator) -> Operator:
    return Elementwise(function, _map(rng) if rng.random() < 0.8 else _tokens(rng))


def _boundary(function: BoundaryFunction, rng: np.random.Generator) -> Operator:
    shape = _map(rng)
    if function in ("reorder_input", "reorder_output"):  # the runtime blocks channels that fill its blocks
        return Boundary(function, (1, max(shape[1] // 16, 1) * 16, *shape[2:]))
    if function in ("quantize", "dequantize"):
        small: tuple[Shape, ...] = ((1, _pick(rng, (*_CLASSES, _width(rng)))), _tokens(rng), (1, 3, *_sides(rng)))
        return Boundary(function, _pick(rng, (shape, shape, *small)))
    return Boundary(function, shape)


def _weights(rng: np.random.Generator) -> Operator:
    """Weights that are stored in 8 bits and read anew in every run."""
    kernel = _pick(rng, (1, 1, 3, 3, 5))
    return Boundary("dequantize", (_width(rng, 512), _width(rng, 512), kernel, kernel))


def _to_channels_last(rng: np.random.Generator) -> Operator:
    shape = _map(rng) if rng.random() < 0.8 else (1, 3, *_sides(rng))
    return Boundary("transpose", shape, _CHANNELS_LAST)


def _to_channels_first(rng: np.random.Generator) -> Operator:
    return Boundary("transpose", _last(_map(rng)), _CHANNELS_FIRST)


def _shuffle(rng: np.random.Generator) -> Operator:
    """The transpose of a channel shuffle, or of attention heads, or of the last two axes."""
    kind = rng.random()
    if kind < 0.4:
        _, channels, height, width = _map(rng)
        groups = _pick(rng, (2, 2, 3, 4, 8))
        return Boundary("transpose", (1, groups, max(channels // groups, 1), height, width), (0, 2, 1, 3, 4))
    _, tokens, width = _tokens(rng)
    heads = _pick(rng, _HEADS)
    if kind < 0.8:
        permutation = _pick(rng, ((0, 2, 1, 3), (0, 2, 3, 1)))
        return Boundary("transpose", (1, tokens, heads, max(width // heads, 1)), permutation)
    return Boundary("transpose", (1, tokens, width), (0, 2, 1))


# Nodes, exactly as a runtime executes them.


def _f(shape: Shape) -> str:
    return str(TensorType("float32", shape))


def _u(shape: Shape) -> str:
    return str(TensorType("uint8", shape))


def _c(shape: Shape, dtype: str = "float32") -> str:
    return str(TensorType(dtype, shape, constant=True))


def _values(*values: float) -> str:
    kind = "int64" if all(isinstance(value, int) for value in values) else "float32"
    return str(TensorType(kind, (len(values),), True, ",".join(f"{value:.9g}" for value in values)))


_SCALE: Final = (_c(()), _c((), "uint8"))
"""The scale and the zero-point of an 8-bit tensor."""


def _node(
    op_type: str, inputs: Sequence[str], outputs: Sequence[str], version: int = 13, domain: str = "", **attributes: Any
) -> Node:
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"))
    return Node(op_type, tuple(inputs), tuple(outputs), text, domain, version)


def _microsoft(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Node:
    return _node(op_type, inputs, outputs, 1, "com.microsoft", **attributes)


def _concat(rng: np.random.Generator) -> Operator:
    _, channels, height, width = _map(rng)
    if rng.random() < 0.5:  # dense growth: much, and a little more
        parts = [channels, _pick(rng, (12, 16, 24, 32, 48))]
    else:
        parts = [max(round(channels * rng.uniform(0.5, 1.5)), 1) for _ in range(int(rng.integers(2, 6)))]
    kind = rng.random()
    shapes: list[Shape] = [(1, part, height, width) for part in parts]
    whole: Shape = (1, sum(parts), height, width)
    if kind < 0.4:
        return _node("Concat", [_f(shape) for shape in shapes], [_f(whole)], axis=1)
    if kind < 0.5:
        return _node("Concat", [_u(_last(shape)) for shape in shapes], [_u(_last(whole))], axis=3)
    last = rng.random() < 0.7
    shapes, whole = ([_last(shape) for shape in shapes], _last(whole)) if last else (shapes, whole)
    inputs = [text for shape in shapes for text in (_u(shape), *_SCALE)]
    return _microsoft("QLinearConcat", [*_SCALE, *inputs], [_u(whole)], axis=3 if last else 1)


def _broadcast(op_type: str, rng: np.random.Generator) -> Operator:
    """Two tensors, one smaller: a value per channel, one for all, or the last axis alone."""
    kind = rng.random()
    shape: Shape = _map(rng)
    if kind < 0.45:
        one, other = _f(shape), _f((1, shape[1], 1, 1))
    elif kind < 0.65:
        one, other = _f(shape), _c((1, shape[1], 1, 1))
    elif kind < 0.8:
        shape = shape if rng.random() < 0.5 else _tokens(rng)
        one, other = _f(shape), _c(())
    else:
        shape = _tokens(rng)
        one, other = _f(shape), _pick(rng, (_c(shape[-1:]), _f((*shape[:2], 1))))
    operands = [other, one] if op_type in ("Add", "Mul") and rng.random() < 0.25 else [one, other]
    return _node(op_type, operands, [_f(shape)], 14)


def _int8_broadcast(op_type: str, rng: np.random.Generator) -> Operator:
    shape = _map(rng)
    pairs: list[tuple[Shape, Shape]] = [(shape, (1, shape[1], 1, 1)), (_last(shape), (1, 1, 1, shape[1]))]
    one, other = _pick(rng, pairs)
    if rng.random() < 0.15:
        one = _tokens(rng)
        other = one[-1:]
    second = _u(other) if rng.random() < 0.6 else _c(other, "uint8")
    return _microsoft(op_type, [_u(one), *_SCALE, second, *_SCALE, *_SCALE], [_u(one)])


def _same_size(op_type: str, rng: np.random.Generator) -> Operator:
    shape = _map(rng) if rng.random() < 0.6 else _tokens(rng)
    return _node(op_type, [_f(shape), _f(shape)], [_f(shape)], 14 if op_type in ("Sub", "Div") else 13)


def _sum(rng: np.random.Generator) -> Operator:
    shape = _map(rng)
    return _node("Sum", [_f(shape)] * int(rng.integers(2, 4)), [_f(shape)])


def _unary(op_type: str, version: int, domain: str, settings: dict[str, Any], rng: np.random.Generator) -> Operator:
    shape = _map(rng) if rng.random() < 0.5 else (*_tokens(rng),)
    return _node(op_type, [_f(shape)], [_f(shape)], version, domain, **settings)


def _power(rng: np.random.Generator) -> Operator:
    shape = _tokens(rng) if rng.random() < 0.6 else _map(rng)
    exponent = str(TensorType("float32", (), True, _pick(rng, ("2", "2", "3", "0.5"))))
    return _node("Pow", [_f(shape), exponent], [_f(shape)], 15)


def _prelu(rng: np.random.Generator) -> Operator:
    shape = _map(rng)
    return _node("PRelu", [_f(shape), _c((shape[1], 1, 1))], [_f(shape)], 16)


def _softmax(rng: np.random.Generator) -> Operator:
    kind = rng.random()
    if kind < 0.4:
        shape: Shape = (1, _pick(rng, (*_CLASSES, _width(rng))))
    elif kind < 0.85:
        tokens = _tokens(rng)[1]
        shape = (1, _pick(rng, _HEADS), tokens, tokens)
    else:
        shape = (1, *_tokens(rng)[1:])
    if rng.random() < 0.3:
        settings = {"opset": 13, "axis": len(shape) - 1}
        return _microsoft("QLinearSoftmax", [_u(shape), *_SCALE, *_SCALE], [_u(shape)], **settings)
    return _node("Softmax", [_f(shape)], [_f(shape)], axis=len(shape) - 1)


def _norm(rng: np.random.Generator) -> Operator:
    """Layer norm of tokens or of a feature map whose channels are last, fused with the addition before it or not."""
    fused = rng.random() < 0.3
    shape: Shape = _tokens(rng) if fused or rng.random() < 0.4 else _last(_map(rng))
    scale = [_c(shape[-1:]), _c(shape[-1:])]
    if fused:
        skip = [_f(shape), _f(shape), *scale]
        return _microsoft("SkipLayerNormalization", skip, [_f(shape)], epsilon=1e-5)
    return _node("LayerNormalization", [_f(shape), *scale], [_f(shape)], 17, axis=-1, epsilon=1e-5)


def _batch_norm(rng: np.random.Generator) -> Operator:
    shape = _map(rng)
    return _node("BatchNormalization", [_f(shape), *[_c(shape[1:2])] * 4], [_f(shape)], 15, epsilon=1e-5)


def _instance_norm(rng: np.random.Generator) -> Operator:
    shape = _map(rng, smallest=4)
    return _node("InstanceNormalization", [_f(shape), *[_c(shape[1:2])] * 2], [_f(shape)], 6, epsilon=1e-5)


def _lrn(rng: np.random.Generator) -> Operator:
    shape, size = _map(rng, smallest=4), _pick(rng, (3, 5, 5))
    return _node("LRN", [_f(shape)], [_f(shape)], size=size, alpha=1e-4, beta=0.75, bias=1.0)


def _either(rng: np.random.Generator) -> Callable[[Shape], str]:
    """The text of a float tensor, or of an 8-bit one."""
    return _f if rng.random() < 0.65 else _u


def _split(rng: np.random.Generator) -> Operator:
    tensor, shape, parts = _either(rng), list(_map(rng)), _pick(rng, (2, 2, 3))
    axis, unit = (1, shape[1]) if rng.random() < 0.8 else (2, shape[2])
    shape[axis] = max(unit // parts, 1) * parts
    part = [size // parts if place == axis else size for place, size in enumerate(shape)]
    return _node(
        "Split", [tensor(tuple(shape)), _values(*[part[axis]] * parts)], [tensor(tuple(part))] * parts, axis=axis
    )


def _slice(rng: np.random.Generator) -> Operator:
    tensor, shape = _either(rng), _map(rng, smallest=2)
    axis, step = _pick(rng, ((1, 1), (1, 1), (2, 1), (3, 1), (2, 2), (3, 2)))
    size = shape[axis]
    start, end = (0, max(size // 2, 1)) if rng.random() < 0.5 else (size // 2, size)
    start, end = (0, size) if step > 1 else (start, end)
    out = tuple(-(-(end - start) // step) if place == axis else size for place, size in enumerate(shape))
    inputs = [tensor(shape), _values(start), _values(end), _values(axis), _values(step)]
    return _node("Slice", inputs, [tensor(out)])


def _pad(rng: np.random.Generator) -> Operator:
    tensor, shape = _either(rng), _map(rng)
    low, high = _pick(rng, ((0, 1), (1, 1), (2, 2), (3, 3)))
    out = (*shape[:2], shape[2] + low + high, shape[3] + low + high)
    return _node("Pad", [tensor(shape), _values(0, 0, low, low, 0, 0, high, high)], [tensor(out)], mode="constant")


def _resize(rng: np.random.Generator) -> Operator:
    tensor, shape = _either(rng), _map(rng, smallest=2)
    out = (*shape[:2], 2 * shape[2], 2 * shape[3])
    mode, place = _pick(rng, (("nearest", "asymmetric"), ("nearest", "asymmetric"), ("linear", "half_pixel")))
    settings: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": "floor"}
    scales = str(TensorType("float32", (4,), True, "1,1,2,2"))
    return _node("Resize", [tensor(shape), "", scales], [tensor(out)], **settings)


def _blocked_upsample(rng: np.random.Generator) -> Operator:
    shape = _map(rng, smallest=2)
    shape = (1, -(-shape[1] // 16) * 16, *shape[2:])
    out = (*shape[:2], 2 * shape[2], 2 * shape[3])
    settings: dict[str, Any] = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "scales": [1, 1, 2, 2],
    }
    return _node("Upsample", [_f(shape)], [_f(out)], 1, "com.microsoft.nchwc", **settings)


def _reduce(rng: np.random.Generator) -> Operator:
    op_type = _pick(rng, ("ReduceMean", "ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum"))
    if rng.random() < 0.6:
        shape: Shape = _map(rng, smallest=2)
        axes, out = _pick(rng, (((2, 3), (*shape[:2], 1, 1)), ((1,), (1, 1, *shape[2:]))))
    else:
        shape = _tokens(rng)
        axes, out = _pick(rng, (((-1,), (*shape[:2], 1)), ((1,), (1, 1, shape[2]))))
    if op_type == "ReduceSum":
        return _node(op_type, [_f(shape), _values(*axes)], [_f(out)], keepdims=1)
    return _node(op_type, [_f(shape)], [_f(out)], axes=list(axes), keepdims=1)


def _transposed_convolution(rng: np.random.Generator) -> Operator:
    _, channels, height, width = _map(rng, smallest=2)
    channels, made, kernel = min(channels, 256), _width(rng, 256), _pick(rng, (2, 2, 3, 4))
    pads = {2: [0, 0, 0, 0], 3: [1, 1, 1, 1], 4: [1, 1, 1, 1]}[kernel]
    grown = [2 * (size - 1) + kernel - 2 * pads[0] for size in (height, width)]
    settings: dict[str, Any] = {
        "kernel_shape": [kernel] * 2,
        "strides": [2, 2],
        "pads": pads,
        "dilations": [1, 1],
        "group": 1,
    }
    inputs = [_f((1, channels, height, width)), _c((channels, made, kernel, kernel)), _c((made,))]
    return _node("ConvTranspose", inputs, [_f((1, made, *grown))], 11, **settings)


def _attention(rng: np.random.Generator) -> Operator:
    """Queries times keys, or weights times values, head by head."""
    _, tokens, width = _tokens(rng)
    heads = _pick(rng, _HEADS)
    size = max(width // heads, 4)
    scores, values = (1, heads, tokens, tokens), (1, heads, tokens, size)
    kind = rng.random()
    if kind < 0.4:
        return _node("MatMul", [_f(scores), _f(values)], [_f(values)])
    if kind < 0.65:
        return _node("MatMul", [_f(values), _f((1, heads, size, tokens))], [_f(scores)])
    settings = {"alpha": 0.125, "transA": 0, "transB": 1, "transBatchA": 0, "transBatchB": 0}
    return _microsoft("FusedMatMul", [_f(values), _f(values)], [_f(scores)], **settings)


def _int8_attention(rng: np.random.Generator) -> Operator:
    _, tokens, width = _tokens(rng)
    heads = _pick(rng, _HEADS)
    size = max(width // heads, 4)
    scores, values, turned = (1, heads, tokens, tokens), (1, heads, tokens, size), (1, heads, size, tokens)
    one, other, out = _pick(rng, ((scores, values, values), (values, turned, scores)))
    return _node("QLinearMatMul", [_u(one), *_SCALE, _u(other), *_SCALE, *_SCALE], [_u(out)], 10)


def _gather(rng: np.random.Generator) -> Operator:
    shape = _tokens(rng)
    index = str(TensorType("int64", (), True, "0"))
    return _node("Gather", [_f(shape), index], [_f((shape[0], shape[2]))], axis=1)


def _expand(rng: np.random.Generator) -> Operator:
    shape = _map(rng)
    return _node("Expand", [_f((1, shape[1], 1, 1)), _values(*shape)], [_f(shape)])


def _where(rng: np.random.Generator) -> Operator:
    shape = _map(rng) if rng.random() < 0.5 else _tokens(rng)
    return _node("Where", [str(TensorType("bool", shape)), _f(shape), _pick(rng, (_f(shape), _c(())))], [_f(shape)], 16)


def _space(rng: np.random.Generator) -> Operator:
    _, channels, height, width = _map(rng, smallest=2)
    channels, height, width = max(channels // 4, 1) * 4, max(height // 2, 1) * 2, max(width // 2, 1) * 2
    small, large = (1, channels, height // 2, width // 2), (1, channels // 4, height, width)
    if rng.random() < 0.5:
        return _node("SpaceToDepth", [_f(large)], [_f(small)], blocksize=2)
    return _node("DepthToSpace", [_f(small)], [_f(large)], blocksize=2, mode="DCR")


def _recurrent(rng: np.random.Generator) -> Operator:
    op_type, gates = _pick(rng, (("LSTM", 4), ("LSTM", 4), ("GRU", 3)))
    steps, taken, hidden = _pick(rng, (1, 8, 24, 40, 80)), _width(rng, 512), _pick(rng, (32, 48, 64, 96, 128, 256))
    ways = _pick(rng, (1, 2))
    inputs = [_f((steps, 1, taken)), _c((ways, gates * hidden, taken)), _c((ways, gates * hidden, hidden))]
    inputs.append(_c((ways, 2 * gates * hidden)))
    settings: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if ways == 2 else "forward"}
    return _node(op_type, inputs, [_f((steps, ways, 1, hidden))], 14, **settings)


def _dynamic(rng: np.random.Generator) -> Operator:
    """What dynamic quantisation leaves: the range of an activation, and a product with 8-bit weights."""
    _, tokens, width = _tokens(rng)
    tokens = _pick(rng, (1, tokens))
    shape, made = (1, tokens, width), _width(rng, 1024)
    if rng.random() < 0.4:
        scale = [str(TensorType("float32", ())), str(TensorType("uint8", ()))]
        return _node("DynamicQuantizeLinear", [_f(shape)], [_u(shape), *scale], 11)
    inputs = [_f(shape), _c((width, made), "int8"), _c(()), _c((), "int8"), _c((made,))]
    return _microsoft("DynamicQuantizeMatMul", inputs, [_f((1, tokens, made))])


_UNARY: Final[tuple[tuple[str, int, str, dict[str, Any]], ...]] = (
    ("Erf", 13, "", {}),
    ("Exp", 13, "", {}),
    ("Sqrt", 13, "", {}),
    ("Reciprocal", 13, "", {}),
    ("Abs", 13, "", {}),
    ("Neg", 13, "", {}),
    ("Log", 13, "", {}),
    ("Elu", 6, "", {"alpha": 1.0}),
    ("Softplus", 1, "", {}),
    ("Gelu", 1, "com.microsoft", {}),
    ("QuickGelu", 1, "com.microsoft", {"alpha": 1.0}),
)

FAMILIES: Final[dict[str, tuple[int, Draw]]] = {
    "dense convolution": (220, _dense),
    "depthwise convolution": (60, _depthwise),
    "grouped convolution": (50, _grouped),
    "residual convolution": (40, _residual),
    "scaling": (14, _scaling),
    "excitation": (24, _excitation),
    "product of one row": (24, _classifier),
    "large product of one row": (6, _large_classifier),
    "product of more rows": (36, _product),
    "to channels last": (24, _to_channels_last),
    "to channels first": (24, _to_channels_first),
    "other transposes": (30, _shuffle),
    "weights": (16, _weights),
    **{name: (16, partial(_pool, name)) for name in get_args(PoolFunction)},
    **{name: (12, partial(_elementwise, name)) for name in get_args(ElementwiseFunction)},
    **{name: (16, partial(_boundary, name)) for name in get_args(BoundaryFunction) if name != "transpose"},
    "concatenation": (56, _concat),
    **{f"{name} with broadcast": (20, partial(_broadcast, name)) for name in ("Add", "Mul")},
    **{f"{name} with broadcast": (12, partial(_broadcast, name)) for name in ("Sub", "Div")},
    **{f"{name} with broadcast": (16, partial(_int8_broadcast, name)) for name in ("QLinearAdd", "QLinearMul")},
    "Div": (10, partial(_same_size, "Div")),
    "Sum": (12, _sum),
    **{
        op_type: (10, partial(_unary, op_type, version, domain, settings))
        for op_type, version, domain, settings in _UNARY
    },
    "Pow": (10, _power),
    "PRelu": (10, _prelu),
    "softmax": (24, _softmax),
    "layer norm": (24, _norm),
    "batch norm": (14, _batch_norm),
    "instance norm": (10, _instance_norm),
    "local response norm": (12, _lrn),
    "Split": (16, _split),
    "Slice": (18, _slice),
    "Pad": (14, _pad),
    "Resize": (16, _resize),
    "blocked upsampling": (10, _blocked_upsample),
    "reduction": (24, _reduce),
    "transposed convolution": (20, _transposed_convolution),
    "attention": (30, _attention),
    "int8 attention": (16, _int8_attention),
    "Gather": (8, _gather),
    "Expand": (8, _expand),
    "Where": (8, _where),
    "depth and space": (10, _space),
    "recurrent": (18, _recurrent),
    "dynamic quantisation": (18, _dynamic),
}
"""The share of each family in a sample, and how it draws an operator."""
