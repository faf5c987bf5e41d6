"""Builds the ONNX graph of a convolutional network or a small transformer node by node, as exporters write them.

A `Net` follows the shapes (batch 1) and counts multiply-accumulates and parameters while a family describes itself;
weights are drawn only by `Net.model`, so that a network outside the limits costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod, sqrt
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

T = TypeVar("T")
SIZES: Final = (32, 48, 64, 96, 112, 128, 160, 192, 224)
OPSETS: Final = (13, 15, 17, 18, 21)
_FLOATS: Final = TensorProto.FLOAT


class Value(NamedTuple):
    """A tensor of the graph; images are (1, channels, height, width), token sequences (1, tokens, width)."""

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[1]


class _Weight(NamedTuple):
    """Normal with mean `centre` and deviation `spread`; about 1 it is uniform instead, so that it stays positive."""

    name: str
    shape: tuple[int, ...]
    centre: float
    spread: float


@dataclass(frozen=True)
class Style:
    """How an exporter writes what can be written in several ways."""

    opset: int
    folded: bool  # batch norm is part of the convolutions' weights, or BatchNormalization nodes
    gemm_head: bool  # the classifier is Flatten and Gemm, or a 1x1 convolution
    reduce_mean: bool  # the mean over the plane is ReduceMean, or GlobalAveragePool
    hard_ops: bool  # HardSwish and HardSigmoid, or Add, Clip, Div and Mul
    norm_op: bool  # LayerNormalization, or ReduceMean, Sub, Pow, ...

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Style":
        opset = OPSETS[rng.integers(len(OPSETS))]
        folded, gemm_head, reduce_mean, hard_ops, norm_op = (rng.random(5) < (0.7, 0.75, 0.4, 0.6, 0.6)).tolist()
        return cls(opset, folded, gemm_head, reduce_mean, hard_ops and opset >= 14, norm_op and opset >= 17)


class Net:
    """One network in the making; `rng` is also what its family draws depths and widths from."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.style = Style.draw(rng)
        self.macs = 0
        self._multiplier = float(np.exp(rng.uniform(np.log(0.35), np.log(1.5))))
        self._divisor = self.pick((8, 8, 8, 8, 8, 8, 8, 4, 4, 1))
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[Value] = []
        self._weights: list[_Weight] = []
        self._constants: list[onnx.TensorProto] = []

    # What a family draws

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def between(self, low: int, high: int) -> int:
        """Both ends are possible."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def width(self, channels: float) -> int:
        """Channels of the literature times this network's multiplier, in its steps; at least 8."""
        scaled = channels * self._multiplier
        return max(8, round(scaled / self._divisor) * self._divisor)

    def image(self, sizes: Sequence[int] = SIZES, channels: int = 3) -> Value:
        """The network's input: square, but for one in five."""
        height = self.pick(sizes)
        return self.input(channels, height, self.pick(sizes) if self.chance(0.2) else height)

    # Inputs, weights and plain nodes

    def input(self, *shape: int) -> Value:
        self._inputs.append(Value(f"input{len(self._inputs) or ''}", (1, *shape)))
        return self._inputs[-1]

    def weight(self, shape: Sequence[int], spread: float, centre: float = 0.0) -> Value:
        self._weights.append(_Weight(f"weight{len(self._weights)}", tuple(shape), centre, spread))
        return Value(self._weights[-1].name, tuple(shape))

    def constant(self, value: Sequence[int] | NDArray[Any] | float) -> Value:
        """Integers become int64, a float a float scalar."""
        array = np.asarray(value, np.float32 if isinstance(value, float) else None)
        self._constants.append(numpy_helper.from_array(array, f"constant{len(self._constants)}"))
        return Value(self._constants[-1].name, array.shape)

    def node(self, kind: str, inputs: Sequence[Value], shape: Sequence[int], **attributes: Any) -> Value:
        return self.nodes(kind, inputs, [shape], **attributes)[0]

    def nodes(self, kind: str, inputs: Sequence[Value], shapes: Sequence[Sequence[int]], **extra: Any) -> list[Value]:
        """A node with one output of each shape."""
        name = f"{kind.lower()}{len(self._nodes)}"
        outputs = [Value(name if len(shapes) == 1 else f"{name}_{i}", tuple(shape)) for i, shape in enumerate(shapes)]
        names = [one.name for one in inputs]
        self._nodes.append(helper.make_node(kind, names, [one.name for one in outputs], name, **extra))
        return outputs

    def unary(self, kind: str, x: Value) -> Value:
        return self.node(kind, [x], x.shape)

    def binary(self, kind: str, x: Value, y: Value | float) -> Value:
        """Element by element, broadcast as numpy does."""
        other = self.constant(y) if isinstance(y, float) else y
        return self.node(kind, [x, other], np.broadcast_shapes(x.shape, other.shape))

    def add(self, x: Value, y: Value | float) -> Value:
        return self.binary("Add", x, y)

    def mul(self, x: Value, y: Value | float) -> Value:
        return self.binary("Mul", x, y)

    # Layers of images

    def conv(
        self,
        x: Value,
        channels: int,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        act: str = "relu",
        *,
        groups: int = 1,
        norm: bool = True,
        padding: int | None = None,
        dilation: int = 1,
    ) -> Value:
        """Convolution, batch norm (`norm`) and activation ("" for none); padded to keep the plane unless told."""
        (kh, kw), (sh, sw) = _pair(kernel), _pair(stride)
        ph, pw = (dilation * (k // 2) if padding is None else padding for k in (kh, kw))
        height, width = (
            (n + 2 * p - dilation * (k - 1) - 1) // s + 1 for n, p, k, s in _planes(x, ph, pw, kh, kw, sh, sw)
        )
        shape = (1, channels, height, width)
        fan_in = x.channels // groups * kh * kw
        self.macs += prod(shape) * fan_in
        separate = norm and not self.style.folded
        parameters = [self.weight((channels, x.channels // groups, kh, kw), sqrt((2 if act else 1) / fan_in))]
        if not separate:
            parameters.append(self.weight((channels,), 0.1))
        places = {"kernel_shape": (kh, kw), "strides": (sh, sw), "pads": (ph, pw, ph, pw)}
        made = self.node("Conv", [x, *parameters], shape, group=groups, dilations=(dilation, dilation), **places)
        return self.act(self.norm(made) if separate else made, act)

    def depthwise(self, x: Value, kernel: int = 3, stride: int = 1, act: str = "relu", *, norm: bool = True) -> Value:
        return self.conv(x, x.channels, kernel, stride, act, groups=x.channels, norm=norm)

    def deconv(self, x: Value, channels: int) -> Value:
        """A transposed 2x2 convolution that doubles the plane."""
        height, width = x.shape[2:]
        self.macs += prod(x.shape) * channels * 4
        parameters = [self.weight((x.channels, channels, 2, 2), sqrt(1 / x.channels)), self.weight((channels,), 0.1)]
        shape = (1, channels, 2 * height, 2 * width)
        return self.node("ConvTranspose", [x, *parameters], shape, kernel_shape=(2, 2), strides=(2, 2))

    def norm(self, x: Value) -> Value:
        """A BatchNormalization node."""
        scale, variance = (self.weight((x.channels,), 0.2, 1.0) for _ in range(2))
        shift, mean = (self.weight((x.channels,), 0.1) for _ in range(2))
        return self.node("BatchNormalization", [x, scale, shift, mean, variance], x.shape, epsilon=1e-5)

    def act(self, x: Value, kind: str) -> Value:
        match kind:
            case "":
                return x
            case "relu" | "sigmoid":
                return self.unary(kind.capitalize(), x)
            case "leaky":
                return self.node("LeakyRelu", [x], x.shape, alpha=0.1)
            case "relu6":
                return self.node("Clip", [x, self.constant(0.0), self.constant(6.0)], x.shape)
            case "swish":
                return self.mul(x, self.unary("Sigmoid", x))
            case "hardsigmoid" if self.style.hard_ops:
                return self.node("HardSigmoid", [x], x.shape, alpha=1 / 6, beta=0.5)
            case "hardsigmoid":
                return self.binary("Div", self.act(self.add(x, 3.0), "relu6"), 6.0)
            case "hardswish" if self.style.hard_ops:
                return self.unary("HardSwish", x)
            case "hardswish":
                return self.binary("Div", self.mul(x, self.act(self.add(x, 3.0), "relu6")), 6.0)
            case "gelu":
                erf = self.unary("Erf", self.binary("Div", x, sqrt(2)))
                return self.mul(self.mul(x, self.add(erf, 1.0)), 0.5)
        raise ValueError(f"an activation that is known was expected, got {kind!r}")

    def pool(self, x: Value, kind: str, kernel: int, stride: int, padding: int = 0, *, up: bool = False) -> Value:
        """MaxPool or AveragePool; `up` rounds the plane up, as `ceil_mode` does."""
        plane = (n + 2 * padding - kernel for n in x.shape[2:])
        shape = (1, x.channels, *(ceil(n / stride) + 1 if up else n // stride + 1 for n in plane))
        places = {"kernel_shape": (kernel, kernel), "strides": (stride, stride), "pads": (padding,) * 4}
        return self.node(kind, [x], shape, ceil_mode=int(up), **places)

    def plane_mean(self, x: Value) -> Value:
        """(1, channels, 1, 1)."""
        shape = (*x.shape[:2], 1, 1)
        return self.mean(x, (2, 3), shape) if self.style.reduce_mean else self.node("GlobalAveragePool", [x], shape)

    def mean(self, x: Value, axes: tuple[int, ...], shape: Sequence[int]) -> Value:
        """ReduceMean; `shape` tells whether the axes are kept."""
        keep = int(len(shape) == len(x.shape))
        if self.style.opset < 18:
            return self.node("ReduceMean", [x], shape, axes=axes, keepdims=keep)
        return self.node("ReduceMean", [x, self.constant(axes)], shape, keepdims=keep)

    def squeeze_excite(self, x: Value, hidden: int, act: str, gate: str) -> Value:
        inner = self.conv(self.plane_mean(x), hidden, 1, act=act, norm=False)
        return self.mul(x, self.conv(inner, x.channels, 1, act=gate, norm=False))

    def upsample(self, x: Value, mode: str) -> Value:
        """Doubles the plane; `mode` is nearest or linear."""
        scales = self.constant(np.array((1, 1, 2, 2), np.float32))
        places = {"nearest": ("asymmetric", "floor"), "linear": ("half_pixel", "round_prefer_floor")}[mode]
        shape = (*x.shape[:2], *(2 * n for n in x.shape[2:]))
        where, rounding = places
        parts = [x, Value("", ()), scales]
        return self.node("Resize", parts, shape, mode=mode, coordinate_transformation_mode=where, nearest_mode=rounding)

    def head(self, x: Value, classes: int, *, hidden: int = 0, act: str = "relu") -> Value:
        """Mean over the plane and classifier, with a hidden layer of that width where one is asked for."""
        x = self.plane_mean(x)
        if not self.style.gemm_head:
            if hidden:
                x = self.conv(x, hidden, 1, act=act, norm=False)
            return self.flatten(self.conv(x, classes, 1, act="", norm=False))
        x = self.flatten(x)
        if hidden:
            x = self.linear(x, hidden, act)
        return self.linear(x, classes)

    # Shapes

    def flatten(self, x: Value) -> Value:
        return self.node("Flatten", [x], (1, prod(x.shape)), axis=1)

    def reshape(self, x: Value, *shape: int) -> Value:
        return self.node("Reshape", [x, self.constant(shape)], shape)

    def transpose(self, x: Value, *order: int) -> Value:
        return self.node("Transpose", [x], [x.shape[axis] for axis in order], perm=order)

    def concat(self, values: Sequence[Value], axis: int = 1) -> Value:
        shape = list(values[0].shape)
        shape[axis] = sum(one.shape[axis] for one in values)
        return self.node("Concat", values, shape, axis=axis)

    def split(self, x: Value, *channels: int) -> list[Value]:
        """Along the channels."""
        return self.nodes("Split", [x, self.constant(channels)], [(1, c, *x.shape[2:]) for c in channels], axis=1)

    def cut(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """A Slice along one axis."""
        shape = list(x.shape)
        shape[axis] = len(range(start, stop, step))
        return self.node("Slice", [x, *(self.constant([one]) for one in (start, stop, axis, step))], shape)

    def take(self, x: Value, index: int, axis: int) -> Value:
        """A Gather of one index; the axis is gone."""
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
        return self.node("Gather", [x, self.constant(np.array(index, np.int64))], shape, axis=axis)

    def shuffle(self, x: Value, groups: int) -> Value:
        """Channels of the groups interleaved."""
        _, channels, *plane = x.shape
        apart = self.transpose(self.reshape(x, 1, groups, channels // groups, *plane), 0, 2, 1, 3, 4)
        return self.reshape(apart, 1, channels, *plane)

    # Layers of sequences

    def linear(self, x: Value, features: int, act: str = "", *, bias: bool = True) -> Value:
        """Gemm for (1, width), MatMul and Add for anything longer, as torch's linear layer is exported."""
        given = x.shape[-1]
        shape = (*x.shape[:-1], features)
        self.macs += prod(shape) * given
        spread = sqrt((2 if act else 1) / given)
        if len(shape) == 2:
            made = self.node(
                "Gemm", [x, self.weight((features, given), spread), self.weight((features,), 0.1)], shape, transB=1
            )
        else:
            made = self.matmul(x, self.weight((given, features), spread), count=False)
            made = self.add(self.weight((features,), 0.1), made) if bias else made
        return self.act(made, act)

    def matmul(self, x: Value, y: Value, *, count: bool = True) -> Value:
        shape = (*x.shape[:-1], y.shape[-1])
        self.macs += prod(shape) * x.shape[-1] * count
        return self.node("MatMul", [x, y], shape)

    def softmax(self, x: Value) -> Value:
        return self.node("Softmax", [x], x.shape, axis=-1)

    def layer_norm(self, x: Value) -> Value:
        """Over the last axis."""
        scale, shift = self.weight(x.shape[-1:], 0.2, 1.0), self.weight(x.shape[-1:], 0.1)
        if self.style.norm_op:
            return self.node("LayerNormalization", [x, scale, shift], x.shape, axis=-1, epsilon=1e-6)
        last, kept = (len(x.shape) - 1,), (*x.shape[:-1], 1)
        centred = self.binary("Sub", x, self.mean(x, last, kept))
        variance = self.mean(self.binary("Pow", centred, 2.0), last, kept)
        deviation = self.node("Sqrt", [self.add(variance, 1e-6)], kept)
        return self.add(self.mul(self.binary("Div", centred, deviation), scale), shift)

    def plane_layer_norm(self, x: Value) -> Value:
        """Over the channels of an image, between two transposes."""
        return self.transpose(self.layer_norm(self.transpose(x, 0, 2, 3, 1)), 0, 3, 1, 2)

    # The result

    @property
    def parameters(self) -> int:
        return sum(prod(one.shape) for one in self._weights)

    def model(self, output: Value, name: str) -> onnx.ModelProto:
        """The checked model; its weights are the next draws of `rng`."""
        initializers = [numpy_helper.from_array(self._draw(one), one.name) for one in self._weights]
        inputs, outputs = (
            [helper.make_tensor_value_info(one.name, _FLOATS, one.shape) for one in side]
            for side in (self._inputs, [output])
        )
        graph = helper.make_graph(self._nodes, name, inputs, outputs, [*initializers, *self._constants])
        opsets = [helper.make_opsetid("", self.style.opset)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets), producer_name="benchmarks"
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _draw(self, weight: _Weight) -> NDArray[np.float32]:
        if weight.centre:
            low, high = weight.centre - weight.spread, weight.centre + weight.spread
            return self.rng.uniform(low, high, weight.shape).astype(np.float32)
        return self.rng.standard_normal(weight.shape, np.float32) * np.float32(weight.spread)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _planes(
    x: Value, ph: int, pw: int, kh: int, kw: int, sh: int, sw: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """(length, padding, kernel, stride) of both axes."""
    return (x.shape[2], ph, kh, sh), (x.shape[3], pw, kw, sw)
