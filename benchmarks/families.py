"""Random networks of the families that the literature and exporters brought forth; depths, widths and sizes are drawn.

Each function describes one network to a `Net`; the numbers are those of the family's publication, then scaled.
"""

from collections.abc import Callable
from math import sqrt
from typing import Final

import numpy as np
import onnx
from netbuilder import Net, Value

MACS: Final = (4e6, 1.5e9)
PARAMETERS: Final = 16e6
_CLASSES: Final = (2, 10, 37, 100, 200, 365, 1000)
# Rows of (kernel, expanded, out, squeeze-excite, stride).
_GHOSTNET: Final = (
    (3, 48, 24, 0, 2),
    (3, 72, 24, 0, 1),
    (5, 72, 40, 1, 2),
    (5, 120, 40, 1, 1),
    (3, 240, 80, 0, 2),
    (3, 200, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 480, 112, 1, 1),
    (5, 672, 160, 1, 2),
    (5, 960, 160, 1, 1),
)
# Rows of (kernel, expanded, out, squeeze-excite, activation, stride).
_MOBILENET_V3_SMALL: Final = (
    (3, 16, 16, 1, "relu", 2),
    (3, 72, 24, 0, "relu", 2),
    (3, 88, 24, 0, "relu", 1),
    (5, 96, 40, 1, "hardswish", 2),
    (5, 240, 40, 1, "hardswish", 1),
    (5, 240, 40, 1, "hardswish", 1),
    (5, 120, 48, 1, "hardswish", 1),
    (5, 144, 48, 1, "hardswish", 1),
    (5, 288, 96, 1, "hardswish", 2),
    (5, 576, 96, 1, "hardswish", 1),
    (5, 576, 96, 1, "hardswish", 1),
)
_MOBILENET_V3_LARGE: Final = (
    (3, 16, 16, 0, "relu", 1),
    (3, 64, 24, 0, "relu", 2),
    (3, 72, 24, 0, "relu", 1),
    (5, 72, 40, 1, "relu", 2),
    (5, 120, 40, 1, "relu", 1),
    (5, 120, 40, 1, "relu", 1),
    (3, 240, 80, 0, "hardswish", 2),
    (3, 200, 80, 0, "hardswish", 1),
    (3, 184, 80, 0, "hardswish", 1),
    (3, 184, 80, 0, "hardswish", 1),
    (3, 480, 112, 1, "hardswish", 1),
    (3, 672, 112, 1, "hardswish", 1),
    (5, 672, 160, 1, "hardswish", 2),
    (5, 960, 160, 1, "hardswish", 1),
    (5, 960, 160, 1, "hardswish", 1),
)


def _stem(n: Net, x: Value, channels: int, act: str = "relu") -> Value:
    """As much down-sampling as the image can bear: none up to 48 pixels, a stride up to 112, a stride and a pool."""
    size = min(x.shape[2:])
    if size <= 48:
        return n.conv(x, channels, 3, 1, act)
    x = n.conv(x, channels, n.pick((3, 5, 7)), 2, act)
    return x if size <= 112 else n.pool(x, "MaxPool", 3, 2, 1)


def _first_stride(x: Value) -> int:
    return 1 if min(x.shape[2:]) <= 48 else 2


def vgg(n: Net) -> Value:
    x = n.image()
    for stage in range(n.between(3, 5)):
        for _ in range(n.between(1, 3 if stage < 2 else 4)):
            x = n.conv(x, n.width(min(512, 64 << stage) * 0.75))
        if min(x.shape[2:]) >= 4:
            x = n.pool(x, "MaxPool", 2, 2)
    if n.style.gemm_head and n.chance(0.6):
        hidden = n.width(n.pick((256, 512, 1024)))
        return n.linear(n.linear(n.linear(n.flatten(x), hidden, "relu"), hidden, "relu"), n.pick(_CLASSES))
    return n.head(x, n.pick(_CLASSES))


def _residual(n: Net, x: Value, branch: Value, stride: int) -> Value:
    if stride > 1 or x.channels != branch.channels:
        x = n.conv(x, branch.channels, 1, stride, "")
    return n.act(n.add(branch, x), "relu")


def resnet_basic(n: Net) -> Value:
    x = n.image()
    x = _stem(n, x, n.width(64))
    for stage in range(n.between(3, 4)):
        for block in range(n.between(1, 3)):
            stride = 2 if stage and not block else 1
            branch = n.conv(n.conv(x, n.width(64 << stage), 3, stride), n.width(64 << stage), act="")
            x = _residual(n, x, branch, stride)
    return n.head(x, n.pick(_CLASSES))


def _bottlenecks(n: Net, cardinality: int, base: int) -> Value:
    x = _stem(n, n.image(), n.width(64))
    step = n.width(base) if cardinality == 1 else max(2, n.width(base) // cardinality) * cardinality
    stages, dilated = n.between(3, 4), n.chance(0.2)
    for stage in range(stages):
        dilation = 2 if dilated and stage == stages - 1 else 1  # instead of the stride, as segmentation has it
        for block in range(n.between(1, 4)):
            stride, inner = (2 if stage and not block and dilation == 1 else 1), step << stage
            branch = n.conv(n.conv(x, inner, 1), inner, 3, stride, groups=cardinality, dilation=dilation)
            branch = n.conv(branch, inner * (4 if cardinality == 1 else 2), 1, act="")
            x = _residual(n, x, branch, stride)
    return n.head(x, n.pick(_CLASSES))


def resnet_bottleneck(n: Net) -> Value:
    return _bottlenecks(n, 1, 64)


def resnext(n: Net) -> Value:
    return _bottlenecks(n, n.pick((4, 8, 16, 32)), 128)


def densenet(n: Net) -> Value:
    x = n.image()
    growth, inner = n.width(32), n.pick((2, 4))
    x = _stem(n, x, 2 * growth)
    stages = n.between(3, 4)
    for stage in range(stages):
        for _ in range(n.between(3, 8)):
            new = n.conv(n.act(n.norm(x), "relu"), inner * growth, 1)
            x = n.concat([x, n.conv(new, growth, 3, act="", norm=False)])
        x = n.act(n.norm(x), "relu")
        if stage < stages - 1:
            x = n.pool(n.conv(x, x.channels // 2, 1, act="", norm=False), "AveragePool", 2, 2)
    return n.head(x, n.pick(_CLASSES))


def mobilenet_v1(n: Net) -> Value:
    x = n.image()
    act = n.pick(("relu", "relu", "relu6"))
    x = n.conv(x, n.width(32), 3, _first_stride(x), act)
    for stage, channels in enumerate((64, 128, 256, 512, 1024)[: n.between(4, 5)]):
        for block in range(n.between(1, 5) if channels == 512 else n.between(1, 2)):
            x = n.depthwise(x, 3, 2 if stage and not block else 1, act)
            x = n.conv(x, n.width(channels), 1, act=act)
    return n.head(x, n.pick(_CLASSES))


def _inverted(
    n: Net, x: Value, hidden: int, out: int, kernel: int, stride: int, act: str, se: tuple[int, str, str]
) -> Value:
    """Expansion, depthwise, squeeze-excite of (hidden width or 0, activation, gate), projection, and the residual."""
    y = x if hidden == x.channels else n.conv(x, hidden, 1, act=act)
    y = n.depthwise(y, kernel, stride, act)
    y = n.squeeze_excite(y, *se) if se[0] else y
    y = n.conv(y, out, 1, act="")
    return n.add(x, y) if stride == 1 and out == x.channels else y


def mobilenet_v2(n: Net) -> Value:
    x = n.image()
    x = n.conv(x, n.width(32), 3, _first_stride(x), "relu6")
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, channels, blocks, stride in stages[: n.between(5, 7)]:
        ratio = n.pick((3, 4, 6, 6)) if expansion > 1 else 1
        for block in range(n.between(1, blocks)):
            x = _inverted(
                n, x, x.channels * ratio, n.width(channels), 3, stride if not block else 1, "relu6", (0, "", "")
            )
    return n.head(n.conv(x, n.width(1280 * n.pick((0.25, 0.5, 1.0))), 1, act="relu6"), n.pick(_CLASSES))


def mobilenet_v3(n: Net) -> Value:
    """Some of the publication's rows are left out."""
    x = n.image()
    x = n.conv(x, n.width(16), 3, _first_stride(x), "hardswish")
    for kernel, hidden, out, se, act, stride in n.pick((_MOBILENET_V3_SMALL, _MOBILENET_V3_LARGE)):
        if stride == 1 and n.chance(0.25):
            continue
        squeeze = (n.width(hidden / 4) if se else 0, "relu", "hardsigmoid")
        x = _inverted(n, x, n.width(hidden), n.width(out), kernel, stride, act, squeeze)
    x = n.conv(x, n.width(6 * x.channels), 1, act="hardswish")
    return n.head(x, n.pick(_CLASSES), hidden=n.width(n.pick((256, 1024))), act="hardswish")


def efficientnet(n: Net) -> Value:
    x = n.image()
    x = n.conv(x, n.width(32), 3, _first_stride(x), "swish")
    rows = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
    )
    for expansion, channels, blocks, stride, kernel in rows[: n.between(4, 6)]:
        for block in range(n.between(1, blocks)):
            squeeze = (max(4, x.channels // 4), "swish", "sigmoid")
            step = stride if not block else 1
            x = _inverted(n, x, x.channels * expansion, n.width(channels), kernel, step, "swish", squeeze)
    return n.head(n.conv(x, n.width(n.pick((320, 640, 1280))), 1, act="swish"), n.pick(_CLASSES))


def shufflenet_v2(n: Net) -> Value:
    x = n.image()
    x = n.conv(x, n.width(24), 3, _first_stride(x))
    x = n.pool(x, "MaxPool", 3, 2, 1) if min(x.shape[2:]) > 48 else x
    sliced = n.chance(0.3)
    for channels in (116, 232, 464)[: n.between(2, 3)]:
        half = n.width(channels / 2)
        for block in range(n.between(2, 6)):
            if not block:
                left = n.conv(n.depthwise(x, 3, 2, ""), half, 1)
                right = n.conv(n.depthwise(n.conv(x, half, 1), 3, 2, ""), half, 1)
            else:
                cuts = n.cut(x, 1, 0, half), n.cut(x, 1, half, 2 * half)
                left, y = cuts if sliced else n.split(x, half, half)
                right = n.conv(n.depthwise(n.conv(y, half, 1), 3, 1, ""), half, 1)
            x = n.shuffle(n.concat([left, right]), 2)
    return n.head(n.conv(x, n.width(n.pick((256, 512, 1024))), 1), n.pick(_CLASSES))


def squeezenet(n: Net) -> Value:
    x = n.image((64, 96, 112, 128, 160, 192, 224))
    x = n.conv(x, n.width(64), 3, 2, norm=False, padding=0)
    x = n.pool(x, "MaxPool", 3, 2, up=True)
    for squeeze in (16, 32, 48, 64)[: n.between(3, 4)]:
        for _ in range(n.between(1, 2)):
            inner = n.conv(x, n.width(squeeze), 1, norm=False)
            expand = n.width(4 * squeeze)
            x = n.concat([n.conv(inner, expand, 1, norm=False), n.conv(inner, expand, 3, norm=False)])
        if squeeze < 48 and min(x.shape[2:]) > 4:
            x = n.pool(x, "MaxPool", 3, 2, up=True)
    return n.flatten(n.plane_mean(n.conv(x, n.pick(_CLASSES), 1, norm=False)))


def _inception_block(n: Net, x: Value, width: int, wide: str) -> Value:
    """1x1, 3x3, pool and a wide branch: 5x5, two 3x3, or 1x7 and 7x1."""
    parts = [n.conv(x, width, 1), n.conv(n.conv(x, n.width(width), 1), n.width(1.5 * width))]
    y = n.conv(x, n.width(width / 2), 1)
    match wide:
        case "5x5":
            y = n.conv(y, n.width(0.75 * width), 5)
        case "3x3":
            y = n.conv(n.conv(y, n.width(0.75 * width)), n.width(0.75 * width))
        case _:
            y = n.conv(n.conv(y, n.width(0.75 * width), (1, 7)), n.width(0.75 * width), (7, 1))
    pooled = n.pool(x, n.pick(("MaxPool", "AveragePool")), 3, 1, 1)
    return n.concat([*parts, y, n.conv(pooled, n.width(width / 2), 1)])


def inception(n: Net) -> Value:
    x = _stem(n, n.image(), n.width(64))
    x = n.conv(n.conv(x, n.width(64), 1), n.width(160))
    wide = n.pick(("5x5", "3x3", "1x7"))
    for width in (64, 128, 192)[: n.between(2, 3)]:
        x = n.pool(x, "MaxPool", 3, 2, up=True)
        for _ in range(n.between(1, 4)):
            x = _inception_block(n, x, n.width(width), wide)
    return n.head(x, n.pick(_CLASSES))


def _ghost(n: Net, x: Value, channels: int, act: str) -> Value:
    """Half of the channels by 1x1 convolution, the others from these by a depthwise one."""
    primary = n.conv(x, (channels + 1) // 2, 1, act=act)
    both = n.concat([primary, n.depthwise(primary, 3, 1, act)])
    return n.cut(both, 1, 0, channels) if both.channels != channels else both


def ghostnet(n: Net) -> Value:
    x = n.image()
    x = n.conv(x, n.width(16), 3, _first_stride(x))
    for kernel, hidden, out, se, stride in _GHOSTNET[: n.between(6, 10)]:
        y = _ghost(n, x, n.width(hidden), "relu")
        y = n.depthwise(y, kernel, stride, "") if stride > 1 else y
        y = n.squeeze_excite(y, n.width(hidden / 4), "relu", "hardsigmoid") if se else y
        y = _ghost(n, y, n.width(out), "")
        if stride > 1 or x.channels != y.channels:
            x = n.conv(n.depthwise(x, kernel, stride, ""), y.channels, 1, act="")
        x = n.add(y, x)
    return n.head(n.conv(x, n.width(960), 1), n.pick(_CLASSES), hidden=n.width(n.pick((256, 1280))))


def _csp(n: Net, x: Value, channels: int, blocks: int, act: str, *, shortcut: bool) -> Value:
    """A cross-stage-partial block: one half goes through bottlenecks, the other past them."""
    half = max(4, channels // 2)
    y, past = n.conv(x, half, 1, act=act), n.conv(x, half, 1, act=act)
    for _ in range(blocks):
        z = n.conv(n.conv(y, half, 1, act=act), half, 3, act=act)
        y = n.add(y, z) if shortcut else z
    return n.conv(n.concat([y, past]), channels, 1, act=act)


def csp_detector(n: Net) -> Value:
    """Backbone, pyramid pooling, a path up and down, and an output of (1, what a box holds, boxes)."""
    x = n.image((64, 96, 128, 160, 192, 224))
    act, base, depth = n.pick(("swish", "swish", "leaky")), n.pick((16, 24, 32)), n.between(1, 2)
    if n.chance(0.4):  # space to depth by four slices
        height, width = x.shape[2:]
        corners = ((0, 0), (1, 0), (0, 1), (1, 1))
        x = n.concat([n.cut(n.cut(x, 2, row, height, 2), 3, column, width, 2) for row, column in corners])
        x = n.conv(x, n.width(base), 3, act=act)
    else:
        x = n.conv(x, n.width(base), 6, 2, act, padding=2)
    levels = []
    for stage in range(1, 4):
        x = n.conv(x, n.width(base << stage), 3, 2, act)
        x = _csp(n, x, x.channels, depth, act, shortcut=True)
        levels.append(x)
    y = n.conv(x, x.channels // 2, 1, act=act)
    pools = [y]
    for _ in range(3):
        pools.append(n.pool(pools[-1], "MaxPool", 5, 1, 2))
    deep = n.conv(n.conv(n.concat(pools), x.channels, 1, act=act), levels[1].channels, 1, act=act)
    fine = _csp(n, n.concat([n.upsample(deep, "nearest"), levels[1]]), deep.channels, depth, act, shortcut=False)
    coarse = n.concat([n.conv(fine, fine.channels, 3, 2, act), deep])
    coarse = _csp(n, coarse, x.channels, depth, act, shortcut=False)
    box = n.pick((18, 24, 75, 255))
    outputs = (n.conv(one, box, 1, act="", norm=False) for one in (fine, coarse))
    flat = [n.reshape(one, 1, box, one.shape[2] * one.shape[3]) for one in outputs]
    return n.act(n.concat(flat, axis=2), "sigmoid")


def unet(n: Net) -> Value:
    x = n.image()
    base, depth, up = n.pick((12, 16, 24, 32)), n.between(2, 4), n.pick(("deconv", "nearest", "linear"))
    skips = []
    for level in range(depth):
        x = n.conv(n.conv(x, n.width(base << level)), n.width(base << level))
        skips.append(x)
        x = n.pool(x, "MaxPool", 2, 2)
    x = n.conv(n.conv(x, n.width(base << depth)), n.width(base << depth))
    for skip in reversed(skips):
        y = n.deconv(x, skip.channels) if up == "deconv" else n.upsample(x, up)
        x = n.conv(n.concat([skip, y]), skip.channels)
        x = n.conv(x, skip.channels)
    return n.conv(x, n.pick((1, 2, 5, 21)), 1, act=n.pick(("", "sigmoid")), norm=False)


def convnext(n: Net) -> Value:
    x = n.image((64, 96, 112, 128, 160, 192, 224))
    patch, base = (4 if min(x.shape[2:]) > 96 else 2), n.pick((32, 40, 64))
    x = n.plane_layer_norm(n.conv(x, n.width(base), patch, patch, "", norm=False, padding=0))
    for stage in range(n.between(3, 4)):
        if stage:
            x = n.conv(n.plane_layer_norm(x), n.width(base << stage), 2, 2, "", norm=False, padding=0)
        for _ in range(n.between(1, 3)):
            y = n.layer_norm(n.transpose(n.depthwise(x, 7, 1, "", norm=False), 0, 2, 3, 1))
            y = n.linear(n.linear(y, 4 * x.channels, "gelu"), x.channels)
            y = n.mul(n.weight((x.channels,), 0.1, 0.5), y)
            x = n.add(x, n.transpose(y, 0, 3, 1, 2))
    return n.linear(n.layer_norm(n.flatten(n.plane_mean(x))), n.pick(_CLASSES))


def _attention(n: Net, x: Value, heads: int, *, joint: bool) -> Value:
    """Self-attention; queries, keys and values from one linear layer (`joint`) or from three."""
    _, tokens, width = x.shape
    size = width // heads
    if joint:
        all_three = n.transpose(n.reshape(n.linear(x, 3 * width), 1, tokens, 3, heads, size), 2, 0, 3, 1, 4)
        query, key, value = (n.take(all_three, index, 0) for index in range(3))
    else:
        parts = [n.reshape(n.linear(x, width), 1, tokens, heads, size) for _ in range(3)]
        query, key, value = (n.transpose(one, 0, 2, 1, 3) for one in parts)
    scores = n.mul(n.matmul(query, n.transpose(key, 0, 1, 3, 2)), 1 / sqrt(size))
    mixed = n.transpose(n.matmul(n.softmax(scores), value), 0, 2, 1, 3)
    return n.linear(n.reshape(mixed, 1, tokens, width), width)


def vit(n: Net) -> Value:
    x = n.image()
    heads, size = n.pick((2, 3, 4, 6)), n.pick((16, 32, 64))
    width, patch = heads * size, n.pick((4, 8, 16, 16))
    x = n.conv(x, width, patch, patch, "", norm=False, padding=0)
    x = n.transpose(n.reshape(x, 1, width, x.shape[2] * x.shape[3]), 0, 2, 1)
    token, joint, ratio = n.chance(0.6), n.chance(0.6), n.pick((2, 3, 4))
    if token:
        x = n.concat([n.weight((1, 1, width), 0.1), x], axis=1)
    x = n.add(x, n.weight(x.shape, 0.1))
    for _ in range(n.between(2, 8)):
        x = n.add(x, _attention(n, n.layer_norm(x), heads, joint=joint))
        x = n.add(x, n.linear(n.linear(n.layer_norm(x), ratio * width, "gelu"), width))
    x = n.layer_norm(x)
    return n.linear(n.take(x, 0, 1) if token else n.mean(x, (1,), (1, width)), n.pick(_CLASSES))


def crnn(n: Net) -> Value:
    """A reader of text lines without its recurrent part: the height shrinks to 1, columns become characters."""
    channels, height, width = n.pick(
        ((3, 32, 128), (3, 48, 192), (1, 32, 160), (1, 32, 100), (3, 48, 320), (3, 32, 280))
    )
    x, act = n.input(channels, height, width), n.pick(("relu", "relu", "hardswish"))
    light = n.chance(0.4)
    for stage, stride in enumerate((2, 2, (2, 1), (2, 1))[: n.between(3, 4)]):
        for block in range(n.between(1, 2)):
            out = n.width(min(512, 48 << stage))
            step = stride if not block else 1
            if light and stage:
                x = n.conv(n.conv(x, x.channels, 3, step, act, groups=x.channels), out, 1, act=act)
            else:
                x = n.conv(x, out, 3, step, act)
    x = n.mean(x, (2,), (1, x.channels, x.shape[3]))
    x = n.transpose(x, 0, 2, 1)
    if n.chance(0.5):
        x = n.linear(x, n.width(96), act)
    return n.softmax(n.linear(x, n.pick((37, 63, 97, 512))))


FAMILIES: Final[tuple[Callable[[Net], Value], ...]] = (
    vgg,
    mobilenet_v2,
    resnet_basic,
    shufflenet_v2,
    efficientnet,
    densenet,
    vit,
    inception,
    mobilenet_v1,
    unet,
    resnet_bottleneck,
    mobilenet_v3,
    squeezenet,
    csp_detector,
    resnext,
    convnext,
    ghostnet,
    crnn,
)


def family(index: int) -> str:
    """The families are dealt in turn."""
    return FAMILIES[index % len(FAMILIES)].__name__


def random_network(seed: int, index: int) -> tuple[onnx.ModelProto, int]:
    """Network `index` of a seed and its multiply-accumulates: redrawn until it is within MACS and PARAMETERS."""
    rng = np.random.default_rng([seed, index])
    while True:
        net = Net(rng)
        output = FAMILIES[index % len(FAMILIES)](net)
        if MACS[0] <= net.macs <= MACS[1] and net.parameters <= PARAMETERS:
            return net.model(output, family(index)), net.macs
