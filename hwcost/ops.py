"""Operators and precisions: the frozen values that everything else is computed from.

An operator is what the runtime executes as one kernel, with its shapes fixed (batch included). Layout
changes and (de)quantisation are operators of their own (`Boundary`), so that kernel time and boundary time never mix.
Each operator knows its multiply-accumulates, its elements in and out and its parameters; a `Precision`
turns those into bytes. `key(op)` is a stable text: equal operators have equal keys, in any process.
"""

import json
import math
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Final, Literal

from pydantic import Field

from hwcost.errors import InvalidOperatorError, UnsupportedPrecisionError

ActivationName = Literal["none", "relu", "clip", "sigmoid", "hardswish", "hardsigmoid", "tanh", "leakyrelu"]


@dataclass(frozen=True, order=True)
class Precision:
    """Bits of the weights and of the activations of an operator, and the kernel where it is not the usual one.

    Written `w8a8`; `w32a32` is float. For an operator without weights only the activation bits matter. `kernel` names
    what a runtime may use instead of a device's choice, and is written behind a colon: `w8a8:u8s8` is int8 in other
    number formats (of activations and weights) than the device's own, `w32a32:plain` a float convolution whose weights
    are not known beforehand, so that they cannot be laid out for the vector units.
    """

    weight_bits: int
    activation_bits: int
    kernel: str = ""

    def __post_init__(self) -> None:
        bits = (self.weight_bits, self.activation_bits)
        if bits not in _LEGAL_BITS or self.kernel not in ("", *_KERNELS.get(bits, ())):
            raise _no_precision(str(self))

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}" + (f":{self.kernel}" if self.kernel else "")

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """`Precision.parse("w4a8")`; raises `UnsupportedPrecisionError`."""
        found = re.fullmatch(r"w(\d{1,2})a(\d{1,2})(?::(\w+))?", text)
        if found is None:
            raise _no_precision(text)
        return cls(int(found[1]), int(found[2]), found[3] or "")

    def usual_on(self, int8_form: str) -> "Precision":
        """The same, where its kernel is the one that a device of that int8 form uses anyway, without its name."""
        return INT8 if self.kernel == int8_form else self


_LEGAL_BITS = ((32, 32), (8, 8), (4, 8), (2, 8), (8, 32), (4, 32), (2, 32))
_KERNELS = {(32, 32): ("plain",), (8, 8): ("u8u8", "u8s8", "s8s8")}


def _no_precision(text: str) -> UnsupportedPrecisionError:
    names = [f"w{w}a{a}" for w, a in _LEGAL_BITS]
    names += [f"w{w}a{a}:{kernel}" for (w, a), kernels in _KERNELS.items() for kernel in kernels]
    return UnsupportedPrecisionError(f"a precision is one of {', '.join(names)}, got {text!r}")


FLOAT = Precision(32, 32)
PLAIN = Precision(32, 32, "plain")
INT8 = Precision(8, 8)
PRECISIONS = tuple(Precision(w, a) for w, a in _LEGAL_BITS)


def _positive(op: object, *values: int) -> None:
    if any(value < 1 for value in values):
        raise InvalidOperatorError(f"the sizes of an operator are at least 1, got {op}")


def _window_output(size: int, kernel: int, stride: int, dilation: int, pads: int) -> int:
    return (size + pads - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class Conv:
    """2-D convolution, NCHW in words whatever the layout in memory; a fused activation belongs to it.

    kernel, stride, dilation: (height, width); pads: (top, left, bottom, right). `residual`: a tensor of the output's
    shape is added before the activation, inside the kernel.
    """

    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: ActivationName = "none"
    batch: int = 1
    residual: bool = False
    kind: Literal["conv"] = "conv"

    def __post_init__(self) -> None:
        _positive(self, self.in_channels, self.out_channels, self.height, self.width, self.groups, self.batch)
        _positive(self, *self.kernel, *self.stride, *self.dilation)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise InvalidOperatorError(f"the channels of a convolution are divisible by its groups, got {self}")
        if min(self.pads) < 0 or min(self.output_height, self.output_width) < 1:
            raise InvalidOperatorError(f"a convolution has an output of at least 1x1 and no negative pads, got {self}")

    @classmethod
    def square(
        cls,
        in_channels: int,
        out_channels: int,
        size: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: ActivationName = "none",
    ) -> "Conv":
        """Square input and kernel, padded by kernel // 2, batch 1."""
        pad = kernel // 2
        return cls(
            in_channels,
            out_channels,
            size,
            size,
            (kernel, kernel),
            (stride, stride),
            (pad, pad, pad, pad),
            groups=groups,
            activation=activation,
        )

    @property
    def output_height(self) -> int:
        return _window_output(
            self.height, self.kernel[0], self.stride[0], self.dilation[0], self.pads[0] + self.pads[2]
        )

    @property
    def output_width(self) -> int:
        return _window_output(self.width, self.kernel[1], self.stride[1], self.dilation[1], self.pads[1] + self.pads[3])

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def weights(self) -> int:
        return self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def channels(self) -> int:
        """Output channels: a bias and a scale each."""
        return self.out_channels

    @property
    def macs(self) -> int:
        return self.weights * self.output_height * self.output_width * self.batch

    @property
    def input_elements(self) -> int:
        own = self.batch * self.in_channels * self.height * self.width
        return own + (self.output_elements if self.residual else 0)

    @property
    def output_elements(self) -> int:
        return self.batch * self.out_channels * self.output_height * self.output_width


@dataclass(frozen=True)
class Gemm:
    """Constant weights: y[m, n] = x[m, k] w[k, n] + b[n]. A MatMul with a constant right side is a Gemm too."""

    m: int
    k: int
    n: int
    activation: ActivationName = "none"
    kind: Literal["gemm"] = "gemm"

    def __post_init__(self) -> None:
        _positive(self, self.m, self.k, self.n)

    @property
    def weights(self) -> int:
        return self.k * self.n

    @property
    def channels(self) -> int:
        return self.n

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n

    @property
    def input_elements(self) -> int:
        return self.m * self.k

    @property
    def output_elements(self) -> int:
        return self.m * self.n


class _Weightless:
    """Operators without weights, and without multiply-accumulates in the sense of the literature."""

    @property
    def weights(self) -> int:
        return 0

    @property
    def channels(self) -> int:
        return 0

    @property
    def macs(self) -> int:
        return 0


PoolFunction = Literal["max", "average", "global_average", "global_max"]


@dataclass(frozen=True)
class Pool(_Weightless):
    """2-D pooling; for the global functions the kernel is the whole plane."""

    function: PoolFunction
    channels_in: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    batch: int = 1
    kind: Literal["pool"] = "pool"

    def __post_init__(self) -> None:
        _positive(self, self.channels_in, self.height, self.width, self.batch, *self.kernel, *self.stride)
        if self.function.startswith("global") and self.kernel != (self.height, self.width):
            raise InvalidOperatorError(f"the kernel of a global pool is the whole plane, got {self}")
        if min(self.pads) < 0 or min(self.output_height, self.output_width) < 1:
            raise InvalidOperatorError(f"a pool has an output of at least 1x1 and no negative pads, got {self}")

    @classmethod
    def global_average(cls, channels: int, height: int, width: int) -> "Pool":
        return cls("global_average", channels, height, width, (height, width))

    @property
    def output_height(self) -> int:
        return _window_output(self.height, self.kernel[0], self.stride[0], 1, self.pads[0] + self.pads[2])

    @property
    def output_width(self) -> int:
        return _window_output(self.width, self.kernel[1], self.stride[1], 1, self.pads[1] + self.pads[3])

    @property
    def input_elements(self) -> int:
        return self.batch * self.channels_in * self.height * self.width

    @property
    def output_elements(self) -> int:
        return self.batch * self.channels_in * self.output_height * self.output_width


ElementwiseFunction = Literal["add", "mul", "relu", "clip", "sigmoid", "hardswish", "hardsigmoid", "tanh", "leakyrelu"]
_BINARY = ("add", "mul")


@dataclass(frozen=True)
class Elementwise(_Weightless):
    """A function applied to every element of one tensor, or of two of the same shape (`add`, `mul`)."""

    function: ElementwiseFunction
    shape: tuple[int, ...]
    kind: Literal["elementwise"] = "elementwise"

    def __post_init__(self) -> None:
        _positive(self, *self.shape)

    @property
    def input_elements(self) -> int:
        return math.prod(self.shape) * (2 if self.function in _BINARY else 1)

    @property
    def output_elements(self) -> int:
        return math.prod(self.shape)


BoundaryFunction = Literal["quantize", "dequantize", "transpose", "reorder_input", "reorder_output", "reshape"]


@dataclass(frozen=True)
class Boundary(_Weightless):
    """A change of layout or number format between kernels; `shape` is the input's, `permutation` a transpose's."""

    function: BoundaryFunction
    shape: tuple[int, ...]
    permutation: tuple[int, ...] = ()
    kind: Literal["boundary"] = "boundary"

    def __post_init__(self) -> None:
        _positive(self, *self.shape)
        if self.function == "transpose" and sorted(self.permutation) != list(range(len(self.shape))):
            raise InvalidOperatorError(f"a transpose names every axis once, got {self}")

    @property
    def input_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def output_elements(self) -> int:
        return math.prod(self.shape)


_TENSOR = re.compile(r"(=?)([a-z][a-z0-9]*)\[((?:\d+(?:,\d+)*)?)\](?::(.+))?")
_BITS = {"bool": 8, "float64": 64, "int64": 64, "uint64": 64, "int32": 32, "uint32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True)
class TensorType:
    """Type and shape of a tensor that a node reads or writes, as one text: `float32[1,64,28,28]`.

    A constant is marked `=float32[64]`; its values follow where they decide what is computed: `=int64[2]:2,3`.
    """

    dtype: str
    shape: tuple[int, ...]
    constant: bool = False
    values: str = ""

    def __str__(self) -> str:
        values = f":{self.values}" if self.values else ""
        return f"{'=' * self.constant}{self.dtype}[{','.join(map(str, self.shape))}]{values}"

    @classmethod
    def parse(cls, text: str) -> "TensorType":
        """The inverse of `str`; raises `InvalidOperatorError`."""
        found = _TENSOR.fullmatch(text)
        if found is None:
            raise InvalidOperatorError(f"a tensor is written like float32[1,64,28,28] or =int64[2]:2,3, got {text!r}")
        shape = tuple(map(int, found[3].split(","))) if found[3] else ()
        return cls(found[2], shape, bool(found[1]), found[4] or "")

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * _BITS.get(self.dtype, 8 if self.dtype.endswith("int8") else 32) // 8


@lru_cache(maxsize=65536)
def _tensors(texts: tuple[str, ...]) -> tuple[TensorType, ...]:
    return tuple(TensorType.parse(text) for text in texts if text)


_PARTIAL: Final = ("Slice", "Gather")
"""Types of nodes that read no more than they write, however long the tensor is that it is taken from."""
BRANCHING: Final = ("PRelu", "Where")
"""Types of nodes that take one way or another by every element of what they read first."""


@dataclass(frozen=True)
class Node(_Weightless):
    """Any other node of a graph, exactly as the runtime executes it.

    `inputs` and `outputs` are texts of `TensorType`, empty for an optional one that is not given; `attributes` is
    JSON with sorted keys; `version` is that of the operator's definition in `domain` (empty: ONNX's own).
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: str = "{}"
    domain: str = ""
    version: int = 1
    kind: Literal["node"] = "node"

    def __post_init__(self) -> None:
        if not self.op_type.isidentifier() or not self.outputs or self.version < 1:
            raise InvalidOperatorError(f"a node has a type, an output and a version of at least 1, got {self}")
        _positive(self, *(size for tensor in (*self.reads, *self.writes) for size in tensor.shape))

    @property
    def reads(self) -> tuple[TensorType, ...]:
        """The inputs that are given."""
        return _tensors(self.inputs)

    @property
    def writes(self) -> tuple[TensorType, ...]:
        """The outputs that are asked for."""
        return _tensors(self.outputs)

    @property
    def constants(self) -> tuple[TensorType, ...]:
        """The constant inputs whose values do not matter."""
        return tuple(tensor for tensor in self.reads if tensor.constant and not tensor.values)

    @property
    def weights(self) -> int:
        """Elements of its `constants`."""
        return sum(tensor.elements for tensor in self.constants)

    @property
    def macs(self) -> int:
        """Of products of matrices, attention and transposed convolutions; other nodes count as none."""
        if "MatMul" in self.op_type and len(self.reads) > 1:
            return self.output_elements * self.contracted
        if self.op_type == "ConvTranspose":
            weights = self.reads[1]
            return self.reads[0].elements * weights.elements // weights.shape[0]
        if self.op_type == "Attention":  # every token with every other one, twice
            queries, second = self.reads[:2]
            projected = 0 if not second.constant else queries.elements * second.shape[-1]  # of [width, 3 width]
            return projected + 2 * queries.elements * (queries if second.constant else second).shape[-2]
        if self.op_type == "ConvInteger":
            return self.output_elements * math.prod(self.reads[1].shape[1:])
        # [steps, batch, inputs], [ways, gates, inputs], [ways, gates, hidden]; with 8-bit weights, gates are last
        if self.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
            return self.reads[0].elements // self.reads[0].shape[-1] * sum(t.elements for t in self.reads[1:3])
        return 0

    @property
    def contracted(self) -> int:
        """Over how many elements each of a product of matrices is a sum; fused ones may turn the first factor."""
        turned = len(self.reads[0].shape) > 1 and bool(json.loads(self.attributes).get("transA"))
        return self.reads[0].shape[-2 if turned else -1]

    @property
    def input_elements(self) -> int:
        return sum(tensor.elements for tensor in self.reads if not tensor.constant)

    @property
    def output_elements(self) -> int:
        return sum(tensor.elements for tensor in self.writes)


Operator = Annotated[Conv | Gemm | Pool | Elementwise | Boundary | Node, Field(discriminator="kind")]
"""Any operator; files carry it as an object with its `kind`."""


def key(op: Operator) -> str:
    """Stable text of an operator, equal for equal operators: `conv(in_channels=16,...)`."""
    parts = (f"{field.name}={getattr(op, field.name)}" for field in fields(op) if field.name != "kind")
    return f"{op.kind}({','.join(parts)})".replace(" ", "")


def weight_uses(op: Operator) -> float:
    """How often a product uses each of its weights; 0 for what is none, or has none."""
    return op.macs / op.weights if op.macs and op.weights else 0.0


def weight_bytes(op: Operator, precision: Precision) -> int:
    """Stored bytes of an operator: weights packed at their width, a 4-byte bias and (quantised) a 4-byte scale per
    output channel; constants of a node that is no product are as they are. Storage, not what the runtime unpacks into
    memory."""
    if not op.weights:
        return 0
    if isinstance(op, Node) and not op.macs:
        return sum(tensor.bytes for tensor in op.constants)
    per_channel = 4 if precision.weight_bits == 32 else 8
    return math.ceil(op.weights * precision.weight_bits / 8) + per_channel * op.channels


def activation_bytes(op: Operator, precision: Precision) -> int:
    """Bytes of the activations an operator writes."""
    if isinstance(op, Boundary) and op.function == "dequantize":
        return 4 * op.output_elements
    if isinstance(op, Node):
        return sum(tensor.bytes for tensor in op.writes)
    return op.output_elements * precision.activation_bits // 8


def tensor_bytes(op: Operator, precision: Precision) -> int:
    """Bytes of the tensors, constants apart, that one execution reads and writes."""
    reads = op.input_elements * precision.activation_bits // 8
    if isinstance(op, Boundary) and op.function == "quantize":
        reads = 4 * op.input_elements
    if isinstance(op, Node):
        reads = sum(tensor.bytes for tensor in op.reads if not tensor.constant)
        if op.op_type in _PARTIAL:
            reads = min(reads, activation_bytes(op, precision))
    return reads + activation_bytes(op, precision)


def bytes_moved(op: Operator, precision: Precision) -> int:
    """Bytes read and written by one execution with cold caches: inputs, outputs and stored weights."""
    return tensor_bytes(op, precision) + weight_bytes(op, precision)
