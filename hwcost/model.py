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

import onnx

from hwcost.limits import bounded_memory
from hwcost.nodes import Graph, Tensor, map_node
from hwcost.onnxfile import Feeds, ModelFile, example_feeds, load_model
from hwcost.ops import Operator, Precision
from hwcost.runtime import ANY_REFUSAL, run_once, session
from hwcost.space import Layer

Layout = Literal["executed", "portable"]

_REFUSALS: Final[tuple[type[Exception], ...]] = (*ANY_REFUSAL, OSError)
_LARGE_BYTES: Final = 4096
"""Weights above this stay out of the optimised model, which could hold 2 GB of them; shapes, axes, scales stay in."""
_MOST_S: Final = 300.0
"""Of optimising a model, and of running it once: a loop may never end."""


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


def _optimise(file: ModelFile, layout: Layout, folder: Path) -> ModelFile:
    """The model that the runtime makes of one, kept in `folder`; raises `ModelError` where it refuses."""
    executed = layout == "executed"
    target = folder / f"{layout}.onnx"
    settings = {
        "session.optimized_model_external_initializers_file_name": f"{layout}.weights",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_LARGE_BYTES),
        # Portable int8 activations stay as they are: rewriting them to uint8 is this CPU's preference.
        **({} if executed else {"session.qdqisint8allowed": "1"}),
    }
    try:
        session(
            file.data(),
            optimise="all" if executed else "extended",
            save_as=target,
            weights_in=file.folder,
            settings=settings,
            most_s=_MOST_S,
        )
        return ModelFile(target, onnx.load(target, load_external_data=False))
    except _REFUSALS as error:
        raise file.refused("reading", error) from None


def _observe(file: ModelFile, optimised: ModelFile, feeds: Feeds) -> dict[str, Tensor]:
    """Shape and type of every tensor of an optimised model, from running it once as it stands."""
    probe = onnx.ModelProto()
    probe.CopyFrom(optimised.proto)
    kept = {constant.name for constant in probe.graph.initializer} | feeds.keys()
    for value in [value for value in probe.graph.input if value.name not in kept]:
        probe.graph.input.remove(value)  # of a constant that the optimiser made needless
    present = {value.name for value in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        running = session(probe.SerializeToString(), optimise="none", weights_in=optimised.folder)
        values = run_once(running, feeds, _MOST_S)
    except _REFUSALS as error:
        raise file.refused("running once, to see its shapes,", error) from None
    tensors = {name: Tensor(value.shape, value.dtype.name) for name, value in feeds.items()}
    for name, value in values.items():
        if value.is_tensor():
            tensors[name] = Tensor(tuple(value.shape()), _type_name(value.element_type()))
    for constant in optimised.proto.graph.initializer:
        tensors[constant.name] = Tensor(tuple(constant.dims), _type_name(constant.data_type))
    return tensors


def _type_name(elem_type: int) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)


def _name(node: onnx.NodeProto) -> str:
    return node.name or next((name for name in node.output if name), "unnamed")


def _elements(graph: Graph, node: onnx.NodeProto) -> int:
    names = [name for name in (*node.input, *node.output) if name in graph.tensors]
    return sum(graph.tensors[name].elements for name in names)


def _origins(file: ModelFile, feeds: Feeds, folder: Path) -> dict[str, Operator]:
    """Output name -> first operator of every node that the portable graph makes."""
    portable = _optimise(file, "portable", folder)
    graph = Graph(portable.proto, _observe(file, portable, feeds), {}, portable=True)
    mapped = ((node, _operators(graph, node)) for node in portable.proto.graph.node)
    return {node.output[0]: layers[0][0] for node, layers in mapped if layers}


def _operators(graph: Graph, node: onnx.NodeProto) -> tuple[Layer, ...] | None:
    """`map_node`, where a node may lack what its operator has; the runtime lets some of those pass."""
    try:
        return map_node(graph, node)
    except (LookupError, ValueError, TypeError, ArithmeticError):
        return None


def read_model(
    path: Path, *, shapes: Mapping[str, tuple[int, ...]] | None = None, layout: Layout = "executed"
) -> ModelLayers:
    """The operators that a model executes, in order; `layout` as this module's head says.

    `shapes` gives sizes for the inputs that the file leaves open. Every tensor between the nodes is held at once; what
    does not fit into the memory that is free is a `ModelError`, as is all that is wrong with the model.
    """
    file = load_model(path, shapes)
    with tempfile.TemporaryDirectory(prefix="hwcost-") as name, bounded_memory():
        folder = Path(name)
        optimised = _optimise(file, layout, folder)
        feeds = example_feeds(file, seed=0)
        blocked = any(node.domain == "com.microsoft.nchwc" for node in optimised.proto.graph.node)
        origins = _origins(file, feeds, folder) if blocked else {}
        graph = Graph(optimised.proto, _observe(file, optimised, feeds), origins, layout == "portable")
    layers: list[tuple[str, Operator, Precision]] = []
    uncovered: list[str] = []
    lost = total = 0
    for node in optimised.proto.graph.node:
        mapped, elements = _operators(graph, node), _elements(graph, node)
        total += elements
        if mapped is None:
            uncovered.append(f"{node.op_type} {_name(node)}")
            lost += elements
        else:
            layers += [(_name(node), op, precision) for op, precision in mapped]
    return ModelLayers(tuple(layers), tuple(uncovered), lost, total)
