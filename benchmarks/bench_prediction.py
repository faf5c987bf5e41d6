"""Claim: the lookup table predicts the end-to-end latency of unseen int8 networks within 10 % for nearly all of them,
far better than scaling by FLOPs, also where most operators have to be predicted.

Profiles this machine as `hwcost profile` does (or takes --profile, which has to be of this machine), draws random
architectures of the search spaces for 8x8 and 32x32 images, exports them, and runs them end to end in passes that lie
apart. Predictions come from the lookup table in three ways: every operator profiled; half of the profile's operators
taken away before fitting; every operator of these spaces taken away, so that all are predicted from other networks'.

The ceiling is the measurement against itself: the minimum of the first passes against that of the last ones. The
baseline is FLOPs-only scaling, seconds per multiply-accumulate, favoured by one constant per search space fitted on
these very networks. About 3 minutes.
"""

import argparse
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from record import Benchmark, summary

from faqs.export import export_onnx
from faqs.supernet import DecidedNet
from faqs.train import random_architecture
from hwcost import (
    INT8,
    Architecture,
    CostModel,
    Fit,
    Int8Form,
    LookupTable,
    Operator,
    Profile,
    SearchSpace,
    build_table,
    detect_machine,
    fit_profile,
    note,
    print_table,
    progress,
    read_profile,
    time_model,
)
from hwcost.features import family
from hwcost.machine import host_device_name
from hwcost.measure import profile_machine
from hwcost.sampling import default_operators

BENCHMARK: Final = Benchmark("prediction", __doc__ or "")
IMAGES: Final = ((1, 8, 8), (3, 32, 32))
CLASSES: Final = 10


@dataclass
class Network:
    """A random member of a space as an exported model; `samples_s` are its timed passes."""

    space: SearchSpace
    architecture: Architecture
    model: bytes
    samples_s: list[float] = field(default_factory=list)

    @property
    def macs(self) -> int:
        return sum(op.macs for op, _ in self.space.layers(self.architecture))

    @property
    def measured_s(self) -> float:
        return min(self.samples_s)


@dataclass(frozen=True)
class Way:
    """A way to predict: latency and interval of each network, and how much of each was not itself profiled."""

    name: str
    latency_s: list[float]
    interval_s: list[tuple[float, float]]
    predicted_share: list[float]


def draw_networks(space: SearchSpace, count: int, form: Int8Form, seed: int) -> list[Network]:
    """Distinct architectures, every legal choice of a block equally likely; the weights are untrained."""
    generator = torch.Generator().manual_seed(seed)
    drawn = dict.fromkeys(random_architecture(space, generator) for _ in range(10 * count))
    torch.manual_seed(seed)
    return [Network(space, one, export_onnx(DecidedNet(space, one).eval(), form)) for one in list(drawn)[:count]]


def time_networks(networks: Sequence[Network], passes: int, seconds: float, rng: np.random.Generator) -> None:
    """Add passes, each over all networks in a new order, each network in a fresh session."""
    with progress("running the networks") as report:
        for number in range(passes):
            for done, index in enumerate(rng.permutation(len(networks)).tolist()):
                report(number * len(networks) + done, passes * len(networks), f"pass {number + 1} of {passes}")
                network = networks[index]
                images = rng.random((1, *network.space.image), dtype=np.float32)
                latency_s, _ = time_model(network.model, {"images": images}, seconds=seconds, passes=1)
                network.samples_s.append(latency_s)


def measure_profile(quick: bool, seed: int) -> Profile:
    images, samples, passes = (IMAGES[:1], 200, 1) if quick else (IMAGES, None, 3)
    operators = default_operators(images, seed, samples)
    with progress(f"measuring {len(operators)} operators") as report:
        return profile_machine(
            operators, device=host_device_name(), passes=passes, seed=seed, progress=report, skip_unsupported=True
        )


def without(profile: Profile, operators: Set[Operator]) -> Profile:
    """The int8 rows of other operators; predictors are fitted per precision, so nothing is lost with the others."""
    rows = tuple(row for row in profile.rows if row.precision == INT8 and row.operator not in operators)
    fields = {name: getattr(profile, name) for name in Profile.model_fields}
    return Profile.model_validate({**fields, "rows": rows})


def predict(name: str, networks: Sequence[Network], profile: Profile, fit: Fit | None) -> Way:
    model, tables = CostModel(profile, fit), dict[SearchSpace, LookupTable]()
    way = Way(name, [], [], [])
    for network in networks:
        if network.space not in tables:
            tables[network.space] = build_table(network.space, model)
        table = tables[network.space]
        way.latency_s.append(table.cost(network.architecture)["latency_s"])
        way.interval_s.append(table.latency_interval(network.architecture))
        total = model.price_all(network.space.layers(network.architecture))
        predicted_s = sum(price.latency_s for price in total.prices if price.source == "predicted")
        way.predicted_share.append(predicted_s / total.latency_s)
    return way


def scale_macs(networks: Sequence[Network]) -> Way:
    """Seconds per multiply-accumulate: in each space the geometric mean of what these networks took."""
    latency_s = []
    for network in networks:
        peers = [peer for peer in networks if peer.space == network.space]
        factor = np.exp(np.mean([np.log(peer.measured_s / peer.macs) for peer in peers]))
        latency_s.append(float(factor) * network.macs)
    return Way("FLOPs only", latency_s, [], [1.0] * len(networks))


def judge(way: Way, networks: Sequence[Network]) -> dict[str, Any]:
    """Errors as shares of the measured latency."""
    measured = np.array([network.measured_s for network in networks])
    signed = np.array(way.latency_s) / measured - 1
    inside = [low <= truth <= high for (low, high), truth in zip(way.interval_s, measured.tolist(), strict=False)]
    widths = [high / latency - 1 for (_, high), latency in zip(way.interval_s, way.latency_s, strict=False)]
    return {
        "way": way.name,
        "networks": len(networks),
        "error": summary(np.abs(signed).tolist()),
        "bias": float(np.median(signed)),
        "within_5": float((np.abs(signed) <= 0.05).mean()),
        "within_10": float((np.abs(signed) <= 0.10).mean()),
        "inside_interval": float(np.mean(inside)) if inside else None,
        "interval": float(np.median(widths)) if widths else None,
        "predicted_share": float(np.median(way.predicted_share)),
    }


def measured_twice(networks: Sequence[Network]) -> Way:
    """The ceiling: the first half of the passes predicts all of them, at its best as well as the second half."""
    half = len(networks[0].samples_s) // 2
    pairs = [(min(one.samples_s[:half]), min(one.samples_s[half:])) for one in networks]
    worse = [max(pair) for pair in pairs]
    return Way("measured twice", worse, [], [0.0] * len(networks))


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument("--profile", type=Path, help="a profile of this machine (default: measured now)")
    parser.add_argument("--networks", type=int, help="of each search space (default: 14; 3 with --quick)")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    quick, seed = arguments.quick, arguments.seed
    count = arguments.networks or (3 if quick else 14)
    began = time.perf_counter()
    profile = read_profile(arguments.profile) if arguments.profile else measure_profile(quick, seed)
    profile_s = time.perf_counter() - began
    if profile.machine.fingerprint != detect_machine().fingerprint:
        raise SystemExit(f"a profile of this machine is needed, got one of {profile.machine.cpu}: leave out --profile")
    spaces = [SearchSpace.for_image(image, CLASSES) for image in (IMAGES[:1] if quick else IMAGES)]
    rng = np.random.default_rng([seed, 1])
    networks = [one for space in spaces for one in draw_networks(space, count, profile.int8_form, seed)]
    passes, seconds = (1, 0.02) if quick else (3, 0.3)
    time_networks(networks, passes, seconds, rng)

    names = ["linear"] if quick else None
    gone = {op for space in spaces for op in space.operators()}
    operators = list(dict.fromkeys(row.operator for row in profile.rows if row.precision == INT8))
    half = {operators[index] for index in rng.permutation(len(operators))[: len(operators) // 2].tolist()}
    known = {family(op) for op in operators if op not in half}
    half = {op for op in half if family(op) in known}  # a family that would be gone altogether stays
    ways = [predict("every operator profiled", networks, without(profile, set()), None)]
    began = time.perf_counter()
    for name, removed in (("half of the operators profiled", half), ("no operator profiled", gone)):
        left = without(profile, removed)
        with progress(f"fitting, {name}") as report:
            fit = fit_profile(left, names=names, seed=seed, progress=report)
        ways.append(predict(name, networks, left, fit))
    fit_s = time.perf_counter() - began
    time_networks(networks, passes, seconds, rng)
    ways = [measured_twice(networks), *ways, scale_macs(networks)]
    judged = [judge(way, networks) for way in ways]
    by_space = []
    for space in spaces:
        members = [index for index, one in enumerate(networks) if one.space == space]
        for way in ways:
            part = Way(
                way.name,
                [way.latency_s[index] for index in members],
                [way.interval_s[index] for index in members] if way.interval_s else [],
                [way.predicted_share[index] for index in members],
            )
            by_space.append({"image": list(space.image), **judge(part, [networks[index] for index in members])})
    document |= {
        "profile": {
            "rows": len(profile.rows),
            "seconds": None if arguments.profile else round(profile_s, 1),
            "noise_floor": profile.noise_floor,
            "int8_form": profile.int8_form,
            "notes": list(profile.notes),
        },
        "fit_s": round(fit_s, 1),
        "ways": judged,
        "by_space": by_space,
        "networks": [
            {
                "image": list(one.space.image),
                "architecture": " ".join(map(str, one.architecture)),
                "macs": one.macs,
                "samples_s": one.samples_s,
                "predicted_s": {way.name: way.latency_s[index] for way in ways[1:]},
            }
            for index, one in enumerate(networks)
        ],
    }
    show(judged, networks)
    BENCHMARK.finish(arguments, document)


def show(judged: Sequence[dict[str, Any]], networks: Sequence[Network]) -> None:
    columns = ("latency from", "median error", "mean", "worst", "bias", "within 5 %", "within 10 %", "in its interval")
    rows = []
    for one in judged:
        error = one["error"]
        shares = (error["median"], error["mean"], error["most"], one["bias"], one["within_5"], one["within_10"])
        inside = "-" if one["inside_interval"] is None else f"{one['inside_interval']:.0%}"
        rows.append((one["way"], *(f"{share:.1%}" for share in shares), inside))
    fastest, slowest = min(one.measured_s for one in networks), max(one.measured_s for one in networks)
    note(f"{len(networks)} networks of {fastest * 1e6:.0f} to {slowest * 1e6:.0f} us")
    print_table("Predicted against measured:", columns, rows)


if __name__ == "__main__":
    main()
