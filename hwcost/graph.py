"""One-operator ONNX graphs: every way to run an operator at a precision.

Float and int8 graphs are the ones that the runtime makes of a trained network: `QLinearConv`, `QGemm` and their like,
weights quantised per output channel. Where it has no int8 kernel, the float one stands between dequantisation and
quantisation, and is not native. Weights of 8, 4 and 2 bits with float activations exist for matrix products only
(`MatMulNBits`). Nothing here runs a model.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, assert_never, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from hwcost.errors import UnsupportedPrecisionError
from hwcost.ops import (
    BRANCHING,
    FLOAT,
    INT8,
    PLAIN,
    Boundary,
    Conv,
    Elementwise,
    Gemm,
    Node,
    Operator,
    Pool,
    Precision,
    TensorType,
    key,
)
from hwcost.profiles import Int8Form

Array = npt.NDArray[Any]

_OPSET: Final = 21
_POOL_OPSET: Final = 18
"""The last one whose averages of windows have a kernel that is written for speed; later ones are nodes of their own."""
_OLDEST_OPSET: Final = 7
IR_VERSION: Final = 10
_ACTIVATION_SCALE: Final = 0.05
_WEIGHT_SCALE: Final = 0.004
_CHANNEL_SPREAD, _NOISE_SPREAD, _RECTIFIED_MOST = 2.0, 0.5, 8.0
"""How far the means of channels lie apart, of images and of noise, and where 8 bits end, in standard deviations of the
elements of one."""
_MATMUL_BLOCK: Final = 32

_BLOCKS: Final = (8, 16)
"""Channels of a block in the runtime's blocked layouts; which of them a CPU has, it does not tell."""
_WEIGHT_ONLY: Final = (Precision(8, 32), Precision(4, 32), Precision(2, 32))
_FUSED: Final = ("none", "relu", "clip", "sigmoid", "hardswish", "hardsigmoid", "tanh", "leakyrelu")
"""Activations that the runtime computes inside a float kernel."""
_FOLDED: Final = ("none", "relu", "clip")
"""Activations that cost nothing in an int8 kernel: they are the range of its output."""
_QLINEAR: Final = ("add", "mul", "sigmoid", "leakyrelu")
_NODES: Final = {
    "add": "Add",
    "mul": "Mul",
    "relu": "Relu",
    "clip": "Clip",
    "sigmoid": "Sigmoid",
    "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "tanh": "Tanh",
    "leakyrelu": "LeakyRelu",
    "max": "MaxPool",
    "average": "AveragePool",
    "global_average": "GlobalAveragePool",
    "global_max": "GlobalMaxPool",
}


@dataclass(frozen=True)
class Candidate:
    """One way to run an operator: a model, inputs for it, and what it must answer where in doubt.

    `rewritten` says that the runtime's optimiser decides which kernel is executed; otherwise the model is executed as
    it is written. Where `expected` is given, the error is at most `tolerance` of it, by root mean square.
    """

    model: onnx.ModelProto
    feeds: dict[str, Array]
    note: str
    native: bool = True
    rewritten: bool = True
    expected: Array | None = None
    tolerance: float = 0.0


@dataclass
class _Graph:
    """A model under construction, with its random generator and int8 form."""

    rng: np.random.Generator
    form: Int8Form
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    feeds: dict[str, Array] = field(default_factory=dict)

    def constant(self, value: npt.ArrayLike) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, op_type: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def microsoft(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.node(op_type, inputs, domain="com.microsoft", **attributes)

    def float_input(self, shape: Sequence[int]) -> str:
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.rng.standard_normal(tuple(shape), dtype=np.float32)
        return name

    def int8_input(self, shape: Sequence[int]) -> str:
        low, high, kind = (0, 256, np.uint8) if self.form[0] == "u" else (-128, 128, np.int8)
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.rng.integers(low, high, tuple(shape), dtype=kind)
        return name

    def activation_scale(self) -> tuple[str, str]:
        """Scale and zero-point of an int8 activation."""
        zero = np.uint8(128) if self.form[0] == "u" else np.int8(0)
        return self.constant(np.float32(_ACTIVATION_SCALE)), self.constant(zero)

    def int8_weights(self, shape: tuple[int, ...]) -> tuple[str, str, str]:
        """Weights of (output channels, ...) with a scale and a zero-point per output channel."""
        zero, kind = (128, np.uint8) if self.form[2] == "u" else (0, np.int8)
        weights = self.rng.integers(-127, 128, shape) + zero
        scales = self.rng.uniform(0.5, 1.0, shape[0]).astype(np.float32) * _WEIGHT_SCALE / math.sqrt(shape[1])
        return self.constant(weights.astype(kind)), self.constant(scales), self.constant(np.full(shape[0], zero, kind))

    def int32_bias(self, channels: int) -> str:
        return self.constant(self.rng.integers(-500, 500, channels, dtype=np.int32))

    def candidate(self, output: str, note: str = "", opset: int = _OPSET, **options: Any) -> Candidate:
        domains = dict.fromkeys(["com.microsoft", *(node.domain for node in self.nodes if node.domain)])
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        inputs = [typed(name, array) for name, array in self.feeds.items()]
        graph = helper.make_graph(
            self.nodes, "operator", inputs, [helper.make_empty_tensor_value_info(output)], self.constants
        )
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return Candidate(model, dict(self.feeds), note, **options)


def typed(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def supported_precisions(op: Operator) -> tuple[Precision, ...]:
    """The precisions that have a kernel of their own for this operator, float first; empty where it has none.

    Those of a kernel that is not the device's choice are left out: `graph.other_kernels` has them.
    """
    match op:
        case Conv():
            return (FLOAT,) * (op.activation in _FUSED) + (INT8,) * (op.activation in _FOLDED and not op.residual)
        case Gemm():
            weight_only = _WEIGHT_ONLY if op.activation == "none" else ()
            return (FLOAT,) * (op.activation in _FUSED) + (INT8,) * (op.activation in _FOLDED) + weight_only
        case Pool() | Elementwise():
            return FLOAT, INT8
        case Boundary(function="quantize" | "dequantize"):
            return (INT8,)
        case Boundary(function="reorder_input" | "reorder_output"):
            return (FLOAT,) * (len(op.shape) == 4)
        case Boundary():
            return FLOAT, INT8
        case Node():
            return (INT8 if any(tensor.dtype in ("int8", "uint8") for tensor in (*op.reads, *op.writes)) else FLOAT,)
        case _:
            assert_never(op)


def other_kernels(op: Operator, form: Int8Form) -> tuple[Precision, ...]:
    """What exported networks make a runtime run beside the kernels of its choice, on a device of this int8 form.

    Quantisation tools write 8-bit weights signed, mostly; and weights that are stored in 8 bits beside a float
    convolution are read anew in every run.
    """
    if not isinstance(op, Conv | Gemm):
        return ()
    plain = (PLAIN,) * (isinstance(op, Conv) and op.activation == "none" and not op.residual)
    forms = tuple(Precision(8, 8, other) for other in ("u8s8", "u8u8") if other != form)
    return plain + forms * (INT8 in supported_precisions(op))


def candidates(op: Operator, precision: Precision, form: Int8Form, rng: np.random.Generator) -> tuple[Candidate, ...]:
    """Every realisation worth trying, weights and inputs drawn from `rng`; raises `UnsupportedPrecisionError`."""
    supported = (*supported_precisions(op), *other_kernels(op, form))
    if precision not in supported:
        raise UnsupportedPrecisionError(
            f"an operator is measured at precisions that have a kernel ({', '.join(map(str, supported)) or 'none'}), "
            f"got {precision} for {key(op)}: narrower weights run on the w8a8 kernel, and an activation that does not "
            "fuse is an operator of its own"
        )
    graph = _Graph(rng, cast(Int8Form, precision.kernel) if precision.weight_bits == 8 and precision.kernel else form)
    match op:
        case Conv():
            if precision.activation_bits == 8:
                return (_qlinear_conv(graph, op),)
            return (_plain_conv(graph, op) if precision == PLAIN else _conv(graph, op),)
        case Gemm():
            if precision in _WEIGHT_ONLY:
                return _matmul_nbits(rng, form, op, precision.weight_bits)
            return (_gemm(graph, op) if precision == FLOAT else _qgemm(graph, op),)
        case Pool():
            return (_pool(graph, op) if precision == FLOAT else _int8_pool(graph, op),)
        case Elementwise():
            return (_elementwise(graph, op) if precision == FLOAT else _int8_elementwise(graph, op),)
        case Boundary(function="reorder_input"):
            return (_reorder(graph, op, _BLOCKS[0]),)
        case Boundary(function="reorder_output"):
            return tuple(_reorder(_Graph(rng, form), op, block) for block in _BLOCKS)
        case Boundary():
            return (_boundary(graph, op, precision),)
        case Node():
            return (_node(graph, op),)
        case _:
            assert_never(op)


def _activated(graph: _Graph, function: str, x: str) -> str:
    """`x` through a one-argument function, float."""
    if function == "clip":
        return graph.node("Clip", [x, graph.constant(np.float32(0)), graph.constant(np.float32(6))])
    return x if function == "none" else graph.node(_NODES[function], [x])


def _window(op: Conv | Pool) -> dict[str, Any]:
    return {"kernel_shape": op.kernel, "strides": op.stride, "pads": op.pads}


def _conv(graph: _Graph, op: Conv) -> Candidate:
    shape = (op.out_channels, op.in_channels // op.groups, *op.kernel)
    weights = graph.constant(graph.rng.standard_normal(shape, dtype=np.float32) / math.sqrt(math.prod(shape[1:])))
    bias = graph.constant(graph.rng.standard_normal(op.out_channels, dtype=np.float32))
    x = graph.float_input((op.batch, op.in_channels, op.height, op.width))
    y = graph.node("Conv", [x, weights, bias], group=op.groups, dilations=op.dilation, **_window(op))
    if op.residual:  # made by a convolution itself: an input of the graph is in another layout, and does not fuse
        ones = graph.constant(np.ones((op.out_channels, 1, 1, 1), np.float32))
        other = graph.float_input((op.batch, op.out_channels, op.output_height, op.output_width))
        y = graph.node("Add", [y, graph.node("Conv", [other, ones], group=op.out_channels, kernel_shape=[1, 1])])
    y = _activated(graph, op.activation, y)
    if op.activation == "hardswish":  # melts with a convolution only where it does not make an output of the graph
        y = graph.node("Transpose", [y], perm=[0, 2, 3, 1])
    return graph.candidate(y)


def _plain_conv(graph: _Graph, op: Conv) -> Candidate:
    """With weights that flow in, as dequantised ones do."""
    shape = (op.out_channels, op.in_channels // op.groups, *op.kernel)
    inputs = [graph.float_input((op.batch, op.in_channels, op.height, op.width)), graph.float_input(shape)]
    inputs.append(graph.float_input((op.out_channels,)))
    y = graph.node("Conv", inputs, group=op.groups, dilations=op.dilation, **_window(op))
    return graph.candidate(y, "weights read anew", rewritten=False)


def _qlinear_conv(graph: _Graph, op: Conv) -> Candidate:
    x = graph.int8_input((op.batch, op.in_channels, op.height, op.width))
    weights = graph.int8_weights((op.out_channels, op.in_channels // op.groups, *op.kernel))
    inputs = [x, *graph.activation_scale(), *weights, *graph.activation_scale(), graph.int32_bias(op.out_channels)]
    y = graph.node("QLinearConv", inputs, group=op.groups, dilations=op.dilation, **_window(op))
    return graph.candidate(y, graph.form)


def _gemm(graph: _Graph, op: Gemm) -> Candidate:
    weights = graph.constant(graph.rng.standard_normal((op.n, op.k), dtype=np.float32) / math.sqrt(op.k))
    bias = graph.constant(graph.rng.standard_normal(op.n, dtype=np.float32))
    y = graph.node("Gemm", [graph.float_input((op.m, op.k)), weights, bias], transB=1)
    return graph.candidate(_activated(graph, op.activation, y))


def _qgemm(graph: _Graph, op: Gemm) -> Candidate:
    x = [graph.int8_input((op.m, op.k)), *graph.activation_scale()]
    inputs = [*x, *graph.int8_weights((op.n, op.k)), graph.int32_bias(op.n), *graph.activation_scale()]
    return graph.candidate(graph.microsoft("QGemm", inputs, transB=1), graph.form)


def _matmul_nbits(rng: np.random.Generator, form: Int8Form, op: Gemm, bits: int) -> tuple[Candidate, ...]:
    """`MatMulNBits` with and without int8 activations inside (`accuracy_level`); which is faster depends on the CPU."""
    blocks = math.ceil(op.k / _MATMUL_BLOCK)
    codes = rng.integers(0, 2**bits, (op.n, blocks, _MATMUL_BLOCK), dtype=np.uint8)
    places = np.arange(0, 8, bits, dtype=np.uint8)
    grouped = codes.reshape(op.n, blocks, -1, 8 // bits) << places
    packed = np.bitwise_or.reduce(grouped, axis=-1).astype(np.uint8)
    scales = rng.uniform(0.5, 1.0, (op.n, blocks)).astype(np.float32) / np.float32(2**bits * math.sqrt(op.k))
    bias = rng.standard_normal(op.n, dtype=np.float32)
    found: list[Candidate] = []
    # The zero-point of unsigned codes is the middle of their range where none is given.
    dense = ((codes.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]).reshape(op.n, -1)[:, : op.k]
    x = rng.standard_normal((op.m, op.k), dtype=np.float32)
    expected = x @ dense.T + bias
    for level, note in ((4, "accuracy_level=4"), (0, "accuracy_level unset")):
        graph = _Graph(rng, form, feeds={"x0": x})
        inputs = [
            "x0",
            graph.constant(packed),
            graph.constant(scales.reshape(op.n, blocks)),
            "",
            "",
            graph.constant(bias),
        ]
        attributes = {"K": op.k, "N": op.n, "bits": bits, "block_size": _MATMUL_BLOCK}
        if level:
            attributes["accuracy_level"] = level
        y = graph.microsoft("MatMulNBits", inputs, **attributes)
        found.append(graph.candidate(y, f"{bits}-bit, {note}", expected=expected, tolerance=0.02))
    return tuple(found)


def _pool(graph: _Graph, op: Pool) -> Candidate:
    x = graph.float_input((op.batch, op.channels_in, op.height, op.width))
    return graph.candidate(_float_pool(graph, op, x), opset=_POOL_OPSET)


def _float_pool(graph: _Graph, op: Pool, x: str) -> str:
    return graph.node(_NODES[op.function], [x], **({} if op.function.startswith("global") else _window(op)))


def _int8_pool(graph: _Graph, op: Pool) -> Candidate:
    """In NHWC, as pools stand between int8 convolutions; a global maximum has no int8 kernel."""
    channels_first = (op.batch, op.channels_in, op.height, op.width)
    if op.function == "global_max":
        return _emulated(graph, channels_first, lambda x: _float_pool(graph, op, x))
    x = graph.int8_input((op.batch, op.height, op.width, op.channels_in))
    inputs = [x, *graph.activation_scale(), *graph.activation_scale()]
    if op.function == "max":
        y = graph.microsoft("NhwcMaxPool", [x], **_window(op))
    elif op.function == "average":
        y = graph.microsoft("QLinearAveragePool", inputs, channels_last=1, **_window(op))
    else:
        y = graph.microsoft("QLinearGlobalAveragePool", inputs, channels_last=1)
    return graph.candidate(y, graph.form[:2], rewritten=False)


def _emulated(graph: _Graph, shape: Sequence[int], function: Callable[[str], str]) -> Candidate:
    """A float kernel between dequantisation and quantisation."""
    x = graph.node("DequantizeLinear", [graph.int8_input(shape), *graph.activation_scale()])
    y = graph.node("QuantizeLinear", [function(x), *graph.activation_scale()])
    return graph.candidate(y, f"float kernel on {graph.form[:2]} tensors", native=False, rewritten=False)


def _elementwise(graph: _Graph, op: Elementwise) -> Candidate:
    if op.function in ("add", "mul"):
        y = graph.node(_NODES[op.function], [graph.float_input(op.shape), graph.float_input(op.shape)])
    else:
        y = _activated(graph, op.function, graph.float_input(op.shape))
    return graph.candidate(y)


def _int8_elementwise(graph: _Graph, op: Elementwise) -> Candidate:
    if op.function not in _QLINEAR:
        return _emulated(graph, op.shape, lambda x: _activated(graph, op.function, x))
    inputs = [graph.int8_input(op.shape), *graph.activation_scale()]
    if op.function in ("add", "mul"):
        inputs += [graph.int8_input(op.shape), *graph.activation_scale()]
    y = graph.microsoft(f"QLinear{_NODES[op.function]}", [*inputs, *graph.activation_scale()])
    return graph.candidate(y, graph.form[:2], rewritten=False)


def _boundary(graph: _Graph, op: Boundary, precision: Precision) -> Candidate:
    if op.function == "quantize":
        y = graph.node("QuantizeLinear", [graph.float_input(op.shape), *graph.activation_scale()])
    elif op.function == "dequantize":
        y = graph.node("DequantizeLinear", [graph.int8_input(op.shape), *graph.activation_scale()])
    else:
        x = graph.float_input(op.shape) if precision == FLOAT else graph.int8_input(op.shape)
        if op.function == "transpose":
            y = graph.node("Transpose", [x], perm=op.permutation)
        else:
            y = graph.node("Reshape", [x, graph.constant(np.array([op.shape[0], -1], dtype=np.int64))])
    return graph.candidate(y, "" if precision == FLOAT else graph.form[:2], rewritten=False)


def _reorder(graph: _Graph, op: Boundary, block: int) -> Candidate:
    """Between NCHW and the runtime's blocked layout, whose channels are padded to whole blocks."""
    batch, channels, *plane = op.shape
    if op.function == "reorder_input":
        y = graph.node("ReorderInput", [graph.float_input(op.shape)], domain="com.microsoft.nchwc")
        return graph.candidate(y, rewritten=False)
    x = graph.float_input((batch, math.ceil(channels / block) * block, *plane))
    y = graph.node("ReorderOutput", [x], domain="com.microsoft.nchwc", channels=channels)
    return graph.candidate(y, f"blocks of {block}", rewritten=False)


def _node(graph: _Graph, op: Node) -> Candidate:
    """The node as it stands. Activations are positive numbers (of either sign where a kernel branches on it), indices
    0, constants what their values say."""
    names = [_tensor(graph, TensorType.parse(text)) if text else "" for text in op.inputs]
    if op.op_type in BRANCHING and names[0] in graph.feeds:
        graph.feeds[names[0]] = _of_either_sign(graph.rng, graph.feeds[names[0]])
    attributes = json.loads(op.attributes)
    outputs = [f"y{place}" if text else "" for place, text in enumerate(op.outputs)]
    node = helper.make_node(op.op_type, names, outputs, name="n0", domain=op.domain, **attributes)
    graph.nodes.append(node)
    version = max(op.version, _OLDEST_OPSET) if op.domain == "" else 1
    return graph.candidate(outputs[0], rewritten=False, opset=_OPSET if op.domain else version)


def _of_channels(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> Array:
    """Normal numbers around the mean of their channel (second axis), which is normal too, so many times as wide."""
    means = (1, *shape[1:2], *(1 for _ in shape[2:]))[: len(shape)]
    centre = spread * rng.standard_normal(means, dtype=np.float32)
    values: Array = centre + rng.standard_normal(shape, dtype=np.float32)
    return values


def _rectified(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers 0 to 127 as a network's feature maps hold them behind a ReLU: half are 0, more of one channel (second
    axis) than of another. A kernel that branches on what it reads, as the 8-bit MaxPool, mispredicts less than on
    noise."""
    values = np.maximum(_of_channels(rng, shape, _CHANNEL_SPREAD), 0)
    scaled: Array = np.minimum(np.round(values * (127 / _RECTIFIED_MOST)), 127)
    return scaled


def _of_either_sign(rng: np.random.Generator, like: Array) -> Array:
    """What a network makes of noise, or where that is above 0: hardly anything foretells a number's sign, but that one
    channel (second axis) lies a little higher than another."""
    noise = _of_channels(rng, like.shape, _NOISE_SPREAD)
    return noise > 0 if like.dtype == np.bool_ else noise.astype(like.dtype)


def _tensor(graph: _Graph, tensor: TensorType) -> str:
    kind = np.dtype(tensor.dtype)
    if tensor.values:
        return graph.constant(np.array([float(v) for v in tensor.values.split(",")]).astype(kind).reshape(tensor.shape))
    if np.issubdtype(kind, np.floating):
        value = graph.rng.uniform(0.25, 1.75, tensor.shape).astype(kind)
    elif kind in (np.int8, np.uint8) and len(tensor.shape) == 4 and not tensor.constant:
        value = _rectified(graph.rng, tensor.shape).astype(kind)
    elif kind in (np.int8, np.uint8, np.bool_):
        value = graph.rng.integers(0, 2 if kind == np.bool_ else 128, tensor.shape).astype(kind)
    else:
        value = np.zeros(tensor.shape, kind)
    if tensor.constant:
        return graph.constant(value)
    name = f"x{len(graph.feeds)}"
    graph.feeds[name] = value
    return name
