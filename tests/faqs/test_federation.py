"""Rounds over a real Flower grid in this process, real training, tiny networks."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from conftest import tiny_config, tiny_fields
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from faqs.client import RECORD, app, load_participant, read_blob
from faqs.config import SearchConfig, ServerConfig
from faqs.deltas import shared_arrays
from faqs.engine import InProcessGrid
from faqs.errors import FaqsError, RunError, WireError
from faqs.members import path_of
from faqs.participant import Participant, read_scores
from faqs.prepare import Device, Prepared
from faqs.runs import RUN_VERSION, Checkpoint, RunFolder
from faqs.search import search
from faqs.server import Federation, Server, run_rounds
from faqs.strategy import ServerState, Update, aggregate, downlinks
from faqs.supernet import new_supernet, shared_cuts
from faqs.wire import JsonValue, QuantisedTensor
from hwcost import BlockChoice, LookupTable, SearchSpace

DEVICE = {"rpi4.json": Device("rpi4", "d", "f", "s8s8", ("estimated",), 0.0)}


def new_run(path: Path, table: LookupTable, config: SearchConfig) -> RunFolder:
    return RunFolder.create(path, config, Prepared((table,) * config.clients, DEVICE))


def documents(run: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name != "timing.json"
    }


def budgets(table: LookupTable) -> dict[str, str]:
    least, most = table.cheapest("weight_bytes"), table.dearest("weight_bytes")
    return {"size": f"{least + 0.4 * (most - least):.0f}B"}


def test_same_seed_same_bytes_and_a_killed_run_resumes_to_them(tmp_path: Path, table: LookupTable) -> None:
    config = tiny_config(rounds=4, budget=budgets(table))
    search(new_run(tmp_path / "whole", table, config), lambda report, rounds: None)

    class Killed(BaseException):
        pass

    def die_after(number: int) -> Callable[[object, int], None]:
        def on_round(report: object, rounds: int) -> None:
            if report.round == number:  # type: ignore[attr-defined]
                raise Killed

        return on_round

    torn = new_run(tmp_path / "torn", table, config)
    for number in (0, 2):
        with pytest.raises(Killed):
            search(torn, die_after(number))
    (torn.path / "rounds.jsonl").write_text("half a li")
    search(torn, lambda report, rounds: None)
    assert documents(torn.path) == documents(tmp_path / "whole")

    other = tiny_config(rounds=4, budget=budgets(table), seed=1)
    search(new_run(tmp_path / "other", table, other), lambda report, rounds: None)
    assert documents(tmp_path / "other")["supernet.safetensors"] != documents(torn.path)["supernet.safetensors"]


def test_every_decided_network_is_within_its_own_budget(tmp_path: Path, table: LookupTable) -> None:
    wishes = [budgets(table), {"latency": f"{table.dearest('latency_s') * 600:.6f}ms"}, {}]
    config = tiny_config(client=[{"budget": wish} for wish in wishes])
    run = new_run(tmp_path / "run", table, config)
    search(run, lambda report, rounds: None)
    for client in range(3):
        fields = run.read_json(f"clients/{client}/architecture.json")
        limit = config.client_config(client).preference.budgets
        assert fields["budget"] == limit
        decided = tuple(map(BlockChoice.parse, fields["architecture"]))
        assert fields["cost"] == table.cost(decided)
        assert all(fields["cost"][{"size": "weight_bytes", "latency": "latency_s"}[n]] <= v for n, v in limit.items())


def test_a_mask_of_all_members_makes_every_client_train_what_any_needs(table: LookupTable) -> None:
    """And with its own mask a client exchanges less, the less its network has."""
    last = {}
    for mask in ("own", "hull"):
        wishes = [budgets(table), {}]
        training = tiny_fields()["training"] | {"mask": mask}
        config = tiny_config(
            clients=2, client=[{"budget": wish} for wish in wishes], training=training, warmup_rounds=1
        )
        server = Server(InProcessGrid(app, 2), config, [table] * 2)
        federation, _ = run_rounds(server, None, lambda done: None)
        decisions, round_number = federation.state.decisions, config.rounds - 1
        assert decisions[0] != decisions[1]
        last[mask] = {
            entry.client: entry.ideal_bytes
            for entry in federation.ledger.select(kind="train", round=round_number)
            if entry.direction == "up"
        }
        paths = {client: path_of(mask, decisions[client], federation.state.members) for client in range(2)}  # type: ignore[arg-type]
        assert (paths[0] == paths[1]) == (mask == "hull")
        assert all(paths[client] == decisions[client] for client in range(2)) == (mask == "own")
    assert last["own"][0] < last["own"][1] <= last["hull"][0] == last["hull"][1]


def test_the_ledger_is_what_really_crossed(table: LookupTable) -> None:
    grid = InProcessGrid(app, 3)
    server = Server(grid, tiny_config(), [table] * 3)
    federation, _ = run_rounds(server, None, lambda done: None)
    totals = federation.ledger.totals()
    crossed = [t for t in grid.traffic if t.message_type != "query.hello"]
    for direction in ("up", "down"):
        assert totals[f"wire_{direction}"] == sum(t.wire_bytes for t in crossed if t.direction == direction)
        assert totals[f"flower_{direction}"] == sum(t.flower_bytes for t in crossed if t.direction == direction)
        assert 0 < totals[f"payload_{direction}"] < totals[f"flower_{direction}"] < totals[f"wire_{direction}"]


def damaging_app(damage: Callable[[int, int, Message], Message], before: bool = False) -> ClientApp:
    """The real client with a fault between it and the server: `damage(partition, round, message)`."""
    faulty = ClientApp()

    def relay(message: Message, context: Context) -> Message:
        where = int(context.node_config["partition-id"]), int(message.metadata.group_id)
        if before and message.metadata.message_type == "train":
            message = damage(*where, message)
        reply = app(message, context)
        training = message.metadata.message_type == "train"
        return damage(*where, reply) if training and not before else reply

    faulty.query("hello")(relay)
    faulty.query("setup")(relay)
    faulty.train()(relay)
    faulty.evaluate("final")(relay)
    return faulty


def flip(message: Message) -> Message:
    blob = bytearray(read_blob(message.content))
    blob[len(blob) // 2] ^= 0x55
    message.content = RecordDict({RECORD: ConfigRecord({"blob": bytes(blob)})})
    return message


@pytest.mark.parametrize("before", [True, False])
def test_a_damaged_message_is_refused_with_its_reason_and_the_client_comes_back(
    table: LookupTable, before: bool
) -> None:
    def damage(client: int, number: int, message: Message) -> Message:
        return flip(message) if (client, number) == (1, 1) else message

    grid = InProcessGrid(damaging_app(damage, before), 3)
    federation, scores = run_rounds(Server(grid, tiny_config(), [table] * 3), None, lambda done: None)
    assert set(federation.reports[1].refused) == {1} and "checksum" in federation.reports[1].refused[1]
    assert federation.reports[2].refused == {} and set(scores) == {0, 1, 2}
    assert federation.ledger.totals()["refused_up"] == 1
    assert [entry.round for entry in federation.ledger.select(kind="setup", client=1)] == [0, 0, 2, 2]


@pytest.mark.parametrize("rule", ["losses", "norms", "logits", "random"])
def test_clients_of_one_preference_decide_alike_by_the_mean_of_their_scores(table: LookupTable, rule: str) -> None:
    training = {**tiny_fields()["training"], "rule": rule}
    decided = {}
    for share in (0.0, 1.0):
        config = tiny_config(
            rounds=5, warmup_rounds=3, budget=budgets(table), training={**training, "common_share": share}
        )
        federation, _ = run_rounds(Server(InProcessGrid(app, 3), config, [table] * 3), None, lambda done: None)
        assert all(len(set(map(tuple, r.decisions.values()))) == 1 for r in federation.reports[:2])
        decided[share] = {tuple(one) for one in federation.reports[2].decisions.values()}
    assert len(decided[1.0]) == 1
    if rule in ("losses", "random"):
        assert len(decided[0.0]) > 1


def test_training_that_diverges_says_so(table: LookupTable) -> None:
    training = {**tiny_fields()["training"], "learning_rate": 1e30}
    grid, config = InProcessGrid(app, 2), tiny_config(clients=2, rounds=2, training=training)
    with pytest.raises(FaqsError, match=r"loss a finite number, got nan in round 0: lower .*learning_rate"):
        run_rounds(Server(grid, config, [table] * 2), None, lambda done: None)


def test_multipliers_of_a_broken_budget_grow_and_stay_with_the_client(table: LookupTable) -> None:
    tight = {"size": f"{1.02 * table.cheapest('weight_bytes'):.0f}B"}
    training = {**tiny_fields()["training"], "rule": "logits", "pareto": "lagrangian"}
    grid, config = (
        InProcessGrid(app, 2),
        tiny_config(rounds=4, warmup_rounds=2, clients=2, budget=tight, training=training),
    )
    server, seen = Server(grid, config, [table] * 2), []

    def look(done: Federation) -> None:
        seen.append(load_participant(grid.state_of(server.node(0))).multipliers.get("size", 0.0))

    run_rounds(server, None, look)
    assert seen[0] == 0.0 < seen[1] < seen[2]


@pytest.mark.parametrize("form", ["additive", "product", "chebyshev"])
def test_a_heavier_weight_gives_a_cheaper_network_whatever_the_form(table: LookupTable, form: str) -> None:
    training = {**tiny_fields()["training"], "pareto": form}
    sizes = []
    for weight in (0.0, 30.0):
        config = tiny_config(rounds=2, warmup_rounds=2, clients=2, weights={"size": weight}, training=training)
        federation, _ = run_rounds(Server(InProcessGrid(app, 2), config, [table] * 2), None, lambda done: None)
        sizes.append([table.cost(decision)["weight_bytes"] for decision in federation.state.decisions])
    assert all(cheap < dear for dear, cheap in zip(*sizes, strict=True))


def test_scores_that_are_none_are_refused(table: LookupTable) -> None:
    blocks, choices = table.legal.shape
    fine = [[0] * choices] * blocks
    assert read_scores({"scores": list(fine)}, table).shape == (blocks, choices)
    wrong: list[JsonValue] = [
        None, 3, fine[:-1], [[0] * (choices - 1)] * blocks, [[0.5] * choices] * blocks, [[200] * choices] * blocks,
        [[True] * choices] * blocks, ["0" * choices] * blocks,
    ]  # fmt: skip
    for scores in wrong:
        with pytest.raises(WireError, match="score"):
            read_scores({"scores": scores}, table)


def test_a_client_that_missed_the_decision_takes_it_when_it_is_back(table: LookupTable) -> None:
    def damage(client: int, number: int, message: Message) -> Message:
        return flip(message) if (client, number) == (1, 1) else message

    config = tiny_config(rounds=5, warmup_rounds=2, budget=budgets(table))
    server = Server(InProcessGrid(damaging_app(damage), 3), config, [table] * 3)
    federation, _ = run_rounds(server, None, lambda done: None)
    assert set(federation.reports[1].refused) == {1}
    limit = config.client_config(1).preference.budgets["size"]
    for report in federation.reports[2:]:
        decided = tuple(map(BlockChoice.parse, report.decisions[1]))
        assert table.cost(decided)["weight_bytes"] <= limit


def test_a_client_whose_decisions_never_arrive_still_ends_within_its_budget(table: LookupTable) -> None:
    def damage(client: int, number: int, message: Message) -> Message:
        return flip(message) if client == 1 and number >= 1 else message

    grid = InProcessGrid(damaging_app(damage), 2)
    config = tiny_config(clients=2, warmup_rounds=2, budget=budgets(table))
    server = Server(grid, config, [table] * 2)
    run_rounds(server, None, lambda done: None)
    limit = config.client_config(1).preference.budgets["size"]
    for client in (0, 1):
        participant = load_participant(grid.state_of(server.node(client)))
        assert table.cost(participant.decision)["weight_bytes"] <= limit


def test_a_client_that_lost_its_state_is_set_up_again(table: LookupTable) -> None:
    grid = InProcessGrid(app, 2)
    server = Server(grid, tiny_config(clients=2), [table] * 2)

    def forget(done: Federation) -> None:
        if done.state.round == 1:
            states = grid.save_states()
            grid.load_states({**states, server.node(0): b""})

    federation, scores = run_rounds(server, None, forget)
    assert "set up before its first round" in federation.reports[1].refused[0]
    assert federation.reports[2].refused == {} and set(scores) == {0, 1}


def test_a_round_in_which_every_update_is_refused_is_an_error(table: LookupTable) -> None:
    grid = InProcessGrid(damaging_app(lambda client, number, message: flip(message)), 2)
    with pytest.raises(FaqsError, match=r"a round needs one usable update, got none in round 0: client 0: .*checksum"):
        run_rounds(Server(grid, tiny_config(clients=2), [table] * 2), None, lambda done: None)


def test_unreadable_data_of_a_client_reaches_the_user_as_the_reason(table: LookupTable) -> None:
    grid = InProcessGrid(app, 2)
    config = tiny_config(clients=2, data="/nowhere/a.npz")
    with pytest.raises(FaqsError, match=r"client 0 cannot take part: --data is .* no such file$"):
        run_rounds(Server(grid, config, [table] * 2), None, lambda done: None)


def test_a_federation_needs_each_of_its_clients_once(table: LookupTable) -> None:
    with pytest.raises(FaqsError, match=r"has the clients 0 to 2, got \[0, 1\]"):
        Server(InProcessGrid(app, 2), tiny_config(), [table] * 3).connect()


@pytest.mark.parametrize("optimiser", ["plain", "momentum", "adam"])
def test_aggregation_is_the_weighted_mean_per_element_and_leaves_the_untouched_alone(
    space: SearchSpace, optimiser: Literal["plain", "momentum", "adam"]
) -> None:
    random = np.random.default_rng(0)
    state = ServerState.start(space, 0, [space.largest] * 2, [10, 30])
    weights, start = state.weights, shared_arrays(new_supernet(space, 0))
    choices = ("k3e3b4", "k5e3b8")
    updates = []
    for client, text in enumerate(choices):
        cuts = shared_cuts(space, (BlockChoice.parse(text),) * len(space.blocks))
        codes = {name: random.integers(-3, 4, start[name][cut].size).astype(np.int8) for name, cut in cuts.items()}
        tensors = {name: QuantisedTensor(code, 0.5) for name, code in codes.items()}
        updates.append(Update(client, (10, 30)[client], cuts, tensors))
    server = ServerConfig(optimiser=optimiser, learning_rate=0.5, momentum=0.8)
    coverage = aggregate(state, updates, server)
    assert aggregate(state, updates, server) == coverage
    touched = 0
    for name, value in weights.items():
        total, mass = np.zeros_like(value), np.zeros_like(value)
        for update in updates:
            if name in update.cuts:
                part = np.zeros_like(value)
                part[update.cuts[name]] = update.tensors[name].dequantise().reshape(part[update.cuts[name]].shape)
                total += update.samples * part
                mass[update.cuts[name]] += update.samples
        mean = np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)
        twice = {  # two equal rounds, by hand
            "plain": 2 * mean,
            "momentum": mean + (0.8 * mean + mean),
            "adam": sum(
                first * mean / (np.sqrt(second) * np.abs(mean) + 1e-3)
                for first, second in ((0.2, 0.01), (0.8 * 0.2 + 0.2, 0.99 * 0.01 + 0.01))
            ),
        }
        np.testing.assert_allclose(value, start[name] + 0.5 * twice[optimiser], rtol=1e-4, atol=1e-5)
        assert np.array_equal(value[mass == 0], start[name][mass == 0])
        touched += int((mass > 0).sum())
    assert coverage == touched / sum(value.size for value in start.values()) < 1


def test_what_one_message_leaves_out_the_next_ones_carry(table: LookupTable) -> None:
    """With the server's weights standing still, a client's reference converges to them on its active coordinates."""
    space = table.space
    state = ServerState.start(space, 0, [space.largest], [1])
    random = np.random.default_rng(0)
    for value in state.weights.values():
        value += random.normal(scale=0.1, size=value.shape).astype(np.float32)
    gaps = []
    for _ in range(6):
        gaps.append(max(float(np.abs(v - state.references[0][n]).max()) for n, v in state.weights.items()))
        downlinks(state, space, {0: space.largest}, SearchConfig())
    assert gaps[-1] < 0.1 * gaps[0]


def test_a_participant_survives_as_bytes(table: LookupTable) -> None:
    grid = InProcessGrid(app, 2)
    server = Server(grid, tiny_config(clients=2, rounds=1), [table] * 2)
    run_rounds(server, None, lambda done: None)
    participant = load_participant(grid.state_of(server.node(1)))
    again = Participant.from_bytes(participant.to_bytes())
    assert again.to_bytes() == participant.to_bytes()
    data = participant.to_bytes()
    for damaged in (b"", data[:100], b"\xff" * 64, data[:-7]):
        with pytest.raises(RunError, match="a client's state cannot be read"):
            Participant.from_bytes(damaged)


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(tmp_path: Path, table: LookupTable) -> None:
    config = tiny_config(rounds=1, clients=2)
    run = new_run(tmp_path / "run", table, config)
    search(run, lambda report, rounds: None)
    checkpoint = run.load_checkpoint()
    assert isinstance(checkpoint, Checkpoint) and checkpoint.state.round == 1
    path = run.path / "checkpoint.safetensors"
    data, version = path.read_bytes(), f'\\"version\\": {RUN_VERSION}'.encode()
    for damaged in (data[:50], data[:-9], b"{}", data.replace(version, b'\\"version\\": 9')):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="cannot be resumed from"):
            run.load_checkpoint()


def test_a_run_does_not_overwrite_another_one(tmp_path: Path, table: LookupTable) -> None:
    new_run(tmp_path / "run", table, tiny_config())
    with pytest.raises(RunError, match="a new run needs an empty folder"):
        new_run(tmp_path / "run", table, tiny_config())
    with pytest.raises(RunError, match=r"a run folder has a config\.json"):
        RunFolder.open(tmp_path)
    fields = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**fields, "run_version": 99}))
    with pytest.raises(RunError, match="not a run of version"):
        _ = RunFolder.open(tmp_path / "run").config
    assert dataclasses.asdict(DEVICE["rpi4.json"])["device"] == "rpi4"
