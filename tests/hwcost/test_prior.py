"""What networks are made of: draws that are operators of their kind, and random networks that are sound and run."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from hwcost.agent import session
from hwcost.errors import InvalidOperatorError
from hwcost.features import family
from hwcost.model import read_model
from hwcost.onnxfile import example_feeds, load_model
from hwcost.ops import FLOAT, PLAIN, Boundary, Conv, Gemm, Node, Precision
from hwcost.prior import FAMILIES
from hwcost.prior.networks import random_network
from hwcost.quantising import INT8_STYLES
from hwcost.runtime import Here
from hwcost.sampling import prior_operators
from hwcost.whole import WholeNetwork, affordable_networks, time_network, whole_networks

NETWORKS = range(12)
"""One of each kind of block."""
LARGE = (1, 5, 9, 11)
"""Those that run as long as published ones."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_draws_many_operators_of_batch_one_and_the_same_for_a_seed(name: str) -> None:
    share, draw = FAMILIES[name]
    assert share > 0
    runs = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        drawn = []
        for _ in range(40):
            try:
                drawn.append(draw(rng))
            except InvalidOperatorError:  # a window that does not fit its plane
                continue
        runs.append(drawn)
    assert runs[0] == runs[1] and len(set(runs[0])) > 10
    for op in runs[0]:
        assert op.output_elements >= 1 and op.input_elements >= 1
        if isinstance(op, Node) and name != "recurrent":  # whose first axis is time
            assert all(tensor.shape[0] == 1 for tensor in op.writes if len(tensor.shape) == 4)


def test_families_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)

    def drawn(name: str) -> list[object]:
        return [FAMILIES[name][1](rng) for _ in range(50)]

    assert all(isinstance(op, Conv) and op.residual for op in drawn("residual convolution"))
    assert all(isinstance(op, Conv) and op.depthwise and op.kernel == (1, 1) for op in drawn("scaling"))
    assert all(isinstance(op, Conv) and (op.height, op.width) == (1, 1) for op in drawn("excitation"))
    assert all(
        isinstance(op, Conv) and 1 in (op.height, op.width) and 1 in op.kernel for op in drawn("convolution of a line")
    )
    assert all(isinstance(op, Gemm) and op.m == 1 for op in drawn("product of one row"))
    assert all(isinstance(op, Gemm) and op.m > 1 for op in drawn("product of more rows"))
    assert all(isinstance(op, Boundary) and op.permutation == (0, 2, 3, 1) for op in drawn("to channels last"))
    softmax = {op.op_type for op in drawn("softmax") if isinstance(op, Node)}
    assert softmax == {"Softmax", "LogSoftmax", "QLinearSoftmax"}
    assert {family(op) for op in drawn("softmax") if isinstance(op, Node)} >= {"node.Softmax", "node.Softmax.turned"}


def test_what_exporters_write_and_the_runtime_fuses_is_drawn() -> None:
    rng, found = np.random.default_rng(0), set[str]()
    for _, draw in FAMILIES.values():
        for _ in range(80):
            try:
                op = draw(rng)
            except InvalidOperatorError:
                continue
            if isinstance(op, Node):
                found.add(op.op_type)
    activations = {"BiasGelu", "Celu", "Elu", "FastGelu", "Gelu", "Mish", "PRelu", "QuickGelu", "Selu", "Softplus"}
    layer_norms = {"LayerNormalization", "SimplifiedLayerNormalization"}
    norms = layer_norms | {"BatchNormalization", "InstanceNormalization", "LRN", "RMSNormalization"}
    fused = {f"Skip{name}" for name in layer_norms} | {"Attention", "FusedMatMul"}
    dynamic = {"ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
    kinds = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    reductions = {f"Reduce{kind}" for kind in kinds}
    choices = {"ArgMax", "Cast", "Equal", "Greater", "Less", "Max", "Min", "Not", "Where", "TopK"}
    moves = {"Concat", "Expand", "Gather", "GridSample", "Pad", "Resize", "Slice", "Split", "Tile"}
    others = {"Ceil", "Cos", "CumSum", "Floor", "GRU", "LSTM", "LogSoftmax", "RNN", "Round", "Sign", "Sin", "Softmax"}
    wanted = activations | norms | fused | dynamic | reductions | choices | moves | others
    assert wanted <= found, wanted - found


@pytest.fixture(scope="module")
def drawn_families() -> set[str]:
    return set(map(family, prior_operators(0)))


MAP, TOKENS = (1, 16, 12, 12), (1, 16, 64)
_WEIGHTS = {"width": np.ones(64, np.float32), "channels": np.ones(16, np.float32), "one": np.float32(1)}
_WEIGHTS |= {"scales": np.array([1, 1, 2, 2], np.float32), "axis": np.array(1), "three": np.array([3])}
WRITTEN = {
    "RMSNormalization": (23, ["RMSNormalization(x, width)"], TOKENS, {}),
    "Attention": (23, ["Attention(x, x, x)"], TOKENS, {"q_num_heads": 4, "kv_num_heads": 4}),
    "GroupNormalization": (21, ["GroupNormalization(x, channels, channels)"], MAP, {"num_groups": 4}),
    "Swish": (24, ["Swish(x)"], TOKENS, {}),
    "Selu": (17, ["Selu(x)"], MAP, {}),
    "Celu": (17, ["Celu(x)"], MAP, {}),
    "LogSoftmax": (17, ["LogSoftmax(x)"], TOKENS, {}),
    "ReduceL2": (13, ["ReduceL2(x)"], TOKENS, {"axes": [2]}),
    "ReduceLogSumExp": (13, ["ReduceLogSumExp(x)"], MAP, {"axes": [1]}),
    "Resize": (13, ["Resize(x, , scales)"], MAP, {"mode": "cubic"}),
    "Where": (17, ["Greater(x, one)", "Where(0, x, one)"], MAP, {}),
    "Cast": (17, ["Floor(x)", "Cast(0)"], MAP, {"to": 7}),
    "CumSum": (17, ["CumSum(x, axis)"], MAP, {}),
    "TopK": (17, ["TopK(x, three)"], TOKENS, {"axis": 1}),
    "ArgMax": (17, ["ArgMax(x)"], MAP, {"axis": 1}),
}
"""Opset, nodes (operands are inputs, weights and the outputs of earlier nodes), input, attributes of the last node."""


@pytest.mark.parametrize("name", WRITTEN)
def test_what_exporters_write_is_of_families_that_a_profile_holds(
    tmp_path: Path, drawn_families: set[str], name: str
) -> None:
    opset, lines, shape, attributes = WRITTEN[name]
    nodes, used = [], set[str]()
    for place, line in enumerate(lines):
        op_type, _, operands = line.rstrip(")").partition("(")
        inputs = operands.split(", ") if operands else []
        used.update(set(inputs) & set(_WEIGHTS))
        more = attributes if place == len(lines) - 1 else {}
        outputs = [str(place), "where"] if op_type == "TopK" else [str(place)]
        nodes.append(onnx.helper.make_node(op_type, inputs, outputs, **more))
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [onnx.numpy_helper.from_array(np.asarray(_WEIGHTS[weight]), weight) for weight in sorted(used)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    found = read_model(path)
    assert found.uncovered == ()
    families = {family(op) for _, op, _ in found.layers}
    assert families and families <= drawn_families, families - drawn_families


@pytest.mark.parametrize("index", NETWORKS)
def test_a_random_network_is_sound_the_same_for_a_seed_and_runs(tmp_path: Path, index: int) -> None:
    model = random_network(3, index)
    data = model.SerializeToString()
    assert data == random_network(3, index).SerializeToString() != random_network(4, index).SerializeToString()
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    (answer,) = session(data).run(None, example_feeds(load_model(path), 0))
    assert answer.shape == (1, *answer.shape[1:]) and answer.shape[1] in (10, 100, 1000)
    assert np.isfinite(answer).all()
    found = read_model(path)
    assert found.uncovered == () and len(found.layers) > 5
    macs = sum(op.macs for _, op, _ in found.layers)
    assert (500_000_000 if index in LARGE else 0) < macs < (3_500_000_000 if index in LARGE else 1_000_000_000)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[WholeNetwork, ...]:
    return tuple(whole_networks(tmp_path_factory.mktemp("networks"), 3, 2, Here()))


def test_whole_networks_come_in_float_and_in_int8_of_every_style(networks: tuple[WholeNetwork, ...]) -> None:
    names = [network.name for network in networks]
    styles = list(INT8_STYLES)
    assert names == [
        f"network 2/{index} {kind}" for index in range(3) for kind in ("float", f"int8 {styles[index % len(styles)]}")
    ]
    for network in networks:
        kinds = {precision for op, precision in network.layers if isinstance(op, Conv)}
        if network.name.endswith("float"):
            assert kinds == {FLOAT}
        else:  # where the runtime does not fuse, weights are dequantised in every run
            assert kinds - {PLAIN} <= {Precision(8, 8, form) for form in ("u8u8", "u8s8", "s8s8")}
            assert any(precision.weight_bits == 8 and op.macs for op, precision in network.layers)
        assert network.path.exists()


def test_a_whole_network_keeps_its_kernels_and_how_often_each_runs(networks: tuple[WholeNetwork, ...]) -> None:
    network = networks[0]
    run_s = time_network(network, 1, 0, Here())
    kept = network.measured([run_s])
    assert kept.name == network.name and kept.samples_s == (run_s,) and run_s > 0
    assert sum(part.count for part in kept.parts) == len(network.layers)
    assert {(part.operator, part.precision) for part in kept.parts} == set(network.layers)
    assert len(kept.parts) == len(set(network.layers))


def test_networks_are_run_where_the_budget_allows_enough_of_them() -> None:
    counts = [affordable_networks(seconds) for seconds in (0, 20, 59, 60, 120, 480, 3600)]
    assert counts[:4] == [0, 0, 0, 0] and 8 <= counts[4] <= counts[5] == counts[6]
    assert counts == sorted(counts)
