import subprocess
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from faqs.data import Dataset, load_dataset
from faqs.errors import ExportError
from faqs.export import _EXACT, Int8Form, check_export, export_onnx
from faqs.quant import ActivationQuantiser, quantised_weight, weight_clip
from faqs.superkernel import ConvNorm, SlicedBlock
from faqs.supernet import DecidedNet, decide, new_supernet, recalibrate
from faqs.train import Hyperparameters, fine_tune, random_architecture
from hwcost import SearchSpace, Stage
from hwcost.model import read_model

FORMS: tuple[Int8Form, ...] = get_args(Int8Form)
INTEGER_KERNELS = {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"}
BOUNDARIES = {"QuantizeLinear", "DequantizeLinear", "Transpose", "Flatten"}
STAGES = (Stage(8, 2, 1), Stage(12, 2, 2), Stage(20, 2, 2))
SPACES = {
    "8x8x1": SearchSpace.for_image((1, 8, 8), 10),
    "32x32x3": SearchSpace((3, 32, 32), 10, 12, STAGES, kernels=(3, 5, 7)),
    "21x28x3": SearchSpace((3, 21, 28), 7, 8, STAGES, stem_stride=2, kernels=(3, 5, 7), expansions=(1, 2, 4)),
}
CASES = [(name, seed) for name in SPACES for seed in range(2)]


@cache
def random_network(name: str, seed: int) -> DecidedNet:
    """A random member of a space with random normalisation, negative gammas included, whose signals are alive."""
    space, generator = SPACES[name], torch.Generator().manual_seed(seed)
    network = decide(new_supernet(space, seed), random_architecture(space, generator))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.num_features, generator=generator))
                module.bias.copy_(torch.randn(module.num_features, generator=generator))
        network.classifier.bias.copy_(torch.randn(space.classes, generator=generator))
    recalibrate(network, [torch.from_numpy(images(space, 16, seed))], network)
    return network.eval()


def images(space: SearchSpace, count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, *space.image), dtype=np.float32)


def exact_scores(model: bytes, form: Int8Form, inputs: NDArray[np.float32], output: str = "scores") -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    for name, value in _EXACT[form].items():
        options.add_session_config_entry(name, value)
    proto = onnx.load_from_string(model)
    if output != "scores":
        proto.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([output], {"images": inputs[i : i + 1]})[0] for i in range(len(inputs))])


def torch_scores(network: DecidedNet, inputs: NDArray[np.float32]) -> NDArray[Any]:
    with torch.no_grad():
        return network(torch.from_numpy(inputs)).numpy()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> DecidedNet:
    space = SearchSpace((1, 8, 8), 10, 12, (Stage(12, 1, 1), Stage(16, 2, 2)))
    generator = torch.Generator().manual_seed(0)
    network = decide(new_supernet(space, 0), random_architecture(space, generator))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operators: more threads only wait for each other
    fine_tune(network, digits.subset(np.arange(1200)), Hyperparameters(learning_rate=0.25), 4, generator)
    torch.set_num_threads(threads)
    return network


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_all_forms_are_one_function(name: str, seed: int) -> None:
    space = SPACES[name]
    network, inputs = random_network(name, seed), images(space, 5, seed)
    scores = {form: exact_scores(export_onnx(network, form), form, inputs) for form in FORMS}
    assert np.array_equal(scores["u8u8"], scores["s8s8"])
    assert np.array_equal(scores["u8u8"], scores["u8s8"])
    assert len(np.unique(scores["u8u8"])) > 10, "the network answers differently to different images"


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_every_layer_is_torchs_but_for_rounding(name: str, seed: int) -> None:
    """Layer by layer on the file's own activations, so that no step of one layer is amplified by the next."""
    network = random_network(name, seed)
    inputs = images(SPACES[name], 4, seed + 100)
    model = onnx.load_from_string(export_onnx(network, "u8u8"))
    names = [node.name for node in model.graph.node if node.name.endswith(".dequantise") and len(node.input) == 3]
    names = [node for node in names if ".weight." not in node and ".bias." not in node]
    model.graph.output.extend(onnx.ValueInfoProto(name=f"{node}.out") for node in names[:-1])
    outputs = [f"{node}.out" for node in names[:-1]] + ["scores"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(outputs, {"images": inputs[i : i + 1]}) for i in range(len(inputs))]
    seen = {
        node.removesuffix(".dequantise"): torch.from_numpy(np.concatenate(values))
        for node, values in zip(names, zip(*runs, strict=True), strict=True)
    }

    def compare(layer: str, expected: torch.Tensor, quantiser: ActivationQuantiser) -> None:
        steps = ((seen[layer].reshape(expected.shape) - expected) / quantiser.step).abs()
        assert float(steps.max()) < 2.01, layer
        assert float((steps > 0.5).float().mean()) < 0.1, layer

    with torch.no_grad():
        compare("stem", network._stem(torch.from_numpy(inputs)), network.stem.quantise)
        before = "stem"
        for index, block in network.blocks.items():
            assert isinstance(block, SlicedBlock)
            x = start = seen[before]
            for part in ("expand", "depthwise", "project"):
                layer: ConvNorm = getattr(block, part)
                weight = quantised_weight(layer.weight, block.choice.weight_bits, weight_clip(layer.weight))
                compare(f"blocks.{index}.{part}", layer(x, weight), layer.quantise)
                x = seen[f"blocks.{index}.{part}"]
            before = f"blocks.{index}.project"
            if block.add is not None:
                compare(f"blocks.{index}.add", block.add(start + x), block.add)
                before = f"blocks.{index}.add"
        compare("pool", network.pool(seen[before].mean(dim=(2, 3))), network.pool)
        weight = network.classifier.weight
        quantised = quantised_weight(weight, 8, weight_clip(weight))
        scores = torch.nn.functional.linear(seen["flatten"], quantised, network.classifier.bias)
        compare("classifier", network.logits(scores), network.logits)


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_scores_of_random_networks_are_torchs_within_a_few_steps(name: str, seed: int) -> None:
    network, inputs = random_network(name, seed), images(SPACES[name], 8, seed + 100)
    model = export_onnx(network, "u8u8")
    steps = (exact_scores(model, "u8u8", inputs) - torch_scores(network, inputs)) / network.logits.step.item()
    assert np.abs(steps).mean() < 3
    assert np.abs(steps).max() < 15


@pytest.mark.parametrize("form", FORMS)
def test_a_trained_network_keeps_its_classes(form: Int8Form, trained: DecidedNet, digits: Dataset) -> None:
    held_out = digits.subset(np.arange(1200, 1797))
    check = check_export(export_onnx(trained, form), trained, held_out, measure_latency=False)
    assert check.accuracy_torch > 0.8
    assert check.agreement >= 0.99
    assert abs(check.accuracy_onnx - check.accuracy_torch) <= 0.01
    assert check.agrees
    assert check.latency_s is None
    assert check.samples_s == ()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPACES)
def test_only_integer_kernels_and_the_listed_boundaries_are_executed(name: str, form: Int8Form) -> None:
    space = SPACES[name]
    network = random_network(name, 1)
    data = Dataset(images(space, 2, 0), np.zeros(2, np.int64), space.classes)
    executed = check_export(export_onnx(network, form), network, data, measure_latency=False).executed
    residuals = sum(
        block.residual for block, choice in zip(space.blocks, network.architecture, strict=True) if choice.kernel
    )
    assert executed == {
        "QuantizeLinear": 1,
        "QLinearConv": 1 + 3 * len(network.blocks),
        **({"QLinearAdd": residuals} if residuals else {}),
        "QLinearGlobalAveragePool": 1,
        "QGemm": 1,
        "DequantizeLinear": 1,
        "Flatten": 1,
        "Transpose": 2,
    }


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_what_is_executed_is_what_the_space_lists(name: str, seed: int, tmp_path: Path) -> None:
    space = SPACES[name]
    network = random_network(name, seed)
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(network, "u8u8"))
    found = read_model(path, layout="executed")
    assert not found.uncovered
    assert Counter(op for _, op, _ in found.layers) == Counter(op for op, _ in space.layers(network.architecture))
    assert {precision.activation_bits for _, _, precision in found.layers} == {8}


def test_dead_and_extreme_channels_change_nothing_beyond_rounding() -> None:
    space = SPACES["8x8x1"]
    network = deepcopy(random_network("8x8x1", 0))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ConvNorm):
                gamma, beta = module.norm.weight, module.norm.bias
                gamma[0], beta[0] = 0.0, 0.0
                gamma[1], beta[1] = 0.0, 0.7
                gamma[2], beta[2] = -1e-12, 1.5
                gamma[3], beta[3] = 1e-30, -3.0
                gamma[4], beta[4] = 2.0, 1e9
                gamma[5], beta[5] = -2.0, -1e9
                module.weight[6] = 0.0
                module.norm.running_var[6] = 1e-20
                module.weight[7] *= 1e-8
        network.classifier.weight[0] = 0.0
    inputs = images(space, 20, 3)
    scores = {form: exact_scores(export_onnx(network, form), form, inputs) for form in FORMS}
    assert np.array_equal(scores["u8u8"], scores["s8s8"])
    assert np.array_equal(scores["u8u8"], scores["u8s8"])
    steps = (scores["u8u8"] - torch_scores(network, inputs)) / network.logits.step.item()
    assert np.abs(steps).max() < 12
    assert np.abs(steps).mean() < 2


def test_narrow_layers_hold_no_more_numbers_than_their_bits_tell_apart() -> None:
    network = random_network("21x28x3", 1)
    bits = {f"blocks.{index}": block.choice.weight_bits for index, block in network.blocks.items()}  # type: ignore[union-attr]
    constants = {
        form: {
            c.name: onnx.numpy_helper.to_array(c)
            for c in onnx.load_from_string(export_onnx(network, form)).graph.initializer
        }
        for form in FORMS
    }
    for name, values in constants["s8s8"].items():
        if name.endswith(".weight"):
            width = bits.get(".".join(name.split(".")[:2]), 8)
            assert values.dtype == np.int8
            assert max(len(np.unique(channel)) for channel in values) <= 2**width
            assert np.abs(values.astype(int)).max() <= 127
            assert np.array_equal(constants["u8u8"][name].astype(int) - 128, values)
            assert np.array_equal(constants["u8s8"][name], values)


def test_the_file_says_what_it_is() -> None:
    network = random_network("8x8x1", 1)
    model = onnx.load_from_string(export_onnx(network, "s8s8"))
    onnx.checker.check_model(model, full_check=True)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert model.producer_name == "faqs"
    assert properties["faqs.format_version"] == "1"
    assert properties["faqs.architecture"].split() == [str(choice) for choice in network.architecture]
    assert '"stem": 8' in properties["faqs.weight_bits"]
    assert "int8" in properties["faqs.weight_containers"]
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 1, 8, 8]


EXPORT_IN_ANOTHER_PROCESS = """
import hashlib, torch
from faqs.export import export_onnx
from faqs.supernet import decide, new_supernet
from hwcost import SearchSpace
space = SearchSpace.for_image((1, 8, 8), 10)
network = decide(new_supernet(space, 3), space.largest).eval()
print(hashlib.sha256(export_onnx(network, "u8s8")).hexdigest())
"""


def test_the_same_network_gives_the_same_bytes_in_every_process() -> None:
    def digest() -> str:
        command = [sys.executable, "-c", EXPORT_IN_ANOTHER_PROCESS]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert digest() == digest() != ""


def test_a_pixel_between_two_codes_is_rounded_as_in_training() -> None:
    network = random_network("8x8x1", 1)
    grid = np.linspace(0, 1, 64, dtype=np.float32)
    grid[:17] = np.arange(17) / 16  # 8 / 16 lies between the codes 127 and 128
    codes = exact_scores(export_onnx(network, "u8u8"), "u8u8", grid.reshape(1, 1, 8, 8), "images.quantise.out")
    assert np.array_equal(codes.reshape(-1), np.rint(grid * np.float32(255)))


def test_a_model_for_this_machine_is_timed(trained: DecidedNet, digits: Dataset) -> None:
    held_out = digits.subset(np.arange(1200, 1210))
    model = export_onnx(trained, "u8u8")
    check = check_export(model, trained, held_out, measure_latency=True, seconds=0.05, passes=2)
    assert check.latency_s is not None
    assert check.latency_s == min(check.samples_s)
    assert len(check.samples_s) == 2
    assert set(check.executed) <= INTEGER_KERNELS | BOUNDARIES


def test_a_model_of_other_weights_does_not_agree(trained: DecidedNet, digits: Dataset) -> None:
    held_out = digits.subset(np.arange(1200, 1300))
    other = DecidedNet(trained.space, trained.architecture).eval()
    assert not check_export(export_onnx(other, "u8u8"), trained, held_out, measure_latency=False).agrees


def test_numbers_that_are_not_finite_are_refused_by_name() -> None:
    network = deepcopy(random_network("8x8x1", 1))
    with torch.no_grad():
        network.stem.norm.running_var[0] = float("nan")
    with pytest.raises(
        ExportError, match=r"holds finite numbers, got some in stem\.norm\.running_var that are not: train"
    ):
        export_onnx(network, "u8u8")


def test_data_of_another_size_is_refused(trained: DecidedNet, digits: Dataset) -> None:
    wider = replace(digits, images=np.zeros((3, 1, 9, 8), np.float32), labels=np.zeros(3, np.int64))
    with pytest.raises(ExportError, match=r"of its own size \(1, 8, 8\), got 3 images of \(1, 9, 8\): use the data"):
        check_export(export_onnx(trained, "u8u8"), trained, wider, measure_latency=False)


@pytest.mark.parametrize("measure_latency", [False, True])
@pytest.mark.parametrize("damage", [b"no model", b"", "cut"])
def test_a_damaged_file_is_refused_in_one_line(
    damage: bytes | str, measure_latency: bool, trained: DecidedNet, digits: Dataset
) -> None:
    model = export_onnx(trained, "u8u8")[:2000] if isinstance(damage, str) else damage
    with pytest.raises(ExportError, match=r"it refused this one: .*: export it again") as caught:
        check_export(model, trained, digits.subset(np.arange(5)), measure_latency=measure_latency)
    assert "\n" not in str(caught.value)


def test_every_quantiser_of_a_network_is_a_node_of_the_file() -> None:
    network = random_network("32x32x3", 0)
    quantisers = sum(isinstance(module, ActivationQuantiser) for module in network.modules())
    model = onnx.load_from_string(export_onnx(network, "u8u8"))
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(nodes) == quantisers + 2  # the image, and the pooled plane once it is flat
