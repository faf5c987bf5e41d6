"""Reading models: the operators that the runtime executes, in words free of layouts, or a plain refusal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import CHANNELS, Builder, float_model, quantised_model

from hwcost.errors import HwcostError, ModelError
from hwcost.model import Layout, read_model, time_nodes
from hwcost.onnxfile import Feeds, example_feeds, load_model
from hwcost.ops import FLOAT, INT8, Boundary, Conv, Elementwise, Gemm, Node, Operator, Pool, Precision
from hwcost.pipe import Piped
from hwcost.runtime import Given, Here

STEM = Conv(3, CHANNELS, 16, 16, (3, 3), (2, 2), (1, 1, 1, 1), activation="relu")
DEPTHWISE = Conv(CHANNELS, CHANNELS, 8, 8, (3, 3), pads=(1, 1, 1, 1), groups=CHANNELS, activation="clip")
POINTWISE = Conv(CHANNELS, CHANNELS, 8, 8, (1, 1))
ADDED = replace(POINTWISE, residual=True)
ADDITION = Elementwise("add", (1, CHANNELS, 8, 8))
REST: tuple[Operator, ...] = (
    Pool.global_average(CHANNELS, 8, 8),
    Boundary("reshape", (1, CHANNELS, 1, 1)),
    Gemm(1, CHANNELS, 10),
    Node("Softmax", ("float32[1,10]",), ("float32[1,10]",), '{"axis":-1}', version=13),
)


def without_layout(operators: list[Operator]) -> list[Operator]:
    layouts = ("reorder_input", "reorder_output", "transpose")
    return [op for op in operators if not (isinstance(op, Boundary) and op.function in layouts)]


@pytest.mark.parametrize("layout", ["executed", "portable"])
def test_operators_keep_their_true_channels_whatever_the_layout(tmp_path: Path, layout: Layout) -> None:
    found = read_model(float_model(tmp_path / "m.onnx"), layout=layout)
    last = [ADDED] if layout == "executed" else [POINTWISE, ADDITION]
    assert without_layout([op for _, op, _ in found.layers]) == [STEM, DEPTHWISE, *last, *REST]
    assert {precision for _, _, precision in found.layers} == {FLOAT}
    assert found.uncovered == () and found.uncovered_share == 0


def test_portable_graphs_have_no_layout_changes(tmp_path: Path) -> None:
    for path in (float_model(tmp_path / "f.onnx"), quantised_model(tmp_path / "q.onnx")):
        operators = [op for _, op, _ in read_model(path, layout="portable").layers]
        assert without_layout(operators) == operators


@pytest.mark.parametrize("layout", ["executed", "portable"])
def test_quantised_networks_become_int8_operators(tmp_path: Path, layout: Layout) -> None:
    found = read_model(quantised_model(tmp_path / "q.onnx"), layout=layout)
    assert without_layout([op for _, op, _ in found.layers]) == [
        Boundary("quantize", (1, 3, 8, 8)),
        Conv(3, 16, 8, 8, (3, 3), pads=(1, 1, 1, 1)),
        Conv(16, 16, 8, 8, (1, 1)),
        Elementwise("add", (1, 16, 8, 8)),
        Pool.global_average(16, 8, 8),
        Boundary("reshape", (1, 16, 1, 1)),
        Gemm(1, 16, 10),
        Boundary("dequantize", (1, 10)),
    ]
    assert {precision for _, op, precision in found.layers if op.macs} == {Precision(8, 8, "u8u8")}
    assert {precision for _, op, precision in found.layers if not op.macs} == {INT8}


def test_a_window_over_the_edge_gives_the_output_that_was_seen(tmp_path: Path) -> None:
    build = Builder()
    y = build.node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    y = build.node("Conv", y, build.constant(build.weights(4, 3, 2, 2)), kernel_shape=[2, 2], auto_pad="SAME_UPPER")
    found = read_model(build.save(tmp_path / "m.onnx", [1, 3, 7, 7], y), layout="portable")
    pool, conv = (op for _, op, _ in found.layers)
    assert isinstance(pool, Pool) and (pool.output_height, pool.pads) == (4, (0, 0, 1, 1))
    assert isinstance(conv, Conv) and (conv.output_height, conv.pads) == (4, (0, 0, 1, 1))


def test_a_product_of_two_activations_is_no_gemm(tmp_path: Path) -> None:
    build = Builder()
    path = build.save(tmp_path / "m.onnx", [4, 4], build.node("MatMul", "x", build.node("Tanh", "x")))
    tanh, product = (op for _, op, _ in read_model(path, layout="portable").layers)
    assert tanh == Elementwise("tanh", (4, 4))
    assert isinstance(product, Node) and (product.op_type, product.macs, product.weights) == ("MatMul", 4**3, 0)


def test_a_mean_over_the_plane_is_a_pool_and_another_mean_is_not(tmp_path: Path) -> None:
    for axes, mapped in (([2, 3], True), ([-1, -2], True), ([1], False)):
        build = Builder()
        y = build.node("ReduceMean", "x", build.constant(np.array(axes)))
        found = read_model(build.save(tmp_path / "m.onnx", [1, 3, 8, 8], y), layout="portable")
        ((_, op, _),) = found.layers
        assert op == Pool.global_average(3, 8, 8) if mapped else isinstance(op, Node)
        assert found.uncovered == ()


def test_weight_only_matmuls_keep_their_bits(tmp_path: Path) -> None:
    build = Builder()
    codes = build.constant(build.rng.integers(0, 255, (16, 2, 16)).astype(np.uint8))
    y = build.node(
        "MatMulNBits", "x", codes, build.constant(np.full(32, 0.1, np.float32)),
        domain="com.microsoft", K=64, N=16, bits=4, block_size=32,
    )  # fmt: skip
    model = onnx.load(build.save(tmp_path / "m.onnx", [3, 64], y))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    ((_, op, precision),) = read_model(tmp_path / "m.onnx").layers
    assert op == Gemm(3, 64, 16) and str(precision) == "w4a32"


def test_an_open_shape_is_asked_for_by_the_name_of_its_input(tmp_path: Path) -> None:
    path = float_model(tmp_path / "m.onnx", ["N", 3, 16, 16])
    with pytest.raises(ModelError) as caught:
        read_model(path)
    assert "input 'x'" in str(caught.value) and "[N,3,16,16]" in str(caught.value)
    assert str(caught.value).endswith("give it with --shape x=1,3,16,16")
    assert read_model(path, shapes={"x": (2, 3, 16, 16)}, layout="portable").layers[0][1] == Conv(
        3, CHANNELS, 16, 16, (3, 3), (2, 2), (1, 1, 1, 1), activation="relu", batch=2
    )


def test_a_shape_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    path = float_model(tmp_path / "m.onnx", ["N", 3, 16, 16])
    with pytest.raises(ModelError, match=r"input 'x' of .* is \[N,3,16,16\], got --shape x=1,4,16,16"):
        read_model(path, shapes={"x": (1, 4, 16, 16)})
    with pytest.raises(ModelError, match=r"has no input 'y': its inputs are x"):
        read_model(path, shapes={"y": (1, 3, 16, 16)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no model at .*: give the path of an ONNX file"),
        (b"", r"at least one output, got none in .*: export it again"),
        (b"not a protobuf at all", r"is not an ONNX model .*: export it again"),
    ],
)
def test_a_file_that_is_no_model_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_model(path)


def test_half_a_model_is_refused(tmp_path: Path) -> None:
    path = float_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"is not an ONNX model|refuses"):
        read_model(path)


def test_a_model_that_the_runtime_refuses_says_so(tmp_path: Path) -> None:
    build = Builder()
    path = build.save(tmp_path / "m.onnx", [1, 3, 8, 8], build.node("NoSuchOperator", "x"))
    with pytest.raises(ModelError, match=r"onnxruntime refuses .*NoSuchOperator"):
        read_model(path)


def test_feeds_follow_the_seed(tmp_path: Path) -> None:
    model = load_model(float_model(tmp_path / "m.onnx"))
    first, again, other = (example_feeds(model, seed)["x"] for seed in (1, 1, 2))
    assert first.shape == (1, 3, 16, 16) and first.dtype == np.float32
    assert (first == again).all() and (first != other).any()


def test_a_damaged_model_is_read_or_refused_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sound, path = float_model(tmp_path / "m.onnx").read_bytes(), tmp_path / "damaged.json"
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(sound)
        for index in random.integers(0, min(len(sound), 2000), int(random.integers(1, 12))):
            damaged[index] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            read_model(path)
        except HwcostError as error:
            assert "\n" not in str(error)
    assert capfd.readouterr().out == ""


@dataclass(frozen=True)
class Told(Here):
    """This process, whose runs and nodes take what is said: seconds of a run, and of each node."""

    run_s: float = 0.0
    node_s: float = 0.0

    def node_times(self, given: Given, feeds: Feeds, seconds: float, most_runs: int) -> tuple[float, dict[str, float]]:
        assert isinstance(given.model, bytes)
        nodes = onnx.load_from_string(given.model).graph.node
        return self.run_s, {node.name: self.node_s for node in nodes}


def test_what_telling_of_nodes_takes_is_taken_off_them_by_what_is_told(tmp_path: Path) -> None:
    build = Builder()
    summed = build.node("Sum", "x", "x", "x")  # of four tensors with its output
    path = build.save(tmp_path / "m.onnx", [1, 3, 8, 8], build.node("Sqrt", summed))  # of two
    for node in (saved := onnx.load(path)).graph.node:
        node.name = ""  # an exporter may leave it out
    onnx.save(saved, path)
    file, kept = load_model(path), tmp_path
    read_model(path, keep=kept)
    feeds = example_feeds(file, 0)
    # Two nodes of 10 s make a run of 12 s, of which 2 s are the call: 10 s are the profile's, for five parts and three.
    told = time_nodes(file, kept, feeds, overhead_s=2.0, runtime=Told(run_s=12.0, node_s=10.0))
    assert told == {0: pytest.approx(10 - 10 * 5 / 8), 1: pytest.approx(10 - 10 * 3 / 8)}
    assert time_nodes(file, kept, feeds, runtime=Told(run_s=30.0, node_s=10.0)) == {0: 10.0, 1: 10.0}


@pytest.mark.parametrize("make", [float_model, quantised_model])
def test_every_node_is_timed_inside_the_model_by_its_place_among_the_layers(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "m.onnx")
    layers, file = read_model(path, keep=tmp_path), load_model(path)
    feeds = example_feeds(file, 0)
    with Piped() as there:
        for runtime in (Here(), there):
            told = time_nodes(file, tmp_path, feeds, seconds=0.0, runtime=runtime)
            assert set(layers.places) == told.keys() and all(node_s > 0 for node_s in told.values())


def test_a_model_that_cannot_be_run_has_no_node_times(tmp_path: Path) -> None:
    path = float_model(tmp_path / "m.onnx")
    read_model(path, keep=tmp_path)
    with pytest.raises(ModelError):
        time_nodes(load_model(path), tmp_path, {"x": np.zeros((2, 2), np.float32)})
