"""What a node of an optimised graph executes, in hwcost's operators.

The runtime's own dialects are covered as far as it makes them of convolutional networks: blocked
(`com.microsoft.nchwc`) and channels-last kernels, fused activations and residuals, quantised kernels. Shapes come out
in NCHW words whatever the layout in memory, so that a layer has one key on every machine. What is no known operator is
None, never a guess.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import onnx

from hwcost.errors import InvalidOperatorError, UnsupportedPrecisionError
from hwcost.ops import (
    FLOAT,
    INT8,
    PLAIN,
    ActivationName,
    Boundary,
    Conv,
    Elementwise,
    Gemm,
    Node,
    Operator,
    Pool,
    Precision,
    TensorType,
)
from hwcost.space import Layer

_ACTIVATIONS: Final[dict[str, ActivationName]] = {
    "": "none",
    "Relu": "relu",
    "Clip": "clip",
    "Sigmoid": "sigmoid",
    "HardSwish": "hardswish",
    "HardSigmoid": "hardsigmoid",
    "Tanh": "tanh",
    "LeakyRelu": "leakyrelu",
}
_PRECISION_OF_TYPE: Final = {"float32": FLOAT, "int8": INT8, "uint8": INT8}
_SLOW_AVERAGES: Final = 19
"""Version of ONNX from which on a plain average pool has another kernel, several times slower."""
_NCHW_TO_NHWC, _NHWC_TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Tensor:
    """What one run says of a tensor; `dtype` is numpy's name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class _Unmapped(Exception):
    """A node that is no known operator; caught where nodes are walked through, and named there."""


@dataclass(frozen=True)
class Graph:
    """An optimised graph with its observed tensors. `origins`: the portable graph's operators by output name, which
    tell the true channels where blocked layouts pad them. `portable`: the graph is not what this machine executes."""

    model: onnx.ModelProto
    tensors: dict[str, Tensor]
    origins: dict[str, Operator]
    portable: bool = False

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def versions(self) -> dict[str, int]:
        """Domain -> version of its operators."""
        return {opset.domain: opset.version for opset in self.model.opset_import}

    @cached_property
    def constants(self) -> frozenset[str]:
        """Tensors that no input influences."""
        names = {tensor.name for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            if all(not name or name in names for name in node.input) and not any(
                a.HasField("g") for a in node.attribute
            ):
                names.update(node.output)
        return frozenset(names)

    @cached_property
    def channels_last(self) -> frozenset[str]:
        """Tensors laid out as NHWC, followed from the kernels and transposes that make them."""
        names: set[str] = set()
        for node in self.model.graph.node:
            attributes = _attributes(node)
            if node.op_type == "Transpose":
                last = tuple(attributes.get("perm", ())) == _NCHW_TO_NHWC
            elif node.op_type in _FOLLOWS_LAYOUT:
                last = any(name in names for name in node.input)
            else:
                last = bool(attributes.get("channels_last")) or node.op_type.startswith("Nhwc")
            if last and node.op_type != "ReorderInput":
                names.update(node.output)
        return frozenset(names)

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise _Unmapped
        return self.tensors[name]

    def words(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, in NCHW words whatever its layout."""
        shape = self.tensor(name).shape
        if name in self.channels_last and len(shape) == 4:
            return tuple(shape[axis] for axis in _NHWC_TO_NCHW)
        return shape

    def origin(self, node: onnx.NodeProto) -> Operator | None:
        """What a blocked node was before it was blocked; the runtime names it after the tensor it makes."""
        return self.origins.get(node.name.removesuffix("_nchwc")) if node.domain == "com.microsoft.nchwc" else None

    def int8(self, activations: str, weights: str) -> Precision:
        """Int8 in the formats of these two tensors."""
        return Precision(
            8, 8, "".join(self.tensor(name).dtype[0] + "8" for name in (activations, weights)).replace("i", "s")
        )

    def precision(self, name: str) -> Precision:
        """Float or int8 by a tensor's type."""
        precision = _PRECISION_OF_TYPE.get(self.tensor(name).dtype)
        if precision is None:
            raise _Unmapped
        return precision


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _activation(attributes: Mapping[str, Any]) -> ActivationName:
    name = attributes.get("activation", b"")
    activation = _ACTIVATIONS.get(name.decode() if isinstance(name, bytes) else str(name))
    if activation is None:
        raise _Unmapped
    return activation


def _planes(graph: Graph, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The planes of a kernel's first input and of its output; a kernel that says its channels are last means both."""
    names = (node.input[0], node.output[0])
    if attributes.get("channels_last") or node.op_type.startswith("Nhwc"):
        shapes = [graph.tensor(name).shape for name in names]
        return tuple(_plane((shape[0], shape[-1], *shape[1:-1])) for shape in shapes)
    return tuple(_plane(graph.words(name)) for name in names)


def _plane(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(batch, channels, height, width); a line is a plane of height 1."""
    if len(shape) == 3:
        return shape[0], shape[1], 1, shape[2]
    if len(shape) != 4:
        raise _Unmapped
    return shape[0], shape[1], shape[2], shape[3]


@dataclass(frozen=True)
class _Window:
    """Kernel, stride and dilation (height, width) and pads (top, left, bottom, right) that give the observed output."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]


def _window(
    attributes: Mapping[str, Any], kernel: tuple[int, ...], before: tuple[int, int], after: tuple[int, int]
) -> _Window:
    """Padding is derived from the sizes before and after wherever the file leaves it to the runtime."""
    rank = len(kernel)
    stride, dilation = (tuple(attributes.get(name) or (1,) * rank) for name in ("strides", "dilations"))
    pads = tuple(attributes.get("pads") or (0,) * (2 * rank))
    if rank == 1:
        kernel, stride, dilation, pads = (1, *kernel), (1, *stride), (1, *dilation), (0, pads[0], 0, pads[1])
    if len(kernel) != 2:
        raise _Unmapped
    upper = attributes.get("auto_pad", b"NOTSET") != b"SAME_LOWER"
    low, high = [pads[0], pads[1]], [pads[2], pads[3]]
    for axis in (0, 1):
        needed = (after[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1 - before[axis]
        if attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
            half = max(needed, 0) // 2
            low[axis], high[axis] = (half, max(needed, 0) - half) if upper else (max(needed, 0) - half, half)
        high[axis] = max(high[axis], needed - low[axis])  # a window that ceil_mode lets hang over the edge
    return _Window(
        (kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1]), (low[0], low[1], high[0], high[1])
    )


def _conv(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    attributes = _attributes(node)
    quantised = node.op_type == "QLinearConv"
    precision = graph.int8(node.input[0], node.input[3]) if quantised else graph.precision(node.input[0])
    line = len(graph.tensor(node.input[0]).shape) == 3  # the runtime blocks nothing but images
    if not quantised and (line or node.input[1] not in graph.initializers) and not graph.portable:
        precision = PLAIN
    activation = _activation(attributes)
    residual = not quantised and len(node.input) > 3 and bool(node.input[3])
    origin = graph.origin(node)
    if isinstance(origin, Conv):
        conv = replace(origin, activation=activation, residual=residual)
    else:
        (batch, in_channels, height, width), (_, _, out_height, out_width) = _planes(graph, node, attributes)
        shape = graph.tensor(node.input[3 if quantised else 1]).shape
        window = _window(attributes, shape[2:], (height, width), (out_height, out_width))
        groups = int(attributes.get("group", 1))
        sizes = (window.kernel, window.stride, window.pads, window.dilation)
        conv = Conv(in_channels, shape[0], height, width, *sizes, groups, activation, batch, residual)
    yield conv, precision


def _gemm(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    attributes = _attributes(node)
    quantised = node.op_type in ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
    place = {"QGemm": 3, "QLinearMatMul": 3}.get(node.op_type, 1)
    left, right, out = graph.tensor(node.input[0]), graph.tensor(node.input[place]), graph.tensor(node.output[0])
    if node.input[place] not in graph.constants or math.prod(right.shape[:-2]) != 1 or len(right.shape) < 2:
        yield from _any(graph, node)  # a product of two activations, or of many matrices
        return
    transposed = bool(attributes.get("transB"))
    k, n = right.shape[-2:] if not transposed else right.shape[:-3:-1]
    if left.elements % k or out.elements % n:
        raise _Unmapped
    precision = graph.int8(node.input[0], node.input[place]) if quantised else graph.precision(node.input[0])
    yield Gemm(out.elements // n, k, n, _activation(attributes)), precision


def _gemm_bits(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    attributes = _attributes(node)
    k, n = int(attributes["K"]), int(attributes["N"])
    if graph.precision(node.input[0]) != FLOAT:
        raise _Unmapped
    yield Gemm(graph.tensor(node.input[0]).elements // k, k, n), Precision(int(attributes.get("bits", 4)), 32)


def _pool(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    """In the size that is executed: where layouts are blocked, whole blocks of channels."""
    attributes = _attributes(node)
    precision = graph.precision(node.input[0])
    if precision == INT8 and not (graph.portable or attributes.get("channels_last") or node.op_type.startswith("Nhwc")):
        yield from _any(graph, node)  # another kernel than those of quantised networks, and a slow one
        return
    late = node.op_type == "AveragePool" and not node.domain and graph.versions.get("", 1) >= _SLOW_AVERAGES
    if late and not graph.portable:
        yield from _any(graph, node)
        return
    (batch, channels, height, width), (_, _, out_height, out_width) = _planes(graph, node, attributes)
    maximum = "Max" in node.op_type
    if "Global" in node.op_type:
        function: Literal["global_max", "global_average"] = "global_max" if maximum else "global_average"
        yield Pool(function, channels, height, width, (height, width), batch=batch), precision
        return
    window = _window(attributes, tuple(attributes["kernel_shape"]), (height, width), (out_height, out_width))
    if window.dilation != (1, 1):
        yield from _any(graph, node)
        return
    yield (
        Pool(
            "max" if maximum else "average", channels, height, width, window.kernel, window.stride, window.pads, batch
        ),
        precision,
    )


def _reduce_mean(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    """A mean over the plane is a global average pool, as far as a device that is not here is concerned."""
    if not graph.portable:
        yield from _any(graph, node)
        return
    shape = graph.words(node.input[0])
    axes: tuple[int, ...] = tuple(_attributes(node).get("axes", ()))
    if len(node.input) > 1:
        if node.input[1] not in graph.initializers:
            raise _Unmapped
        axes = tuple(onnx.numpy_helper.to_array(graph.initializers[node.input[1]]).tolist())
    spatial = {1, 2} if node.input[0] in graph.channels_last else {2, 3}
    if len(shape) != 4 or {axis % 4 for axis in axes} != spatial:
        yield from _any(graph, node)
        return
    yield Pool("global_average", shape[1], *shape[2:], shape[2:], batch=shape[0]), graph.precision(node.input[0])


def _elementwise(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    """One tensor, or two of one shape and type; anything else, a broadcast above all, is a node of its own."""
    function, out = _ELEMENTWISE[node.op_type], graph.tensor(node.output[0])
    quantised = node.op_type.startswith("QLinear")
    places = (0, 3) if quantised else (0, 1)
    operands = node.input[0:1] if function not in ("add", "mul") else [node.input[place] for place in places]
    if len(node.input) > len(places) and node.op_type == "Sum":
        operands = list(node.input)
    same = all(graph.tensor(name) == out for name in operands)
    if not same or len(operands) > 2 or out.dtype not in _PRECISION_OF_TYPE:
        yield from _any(graph, node)
    else:
        yield Elementwise(function, graph.words(node.output[0])), graph.precision(node.output[0])


def _quantised_concat(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    """Inputs of the output's scale and zero-point are copied, those of others go through a table: 1 and 2 as scales."""

    def value(name: str) -> list[float]:
        constant = graph.initializers.get(name)
        return [] if constant is None else onnx.numpy_helper.to_array(constant).reshape(-1).tolist()

    ((op, precision),) = _any(graph, node)
    assert isinstance(op, Node)
    given, inputs = [value(name) for name in node.input], list(op.inputs)
    for place in (0, *range(3, len(inputs), 3)):
        scale, zero_point = (TensorType.parse(text) for text in inputs[place : place + 2])
        same = given[place : place + 2] == given[:2]
        inputs[place] = str(replace(scale, values="1" if same else "2"))
        inputs[place + 1] = str(replace(zero_point, values="0"))
    yield replace(op, inputs=tuple(inputs)), precision


def _any(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    """A node as it stands; raises `_Unmapped` where a tensor is not a plain one, or a graph hides inside."""
    if any(a.HasField("g") or a.graphs or a.HasField("t") for a in node.attribute):
        raise _Unmapped
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = graph.versions.get(domain, 1)
    with contextlib.suppress(onnx.defs.SchemaError):  # of an operator of the runtime's own
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        if any(attribute.name not in schema.attributes for attribute in node.attribute):
            schema = onnx.defs.get_schema(node.op_type, domain)  # the optimiser makes nodes of its own version
        version = schema.since_version
    attributes = {name: _plain(value) for name, value in _attributes(node).items()}
    made = Node(
        node.op_type,
        tuple(_described(graph, node.op_type, name) for name in node.input),
        tuple(_described(graph, node.op_type, name) for name in node.output),
        json.dumps(attributes, sort_keys=True, separators=(",", ":")),
        domain,
        version,
    )
    yield made, INT8 if any(t.dtype in ("int8", "uint8") for t in (*made.reads, *made.writes)) else FLOAT


def _plain(value: Any) -> Any:
    """An attribute as JSON can hold it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, int | str) else round(float(value), 9)


def _described(graph: Graph, op_type: str, name: str) -> str:
    """The text of a tensor; with its values where they say what to compute: shapes, axes, scales, exponents."""
    if not name:
        return ""
    tensor = graph.tensor(name)
    if tensor.dtype not in _DESCRIBED:
        raise _Unmapped
    constant = graph.initializers.get(name)
    if constant is not None and not tensor.elements:
        return ""  # an empty region, empty scales: as good as not given
    values = ""
    decides = tensor.dtype in ("int64", "int32") or op_type in _DECIDED_BY_VALUES
    if constant is not None and decides and 0 < tensor.elements <= _MOST_VALUES:
        values = ",".join(f"{value:.9g}" for value in onnx.numpy_helper.to_array(constant).reshape(-1).tolist())
    return str(TensorType(tensor.dtype, tensor.shape, constant is not None, values))


def _boundary(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    function, shape = _BOUNDARY[node.op_type], graph.words(node.input[0])
    if function in ("quantize", "dequantize"):
        yield Boundary(function, shape), INT8
    elif function == "transpose":
        shape = graph.tensor(node.input[0]).shape
        permutation = tuple(_attributes(node).get("perm") or reversed(range(len(shape))))
        yield Boundary("transpose", shape, permutation), graph.precision(node.input[0])
    elif function == "reorder_output":
        channels = int(_attributes(node)["channels"])
        yield Boundary("reorder_output", (shape[0], channels, *shape[2:])), graph.precision(node.input[0])
    elif function == "reorder_input" and _attributes(node).get("channels_last"):
        batch, height, width, channels = graph.tensor(node.input[0]).shape
        yield Boundary(function, (batch, channels, height, width)), graph.precision(node.input[0])
    else:
        yield Boundary(function, shape), graph.precision(node.input[0])


def _metadata(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    """Changes of shape alone, and questions after it: what they cost does not depend on the type of number."""
    tensor = graph.tensor(node.input[0])
    yield Boundary("reshape", tensor.shape), _PRECISION_OF_TYPE.get(tensor.dtype, FLOAT)


_ELEMENTWISE: Final[dict[str, Any]] = {
    "Add": "add", "Sub": "add", "Sum": "add", "Mul": "mul", "QLinearAdd": "add", "QLinearMul": "mul",
    "Relu": "relu", "Clip": "clip", "Sigmoid": "sigmoid", "QLinearSigmoid": "sigmoid", "HardSwish": "hardswish",
    "HardSigmoid": "hardsigmoid", "Tanh": "tanh", "LeakyRelu": "leakyrelu", "QLinearLeakyRelu": "leakyrelu",
}  # fmt: skip
_DESCRIBED: Final = frozenset({"float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"})
_MOST_VALUES: Final = 16
_DECIDED_BY_VALUES: Final = ("Resize", "Upsample", "Pow")
_BOUNDARY: Final[dict[str, Any]] = {
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "Transpose": "transpose",
    "ReorderInput": "reorder_input",
    "ReorderOutput": "reorder_output",
}
_FOLLOWS_LAYOUT: Final = frozenset(
    {*_ELEMENTWISE, "QuantizeLinear", "DequantizeLinear", "Identity", "Concat", "QLinearConcat"}
)
_MAPPERS: Final[dict[str, Callable[[Graph, onnx.NodeProto], Iterator[Layer]]]] = {
    **dict.fromkeys(("Conv", "FusedConv", "QLinearConv", "NhwcFusedConv"), _conv),
    **dict.fromkeys(
        ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"), _gemm
    ),
    "MatMulNBits": _gemm_bits,
    **dict.fromkeys(("MaxPool", "NhwcMaxPool", "AveragePool", "QLinearAveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "QLinearGlobalAveragePool"), _pool),
    "ReduceMean": _reduce_mean,
    "QLinearConcat": _quantised_concat,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_BOUNDARY, _boundary),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size"), _metadata),
}


def map_node(graph: Graph, node: onnx.NodeProto) -> tuple[Layer, ...] | None:
    """The operators of one node; None where it is no known operator, precision included."""
    try:
        return tuple(_MAPPERS.get(node.op_type, _any)(graph, node))
    except (_Unmapped, InvalidOperatorError, UnsupportedPrecisionError):
        return None
