"""The main job as a list of steps, after `faqs.prepare`: search and personalise, export, check, sum up.

Here the federation runs in this process; each step reads what the one before left in the run folder, so that any of
them can be done again on its own.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faqs.client import app, load_participant
from faqs.engine import InProcessGrid
from faqs.errors import RunError
from faqs.export import check_export, export_onnx
from faqs.participant import Assignment, Participant
from faqs.preference import METRIC_OF
from faqs.record import Checked, ClientRecord, Decided, Samples, read_run
from faqs.runs import Checkpoint, RoundReport, RunFolder
from faqs.server import Federation, Server, run_rounds
from faqs.supernet import DecidedNet
from hwcost import detect_machine, pack

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
        federation = Federation(checkpoint.state, checkpoint.ledger, set(checkpoint.lost), list(checkpoint.reports))
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
    assignment, decision = participant.assignment, participant.decision
    data, preference, table = assignment.data(), assignment.preference, assignment.table
    decided = Decided(
        client=assignment.client,
        device=table.device,
        profile=assignment.config.client_config(assignment.client).profile or "",
        budget=dict(preference.budgets),
        weights=dict(preference.weights),
        architecture=tuple(str(choice) for choice in decision),
        cost=table.cost(decision),
        latency_interval_s=table.latency_interval(decision),
        latency_sources=table.sources,
        accuracy=accuracy,
        samples=Samples(train=len(data.train.labels), held_out=len(data.held_out.labels)),
    )
    run.write(f"clients/{assignment.client}/weights.safetensors", pack("personal network", participant.personal))
    run.write_json(f"clients/{assignment.client}/architecture.json", decided.model_dump(mode="json"))


def load_network(run: RunFolder, client: ClientRecord) -> DecidedNet:
    """A client's personal network from the run folder; raises `RunError`."""
    arrays = run.read_arrays(f"clients/{client.id}/weights.safetensors")
    network = DecidedNet(client.table.space, client.architecture)
    try:
        network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"weights.safetensors of client {client.id} in {run.path} is not of its architecture ({reason}): "
            f"finish the search again with --resume {run.path}"
        ) from None
    return network.eval()


def export(run: RunFolder, on_step: OnStep) -> list[Path]:
    """Write every client's ONNX model, in the int8 form of its device; returns the files."""
    clients = read_run(run.path).clients
    for client in clients:
        on_step(client.id, len(clients), f"exporting client {client.id}")
        run.write(f"clients/{client.id}/model.onnx", export_onnx(load_network(run, client), client.device.int8_form))
    return [run.path / f"clients/{client.id}/model.onnx" for client in clients]


def check(run: RunFolder, on_step: OnStep) -> list[dict[str, Any]]:
    """Run every exported model here against its torch network and, where its device is this machine, its prediction.

    Returns the documents `check.json`, as `faqs.record.Checked` describes them.
    """
    record, here = read_run(run.path), detect_machine().fingerprint
    documents = []
    for client in record.clients:
        on_step(client.id, len(record.clients), f"checking client {client.id}")
        decided, model = client.decided, run.read(f"clients/{client.id}/model.onnx")
        data = Assignment(client.id, record.config, client.table).data()
        found = check_export(
            model, load_network(run, client), data.held_out, measure_latency=client.device.fingerprint == here
        )
        (low_s, high_s), measured_s = decided.latency_interval_s, found.latency_s
        limit_s = decided.budget.get("latency")
        checked = Checked(
            accuracy_torch=found.accuracy_torch,
            accuracy_onnx=found.accuracy_onnx,
            agreement=found.agreement,
            tolerance=found.tolerance,
            agrees=found.agrees,
            onnx_bytes=len(model),
            predicted_latency_s=decided.cost[METRIC_OF["latency"]],
            interval_s=decided.latency_interval_s,
            measured_latency_s=measured_s,
            samples_s=found.samples_s,
            within_interval=None if measured_s is None else low_s <= measured_s <= high_s,
            within_budget=None if measured_s is None or limit_s is None else measured_s <= limit_s,
            int8_form=client.device.int8_form,
            executed=found.executed,
        )
        documents.append(checked.model_dump(mode="json"))
        run.write_json(f"clients/{client.id}/check.json", documents[-1])
    return documents


def result(run: RunFolder) -> dict[str, Any]:
    """The document that `faqs search --json` ends with, from the run folder; raises `RunError`."""
    record = read_run(run.path)
    totals = record.ledger.totals()
    clients = []
    for client in record.clients:
        if client.check is None:
            raise RunError(f"client {client.id} of {run.path} was not checked yet: run `faqs check {run.path}`")
        decided = client.decided
        clients.append(
            {
                "id": client.id,
                "device": decided.device,
                "budget": decided.budget,
                "architecture": list(decided.architecture),
                "predicted_latency_s": decided.cost[METRIC_OF["latency"]],
                "predicted_interval_s": list(decided.latency_interval_s),
                "measured_latency_s": client.check.measured_latency_s,
                "size_bytes": int(decided.cost[METRIC_OF["size"]]),
                "accuracy": client.check.accuracy_onnx,
            }
        )
    names = ("payload_up", "payload_down", "wire_up", "wire_down")
    return {
        "run": str(run.path),
        "rounds": len(record.rounds),
        "bytes": {name: int(totals[name]) for name in names},
        "clients": clients,
    }
