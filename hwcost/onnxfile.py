"""An ONNX file as the runtime can be given it: every input of a known shape; and inputs to run it with.

A file is somebody else's: what is wrong with it is said in one line. Weights in files of their own stay there, since a
protobuf holds 2 GB at most; the runtime maps them into memory itself.
"""

import errno
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from numpy.typing import NDArray

from hwcost.errors import ModelError
from hwcost.files import read_file
from hwcost.limits import available_bytes, bounded_memory
from hwcost.units import format_bytes

Feeds = dict[str, NDArray[Any]]

MOST_BYTES: Final = 2**31 - 1
"""What a protobuf can hold."""

_OLDEST_OPSET: Final = 7  # of the operators that onnxruntime has kernels for
_STANDARD_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
_MOST_SIZE: Final = 2**62
_MOST_DRAWN: Final = 2**22
_LONGEST_NAME: Final = 1000
_LONGEST_REASON: Final = 500
_LISTED: Final = 3
_SMALLER: Final = "give smaller sizes with --shape, or use a larger machine"
_SOURCE: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : |/\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z])"
)  # where, in the runtime


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A model with fixed shapes. Its large weights may lie in files in `folder`, and are then not in `proto`."""

    path: Path
    proto: onnx.ModelProto

    @property
    def folder(self) -> Path:
        return self.path.absolute().parent

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """What has to be fed: an initializer that is listed as an input has a value already."""
        constants = {tensor.name for tensor in self.proto.graph.initializer}
        return [value for value in self.proto.graph.input if value.name not in constants]

    def data(self) -> bytes:
        """The model as bytes, without the weights that lie in other files."""
        return bytes(self.proto.SerializeToString())

    def refused(self, doing: str, error: Exception) -> ModelError:
        """The error for what the runtime said when `doing` something with the model."""
        reason = _SOURCE.sub("", " ".join(str(error).split()))[:_LONGEST_REASON].rstrip(".:")
        if isinstance(error, MemoryError) or "allocate memory" in reason or "bad_alloc" in reason:
            return ModelError(
                f"{doing} {self.path} takes more memory than is free here, {_free()} ({reason or 'out of memory'}): "
                f"{_SMALLER}"
            )
        if "Failed to write" in reason:
            return ModelError(
                f"{self.path} is optimised into {tempfile.gettempdir()}, where there is no room for it: free some, or "
                "set TMPDIR to another folder"
            )
        if isinstance(error, TimeoutError):
            return ModelError(f"{doing} {self.path} took longer than a few minutes, and was stopped: {_SMALLER}")
        return ModelError(f"onnxruntime refuses {doing} {self.path}: {reason}: {_remedy(self.proto)}")


def load_model(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> ModelFile:
    """The model with every input's shape fixed by `shapes` (input name -> sizes) or by the file.

    Raises `ModelError` when it is missing, unreadable, without outputs, when a file of weights is missing or too short,
    or when a shape stays unknown.
    """
    try:
        with bounded_memory():
            model = onnx.ModelProto.FromString(read_file(path, MOST_BYTES))
    except FileNotFoundError:
        raise ModelError(f"no model at {path}: give the path of an ONNX file") from None
    except OSError as error:
        more = "; a larger model keeps its weights in a file beside it" if error.errno == errno.EFBIG else ""
        raise ModelError(f"cannot read model {path}: {error.strerror}{more}: give the path of an ONNX file") from error
    except MemoryError:
        raise ModelError(f"cannot read model {path}: it takes more memory than is free here, {_free()}") from None
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model ({error}): export it again") from None
    if not model.graph.output:
        raise ModelError(f"a model has at least one output, got none in {path}: export it again")
    if not all(map(_is_text, _messages(model))):
        raise ModelError(f"the names in a model are UTF-8 text, got others in {path}: export it again")
    file = ModelFile(path, model)
    _check_weights(file)
    _fix_shapes(file, dict(shapes or {}))
    return file


def _free() -> str:
    free = available_bytes()
    return "what is needed" if free is None else format_bytes(free)


def _remedy(model: onnx.ModelProto) -> str:
    """What may be done about a model that the runtime does not take."""
    newest = onnx.defs.onnx_opset_version()
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), newest)
    if opset < _OLDEST_OPSET:
        return f"its opset {opset} is older than {_OLDEST_OPSET}, the oldest there are kernels for: convert the model"
    if opset > newest or model.ir_version > onnx.IR_VERSION:
        return (
            f"it is of opset {opset} and IR version {model.ir_version}, known here are {newest} and {onnx.IR_VERSION}: "
            "export it for those, or use a newer onnxruntime"
        )
    own = {(function.domain, function.name) for function in model.functions}
    foreign = {
        f"{node.domain}:{node.op_type}"
        for node in model.graph.node
        if node.domain not in _STANDARD_DOMAINS and (node.domain, node.op_type) not in own
    }
    if foreign:
        listed = ", ".join(sorted(foreign)[:_LISTED]) + (
            " and others" if foreign - set(sorted(foreign)[:_LISTED]) else ""
        )
        return f"it needs operators of another package, {listed}: export it without them"
    return "repair or export the model again"


def _messages(message: Message) -> Iterator[Message]:
    """A protobuf, and whatever lies within it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in (value,) if isinstance(value, Message) else value:
                yield from _messages(part)


def _is_text(message: Message) -> bool:
    """Whether all that should be text is: what is no UTF-8 arrives as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = (value,) if isinstance(value, str | bytes) else value
            if any(isinstance(text, bytes) for text in texts):
                return False
    return True


def weight_files(model: bytes) -> set[str]:
    """The files beside a serialised model in which it has weights."""
    tensors = (one for one in _messages(onnx.ModelProto.FromString(model)) if isinstance(one, onnx.TensorProto))
    outside = (one for one in tensors if one.data_location == onnx.TensorProto.EXTERNAL)
    return {entry.value for one in outside for entry in one.external_data if entry.key == "location"}


def _check_weights(file: ModelFile) -> None:
    """Weights in other files are there, whole, and in the model's own folder; raises `ModelError`."""
    for tensor in _messages(file.proto):
        if not isinstance(tensor, onnx.TensorProto) or tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {entry.key: entry.value for entry in tensor.external_data}
        place = told.get("location", "")[:_LONGEST_NAME]
        what = f"the weights {tensor.name!r} of {file.path} are in the file {place!r}"
        inside = PurePosixPath(place).parts
        if not inside or ".." in inside or PurePosixPath(place).is_absolute() or PureWindowsPath(place).drive:
            raise ModelError(f"{what}, which is not one in the model's folder: export the model again")
        try:
            offset, length = int(told.get("offset") or 0), int(told.get("length") or _size(tensor))
        except ValueError:
            offset = length = -1
        if min(offset, length) < 0:
            raise ModelError(f"{what}, at no legal place in it: export the model again")
        try:
            size = (file.folder / place).stat().st_size if (file.folder / place).is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            size = None
        if size is None:
            raise ModelError(f"{what}, which is missing: put it into {file.folder}")
        if offset + length > size:
            raise ModelError(
                f"{what}, which is cut off: they end at byte {offset + length}, it has {size}: copy it again"
            )


def _size(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor as its type and sizes say; 0 where numpy has no such type, whose elements may share bytes."""
    dtype = _dtype(tensor.data_type)
    return math.prod(tensor.dims) * dtype.itemsize if dtype is not None and dtype.isbuiltin == 1 else 0


def _dtype(elem_type: int) -> np.dtype[Any] | None:
    """numpy's type of an ONNX element type; None for one that this onnx does not know."""
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    except KeyError:
        return None


def _fix_shapes(file: ModelFile, wanted: dict[str, tuple[int, ...]]) -> None:
    """Write the wanted sizes into the inputs; raises `ModelError` naming every input that still lacks some."""
    names = [value.name for value in file.inputs]
    for name in wanted.keys() - set(names):
        raise ModelError(f"{file.path} has no input {name!r}: its inputs are {', '.join(names) or 'none'}")
    open_inputs = []
    for value in file.inputs:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise ModelError(
                f"the inputs of a model are tensors, input {value.name!r} of {file.path} is a "
                f"{(kind or 'value of no type').removesuffix('_type')}: it cannot be run here"
            )
        tensor = value.type.tensor_type
        if value.name in wanted:
            _fix_shape(file, value, wanted[value.name])
        elif not tensor.HasField("shape") or any(dim.dim_value < 1 for dim in tensor.shape.dim):
            open_inputs.append(value)
    if open_inputs:
        listed = " and ".join(f"input {value.name!r} {_written(value)}" for value in open_inputs)
        given = " ".join(f"--shape {value.name}={_example(value)}" for value in open_inputs)
        raise ModelError(
            f"a cost needs fixed shapes, {file.path} leaves open {listed}: give {'them' if open_inputs[1:] else 'it'} "
            f"with {given}"
        )


def _written(value: onnx.ValueInfoProto) -> str:
    """`[N,3,?,?]`, or that not even the rank is known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return "of any rank"
    return f"[{','.join(dim.dim_param or str(max(dim.dim_value, 0) or '?') for dim in tensor.shape.dim)}]"


def _example(value: onnx.ValueInfoProto) -> str:
    """Sizes that may do: one image of 224 x 224 where the plane is open, else 1."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return "1,3,224,224"
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    usual = (1, 1, 224, 224) if len(sizes) == 4 else (1,) * len(sizes)
    return ",".join(str(size if size > 0 else instead) for size, instead in zip(sizes, usual, strict=True))


def _fix_shape(file: ModelFile, value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    tensor = value.type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    fits = not tensor.HasField("shape") or (
        len(sizes) == len(shape) and all(size < 1 or size == given for size, given in zip(sizes, shape, strict=True))
    )
    if not fits or not all(0 < size < _MOST_SIZE for size in shape):
        raise ModelError(
            f"input {value.name!r} of {file.path} is {_written(value)}, "
            f"got --shape {value.name}={','.join(map(str, shape))}: give sizes that fit it"
        )
    dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in shape]
    tensor.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))


def example_feeds(file: ModelFile, seed: int) -> Feeds:
    """A value for every input: normal numbers for floats (repeated in a large input), zeros for the rest.

    Raises `ModelError` for a type of number that cannot be fed, and for sizes that the machine's memory cannot hold.
    """
    rng = np.random.default_rng(seed)
    free = available_bytes()
    feeds: Feeds = {}
    for value in file.inputs:
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        dtype = _dtype(tensor.elem_type)
        # bfloat16, 8-bit floats and 4-bit integers are types of another package; texts are objects
        if dtype is None or dtype.isbuiltin != 1 or dtype.hasobject:
            kind = "of no known type" if dtype is None else "texts" if dtype.hasobject else dtype.name
            raise ModelError(
                f"an input holds numbers that numpy has, input {value.name!r} of {file.path} is {kind}: "
                "cast inside the model from a float32 input"
            )
        count = math.prod(shape)
        size = count * dtype.itemsize
        free = None if free is None else free - size
        if size > _MOST_SIZE or (free is not None and free < 0):
            raise ModelError(
                f"input {value.name!r} of {file.path} at {_written(value)} takes {format_bytes(size)} of memory, "
                f"of which {_free()} are free: give smaller sizes with --shape"
            )
        if dtype.kind in "fc":
            feeds[value.name] = np.resize(rng.standard_normal(min(count, _MOST_DRAWN)).astype(dtype), shape)
        else:
            feeds[value.name] = np.zeros(shape, dtype)
    return feeds
