"""Claim: from ten minutes of profiling, the latency of networks that no predictor has seen, fp32 and int8, is predicted
within 10 % for 99 % of them, and within 5 % for 90 %.

The networks are those of `networks.py`: the onnx package's own and random ones of eighteen families, float and
quantised. The profile and the fit are fresh, made by the two commands that a user gives. Then each network is run end
to end, in passes that lie apart. Among them kernels of the profile are timed again, as `hwcost check` does: what a
network takes is told at the speed that the machine had when it was profiled, and as it ran. In the strict reading every
row of an operator that occurs in any of these networks is taken out before fitting, so that every kernel of every
network is predicted; what the profile's own whole networks taught about composition stays. All predictors are judged on
the same rows, and so are smaller profiles, by the share of operators. A random sample of the networks' kernels is timed
too, after the networks and at the speed of the profile: of those over 20 us 90 % are predicted within 10 %. Every
kernel of a network that is predicted more than 10 % wrong is timed as well: so its error is told apart, into those of
its kernels by family, and what remains where every kernel is measured.

What takes long is kept in --work and taken up again by the next run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from networks import HeldOut, held_out_networks
from record import Benchmark

from hwcost import note, print_table, progress, read_profile, write_atomically
from hwcost.composition import Composition
from hwcost.features import family, feature_matrix, hardware_of
from hwcost.fit import Fit, fit_path, fit_profile, read_fit
from hwcost.measure import profile_machine
from hwcost.model import read_model
from hwcost.onnxfile import example_feeds, load_model
from hwcost.ops import Operator, Precision
from hwcost.pipe import Piped
from hwcost.predictors import load_predictor, predictor_names
from hwcost.pricing import CostModel
from hwcost.profiles import Profile, Row, write_profile
from hwcost.runtime import Here, time_model
from hwcost.speed import anchors, speed_between, time_anchors
from hwcost.timing import Timings

BENCHMARK: Final = Benchmark("predictors", __doc__ or "")
PASSES: Final = 6
ANCHORED: Final = 12
"""Networks between two timings of what tells the machine's speed."""
TIMED_KERNELS: Final = 2000
MISSED: Final = 0.1
PROFILED: Final = "as profiled"
STRICT: Final = "every kernel predicted"
AGAIN: Final = "measured again"
LARGE_S: Final = 20e-6
Layer = tuple[Operator, Precision]


@dataclass
class Judged:
    """A held-out network: its kernels, and of each pass its own seconds per call and how fast the machine was, over its
    speed when it was profiled."""

    network: HeldOut
    layers: list[Layer]
    uncovered_share: float
    samples_s: list[float]
    speeds: list[float]

    @property
    def at_speed_s(self) -> list[float]:
        """Seconds of each pass, had the machine been as fast as when it was profiled."""
        return [seconds * speed for seconds, speed in zip(self.samples_s, self.speeds, strict=True)]

    @property
    def measured_s(self) -> float:
        return statistics.median(self.at_speed_s)

    @property
    def ran_s(self) -> float:
        """The fastest pass, whatever the machine did."""
        return min(self.samples_s)

    @property
    def noise(self) -> float:
        """How far its passes lie from their middle, in the median."""
        return statistics.median(abs(seconds / self.measured_s - 1) for seconds in self.at_speed_s)


@dataclass(frozen=True)
class Predicted:
    """Seconds per call and the interval's ends; `covered` is false where a kernel had no price and was left out."""

    latency_s: float
    interval_s: tuple[float, float] | None
    covered: bool = True


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument(
        "--work", type=Path, help="folder of networks, timings, profile and fit (default: a temporary one)"
    )
    parser.add_argument("--budget", default="8m", help="of `hwcost profile` (default: 8m)")
    parser.add_argument("--networks", type=int, default=48, help="random ones, beside the onnx package's (default: 48)")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    quick, seed = arguments.quick, arguments.seed
    work = arguments.work or Path(tempfile.gettempdir()) / f"hwcost-predictors-{'quick' if quick else seed}"
    work.mkdir(parents=True, exist_ok=True)
    count, passes = (3, 2) if quick else (arguments.networks, PASSES)
    with progress("Writing networks") as report:
        held_out = held_out_networks(work / "networks", seed=seed, generated=count, light=not quick, progress=report)
    judged = read(held_out)
    profile, fit, took = profiled(work, "6s" if quick else arguments.budget, seed)
    time_all(judged, work / "timings.json", passes, profile)
    timed = timed_kernels(judged, work, 30 if quick else TIMED_KERNELS, seed, profile)

    seen = {op for one in judged for op, _ in one.layers}
    strict = without(profile, seen)
    began = time.perf_counter()
    with progress("Fitting without the networks' operators") as report:
        strict_fit = fit_profile(strict, names=["linear"] if quick else predictor_names(), seed=seed, progress=report)
        strict_fit = replace(strict_fit, composition=fit.composition)
    took["strict_fit_s"] = round(time.perf_counter() - began, 1)
    ways: dict[str, list[Predicted]] = {
        PROFILED: [predicted(CostModel(profile, fit), one) for one in judged],
        STRICT: [predicted(CostModel(strict, strict_fit), one) for one in judged],
    }
    names = ("flops", "linear") if quick else predictor_names()
    for name in names:
        ways[f"{name} alone"] = alone(name, strict, strict_fit, judged, seed)
    document |= {
        "profile": {**took, "rows": len(profile.rows), "operators": len({row.operator for row in profile.rows}),
                    "strict_rows": len(strict.rows), "noise_floor": profile.noise_floor, "notes": list(profile.notes),
                    "composition": None if fit.composition is None else fit.composition.model_dump()},
        "ways": {name: table(way, judged) for name, way in ways.items()} | {AGAIN: measured_again(judged)},
        "as_run": {name: table(ways[name], judged, as_run=True) for name in (PROFILED, STRICT)},
        "kernels": kernels(strict_fit),
        "kernels_of_networks": kernels_of_networks(CostModel(strict, replace(strict_fit, composition=None)), timed),
        "misses": misses(strict, strict_fit, judged, ways[STRICT], work, seed),
        "by_size": [] if quick else by_size(strict, judged, fit.composition, took["profile_s"], seed),
        "networks": [entry(one, ways, place) for place, one in enumerate(judged)],
    }  # fmt: skip
    show(document)
    BENCHMARK.finish(arguments, document)


def read(held_out: Sequence[HeldOut]) -> list[Judged]:
    judged = []
    with progress("Reading networks") as report:
        for place, network in enumerate(held_out):
            found = read_model(network.path)
            layers = [(op, precision) for _, op, precision in found.layers]
            judged.append(Judged(network, layers, found.uncovered_share, [], []))
            report(place + 1, len(held_out), network.name)
    return judged


def time_all(judged: Sequence[Judged], kept: Path, passes: int, profile: Profile) -> None:
    """Until every network had so many passes, one after the other, a few networks in a process of their own between two
    looks at the machine's speed; these are kept as soon as they are there."""
    known: dict[str, list[tuple[float, float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    rows = anchors(profile)
    with progress("Running networks") as report, Piped() as runtime:
        timings = Timings(runtime)
        for number in range(passes):
            waiting = [one for one in judged if len(known.get(key_of(one), ())) <= number]
            before_s = time_anchors(profile, rows, timings) if waiting else []
            for start in range(0, len(waiting), ANCHORED):
                some, seconds = waiting[start : start + ANCHORED], []
                runtime.renew()
                for one in some:
                    path = one.network.path
                    feeds = example_feeds(load_model(path), 0)
                    seconds.append(time_model(path, feeds, seconds=0.4, passes=1, runtime=runtime)[0])
                after_s = time_anchors(profile, rows, timings)
                speed = speed_between(rows, before_s, after_s) or 1.0
                before_s = after_s
                for one, latency_s in zip(some, seconds, strict=True):
                    known.setdefault(key_of(one), []).append((latency_s, speed))
                write_atomically(kept, json.dumps(known).encode())
                done = (number + 1) * len(judged) - len(waiting) + start + len(some)
                report(done, passes * len(judged), some[-1].network.name)
    for one in judged:
        one.samples_s, one.speeds = map(list, zip(*known[key_of(one)], strict=True))


def key_of(one: Judged) -> str:
    return one.network.path.name


def timed_kernels(judged: Sequence[Judged], work: Path, count: int, seed: int, profile: Profile) -> Profile:
    """Rows of a random sample of the networks' kernels."""
    distinct = list(dict.fromkeys(layer for one in judged for layer in one.layers))
    order = np.random.default_rng([seed, 7]).permutation(len(distinct))[:count]
    return timed([distinct[place] for place in order.tolist()], work / "kernels.json", seed, profile)


def timed(layers: Sequence[Layer], path: Path, seed: int, profile: Profile) -> Profile:
    """Rows of these kernels, kept at `path`, at the speed that the machine had when it was profiled."""
    if path.exists():
        return read_profile(path)
    rows, here = anchors(profile), Timings(Here())
    before_s = time_anchors(profile, rows, here)
    with progress("Timing kernels of the networks") as report, Piped() as runtime:
        found = profile_machine(
            [],
            device="kernels",
            exact=layers,
            passes=3,
            seed=seed,
            journal=path.with_suffix(".partial.jsonl"),
            progress=report,
            skip_unsupported=True,
            runtime=runtime,
        )
    after_s = time_anchors(profile, rows, here)
    speed = speed_between(rows, before_s, after_s) or 1.0
    found = with_rows(found, (at_speed(row, speed) for row in found.rows))
    write_profile(found, path)
    return found


def at_speed(row: Row, speed: float) -> Row:
    """A row of a machine that is so many times as fast as the one that is asked for."""
    low_s, high_s = row.interval_s
    return row.model_copy(
        update={
            "latency_s": row.latency_s * speed,
            "interval_s": (low_s * speed, high_s * speed),
            "samples_s": tuple(seconds * speed for seconds in row.samples_s),
        }
    )


def misses(
    profile: Profile, fit: Fit, judged: Sequence[Judged], way: Sequence[Predicted], work: Path, seed: int
) -> list[dict[str, Any]]:
    """What is wrong with the networks that are predicted worst, as shares of their measured latency: `families` are the
    largest errors of their kernels alone, `kernels` all of these, `composition` is what the sum of measured kernels is
    off. The worst one is told where none is off by `MISSED`."""
    errors = [abs(said.latency_s / one.measured_s - 1) for said, one in zip(way, judged, strict=True)]
    places = [place for place in np.argsort(errors)[::-1].tolist() if errors[place] > MISSED] or [
        int(np.argmax(errors))
    ]
    layers = dict.fromkeys(layer for place in places for layer in judged[place].layers)
    rows = timed(list(layers), work / "misses.json", seed, profile)
    alone = CostModel(profile, replace(fit, composition=None))
    return [missed(alone, fit.composition, rows, judged[place], way[place]) for place in places]


def missed(
    alone: CostModel, composition: Composition | None, rows: Profile, one: Judged, said: Predicted
) -> dict[str, Any]:
    counts = Counter(layer for layer in one.layers if rows.find(*layer) and known(alone, layer))
    families: dict[str, float] = {}
    inside_s, kernels = alone.profile.run_overhead_s, list[tuple[Operator, Precision, int, float]]()
    for (op, precision), price in zip(counts, alone.prices(list(counts)), strict=True):
        row = rows.find(op, precision)
        assert row is not None
        name, count = f"{family(op)} {price.runs_as}", counts[op, precision]
        families[name] = families.get(name, 0.0) + count * (price.latency_s - row.latency_s) / one.measured_s
        kernels.append((op, price.runs_as, count, row.latency_s))
        inside_s += count * (
            row.latency_s if composition is None else composition.inside_s(op, precision, row.latency_s)
        )
    if composition is not None:
        inside_s += composition.shared_s(kernels)
    largest = sorted(families.items(), key=lambda item: -abs(item[1]))[:4]
    return {
        "name": one.network.name,
        "bits": one.network.bits,
        "int8_style": one.network.int8_style,
        "error": said.latency_s / one.measured_s - 1,
        "spread": max(one.at_speed_s) / min(one.at_speed_s) - 1,
        "kernels": sum(families.values()),
        "composition": inside_s / one.measured_s - 1,
        "families": dict(largest),
        "not_timed": len(one.layers) - counts.total(),
    }


def kernels_of_networks(cost_model: CostModel, timed: Profile) -> dict[str, Any]:
    """How near predictions of single kernels come, of all and of those over 20 us; and of the families these are of."""
    rows = [row for row in timed.rows if known(cost_model, row.layer)]
    prices = cost_model.prices([row.layer for row in rows])
    errors = np.array([abs(price.latency_s / row.latency_s - 1) for price, row in zip(prices, rows, strict=True)])
    large = np.array([row.latency_s > LARGE_S for row in rows])
    inside = np.array([price.low_s <= row.latency_s <= price.high_s for price, row in zip(prices, rows, strict=True)])
    families: dict[str, list[float]] = {}
    for row, price, error, is_large in zip(rows, prices, errors.tolist(), large.tolist(), strict=True):
        if is_large:
            families.setdefault(f"{family(row.operator)} {price.runs_as}", []).append(error)
    common = sorted(families.items(), key=lambda item: -len(item[1]))
    return {
        **{name: {"kernels": int(mask.sum()), "mape": float(errors[mask].mean()),
                  "within_5": float((errors[mask] <= 0.05).mean()), "within_10": float((errors[mask] <= 0.1).mean()),
                  "inside_interval": float(inside[mask].mean())}
           for name, mask in (("all", large | True), ("large", large)) if mask.any()},
        "families": {name: {"kernels": len(found), "within_10": float((np.array(found) <= 0.1).mean())}
                     for name, found in common},
    }  # fmt: skip


def profiled(work: Path, budget: str, seed: int) -> tuple[Profile, Fit, dict[str, float]]:
    """What `hwcost profile` and `hwcost fit` make, and how long each took in seconds."""
    path, kept = work / "host.json", work / "took.json"
    took: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    commands = {
        "profile_s": ["profile", "--device", "host", "--out", str(path), "--budget", budget, "--seed", str(seed)],
        "fit_s": ["fit", str(path), "--seed", str(seed)],
    }
    for name, command in commands.items():
        if name not in took:
            note(f"hwcost {' '.join(command)}")
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "hwcost.cli", *command], check=True, stdout=subprocess.DEVNULL)
            took[name] = round(time.perf_counter() - began, 1)
            write_atomically(kept, json.dumps(took).encode())
    return read_profile(path), read_fit(fit_path(path)), took


def without(profile: Profile, operators: Iterable[Operator]) -> Profile:
    gone = set(operators)
    return with_rows(profile, (row for row in profile.rows if row.operator not in gone))


def with_rows(profile: Profile, rows: Iterable[Row]) -> Profile:
    fields = {name: getattr(profile, name) for name in Profile.model_fields}
    return Profile.model_validate({**fields, "rows": tuple(rows)})


def predicted(cost_model: CostModel, one: Judged) -> Predicted:
    layers = [layer for layer in one.layers if known(cost_model, layer)]
    total = cost_model.price_all(layers)
    covered = len(layers) == len(one.layers) and not one.uncovered_share
    return Predicted(total.latency_s, (total.low_s, total.high_s), covered)


def known(cost_model: CostModel, layer: Layer) -> bool:
    op, runs_as = layer[0], cost_model.runs_as(*layer)
    found = cost_model.profile.find(*layer) or cost_model.profile.find(op, runs_as)
    return found is not None or (cost_model.fit is not None and cost_model.fit.knows(family(op), runs_as))


def alone(name: str, profile: Profile, fit: Fit, judged: Sequence[Judged], seed: int) -> list[Predicted]:
    """One predictor for every family, and the composition that the others have too."""
    kind, hardware = load_predictor(name), hardware_of(profile.machine, profile.int8_form)
    groups: dict[tuple[str, Precision], list[Row]] = {}
    for row in profile.rows:
        groups.setdefault((family(row.operator), profile.realised_as(row.operator, row.precision)), []).append(row)
    asked: dict[tuple[str, Precision], dict[Layer, float]] = {}
    cost_model = CostModel(profile)
    for layer in {layer for one in judged for layer in one.layers}:
        asked.setdefault((family(layer[0]), cost_model.runs_as(*layer)), {})[layer] = 0.0
    for group, layers in asked.items():
        rows = groups.get(group, [])
        if not rows:
            continue
        fitted = load_predictor(name if len(rows) >= kind.min_rows else "roofline").fit(
            feature_matrix(((row.operator, group[1]) for row in rows), hardware),
            np.array([row.latency_s for row in rows]),
            np.random.default_rng(seed),
        )
        seconds = np.exp(fitted.log_latency(feature_matrix(((op, group[1]) for op, _ in layers), hardware)))
        for layer, latency_s in zip(layers, seconds.tolist(), strict=True):
            among = fit.composition
            layers[layer] = latency_s if among is None else among.inside_s(layer[0], group[1], latency_s)
    prices = {layer: latency_s for layers in asked.values() for layer, latency_s in layers.items()}

    def whole_s(one: Judged) -> float:
        kernels = [(layer[0], cost_model.runs_as(*layer), 1, prices[layer]) for layer in one.layers]
        shared_s = 0.0 if fit.composition is None else fit.composition.shared_s(kernels)
        return profile.run_overhead_s + shared_s + sum(prices[layer] for layer in one.layers)

    return [Predicted(whole_s(one), None) for one in judged]


def table(way: Sequence[Predicted], judged: Sequence[Judged], as_run: bool = False) -> dict[str, Any]:
    """Errors over all networks, and over those of each width."""
    groups: dict[str, Callable[[Judged], bool]] = {
        "all": lambda one: True,
        "fp32": lambda one: one.network.bits == 32,
        "int8": lambda one: one.network.bits == 8,
    }
    found = {}
    for name, belongs in groups.items():
        pairs = [(a, b.ran_s if as_run else b.measured_s) for a, b in zip(way, judged, strict=True) if belongs(b)]
        errors = np.array([a.latency_s / seconds - 1 for a, seconds in pairs])
        inside = [a.interval_s[0] <= seconds <= a.interval_s[1] for a, seconds in pairs if a.interval_s is not None]
        half = [(a.interval_s[1] / a.interval_s[0]) ** 0.5 - 1 for a, _ in pairs if a.interval_s is not None]
        found[name] = {
            "networks": len(pairs),
            "mape": float(np.abs(errors).mean()),
            "rmspe": float(np.sqrt((errors**2).mean())),
            "median": float(np.median(np.abs(errors))),
            "worst": float(np.abs(errors).max()),
            "bias": float(np.median(errors)),
            "within_5": float((np.abs(errors) <= 0.05).mean()),
            "within_10": float((np.abs(errors) <= 0.10).mean()),
            "inside_interval": statistics.mean(inside) if inside else None,
            "interval_half_width": statistics.median(half) if half else None,
            "covered": sum(a.covered for a, _ in pairs),
        }
    return found


def measured_again(judged: Sequence[Judged]) -> dict[str, Any]:
    """How well every second pass tells the others: no predictor can be expected to do better."""
    halves = [
        [replace(one, samples_s=one.samples_s[start::2], speeds=one.speeds[start::2]) for one in judged]
        for start in (0, 1)
    ]
    return table([Predicted(one.measured_s, None) for one in halves[0]], halves[1])


def kernels(fit: Fit) -> list[dict[str, Any]]:
    """Cross-validated errors of kernels, by predictor: means over families, weighted by their rows."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for report in fit.report:
        for errors in report.errors:
            found.setdefault(errors.predictor, []).append((report.rows, errors))
            if errors.predictor == report.chosen:
                found.setdefault("chosen", []).append((report.rows, errors))
    rows = []
    for name, members in found.items():
        total = sum(count for count, _ in members)
        fields = ("mape", "within_5", "within_10")
        means = {field: sum(count * getattr(e, field) for count, e in members) / total for field in fields}
        large = [(e.large_rows, e.within_10_large) for _, e in members if e.large_rows]
        many = sum(count for count, _ in large)
        rows.append(
            {"predictor": name, "rows": total, **means, "large_rows": many,
             "within_10_large": sum(count * share for count, share in large) / many if many else None}
        )  # fmt: skip
    return rows


def by_size(
    profile: Profile, judged: Sequence[Judged], composition: Composition | None, profile_s: float, seed: int
) -> list[dict[str, Any]]:
    """Error against profiling time, by fitting on a random share of the operators."""
    operators = list(dict.fromkeys(row.operator for row in profile.rows))
    order = np.random.default_rng([seed, 5]).permutation(len(operators))
    found = []
    for share in (0.125, 0.4):
        kept = {operators[place] for place in order[: int(share * len(operators))].tolist()}
        smaller = without(profile, [op for op in operators if op not in kept])
        fit = replace(fit_profile(smaller, seed=seed), composition=composition)
        way = [predicted(CostModel(smaller, fit), one) for one in judged]
        found.append({"share": share, "seconds": share * profile_s, "rows": len(smaller.rows), **table(way, judged)})
    return found


def entry(one: Judged, ways: dict[str, list[Predicted]], place: int) -> dict[str, Any]:
    return {
        "name": one.network.name,
        "family": one.network.family,
        "bits": one.network.bits,
        "int8_style": one.network.int8_style,
        "kernels": len(one.layers),
        "uncovered_share": one.uncovered_share,
        "samples_s": one.samples_s,
        "speeds": one.speeds,
        "noise": one.noise,
        "predicted_s": {name: way[place].latency_s for name, way in ways.items()},
        "error": {name: way[place].latency_s / one.measured_s - 1 for name, way in ways.items()},
    }


def show(document: dict[str, Any]) -> None:
    columns = ("latency from", "networks", "MAPE", "worst", "within 5 %", "within 10 %", "in its interval")
    rows = []
    for name, by_bits in document["ways"].items():
        for bits, one in by_bits.items():
            inside = "-" if one["inside_interval"] is None else f"{one['inside_interval']:.0%}"
            shares = (one["mape"], one["worst"], one["within_5"], one["within_10"])
            rows.append((f"{name}, {bits}", str(one["networks"]), *(f"{share:.1%}" for share in shares), inside))
    print_table("Predicted against measured:", columns, rows)


if __name__ == "__main__":
    main()
