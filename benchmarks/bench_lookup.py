"""Claim: once a profile is fitted, the lookup table of a space of 10^25 networks and more is built in under a second,
and the differentiable cost layer takes under 1 % of a supernet's training step.

Building: the default spaces of 8x8 and 32x32 images, one like MobileNetV2 (22 blocks, 3 kernels, 2 expansions, 3
bit-widths), and one of 30 blocks in which no two are alike. Each table has to agree to the last bit with the cost
layer on random members. The ceiling is naming the layers of every choice, which any table starts with. The baseline
names them too, and prices each distinct one alone. The first table of a space is told apart, since operators met before
may be remembered; only the smallest space's table has been built before it. Beside these: the features of 10,000
operators never met.

Training: gate steps (forward, backward, update) of 32 images by `faqs.train.train_gates`, with two weighted costs and
with none, in turn. The layer's share is the time of the weighted costs alone, forward and backward, over that of a
step without them. Whole steps with and without are compared as well; how far two steps without differ says what that
comparison can see. Profiles some operators first, in one pass (or takes --profile), since speeds do not depend on how
good the prices are. Under two minutes.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from record import Benchmark, summary

from faqs.data import Dataset
from faqs.pareto import Pareto
from faqs.preference import METRIC_OF, Preference
from faqs.supernet import new_supernet
from faqs.train import Hyperparameters, expected_costs, initial_logits, random_architecture, train_gates
from hwcost import (
    INT8,
    CostLayer,
    CostModel,
    Layer,
    LookupTable,
    Profile,
    SearchSpace,
    Stage,
    build_table,
    fit_profile,
    note,
    print_table,
    progress,
    read_profile,
)
from hwcost.features import feature_matrix
from hwcost.machine import host_device_name
from hwcost.measure import profile_machine
from hwcost.sampling import default_operators
from hwcost.testing import random_convolutions

BENCHMARK: Final = Benchmark("lookup", __doc__ or "")
MOBILE: Final = (
    Stage(16, 1, 1),
    Stage(24, 4, 2),
    Stage(40, 4, 2),
    Stage(80, 4, 2),
    Stage(96, 4, 1),
    Stage(192, 4, 2),
    Stage(320, 1, 1),
)
ALL_DIFFERENT: Final = tuple(Stage(16 + 8 * index, 1, 2 if index in (3, 9, 15, 27) else 1) for index in range(30))
SPACES: Final = {
    "8x8": SearchSpace.for_image((1, 8, 8), 10),
    "32x32": SearchSpace.for_image((3, 32, 32), 10),
    "MobileNetV2-like, 96x96": SearchSpace((3, 96, 96), 100, 32, MOBILE, stem_stride=2, kernels=(3, 5, 7)),
    "30 blocks, none alike, 224x224": SearchSpace(
        (3, 224, 224), 1000, 32, ALL_DIFFERENT, stem_stride=2, kernels=(3, 5, 7, 9), expansions=(2, 3, 4, 6)
    ),
}
TRAINED: Final = {"8x8": (8, 7), "32x32": (2, 5), "MobileNetV2-like, 96x96": (1, 3)}
"""Gate steps in a row, and rounds of them."""
WEIGHTS: Final = {"latency": 0.1, "size": 0.05}


def measure_profile(quick: bool, seed: int) -> Profile:
    operators = default_operators(((1, 8, 8),), seed, 40 if quick else 300)
    with progress(f"measuring {len(operators)} operators") as report:
        return profile_machine(
            operators,
            device=host_device_name(),
            precisions=(INT8,),
            passes=1,
            seed=seed,
            progress=report,
            skip_unsupported=True,
        )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def networks(space: SearchSpace) -> int:
    return math.prod(sum(space.legal(block, choice) for choice in space.choices) for block in space.blocks)


def distinct_layers(space: SearchSpace) -> list[Layer]:
    """Every layer of any choice, once."""
    blocks = (space.block_layers(block, choice) for block in space.blocks for choice in space.choices)
    return list(dict.fromkeys(itertools.chain(space.fixed_layers(), *blocks)))


def check_exact(table: LookupTable, members: int, generator: torch.Generator) -> None:
    layer, choices = CostLayer(table), len(table.space.choices)
    for _ in range(members):
        member = random_architecture(table.space, generator)
        one_hot = torch.nn.functional.one_hot(torch.tensor(table.indices(member)), choices)
        costs = {metric: cost.item() for metric, cost in layer(one_hot).items()}
        if costs != table.cost(member):
            raise SystemExit(f"the cost layer agrees with the table to the last bit, got {costs}, {table.cost(member)}")


def measure_build(name: str, model: CostModel, repeats: int, members: int, seed: int) -> dict[str, Any]:
    """The first build, then builds and baselines in turn."""
    space = SPACES[name]
    first_s = seconds(lambda: build_table(space, model))
    check_exact(build_table(space, model), members, torch.Generator().manual_seed(seed))
    layers = distinct_layers(space)
    build_s, naming_s, one_by_one_s = list[float](), list[float](), list[float]()
    for _ in range(repeats):
        build_s.append(seconds(lambda: build_table(space, model)))
        naming_s.append(seconds(lambda: distinct_layers(space)))
        one_by_one_s.append(seconds(lambda: [model.price(*layer) for layer in distinct_layers(space)]))
    return {
        "space": name,
        "networks_log10": math.log10(networks(space)),
        "blocks": len(space.blocks),
        "choices": len(space.choices),
        "operators": len(space.operators()),
        "layers": len(layers),
        "predicted_share": sum(price.source == "predicted" for price in model.prices(layers)) / len(layers),
        "naming_s": summary(naming_s),
        "first_s": first_s,
        "build_s": summary(build_s),
        "one_by_one_s": summary(one_by_one_s),
        "faster_than_one_by_one": summary([slow / fast for slow, fast in zip(one_by_one_s, build_s, strict=True)]),
    }


def measure_features(count: int, repeats: int, rng: np.random.Generator) -> dict[str, Any]:
    samples = [[(op, INT8) for op in random_convolutions(rng, count)] for _ in range(repeats)]
    return {"operators": count, "seconds": summary([seconds(partial(feature_matrix, sample)) for sample in samples])}


def random_images(space: SearchSpace, count: int, rng: np.random.Generator) -> Dataset:
    """Noise: how long a step takes does not depend on what is seen."""
    images = rng.random((count, *space.image), dtype=np.float32)
    return Dataset(images, rng.integers(space.classes, size=count), space.classes)


def measure_training(name: str, table: LookupTable, steps: int, rounds: int, seed: int) -> dict[str, Any]:
    """Rounds of `steps` gate steps without costs, with them, without again; and of the weighted costs alone."""
    space, generator = SPACES[name], torch.Generator().manual_seed(seed)
    settings = Hyperparameters(local_epochs=1, gate_share=1.0)
    data = random_images(space, steps * settings.batch_size, np.random.default_rng(seed))
    supernet, logits = new_supernet(space, seed), initial_logits(space)

    layer = CostLayer(table)

    def step_s(weights: dict[str, float]) -> float:
        pareto = Pareto.of("additive", Preference(weights=weights), table, {})
        return seconds(lambda: train_gates(supernet, logits, data, layer, pareto, settings, generator)) / steps

    weighted = Pareto.of("additive", Preference(weights=WEIGHTS), table, {})
    free = logits.clone().requires_grad_(True)

    def costs() -> None:
        weighted(torch.zeros(()), expected_costs(free, layer)).backward()  # type: ignore[no-untyped-call]

    for _ in range(20):
        costs()
    step_s(WEIGHTS)
    without_s, with_s, again_s, costs_s = list[float](), list[float](), list[float](), list[float]()
    for _ in range(rounds):
        without_s.append(step_s({}))
        costs_s.append(float(np.median([seconds(costs) for _ in range(50)])))
        with_s.append(step_s(WEIGHTS))
        again_s.append(step_s({}))
    plain_s = [(one + other) / 2 for one, other in zip(without_s, again_s, strict=True)]
    return {
        "space": name,
        "networks_log10": math.log10(networks(space)),
        "batch": settings.batch_size,
        "steps": steps,
        "step_s": summary(plain_s),
        "costs_s": summary(costs_s),
        "share": summary([one / step for one, step in zip(costs_s, plain_s, strict=True)]),
        "with_over_without": summary([one / step - 1 for one, step in zip(with_s, plain_s, strict=True)]),
        "without_over_without": summary([one / other - 1 for one, other in zip(again_s, without_s, strict=True)]),
    }


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    quick, seed = arguments.quick, arguments.seed
    profile = read_profile(arguments.profile) if arguments.profile else measure_profile(quick, seed)
    with progress("fitting") as report:
        model = CostModel(
            profile, fit_profile(profile, names=["linear"] if quick else None, seed=seed, progress=report)
        )
    built, trained = list[dict[str, Any]](), list[dict[str, Any]]()
    features = measure_features(100 if quick else 10_000, 1 if quick else 5, np.random.default_rng([seed, 1]))
    build_table(next(iter(SPACES.values())), model)
    with progress("building tables") as report:
        for name in list(SPACES)[:3] if quick else SPACES:
            report(len(built), len(SPACES), name)
            built.append(measure_build(name, model, 1 if quick else 3, 5 if quick else 100, seed))
    with progress("training") as report:
        for name, (steps, rounds) in {"8x8": (1, 1)}.items() if quick else TRAINED.items():
            report(len(trained), len(TRAINED), name)
            trained.append(measure_training(name, build_table(SPACES[name], model), steps, rounds, seed))
    document |= {
        "profile": {"rows": len(profile.rows), "device": profile.device},
        "weights": {METRIC_OF[name]: weight for name, weight in WEIGHTS.items()},
        "torch_threads": torch.get_num_threads(),
        "features": features,
        "build": built,
        "training": trained,
    }
    show(document)
    BENCHMARK.finish(arguments, document)


def show(document: dict[str, Any]) -> None:
    print_table(
        "Building the table (medians):",
        ("space", "networks", "operators", "layers", "naming", "first table", "table", "slowest", "one by one /"),
        [
            (
                row["space"],
                f"10^{row['networks_log10']:.1f}",
                str(row["operators"]),
                str(row["layers"]),
                f"{row['naming_s']['median'] * 1e3:.1f} ms",
                f"{row['first_s'] * 1e3:.1f} ms",
                f"{row['build_s']['median'] * 1e3:.1f} ms",
                f"{row['build_s']['most'] * 1e3:.1f} ms",
                f"{row['faster_than_one_by_one']['median']:.1f}",
            )
            for row in document["build"]
        ],
    )
    print_table(
        "The cost layer in a gate step (medians):",
        ("space", "networks", "step", "costs alone", "share", "most", "step against itself", "step with costs"),
        [
            (
                row["space"],
                f"10^{row['networks_log10']:.1f}",
                f"{row['step_s']['median'] * 1e3:.1f} ms",
                f"{row['costs_s']['median'] * 1e6:.0f} us",
                f"{row['share']['median']:.2%}",
                f"{row['share']['most']:.2%}",
                f"{row['without_over_without']['least']:+.1%} to {row['without_over_without']['most']:+.1%}",
                f"{row['with_over_without']['least']:+.1%} to {row['with_over_without']['most']:+.1%}",
            )
            for row in document["training"]
        ],
    )
    features = document["features"]
    note(f"weighted costs: {', '.join(document['weights'])}")
    note(f"features of {features['operators']:,} operators: {features['seconds']['median'] * 1e3:.0f} ms")


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument(
        "--profile", type=Path, help="any profile with measured or estimated rows (default: measured now)"
    )
    run(parser.parse_args())


if __name__ == "__main__":
    main()
