"""The networks that latency predictions are judged on: the onnx package's own, and random ones of known families.

    python benchmarks/networks.py FOLDER                  write what is not there yet, and list it
    python benchmarks/networks.py FOLDER --seed 1 --generated 18

Every network is there twice: fp32, and int8 as `quantize_static` (QDQ) makes it in one of four usual styles. About
three minutes and 2 GB for the default 57 networks.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import prod, sqrt
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that `python -m benchmarks.networks` works too

from families import FAMILIES, family, random_network

from hwcost import HwcostError, print_json, print_table, progress, write_atomically, writing
from hwcost.console import Report

VERSION: Final = 1  # of what the files hold; files of another one are left alone and not used
_CALIBRATION_SAMPLES: Final = 3
_QUANTISABLE_OPSET: Final = 13  # per-channel DequantizeLinear
_LIGHT: Final = Path(next(iter(onnx.backend.test.__path__))) / "data" / "light"
# Styles by name: the library's defaults first, then what its documentation advises for x86.
INT8_STYLES: Final[dict[str, dict[str, Any]]] = {
    "s8s8": {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8},
    "u8s8 per channel": {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    },
    "u8u8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
    "u8s8 reduced range": {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "reduce_range": True,
    },
}


@dataclass(frozen=True)
class HeldOut:
    """One file of a network; `int8_style` is a key of INT8_STYLES, or "" for fp32."""

    name: str
    family: str
    bits: int
    path: Path
    int8_style: str


@dataclass(frozen=True)
class _Source:
    """A network before it is written: how to make its fp32 model, and the style of its int8 one."""

    name: str
    family: str
    seed: tuple[int, int]
    make: Callable[[], onnx.ModelProto]
    style: str


def held_out_networks(
    folder: Path, *, seed: int = 0, generated: int = 48, light: bool = True, progress: Report | None = None
) -> list[HeldOut]:
    """Every network as fp32 and as int8 file in `folder`, written unless it is there.

    Network `index` of a seed is the same however many are asked for. Raises `OutputError` if a file cannot be written.
    """
    sources = (_light_sources(seed) if light else []) + [_generated_source(seed, index) for index in range(generated)]
    found = []
    for done, source in enumerate(sources):
        if progress is not None:
            progress(done, len(sources), source.name)
        pair = [
            HeldOut(source.name, source.family, bits, folder / f"v{VERSION}-s{seed}-{source.name}-{kind}.onnx", style)
            for bits, kind, style in ((32, "fp32", ""), (8, "int8", source.style))
        ]
        for one in pair:
            if not one.path.exists():
                with writing(one.path):
                    data = source.make().SerializeToString() if one.bits == 32 else _quantised(pair[0].path, source)
                    _try(data)
                    write_atomically(one.path, data)
        found += pair
    return found


def _generated_source(seed: int, index: int) -> _Source:
    """Families and styles are dealt in turn, the styles one further with every round of the families."""
    styles = list(INT8_STYLES)
    kind = family(index)
    style = styles[(index + index // len(FAMILIES)) % len(styles)]
    return _Source(f"{index:03d}_{kind}", kind, (seed, index), lambda: random_network(seed, index)[0], style)


def _light_sources(seed: int) -> list[_Source]:
    sources = []
    for number, path in enumerate(sorted(_LIGHT.glob("light_*.onnx"))):
        draws = (seed, crc32(path.stem.encode()))
        style = ("u8s8 per channel", "s8s8")[number % 2]
        make = partial(_light_model, path, draws)
        sources.append(_Source(path.stem, path.stem.removeprefix("light_"), draws, make, style))
    return sources


def _light_model(path: Path, draws: tuple[int, int]) -> onnx.ModelProto:
    return with_random_weights(onnx.load(path), np.random.default_rng(draws))


def with_random_weights(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """A copy whose placeholder weights are initializers of the scale that training would start from.

    Placeholders are the ConstantOfShape nodes and all float initializers; what reads a weight, if need be through
    Reshape or Unsqueeze, decides its scale. Initializers are no longer inputs, so that the runtime may fold them.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    known = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    shapes = {name: array.shape for name, array in known.items() if array.dtype == np.float32}
    placeholders = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    shapes |= {node.output[0]: tuple(known[node.input[0]].tolist()) for node in placeholders}
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    read = {name for node in nodes for name in node.input}
    kept = [one for one in graph.initializer if one.name in read - shapes.keys()]
    drawn = [numpy_helper.from_array(_draw(graph, name, shapes[name], rng), name) for name in shapes if name in read]
    inputs = [one for one in graph.input if one.name not in known]
    for field, values in ((graph.node, nodes), (graph.initializer, [*kept, *drawn]), (graph.input, inputs)):
        del field[:]
        field.extend(values)
    model.ir_version = max(model.ir_version, 8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _draw(graph: onnx.GraphProto, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    reader, position = next((node, list(node.input).index(name)) for node in graph.node if name in node.input)
    while reader.op_type in ("Reshape", "Unsqueeze"):
        name = reader.output[0]
        reader, position = next((node, list(node.input).index(name)) for node in graph.node if name in node.input)
    match reader.op_type, position:
        case ("Conv", 1):
            return rng.standard_normal(shape, np.float32) * np.float32(sqrt(2 / prod(shape[1:])))
        case ("Gemm", 1):  # written with transB, so what it reads comes last
            return rng.standard_normal(shape, np.float32) * np.float32(sqrt(1 / shape[-1]))
        case ("BatchNormalization", 1 | 4) | ("Mul", _):
            return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(0.1)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Normal noise for the model's one input."""

    def __init__(self, model: onnx.ModelProto, rng: np.random.Generator) -> None:
        (given,) = model.graph.input
        shape = [axis.dim_value for axis in given.type.tensor_type.shape.dim]
        drawn = (rng.standard_normal(shape, np.float32) for _ in range(_CALIBRATION_SAMPLES))
        self._feeds = ({given.name: images} for images in drawn)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def quantisable(model: onnx.ModelProto, folder: Path) -> Path:
    """A file in this folder, the model prepared as the quantiser asks for: of an operator set that has scales for each
    channel, shapes inferred, batch norms folded."""
    newer, prepared = folder / "newer.onnx", folder / "prepared.onnx"
    if {one.domain: one.version for one in model.opset_import}.get("", _QUANTISABLE_OPSET) < _QUANTISABLE_OPSET:
        model = version_converter.convert_version(model, _QUANTISABLE_OPSET)
    onnx.save(model, newer)
    with _without_warnings():
        quant_pre_process(newer, prepared, skip_symbolic_shape=True)
    return prepared


def _quantised(fp32: Path, source: _Source) -> bytes:
    """The int8 model."""
    model = onnx.load(fp32)
    images = _Images(model, np.random.default_rng([*source.seed, 8]))
    with tempfile.TemporaryDirectory(dir=fp32.parent) as temporary:
        prepared, int8 = quantisable(model, Path(temporary)), Path(temporary, "int8.onnx")
        with _without_warnings():
            quantize_static(prepared, int8, images, quant_format=QuantFormat.QDQ, **INT8_STYLES[source.style])
        return int8.read_bytes()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The quantiser logs one for every weight that it cannot quantise per channel."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _try(data: bytes) -> None:
    """Runs the model once in onnxruntime, which raises if it will not."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    session.run(None, {given.name: np.zeros(given.shape, np.float32)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the models are, or will be")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--generated", type=int, default=48, help="random networks (default: 48)")
    parser.add_argument("--no-light", action="store_true", help="leave out those of the onnx package")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    arguments = parser.parse_args()
    if min(arguments.seed, arguments.generated) < 0:
        parser.error(f"--seed and --generated are at least 0, got {arguments.seed} and {arguments.generated}")
    try:
        with progress("writing the networks") as report:
            found = held_out_networks(
                arguments.folder,
                seed=arguments.seed,
                generated=arguments.generated,
                light=not arguments.no_light,
                progress=report,
            )
    except HwcostError as error:
        raise SystemExit(f"networks.py: error: {error}") from None
    if arguments.json:
        print_json({"networks": [{**asdict(one), "path": str(one.path)} for one in found]})
        return
    sizes = (f"{one.path.stat().st_size / 1e6:.1f}" for one in found)
    rows = [
        (one.path.name, one.family, str(one.bits), one.int8_style, size) for one, size in zip(found, sizes, strict=True)
    ]
    print_table(f"{len(found)} files in {arguments.folder}:", ("file", "family", "bits", "int8 style", "MB"), rows)


if __name__ == "__main__":
    main()
