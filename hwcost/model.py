"""Reading an ONNX model as the operators that the runtime really executes.

What costs time is not the graph in the file but the one the runtime makes of it, so the runtime optimises it first:
`executed` is the graph of the machine that runs it, blocked layouts and all; `portable` stops before layouts, for a
device that is not at hand. Every tensor's shape and type come from one run of the optimised graph, since its own
dialects (`com.microsoft`, `com.microsoft.nchwc`) carry none. Nodes then become operators, shapes in NCHW words whatever
the layout in memory. A node that is no known operator is named, never left out.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import onnx
from onnx import TensorProto, numpy_helper

from hwcost.limits import bounded_memory
from hwcost.nodes import Graph, Tensor, map_node
from hwcost.onnxfile import Feeds, ModelFile, example_feeds, load_model
from hwcost.ops import Operator, Precision
from hwcost.runtime import Given, Here, Runtime, UnusableError
from hwcost.space import Layer
from hwcost.subnormal import subnormal_vectors

Layout = Literal["executed", "portable"]

_REFUSALS: Final[tuple[type[Exception], ...]] = (RuntimeError, MemoryError, OSError)
_LARGE_BYTES: Final = 4096
"""Weights above this stay out of the optimised model, which could hold 2 GB of them; shapes, axes, scales stay in."""
_PLACE: Final = "node "
_LEAST_S: Final = 1e-7
"""What a node takes at least."""
_MOST_TIMES: Final = 50_000
"""Of nodes in a profile by the runtime, which takes 650 bytes for each."""
_MOST_S: Final = 300.0
"""Of optimising a model, and of running it once: a loop may never end."""


class Subnormal(NamedTuple):
    """A node of the executed graph, by its name and place, how many of its weights are subnormal numbers, and how many
    vectors of its weights have one."""

    name: str
    place: int
    weights: int
    vectors: int


@dataclass(frozen=True)
class ModelLayers:
    """What a model executes: (node name, operator, precision) in order of execution, and each one's place among the
    nodes of the executed graph.

    `uncovered` names the nodes that are no known operator. Their share is counted in the tensor elements that nodes
    read and write (`elements` of all nodes), the only measure of size that such nodes have. `subnormal`: which
    nodes have weights that some processors compute with a hundred times slower.
    """

    layers: tuple[tuple[str, Operator, Precision], ...]
    places: tuple[int, ...]
    uncovered: tuple[str, ...]
    uncovered_elements: int
    elements: int
    subnormal: tuple[Subnormal, ...] = ()

    @property
    def uncovered_share(self) -> float:
        return self.uncovered_elements / max(self.elements, 1)


def _file_name(layout: Layout) -> str:
    return f"{layout}.onnx"


def _optimise(file: ModelFile, layout: Layout, folder: Path, runtime: Runtime) -> ModelFile:
    """The model that the runtime makes of one, kept in `folder`; raises `ModelError` where it refuses."""
    executed = layout == "executed"
    target = folder / _file_name(layout)
    weights_file = f"{layout}.weights"
    settings = {
        "session.optimized_model_external_initializers_file_name": weights_file,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_LARGE_BYTES),
        # Portable int8 activations stay as they are: rewriting them to uint8 is this CPU's preference.
        **({} if executed else {"session.qdqisint8allowed": "1"}),
    }
    try:
        given = Given(
            file.data(), optimise="all" if executed else "extended", settings=settings, weights_in=file.folder
        )
        runtime.optimised(given, target, weights_file, _MOST_S)
        return ModelFile(target, onnx.load(target, load_external_data=False))
    except UnusableError:
        raise
    except _REFUSALS as error:
        raise file.refused("reading", error) from None


def _fit_to_run(optimised: ModelFile, feeds: Feeds) -> onnx.ModelProto:
    """A copy of an optimised model, with the inputs that it is fed and no others."""
    copy = onnx.ModelProto()
    copy.CopyFrom(optimised.proto)
    kept = {constant.name for constant in copy.graph.initializer} | feeds.keys()
    for value in [value for value in copy.graph.input if value.name not in kept]:
        copy.graph.input.remove(value)  # of a constant that the optimiser made needless
    return copy


def _observe(file: ModelFile, optimised: ModelFile, feeds: Feeds, runtime: Runtime) -> dict[str, Tensor]:
    """Shape and type of every tensor of an optimised model, from running it once as it stands."""
    probe = _fit_to_run(optimised, feeds)
    present = {value.name for value in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        given = Given(probe.SerializeToString(), optimise="none", weights_in=optimised.folder)
        found = runtime.shapes(given, feeds, _MOST_S)
    except UnusableError:
        raise
    except _REFUSALS as error:
        raise file.refused("running once, to see its shapes,", error) from None
    tensors = {name: Tensor(value.shape, value.dtype.name) for name, value in feeds.items()}
    tensors.update((name, Tensor(shape, _type_name(kind))) for name, (kind, shape) in found.items())
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


def _origins(file: ModelFile, feeds: Feeds, folder: Path, runtime: Runtime) -> dict[str, Operator]:
    """Output name -> first operator of every node that the portable graph makes."""
    portable = _optimise(file, "portable", folder, runtime)
    graph = Graph(portable.proto, _observe(file, portable, feeds, runtime), {}, portable=True)
    mapped = ((node, _operators(graph, node)) for node in portable.proto.graph.node)
    return {node.output[0]: layers[0][0] for node, layers in mapped if layers}


def _operators(graph: Graph, node: onnx.NodeProto) -> tuple[Layer, ...] | None:
    """`map_node`, where a node may lack what its operator has; the runtime lets some of those pass."""
    try:
        return map_node(graph, node)
    except (LookupError, ValueError, TypeError, ArithmeticError):
        return None


def _subnormal(optimised: ModelFile, lanes: int) -> Iterator[Subnormal]:
    """Those nodes of an optimised model that have float constants with subnormal numbers."""
    counts = {}
    for constant in optimised.proto.graph.initializer:
        if constant.data_type == TensorProto.FLOAT:
            counts[constant.name] = subnormal_vectors(
                numpy_helper.to_array(constant, base_dir=str(optimised.folder)), lanes
            )
    for place, node in enumerate(optimised.proto.graph.node):
        weights, vectors = map(sum, zip((0, 0), *(counts.get(name, (0, 0)) for name in node.input), strict=True))
        if weights:
            yield Subnormal(_name(node), place, weights, vectors)


def read_model(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    layout: Layout = "executed",
    runtime: Runtime | None = None,
    lanes: int = 16,
    keep: Path | None = None,
) -> ModelLayers:
    """The operators that a model executes, in order; `layout` as this module's head says, `lanes` floats make a vector.

    `shapes` gives sizes for the inputs that the file leaves open; `runtime` executes it, by default this process. The
    graph that it executes is left in the folder `keep`, if there is one: it may be another at every reading. Every
    tensor between the nodes is held at once; what does not fit into the memory that is free here is a `ModelError`, as
    is all that is wrong with the model.
    """
    file, runtime = load_model(path, shapes), runtime or Here()
    with tempfile.TemporaryDirectory(prefix="hwcost-") as name, bounded_memory():
        folder = Path(name)
        optimised = _optimise(file, layout, keep or folder, runtime)
        subnormal = tuple(_subnormal(optimised, lanes))
        feeds = example_feeds(file, seed=0)
        blocked = any(node.domain == "com.microsoft.nchwc" for node in optimised.proto.graph.node)
        origins = _origins(file, feeds, folder, runtime) if blocked else {}
        graph = Graph(optimised.proto, _observe(file, optimised, feeds, runtime), origins, layout == "portable")
    layers: list[tuple[str, Operator, Precision]] = []
    places: list[int] = []
    uncovered: list[str] = []
    lost = total = 0
    for place, node in enumerate(optimised.proto.graph.node):
        mapped, elements = _operators(graph, node), _elements(graph, node)
        total += elements
        if mapped is None:
            uncovered.append(f"{node.op_type} {_name(node)}")
            lost += elements
        else:
            layers += [(_name(node), op, precision) for op, precision in mapped]
            places += [place] * len(mapped)
    return ModelLayers(tuple(layers), tuple(places), tuple(uncovered), lost, total, subnormal)


def time_nodes(
    file: ModelFile,
    kept: Path,
    feeds: Feeds,
    *,
    threads: int = 1,
    seconds: float = 1.0,
    overhead_s: float = 0.0,
    runtime: Runtime | None = None,
) -> dict[int, float]:
    """Seconds that each node of the executed graph, which `read_model` left in the folder `kept`, takes inside the
    model, by its place there, from about `seconds` of runs: what onnxruntime's own profile says, to about a
    microsecond. Nodes that it does not tell of are left out.

    Keeping that profile makes every node longer, by what it writes of it and of each of its tensors: so much is taken
    off each that all of them make a run without a profile, less its `overhead_s`. Raises `ModelError` where the runtime
    refuses the model.
    """
    runtime = runtime or Here()
    path = kept / _file_name("executed")
    named = _fit_to_run(ModelFile(path, onnx.load(path, load_external_data=False)), feeds)
    nodes = {f"{_PLACE}{place}": node for place, node in enumerate(named.graph.node)}
    for own, node in nodes.items():
        node.name = own  # names may be missing, or be another's
    given = Given(named.SerializeToString(), threads, "none", weights_in=kept)
    most_runs = max(_MOST_TIMES // max(len(nodes), 1), 1)
    try:
        run_s, told = runtime.node_times(given, feeds, seconds, most_runs)
    except UnusableError:
        raise
    except _REFUSALS as error:
        raise file.refused("timing its nodes", error) from None
    written = {own: 1 + sum(map(bool, (*nodes[own].input, *nodes[own].output))) for own in nodes.keys() & told.keys()}
    more_s = max(sum(told[own] for own in written) - (run_s - overhead_s), 0.0)
    each_s = more_s / max(sum(written.values()), 1)
    return {int(own.removeprefix(_PLACE)): max(told[own] - each_s * written[own], _LEAST_S) for own in written}
