"""The server's loop over any Flower `Grid`: set-up, rounds, personalisation, with every byte entered in the ledger.

A client that fails, or whose message is refused, is left out of the round with its reason, and set up anew before the
next one; the round goes on as long as one update is usable. What the loop carries from round to round is a
`Federation`, a value that a checkpoint can hold.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from faqs.client import content_of, read_blob, read_text
from faqs.config import SearchConfig
from faqs.engine import count_bytes, wire_bytes
from faqs.errors import FaqsError, RunError, WireError
from faqs.ledger import Direction, Entry, Kind, Ledger
from faqs.participant import Assignment, first_decision, read_decision
from faqs.strategy import (
    ServerState,
    Update,
    aggregate,
    downlink,
    expected_lengths,
    forget_client,
    ideal_bytes,
)
from faqs.supernet import shared_cuts
from faqs.wire import Header, decode, read_header
from hwcost import Architecture, LookupTable

REPLY_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class RoundReport:
    """What a round did. `accuracy[k]`, `decisions[k]`: client k's decided network on its held-out share; None and
    missing where `refused[k]` says why."""

    round: int
    loss: float
    coverage: float
    accuracy: dict[int, float]
    decisions: dict[int, list[str]]
    refused: dict[int, str]


@dataclass
class Federation:
    """State of a run on the server: numbers, ledger, which clients must be set up again before they can be used."""

    config: SearchConfig
    state: ServerState
    ledger: Ledger = field(default_factory=Ledger)
    lost: set[int] = field(default_factory=set)


class Server:
    """Talks to the clients of one federation over `grid`."""

    def __init__(self, grid: Grid, config: SearchConfig, tables: Sequence[LookupTable]) -> None:
        self._grid, self._config, self._tables = grid, config, tables
        self._space = tables[0].space
        self._nodes: dict[int, int] = {}

    def connect(self) -> None:
        """Ask every node for its client number; raises `FaqsError` unless each client is there once."""
        nodes = list(self._grid.get_node_ids())
        replies = self._send("query.hello", 0, {node: content_of("text", "") for node in nodes})
        found: dict[int, int] = {}
        for node, reply in replies.items():
            if isinstance(reply, str):
                raise FaqsError(f"a node could not say which client it is: {reply}")
            found[int(read_text(reply))] = node
        if sorted(found) != list(range(self._config.clients)):
            raise FaqsError(
                f"a federation of {self._config.clients} clients has the clients 0 to {self._config.clients - 1}, "
                f"got {sorted(found)}: start one node per client with its own partition-id"
            )
        self._nodes = found

    def start(self) -> Federation:
        """Set every client up; raises `FaqsError` with the reason when one cannot be."""
        ledger = Ledger()
        clients = range(self._config.clients)
        samples = self._set_up(clients, 0, ledger)
        for client, count in samples.items():
            if isinstance(count, str):
                raise FaqsError(f"client {client} cannot take part: {count}")
        decisions = [first_decision(self._assignment(client)) for client in clients]
        counts = [int(samples[client]) for client in clients]
        state = ServerState.start(self._space, self._config.seed, decisions, counts)
        return Federation(self._config, state, ledger)

    def run_round(self, federation: Federation) -> RoundReport:
        """One round, in place; raises `FaqsError` when no client sent a usable update."""
        state, number = federation.state, federation.state.round
        self._recover(federation)
        replies = self._exchange(federation, "train", "train", sorted(set(self._nodes) - federation.lost))
        updates, headers, refused = [], {}, dict.fromkeys(federation.lost, "could not be set up again")
        for client, reply in replies.items():
            if isinstance(reply, str):
                refused[client] = reply
                continue
            try:
                message = decode(reply, lengths=expected_lengths(state, self._space, client))
                decision = self._read_header(message.header, number, client)
            except WireError as error:
                refused[client] = str(error)
                continue
            cuts = shared_cuts(self._space, state.decisions[client])
            updates.append(Update(client, state.samples[client], cuts, message.tensors))
            headers[client] = message.header
            state.decisions[client] = decision
        if not updates:
            reasons = "; ".join(f"client {client}: {reason}" for client, reason in refused.items())
            raise FaqsError(f"a round needs one usable update, got none in round {number}: {reasons}")
        federation.lost = {client for client in refused if client not in headers}
        coverage = aggregate(state.weights, updates, self._config.server_learning_rate)
        state.round += 1
        weights = [update.samples for update in updates]
        losses = [_number(headers[update.client], "loss") for update in updates]
        return RoundReport(
            number,
            float(np.average(losses, weights=weights)),
            coverage,
            {client: _number(header, "accuracy") for client, header in headers.items()},
            {client: [str(c) for c in state.decisions[client]] for client in headers},
            refused,
        )

    def finish(self, federation: Federation) -> dict[int, float]:
        """Let every client personalise; returns each one's accuracy on its held-out share, or raises `FaqsError`."""
        self._recover(federation)
        replies = self._exchange(federation, "evaluate.final", "final", list(self._nodes))
        scores = {}
        for client, reply in replies.items():
            if isinstance(reply, str):
                raise FaqsError(f"client {client} could not personalise its network: {reply}")
            scores[client] = _number(read_header(reply), "accuracy")
        return scores

    def _assignment(self, client: int) -> Assignment:
        return Assignment(client, self._config, self._tables[client])

    def _read_header(self, header: Header, number: int, client: int) -> Architecture:
        if header.get("round") != number:
            raise WireError(f"an update belongs to round {number}, got {header.get('round')!r}")
        for name in ("loss", "accuracy"):
            _number(header, name)
        return read_decision(header, self._tables[client])

    def _recover(self, federation: Federation) -> None:
        """Start lost clients over from the seed."""
        if federation.lost:
            again = self._set_up(sorted(federation.lost), federation.state.round, federation.ledger)
            for client, count in again.items():
                if not isinstance(count, str):
                    federation.lost.discard(client)
                    forget_client(federation.state, self._space, self._config.seed, client)

    def _set_up(self, clients: Sequence[int], number: int, ledger: Ledger) -> dict[int, int | str]:
        contents = {self._nodes[client]: content_of("text", self._assignment(client).to_json()) for client in clients}
        replies = self._send("query.setup", number, contents, ledger, "setup")
        outcome: dict[int, int | str] = {}
        for client in clients:
            reply = replies[self._nodes[client]]
            outcome[client] = reply if isinstance(reply, str) else int(read_text(reply))
        return outcome

    def _exchange(
        self, federation: Federation, message_type: str, kind: Kind, clients: Sequence[int]
    ) -> dict[int, bytes | str]:
        """Send every client what it misses; returns its blob, or the reason why there is none."""
        state, step = federation.state, self._config.wire.relative_step_down
        blobs = {client: downlink(state, self._space, client, step) for client in clients}
        ideal = {self._nodes[client]: ideal_bytes(state, self._space, client) for client in clients}
        contents = {self._nodes[client]: content_of("blob", blob) for client, blob in blobs.items()}
        replies = self._send(message_type, state.round, contents, federation.ledger, kind, ideal)
        answers: dict[int, bytes | str] = {}
        for client in clients:
            reply = replies[self._nodes[client]]
            try:
                answers[client] = reply if isinstance(reply, str) else read_blob(reply)
            except WireError as error:
                answers[client] = str(error)
        return answers

    def _send(
        self,
        message_type: str,
        number: int,
        contents: Mapping[int, RecordDict],
        ledger: Ledger | None = None,
        kind: Kind = "setup",
        ideal: Mapping[int, float] | None = None,
    ) -> dict[int, RecordDict | str]:
        """Messages out, replies in, both entered in the ledger; a node without a usable reply gives its reason."""
        messages = [Message(content, node, message_type, group_id=str(number)) for node, content in contents.items()]
        replies = {
            reply.metadata.src_node_id: reply
            for reply in self._grid.send_and_receive(messages, timeout=REPLY_TIMEOUT_S)
        }
        clients = {node: client for client, node in self._nodes.items()}
        outcome: dict[int, RecordDict | str] = {}
        crossed: list[tuple[Message, Direction]] = []
        for message in messages:
            node = message.metadata.dst_node_id
            reply = replies.get(node)
            crossed.append((message, "down"))
            if reply is None:
                outcome[node] = f"no reply within {REPLY_TIMEOUT_S:.0f} s"
                continue
            crossed.append((reply, "up"))
            outcome[node] = reply.error.reason or "failed" if reply.has_error() else reply.content
        for message, direction in crossed if ledger is not None else ():
            assert ledger is not None
            node = message.metadata.dst_node_id if direction == "down" else message.metadata.src_node_id
            content = message.content if message.has_content() else RecordDict()
            size = sum(len(value) for record in content.config_records.values() for value in record.values()
                       if isinstance(value, str | bytes))  # fmt: skip
            expected = (ideal or {}).get(node, 0.0) if kind == "train" or direction == "down" else 0.0
            ledger.append(
                Entry(
                    number, clients[node], direction, kind, expected, size,
                    count_bytes(content), wire_bytes(message, direction), refused=message.has_error(),
                )
            )  # fmt: skip
        return outcome


def _number(header: Header, name: str) -> float:
    value = header.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f"a reply states its {name} as a finite number, got {value!r}")
    return float(value)


OnRound = Callable[[RoundReport, Federation], None]


def run_search(
    server: Server, federation: Federation | None, on_round: OnRound
) -> tuple[Federation, dict[int, float]]:
    """All rounds that are left, then personalisation. `on_round` sees every finished round (to show, to checkpoint)."""
    server.connect()
    if federation is None:
        federation = server.start()
    elif federation.state.round > federation.config.rounds:
        raise RunError(f"a run of {federation.config.rounds} rounds cannot be in round {federation.state.round}")
    while federation.state.round < federation.config.rounds:
        report = server.run_round(federation)
        on_round(report, federation)
    return federation, server.finish(federation)
