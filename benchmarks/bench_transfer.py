"""Claim: from ten latencies of a new device all networks of NAS-Bench-201 are ranked on it nearly as well as features
fitted on all of its latencies could; better than by the published meta-learnt predictor HELP from ten, wherever that
ceiling lies above HELP's figure; and far better than by scaling a known device.

Takes --data, a folder of published latency tables. Each device of the table is new once, all others are known
(`hwcost.transfer`), and of the new one only the latencies of the 10 or 20 networks that the method asks for are looked
at. Errors and rank correlations are of the networks not asked for. Cells that compute the same are one network, the
first of the file; `all` counts every row. Which networks are asked for depends on the seed, over a random
pool of candidates: median of the seeds, and their ends.

The ceiling is the same features fitted on all of the device's own latencies; the noise is how far latencies of networks
that no feature tells apart lie from their median, on average. The baselines see the same samples: one factor times the
known device that fits them best, one factor times multiply-accumulates, least squares on the numbers of operations; and
the method itself sees networks drawn at random. HELP (arXiv 2106.08630, table 3) was trained on 900 networks of each of
nine devices, partly others. To try a device that is not in the table, add a column. About ten seconds.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from nasbench201 import Cell, Table, Values, distinct, read_table, ways_to_count
from numpy.typing import NDArray
from record import Benchmark

from hwcost import note, print_table, progress
from hwcost.fit import spearman
from hwcost.transfer import Transfer

BENCHMARK: Final = Benchmark("transfer", __doc__ or "")
HELP: Final = {
    "titan_rtx_256": 0.987,
    "gold_6226": 0.989,
    "pixel2": 0.802,
    "raspi4": 0.890,
    "eyeriss": 0.940,
    "fpga": 0.985,
}
"""Spearman's correlation by HELP with 10 samples, as its repository's README gives it (table 3; mean 0.932)."""
SAMPLES: Final = (10, 20)
OURS, AT_RANDOM = "transfer", "transfer, random samples"

Indices = NDArray[np.int64]
Baseline = Callable[[Indices, Values], Values]
"""From sampled networks and their latencies to every network's."""


class NewDevice:
    """One device as if nobody had measured it: what is known of its networks, and its latencies to compare with."""

    def __init__(self, table: Table, ways: dict[str, Values], classes: Indices, device: str) -> None:
        place = table.devices.index(device)
        there = np.flatnonzero(np.isfinite(table.latency_s[:, place]))
        self.name = device
        self.latency_s = table.latency_s[there, place]
        self.known_s = np.delete(table.latency_s[there], place, axis=1)
        self.ways = {name: features[there] for name, features in ways.items()}
        self.macs = np.array([table.cells[index].macs for index in there], dtype=np.float64)
        self.first = np.unique(classes[there], return_index=True)[1]
        self.transfer = Transfer.learn(self.ways, self.known_s)
        self._like_it = np.unique(np.hstack(list(self.ways.values())), axis=0, return_inverse=True)[1].reshape(-1)

    def noise(self) -> float:
        """How far networks that no way of counting tells apart lie from their median, on average."""
        order = np.argsort(self._like_it, kind="stable")
        groups = np.split(self.latency_s[order], np.flatnonzero(np.diff(self._like_it[order])) + 1)
        apart = [np.abs(group / np.median(group) - 1) for group in groups if len(group) > 2]
        return float(np.concatenate(apart).mean())

    def ceilings(self) -> dict[str, float]:
        """The best of the ways to count, fitted on everything."""
        everything = np.arange(len(self.latency_s))
        said = [least_squares(features, everything, self.latency_s) for features in self.ways.values()]
        return {
            "spearman": max(rank(one[self.first], self.latency_s[self.first]) for one in said),
            "spearman_all": max(rank(one, self.latency_s) for one in said),
            "mape": min(float(np.abs(one / self.latency_s - 1)[self.first].mean()) for one in said),
        }

    def baselines(self) -> dict[str, Baseline]:
        return {
            "one factor": lambda items, sampled_s: scaled(self.known_s, items, sampled_s),
            "operations": lambda items, sampled_s: least_squares(self.ways["eager"], items, sampled_s),
            "FLOPs": lambda items, sampled_s: self.macs * np.median(sampled_s / self.macs[items]),
        }


def rank(first: Values, second: Values) -> float:
    return spearman(first, second) or 0.0


def scaled(known_s: Values, items: Indices, sampled_s: Values) -> Values:
    """The known device that fits best after one factor, times that; where it has no latency, its median."""
    found: list[tuple[float, Values]] = []
    for latency_s in known_s.T:
        filled = np.where(np.isfinite(latency_s), latency_s, np.nanmedian(latency_s))
        said = filled * np.median(sampled_s / filled[items])
        found.append((float(np.abs(np.log(said[items] / sampled_s)).mean()), said))
    return min(found, key=lambda one: one[0])[1]


def least_squares(features: Values, items: Indices, sampled_s: Values) -> Values:
    """Relative errors, no prior."""
    rows = features[items] / sampled_s[:, None]
    costs = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    said: Values = np.maximum(features @ costs, 0.02 * np.median(sampled_s))
    return said


def judged(device: NewDevice, items: Indices, said_s: Values) -> dict[str, float]:
    """Against the networks that were not sampled, distinct ones unless it says `all`."""
    held = np.setdiff1d(device.first, items)
    rest = np.setdiff1d(np.arange(len(device.latency_s)), items)
    error = np.abs(said_s[held] / device.latency_s[held] - 1)
    return {
        "spearman": rank(said_s[held], device.latency_s[held]),
        "spearman_all": rank(said_s[rest], device.latency_s[rest]),
        "mape": float(error.mean()),
        "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.10).mean()),
    }


def trial(device: NewDevice, count: int, seed: int) -> dict[str, dict[str, float]]:
    """One choice of samples, and what each method makes of it."""
    chosen = np.array(device.transfer.choose(count, seed))
    rng = np.random.default_rng([seed, count])
    drawn = rng.choice(len(device.latency_s), count, replace=False)
    found = {}
    for name, items in ((OURS, chosen), (AT_RANDOM, drawn)):
        said = device.transfer.predict(items.tolist(), device.latency_s[items].tolist())
        held = np.setdiff1d(device.first, items)
        inside = (said.low_s <= device.latency_s) & (device.latency_s <= said.high_s)
        found[name] = judged(device, items, said.latency_s) | {
            "inside": float(inside[held].mean()),
            "half_width": float(np.median(said.high_s[held] / said.latency_s[held]) - 1),
        }
    for name, baseline in device.baselines().items():
        found[name] = judged(device, chosen, baseline(chosen, device.latency_s[chosen]))
    return found


def spread(trials: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Median, least and most of each figure."""
    values = {name: [one[name] for one in trials] for name in trials[0]}
    return {name: [float(np.median(every)), min(every), max(every)] for name, every in values.items()}


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument("--data", type=Path, help="folder of the latency tables; without it nothing is run")
    parser.add_argument("--device", action="append", help="only this one is new; repeatable (default: each in turn)")
    parser.add_argument("--seeds", type=int, default=10, help="choices of samples (default: 10; 2 with --quick)")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    if arguments.data is None:  # published tables are not of this project
        note("bench_transfer needs a folder of latency tables: name it with --data")
        return
    document = BENCHMARK.start(arguments)
    table = read_table(arguments.data)
    if arguments.quick:
        few = np.random.default_rng(arguments.seed).permutation(len(table.cells))[:2000]
        cells: tuple[Cell, ...] = tuple(table.cells[index] for index in few)
        table = Table(cells, table.devices, table.latency_s[few])
    wanted = arguments.device or list(table.devices)
    unknown = sorted(set(wanted) - set(table.devices))
    if unknown:
        raise SystemExit(f"a device is a column of the table, {', '.join(table.devices)}, got {unknown[0]!r}")
    ways, classes = ways_to_count(table.cells), distinct(table.cells)
    seeds = [arguments.seed * 1000 + number for number in range(2 if arguments.quick else arguments.seeds)]
    devices = []
    with progress("each device new once") as report:
        for done, name in enumerate(wanted):
            report(done, len(wanted), name)
            device = NewDevice(table, ways, classes, name)
            trials = {count: [trial(device, count, seed) for seed in seeds] for count in SAMPLES}
            devices.append(
                {
                    "device": name,
                    "networks": len(device.latency_s),
                    "distinct": len(device.first),
                    "noise": device.noise(),
                    "help": HELP.get(name),
                    "ceiling": device.ceilings(),
                    "methods": {
                        str(count): {method: spread([one[method] for one in found]) for method in found[0]}
                        for count, found in trials.items()
                    },
                }
            )
    document |= {"seeds": seeds, "known": len(table.devices) - 1, "devices": devices}
    show(devices)
    BENCHMARK.finish(arguments, document)


def show(devices: Sequence[dict[str, Any]]) -> None:
    note("spearman: median of the seeds (least to most); `ceiling`: the same features, fitted on all of the device")
    others = (AT_RANDOM, "one factor", "operations", "FLOPs")
    columns: tuple[str, ...] = ("device", "samples", "ceiling", "HELP", OURS, "all", *others)
    rows: list[Sequence[str]] = []
    errors: list[Sequence[str]] = []
    for one in devices:
        for count, methods in one["methods"].items():
            median, least, most = methods[OURS]["spearman"]
            rows.append(
                (
                    one["device"],
                    count,
                    f"{one['ceiling']['spearman']:.4f}",
                    "-" if one["help"] is None or count != "10" else f"{one['help']:.3f}",
                    f"{median:.4f} ({least:.4f} to {most:.4f})",
                    f"{methods[OURS]['spearman_all'][0]:.4f}",
                    *(f"{methods[name]['spearman'][0]:.4f}" for name in others),
                )
            )
            ours = methods[OURS]
            figures = [one["noise"], one["ceiling"]["mape"], *(ours[name][0] for name in _SHARES)]
            figures += [methods[name]["mape"][0] for name in others]
            errors.append((one["device"], count, *(f"{figure:.1%}" for figure in figures)))
    print_table("Rank correlation on networks that were not sampled:", columns, rows)
    columns = (
        "device",
        "samples",
        "noise",
        "ceiling",
        "error",
        "within 5 %",
        "within 10 %",
        "in interval",
        "half-width",
    )
    print_table(
        "Errors, and those of the baselines:", (*columns, AT_RANDOM, "one factor", "operations", "FLOPs"), errors
    )


_SHARES: Final = ("mape", "within_5", "within_10", "inside", "half_width")


if __name__ == "__main__":
    main()
