"""From a realisation to the kernel that the runtime really executes, and to runs that hold many copies of it.

The runtime rewrites a model: layouts are blocked or moved to NHWC, activations fused. A kernel is what runs then,
without the layout changes around it, which are operators of their own in a profile. `copies` puts many kernels, each
with weights of its own, beside each other in one graph, so that the time of one follows from the time of a run. The
copies read the same inputs and nobody reads their outputs: the runtime then reuses one output buffer, as it does inside
a network; chained copies of one kernel take the same time.
"""

import itertools
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwcost.errors import MeasurementError
from hwcost.graph import IR_VERSION, Array, Candidate, candidates, typed
from hwcost.hardware import TURNS, row_copies
from hwcost.ops import Boundary, Conv, Operator, Precision, key
from hwcost.profiles import Int8Form
from hwcost.runtime import Given, Job, RefusedError, Runtime, Weights

_LAYOUT_OPS: Final = ("Transpose", "ReorderInput", "ReorderOutput")
_WEIGHT_BYTES: Final = 4096
"""Constants from this size on are handed over beside a model."""
_PROBE_S: Final = 0.0005
_CHOICE_S: Final = 0.003
HELD_ELEMENTS: Final = 2048
"""Outputs of at least this size are kept alive for two rounds, each by a node of its own."""
_PROBED_COPIES: Final = (1, 8)
_LEAST_S: Final = 1e-9
"""What a probe that is no longer than a call says of a kernel."""


@dataclass(frozen=True)
class Kernel:
    """What the runtime executes for an operator: nodes, their constants, and the tensors that flow in from outside.

    `in_place` says that a kernel only changes the shape of a tensor that nobody else reads, so copies must be chained.
    `others`: realisations of the same operator that were slower, and how many times as long they took in a short trial.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: dict[str, onnx.TensorProto]
    inputs: dict[str, Array]
    opsets: tuple[onnx.OperatorSetIdProto, ...]
    output_elements: int = 0
    note: str = ""
    native: bool = True
    in_place: bool = False
    others: dict[str, float] = field(default_factory=dict)

    @cached_property
    def constant_bytes(self) -> int:
        """Bytes of the constants of one copy."""
        return sum(numpy_helper.to_array(tensor).nbytes for tensor in self.constants.values())

    @property
    def input_bytes(self) -> int:
        """Bytes of what flows into one copy."""
        return sum(array.nbytes for array in self.inputs.values())

    @property
    def realisation(self) -> str:
        """The executed nodes and the candidate's note: `QLinearConv u8u8`, `nchwc.Conv`."""
        domains = (node.domain.removeprefix("com.microsoft").lstrip(".") for node in self.nodes)
        names = (f"{domain}.{node.op_type}".lstrip(".") for domain, node in zip(domains, self.nodes, strict=True))
        return f"{'+'.join(names)} {self.note}".strip()


def executed_kernel(op: Operator, candidate: Candidate, runtime: Runtime, threads: int = 1) -> Kernel:
    """The kernel that the runtime makes of a candidate, without layout changes unless `op` is one, and its inputs."""
    executed = candidate.model
    if candidate.rewritten:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "executed.onnx")
            runtime.optimised(_given(candidate, threads), path)
            executed = onnx.load(path)
    nodes = tuple(node for node in executed.graph.node if isinstance(op, Boundary) or node.op_type not in _LAYOUT_OPS)
    if isinstance(op, Conv) and op.residual:  # what makes the tensor to be added is not part of it
        nodes = _depending(nodes, executed, next(iter(candidate.feeds)))
    constants = {tensor.name: tensor for tensor in executed.graph.initializer}
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    inputs = [name for name in read if name not in made and name not in constants]
    feeds = dict(candidate.feeds)
    inside = [name for name in inputs if name not in feeds]
    if inside:
        given = Given(_answering(executed, inside), threads, "none", contains=_large(executed))
        before = runtime.run(given, candidate.feeds)
        feeds.update(zip(inside, before, strict=True))
    return Kernel(
        nodes,
        {name: constants[name] for name in read if name in constants},
        {name: feeds[name] for name in inputs},
        tuple(executed.opset_import),
        op.output_elements,
        candidate.note,
        candidate.native,
        in_place=isinstance(op, Boundary) and op.function == "reshape",
    )


def _given(candidate: Candidate, threads: int) -> Given:
    return Given(candidate.model.SerializeToString(), threads, contains=_large(candidate.model))


def _large(model: onnx.ModelProto) -> tuple[bytes, ...]:
    """The bytes of its heavy constants."""
    return tuple(one.raw_data for one in model.graph.initializer if len(one.raw_data) >= _WEIGHT_BYTES)


def _depending(nodes: tuple[onnx.NodeProto, ...], model: onnx.ModelProto, name: str) -> tuple[onnx.NodeProto, ...]:
    """Those of the nodes that read what is made of this input of the model."""
    names = {name}
    for node in model.graph.node:
        if names & set(node.input):
            names.update(node.output)
    return tuple(node for node in nodes if names & set(node.input))


def _answering(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The same graph, serialised, with these tensors as its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return bytes(copy.SerializeToString())


def copies(kernels: Sequence[Kernel], count: int) -> tuple[bytes, dict[str, Array], dict[str, Weights]]:
    """A model of `count` rounds of these kernels, each with constants of its own, what to feed it, and its weights and
    what flows in, which are not in its bytes. It is not to be rewritten.

    Caches are as warm as in a network. There, a kernel reads what was written a moment ago and writes into memory that
    was last used some kernels ago: so copies take turns with three sets of inputs, and an output that the first cache
    would not hold stays alive for two more rounds, which makes the runtime use another place for the next. Weights are
    a copy's own in content too, since the runtime keeps equal ones once. A kernel that works in place reads what the
    one before it wrote, which must be of its size. The only output is one number, so that what a run hands back costs
    the same for every operator.
    """
    nodes: list[onnx.NodeProto] = [helper.make_node("Identity", ["tick"], ["tock"])]
    constants: list[onnx.TensorProto] = []
    feeds: dict[str, Array] = {"tick": np.zeros(1, np.float32)}
    flowing: dict[str, Array] = {}
    weights: dict[str, Weights] = {}
    values = [{name: numpy_helper.to_array(tensor) for name, tensor in one.constants.items()} for one in kernels]

    def hand_over(name: str, one: Weights) -> None:
        if one.base.nbytes >= _WEIGHT_BYTES:
            weights[name] = one
            constants.append(_elsewhere(name, one.base))
        else:
            constants.append(numpy_helper.from_array(one.value, name))

    before = ""
    held: list[list[str]] = [[] for _ in kernels]
    for round_, place in itertools.product(range(count), range(len(kernels))):
        kernel, names = kernels[place], {"": ""}
        turn = round_ % TURNS
        for name, array in kernel.inputs.items():
            names[name] = f"{name}/{place}/{turn}"
            flowing.setdefault(names[name], array)
        if kernel.in_place and before:
            names[next(iter(kernel.inputs))] = before
        for name, value in values[place].items():
            scalar = value.shape in ((), (1,))
            names[name] = f"{name}/{place}" if scalar else f"{name}/{place}/{round_}"
            if round_ == 0 or not scalar:
                hand_over(names[name], Weights(value, round_))
        for position, node in enumerate(kernel.nodes):
            names.update({name: f"{name}/{place}/{round_}" for name in node.output if name})
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{node.op_type}/{place}/{round_}/{position}"
            del copy.input[:], copy.output[:]
            copy.input.extend(names[name] for name in node.input)
            copy.output.extend(names[name] for name in node.output)
            nodes.append(copy)
        before = nodes[-1].output[0]
        if kernel.output_elements >= HELD_ELEMENTS and not kernel.in_place:
            held[place].append(before)
            if len(held[place]) >= TURNS:
                nodes.append(helper.make_node("Shape", [held[place].pop(0)], [f"held/{place}/{round_}"]))
    used = {name for node in nodes for name in node.input}
    flowing = {name: array for name, array in flowing.items() if name in used}  # what works in place flows in once
    # Initial values that could be fed: for the runtime they are no constants, and a call need not hand them over.
    for name, array in flowing.items():
        hand_over(name, Weights(array))
    graph = helper.make_graph(
        nodes,
        "copies",
        [typed(name, array) for name, array in {**feeds, **flowing}.items()],
        [helper.make_tensor_value_info("tock", TensorProto.FLOAT, [1])],
        constants,
    )
    opsets = {opset.domain: opset for kernel in kernels for opset in kernel.opsets}
    model = helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=IR_VERSION)
    return model.SerializeToString(), feeds, weights


def _elsewhere(name: str, value: Array) -> TensorProto:
    """A constant whose bytes are handed over beside the model: copying them into it would take longer than timing."""
    tensor = TensorProto(name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for entry, text in (("location", "memory"), ("offset", "0"), ("length", str(value.nbytes))):
        tensor.external_data.add(key=entry, value=text)
    return tensor


def held_outputs(op: Operator, count: int) -> int:
    """How many nodes `copies` adds to `count` rounds of an operator's kernel to keep its outputs alive."""
    in_place = isinstance(op, Boundary) and op.function == "reshape"
    return max(count - TURNS + 1, 0) if op.output_elements >= HELD_ELEMENTS and not in_place else 0


def rounds(kernels: Sequence[Kernel], count: int, threads: int) -> Job:
    """What the runtime runs for `count` rounds of these kernels."""
    model, feeds, weights = copies(kernels, count)
    return Given(model, threads, "none", weights=weights), feeds


def run_time(kernels: Sequence[Kernel], count: int, runtime: Runtime, threads: int, seconds: float) -> float:
    """Seconds of one run of `count` rounds of these kernels, in a session of its own."""
    return runtime.shortest_s(*rounds(kernels, count, threads), seconds)


def copies_for(kernel: Kernel, overhead_s: float, runtime: Runtime, threads: int) -> int:
    """How many copies make a run long enough to be timed well (`row_copies`), after a look at how long one takes."""
    count = 1
    for few in _PROBED_COPIES:  # one copy says enough of a long kernel, and too little of a short one
        if few > row_copies(kernel.constant_bytes, _LEAST_S):
            break
        one_s = (run_time([kernel], few, runtime, threads, _PROBE_S) - overhead_s) / few
        count = row_copies(kernel.constant_bytes, max(one_s, _LEAST_S))
        if count <= _PROBED_COPIES[-1]:
            break
    return count


def _right(candidate: Candidate, runtime: Runtime, threads: int) -> bool:
    """Whether the runtime answers what a candidate expects, where it expects something."""
    if candidate.expected is None:
        return True
    (answer,) = runtime.run(_given(candidate, threads), candidate.feeds)
    error = float(np.sqrt(np.mean((answer - candidate.expected) ** 2)))
    return error <= candidate.tolerance * float(np.sqrt(np.mean(candidate.expected**2)))


def _runs(kernel: Kernel, runtime: Runtime, threads: int) -> bool:
    """Whether the runtime takes a kernel as it is written."""
    try:
        run_time([kernel], 1, runtime, threads, 0.0)
    except RefusedError:
        return False
    return True


def prepare(
    op: Operator, precision: Precision, form: Int8Form, seed: int, runtime: Runtime, threads: int, realisation: str = ""
) -> Kernel:
    """The fastest realisation that answers correctly, the others beside it, or the one named.

    Raises `MeasurementError` without one.
    """
    rng = np.random.default_rng([seed, zlib.crc32(f"{key(op)}@{precision}".encode())])
    right = [one for one in candidates(op, precision, form, rng) if _right(one, runtime, threads)]
    kernels = [executed_kernel(op, candidate, runtime, threads) for candidate in right]
    found = [kernel for kernel in kernels if realisation in ("", kernel.realisation)]
    if not found:
        raise MeasurementError(
            f"a measured operator answers correctly, got wrong results or another kernel for {key(op)} at {precision}: "
            "leave it out or measure from the start with another version of onnxruntime"
        )
    if len(found) > 1:
        found = [kernel for kernel in found if _runs(kernel, runtime, threads)] or found
    if len(found) == 1:
        return found[0]
    count = min(copies_for(kernel, 0.0, runtime, threads) for kernel in found)
    tried = [(run_time([kernel], count, runtime, threads, _CHOICE_S), kernel) for kernel in found]
    best_s, fastest = min(tried, key=lambda trial: trial[0])
    slower = {kernel.realisation: run_s / best_s for run_s, kernel in tried}
    slower.pop(fastest.realisation)
    return replace(fastest, others=slower)
