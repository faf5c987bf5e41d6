import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from hwcost.errors import InvalidOperatorError, UnsupportedPrecisionError
from hwcost.ops import (
    FLOAT,
    INT8,
    PRECISIONS,
    Boundary,
    Conv,
    Elementwise,
    Gemm,
    Pool,
    Precision,
    activation_bytes,
    bytes_moved,
    key,
    weight_bytes,
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


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_is_written_and_read(precision: Precision) -> None:
    assert Precision.parse(str(precision)) == precision


def test_what_cannot_exist_is_refused_with_the_rule() -> None:
    with pytest.raises(UnsupportedPrecisionError, match=r"a precision is one of w32a32, w8a8, .*, got 'w3a8'"):
        Precision.parse("w3a8")
    with pytest.raises(UnsupportedPrecisionError, match="got w8a4"):
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
