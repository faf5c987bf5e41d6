"""The in-process Grid against a real ClientApp: rounds, state, faults, and what crosses the wire."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from faqs.engine import InProcessGrid, count_bytes
from faqs.errors import ConfigError, RunError

TARGETS = np.linspace(-1.0, 1.0, 4 * 6).reshape(4, 6)


def an_app() -> ClientApp:
    """Each client pulls the shared vector towards its own target, with a step that its own history shortens."""
    app = ClientApp()

    @app.query("setup")
    def setup(message: Message, context: Context) -> Message:
        context.state["seen"] = ConfigRecord({"rounds": 0, "greeting": str(message.content["config"]["greeting"])})
        context.state["momentum"] = ArrayRecord({"m": Array(np.zeros(6, np.float32))})
        reply = ConfigRecord(
            {"client": context.node_config["partition-id"], "of": context.node_config["num-partitions"]}
        )
        return Message(RecordDict({"config": reply}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen = context.state["seen"]
        seen["rounds"] = int(seen["rounds"]) + 1
        if context.run_config.get("fail-client") == context.node_config["partition-id"] and seen["rounds"] == 2:
            raise ZeroDivisionError("no luck \ud800 in round 2")
        weights = np.frombuffer(message.content["config"]["blob"], np.float32)
        gradient = TARGETS[int(context.node_config["partition-id"])].astype(np.float32) - weights
        momentum = 0.5 * context.state["momentum"]["m"].numpy() + gradient
        context.state["momentum"] = ArrayRecord({"m": Array(momentum)})
        delta = (np.float32(0.5) / np.float32(seen["rounds"])) * momentum
        metrics = MetricRecord({"loss": float(np.square(gradient).sum()), "rounds": seen["rounds"]})
        content = RecordDict({"config": ConfigRecord({"blob": delta.tobytes()}), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate("final")
    def final(message: Message, context: Context) -> Message:
        return Message(RecordDict({"config": ConfigRecord(dict(context.state["seen"]))}), reply_to=message)

    @app.query("nothing")
    def nothing(message: Message, context: Context) -> Message:
        return None  # type: ignore[return-value]

    @app.query("stranger")
    def stranger(message: Message, context: Context) -> Message:
        return Message(RecordDict(), 1, "query")

    @app.query("unserialisable")
    def unserialisable(message: Message, context: Context) -> Message:
        context.state["mark"] = ConfigRecord({"was": "here"})
        return Message(RecordDict({"config": ConfigRecord({"big": 2**70})}), reply_to=message)

    @app.query("spoils_state")
    def spoils_state(message: Message, context: Context) -> Message:
        context.state["seen"] = ConfigRecord({"rounds": 2**70})
        return Message(RecordDict(), reply_to=message)

    return app


def ask(grid: InProcessGrid, message_type: str, group: str = "0", **values: bytes | str) -> list[Message]:
    messages = [
        Message(RecordDict({"config": ConfigRecord(dict(values))}), node_id, message_type, group_id=group)
        for node_id in grid.get_node_ids()
    ]
    return grid.send_and_receive(messages)


def started(**run_config: bool | int | float | str) -> InProcessGrid:
    grid = InProcessGrid(an_app(), 4, run_config)
    replies = ask(grid, "query.setup", greeting="hello")
    assert [dict(reply.content["config"]) for reply in replies] == [{"client": k, "of": 4} for k in range(4)]
    return grid


def rounds(grid: InProcessGrid, weights: np.ndarray, numbers: range) -> tuple[np.ndarray, list[bytes]]:
    """Federated averaging over these rounds: the weights after it, and every reply's blob."""
    blobs: list[bytes] = []
    for number in numbers:
        replies = ask(grid, "train", str(number), blob=weights.tobytes())
        good = [bytes(reply.content["config"]["blob"]) for reply in replies if reply.has_content()]
        blobs += good
        weights = weights + np.mean([np.frombuffer(blob, np.float32) for blob in good], axis=0)
    return weights.astype(np.float32), blobs


def test_rounds_of_a_real_client_app_learn_and_keep_each_clients_state() -> None:
    grid = started()
    assert isinstance(grid, Grid)
    weights, _ = rounds(grid, np.zeros(6, np.float32), range(1, 9))
    assert np.abs(weights - TARGETS.mean(axis=0)).max() < 0.05
    final = ask(grid, "evaluate.final")
    assert [dict(reply.content["config"]) for reply in final] == [{"rounds": 8, "greeting": "hello"}] * 4


def test_a_client_that_raises_answers_with_flowers_error_reply_and_the_round_goes_on() -> None:
    grid = started(**{"fail-client": 1})
    weights, blobs = rounds(grid, np.zeros(6, np.float32), range(1, 2))
    assert len(blobs) == 4
    replies = ask(grid, "train", "2", blob=weights.tobytes())
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert replies[1].error.code == 2
    assert replies[1].error.reason == "<class 'ZeroDivisionError'>:<'no luck \\ud800 in round 2'>"
    assert grid.traffic[-5].error and grid.traffic[-5].flower_bytes == 0 and grid.traffic[-5].wire_bytes > 0
    assert not any(reply.has_error() for reply in ask(grid, "train", "3", blob=weights.tobytes()))
    final = ask(grid, "evaluate.final")
    assert [reply.content["config"]["rounds"] for reply in final] == [
        3,
        3,
        3,
        3,
    ]  # the failed call was seen, as in Flower


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("nothing", "the handler of 'query.nothing' returns Message(content, reply_to=message), got None"),
        ("stranger", "the handler of 'query.stranger' returns Message(content, reply_to=message), got Message("),
        ("unserialisable", "ValueError"),
        ("spoils_state", "ValueError"),
        ("missing", "No query function registered with name 'missing'"),
    ],
)
def test_a_reply_or_state_that_could_not_cross_is_an_error_reply(action: str, text: str) -> None:
    grid = started()
    before = grid.save_states()
    replies = ask(grid, f"query.{action}")
    assert all(reply.has_error() and text in str(reply.error.reason) for reply in replies)
    assert (grid.save_states() == before) == (action != "unserialisable")
    assert len(grid.traffic) == 2 * 4 * 2
    assert not any(reply.has_error() for reply in ask(grid, "evaluate.final"))


def test_a_message_to_nobody_is_answered_with_an_error() -> None:
    grid = started()
    (reply,) = grid.send_and_receive([Message(RecordDict(), 7, "train")])
    assert reply.error.code == 5
    assert reply.error.reason == "there is no node 7 in this federation; take the ids from get_node_ids()"


def test_states_saved_midway_and_loaded_elsewhere_give_the_same_replies_byte_for_byte() -> None:
    whole = started()
    weights, _ = rounds(whole, np.zeros(6, np.float32), range(1, 4))
    states = whole.save_states()
    assert all(type(state) is bytes for state in states.values())
    end, blobs = rounds(whole, weights, range(4, 7))

    resumed = InProcessGrid(an_app(), 4)
    resumed.load_states(states)
    assert resumed.save_states() == states
    again, same = rounds(resumed, weights, range(4, 7))
    assert same == blobs
    assert again.tobytes() == end.tobytes()
    assert resumed.save_states() == whole.save_states()
    assert resumed.traffic == whole.traffic[-len(resumed.traffic) :]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (
            lambda s: dict(list(s.items())[:3]),
            "this federation has 4 clients, and one saved state for each",
        ),
        (lambda s: {k + 1: v for k, v in s.items()}, "got 4 states that do not fit; resume with the run's own config"),
        (
            lambda s: {k: v[:-3] for k, v in s.items()},
            "the saved state of client 0 is a serialised RecordDict, got bytes",
        ),
        (lambda s: {k: v + b"\x0a\x00" for k, v in s.items()}, "start the run anew"),
    ],
)
def test_states_that_do_not_fit_are_refused_and_change_nothing(
    spoil: Callable[[dict[int, bytes]], dict[int, bytes]], text: str
) -> None:
    grid = started()
    states = grid.save_states()
    with pytest.raises(RunError) as caught:
        grid.load_states(spoil(states))
    assert text in str(caught.value)
    assert grid.save_states() == states


def test_ids_and_traffic_are_the_same_in_every_run() -> None:
    first, second = started(), started()
    for grid in (first, second):
        rounds(grid, np.zeros(6, np.float32), range(1, 3))
    assert first.get_node_ids() == second.get_node_ids()
    assert first.traffic == second.traffic
    assert len({entry.message_id for entry in first.traffic}) == len(first.traffic) / 2
    assert [entry.direction for entry in first.traffic] == ["down", "up"] * 12


def test_equal_messages_in_flight_get_ids_of_their_own_and_replies_are_handed_out_once() -> None:
    grid = started()
    node = grid.get_node_ids()[2]
    ids = grid.push_messages([Message(RecordDict(), node, "evaluate.final") for _ in range(2)])
    assert len(set(ids)) == 2
    replies = grid.pull_messages(ids)
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert {reply.metadata.src_node_id for reply in replies} == {node}
    assert grid.pull_messages([*ids, "unknown"]) == []


def test_client_and_server_share_no_objects() -> None:
    app, kept = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        kept.append(message)
        context.state["own"] = message.content["config"]
        message.content["config"]["seen"] = True
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app, 1)
    sent = RecordDict({"config": ConfigRecord({"x": 1})})
    (reply,) = grid.send_and_receive([Message(sent, grid.get_node_ids()[0], "train", group_id="g")])
    assert dict(sent["config"]) == {"x": 1}
    assert dict(reply.content["config"]) == {"x": 1, "seen": True}
    assert reply.content is not kept[0].content
    kept[0].content["config"]["x"] = 99
    assert reply.content["config"]["x"] == 1
    assert b"seen" in grid.save_states()[grid.get_node_ids()[0]]


def overhead(make: Callable[[bytes], ConfigRecord | ArrayRecord], size: int) -> list[int]:
    """Wire bytes beyond the blob itself, down and up."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app, 1)
    blob = np.random.default_rng(0).bytes(size)
    message = Message(RecordDict({"m": make(blob)}), grid.get_node_ids()[0], "train", group_id="1")
    (reply,) = grid.send_and_receive([message])
    assert reply.content == message.content
    return [entry.wire_bytes - size for entry in grid.traffic]


def test_one_blob_in_a_config_record_has_the_smaller_fixed_overhead() -> None:
    config = [overhead(lambda blob: ConfigRecord({"b": blob}), size) for size in (2_000, 60_000)]
    array = [overhead(lambda blob: ArrayRecord({"b": Array("uint8", (len(blob),), "raw", blob)}), 2_000)]
    print("bytes over the blob: ConfigRecord", config, "ArrayRecord", array)
    assert all(abs(few - many) < 20 for few, many in zip(*config, strict=True))
    assert max(config[0]) < 2_000 < 1.5 * min(array[0])
    assert all(lean < heavy for lean, heavy in zip(config[0], array[0], strict=True))


def test_flowers_own_count_is_used_and_empty_values_count_nothing() -> None:
    config = ConfigRecord({"blob": bytes(10), "n": 3, "yes": True, "names": ["ab", "c"]})
    assert count_bytes(RecordDict({"c": config})) == config.count_bytes() == 10 + 4 + 8 + 1 + 1 + 3 + 3 + 5
    assert count_bytes(RecordDict({"c": ConfigRecord({"empty": "", "list": [], "raw": b""})})) == 5 + 4 + 3
    arrays, metrics = ArrayRecord({"w": Array(np.zeros(3, np.float32))}), MetricRecord({"loss": 0.0})
    assert count_bytes(RecordDict({"a": arrays, "m": metrics})) == arrays.count_bytes() + metrics.count_bytes()


def test_a_federation_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one client, got 0; ask for 1 or more"):
        InProcessGrid(an_app(), 0)


def test_a_run_is_silent_and_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    script = (
        "import test_engine as t, numpy as np\n"
        "grid = t.started(); t.rounds(grid, np.zeros(6, np.float32), range(1, 3))\n"
        "import os; assert os.environ['FLWR_TELEMETRY_ENABLED'] == '0'"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
