"""What networks are made of: draws that are operators of their kind, and random networks that are sound and run."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from hwcost.agent import session
from hwcost.errors import InvalidOperatorError
from hwcost.model import read_model
from hwcost.onnxfile import example_feeds, load_model
from hwcost.ops import FLOAT, PLAIN, Boundary, Conv, Gemm, Node, Precision
from hwcost.prior import FAMILIES
from hwcost.prior.networks import random_network
from hwcost.quantising import INT8_STYLES
from hwcost.runtime import Here
from hwcost.whole import WholeNetwork, affordable_networks, time_network, whole_networks

NETWORKS = range(8)
"""One of each kind of block."""


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
    assert all(isinstance(op, Gemm) and op.m == 1 for op in drawn("product of one row"))
    assert all(isinstance(op, Gemm) and op.m > 1 for op in drawn("product of more rows"))
    assert all(isinstance(op, Boundary) and op.permutation == (0, 2, 3, 1) for op in drawn("to channels last"))
    softmax = {op.op_type for op in drawn("softmax") if isinstance(op, Node)}
    assert softmax == {"Softmax", "QLinearSoftmax"}


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
    assert 0 < sum(op.macs for _, op, _ in found.layers) < 1_000_000_000


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
