"""An ONNX file as the runtime can be given it: every input of a known shape; and inputs to run it with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from hwcost.errors import ModelError

Feeds = dict[str, NDArray[Any]]


def load_model(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """The model with every input's shape fixed by `shapes` (input name -> sizes) or by the file.

    Raises `ModelError` when it is missing, unreadable, without outputs, or when a shape stays unknown.
    """
    try:
        model = onnx.load(path, format="protobuf")  # whatever the file is called
    except FileNotFoundError as error:
        raise ModelError(f"no model at {error.filename or path}: give the path of an ONNX file") from None
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror}") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path} is not an ONNX model ({error}): export it again") from None
    if not model.graph.output:
        raise ModelError(f"a model has at least one output, got none in {path}: export it again")
    wanted = dict(shapes or {})
    inputs = _inputs(model)
    for name in wanted.keys() - {value.name for value in inputs}:
        raise ModelError(
            f"{path} has no input {name!r}: its inputs are {', '.join(value.name for value in inputs) or 'none'}"
        )
    for value in inputs:
        _fix_shape(path, value, wanted.get(value.name))
    return model


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _fix_shape(path: Path, value: onnx.ValueInfoProto, shape: tuple[int, ...] | None) -> None:
    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"the inputs of a model are tensors, input {value.name!r} of {path} is not: it cannot be run here"
        )
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    given = ",".join(dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim)
    if shape is None:
        if not tensor.HasField("shape") or any(size < 1 for size in dims):
            example = ",".join(str(size) for size in (d or 1 for d in dims)) or "1,3,224,224"
            raise ModelError(
                f"a cost needs fixed shapes, input {value.name!r} of {path} is [{given}]: "
                f"give it with --shape {value.name}={example}"
            )
        return
    fits = not dims or (len(dims) == len(shape) and all(a in (0, b) for a, b in zip(dims, shape, strict=True)))
    if not fits or min(shape, default=1) < 1:
        raise ModelError(
            f"input {value.name!r} of {path} is [{given}], got --shape {value.name}={','.join(map(str, shape))}"
        )
    tensor.shape.CopyFrom(
        onnx.TensorShapeProto(dim=[onnx.TensorShapeProto.Dimension(dim_value=size) for size in shape])
    )


def example_feeds(model: onnx.ModelProto, seed: int) -> Feeds:
    """An input for every fixed-shape input of `load_model`: normal numbers for floats, zeros for the rest."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in _inputs(model):
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = np.issubdtype(dtype, np.floating)
        feeds[value.name] = (rng.standard_normal(shape) if floating else np.zeros(shape)).astype(dtype)
    return feeds
