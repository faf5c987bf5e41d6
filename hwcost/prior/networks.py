"""Random convolutional networks, to learn on what whole networks cost beyond the sum of their kernels.

Plain, residual, inverted (with or without squeeze-and-excitation), dense, branched, shuffled and channels-last blocks
behind a stem, a classifier behind them; encoders with a decoder; and attention over patches: at the sizes of published
networks. Weights and batch norms are random, and no network is a published one.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwcost.prior.draws import pick

_OPSET: Final = 17
_SIDES: Final = (32, 48, 64, 96, 128, 160, 192, 224)
_LARGE_SIDES: Final = (128, 160, 192, 224, 256, 320)
_MACS: Final = (0, 700_000_000)
_LARGE_MACS: Final = (700_000_000, 3_000_000_000)
"""Of half of the networks, which run as long as most published ones do."""
_MOST_NUMBERS: Final = 25_000_000
"""Weights of a network at most, but of those that are there for their weights."""
_ATTEMPTS: Final = 40
"""So many are drawn before one that is too small will do."""
_BLOCKS: Final = (
    "plain",
    "branched",
    "inverted",
    "heavy",
    "dense",
    "attention",
    "residual",
    "shuffled",
    "excited",
    "wide",
    "pyramid",
    "channels last",
)
_HEADS: Final = ("plain", "plain", "wide", "hidden")
"""What classifies: at once; behind many more channels (arXiv 1801.04381); behind a hidden layer too (1905.02244)."""
_ACTIVATIONS: Final = {"plain": ("relu",), "inverted": ("clip", "hardswish"), "excited": ("silu", "hardswish", "relu")}


@dataclass
class _Network:
    """A network under construction: `x` is the last tensor, of `channels` and `side`."""

    rng: np.random.Generator
    side: int
    x: str = "image"
    channels: int = 3
    macs: int = 0
    numbers: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    @property
    def excessive(self) -> bool:
        """Whether it is too large already, whatever follows."""
        return self.macs > _LARGE_MACS[1] or self.numbers > _MOST_NUMBERS

    def constant(self, value: NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        self.numbers += value.size
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, list(inputs), [name], name=f"{op_type}{len(self.nodes)}", **attributes)
        )
        self.x = name
        return name

    def conv(self, made: int, kernel: int, stride: int = 1, groups: int = 1, activation: str = "") -> str:
        """Padded to keep the plane; an even window, as patches have, is not."""
        pad = kernel // 2 * (kernel % 2)
        shape = (made, self.channels // groups, kernel, kernel)
        scale = math.sqrt(2 / math.prod(shape[1:]))
        weights = self.constant(self.rng.normal(0, scale, shape).astype(np.float32))
        bias = self.constant(self.rng.normal(0, 0.1, made).astype(np.float32))
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "group": groups}
        self.node("Conv", self.x, weights, bias, **sizes)
        self.side = (self.side + 2 * pad - kernel) // stride + 1
        self.channels = made
        self.macs += math.prod(shape) * self.side**2
        return self.activate(activation)

    def activate(self, activation: str) -> str:
        x = self.x
        if activation == "relu":
            self.node("Relu", x)
        elif activation == "clip":
            self.node("Clip", x, self.constant(np.zeros((), np.float32)), self.constant(np.full((), 6, np.float32)))
        elif activation == "hardswish":
            self.node("HardSwish", x)
        elif activation == "silu":
            self.node("Mul", x, self.node("Sigmoid", x))
        return self.x

    def batch_norm(self) -> str:
        """One that stands before its convolution, where nothing can fold it."""
        shape = (self.channels,)
        values = [self.rng.uniform(0.5, 1.5, shape), self.rng.normal(0, 0.1, shape)]
        values += [self.rng.normal(0, 0.1, shape), self.rng.uniform(0.5, 1.5, shape)]
        return self.node("BatchNormalization", self.x, *(self.constant(v.astype(np.float32)) for v in values))

    def layer_norm(self) -> str:
        ones, zeros = (self.constant(np.full(self.channels, value, np.float32)) for value in (1, 0))
        return self.node("LayerNormalization", self.x, ones, zeros, axis=-1)

    def dense(self, made: int) -> str:
        """The same product for every token or pixel, with a bias."""
        self.macs += self.channels * made * self.side**2
        weights = self.rng.normal(0, math.sqrt(1 / self.channels), (self.channels, made))
        self.node("MatMul", self.x, self.constant(weights.astype(np.float32)))
        self.channels = made
        return self.node("Add", self.x, self.constant(self.rng.normal(0, 0.1, made).astype(np.float32)))

    def perceptron(self, times: int) -> str:
        """Wider and back, with a GELU as exporters write it."""
        width = self.channels
        x = self.dense(times * width)
        root, one, half = (self.constant(np.full((), value, np.float32)) for value in (math.sqrt(2), 1, 0.5))
        self.node("Add", self.node("Erf", self.node("Div", x, root)), one)
        self.node("Mul", self.node("Mul", x, self.x), half)
        return self.dense(width)

    def reshape(self, *shape: int) -> str:
        return self.node("Reshape", self.x, self.constant(np.array(shape, np.int64)))

    def attend(self, tokens: int, heads: int, times: int) -> None:
        """A block of a transformer encoder (arXiv 1706.03762), norms first, its perceptron so many times as wide."""
        before, width = self.x, self.channels
        normed, parts = self.layer_norm(), []
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            self.x = normed
            self.dense(width)
            self.reshape(1, tokens, heads, width // heads)
            parts.append(self.node("Transpose", self.x, perm=order))
        scale = self.constant(np.full((), math.sqrt(width / heads), np.float32))
        self.node("Softmax", self.node("Div", self.node("MatMul", *parts[:2]), scale), axis=-1)
        self.node("Transpose", self.node("MatMul", self.x, parts[2]), perm=[0, 2, 1, 3])
        self.reshape(1, tokens, width)
        before = self.node("Add", self.dense(width), before)
        self.layer_norm()
        self.node("Add", self.perceptron(times), before)

    def branches(self, width: int, stride: int, activation: str) -> None:
        """Windows of several sizes beside each other (arXiv 1409.4842)."""
        before, taken, side, ends = self.x, self.channels, self.side, list[str]()
        parts = [max(round(width * share / 8), 1) * 8 for share in (0.25, 0.4, 0.2, 0.15)]
        for kernels, part in zip(((1,), (1, 3), (1, 3, 3), ()), parts, strict=True):
            self.x, self.channels, self.side = before, taken, side
            if not kernels:
                self.node("MaxPool", self.x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
                kernels = (1,)
            for place, kernel in enumerate(kernels):
                self.conv(part, kernel, stride if place == len(kernels) - 1 else 1, activation=activation)
            ends.append(self.x)
        self.node("Concat", *ends, axis=1)
        self.channels = sum(parts)

    def shuffle(self, width: int, stride: int, activation: str) -> None:
        """Half of the channels go through, half through convolutions, and they are mixed (arXiv 1807.11164)."""
        half = self.channels // 2
        if stride == 2 or self.channels % 2 or width != self.channels:
            half = width // 2
            self.conv(2 * half, 1, activation=activation)
            if stride == 2:
                self.conv(2 * half, 3, 2, 2 * half)
        name = f"t{len(self.nodes)}"
        split = helper.make_node("Split", [self.x], [name, f"{name}b"], name=f"Split{len(self.nodes)}", axis=1)
        self.nodes.append(split)
        self.x, self.channels = f"{name}b", half
        self.conv(half, 1, activation=activation)
        self.conv(half, 3, 1, half)
        self.conv(half, 1, activation=activation)
        self.node("Concat", name, self.x, axis=1)
        self.channels = 2 * half
        self.reshape(1, 2, half, self.side, self.side)
        self.node("Transpose", self.x, perm=[0, 2, 1, 3, 4])
        self.reshape(1, 2 * half, self.side, self.side)

    def last(self, width: int, stride: int, kernel: int) -> None:
        """A depthwise window, then a perceptron over channels that lie last (arXiv 2201.03545)."""
        if stride == 2 or width != self.channels:
            self.conv(width, stride, stride)
        before = self.x
        self.conv(width, kernel + 2, 1, width)
        self.node("Transpose", self.x, perm=[0, 2, 3, 1])
        self.layer_norm()
        self.perceptron(pick(self.rng, (3, 4)))
        self.node("Transpose", self.x, perm=[0, 3, 1, 2])
        self.node("Add", self.x, before)

    def excite(self) -> str:
        """Squeeze-and-excitation (arXiv 1709.01507)."""
        x, channels, side = self.x, self.channels, self.side
        self.node("GlobalAveragePool", x)
        self.side = 1
        self.conv(max(channels // 4, 8), 1, activation="relu")
        self.conv(channels, 1)
        self.node("Sigmoid", self.x)
        self.side = side
        return self.node("Mul", x, self.x)

    def block(self, kind: str, width: int, stride: int, kernel: int, activation: str) -> None:
        before, taken = self.x, self.channels
        if kind == "branched":
            self.branches(width, stride, activation)
            return
        if kind == "shuffled":
            self.shuffle(width, stride, activation)
            return
        if kind == "channels last":
            self.last(width, stride, kernel)
            return
        if kind == "plain":
            self.conv(width, kernel, stride, activation="relu")
            return
        if kind == "dense":
            for _ in range(3):
                x, channels = self.x, self.channels
                self.batch_norm()
                self.activate("relu")
                self.conv(2 * max(width // 4, 8), 1, activation="relu")
                self.conv(max(width // 4, 8), 3)
                self.node("Concat", x, self.x, axis=1)
                self.channels += channels
            self.conv(width, 1, activation="relu")
            if stride == 2:
                self.node("AveragePool", self.x, kernel_shape=[2, 2], strides=[2, 2])
                self.side //= 2
            return
        if kind in ("inverted", "excited"):
            hidden = taken * pick(self.rng, (3, 4, 6))
            self.conv(hidden, 1, activation=activation)
            self.conv(hidden, kernel, stride, hidden, activation)
            if kind == "excited":
                self.excite()
            self.conv(width, 1)
            if stride == 1 and taken == width:
                self.node("Add", before, self.x)
            return
        if kind == "bottleneck":
            self.conv(max(width // 4, 8), 1, activation="relu")
            self.conv(max(width // 4, 8), 3, stride, activation="relu")
            self.conv(width, 1)
        else:
            self.conv(width, 3, stride, activation="relu")
            self.conv(width, 3)
        after, side = self.x, self.side
        if stride == 2 or taken != width:
            self.x, self.channels, self.side = before, taken, side * stride
            before = self.conv(width, 1, stride)
        self.side = side
        self.node("Add", after, before)
        self.activate("relu")

    def heavy(self) -> onnx.ModelProto:
        """Few wide layers with more weights than caches hold (as AlexNet and VGG end)."""
        self.side = pick(self.rng, (24, 32, 48))
        self.shape = (1, 3, self.side, self.side)
        for width in (64, 192, pick(self.rng, (256, 384)), pick(self.rng, (256, 384, 512))):
            self.conv(width, 3, 2 if self.side > 12 else 1, activation="relu")
        self.node("MaxPool", self.x, kernel_shape=[2, 2], strides=[2, 2])
        self.side //= 2
        self.node("Flatten", self.x)
        self.channels *= self.side**2
        for _ in range(2):
            self.gemm(pick(self.rng, (512, 1024, 2048, 4096)))
            self.activate("relu")
        return self.model(pooled=False)

    def attention(self, blocks: int) -> onnx.ModelProto:
        """Patches of an image as tokens (arXiv 2010.11929)."""
        patch = pick(self.rng, (8, 16)) if self.side <= 128 else 16
        heads = pick(self.rng, (2, 3, 4, 6))
        self.conv(heads * pick(self.rng, (32, 48, 64)), patch, patch)
        tokens = self.side**2
        self.reshape(1, self.channels, tokens)
        self.node("Transpose", self.x, perm=[0, 2, 1])
        times = pick(self.rng, (2, 4))
        for _ in range(blocks):
            self.attend(tokens, heads, times)
        self.layer_norm()
        self.node("ReduceMean", self.x, axes=[1], keepdims=0)
        return self.model(pooled=False)

    def pyramid(self) -> onnx.ModelProto:
        """An encoder and a decoder that sees what the encoder saw (arXiv 1505.04597)."""
        width = pick(self.rng, (8, 12, 16, 24, 32))
        seen: list[tuple[str, int]] = []
        for _ in range(int(self.rng.integers(2, 4))):
            self.conv(width, 3, activation="relu")
            self.conv(width, 3, activation="relu")
            seen.append((self.x, width))
            self.node("MaxPool", self.x, kernel_shape=[2, 2], strides=[2, 2])
            self.side //= 2
            width = round(width * self.rng.uniform(1.4, 2) / 8) * 8
        self.conv(width, 3, activation="relu")
        for x, width in reversed(seen):
            self.conv(width, 1)
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            self.node("Resize", self.x, "", scales, mode="nearest")
            self.node("Concat", x, self.x, axis=1)
            self.side *= 2
            self.channels = 2 * width
            self.conv(width, 3, activation="relu")
        return self.model()

    def drawn(self, kind: str, large: bool) -> onnx.ModelProto:
        """Stages of blocks of one kind behind a stem; a large network is deeper."""
        if kind == "attention":
            return self.attention(int(self.rng.integers(*((6, 13) if large else (3, 7)))))
        if kind == "pyramid":
            return self.pyramid()
        rng = self.rng
        activation = pick(rng, _ACTIVATIONS.get(kind, ("relu",)))
        width = pick(rng, (8, 12, 16, 24, 32, 48, 64))
        if kind == "wide":  # weights in the late layers, as deep residual networks have them
            self.side = self.side if large else pick(rng, _SIDES[:4])
            self.shape = (1, 3, self.side, self.side)
            kind, width = "bottleneck", pick(rng, (128, 224) if large else (224, 320, 448))
            self.conv(width // 4, 3, 2, activation=activation)
        self.conv(width, pick(rng, (3, 3, 5, 7)), 2, activation=activation)
        if self.side > 64:
            self.node("MaxPool", self.x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
            self.side = (self.side - 1) // 2 + 1
        stages, blocks = ((3, 6), (2, 6)) if large else ((2, 5), (1, 4))
        for stage in range(int(rng.integers(*stages))):
            width = round(width * rng.uniform(1.2, 2.2) / 8) * 8
            for number in range(int(rng.integers(*blocks))):
                if self.excessive:
                    break
                if number < 2:
                    state = rng.bit_generator.state
                else:  # the blocks of a stage are alike but for the first, as in published networks
                    rng.bit_generator.state = state
                stride = 2 if number == 0 and stage and self.side > 6 else 1
                self.block(kind, width, stride, pick(rng, (3, 3, 5)), activation)
        return self.model()

    def gemm(self, made: int) -> str:
        scale = math.sqrt(2 / self.channels)
        weights = self.constant(
            (self.rng.standard_normal((made, self.channels), dtype=np.float32) * scale).astype(np.float32)
        )
        self.channels = made
        return self.node("Gemm", self.x, weights, self.constant(np.zeros(made, np.float32)), transB=1)

    def model(self, pooled: bool = True) -> onnx.ModelProto:
        head = pick(self.rng, _HEADS) if pooled else "plain"
        if head != "plain":
            self.conv(pick(self.rng, (576, 768, 960, 1280)), 1, activation="relu")
        if pooled:
            self.node("GlobalAveragePool", self.x)
            self.node("Flatten", self.x)
        if head == "hidden":
            self.gemm(pick(self.rng, (768, 1024, 1280)))
            self.activate("hardswish")
        classes = pick(self.rng, (10, 100, 1000, 1000))
        self.gemm(classes)
        return helper.make_model(
            helper.make_graph(
                self.nodes,
                "network",
                [helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)],
                [helper.make_tensor_value_info(self.x, TensorProto.FLOAT, [1, classes])],
                self.constants,
            ),
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=9,
        )

    def __post_init__(self) -> None:
        self.shape = (1, 3, self.side, self.side)


def random_network(seed: int, index: int) -> onnx.ModelProto:
    """Network `index` of a seed, float, one image in NCHW; its blocks are of the kind whose turn it is, and every
    second one is large, of other kinds when their turn comes again."""
    turn, place = divmod(index, len(_BLOCKS))
    kind, large = _BLOCKS[place], (turn + place) % 2 == 1
    (least, most), sides = (_LARGE_MACS, _LARGE_SIDES) if large else (_MACS, _SIDES)
    for attempt in range(10 * _ATTEMPTS):
        rng = np.random.default_rng([seed, index, attempt])
        network = _Network(rng, pick(rng, sides))
        if kind == "heavy":
            return network.heavy()
        model = network.drawn(kind, large)
        if (least if attempt < _ATTEMPTS else 0) <= network.macs <= most and not network.excessive:
            return model
    raise AssertionError("a small network is drawn in a few attempts")
