"""Arms C1 and C2: the search of this project, its networks judged like everybody else's."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from faqs.client import app, load_participant
from faqs.config import ClientConfig, SearchConfig, parse_config
from faqs.data import load_dataset
from faqs.engine import InProcessGrid
from faqs.ledger import Ledger
from faqs.participant import Participant
from faqs.prepare import prepare
from faqs.record import read_run
from faqs.runs import RunFolder
from faqs.search import load_network, search
from faqs.server import Federation, Server
from faqs.supernet import DecidedNet, decide, new_supernet, shared_tensors
from federations.baselines import MOMENTUM
from federations.judge import Found, Hits, Judgement, hits, with_statistics
from federations.regime import Place, Regime
from hwcost import (
    LookupTable,
    SearchSpace,
    build_table,
    fit_path,
    fit_profile,
    load_cost_model,
    read_profile,
    write_atomically,
    write_fit,
)

PROFILES: Final = Path(__file__).resolve().parents[2] / "hwcost" / "devices"
DEVICES: Final = ("rpi4", "rpi4")
"""The shipped profiles that are dealt to the clients in turn."""


Tables = Mapping[str, tuple[Path, LookupTable]]


class NotYetError(Exception):
    """An arm that cannot be run yet, and why."""


VARIANTS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "own-mask": {"training": {"mask": "own"}},
    "one-member": {"training": {"members_per_step": 1}},
    "three-members": {"training": {"members_per_step": 3}},
    "hull": {"training": {"hull_share": 0.5}},
    "labels": {"training": {"distil": False}},
    "held": {"training": {"keep_weight": 1.0}},
    "plain": {"server": {"optimiser": "plain"}},
    "no-warmup": {"run": {"warmup_rounds": 0}},
    "no-explore": {"training": {"explore_share": 0.0}},
    "norms": {"training": {"rule": "norms"}},
    "logits": {"training": {"rule": "logits"}},
    "random": {"training": {"rule": "random"}},
    "own-scores": {"training": {"common_share": 0.0}},
    "fine": {"wire": {"relative_step_up": 1.6, "relative_step_down": 1.6}},
    "even": {"wire": {"vector_step": 1.0}},
    "float": {"wire": {"relative_step_up": 0.0, "relative_step_down": 0.0}},
}
"""The ablations of C2, arms `C2-NAME`: what each changes, by section."""


def search_options(arm: str, regime: Regime) -> dict[str, Any]:
    """THE OPTIONS OF C1 AND C2: fields of `SearchConfig`, what of the method is switched on in either arm.

    They are kept with a result, and one that was made with others is refused.
    """
    training: dict[str, Any] = {
        "batch_size": regime.batch_size,
        "local_epochs": regime.local_epochs,
        "learning_rate": regime.learning_rate,
        "momentum": regime.momentum,
        "weight_decay": regime.weight_decay,
        "personal_epochs": regime.personal_epochs,
        "flips": regime.flip,
        "shift": regime.shift,
        "explore_share": 0.5,
        "distil": True,
        "keep_weight": 0.0,
    }
    if arm == "C1":
        training |= {"mask": "own"}
        step, server = 0.0, dict[str, Any](optimiser="plain")
    else:
        training |= {"mask": "hull", "members_per_step": 2, "hull_share": 0.0}
        step, server = 1.85, {"optimiser": "momentum", "learning_rate": 1.0, "momentum": MOMENTUM}
    wire = {"relative_step_up": step, "relative_step_down": step, "vector_step": 0.2}
    changes = VARIANTS.get(arm.removeprefix("C2-"), {})
    sections = {"training": training, "wire": wire, "server": server}
    return {name: {**fields, **changes.get(name, {})} for name, fields in sections.items()} | dict(
        changes.get("run", {})
    )


def search_config(arm: str, regime: Regime, seed: int, place: Place, tables: Tables) -> SearchConfig:
    """One search of the arm."""
    space = {
        "stem_channels": regime.stem_channels,
        "stem_stride": regime.stem_stride,
        "stages": list(regime.stages),
        "kernels": list(regime.kernels),
        "expansions": list(regime.expansions),
        "weight_bits": list(regime.weight_bits),
    }
    fields = {
        "data": str(place.train),
        "alpha": regime.alpha,
        "held_out_share": regime.held_out_share,
        "rounds": regime.rounds,
        "seed": seed,
        "space": space,
        "client": [client.model_dump() for client in budgets(regime, tables)],
    }
    return parse_config(fields | search_options(arm, regime), f"arm {arm}")


def budgets(regime: Regime, tables: Tables) -> list[ClientConfig]:
    """Latency and size of every client, by its share between the cheapest network and the baselines'."""
    clients = []
    for client in range(regime.clients):
        (path, table), share = tables[DEVICES[client % len(DEVICES)]], regime.shares[client % len(regime.shares)]
        whole = table.cost(regime.fixed(table.space))
        limits = {
            metric: table.cheapest(metric) + share * (whole[metric] - table.cheapest(metric))
            for metric in ("latency_s", "weight_bytes")
        }
        # Rounded up in the last digit written, so that the baselines' own network is within the whole of it.
        budget = {"latency": f"{limits['latency_s'] * 1e6 + 1e-3:.3f}us", "size": f"{limits['weight_bytes'] + 1:.0f}B"}
        clients.append(ClientConfig(profile=str(path), budget=budget))
    return clients


def cost_tables(space: SearchSpace, work: Path, quick: bool) -> Tables:
    """By device, the path of its profile, a copy below `work` with a fit beside it, and the table."""
    tables = {}
    for name in dict.fromkeys(DEVICES):
        path = work / f"{name}{'-quick' if quick else ''}.profile.json"
        if not fit_path(path).exists():
            write_atomically(path, (PROFILES / f"{name}.profile.json").read_bytes())
            write_fit(fit_profile(read_profile(path), names=["linear"] if quick else None), fit_path(path))
        tables[name] = path, build_table(space, load_cost_model(path))
    return tables


def run(config: SearchConfig, regime: Regime, place: Place, folder: Path, on_round: Callable[[int], None]) -> Found:
    """Search in `folder`, going on where a killed one stopped, and judge."""
    path, cpu_file = folder / "run", folder / "cpu_seconds.txt"
    if (path / "config.json").is_file():
        run_folder = RunFolder.open(path)
        if run_folder.config != config:
            raise ValueError(f"{path} is a search with other options: remove it, or pass another --work")
    else:
        shutil.rmtree(path, ignore_errors=True)  # killed before its configuration was written, which is the last file
        run_folder = RunFolder.create(path, config, prepare(config))
        cpu_file.unlink(missing_ok=True)
    began = time.process_time()

    def after_round(report: Any, rounds: int) -> None:
        nonlocal began
        lines = cpu_file.read_text().splitlines() if cpu_file.exists() else []
        lines[report.round :] = [f"{time.process_time() - began:.3f}"]
        write_atomically(cpu_file, ("\n".join(lines) + "\n").encode())
        on_round(report.round + 1)
        began = time.process_time()

    search(run_folder, after_round)
    record = read_run(path)
    ledger = Ledger.from_json(run_folder.read_json("ledger.json"))
    facts: dict[str, Any] = {
        "architectures": [list(client.decided.architecture) for client in record.clients],
        "budgets": [dict(client.decided.budget) for client in record.clients],
        "costs": [dict(client.decided.cost) for client in record.clients],
        "coverage": [round_.coverage for round_ in record.rounds],
        "refused": sum(len(round_.refused) for round_ in record.rounds),
    }
    seconds = list(run_folder.read_json("timing.json")["round_s"])
    cpu_seconds = [float(line) for line in cpu_file.read_text().split()] if cpu_file.exists() else []
    return Found(ledger, _curve(run_folder, ledger), seconds, cpu_seconds, _judge(run_folder, regime, place), facts)


def _curve(run_folder: RunFolder, ledger: Ledger) -> list[dict[str, float]]:
    checkpoint = run_folder.load_checkpoint()
    assert checkpoint is not None
    curve = []
    total = dict.fromkeys(("payload", "wire"), 0.0)
    by_round = ledger.select(kind="setup").by_round(), ledger.select(kind="train").by_round()
    for report in checkpoint.reports:
        for level in total:
            parts = [sums[report.round] for sums in by_round if report.round in sums]
            total[level] += sum(part[f"{level}_up"] + part[f"{level}_down"] for part in parts)
        scores = list(report.accuracy.values())
        curve.append({"accuracy": sum(scores) / len(scores), "loss": report.loss, **total})
    return curve


def _judge(run_folder: RunFolder, regime: Regime, place: Place) -> Judgement:
    config, test = run_folder.config, load_dataset(str(place.test))
    everyone = place.everyone(regime, config.seed)
    overall: list[Hits] = []
    before: list[Hits] = []
    for client, network in enumerate(shared_networks(run_folder)):
        data = place.client(regime, config.seed, client)
        overall.append(hits(with_statistics(network, everyone), test))
        before.append(hits(with_statistics(network, data.train.images), data.held_out))
    after = [
        hits(load_network(run_folder, client), place.client(regime, config.seed, client.id).held_out)
        for client in read_run(run_folder.path).clients
    ]
    return Judgement(overall, before, after)


def shared_networks(run_folder: RunFolder) -> Iterator[DecidedNet]:
    """Every client's decided network as the federation left it, before its client made it a personal one.

    The last round's checkpoint, and the server's last message to every client once more: it is the same message.
    """
    config, checkpoint = run_folder.config, run_folder.load_checkpoint()
    assert checkpoint is not None
    tables = [run_folder.table(client) for client in range(config.clients)]
    grid = InProcessGrid(app, config.clients)
    server = Server(grid, config, tables)
    grid.load_states(checkpoint.nodes)
    server.connect()
    server.finish(Federation(checkpoint.state, Ledger(), set(checkpoint.lost), list(checkpoint.reports)))
    for client in range(config.clients):
        yield _shared_network(load_participant(grid.state_of(server.node(client))))


def _shared_network(participant: Participant) -> DecidedNet:
    supernet = new_supernet(participant.assignment.table.space, participant.assignment.config.seed)
    with torch.no_grad():
        for name, parameter in shared_tensors(supernet).items():
            parameter.copy_(torch.from_numpy(participant.reference[name]))
    supernet.load_state_dict({name: torch.from_numpy(v) for name, v in participant.local.items()}, strict=False)
    return decide(supernet, participant.decision)
