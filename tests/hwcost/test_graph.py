"""The graphs that are timed compute what they say: checked against integer arithmetic written out here."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from hwcost.agent import session
from hwcost.errors import UnsupportedPrecisionError
from hwcost.graph import Candidate, candidates, other_kernels, supported_precisions
from hwcost.int8form import integer_convolution
from hwcost.kernels import Kernel, copies, executed_kernel
from hwcost.ops import FLOAT, INT8, PLAIN, Boundary, Conv, Elementwise, Gemm, Node, Operator, Pool, Precision
from hwcost.runtime import Given, Here

_CONVOLUTIONS = [
    Conv.square(8, 12, 6, 3),
    Conv.square(8, 8, 7, 3, stride=2, groups=8),
    Conv.square(8, 12, 5, 1, activation="relu"),
    Conv.square(8, 12, 6, 5, groups=4),
    Conv(4, 6, 9, 7, (3, 2), (1, 2), (2, 0, 1, 1), (2, 1), groups=2, activation="clip", batch=2),
]
_OPERATORS: list[Operator] = [
    *_CONVOLUTIONS,
    Conv.square(3, 16, 9, 3, 2, activation="sigmoid"),
    Gemm(1, 20, 10),
    Gemm(3, 70, 33, "relu"),
    Pool("max", 16, 7, 7, (3, 3), (2, 2), (1, 1, 1, 1)),
    Pool("average", 12, 6, 6, (2, 2), (2, 2)),
    Pool.global_average(16, 4, 4),
    Pool("global_max", 16, 4, 4, (4, 4)),
    *(
        Elementwise(function, (1, 6, 4, 4))
        for function in (
            "add",
            "mul",
            "relu",
            "clip",
            "sigmoid",
            "hardswish",
            "hardsigmoid",
            "tanh",
            "leakyrelu",
        )
    ),
    Conv(8, 16, 6, 6, (3, 3), pads=(1, 1, 1, 1), activation="relu", residual=True),
    Node("Concat", ("float32[1,2,3]", "float32[1,4,3]"), ("float32[1,6,3]",), '{"axis":1}', version=13),
    Boundary("quantize", (1, 3, 8, 8)),
    Boundary("dequantize", (1, 10)),
    Boundary("transpose", (1, 6, 4, 5), (0, 2, 3, 1)),
    Boundary("reshape", (1, 6, 4, 4)),
]
_POINTS = [
    (op, precision) for op in _OPERATORS for precision in (*supported_precisions(op), *other_kernels(op, "u8u8"))
]


def _constants(candidate: Candidate) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in candidate.model.graph.initializer}


def _answer(candidate: Candidate) -> npt.NDArray[Any]:
    (answer,) = session(candidate.model.SerializeToString()).run(None, candidate.feeds)
    return np.asarray(answer)


def _first(op: Operator, precision: Precision, seed: int = 0) -> Candidate:
    return candidates(op, precision, "u8u8", np.random.default_rng(seed))[0]


def _copy_answers(kernel: Kernel, count: int) -> list[npt.NDArray[Any]]:
    """What every copy in a run computes."""
    data, feeds, weights = copies([kernel], count)
    model = onnx.load_from_string(data)
    assert sum(node.op_type == kernel.nodes[-1].op_type for node in model.graph.node) >= count
    last = [node for node in model.graph.node if node.name.endswith(f"/{len(kernel.nodes) - 1}")]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(node.output[0]) for node in last)
    return Here().run(Given(model.SerializeToString(), optimise="none", weights=weights), feeds)


def _naive_convolution(candidate: Candidate, op: Conv) -> npt.NDArray[np.int64]:
    """A QLinearConv in five loops over Python integers."""
    constants = _constants(candidate)
    names = candidate.model.graph.node[0].input[1:]
    x_scale, x_zero, weights, w_scales, w_zeros, y_scale, y_zero, bias = (constants[name] for name in names)
    (x,) = candidate.feeds.values()
    out = np.zeros((op.batch, op.out_channels, op.output_height, op.output_width), np.int64)
    per_group, made = op.in_channels // op.groups, op.out_channels // op.groups
    for n, o, row, column in itertools.product(*map(range, out.shape)):
        total = int(bias[o])
        for c, i, j in itertools.product(range(per_group), range(op.kernel[0]), range(op.kernel[1])):
            h = row * op.stride[0] + i * op.dilation[0] - op.pads[0]
            w = column * op.stride[1] + j * op.dilation[1] - op.pads[1]
            if 0 <= h < op.height and 0 <= w < op.width:
                activation = int(x[n, o // made * per_group + c, h, w]) - int(x_zero)
                total += activation * (int(weights[o, c, i, j]) - int(w_zeros[o]))
        out[n, o, row, column] = round(total * float(x_scale * w_scales[o] / y_scale)) + int(y_zero)
    return np.clip(out, np.iinfo(y_zero.dtype).min, np.iinfo(y_zero.dtype).max)


@pytest.mark.parametrize("op", _CONVOLUTIONS, ids=str)
def test_the_int8_convolution_equals_integer_arithmetic(op: Conv) -> None:
    candidate = _first(op, INT8)
    expected = _naive_convolution(candidate, op)
    assert np.abs(integer_convolution(candidate, op) - expected).max() <= 1
    assert np.abs(_answer(candidate).astype(np.int64) - expected).max() <= 1


def test_the_int8_gemm_equals_integer_arithmetic() -> None:
    candidate = _first(Gemm(3, 70, 33), INT8)
    x_scale, x_zero, weights, w_scales, w_zeros, bias, y_scale, y_zero = _constants(candidate).values()
    x = candidate.feeds["x0"].astype(np.int64) - int(x_zero)
    sums = x @ (weights.astype(np.int64) - w_zeros.astype(np.int64)[:, None]).T + bias
    expected = np.clip(np.rint(sums * (x_scale * w_scales / y_scale)) + int(y_zero), 0, 255)
    assert np.abs(_answer(candidate).astype(np.int64) - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_packed_weights_mean_what_the_float_product_says(bits: int) -> None:
    exact = candidates(Gemm(2, 70, 20), Precision(bits, 32), "u8u8", np.random.default_rng(0))[-1]
    assert exact.note == f"{bits}-bit, accuracy_level unset"
    assert exact.expected is not None
    np.testing.assert_allclose(_answer(exact), exact.expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("op", "precision"), _POINTS, ids=lambda value: str(value)[:60])
def test_every_copy_of_an_executed_kernel_computes_the_operator(op: Operator, precision: Precision) -> None:
    candidate = _first(op, precision)
    whole = _answer(candidate)
    kernel = executed_kernel(op, candidate, Here())
    answers = _copy_answers(kernel, 3)
    assert len(answers) == 3
    weighted = any(len(tensor.dims) > 1 for tensor in kernel.constants.values())
    for answer in answers[1:]:  # with other first elements of their weights, and so other numbers in few channels
        assert answer.shape == answers[0].shape
        assert 0.5 < np.mean(answer == answers[0]) <= 1 if weighted else (answer == answers[0]).all()
    # Layouts differ between kernel and operator, and blocks are padded with zeros; the numbers are the same.
    ours, theirs = answers[0].astype(np.float64), whole.astype(np.float64)
    assert [ours.sum(), (ours**2).sum()] == pytest.approx([theirs.sum(), (theirs**2).sum()], rel=1e-4, abs=1e-4)
    assert kernel.native is candidate.native


def test_int8_convolutions_are_timed_without_their_transposes() -> None:
    op = Conv.square(8, 12, 6, 3)
    kernel = executed_kernel(op, _first(op, INT8), Here())
    assert kernel.realisation == "QLinearConv u8u8"
    (answer,) = _copy_answers(kernel, 1)
    np.testing.assert_array_equal(answer.transpose(0, 3, 1, 2), _answer(_first(op, INT8)))


def test_a_function_without_int8_kernel_says_that_it_is_not_native() -> None:
    (candidate,) = candidates(Elementwise("tanh", (1, 4)), INT8, "s8s8", np.random.default_rng(0))
    assert not candidate.native
    assert "float kernel" in candidate.note


def test_a_kernel_that_branches_on_signs_reads_both_in_no_order() -> None:
    shape = "float32[1,4,30,30]"
    for op in (Node("PRelu", (shape, "=float32[4,1,1]"), (shape,), version=16), Node("Relu", (shape,), (shape,))):
        (candidate,) = candidates(op, FLOAT, "u8s8", np.random.default_rng(0))
        above = (candidate.feeds["x0"] > 0).reshape(-1)
        changes = float(np.mean(above[1:] != above[:-1]))
        assert 0.45 < changes < 0.55 if op.op_type == "PRelu" else changes == 0


def test_the_same_seed_gives_the_same_bytes() -> None:
    op = Conv.square(8, 12, 6, 3)
    first, second, other = (_first(op, INT8, seed).model.SerializeToString() for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize(
    ("op", "precision", "text"),
    [
        (
            Conv.square(8, 8, 4, 3),
            Precision(4, 8),
            r"kernel \(w32a32, w8a8, w32a32:plain, w8a8:u8s8\), got w4a8 for conv\(.*narrower weights run on",
        ),
        (Conv.square(8, 8, 4, 3, activation="sigmoid"), INT8, r"kernel \(w32a32\), got w8a8 for conv\("),
        (Conv(8, 8, 4, 4, (1, 1), residual=True), INT8, r"kernel \(w32a32\), got w8a8 for conv\("),
        (Conv.square(8, 8, 4, 3), Precision(8, 8, "s8s8"), r"got w8a8:s8s8 for conv\("),
        (Conv.square(8, 8, 4, 3, activation="relu"), PLAIN, r"got w32a32:plain for conv\("),
        (Node("Erf", ("float32[4]",), ("float32[4]",), version=13), INT8, r"kernel \(w32a32\), got w8a8 for node\("),
        (Pool.global_average(8, 4, 4), Precision(4, 32), r"got w4a32 for pool\("),
        (Boundary("quantize", (1, 4)), FLOAT, r"kernel \(w8a8\), got w32a32 for boundary\("),
        (Boundary("reorder_input", (1, 16)), FLOAT, r"kernel \(none\), got w32a32 for boundary\("),
    ],
)
def test_a_precision_without_kernel_is_an_error_that_names_both(op: Operator, precision: Precision, text: str) -> None:
    with pytest.raises(UnsupportedPrecisionError, match=text):
        _first(op, precision)
