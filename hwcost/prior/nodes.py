"""Draws of all other nodes, exactly as a runtime executes them."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from hwcost.ops import Node, Operator, TensorType
from hwcost.prior.draws import CLASSES, HEADS, Shape, channels_last, draw_map, draw_tokens, draw_width, pick


def _f(shape: Shape) -> str:
    return str(TensorType("float32", shape))


def _u(shape: Shape) -> str:
    return str(TensorType("uint8", shape))


def _s(shape: Shape) -> str:
    return str(TensorType("int8", shape))


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


def concat(rng: np.random.Generator) -> Operator:
    _, channels, height, width = draw_map(rng)
    if rng.random() < 0.5:  # dense growth: much, and a little more
        parts = [channels, pick(rng, (12, 16, 24, 32, 48))]
    else:
        parts = [max(round(channels * rng.uniform(0.5, 1.5)), 1) for _ in range(int(rng.integers(2, 6)))]
    kind = rng.random()
    shapes: list[Shape] = [(1, part, height, width) for part in parts]
    whole: Shape = (1, sum(parts), height, width)
    if kind < 0.4:
        return _node("Concat", [_f(shape) for shape in shapes], [_f(whole)], axis=1)
    if kind < 0.5:
        return _node("Concat", [_u(channels_last(shape)) for shape in shapes], [_u(channels_last(whole))], axis=3)
    last = rng.random() < 0.7
    shapes, whole = ([channels_last(shape) for shape in shapes], channels_last(whole)) if last else (shapes, whole)
    # What has the output's scale is copied, what has another goes through a table.
    copied = rng.random(len(shapes)) < pick(rng, (0.0, 0.5, 1.0))
    inputs = [text for shape, same in zip(shapes, copied, strict=True) for text in (_u(shape), *_scale(bool(same)))]
    return _microsoft("QLinearConcat", [*_scale(True), *inputs], [_u(whole)], axis=3 if last else 1)


def _scale(usual: bool) -> tuple[str, str]:
    """A scale and zero-point, one of two."""
    return str(TensorType("float32", (), True, "1" if usual else "2")), str(TensorType("uint8", (), True, "0"))


def broadcast(op_type: str, rng: np.random.Generator) -> Operator:
    """Two tensors, one smaller: a value per channel, one for all, or the last axis alone."""
    kind = rng.random()
    shape: Shape = draw_map(rng)
    if kind < 0.35:
        one, other = _f(shape), _f((1, shape[1], 1, 1))
    elif kind < 0.5:
        one, other = _f(shape), _c(pick(rng, ((1, shape[1], 1, 1), (shape[1], 1, 1))))
    elif kind < 0.7:
        place = rng.random()
        if place > 0.8:  # a gate: written out, hard sigmoids have such
            shape = (1, shape[1], 1, 1)
        elif place > 0.4:
            shape = draw_tokens(rng)
        one, other = _f(shape), _c(())
    elif kind < 0.75:  # all of it, but for the batch
        one, other = _f(shape), _c(shape[1:])
    else:
        shape = draw_tokens(rng)
        one, other = _f(shape), pick(rng, (_c(shape[-1:]), _f((*shape[:2], 1))))
    operands = [other, one] if op_type in ("Add", "Mul") and rng.random() < 0.25 else [one, other]
    return _node(op_type, operands, [_f(shape)], 14)


def int8_broadcast(op_type: str, rng: np.random.Generator) -> Operator:
    shape = draw_map(rng)
    pairs: list[tuple[Shape, Shape]] = [(shape, (1, shape[1], 1, 1)), (channels_last(shape), (1, 1, 1, shape[1]))]
    one, other = pick(rng, pairs)
    if rng.random() < 0.15:
        one = draw_tokens(rng)
        other = one[-1:]
    if rng.random() < 0.2:
        other = ()
    second = _u(other) if other and rng.random() < 0.6 else _c(other, "uint8")
    return _microsoft(op_type, [_u(one), *_SCALE, second, *_SCALE, *_SCALE], [_u(one)])


def _map_or_tokens(rng: np.random.Generator) -> Shape:
    return draw_map(rng) if rng.random() < 0.6 else draw_tokens(rng)


def same_size(op_type: str, rng: np.random.Generator) -> Operator:
    shape = _map_or_tokens(rng)
    return _node(op_type, [_f(shape), _f(shape)], [_f(shape)], 14 if op_type in ("Sub", "Div") else 13)


def summation(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng)
    return _node("Sum", [_f(shape)] * int(rng.integers(2, 4)), [_f(shape)])


def unary(op_type: str, version: int, domain: str, settings: dict[str, Any], rng: np.random.Generator) -> Operator:
    shape = draw_map(rng) if rng.random() < 0.5 else (*draw_tokens(rng),)
    return _node(op_type, [_f(shape)], [_f(shape)], version, domain, **settings)


def power(rng: np.random.Generator) -> Operator:
    shape = draw_tokens(rng) if rng.random() < 0.6 else draw_map(rng)
    exponent = str(TensorType("float32", (), True, pick(rng, ("2", "2", "3", "0.5", "1.5", "0.333333343"))))
    return _node("Pow", [_f(shape), exponent], [_f(shape)], 15)


def prelu(rng: np.random.Generator) -> Operator:
    shape: Shape = draw_map(rng)
    slopes: Shape = (shape[1], 1, 1)
    if rng.random() < 0.3:  # between quantised convolutions
        shape, slopes = channels_last(shape), (1, 1, 1, shape[1])
    return _node("PRelu", [_f(shape), _c(slopes)], [_f(shape)], 16)


def softmax(rng: np.random.Generator) -> Operator:
    """Over classes, or tokens; or over an axis that is not the last: the classes of every pixel, the bins of a box."""
    kind = rng.random()
    axis = -1
    if kind < 0.25:
        shape: Shape = (1, pick(rng, (*CLASSES, draw_width(rng))))
    elif kind < 0.35:
        shape = (1, draw_tokens(rng)[1], pick(rng, (97, 438, 6625, 18385)))
    elif kind < 0.6:
        tokens = draw_tokens(rng)[1]
        shape = (1, pick(rng, HEADS), tokens, tokens)
    elif kind < 0.7:
        shape = (1, *draw_tokens(rng)[1:])
    elif kind < 0.85:
        shape, axis = (1, pick(rng, (2, 10, 19, 21, 150)), *draw_map(rng, smallest=2)[2:]), 1
    else:
        boxes, axis = pick(rng, (100, 525, 1344, 2100, 3549, 8400)), 1 + int(kind < 0.92)
        shape = (1, 16, 4, boxes) if axis == 1 else (1, 4, 16, boxes)
    axis %= len(shape)
    if rng.random() < 0.3:
        return _microsoft("QLinearSoftmax", [_u(shape), *_SCALE, *_SCALE], [_u(shape)], opset=13, axis=axis)
    op_type = "LogSoftmax" if rng.random() < 0.25 else "Softmax"
    return _node(op_type, [_f(shape)], [_f(shape)], axis=axis)


def norm(rng: np.random.Generator) -> Operator:
    """Layer norm of tokens or of a feature map whose channels are last, fused with the addition before it or not; or
    that by the root mean square alone."""
    fused, simple = rng.random() < 0.3, rng.random() < 0.4
    shape: Shape = draw_tokens(rng) if fused or rng.random() < 0.4 else channels_last(draw_map(rng))
    scale = [_c(shape[-1:])] if simple else [_c(shape[-1:]), _c(shape[-1:])]
    op_type = "SimplifiedLayerNormalization" if simple else "LayerNormalization"
    if fused:
        return _microsoft(f"Skip{op_type}", [_f(shape), _f(shape), *scale], [_f(shape)], epsilon=1e-5)
    if simple and rng.random() < 0.5:
        return _node("RMSNormalization", [_f(shape), *scale], [_f(shape)], 23, axis=-1, epsilon=1e-5)
    return _node(op_type, [_f(shape), *scale], [_f(shape)], 1 if simple else 17, axis=-1, epsilon=1e-5)


def batch_norm(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng)
    return _node("BatchNormalization", [_f(shape), *[_c(shape[1:2])] * 4], [_f(shape)], 15, epsilon=1e-5)


def instance_norm(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng, smallest=4)
    return _node("InstanceNormalization", [_f(shape), *[_c(shape[1:2])] * 2], [_f(shape)], 6, epsilon=1e-5)


def lrn(rng: np.random.Generator) -> Operator:
    shape, size = draw_map(rng, smallest=4), pick(rng, (3, 5, 5))
    return _node("LRN", [_f(shape)], [_f(shape)], size=size, alpha=1e-4, beta=0.75, bias=1.0)


def _either(rng: np.random.Generator) -> Callable[[Shape], str]:
    """The text of a float tensor, or of an 8-bit one."""
    return _f if rng.random() < 0.65 else _u


def split(rng: np.random.Generator) -> Operator:
    """Along the channels, or along what a reshape put before them."""
    tensor, shape, parts = _either(rng), list[int](draw_map(rng)), pick(rng, (2, 2, 3))
    axis = pick(rng, (1, 1, 1, 2))
    if rng.random() < 0.2:
        shape, axis = [1, max(shape[1] // parts, 1), parts, *shape[2:]], 2
    shape[axis] = max(shape[axis] // parts, 1) * parts
    part = [size // parts if place == axis else size for place, size in enumerate(shape)]
    inputs = [tensor(tuple(shape)), _values(*[part[axis]] * parts)]
    return _node("Split", inputs, [tensor(tuple(part))] * parts, axis=axis)


def slicing(rng: np.random.Generator) -> Operator:
    tensor, shape = _either(rng), draw_map(rng, smallest=2)
    axis, step = pick(rng, ((1, 1), (1, 1), (2, 1), (3, 1), (2, 2), (3, 2)))
    size = shape[axis]
    start, end = (0, max(size // 2, 1)) if rng.random() < 0.5 else (size // 2, size)
    start, end = (0, size) if step > 1 else (start, end)
    out = tuple(-(-(end - start) // step) if place == axis else size for place, size in enumerate(shape))
    inputs = [tensor(shape), _values(start), _values(end), _values(axis), _values(step)]
    return _node("Slice", inputs, [tensor(out)])


def pad(rng: np.random.Generator) -> Operator:
    tensor, shape = _either(rng), draw_map(rng)
    low, high = pick(rng, ((0, 1), (1, 1), (2, 2), (3, 3)))
    out = (*shape[:2], shape[2] + low + high, shape[3] + low + high)
    return _node("Pad", [tensor(shape), _values(0, 0, low, low, 0, 0, high, high)], [tensor(out)], mode="constant")


def tile(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng)
    times = pick(rng, ((1, 2, 1, 1), (1, 1, 2, 2), (1, 1, 1, 4)))
    return _node("Tile", [_f(shape), _values(*times)], [_f(tuple(np.multiply(shape, times).tolist()))])


def resize(rng: np.random.Generator) -> Operator:
    tensor, shape, times = _either(rng), draw_map(rng, smallest=2), pick(rng, (2, 2, 2, 2, 4, 8))
    out = (*shape[:2], times * shape[2], times * shape[3])
    if rng.random() < 0.1:
        cubic: dict[str, Any] = {
            "mode": "cubic",
            "coordinate_transformation_mode": "half_pixel",
            "cubic_coeff_a": -0.75,
        }
        return _resize(_f(shape), _f(out), f"1,1,{times},{times}", cubic)
    mode, place = pick(rng, (("nearest", "asymmetric"), ("nearest", "asymmetric"), ("linear", "half_pixel")))
    settings: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": "floor"}
    if rng.random() < 0.4:  # between quantised convolutions
        last = tensor(channels_last(shape)), tensor(channels_last(out))
        return _resize(*last, f"1,{times},{times},1", settings)
    return _resize(tensor(shape), tensor(out), f"1,1,{times},{times}", settings)


def _resize(read: str, out: str, scales: str, settings: dict[str, Any]) -> Operator:
    return _node("Resize", [read, "", str(TensorType("float32", (4,), True, scales))], [out], **settings)


def blocked_upsample(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng, smallest=2)
    shape, times = (1, -(-shape[1] // 16) * 16, *shape[2:]), pick(rng, (2, 2, 2, 4, 8))
    out = (*shape[:2], times * shape[2], times * shape[3])
    mode, place = pick(rng, (("nearest", "asymmetric"), ("linear", "half_pixel")))
    settings: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": place, "scales": [1, 1, times, times]}
    return _node("Upsample", [_f(shape)], [_f(out)], 1, "com.microsoft.nchwc", **settings)


def reduction(rng: np.random.Generator) -> Operator:
    """Over the plane, the channels, or the last axis; the axes an attribute or, in newer graphs, an input."""
    op_type = pick(rng, ("ReduceMean",) * 6 + ("ReduceMax",) * 2 + ("ReduceSum",) * 2 + RARE_REDUCTIONS)
    if rng.random() < 0.65:
        shape: Shape = draw_map(rng, smallest=2)
        axes = pick(rng, ((2, 3), (2, 3), (1, 2), (1,), (1,), (2,)))
        shape = channels_last(shape) if axes == (1, 2) or (axes == (1,) and rng.random() < 0.5) else shape
        if len(axes) == 1 and rng.random() < 0.5:  # what is left of a text line's height
            shape = tuple(pick(rng, (2, 3, 4, 6, 8)) if place in axes else size for place, size in enumerate(shape))
    else:
        shape = draw_tokens(rng)
        axes = pick(rng, ((2,), (2,), (1,)))
    keep = int(rng.random() < 0.75)
    out = tuple(1 if place in axes else size for place, size in enumerate(shape) if keep or place not in axes)
    if op_type == "ReduceSum" or rng.random() < 0.4:
        version = 13 if op_type == "ReduceSum" else 18
        return _node(op_type, [_f(shape), _values(*axes)], [_f(out)], version, keepdims=keep)
    return _node(op_type, [_f(shape)], [_f(out)], axes=list(axes), keepdims=keep)


def transposed_convolution(rng: np.random.Generator) -> Operator:
    _, channels, height, width = draw_map(rng, smallest=2)
    channels, made, kernel = min(channels, 256), draw_width(rng, 256), pick(rng, (2, 2, 3, 4))
    pads = {2: [0, 0, 0, 0], 3: [1, 1, 1, 1], 4: [1, 1, 1, 1]}[kernel]
    grown = [2 * (size - 1) + kernel - 2 * pads[0] for size in (height, width)]
    window: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": pads, "dilations": [1, 1]}
    inputs = [_f((1, channels, height, width)), _c((channels, made, kernel, kernel)), _c((made,))]
    return _node("ConvTranspose", inputs, [_f((1, made, *grown))], 11, **window, group=1)


def attention(rng: np.random.Generator) -> Operator:
    """Queries times keys, or weights times values, head by head."""
    _, tokens, width = draw_tokens(rng)
    heads = pick(rng, HEADS)
    size = max(width // heads, 4)
    scores, values = (1, heads, tokens, tokens), (1, heads, tokens, size)
    kind = rng.random()
    if kind < 0.4:
        return _node("MatMul", [_f(scores), _f(values)], [_f(values)])
    if kind < 0.65:
        return _node("MatMul", [_f(values), _f((1, heads, size, tokens))], [_f(scores)])
    first = int(kind < 0.8)  # is turned, or the second one
    settings = {"alpha": 0.125, "transA": first, "transB": 1 - first, "transBatchA": 0, "transBatchB": 0}
    factor = _f((1, heads, size, tokens) if first else values)
    return _microsoft("FusedMatMul", [factor, factor], [_f(scores)], **settings)


def int8_attention(rng: np.random.Generator) -> Operator:
    _, tokens, width = draw_tokens(rng)
    heads = pick(rng, HEADS)
    size = max(width // heads, 4)
    scores, values, turned = (1, heads, tokens, tokens), (1, heads, tokens, size), (1, heads, size, tokens)
    one, other, out = pick(rng, ((scores, values, values), (values, turned, scores)))
    return _node("QLinearMatMul", [_u(one), *_SCALE, _u(other), *_SCALE, *_SCALE], [_u(out)], 10)


def gather(rng: np.random.Generator) -> Operator:
    """One token of many, one of the parts that a reshape made, or the rows of a table that tokens stand for."""
    if rng.random() < 0.35:
        _, tokens, width = draw_tokens(rng)
        table, indices = _c((pick(rng, (100, 1000, 4000, 16000)), width)), str(TensorType("int64", (1, tokens)))
        return _node("Gather", [table, indices], [_f((1, tokens, width))], axis=0)
    tensor, index = _either(rng), str(TensorType("int64", (), True, "0"))
    shape: Shape = draw_tokens(rng)
    axis = 1
    if rng.random() < 0.5:
        _, channels, height, width = draw_map(rng)
        shape, axis = pick(rng, (((1, max(channels // 2, 1), 2, height, width), 2), ((1, channels, height, width), 1)))
    out = tuple(size for place, size in enumerate(shape) if place != axis)
    return _node("Gather", [tensor(shape), index], [tensor(out)], axis=axis)


def slow_pool(rng: np.random.Generator) -> Operator:
    """8-bit pools of a graph whose layout stayed channels first, and float averages of newer graphs: they have other
    kernels than the rest."""
    _, channels, height, width = draw_map(rng, smallest=3)
    kernel, stride, pad = pick(rng, ((2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (5, 1, 2)))
    shape = (1, channels, max(height, kernel), max(width, kernel))
    sides = [(size + 2 * pad - kernel) // stride + 1 for size in shape[2:]]
    window: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    kind = rng.random()
    if rng.random() < 0.35:
        return _node("AveragePool", [_f(shape)], [_f((1, channels, *sides))], 19, **window)
    if kind < 0.5:
        tensor = _u if rng.random() < 0.7 else _s
        return _node("MaxPool", [tensor(shape)], [tensor((1, channels, *sides))], 12, **window)
    inputs = [_u(shape), *_SCALE, *_SCALE]
    if kind < 0.75:
        return _microsoft("QLinearAveragePool", inputs, [_u((1, channels, *sides))], channels_last=0, **window)
    return _microsoft("QLinearGlobalAveragePool", inputs, [_u((1, channels, 1, 1))], channels_last=0)


def expand(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng)
    return _node("Expand", [_f((1, shape[1], 1, 1)), _values(*shape)], [_f(shape)])


def where(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng) if rng.random() < 0.5 else draw_tokens(rng)
    return _node("Where", [str(TensorType("bool", shape)), _f(shape), pick(rng, (_f(shape), _c(())))], [_f(shape)], 16)


def space(rng: np.random.Generator) -> Operator:
    _, channels, height, width = draw_map(rng, smallest=2)
    channels, height, width = max(channels // 4, 1) * 4, max(height // 2, 1) * 2, max(width // 2, 1) * 2
    small, large = (1, channels, height // 2, width // 2), (1, channels // 4, height, width)
    if rng.random() < 0.5:
        return _node("SpaceToDepth", [_f(large)], [_f(small)], blocksize=2)
    return _node("DepthToSpace", [_f(small)], [_f(large)], blocksize=2, mode="DCR")


def recurrent(rng: np.random.Generator) -> Operator:
    """With float weights or 8-bit ones; often more of them than the second cache holds."""
    op_type, gates = pick(rng, (("LSTM", 4),) * 4 + (("GRU", 3),) * 3 + (("RNN", 1),))
    steps, taken = pick(rng, (1, 8, 20, 24, 40, 80)), draw_width(rng, 512)
    hidden, ways = pick(rng, (32, 48, 64, 96, 128, 192, 256, 384, 512)), pick(rng, (1, 2))
    inputs = [_f((steps, 1, taken)), _c((ways, gates * hidden, taken)), _c((ways, gates * hidden, hidden))]
    inputs.append(_c((ways, 2 * gates * hidden)))
    settings: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if ways == 2 else "forward"}
    if op_type == "LSTM" and rng.random() < 0.3:
        turned = [_c((ways, size, gates * hidden), "int8") for size in (taken, hidden)]
        scales = [_c((ways,)), _c((ways,), "int8")] * 2
        inputs = [inputs[0], *turned, inputs[3], "", "", "", "", *scales]
        return _microsoft("DynamicQuantizeLSTM", inputs, [_f((steps, ways, 1, hidden))], **settings)
    return _node(op_type, inputs, [_f((steps, ways, 1, hidden))], 14, **settings)


def dynamic(rng: np.random.Generator) -> Operator:
    """What dynamic quantisation leaves: the range of an activation, a product or a convolution with 8-bit weights."""
    kind, weights = rng.random(), pick(rng, ("int8", "uint8"))
    image = draw_map(rng, smallest=3)
    if kind < 0.35:
        channels, made, kernel = image[1], draw_width(rng, 512), pick(rng, (1, 3, 3))
        stride = pick(rng, (1, 1, 2))
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        sides = [(size + 2 * (kernel // 2) - kernel) // stride + 1 for size in image[2:]]
        zeros = [str(TensorType("uint8", ())), _c((), weights)]
        inputs = [_u(image), _c((made, channels, kernel, kernel), weights), *zeros]
        settings: dict[str, Any] = {**window, "dilations": [1, 1], "group": 1}
        return _node("ConvInteger", inputs, [str(TensorType("int32", (1, made, *sides)))], 10, **settings)
    _, tokens, width = draw_tokens(rng)
    tokens = pick(rng, (1, tokens))
    shape, made = (1, tokens, width), draw_width(rng, pick(rng, (1024, 1024, 8192)))
    if kind < 0.6:
        scale = [str(TensorType("float32", ())), str(TensorType("uint8", ()))]
        read: Shape = image if rng.random() < 0.5 else shape
        return _node("DynamicQuantizeLinear", [_f(read)], [_u(read), *scale], 11)
    inputs = [_f(shape), _c((width, made), weights), _c(()), _c((), weights), _c((made,))]
    return _microsoft("DynamicQuantizeMatMul", inputs, [_f((1, tokens, made))])


def extreme(op_type: str, rng: np.random.Generator) -> Operator:
    """The larger or smaller of two tensors, or of one and a constant."""
    shape = _map_or_tokens(rng)
    other = _f(shape) if rng.random() < 0.5 else _c(())
    return _node(op_type, [_f(shape), other], [_f(shape)])


def comparison(rng: np.random.Generator) -> Operator:
    """Of a tensor with a constant or another tensor; or what joins such answers."""
    shape = _map_or_tokens(rng)
    truth = str(TensorType("bool", shape))
    op_type, version = pick(rng, (("Greater", 13), ("Less", 13), ("Equal", 13), ("Or", 7), ("And", 7), ("Not", 1)))
    if op_type == "Not":
        return _node(op_type, [truth], [truth], version)
    if op_type in ("Or", "And"):
        return _node(op_type, [truth, truth], [truth], version)
    return _node(op_type, [_f(shape), _f(shape) if rng.random() < 0.4 else _c(())], [truth], version)


def cast(rng: np.random.Generator) -> Operator:
    shape = _map_or_tokens(rng)
    numbers = {"float32": 1, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
    other = pick(rng, tuple(numbers)[1:])
    read, written = ("float32", other) if rng.random() < 0.5 else (other, "float32")
    return _node("Cast", [str(TensorType(read, shape))], [str(TensorType(written, shape))], to=numbers[written])


def extremes(rng: np.random.Generator) -> Operator:
    """Where the largest value is, or the largest ones and where they are."""
    if rng.random() < 0.5:
        shape: Shape = draw_map(rng)
        axis = pick(rng, (1, 1, 3))
        out = tuple(1 if place == axis else size for place, size in enumerate(shape))
        return _node("ArgMax", [_f(shape)], [str(TensorType("int64", out))], axis=axis, keepdims=1)
    length = pick(rng, (100, 1000, 2000, 8400))
    count = min(pick(rng, (1, 5, 10, 100, 300)), length)
    found = [_f((1, count)), str(TensorType("int64", (1, count)))]
    return _node("TopK", [_f((1, length)), _values(count)], found, 11, axis=1, largest=1, sorted=1)


def running_sum(rng: np.random.Generator) -> Operator:
    shape: Shape = draw_map(rng) if rng.random() < 0.5 else draw_tokens(rng)
    axis = pick(rng, tuple(range(1, len(shape))))
    return _node("CumSum", [_f(shape), str(TensorType("int64", (), True, str(axis)))], [_f(shape)], 14)


def grid_sample(rng: np.random.Generator) -> Operator:
    shape = draw_map(rng, smallest=2)
    sides = pick(rng, (shape[2:], (max(shape[2] // 2, 1), max(shape[3] // 2, 1))))
    settings: dict[str, Any] = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": 0}
    return _node("GridSample", [_f(shape), _f((1, *sides, 2))], [_f((*shape[:2], *sides))], 16, **settings)


def fused_attention(rng: np.random.Generator) -> Operator:
    """All of a self-attention but its last product, as the runtime fuses it; or without its first one, too."""
    _, tokens, width = draw_tokens(rng)
    heads = pick(rng, HEADS)
    width = max(width // (8 * heads), 1) * 8 * heads
    shape = (1, tokens, width)
    if rng.random() < 0.5:
        kept = shape if rng.random() < 0.5 else (1, heads, tokens, width // heads)
        counts: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads} if kept == shape else {}
        return _node("Attention", [_f(kept)] * 3, [_f(kept)], 23, **counts)
    inputs = [_f(shape), _c((width, 3 * width)), _c((3 * width,))]
    return _microsoft("Attention", inputs, [_f(shape)], num_heads=heads)


def biased_gelu(rng: np.random.Generator) -> Operator:
    shape = draw_tokens(rng)
    op_type = pick(rng, ("BiasGelu", "FastGelu"))
    return _microsoft(op_type, [_f(shape), _c(shape[-1:])], [_f(shape)])


RARE_REDUCTIONS: Final = ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMin", "ReduceProd", "ReduceSumSquare")
