"""The main job as a list of steps, after `faqs.prepare`: search and personalise, export, check, sum up.

Here the federation runs in this process; each step reads what the one before left in the run folder, so that any of
them can be done again on its own.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from faqs.client import app, load_participant
from faqs.engine import InProcessGrid
from faqs.errors import RunError
from faqs.export import check_export, export_onnx
from faqs.ledger import Ledger
from faqs.participant import Assignment, Participant
from faqs.preference import METRIC_OF
from faqs.runs import Checkpoint, RoundReport, RunFolder
from faqs.server import Federation, Server, run_rounds
from faqs.supernet import DecidedNet
from hwcost import BlockChoice, detect_machine, pack

OnRound = Callable[[RoundReport, int], None]
"""Sees every finished round and the number of all rounds."""

OnStep = Callable[[int, int, str], None]
"""Sees the progress of exporting and checking: done, total, what."""


def search(run: RunFolder, on_round: OnRound) -> None:
    """All rounds that are left, then each client's personal network; a checkpoint after every round."""
    config = run.config
    tables = [run.table(client) for client in range(config.clients)]
    grid = InProcessGrid(app, config.clients)
    server = Server(grid, config, tables)
    federation = None
    checkpoint = run.load_checkpoint()
    seconds: list[float] = []
    if checkpoint is not None:
        run.save(checkpoint)  # what follows from it may be older, if the run was killed in between
        seconds = list(run.read_json("timing.json")["round_s"]) if (run.path / "timing.json").exists() else []
        grid.load_states(checkpoint.nodes)
        federation = Federation(
            config, checkpoint.state, checkpoint.ledger, set(checkpoint.lost), list(checkpoint.reports)
        )
    began = time.perf_counter()

    def after_round(done: Federation) -> None:
        nonlocal began
        nodes = grid.save_states()
        run.save(Checkpoint(done.state, done.ledger, frozenset(done.lost), tuple(done.reports), nodes))
        seconds[len(done.reports) - 1 :] = [round(time.perf_counter() - began, 3)]
        run.write_json("timing.json", {"round_s": seconds, "total_s": round(sum(seconds), 3)})
        on_round(done.reports[-1], config.rounds)
        began = time.perf_counter()

    federation, scores = run_rounds(server, federation, after_round)
    run.write_json("ledger.json", federation.ledger.to_json())
    for client, score in scores.items():
        _write_client(run, load_participant(grid.state_of(server.node(client))), score)


def _write_client(run: RunFolder, participant: Participant, accuracy: float) -> None:
    assignment = participant.assignment
    data, preference = assignment.data(), assignment.preference
    folder = f"clients/{assignment.client}"
    run.write(f"{folder}/weights.safetensors", pack("personal network", participant.personal))
    run.write_json(
        f"{folder}/architecture.json",
        {
            "client": assignment.client,
            "device": assignment.table.device,
            "profile": assignment.config.client_config(assignment.client).profile,
            "budget": dict(preference.budgets),
            "weights": dict(preference.weights),
            "architecture": [str(choice) for choice in participant.decision],
            "cost": assignment.table.cost(participant.decision),
            "latency_interval_s": list(assignment.table.latency_interval(participant.decision)),
            "latency_sources": list(assignment.table.sources),
            "accuracy": accuracy,
            "samples": {"train": len(data.train.labels), "held_out": len(data.held_out.labels)},
        },
    )


def load_network(run: RunFolder, client: int) -> DecidedNet:
    """A client's personal network from the run folder; raises `RunError`."""
    fields = run.read_json(f"clients/{client}/architecture.json")
    arrays = run.read_arrays(f"clients/{client}/weights.safetensors")
    try:
        architecture = tuple(BlockChoice.parse(text) for text in fields["architecture"])
        network = DecidedNet(run.table(client).space, architecture)
        network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"client {client} of {run.path} cannot be put together ({reason}): search again") from None
    return network.eval()


def export(run: RunFolder, on_step: OnStep) -> list[Path]:
    """Write every client's ONNX model, in the int8 form of its device; returns the files."""
    config, devices, written = run.config, run.devices, []
    for client in range(config.clients):
        on_step(client, config.clients, f"exporting client {client}")
        device = devices[config.client_config(client).profile or ""]
        name = f"clients/{client}/model.onnx"
        run.write(name, export_onnx(load_network(run, client), device.int8_form))
        written.append(run.path / name)
    return written


def check(run: RunFolder, on_step: OnStep) -> list[dict[str, Any]]:
    """Run every exported model here against its torch network and, where its device is this machine, its prediction."""
    config, devices, here = run.config, run.devices, detect_machine().fingerprint
    documents = []
    for client in range(config.clients):
        on_step(client, config.clients, f"checking client {client}")
        device = devices[config.client_config(client).profile or ""]
        fields = run.read_json(f"clients/{client}/architecture.json")
        assignment = Assignment(client, config, run.table(client))
        model = run.read(f"clients/{client}/model.onnx")
        measure = device.fingerprint == here
        result = check_export(model, load_network(run, client), assignment.data().held_out, measure_latency=measure)
        low, high = fields["latency_interval_s"]
        measured = result.latency_s
        limit = fields["budget"].get("latency")
        document = {
            **asdict(result),
            "onnx_bytes": len(model),
            "int8_form": device.int8_form,
            "predicted_latency_s": fields["cost"]["latency_s"],
            "interval_s": [low, high],
            "measured_latency_s": measured,
            "within_interval": None if measured is None else low <= measured <= high,
            "within_budget": None if measured is None or limit is None else measured <= limit,
        }
        run.write_json(f"clients/{client}/check.json", document)
        documents.append(document)
    return documents


def result(run: RunFolder) -> dict[str, Any]:
    """The document that `faqs search --json` ends with, from the run folder; raises `RunError`."""
    config = run.config
    totals = Ledger.from_json(run.read_json("ledger.json")).totals()
    clients = []
    for client in range(config.clients):
        fields = run.read_json(f"clients/{client}/architecture.json")
        checked = run.read_json(f"clients/{client}/check.json")
        clients.append(
            {
                "id": client,
                "device": fields["device"],
                "budget": fields["budget"],
                "architecture": fields["architecture"],
                "predicted_latency_s": fields["cost"]["latency_s"],
                "predicted_interval_s": fields["latency_interval_s"],
                "measured_latency_s": checked["measured_latency_s"],
                "size_bytes": int(fields["cost"][METRIC_OF["size"]]),
                "accuracy": checked["accuracy_onnx"],
            }
        )
    names = ("payload_up", "payload_down", "wire_up", "wire_down")
    return {
        "run": str(run.path),
        "rounds": config.rounds,
        "bytes": {name: int(totals[name]) for name in names},
        "clients": clients,
    }
