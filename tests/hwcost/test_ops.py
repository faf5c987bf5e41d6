import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional

from hwcost.errors import InvalidOperatorError, UnsupportedPrecisionError
from hwcost.ops import (
    FLOAT,
    INT8,
    PLAIN,
    PRECISIONS,
    Boundary,
    Conv,
    Elementwise,
    Gemm,
    Node,
    Operator,
    Pool,
    Precision,
    TensorType,
    activation_bytes,
    bytes_moved,
    key,
    weight_bytes,
)

OPERATOR = TypeAdapter[Operator](Operator)
NUMBERS = st.one_of(st.integers(-(2**31), 2**31), st.floats(allow_nan=False, width=32))
TENSORS = st.builds(
    TensorType,
    st.sampled_from(["float32", "float16", "uint8", "int8", "int64", "int32", "bool"]),
    st.lists(st.integers(1, 4096), max_size=5).map(tuple),
    st.booleans(),
    st.lists(NUMBERS, max_size=4).map(lambda values: ",".join(f"{value:.9g}" for value in values)),
)
TEXTS = st.one_of(st.just(""), TENSORS.map(str))
NODES = st.builds(
    Node,
    st.from_regex(r"[A-Z][A-Za-z0-9]{0,20}", fullmatch=True),
    st.lists(TEXTS, max_size=4).map(tuple),
    st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
    st.sampled_from(["{}", '{"axis":1}', '{"axes":[2,3],"keepdims":0}', '{"mode":"linear"}']),
    st.sampled_from(["", "com.microsoft", "com.microsoft.nchwc"]),
    st.integers(1, 24),
)


@pytest.mark.parametrize("seed", range(25))
def test_a_convolution_knows_its_output_and_weights_as_torch_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    groups = int(random.choice([1, 1, 2, 4]))
    pads = tuple(int(p) for p in random.integers(0, 3, 4))
    op = Conv(
        groups * int(random.integers(1, 4)),
        groups * int(random.integers(1, 4)),
        int(random.integers(7, 14)),
        int(random.integers(7, 14)),
        (int(random.integers(1, 4)), int(random.integers(1, 4))),
        (int(random.integers(1, 4)), int(random.integers(1, 4))),
        (pads[0], pads[1], pads[2], pads[3]),
        (int(random.integers(1, 3)), int(random.integers(1, 3))),
        groups,
        batch=2,
    )
    x = torch.zeros(op.batch, op.in_channels, op.height, op.width)
    weight = torch.zeros(op.out_channels, op.in_channels // groups, *op.kernel)
    padded = functional.pad(x, (op.pads[1], op.pads[3], op.pads[0], op.pads[2]))
    y = functional.conv2d(padded, weight, None, op.stride, 0, op.dilation, groups)
    assert tuple(y.shape) == (op.batch, op.out_channels, op.output_height, op.output_width)
    assert (op.weights, op.input_elements, op.output_elements) == (weight.numel(), x.numel(), y.numel())
    assert op.macs == y.numel() * weight[0].numel()


def test_bytes_follow_the_precision() -> None:
    conv = Conv.square(16, 32, 8, 3)
    assert weight_bytes(conv, FLOAT) == 4 * conv.weights + 4 * 32
    assert weight_bytes(conv, INT8) == conv.weights + 8 * 32
    assert weight_bytes(conv, Precision(4, 8)) == conv.weights // 2 + 8 * 32
    assert weight_bytes(conv, Precision(2, 8)) == conv.weights // 4 + 8 * 32
    assert activation_bytes(conv, FLOAT) == 4 * activation_bytes(conv, INT8) == 4 * 32 * 64
    assert bytes_moved(conv, INT8) == 16 * 64 + 32 * 64 + weight_bytes(conv, INT8)
    quantise, dequantise = Boundary("quantize", (1, 10)), Boundary("dequantize", (1, 10))
    assert bytes_moved(quantise, INT8) == bytes_moved(dequantise, INT8) == 50
    assert weight_bytes(Pool.global_average(8, 4, 4), INT8) == 0
    assert Elementwise("add", (1, 8)).input_elements == 16


def test_keys_tell_operators_apart_and_are_the_same_in_every_process() -> None:
    ops = [Conv.square(8, 8, 8, 3), Conv.square(8, 8, 8, 3, groups=8), Gemm(1, 8, 8), Elementwise("relu", (1, 8))]
    ops += [Elementwise("clip", (1, 8)), Boundary("quantize", (1, 8)), Pool.global_average(8, 8, 8)]
    keys = [key(op) for op in ops]
    assert len(set(keys)) == len(ops)
    code = "from hwcost.ops import *; print(key(Conv.square(8, 8, 8, 3)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == keys[0]
    assert " " not in keys[0]


@given(TENSORS)
def test_a_tensor_is_written_and_read(tensor: TensorType) -> None:
    assert TensorType.parse(str(tensor)) == tensor


@given(NODES)
def test_a_node_says_what_it_reads_and_survives_a_file(op: Node) -> None:
    assert [str(tensor) for tensor in (*op.reads, *op.writes)] == [text for text in (*op.inputs, *op.outputs) if text]
    assert OPERATOR.validate_json(OPERATOR.dump_json(op)) == op
    assert op.output_elements == sum(tensor.elements for tensor in op.writes)
    constants = sum(tensor.elements for tensor in op.reads if tensor.constant)
    assert op.input_elements + constants == sum(tensor.elements for tensor in op.reads)
    assert op.weights <= constants


@pytest.mark.parametrize(
    "text",
    ["", "float32", "float32[1,]", "float32[-1]", "float32[1 ,2]", "32[1]", "==float32[1]", "=int64[1]:", "f[x]"],
)
def test_a_text_that_is_no_tensor_is_refused(text: str) -> None:
    with pytest.raises(InvalidOperatorError, match=r"a tensor is written like float32\[1,64,28,28\] .*, got "):
        TensorType.parse(text)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"op_type": "not one word"}, "a node has a type"),
        ({"outputs": ()}, "an output"),
        ({"version": 0}, "a version of at least 1"),
        ({"inputs": ("float32[1,0]",)}, "at least 1"),
        ({"inputs": ("float32",)}, "a tensor is written like"),
    ],
)
def test_a_node_that_cannot_be_is_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidOperatorError, match=rule):
        Node(**{"op_type": "Erf", "inputs": ("float32[1,2]",), "outputs": ("float32[1,2]",), **fields})


def test_the_bytes_of_a_node_are_those_of_its_tensors() -> None:
    tensors = ("float32[1,8]", "=float32[8]", "=int64[2]:1,8", "", "uint8[3]"), ("int64[4]", "float16[2]")
    op = Node("Anything", *tensors)
    assert (op.input_elements, op.output_elements, op.weights) == (8 + 3, 4 + 2, 8)
    assert activation_bytes(op, FLOAT) == activation_bytes(op, INT8) == 4 * 8 + 2 * 2
    assert bytes_moved(op, FLOAT) == 8 * 4 + 3 + 4 * 8 + 2 * 2 + weight_bytes(op, FLOAT)
    assert weight_bytes(op, FLOAT) == 4 * 8


def test_products_among_nodes_know_their_multiply_accumulates_as_torch_does() -> None:
    """By the definition of each: what a unit input does to how many outputs, or the gates of each step."""
    one, other = torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 7, 4)
    product = one @ other
    matmul = Node("MatMul", ("float32[2,3,5,7]", "float32[2,3,7,4]"), ("float32[2,3,5,4]",))
    assert matmul.macs == product.numel() * 7
    turned = torch.nn.ConvTranspose2d(6, 4, 3, 2)
    x = torch.zeros(1, 6, 5, 8)
    inputs = ("float32[1,6,5,8]", f"=float32[{','.join(map(str, turned.weight.shape))}]", "=float32[4]")
    outputs = (f"float32[{','.join(map(str, turned(x).shape))}]",)
    assert Node("ConvTranspose", inputs, outputs).macs == x.numel() * turned.weight[0].numel()
    lstm = torch.nn.LSTM(10, 6)
    gates, hidden = lstm.weight_ih_l0.numel(), lstm.weight_hh_l0.numel()
    inputs = ("float32[9,1,10]", "=float32[1,24,10]", "=float32[1,24,6]", "=float32[1,48]")
    assert Node("LSTM", inputs, ("float32[9,1,1,6]",)).macs == 9 * (gates + hidden)
    inputs = ("float32[9,1,10]", "=int8[1,10,24]", "=int8[1,6,24]", "=float32[1,48]")
    assert Node("DynamicQuantizeLSTM", inputs, ("float32[9,1,1,6]",)).macs == 9 * (gates + hidden)
    integers = Node("ConvInteger", ("uint8[1,6,5,8]", "=int8[4,6,3,3]"), ("int32[1,4,5,8]",))
    assert integers.macs == Conv(6, 4, 5, 8, (3, 3), pads=(1, 1, 1, 1)).macs
    assert Node("Softmax", ("float32[1,10]",), ("float32[1,10]",)).macs == 0


def test_a_residual_is_read_and_not_multiplied() -> None:
    plain = Conv.square(16, 32, 8, 3, 2)
    added = replace(plain, residual=True)
    assert added.input_elements == plain.input_elements + plain.output_elements
    assert (added.macs, added.weights, added.output_elements) == (plain.macs, plain.weights, plain.output_elements)
    assert bytes_moved(added, FLOAT) == bytes_moved(plain, FLOAT) + 4 * plain.output_elements
    assert key(added) != key(plain) and OPERATOR.validate_json(OPERATOR.dump_json(added)) == added


@pytest.mark.parametrize("function", ["concat", "softmax"])
def test_what_became_a_node_is_no_elementwise_function(function: str) -> None:
    with pytest.raises(ValidationError, match=r"elementwise.function"):
        OPERATOR.validate_python({"kind": "elementwise", "function": function, "shape": [1, 10]})


@pytest.mark.parametrize("precision", [*PRECISIONS, PLAIN, *(Precision(8, 8, f) for f in ("u8u8", "u8s8", "s8s8"))])
def test_a_precision_is_written_and_read(precision: Precision) -> None:
    assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize("text", ["w8a8:", "w8a8:plain", "w8a8:s8u8", "w32a32:u8s8", "w4a8:u8s8", "w8a8:u8s8 ", "w8"])
def test_a_kernel_that_a_precision_does_not_have_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedPrecisionError, match=rf"w32a32:plain, w8a8:u8u8, .*, got '{text}'"):
        Precision.parse(text)


def test_the_kernel_tells_precisions_apart() -> None:
    assert len({FLOAT, PLAIN, INT8, Precision(8, 8, "u8s8")}) == 4
    assert (str(PLAIN), str(Precision(8, 8, "u8s8"))) == ("w32a32:plain", "w8a8:u8s8")
    conv = Conv.square(16, 32, 8, 3)
    assert bytes_moved(conv, PLAIN) == bytes_moved(conv, FLOAT)


def test_what_cannot_exist_is_refused_with_the_rule() -> None:
    with pytest.raises(UnsupportedPrecisionError, match=r"a precision is one of w32a32, w8a8, .*, got 'w3a8'"):
        Precision.parse("w3a8")
    with pytest.raises(UnsupportedPrecisionError, match="got 'w8a4'"):
        Precision(8, 4)
    with pytest.raises(InvalidOperatorError, match="divisible by its groups"):
        Conv.square(8, 9, 8, 3, groups=4)
    with pytest.raises(InvalidOperatorError, match="an output of at least 1x1"):
        Conv(1, 1, 2, 2, (5, 5))
    with pytest.raises(InvalidOperatorError, match="at least 1"):
        Gemm(0, 1, 1)
    with pytest.raises(InvalidOperatorError, match="the whole plane"):
        Pool("global_average", 8, 4, 4, (2, 2))
    with pytest.raises(InvalidOperatorError, match="names every axis once"):
        Boundary("transpose", (1, 2, 3), (0, 1, 1))
