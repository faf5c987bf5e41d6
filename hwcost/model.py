"""Reading an ONNX model as the operators that the runtime really executes.

What costs time is not the graph in the file but the one the runtime makes of it, so the runtime optimises it first:
`executed` is the graph of this machine, blocked layouts and all; `portable` stops before layouts, for a device that is
not here. Every tensor's shape and type come from one run of the optimised graph, since its own dialects
(`com.microsoft`, `com.microsoft.nchwc`) carry none. Nodes then become operators, shapes in NCHW words whatever the
layout in memory. A node that is no known operator is named, never left out.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx

from hwcost.errors import ModelError
from hwcost.nodes import Graph, Tensor, map_node
from hwcost.onnxfile import Feeds, example_feeds, load_model
from hwcost.ops import Operator, Precision
from hwcost.runtime import RUNTIME_ERRORS, session

Layout = Literal["executed", "portable"]

_REFUSALS: Final[tuple[type[Exception], ...]] = (*RUNTIME_ERRORS, RuntimeError)


@dataclass(frozen=True)
class ModelLayers:
    """What a model executes: (node name, operator, precision) in order of execution.

    `uncovered` names the nodes that are no known operator. Their share is counted in the tensor elements that nodes
    read and write (`elements` of all nodes), the only measure of size that such nodes have.
    """

    layers: tuple[tuple[str, Operator, Precision], ...]
    uncovered: tuple[str, ...]
    uncovered_elements: int
    elements: int

    @property
    def uncovered_share(self) -> float:
        return self.uncovered_elements / max(self.elements, 1)


def _optimise(path: Path, model: onnx.ModelProto, layout: Layout) -> onnx.ModelProto:
    """The graph that the runtime makes of a model; raises `ModelError` where it refuses the model."""
    executed = layout == "executed"
    # Portable int8 activations stay as they are: rewriting them to uint8 is this CPU's preference.
    settings = {} if executed else {"session.qdqisint8allowed": "1"}
    with tempfile.TemporaryDirectory(prefix="hwcost-") as folder:
        target = Path(folder) / "optimised.onnx"
        try:
            session(
                model.SerializeToString(), optimise="all" if executed else "extended", save_as=target, settings=settings
            )
        except _REFUSALS as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"onnxruntime refuses {path}: {reason}: repair or export the model again") from None
        return onnx.load(target)


def _observe(path: Path, model: onnx.ModelProto, feeds: Feeds) -> dict[str, Tensor]:
    """Shape and type of every tensor of an optimised graph, from running it once as it stands."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    kept = {constant.name for constant in probe.graph.initializer} | feeds.keys()
    for value in [value for value in probe.graph.input if value.name not in kept]:
        probe.graph.input.remove(value)  # of a constant that the optimiser made needless
    present = {value.name for value in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        running = session(probe.SerializeToString(), optimise="none")
        outputs = [value.name for value in running.get_outputs()]
        values = dict(zip(outputs, running.run(outputs, feeds), strict=True))
    except _REFUSALS as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"onnxruntime cannot run {path} once to see its shapes: {reason}: repair the model") from None
    seen = {**feeds, **{name: value for name, value in values.items() if isinstance(value, np.ndarray)}}
    tensors = {name: Tensor(value.shape, value.dtype.name) for name, value in seen.items()}
    for constant in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).name
        tensors[constant.name] = Tensor(tuple(constant.dims), dtype)
    return tensors


def _name(node: onnx.NodeProto) -> str:
    return node.name or next((name for name in node.output if name), "unnamed")


def _elements(graph: Graph, node: onnx.NodeProto) -> int:
    names = [name for name in (*node.input, *node.output) if name in graph.tensors]
    return sum(graph.tensors[name].elements for name in names)


def _origins(path: Path, model: onnx.ModelProto, feeds: Feeds) -> dict[str, Operator]:
    """Output name -> first operator of every node that the portable graph makes."""
    portable = _optimise(path, model, "portable")
    graph = Graph(portable, _observe(path, portable, feeds), {}, portable=True)
    mapped = ((node, map_node(graph, node)) for node in portable.graph.node)
    return {node.output[0]: layers[0][0] for node, layers in mapped if layers}


def read_model(
    path: Path, *, shapes: Mapping[str, tuple[int, ...]] | None = None, layout: Layout = "executed"
) -> ModelLayers:
    """The operators that a model executes, in order; `layout` as this module's head says.

    `shapes` gives sizes for the inputs that the file leaves open. Raises `ModelError`.
    """
    model = load_model(path, shapes)
    feeds = example_feeds(model, seed=0)
    optimised = _optimise(path, model, layout)
    blocked = any(node.domain == "com.microsoft.nchwc" for node in optimised.graph.node)
    origins = _origins(path, model, feeds) if blocked else {}
    graph = Graph(optimised, _observe(path, optimised, feeds), origins, layout == "portable")
    layers: list[tuple[str, Operator, Precision]] = []
    uncovered: list[str] = []
    lost = total = 0
    for node in optimised.graph.node:
        mapped, elements = map_node(graph, node), _elements(graph, node)
        total += elements
        if mapped is None:
            uncovered.append(f"{node.op_type} {_name(node)}")
            lost += elements
        else:
            layers += [(_name(node), op, precision) for op, precision in mapped]
    return ModelLayers(tuple(layers), tuple(uncovered), lost, total)
