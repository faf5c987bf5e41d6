"""Claim: where two devices disagree on what operators cost, the search picks other networks for them; what is best for
one breaks the other's budget, or wastes part of it.

Two profiles, by default those in profiles/: a Raspberry Pi 4 and an x86 server core. First what they disagree on:
int8 over float by kind of operator, on the operators that both have. Then the decision alone: the same scores of the
choices, drawn at random, are projected onto the same share of each device's range of latencies, through the two lookup
tables; how often the networks differ, and what the one network takes on the other device. Last a real search on the
embedded digits: four clients with the same kind of data, two on each device, each with the same share of its device's
range as latency budget. The last part takes two minutes.
"""

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from record import Benchmark

from faqs.config import ClientConfig, SearchConfig, TrainingConfig
from faqs.preference import Preference, project
from faqs.prepare import prepare
from faqs.record import read_run
from faqs.runs import RunFolder
from faqs.search import search
from hwcost import (
    FLOAT,
    INT8,
    CostModel,
    LookupTable,
    Profile,
    SearchSpace,
    build_table,
    note,
    print_table,
    progress,
    read_profile,
)
from hwcost.features import family

BENCHMARK: Final = Benchmark("devices", __doc__ or "")
PROFILES: Final = Path(__file__).resolve().parents[1] / "profiles"
IMAGES: Final = ((1, 8, 8), (3, 32, 32))
SHARES: Final = (0.3, 0.5, 0.7)
"""How far from the cheapest network to the dearest one a budget lies."""
CLIENTS: Final = 4


def int8_over_float(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """By family: the median ratio of int8 to float latency of the operators that every profile has at both."""
    rows: defaultdict[str, list[list[float]]] = defaultdict(list)
    for op in dict.fromkeys(row.operator for row in profiles[0].rows):
        pairs = [(profile.find(op, INT8), profile.find(op, FLOAT)) for profile in profiles]
        if all(a is not None and b is not None and a.precision != b.precision for a, b in pairs):
            rows[family(op)].append([a.latency_s / b.latency_s for a, b in pairs if a is not None and b is not None])
    return [
        {"family": name, "operators": len(found), "ratios": np.median(np.array(found), axis=0).tolist(),
         "disagree": float(np.mean([(min(one) < 1) and (max(one) > 1) for one in found]))}
        for name, found in sorted(rows.items(), key=lambda item: -len(item[1]))
        if len(found) >= 3
    ]  # fmt: skip


def budget(table: LookupTable, share: float) -> float:
    low, high = table.cheapest("latency_s"), table.dearest("latency_s")
    return low + share * (high - low)


def decisions(tables: Sequence[LookupTable], share: float, draws: int, seed: int) -> dict[str, Any]:
    """The same scores on two devices: how often the networks differ, and what each takes on the other device, beside
    the budget there."""
    differ, blocks, over, lost = 0, [], [], []
    limits = [budget(table, share) for table in tables]
    for number in range(draws):
        scores = np.random.default_rng([seed, number]).normal(size=tables[0].legal.shape)
        own = [
            project(scores, table, Preference({"latency": limit})) for table, limit in zip(tables, limits, strict=True)
        ]
        differ += own[0] != own[1]
        blocks.append(sum(a != b for a, b in zip(*own, strict=True)) / len(own[0]))
        for table, limit, mine, other in (
            (tables[0], limits[0], own[0], own[1]),
            (tables[1], limits[1], own[1], own[0]),
        ):
            there = table.cost(other)["latency_s"] / limit
            over.append(there)
            if there <= 1:
                lost.append(score(scores, table, mine) - score(scores, table, other))
    return {
        "share": share,
        "draws": draws,
        "differ": differ / draws,
        "blocks_that_differ": statistics.mean(blocks),
        "others_network_over_budget": float(np.mean(np.array(over) > 1)),
        "others_network_at_worst": max(over),
        "lost_score": statistics.mean(lost) if lost else None,
    }


def score(scores: np.ndarray, table: LookupTable, architecture: Any) -> float:
    return float(sum(scores[block, index] for block, index in enumerate(table.indices(architecture))))


def run_search(paths: Sequence[Path], tables: Sequence[LookupTable], arguments: argparse.Namespace) -> list[Any]:
    """Two clients on each device, dealt in turn."""
    clients = [
        ClientConfig(profile=str(paths[index % 2]), budget={"latency": f"{1e6 * budget(tables[index % 2], 0.5):.3f}us"})
        for index in range(CLIENTS)
    ]
    config = SearchConfig(
        clients=CLIENTS,
        client=clients,
        seed=arguments.seed,
        rounds=1 if arguments.quick else SearchConfig().rounds,
        training=TrainingConfig(local_epochs=1, personal_epochs=0) if arguments.quick else TrainingConfig(),
    )
    with tempfile.TemporaryDirectory(prefix="faqs-bench-") as folder, progress("searching") as report:
        run = RunFolder.create(Path(folder, "run"), config, prepare(config))
        search(run, lambda done, rounds: report(done.round, rounds, "rounds"))
        return [client.decided for client in read_run(run.path).clients]


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    paths = [path.resolve() for path in arguments.profiles]
    profiles = [read_profile(path) for path in paths]
    disagreement = int8_over_float(profiles)
    draws = 5 if arguments.quick else 200
    decided = []
    for image in IMAGES[: 1 if arguments.quick else None]:
        space = SearchSpace.for_image(image, 10)
        tables = [build_table(space, CostModel(profile)) for profile in profiles]
        for share in SHARES:
            decided.append({"image": list(image), **decisions(tables, share, draws, arguments.seed)})
    small = SearchSpace.for_image(IMAGES[0], 10)
    clients = run_search(paths, [build_table(small, CostModel(profile)) for profile in profiles], arguments)
    document |= {
        "devices": [{"device": one.device, "sources": list(one.sources), "cpu": one.machine.cpu} for one in profiles],
        "int8_over_float": disagreement,
        "decisions": decided,
        "search": [
            {"device": one.device, "blocks": list(one.architecture), "latency_s": one.cost["latency_s"],
             "budget_s": one.budget["latency"]}
            for one in clients
        ],
    }  # fmt: skip
    show(document)
    BENCHMARK.finish(arguments, document)


def show(document: Mapping[str, Any]) -> None:
    names = [f"{one['device']} ({', '.join(one['sources'])})" for one in document["devices"]]
    rows = [
        (one["family"], str(one["operators"]), *(f"{ratio:.2f}" for ratio in one["ratios"]), f"{one['disagree']:.0%}")
        for one in document["int8_over_float"]
    ]
    print_table("int8 over float, medians:", ("family", "operators", *names, "other sign"), rows)
    rows = [
        (f"{'x'.join(map(str, one['image']))}, {one['share']:.0%}", f"{one['differ']:.0%}",
         f"{one['blocks_that_differ']:.0%}", f"{one['others_network_over_budget']:.0%}",
         f"{one['others_network_at_worst']:.2f}")
        for one in document["decisions"]
    ]  # fmt: skip
    columns = ("image, budget", "networks differ", "blocks", "other's breaks the budget", "at worst")
    print_table("The same scores on both devices:", columns, rows)
    for one in document["search"]:
        note(f"{one['device']}: {' '.join(map(str, one['blocks']))}")


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument(
        "--profiles",
        type=Path,
        nargs=2,
        default=[PROFILES / "rpi4.json", PROFILES / "x86-avx512-vnni.json"],
        metavar=("A", "B"),
        help="two devices (default: profiles/rpi4.json and profiles/x86-avx512-vnni.json)",
    )
    run(parser.parse_args())


if __name__ == "__main__":
    main()
