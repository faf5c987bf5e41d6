"""Claim: the search finds, for every client, a network within its own budgets by the lookup table, and when measured as
far as the prediction's interval says, at 0.90 mean personalised accuracy or more, with 16 times less traffic than fp32
federated averaging of the largest network.

Four clients on the embedded digits, all with this machine as their device, each with the demo's budgets: shares of the
way from the cheapest network to the dearest one. One search per seed, by the functions that `faqs search` calls; then
every model is exported, run beside its torch network, and timed, when no search runs any more.

The baseline is computed: every shared weight of the largest network, 4 bytes, down and up, per client and round, and
nothing around them. Ours counts all messages of the rounds, at two levels: our blobs, and serialised messages as they
cross. Profiles the operators of this space first (or takes --profile). Searches run side by side, one a core: about
4 minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from record import Benchmark, summary

from faqs.config import ClientConfig, SearchConfig, TrainingConfig
from faqs.ledger import Ledger
from faqs.prepare import prepare
from faqs.runs import RunFolder
from faqs.search import check, export, result, search
from faqs.supernet import new_supernet, shared_tensors
from hwcost import SearchSpace, note, print_table, progress, write_profile
from hwcost.machine import host_device_name
from hwcost.measure import profile_machine
from hwcost.sampling import default_operators

BENCHMARK: Final = Benchmark("search", __doc__ or "")
IMAGE: Final = (1, 8, 8)
CLIENTS: Final = 4
BUDGETS: Final = Path(__file__).resolve().parents[1] / "examples" / "budgets.py"
FP32_BYTES: Final = 4


def measure_profile(path: Path, quick: bool) -> None:
    """Every operator of the space, so that no fit is needed."""
    operators = default_operators((IMAGE,), count=0)
    with progress(f"measuring {len(operators)} operators") as report:
        made = profile_machine(operators, device=host_device_name(), passes=1 if quick else 4, progress=report)
    write_profile(made, path)


def budgets(profile: Path) -> list[ClientConfig]:
    """The demo's, for one profile."""
    done = subprocess.run([sys.executable, str(BUDGETS), str(profile)], capture_output=True, text=True, check=True)
    limits: list[dict[str, str]] = [{} for _ in range(CLIENTS)]
    for option in done.stdout.split()[1::2]:
        client, _, budget = option.partition(":")
        name, _, limit = budget.partition("=")
        limits[int(client)][name] = limit
    return [ClientConfig(profile=str(profile), budget=limit) for limit in limits]


def run_search(config: SearchConfig, out: Path) -> Path:
    """One search, in a process of its own."""
    search(RunFolder.create(out, config, prepare(config)), lambda report, rounds: None)
    return out


def search_all(configs: Mapping[Path, SearchConfig]) -> None:
    workers = min(len(configs), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, progress("searching") as report:
        running = [pool.submit(run_search, config, out) for out, config in configs.items()]
        for done, finished in enumerate(as_completed(running), 1):
            report(done, len(running), f"{finished.result().name} is done")


def fedavg_bytes() -> int:
    """One message of the baseline: the shared weights of the largest network in fp32."""
    supernet = new_supernet(SearchSpace.for_image(IMAGE, 10), 0)
    return FP32_BYTES * sum(value.numel() for value in shared_tensors(supernet).values())


def judge(run: RunFolder) -> dict[str, Any]:
    """Accuracy, traffic and budgets of a finished search, after its models ran here."""

    def silent(done: int, total: int, what: str) -> None:
        pass

    export(run, silent)
    checks, config = check(run, silent), run.config
    clients = result(run)["clients"]
    for client, checked in zip(clients, checks, strict=True):
        limit = client["budget"]
        client |= {name: checked[name] for name in ("agrees", "agreement", "within_interval", "within_budget")}
        client["within_table"] = client["predicted_latency_s"] <= limit.get("latency", float("inf")) and client[
            "size_bytes"
        ] <= limit.get("size", float("inf"))
    ledger = Ledger.from_json(run.read_json("ledger.json"))
    rounds, everything = ledger.select(kind="train").totals(), ledger.totals()
    messages, baseline = config.clients * config.rounds, fedavg_bytes()
    traffic = {}
    for level in ("payload", "wire"):
        up, down = (rounds[f"{level}_{direction}"] / messages for direction in ("up", "down"))
        total = everything[f"{level}_up"] + everything[f"{level}_down"]
        traffic[level] = {
            "up_bytes": up,
            "down_bytes": down,
            "fewer_than_fedavg": 2 * baseline / (up + down),
            "fewer_than_fedavg_with_setup": 2 * baseline * messages / total,
        }
    accuracies = [client["accuracy"] for client in clients]
    limited = [one for one in clients if "latency" in one["budget"]]
    over = [one["measured_latency_s"] / one["budget"]["latency"] - 1 for one in limited]
    for one, excess in zip(limited, over, strict=True):
        # As far over the budget as the prediction's own interval reaches over the prediction.
        one["within_budget_and_interval"] = 1 + excess <= one["predicted_interval_s"][1] / one["predicted_latency_s"]
    return {
        "seed": config.seed,
        "rounds": config.rounds,
        "accuracy": sum(accuracies) / len(accuracies),
        "least_accuracy": min(accuracies),
        "fedavg_message_bytes": baseline,
        "traffic": traffic,
        "within_table": [sum(one["within_table"] for one in clients), len(clients)],
        "within_budget_measured": [sum(one["within_budget"] for one in limited), len(limited)],
        "within_budget_and_interval": [sum(one["within_budget_and_interval"] for one in limited), len(limited)],
        "over_budget": summary(over),
        "within_interval": [sum(one["within_interval"] for one in clients), len(clients)],
        "latency_error": summary([abs(o["predicted_latency_s"] / o["measured_latency_s"] - 1) for o in clients]),
        "clients": clients,
    }


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    quick = arguments.quick
    seeds = [arguments.seed + index for index in range(arguments.seeds or (1 if quick else 3))]
    rounds = arguments.rounds or (1 if quick else SearchConfig().rounds)
    with tempfile.TemporaryDirectory(prefix="faqs-bench-") as folder:
        profile = arguments.profile or Path(folder, "profile.json")
        if not arguments.profile:
            measure_profile(profile, quick)
        clients = budgets(profile.resolve())
        training = TrainingConfig(local_epochs=1, personal_epochs=0) if quick else TrainingConfig()
        common = SearchConfig(clients=CLIENTS, client=clients, rounds=rounds, training=training)
        configs = {Path(folder, f"seed {seed}"): common.model_copy(update={"seed": seed}) for seed in seeds}
        search_all(configs)
        judged: list[dict[str, Any]] = []
        with progress("running the networks") as report:
            for out in configs:
                report(len(judged), len(configs), out.name)
                judged.append(judge(RunFolder.open(out)))
    for search_run in judged:
        for client in search_run["clients"]:
            client["device"] = "this machine"
    median = {
        "accuracy": summary([one["accuracy"] for one in judged]),
        **{
            f"{level}_fewer_than_fedavg": summary([one["traffic"][level]["fewer_than_fedavg"] for one in judged])
            for level in ("payload", "wire")
        },
    }
    show(judged)
    BENCHMARK.finish(arguments, document | {"rounds": rounds, "median": median, "runs": judged})


def show(judged: Sequence[Mapping[str, Any]]) -> None:
    columns = ("seed", "accuracy", "least", "payload up", "down", "wire up", "down", "fp32 / payload", "fp32 / wire")
    rows = []
    for one in judged:
        payload, wire = one["traffic"]["payload"], one["traffic"]["wire"]
        sizes = (payload["up_bytes"], payload["down_bytes"], wire["up_bytes"], wire["down_bytes"])
        ratios = (payload["fewer_than_fedavg"], wire["fewer_than_fedavg"])
        accuracies = (f"{one['accuracy']:.3f}", f"{one['least_accuracy']:.3f}")
        rows.append(
            (str(one["seed"]), *accuracies, *(f"{size:.0f} B" for size in sizes), *(f"{r:.1f}" for r in ratios))
        )
    print_table("Searches: bytes per client and round", columns, rows)
    for one in judged:
        names = ("within_table", "within_budget_measured", "within_budget_and_interval")
        met = [" of ".join(map(str, one[name])) for name in names]
        note(
            f"seed {one['seed']}: budgets met by the table {met[0]}; latency budgets met when measured {met[1]}, or as "
            f"far over as the prediction's interval says {met[2]}; {one['over_budget']['most']:+.1%} at worst"
        )


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument("--profile", type=Path, help="a profile of this machine (default: measured now)")
    parser.add_argument("--seeds", type=int, help="searches, with seeds from --seed on (default: 3; 1 with --quick)")
    parser.add_argument("--rounds", type=int, help="of each search (default: as `faqs search`; 1 with --quick)")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
