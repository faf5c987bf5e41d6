"""A decided network as an int8 ONNX file: the integers that were trained, as the runtime's integer kernels read them.

The graph is QDQ (QuantizeLinear/DequantizeLinear around every operator), which onnxruntime fuses into integer kernels
and which other runtimes read too. Weights are the network's own codes, batch norm is folded into their scales and the
bias, a ReLU is the clip of an unsigned activation at zero. 4- and 2-bit weights stand in int8 containers. How
integers are labelled (`int8_form`) changes no value: which form is fast and exact is the device's matter.

Where scores differ from torch's: torch adds in float32 and this file in integers, so a value near a rounding tie may
fall on either side (one step); a bias is rounded to the unit of its accumulator (a sixteenth of a step at most, more in
channels of almost no variance); a pooled mean is rounded once in both, from sums made in another order. The layers
behind amplify such steps, so that scores end up about half a step apart on average and a few at most, and the odd image
whose best classes are that close gets another class. `Check` states what is accepted.
"""

import json
import math
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from faqs.data import Dataset
from faqs.errors import ExportError
from faqs.quant import ActivationQuantiser, container_unit, container_values, nested_codes, weight_clip, weight_codes
from faqs.superkernel import ConvNorm, SlicedBlock
from faqs.supernet import DecidedNet
from faqs.train import class_scores
from hwcost import RUNTIME_ERRORS, session, time_model

Int8Form = Literal["u8u8", "u8s8", "s8s8"]
"""Number formats of activations and of weights."""

# 1: first version.
FORMAT_VERSION: Final = 1
TOLERANCE: Final = 0.01
"""The share of images whose class may differ from torch's, and of accuracy; rounded up to whole images."""
TIE_STEPS: Final = 4
"""Steps of the score's quantiser that rounding moved scores by, at most, on trained networks."""

_OPSET: Final = 17
_IR_VERSION: Final = 8
_INPUT_STEP: Final = np.nextafter(np.float32(1.0 / 255.0), np.float32(0.0))
"""The float32 below 1/255: with the nearest one, which is above, a pixel of 0.5 would round down, and 255 x up."""
_LARGEST_CODE: Final = 127
_COARSEST_BIAS: Final = 0.125
"""Unit of a bias in output steps, where the container has room for it: half of it is lost at most."""
_LARGEST_BIAS: Final = 2.0**30
"""Of a bias in units of its accumulator: half of int32, the other half is the sum's."""
_LEAST_UNIT: Final = 2.0**-30
"""Of an accumulator's unit in output steps; below it no sum of an int32 reaches half a step."""
_EXACT: Final = {
    "u8u8": {},
    "u8s8": {"session.x64quantprecision": "1"},
    "s8s8": {"session.qdqisint8allowed": "1"},
}
"""What keeps x86 exact in the forms of other CPUs: without 8-bit dot products its sums of u8 x s8 saturate."""


@dataclass(frozen=True)
class _Activation:
    """The float view of an integer tensor: `step` is the value of one code, `signed` codes are -128..127 and the
    others 0..255."""

    name: str
    step: np.float32
    signed: bool


@dataclass(frozen=True)
class _Weights:
    """int8 codes in -127..127, shape [out, ...], with a unit per output channel, and the bias they are used with."""

    codes: NDArray[np.int8]
    units: NDArray[np.float32]
    bias: NDArray[np.int32]


@dataclass
class _Graph:
    """A model under construction in one int8 form."""

    form: Int8Form
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    weight_bits: dict[str, int] = field(default_factory=dict)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op_type: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def quantise(self, name: str, value: str, step: np.float32, signed: bool) -> _Activation:
        """Quantise and dequantise; codes are moved into the form's container by their zero-point."""
        if self.form[0] == "u":
            zero: np.generic = np.uint8(128 if signed else 0)
        else:
            zero = np.int8(0 if signed else -128)
        pair = [
            self.constant(f"{name}.step", np.asarray(step, np.float32)),
            self.constant(f"{name}.zero", np.asarray(zero)),
        ]
        codes = self.node("QuantizeLinear", f"{name}.quantise", [value, *pair])
        return _Activation(self.node("DequantizeLinear", f"{name}.dequantise", [codes, *pair]), step, signed)

    def weigh(self, name: str, weights: _Weights, step: np.float32) -> list[str]:
        """The float views of weights and bias; the bias is in units of input step times weight unit."""
        if self.form[2] == "u":
            container: NDArray[Any] = (weights.codes.astype(np.int16) + 128).astype(np.uint8)
            zeros: NDArray[Any] = np.full(len(weights.units), 128, np.uint8)
        else:
            container, zeros = weights.codes, np.zeros(len(weights.units), np.int8)
        unit = self.constant(f"{name}.unit", weights.units)
        weight = [self.constant(f"{name}.weight", container), unit, self.constant(f"{name}.weight_zero", zeros)]
        bias = [
            self.constant(f"{name}.bias", weights.bias),
            self.constant(f"{name}.bias_unit", weights.units * step),
            self.constant(f"{name}.bias_zero", np.zeros(len(weights.units), np.int32)),
        ]
        return [
            self.node("DequantizeLinear", f"{name}.weight.dequantise", weight, axis=0),
            self.node("DequantizeLinear", f"{name}.bias.dequantise", bias, axis=0),
        ]

    def convolve(self, name: str, x: _Activation, layer: ConvNorm, bits: int) -> _Activation:
        step, (kernel, pad) = _step(layer.quantise), (layer.weight.shape[-1], layer.weight.shape[-1] // 2)
        inputs = [x.name, *self.weigh(name, _fold(layer, bits, x.step, step), x.step)]
        self.weight_bits[name] = bits
        y = self.node(
            "Conv",
            name,
            inputs,
            kernel_shape=[kernel, kernel],
            strides=[layer.stride, layer.stride],
            pads=[pad] * 4,
            group=layer.groups,
        )
        return self.quantise(name, y, step, layer.quantise.signed)

    def block(self, name: str, x: _Activation, block: SlicedBlock) -> _Activation:
        y, bits = x, block.choice.weight_bits
        y = self.convolve(f"{name}.expand", y, block.expand, bits)
        y = self.convolve(f"{name}.depthwise", y, block.depthwise, bits)
        y = self.convolve(f"{name}.project", y, block.project, bits)
        if block.add is not None:
            reader = f"{name}.add"
            total = self.node("Add", reader, [x.name, y.name])
            y = self.quantise(reader, total, _step(block.add), signed=True)
        return y

    def head(self, x: _Activation, network: DecidedNet) -> None:
        """The last node makes the scores."""
        mean = self.node("GlobalAveragePool", "pool", [x.name])
        pooled = self.quantise("pool", mean, _step(network.pool), signed=True)
        flat = self.node("Flatten", "flatten", [pooled.name], axis=1)
        pooled = self.quantise("flatten", flat, pooled.step, signed=True)
        weight, step = network.classifier.weight.detach(), _step(network.logits)
        clip = weight_clip(weight)
        codes = container_values(nested_codes(weight_codes(weight, clip), 8), 8).numpy().astype(np.float64)
        units = container_unit(clip, 8).double().numpy().reshape(-1)
        folded = _in_range(codes, units, network.classifier.bias.detach().double().numpy(), pooled.step, step)
        inputs = [pooled.name, *self.weigh("classifier", folded, pooled.step)]
        self.weight_bits["classifier"] = 8
        scores = self.node("Gemm", "classifier", inputs, transB=1)
        self.quantise("classifier", scores, step, signed=True)


def _step(quantiser: ActivationQuantiser) -> np.float32:
    return np.float32(quantiser.step.detach().item())


def _fold(layer: ConvNorm, bits: int, step_in: np.float32, step_out: np.float32) -> _Weights:
    """A convolution's codes with its batch norm folded in: a negative gamma flips the signs of its channel."""
    weight, norm = layer.weight.detach(), layer.norm
    clip = weight_clip(weight)
    codes = container_values(nested_codes(weight_codes(weight, clip), bits), bits).numpy().astype(np.float64)
    assert norm.running_mean is not None and norm.running_var is not None
    gain = (norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()).numpy()
    bias = norm.bias.detach().double().numpy() - gain * norm.running_mean.double().numpy()
    units = container_unit(clip, bits).double().numpy().reshape(-1) * np.abs(gain)
    flipped = codes * np.where(gain < 0, -1.0, 1.0)[:, None, None, None]
    return _in_range(flipped, units, bias, step_in, step_out)


def _in_range(
    codes: NDArray[np.float64],
    units: NDArray[np.float64],
    bias: NDArray[np.float64],
    step_in: np.float32,
    step_out: np.float32,
) -> _Weights:
    """Weights whose bias is told well by its int32. A channel whose unit is coarse beside an output step (narrow
    weights, or a variance near 0) has its codes multiplied, which is exact, as far as the container goes. One that is
    almost dead (a gamma near 0, all weights 0) gets a larger unit and is rounded to it: it loses less than shows."""
    per_channel = (-1, *(1,) * (codes.ndim - 1))
    largest = np.abs(codes).reshape(len(codes), -1).max(axis=1).clip(min=1.0)
    finer = np.ceil(units * float(step_in) / float(step_out) / _COARSEST_BIAS)
    finer = np.minimum(finer, np.floor(_LARGEST_CODE / largest)).clip(min=1.0)
    codes, units = codes * finer.reshape(per_channel), units / finer
    least = np.maximum(np.abs(bias) / _LARGEST_BIAS, float(step_out) * _LEAST_UNIT) / float(step_in)
    safe = np.maximum(units, least).astype(np.float32)
    shrink = np.where(units < least, units / safe.astype(np.float64), 1.0)
    recoded = np.rint(codes * shrink.reshape(per_channel))
    accumulator = safe.astype(np.float64) * float(step_in)
    return _Weights(recoded.astype(np.int8), safe, np.rint(bias / accumulator).astype(np.int32))


def export_onnx(network: DecidedNet, int8_form: Int8Form) -> bytes:
    """The ONNX file of a network, the same bytes every time: `images` float [1, channels, height, width] in [0, 1] ->
    `scores` float [1, classes].

    All forms compute the same function. Raises `ExportError` where a number of the network is not finite.
    """
    for name, value in network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise ExportError(
                f"an exported network holds finite numbers, got some in {name} that are not: "
                "train it again with a smaller learning rate"
            )
    space, graph = network.space, _Graph(int8_form)
    x = graph.quantise("images", "images", _INPUT_STEP, signed=False)
    x = graph.convolve("stem", x, network.stem, 8)
    for index, block in network.blocks.items():
        assert isinstance(block, SlicedBlock)
        x = graph.block(f"blocks.{index}", x, block)
    graph.head(x, network)
    graph.nodes[-1].output[0] = "scores"
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "faqs",
            [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, *space.image])],
            [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, space.classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="faqs",
    )
    properties = {
        "faqs.format_version": str(FORMAT_VERSION),
        "faqs.architecture": " ".join(map(str, network.architecture)),
        "faqs.int8_form": int8_form,
        "faqs.weight_bits": json.dumps(graph.weight_bits),
        "faqs.weight_containers": "int8; a channel of a 4- or 2-bit layer holds at most 16 or 4 distinct numbers",
    }
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


@dataclass(frozen=True)
class Check:
    """What an exported model does here, beside the network it came from.

    `agreement` is the share of images that get the same class from both. `agrees` says that no more than `tolerance`, a
    share of the images, gets a class that torch does not hold for as good as its own: within `TIE_STEPS` steps of the
    best score, as far as rounding moves scores; and that accuracies differ by at most that and what ties do by chance,
    two standard deviations of as many tosses of a coin. `executed` counts the nodes that the runtime made of the file,
    by type. `latency_s` and `samples_s` as `hwcost.time_model` gives them, or None and nothing.
    """

    accuracy_torch: float
    accuracy_onnx: float
    agreement: float
    tolerance: float
    agrees: bool
    executed: dict[str, int]
    latency_s: float | None
    samples_s: tuple[float, ...]


def check_export(
    model: bytes,
    network: DecidedNet,
    data: Dataset,
    *,
    measure_latency: bool,
    seconds: float = 1.0,
    passes: int = 3,
    threads: int = 1,
) -> Check:
    """Run an exported model on `data` and compare it with its network; with `measure_latency`, also time it.

    A model that is timed is one for this machine and runs as it would when deployed. One that is not is for another
    device, and the runtime is asked for exact sums in its int8 form, whatever this CPU would prefer.
    Raises `ExportError` where the data does not fit or the runtime refuses the model.
    """
    if data.image_shape != network.space.image or not len(data.labels):
        raise ExportError(
            f"a model is checked on images of its own size {network.space.image}, got {len(data.labels)} images of "
            f"{data.image_shape}: use the data that it was searched on"
        )
    running, executed = _session(model, threads, as_deployed=measure_latency)
    images = np.ascontiguousarray(data.images, dtype=np.float32)
    (scores,) = zip(*(running.run(["scores"], {"images": images[i : i + 1]}) for i in range(len(images))), strict=True)
    classes = np.concatenate(scores).argmax(axis=1)
    exact = class_scores(network, data.images)
    expected = exact.argmax(axis=1)
    short = exact.max(axis=1) - np.take_along_axis(exact, classes[:, None], axis=1)[:, 0]
    foreign = short > (TIE_STEPS + 0.5) * float(_step(network.logits))
    ties = int(((classes != expected) & ~foreign).sum())
    tolerance = math.ceil(TOLERANCE * len(images)) / len(images)
    agreement = float((classes == expected).mean())
    accuracy_torch, accuracy_onnx = (float((found == data.labels).mean()) for found in (expected, classes))
    by_chance = 2 * math.sqrt(ties) / len(images)
    worst = max(float(foreign.mean()), abs(accuracy_onnx - accuracy_torch) - by_chance)
    latency_s: float | None = None
    samples_s: tuple[float, ...] = ()
    if measure_latency:
        latency_s, samples_s = time_model(
            model, {"images": images[:1]}, threads=threads, seconds=seconds, passes=passes
        )
    return Check(
        accuracy_torch, accuracy_onnx, agreement, tolerance, worst <= tolerance + 1e-9, executed, latency_s, samples_s
    )


def _session(model: bytes, threads: int, as_deployed: bool) -> tuple[Any, dict[str, int]]:
    """A session and its executed nodes by type, counted in the graph that the runtime made of the file."""
    with tempfile.TemporaryDirectory(prefix="faqs-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        try:
            properties = {entry.key: entry.value for entry in onnx.load_from_string(model).metadata_props}
            exact = {} if as_deployed else _EXACT.get(properties.get("faqs.int8_form", ""), {})
            running = session(model, threads, save_as=optimised, settings=exact)
        except (*RUNTIME_ERRORS, DecodeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"onnxruntime must be able to run an exported model, it refused this one: {reason}: export it again"
            ) from error
        nodes = onnx.load(optimised).graph.node
    return running, dict(sorted(Counter(node.op_type for node in nodes).items()))
