"""Whatever is given as a model is read, or refused in one line that says what to do; nothing hangs."""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import CHANNELS, Builder, float_model, quantised_model

import hwcost.model
from hwcost.errors import ModelError
from hwcost.model import ModelLayers, read_model
from hwcost.onnxfile import example_feeds, load_model
from hwcost.ops import Conv
from hwcost.runtime import Here

Make = Callable[[onnx.ModelProto], None]


def unnamed(path: Path) -> ModelLayers:
    """What a model executes, without the names of its nodes: those of added reorders differ from session to session."""
    found = read_model(path)
    return replace(found, layers=tuple(("", op, precision) for _, op, precision in found.layers))


def changed(path: Path, change: Make) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def graph_of(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[str],
    constants: list[onnx.TensorProto] | None = None,
    **fields: object,
) -> Path:
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs], constants
    )
    opsets = fields.pop("opset_imports", [helper.make_opsetid("", 21)])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10, **fields), path)
    return path


def floats(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def refusal(path: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(path, shapes=shapes)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1500
    return text


# Shapes


def test_every_open_input_is_asked_for_at_once_by_its_dimensions(tmp_path: Path) -> None:
    inputs = [floats("a", "N", 3, "H", None), floats("b", 2, 3), floats("c", "N", 7), floats("d", 0, 4)]
    sums = [helper.make_node("Relu", [value.name], [f"{value.name}_y"]) for value in inputs]
    path = graph_of(tmp_path / "m.onnx", sums, inputs, ["a_y", "b_y", "c_y", "d_y"])
    text = refusal(path, {"c": (2, 7)})
    assert "leaves open input 'a' [N,3,H,?] and input 'd' [?,4]" in text
    assert text.endswith("give them with --shape a=1,3,224,224 --shape d=1,4")
    found = read_model(path, shapes={"a": (1, 3, 5, 6), "c": (2, 7), "d": (1, 4)})
    assert len(found.layers) == 4


def test_an_input_of_unknown_rank_takes_any_shape_and_a_scalar_only_its_own(tmp_path: Path) -> None:
    unknown = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    path = graph_of(tmp_path / "m.onnx", relu, [unknown], ["y"])
    assert "input 'x' of any rank: give it with --shape x=1,3,224,224" in refusal(path)
    for shape in ((2, 3, 4), ()):
        (feeds,) = example_feeds(load_model(path, {"x": shape}), seed=0).values()
        assert feeds.shape == shape and len(read_model(path, shapes={"x": shape}).layers) == 1
    scalar = graph_of(tmp_path / "s.onnx", relu, [floats("x")], ["y"])
    assert len(read_model(scalar).layers) == 1
    assert "input 'x' of" in refusal(scalar, {"x": (1,)}) and "is [], got --shape x=1" in refusal(scalar, {"x": (1,)})


def test_sizes_that_no_memory_holds_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    path = float_model(tmp_path / "m.onnx", ["N", 3, "H", "W"])
    text = refusal(path, {"x": (1, 3, 1000000, 1000000)})
    assert "takes 1.2e+04 GB of memory" in text and "give smaller sizes with --shape" in text
    assert "give smaller sizes" in refusal(path, {"x": (2**60, 3, 2**60, 2**60)})
    assert "give sizes that fit it" in refusal(path, {"x": (2**63, 3, 8, 8)})


def test_what_a_small_input_grows_into_is_refused_where_memory_ends(tmp_path: Path) -> None:
    huge = numpy_helper.from_array(np.array([2**20, 2**20, 1], dtype=np.int64), "shape")
    grow = [helper.make_node("Expand", ["x", "shape"], ["y"])]
    path = graph_of(tmp_path / "m.onnx", grow, [floats("x", 1)], ["y"], [huge])
    assert "takes more memory than is free here" in refusal(path)


def test_a_loop_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hwcost.model, "_MOST_S", 0.3)
    inside = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            floats("v", 1),
        ],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), floats("w", 1)],
    )
    constants = [helper.make_tensor("n", TensorProto.INT64, [], [2**60]), helper.make_tensor("t", 9, [], [True])]
    loop = [helper.make_node("Loop", ["n", "t", "x"], ["y"], body=inside)]
    path = graph_of(tmp_path / "m.onnx", loop, [floats("x", 1)], ["y"], constants)
    assert "took longer than a few minutes, and was stopped" in refusal(path)


# Weights in other files


@pytest.fixture
def external(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    path = float_model(folder / "m.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=100)
    assert (folder / "m.data").stat().st_size > 500
    return path


def point(path: Path, **entries: str) -> Path:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = entries.get(entry.key, entry.value)

    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_another_file_are_found_from_any_folder(
    tmp_path: Path, external: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = unnamed(float_model(tmp_path / "inside.onnx"))
    assert unnamed(external) == wanted
    monkeypatch.chdir(external.parent)
    assert unnamed(Path("m.onnx")) == wanted


def test_weights_that_are_missing_or_cut_off_are_named(external: Path) -> None:
    weights = external.parent / "m.data"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    text = refusal(external)
    assert "are in the file 'm.data', which is cut off" in text and f"it has {len(whole) - 10}: copy it again" in text
    weights.unlink()
    assert f"are in the file 'm.data', which is missing: put it into {external.parent}" in refusal(external)
    weights.mkdir()
    assert "which is missing" in refusal(external)


@pytest.mark.parametrize(
    "place", ["../m.data", "/etc/passwd", "a/../../m.data", "C:\\m.data", "", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_lie_in_the_models_own_folder_and_nowhere_else(external: Path, place: str) -> None:
    (external.parent.parent / "m.data").write_bytes((external.parent / "m.data").read_bytes())
    assert "export the model again" in refusal(point(external, location=place)) or "*" in place
    assert "are in the file" in refusal(external)


@pytest.mark.parametrize("entries", [{"offset": "-1"}, {"offset": "x"}, {"length": "-5"}, {"offset": str(2**70)}])
def test_weights_at_no_legal_place_are_refused(external: Path, entries: dict[str, str]) -> None:
    assert "are in the file 'm.data', " in refusal(point(external, **entries))


def test_an_optimised_model_keeps_its_weights_out_of_the_protobuf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = float_model(tmp_path / "m.onnx")
    optimised = hwcost.model._optimise(load_model(path), "executed", tmp_path, Here())
    assert sum(len(tensor.raw_data) for tensor in optimised.proto.graph.initializer) > 1000
    wanted = unnamed(path)
    monkeypatch.setattr(hwcost.model, "_LARGE_BYTES", 1)
    optimised = hwcost.model._optimise(load_model(path), "executed", tmp_path, Here())
    assert sum(len(tensor.raw_data) for tensor in optimised.proto.graph.initializer) < 100
    assert sum(weights.stat().st_size for weights in tmp_path.glob("*.weights")) > 1000
    assert unnamed(path) == wanted


# Files that are no models

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(17) + zlib.compress(bytes(1000))


@pytest.mark.parametrize(
    "content",
    [b"", b"just some text, no model at all\n", PNG, gzip.compress(bytes(500)), b"{}", bytes(1000), b"\xff" * 300],
    ids=["empty", "text", "png", "gzip", "json", "zeros", "ones"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert refusal(tmp_path / "m.onnx").endswith("export it again")


def test_what_is_no_file_or_too_large_for_a_protobuf_is_not_even_read(tmp_path: Path) -> None:
    assert "cannot read model" in refusal(tmp_path) and "Is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "Not a regular file" in refusal(tmp_path / "pipe")
    with (tmp_path / "huge.onnx").open("wb") as stream:
        stream.truncate(2**31)
    assert "a larger model keeps its weights in a file beside it" in refusal(tmp_path / "huge.onnx")
    assert "give the path of an ONNX file" in refusal(tmp_path / "m" / "none.onnx")


@pytest.mark.parametrize(
    "name", ["model", "m.ort", "m.json", "ünï 模型.onnx", "-m.onnx", "m\n.onnx", "[red].onnx", "m.pb"]
)
def test_a_model_is_called_anything(tmp_path: Path, name: str) -> None:
    assert len(read_model(float_model(tmp_path / "m0.onnx").rename(tmp_path / name)).layers) >= 8


# Versions and operators


def test_a_version_that_is_not_known_yet_says_which_are(tmp_path: Path) -> None:
    newest = (
        f"known here are {onnx.defs.onnx_opset_version()} and {onnx.IR_VERSION}: export it for those, or use a newer"
    )

    def opset(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 999

    def ir(model: onnx.ModelProto) -> None:
        model.ir_version = 999

    for change in (opset, ir):
        assert newest in refusal(changed(float_model(tmp_path / "m.onnx"), change))


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 21, onnx.defs.onnx_opset_version()])
def test_old_and_new_opsets_are_read(tmp_path: Path, opset: int) -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), dtype=np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[1, 1]), helper.make_node("Relu", ["c"], ["y"])]
    path = graph_of(
        tmp_path / "m.onnx", nodes, [floats("x", 1, 3, 8, 8)], ["y"], [weight],
        opset_imports=[helper.make_opsetid("", opset)],
    )  # fmt: skip
    assert read_model(path, layout="portable").layers[0][1] == Conv(3, 4, 8, 8, (1, 1), activation="relu")


def test_an_opset_older_than_any_kernel_says_so(tmp_path: Path) -> None:
    path = graph_of(
        tmp_path / "m.onnx", [helper.make_node("Add", ["x", "x"], ["y"])], [floats("x", 4)], ["y"],
        opset_imports=[helper.make_opsetid("", 6)],
    )  # fmt: skip
    assert refusal(path).endswith("its opset 6 is older than 7, the oldest there are kernels for: convert the model")


def test_operators_of_another_package_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node(name, ["x"], [name], domain="my.ops") for name in ("Fancy", "Plain")]
    path = graph_of(
        tmp_path / "m.onnx", nodes, [floats("x", 4)], ["Fancy", "Plain"],
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("my.ops", 1)],
    )  # fmt: skip
    assert "operators of another package, my.ops:Fancy, my.ops:Plain: export it without them" in refusal(path)


# Kinds of values and graphs


def only(path: Path) -> ModelLayers:
    found = read_model(path)
    assert found.elements >= 0
    return found


def test_inputs_that_are_no_tensors_are_refused_by_their_kind(tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    kinds = {"sequence": helper.make_sequence_type_proto(tensor), "optional": helper.make_optional_type_proto(tensor)}
    kinds["map"] = helper.make_map_type_proto(TensorProto.INT64, tensor)
    kinds["value of no type"] = onnx.TypeProto()
    for kind, made in kinds.items():
        given = onnx.ValueInfoProto(name="x", type=made)
        path = graph_of(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], [given], ["y"])
        assert f"input 'x' of {path} is a {kind}: it cannot be run here" in refusal(path)


@pytest.mark.parametrize(
    ("elem_type", "kind"),
    [
        (TensorProto.STRING, "texts"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.INT4, "int4"),
        (99, "of no known type"),
    ],
)
def test_inputs_of_what_numpy_has_no_numbers_for_are_refused(tmp_path: Path, elem_type: int, kind: str) -> None:
    given = helper.make_tensor_value_info("x", elem_type, [2, 3])
    path = graph_of(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], [given], ["y"])
    with pytest.raises(ModelError, match=f"input 'x' of .* is {kind}: cast inside the model"):
        example_feeds(load_model(path), seed=0)


@pytest.mark.parametrize("elem_type", [TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN])
def test_weights_of_narrow_types_are_read(tmp_path: Path, elem_type: int) -> None:
    codes = helper.make_tensor("w", elem_type, [4, 8], [1] * 32)
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
        helper.make_node("Transpose", ["f"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    assert only(graph_of(tmp_path / "m.onnx", nodes, [floats("x", 2, 8)], ["y"], [codes, scale])).layers


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT8E5M2])
def test_tensors_of_narrow_types_between_nodes_are_seen(tmp_path: Path, elem_type: int) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=elem_type),
        helper.make_node("Identity", ["h"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    assert only(graph_of(tmp_path / "m.onnx", nodes, [floats("x", 2, 8)], ["y"])).elements > 0


def test_nan_weights_cost_what_other_weights_cost(tmp_path: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.ndim == 4:
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))

    path = float_model(tmp_path / "m.onnx")
    wanted = unnamed(path)
    assert unnamed(changed(path, spoil)) == wanted


def test_a_model_without_nodes_executes_nothing(tmp_path: Path) -> None:
    found = only(graph_of(tmp_path / "m.onnx", [], [floats("x", 2)], ["x"]))
    assert found.layers == () and found.uncovered == () and found.uncovered_share == 0


def test_initializers_that_are_listed_as_inputs_need_no_shape(tmp_path: Path) -> None:
    def list_them(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    path = changed(float_model(tmp_path / "m.onnx"), list_them)
    assert list(example_feeds(load_model(path), seed=0)) == ["x"]
    assert any(isinstance(op, Conv) and op.out_channels == CHANNELS for _, op, _ in only(path).layers)


def test_functions_of_the_model_itself_are_read(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"],
        [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "r"], ["b"])], opsets,
    )  # fmt: skip
    path = graph_of(
        tmp_path / "m.onnx", [helper.make_node("Twice", ["x"], ["y"], domain="own")], [floats("x", 4)], ["y"],
        opset_imports=opsets, functions=[twice],
    )  # fmt: skip
    assert len(only(path).layers) == 2


def test_a_branch_is_named_as_not_covered(tmp_path: Path) -> None:
    branches = [
        helper.make_graph([helper.make_node(kind, ["x"], [kind])], kind, [], [floats(kind, 4)])
        for kind in ("Exp", "Neg")
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branches[0], else_branch=branches[1]),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    assert "If choice" in only(graph_of(tmp_path / "m.onnx", nodes, [floats("x", 4)], ["y"], [zero])).uncovered


def test_tensors_without_elements_are_no_obstacle(tmp_path: Path) -> None:
    none = numpy_helper.from_array(np.zeros((0, 4), dtype=np.float32), "none")
    nodes = [helper.make_node("Concat", ["x", "none"], ["y"], axis=0), helper.make_node("Relu", ["none"], ["z"])]
    only(graph_of(tmp_path / "m.onnx", nodes, [floats("x", 2, 4)], ["y", "z"], [none]))


def test_a_node_without_what_its_operator_needs_is_named_or_refused(tmp_path: Path) -> None:
    build = Builder()
    only(build.save(tmp_path / "m.onnx", [2, 4], build.node("Sum", "x")))
    path = quantised_model(tmp_path / "q.onnx")

    def strip(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            del node.attribute[:]

    try:
        only(changed(path, strip))
    except ModelError as error:
        assert "\n" not in str(error)
