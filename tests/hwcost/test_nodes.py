"""What every node of a graph becomes: read from the graph that the runtime executes, and built anew from its words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import Builder, float_model, quantised_model

from hwcost.agent import session
from hwcost.graph import candidates
from hwcost.kernels import executed_kernel
from hwcost.model import Layout, ModelLayers, read_model
from hwcost.ops import FLOAT, INT8, PLAIN, Boundary, Conv, Elementwise, Gemm, Node, Operator, Pool, Precision
from hwcost.runtime import Given, Here
from hwcost.space import Layer

MAP = "float32[1,6,8,8]"
LAYOUTS = ("transpose", "reorder_input", "reorder_output")
Build = Callable[[Builder], str]


def read(path: Path, build: Build, shape: tuple[int, ...], layout: Layout = "executed") -> ModelLayers:
    builder = Builder()
    return read_model(builder.save(path / "m.onnx", list(shape), build(builder)), layout=layout)


def layers(found: ModelLayers) -> list[Layer]:
    """Without changes of layout, which are the machine's own."""
    return [
        (op, precision)
        for _, op, precision in found.layers
        if not (isinstance(op, Boundary) and op.function in LAYOUTS)
    ]


def split(build: Builder) -> str:
    sizes = build.constant(np.array([2, 4]))
    build.nodes.append(helper.make_node("Split", ["x", sizes], ["first", "second"], name="split", axis=1))
    return build.node("Concat", "second", "first", axis=1)


def scale(build: Builder) -> tuple[str, str]:
    return build.constant(np.float32(0.05)), build.constant(np.uint8(128))


def quantised(build: Builder, x: str) -> str:
    return build.node("QuantizeLinear", x, *scale(build))


def dequantised(build: Builder, x: str) -> str:
    return build.node("DequantizeLinear", x, *scale(build))


def stored(build: Builder, kind: type[np.integer], *shape: int) -> str:
    """Weights in 8 bits, dequantised."""
    codes, zero = build.rng.integers(-100, 100, shape), 0 if kind is np.int8 else 128
    constants = (codes + zero).astype(kind), np.float32(0.01), kind(zero)
    return build.node("DequantizeLinear", *map(build.constant, constants))


def int8_convolution(build: Builder, x: str, kind: type[np.integer]) -> str:
    x = dequantised(build, quantised(build, x))
    y = build.node("Conv", x, stored(build, kind, 16, 16, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)
    return dequantised(build, quantised(build, y))


def upsample(build: Builder, region: str = "") -> str:
    scales = build.constant(np.array([1, 1, 2, 2], np.float32))
    settings = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return build.node("Resize", "x", region, scales, **settings)


def layer_norm(build: Builder) -> str:
    return build.node("LayerNormalization", "x", *(build.constant(build.weights(16)) for _ in range(2)), axis=-1)


def turned_convolution(build: Builder) -> str:
    return build.node("ConvTranspose", "x", build.constant(build.weights(6, 4, 2, 2)), strides=[2, 2])


CASES: dict[str, tuple[Build, tuple[int, ...], tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]]] = {
    "a constant for each channel": (
        lambda build: build.node("Add", "x", build.constant(build.weights(1, 6, 1, 1))),
        (1, 6, 8, 8),
        (("Add", (MAP, "=float32[1,6,1,1]"), (MAP,)),),
    ),
    "a number for all": (
        lambda build: build.node("Mul", "x", build.constant(np.float32(3))),
        (1, 6, 8, 8),
        (("Mul", (MAP, "=float32[]"), (MAP,)),),
    ),
    "a tensor for each channel": (
        lambda build: build.node("Mul", "x", build.node("ReduceMax", "x", build.constant(np.array([2, 3])))),
        (1, 6, 8, 8),
        (
            ("ReduceMax", (MAP, "=int64[2]:2,3"), ("float32[1,6,1,1]",)),
            ("Mul", (MAP, "float32[1,6,1,1]"), (MAP,)),
        ),
    ),
    "concat": (
        lambda build: build.node("Concat", "x", build.node("Erf", "x"), "x", axis=1),
        (1, 6, 8, 8),
        (("Erf", (MAP,), (MAP,)), ("Concat", (MAP,) * 3, ("float32[1,18,8,8]",))),
    ),
    "split": (
        split,
        (1, 6, 8, 8),
        (
            ("Split", (MAP, "=int64[2]:2,4"), ("float32[1,2,8,8]", "float32[1,4,8,8]")),
            ("Concat", ("float32[1,4,8,8]", "float32[1,2,8,8]"), (MAP,)),
        ),
    ),
    "softmax": (
        lambda build: build.node("Softmax", "x"),
        (1, 10),
        (("Softmax", ("float32[1,10]",), ("float32[1,10]",)),),
    ),
    "mean over the plane": (
        lambda build: build.node("ReduceMean", "x", build.constant(np.array([2, 3])), keepdims=0),
        (1, 6, 8, 8),
        (("ReduceMean", (MAP, "=int64[2]:2,3"), ("float32[1,6]",)),),
    ),
    "layer norm": (
        layer_norm,
        (1, 5, 16),
        (("LayerNormalization", ("float32[1,5,16]", "=float32[16]", "=float32[16]"), ("float32[1,5,16]",)),),
    ),
    "attention": (
        lambda build: build.node("MatMul", "x", build.node("Erf", "x")),
        (1, 2, 5, 5),
        (
            ("Erf", ("float32[1,2,5,5]",), ("float32[1,2,5,5]",)),
            ("MatMul", ("float32[1,2,5,5]",) * 2, ("float32[1,2,5,5]",)),
        ),
    ),
    "attention to what is turned": (
        lambda build: build.node("MatMul", "x", build.node("Transpose", "x", perm=[0, 1, 3, 2])),
        (1, 2, 5, 8),
        (("FusedMatMul", ("float32[1,2,5,8]",) * 2, ("float32[1,2,5,5]",)),),
    ),
    "transposed convolution": (
        turned_convolution,
        (1, 6, 8, 8),
        (("ConvTranspose", (MAP, "=float32[6,4,2,2]"), ("float32[1,4,16,16]",)),),
    ),
    "upsampling": (
        upsample,
        (1, 6, 8, 8),
        (("Resize", (MAP, "", "=float32[4]:1,1,2,2"), ("float32[1,6,16,16]",)),),
    ),
    "upsampling with an empty region": (
        lambda build: upsample(build, build.constant(np.zeros(0, np.float32))),
        (1, 6, 8, 8),
        (("Resize", (MAP, "", "=float32[4]:1,1,2,2"), ("float32[1,6,16,16]",)),),
    ),
    "a power": (
        lambda build: build.node("Pow", "x", build.constant(np.float32(3))),
        (1, 10),
        (("Pow", ("float32[1,10]", "=float32[]:3"), ("float32[1,10]",)),),
    ),
    "local response norm": (lambda build: build.node("LRN", "x", size=5), (1, 6, 8, 8), (("LRN", (MAP,), (MAP,)),)),
    "8-bit maximum, channels first": (
        lambda build: dequantised(
            build, build.node("MaxPool", quantised(build, "x"), kernel_shape=[2, 2], strides=[2, 2])
        ),
        (1, 6, 8, 8),
        (("MaxPool", ("uint8[1,6,8,8]",), ("uint8[1,6,4,4]",)),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_node_is_said_with_all_that_decides_what_it_computes(tmp_path: Path, name: str) -> None:
    build, shape, expected = CASES[name]
    found = read(tmp_path, build, shape)
    assert found.uncovered == () and found.uncovered_share == 0
    nodes = [op for op, _ in layers(found) if isinstance(op, Node)]
    assert tuple((op.op_type, op.inputs, op.outputs) for op in nodes) == expected


@pytest.mark.parametrize("name", CASES)
def test_a_node_that_was_read_can_be_built_and_makes_tensors_of_the_same_shape(tmp_path: Path, name: str) -> None:
    build, shape, _ = CASES[name]
    for op, precision in layers(read(tmp_path, build, shape)):
        (candidate,) = candidates(op, precision, "u8u8", np.random.default_rng(0))
        model = candidate.model
        if isinstance(op, Node):
            del model.graph.output[:]
            names = [made for made in model.graph.node[-1].output if made]
            model.graph.output.extend(helper.make_empty_tensor_value_info(made) for made in names)
            answers = session(model.SerializeToString()).run(None, candidate.feeds)
            assert [(a.shape, str(a.dtype)) for a in answers] == [(t.shape, t.dtype) for t in op.writes]
            (node,) = executed_kernel(op, candidate, Here()).nodes
            assert (node.op_type, node.domain) == (op.op_type, op.domain)


def test_a_power_is_computed_with_the_exponent_that_was_read(tmp_path: Path) -> None:
    build, shape, _ = CASES["a power"]
    ((op, precision),) = layers(read(tmp_path, build, shape))
    (candidate,) = candidates(op, precision, "u8u8", np.random.default_rng(0))
    (answer,) = session(candidate.model.SerializeToString()).run(None, candidate.feeds)
    np.testing.assert_allclose(answer, candidate.feeds["x0"] ** 3, rtol=1e-5)


def test_two_tensors_of_one_shape_are_no_broadcast(tmp_path: Path) -> None:
    found = read(tmp_path, lambda build: build.node("Mul", "x", build.node("Tanh", "x")), (1, 6, 8, 8))
    assert layers(found) == [
        (Elementwise("tanh", (1, 6, 8, 8)), FLOAT),
        (Elementwise("mul", (1, 6, 8, 8)), FLOAT),
    ]


def test_weights_that_are_dequantised_in_every_run_make_a_plain_convolution(tmp_path: Path) -> None:
    def build(build: Builder) -> str:
        return build.node("Conv", "x", stored(build, np.int8, 16, 16, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)

    dequantise = (Boundary("dequantize", (16, 16, 3, 3)), INT8)
    assert layers(read(tmp_path, build, (1, 16, 8, 8))) == [dequantise, (Conv.square(16, 16, 8, 3), PLAIN)]
    # Of a device that is not here nothing is known but the network's own words.
    assert layers(read(tmp_path, build, (1, 16, 8, 8), "portable"))[-1] == (Conv.square(16, 16, 8, 3), FLOAT)


def test_a_convolution_of_a_line_is_not_blocked(tmp_path: Path) -> None:
    def build(build: Builder) -> str:
        return build.node("Conv", "x", build.constant(build.weights(32, 16, 3)), kernel_shape=[3], pads=[1, 1])

    conv = Conv(16, 32, 1, 50, (1, 3), pads=(0, 1, 0, 1))
    assert layers(read(tmp_path, build, (1, 16, 50))) == [(conv, PLAIN)]
    assert layers(read(tmp_path, build, (1, 16, 50), "portable")) == [(conv, FLOAT)]
    Here().optimised(Given((tmp_path / "m.onnx").read_bytes()), tmp_path / "executed.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "executed.onnx").graph.node] == ["Conv"]


@pytest.mark.parametrize("kind", [np.int8, np.uint8], ids=["s8", "u8"])
def test_int8_is_of_the_form_that_the_graph_has_and_the_layout_is_said_by_boundaries(
    tmp_path: Path, kind: type[np.integer]
) -> None:
    form = Precision(8, 8, "u8s8" if kind is np.int8 else "u8u8")

    def build(build: Builder) -> str:
        return int8_convolution(build, int8_convolution(build, "x", kind), kind)

    found = read(tmp_path, build, (1, 16, 8, 8))
    conv = Conv.square(16, 16, 8, 3)
    ends = [(Boundary(name, (1, 16, 8, 8)), INT8) for name in ("quantize", "dequantize")]
    assert layers(found) == [ends[0], (conv, form), (conv, form), ends[1]]
    turned = [op for _, op, _ in found.layers if isinstance(op, Boundary) and op.function == "transpose"]
    assert [(op.shape, op.permutation) for op in turned] in (
        [],  # a runtime that leaves channels first
        [((1, 16, 8, 8), (0, 2, 3, 1)), ((1, 8, 8, 16), (0, 3, 1, 2))],
    )
    portable = read(tmp_path, build, (1, 16, 8, 8), "portable")
    assert [(op, precision) for _, op, precision in portable.layers] == [ends[0], (conv, form), (conv, form), ends[1]]


@pytest.mark.parametrize("channels", [32, 20])
def test_a_pool_is_of_the_channels_that_are_executed(tmp_path: Path, channels: int) -> None:
    """Whole blocks stay blocked from convolution to convolution; others are put in order for the pool."""

    def build(build: Builder) -> str:
        x = build.node("MaxPool", build.conv("x", channels, 3, 3), kernel_shape=[2, 2], strides=[2, 2])
        return build.conv(x, channels, channels, 3)

    found = [op for _, op, _ in read(tmp_path, build, (1, 3, 8, 8)).layers]
    pool = Pool("max", channels, 8, 8, (2, 2), (2, 2))
    before = [op.function for op in found[: found.index(pool)] if isinstance(op, Boundary)]
    blocked = any(isinstance(op, Boundary) and op.function == "reorder_output" for op in found)
    assert before == (["reorder_output"] if blocked and channels == 20 else [])
    assert pool in [op for _, op, _ in read(tmp_path, build, (1, 3, 8, 8), "portable").layers]


def test_a_residual_melts_into_the_convolution_here_and_stays_an_addition_elsewhere(tmp_path: Path) -> None:
    def build(build: Builder) -> str:
        before = build.conv("x", 16, 16, 3)
        return build.node("Relu", build.node("Add", build.conv(before, 16, 16, 3), before))

    def conv(**fields: bool | str) -> Conv:
        return Conv(16, 16, 8, 8, (3, 3), pads=(1, 1, 1, 1), **fields)  # type: ignore[arg-type]

    here = layers(read(tmp_path, build, (1, 16, 8, 8)))
    assert here == [(conv(), FLOAT), (conv(activation="relu", residual=True), FLOAT)]
    shape = (1, 16, 8, 8)
    rest = [Elementwise("add", shape), Elementwise("relu", shape)]
    assert [op for op, _ in layers(read(tmp_path, build, shape, "portable"))] == [conv(), conv(), *rest]


def test_a_product_with_constant_weights_is_a_gemm_whatever_stands_before(tmp_path: Path) -> None:
    found = read(tmp_path, lambda build: build.node("MatMul", "x", build.constant(build.weights(16, 10))), (1, 5, 16))
    assert layers(found) == [(Gemm(5, 16, 10), FLOAT)]


def test_portable_layouts_are_free_of_this_machines(tmp_path: Path) -> None:
    for path in (float_model(tmp_path / "f.onnx"), quantised_model(tmp_path / "q.onnx")):
        found = read_model(path, layout="portable")
        operators: list[Operator] = [op for _, op, _ in found.layers]
        assert not [op for op in operators if isinstance(op, Boundary) and op.function in LAYOUTS]
        assert not [op for op in operators if isinstance(op, Node) and op.domain == "com.microsoft.nchwc"]
        assert "plain" not in {precision.kernel for _, _, precision in found.layers}


def branch(name: str, op_type: str) -> onnx.GraphProto:
    node = helper.make_node(op_type, ["x"], [name])
    return helper.make_graph([node], name, [], [helper.make_empty_tensor_value_info(name)])


def test_a_node_with_a_graph_inside_has_no_price(tmp_path: Path) -> None:
    def build(build: Builder) -> str:
        positive = build.node("Greater", build.node("ReduceSum", "x", keepdims=0), build.constant(np.float32(0)))
        return build.node("If", positive, then_branch=branch("one", "Erf"), else_branch=branch("other", "Neg"))

    found = read(tmp_path, build, (1, 4))
    assert found.uncovered == ("If if2",) and 0 < found.uncovered_share < 1
    assert [op.op_type for op, _ in layers(found) if isinstance(op, Node)] == ["ReduceSum", "Greater"]


def test_what_is_no_plain_tensor_has_no_price(tmp_path: Path) -> None:
    def sequence(build: Builder) -> str:
        return build.node("SequenceAt", build.node("SequenceConstruct", "x", "x"), build.constant(np.int64(0)))

    def uint16(build: Builder) -> str:
        return build.node("Cast", build.node("BitwiseNot", build.node("Cast", "x", to=4)), to=1)

    assert read(tmp_path, sequence, (1, 4)).uncovered == (
        "SequenceConstruct sequenceconstruct0",
        "SequenceAt sequenceat1",
    )
    assert read(tmp_path, uint16, (1, 4)).uncovered == ("Cast cast0", "BitwiseNot bitwisenot1", "Cast cast2")
