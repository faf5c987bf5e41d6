"""Claim: emulation ranks the blocks of a network as a Raspberry Pi 4 does, and knows which way int8 goes there, without
a Pi.

The runtime's own aarch64 kernels are executed by QEMU as a Cortex-A72, and every executed instruction is priced by
llvm-mca (`hwcost profile --emulate`). Four comparisons:

Operators: multiply-accumulates per cycle and int8 gains, beside those of the trial that the method comes from, which
let every call of a function take a hundred cycles, as llvm-mca does; and of the kernel alone with calls as jumps.
Repeats: the same runs in a second emulated machine take exactly as many instructions of each kind.
Blocks (--data FOLDER): Spearman's correlation of FBNet's blocks, each less the skip in its place, with a published
table of a Pi 4, beside multiply-accumulates, bytes moved, instruction counts, and this package's analytic estimate.
Networks: milliseconds and int8 gains of whole networks beside published ones of ncnn, one thread.

What it cannot show: the published tables are of other runtimes than onnxruntime, so agreement in absolute time is not
to be expected; nothing here was compared with onnxruntime on a Pi. The ceiling of a rank correlation is 1. The tables
are not part of this package; without them nothing is compared with published times. About 8 minutes.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from published import NETWORKS, fbnet_block, fbnet_skip
from record import Benchmark

from hwcost import FLOAT, INT8, Conv, Gemm, Operator, Precision, note, print_table, progress
from hwcost.devices import DeviceClass, load_device
from hwcost.emulation.cycles import Core, Trace
from hwcost.emulation.instructions import kernel_path
from hwcost.emulation.machine import Emulated, emulation_of
from hwcost.emulation.tools import Tools
from hwcost.estimate import estimate_latency
from hwcost.graph import candidates
from hwcost.kernels import copies, prepare
from hwcost.ops import bytes_moved
from hwcost.quantising import quantised
from hwcost.runtime import Given

BENCHMARK: Final = Benchmark("emulation", __doc__ or "")
DEVICE: Final = "rpi4"
BLOCKS_FILE: Final = "fbnet_blocks_raspi4_eyeriss_ms.csv"
NETWORKS_FILE: Final = "ncnn_rpi4_ms.csv"
TRIAL: Final[dict[str, tuple[Operator, float, float]]] = {
    "conv 1x1 64->64 @28": (Conv.square(64, 64, 28, 1), 3.56, 5.10),
    "conv 3x3 64->64 @14": (Conv.square(64, 64, 14, 3), 3.19, 6.80),
    "depthwise 3x3 64 @28": (Conv.square(64, 64, 28, 3, groups=64), 1.20, 1.88),
    "Gemm 64x512x512": (Gemm(64, 512, 512), 3.93, 7.31),
}
"""Operators with their multiply-accumulates per cycle in the trial, float and int8."""
Feeds = dict[str, Any]


class Prices:
    """The cycles of one device's core, as they are shipped, and as the trial took them."""

    def __init__(self, device: DeviceClass) -> None:
        emulation = emulation_of(device)
        self.core = Core(emulation.mca_cpu, emulation.dispatch)
        self.as_tried = Core(emulation.mca_cpu, emulation.dispatch, slow_calls=True)


def whole_run(runtime: Emulated, op: Operator, precision: Precision) -> Trace:
    candidate = candidates(op, precision, "s8s8", np.random.default_rng(0))[0]
    return runtime.trace(Given(candidate.model.SerializeToString()), candidate.feeds)


def kernel_runs(runtime: Emulated, op: Operator, precision: Precision) -> tuple[Trace, Trace]:
    """One copy of the kernel, and two."""
    kernel = prepare(op, precision, "s8s8", 0, runtime, 1)
    found = []
    for count in (1, 2):
        model, feeds, weights = copies([kernel], count)
        found.append(runtime.trace(Given(model, 1, "none", weights=weights), feeds))
    return found[0], found[1]


def operators(runtime: Emulated, prices: Prices) -> list[dict[str, Any]]:
    rows = []
    for name, (op, tried_float, tried_int8) in TRIAL.items():
        row: dict[str, Any] = {
            "operator": name,
            "trial": [tried_float, tried_int8],
            "trial_gain": tried_int8 / tried_float,
        }
        macs: dict[str, list[float]] = {"whole_run": [], "kernel": []}
        paths = []
        for precision in (FLOAT, INT8):
            macs["whole_run"].append(op.macs / prices.as_tried.cycles(whole_run(runtime, op, precision)))
            few, many = kernel_runs(runtime, op, precision)
            macs["kernel"].append(op.macs / prices.core.cycles_between(few, many))
            paths.append(kernel_path(prices.core.names_between(few, many)))
        gains = {f"{way}_gain": int8 / floating for way, (floating, int8) in macs.items()}
        rows.append(
            {**row, **macs, **gains, "gain_error": gains["whole_run_gain"] / row["trial_gain"] - 1, "paths": paths}
        )
    return rows


def repeats(first: Emulated, second: Emulated) -> list[dict[str, Any]]:
    found = []
    for name, (op, _, _) in TRIAL.items():
        for precision in (FLOAT, INT8):
            one, two = (whole_run(runtime, op, precision).words() for runtime in (first, second))
            all_one, all_two = sum(one.values()), sum(two.values())
            found.append(
                {
                    "operator": name,
                    "precision": str(precision),
                    "instructions": all_one,
                    "equal": one == two,
                    "difference": abs(all_two / all_one - 1),
                }
            )
    return found


def ranks(values: Sequence[float]) -> Any:
    """Ranks, equal values sharing theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def blocks(runtime: Emulated, prices: Prices, device: DeviceClass, path: Path, quick: bool) -> dict[str, Any]:
    table: dict[tuple[int, ...], list[float]] = {}
    columns = ("H_in", "W_in", "Cin", "Cout", "stride", "exp", "kernel", "group")
    with path.open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            table.setdefault(tuple(int(line[name]) for name in columns), []).append(float(line["raspi4_ms_minus_skip"]))
    shapes = list(table)[: 4 if quick else None]
    rng = np.random.default_rng(0)
    ways: dict[str, list[float]] = {"emulated": [], "instructions": [], "estimated": [], "macs": [], "bytes": []}
    costs: dict[str, Callable[[Conv], float]] = {
        "estimated": lambda op: estimate_latency(device, op, FLOAT),
        "macs": lambda op: op.macs,
        "bytes": lambda op: bytes_moved(op, FLOAT),
    }
    skips: dict[tuple[int, ...], tuple[float, int]] = {}
    with progress("emulating blocks") as report:
        for done, shape in enumerate(shapes):
            report(done, len(shapes), f"{shape[2]} to {shape[3]} at {shape[0]}x{shape[1]}")
            height, width, inside, out, stride, expand, kernel, groups = shape
            feeds = {"image": rng.normal(size=(1, inside, height, width)).astype(np.float32)}
            skip = shape[:5]
            if skip not in skips:
                trace = runtime.trace(Given(fbnet_skip(*skip).SerializeToString()), feeds)
                skips[skip] = (prices.core.cycles(trace), trace.instructions)
            trace = runtime.trace(Given(fbnet_block(*shape).SerializeToString()), feeds)
            cycles = prices.core.cycles(trace) - skips[skip][0]
            ways["emulated"].append(runtime.seconds(cycles))
            ways["instructions"].append(float(trace.instructions - skips[skip][1]))
            middle = inside * expand
            parts = [
                Conv.square(inside, middle, height, 1, groups=groups),
                Conv.square(middle, middle, height, kernel, stride=stride, groups=middle),
                Conv.square(middle, out, -(-height // stride), 1, groups=groups),
            ]
            less = [] if inside == out and stride == 1 else [Conv.square(inside, out, height, 1, stride=stride)]
            for way, cost in costs.items():
                ways[way].append(float(sum(map(cost, parts)) - sum(map(cost, less))))
    published = [1e-3 * float(np.mean(table[shape])) for shape in shapes]
    ratios = np.array(published) / np.array(ways["emulated"])
    scaled = np.abs(np.median(ratios) / ratios - 1)
    return {
        "blocks": len(shapes),
        "spearman": {way: spearman(values, published) for way, values in ways.items()},
        "published_over_emulated": {
            "median": float(np.median(ratios)),
            "p5": float(np.percentile(ratios, 5)),
            "p95": float(np.percentile(ratios, 95)),
        },
        "mean_error_after_one_scale": float(scaled.mean()),
    }


def networks(runtime: Emulated, prices: Prices, path: Path | None) -> list[dict[str, Any]]:
    published: dict[tuple[str, str], float] = {}
    if path is not None:
        with path.open(encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream):
                if line["num_threads"] == "1":
                    name = line["model"].removesuffix("_int8")
                    published[name, line["precision"]] = 1e-3 * float(line["min_ms"])
    clock = load_device(DEVICE).clock_hz / 1.8e9  # of the board that was timed
    rows = []
    with progress("emulating networks") as report:
        for done, (name, make) in enumerate(NETWORKS.items()):
            report(done, len(NETWORKS), name)
            feeds = {"image": np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)}
            narrow = quantised(make(), feeds, "s8s8")  # which changes the model that it is given
            times, as_tried = {}, []
            for kind, made in (("fp32", make()), ("int8", narrow)):
                trace = runtime.trace(Given(_bytes(made)), feeds)
                times[kind] = clock * runtime.seconds(prices.core.cycles(trace))
                as_tried.append(prices.as_tried.cycles(trace))
            row: dict[str, Any] = {
                "network": name,
                "emulated_s_at_1.8_GHz": times,
                "gain": times["fp32"] / times["int8"],
                "gain_as_in_the_trial": as_tried[0] / as_tried[1],
                "published_s": {kind: published.get((name, kind)) for kind in times},
            }
            float_s, int8_s = row["published_s"].values()
            row["published_gain"] = float_s / int8_s if float_s and int8_s else None
            rows.append(row)
    return rows


def _bytes(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument("--data", type=Path, help=f"folder of the published tables, {BLOCKS_FILE} and {NETWORKS_FILE}")
    arguments: argparse.Namespace = parser.parse_args()
    document = BENCHMARK.start(arguments)
    tools, device = Tools.here(), load_device(DEVICE)
    tools.check()
    prices = Prices(device)
    document["emulated"] = {
        "device": device.name,
        "calibration": emulation_of(device).calibration,
        "system": tools.name,
    }
    with Emulated(device, tools) as runtime:
        note("emulating operators")
        document["operators"] = operators(runtime, prices)
        with Emulated(device, tools) as second:
            document["repeats"] = repeats(runtime, second)
        data = arguments.data
        document["blocks"] = blocks(runtime, prices, device, data / BLOCKS_FILE, arguments.quick) if data else None
        table = data / NETWORKS_FILE if data else None
        document["networks"] = [] if arguments.quick else networks(runtime, prices, table)
    show(document)
    BENCHMARK.finish(arguments, document)


def show(document: dict[str, Any]) -> None:
    print_table(
        "Multiply-accumulates per cycle, float and int8, and the gain:",
        ("operator", "trial", "gain", "run, priced as in the trial", "gain", "kernel alone", "gain", "instructions"),
        [
            (
                row["operator"],
                *(
                    text
                    for way in ("trial", "whole_run", "kernel")
                    for text in ("{:.2f} {:.2f}".format(*row[way]), f"{row[f'{way}_gain']:.2f}")
                ),
                " / ".join(row["paths"]),
            )
            for row in document["operators"]
        ],
    )
    equal = sum(row["equal"] for row in document["repeats"])
    print(f"Equal instructions in a second machine: {equal} of {len(document['repeats'])} runs.")
    if document["blocks"]:
        found = document["blocks"]["spearman"]
        print(f"{document['blocks']['blocks']} blocks, Spearman with the Pi's (at best 1): " + ", ".join(f"{way} {value:.3f}" for way, value in found.items()))  # fmt: skip # noqa: E501
    for row in document["networks"]:
        published = "" if row["published_gain"] is None else f", published {row['published_gain']:.2f}"
        print(
            f"{row['network']}: int8 gain emulated {row['gain']:.2f} "
            f"(as in the trial {row['gain_as_in_the_trial']:.2f}){published}"
        )


if __name__ == "__main__":
    main()
