"""The server's loop over any Flower `Grid`: set-up, rounds, personalisation, with every byte entered in the ledger.

A client that fails, or whose message is refused, is left out of the round with its reason, and set up anew before the
next one; the round goes on as long as one update is usable. What the loop carries from round to round is a
`Federation`, a value that a checkpoint can hold.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from faqs.client import content_of, read_blob, read_text
from faqs.config import SearchConfig
from faqs.deltas import cut_lengths
from faqs.engine import count_bytes, wire_bytes
from faqs.errors import FaqsError, RunError, WireError
from faqs.ledger import Direction, Entry, Kind, Ledger
from faqs.members import read_architecture
from faqs.participant import Assignment, first_decision, read_scores, written_scores
from faqs.runs import RoundReport
from faqs.scoring import Scores
from faqs.strategy import ServerState, Update, aggregate, downlinks, forget_client, ideal_bytes
from faqs.supernet import shared_cuts
from faqs.wire import Header, decode
from hwcost import Architecture, LookupTable

REPLY_TIMEOUT_S = 3600.0

Parsed = TypeVar("Parsed")


@dataclass
class Federation:
    """State of a run on the server. `lost`: clients that must be set up again before they can be used."""

    state: ServerState
    ledger: Ledger = field(default_factory=Ledger)
    lost: set[int] = field(default_factory=set)
    reports: list[RoundReport] = field(default_factory=list)


@dataclass(frozen=True)
class _Trained:
    """A round's reply, validated."""

    update: Update
    decision: Architecture
    scores: Scores | None
    loss: float
    accuracy: float


class Server:
    """Talks to the clients of one federation over `grid`; `tables[k]` prices the device of client k."""

    def __init__(self, grid: Grid, config: SearchConfig, tables: Sequence[LookupTable]) -> None:
        self.config = config
        self._grid, self._tables = grid, tables
        self._space = tables[0].space
        self._nodes: dict[int, int] = {}

    def connect(self) -> None:
        """Ask every node for its client number; raises `FaqsError` unless each client is there once."""
        nodes = list(self._grid.get_node_ids())
        hello = [Message(content_of("text", ""), node, "query.hello", group_id="0") for node in nodes]
        found: dict[int, int] = {}
        for reply in self._grid.send_and_receive(hello, timeout=REPLY_TIMEOUT_S):
            if reply.has_error():
                raise FaqsError(f"a node could not say which client it is: {_reason(reply)}")
            found[_whole_number(reply.content)] = reply.metadata.src_node_id
        if sorted(found) != list(range(self.config.clients)):
            raise FaqsError(
                f"a federation of {self.config.clients} clients has the clients 0 to {self.config.clients - 1}, "
                f"got {sorted(found)}: start one node per client with its own partition-id"
            )
        self._nodes = found

    def start(self) -> Federation:
        """Set every client up; raises `FaqsError` with the reason when one cannot be."""
        ledger, clients = Ledger(), range(self.config.clients)
        samples: list[int] = []
        for client, count in self._set_up(clients, 0, ledger).items():
            if isinstance(count, str):
                raise FaqsError(f"client {client} cannot take part: {count}")
            samples.append(count)
        decisions = [first_decision(self._assignment(client)) for client in clients]
        state = ServerState.start(self._space, self.config.seed, decisions, samples)
        return Federation(state, ledger)

    def run_round(self, federation: Federation) -> None:
        """One round, in place, with its report appended; raises `FaqsError` when no client sent a usable update."""
        state, number = federation.state, federation.state.round
        self._recover(federation)
        paths = self._paths(state)
        present = {client: path for client, path in paths.items() if client not in federation.lost}
        refused = dict.fromkeys(federation.lost, "could not be set up again")
        trained: dict[int, _Trained] = {}
        replies = self._exchange(
            federation, "train", "train", present,
            lambda client, content: self._read_update(state, client, paths[client], content),
        )  # fmt: skip
        for client, reply in replies.items():
            if isinstance(reply, str):
                refused[client] = reply
            else:
                trained[client] = reply
        if not trained:
            reasons = "; ".join(f"client {client}: {reason}" for client, reason in refused.items())
            raise FaqsError(f"a round needs one usable update, got none in round {number}: {reasons}")
        coverage = aggregate(state, [reply.update for reply in trained.values()], self.config.server)
        for client, reply in trained.items():
            state.decisions[client] = reply.decision
        said = [(reply.scores, reply.update.samples) for reply in trained.values() if reply.scores is not None]
        mean = np.average([one for one, _ in said], axis=0, weights=[count for _, count in said]) if said else None
        state.scores = None if mean is None else written_scores(mean)
        federation.lost = set(refused)
        state.round += 1
        samples = [reply.update.samples for reply in trained.values()]
        federation.reports.append(
            RoundReport(
                number,
                float(np.average([reply.loss for reply in trained.values()], weights=samples)),
                coverage,
                {client: reply.accuracy for client, reply in trained.items()},
                {client: [str(choice) for choice in reply.decision] for client, reply in trained.items()},
                refused,
            )
        )

    def finish(self, federation: Federation) -> dict[int, float]:
        """Let every client personalise; returns each one's accuracy on its held-out share, or raises `FaqsError`."""
        self._recover(federation)

        def read(client: int, content: RecordDict) -> float:
            return _number(decode(read_blob(content), lengths={}).header, "accuracy")

        scores: dict[int, float] = {}
        replies = self._exchange(federation, "evaluate.final", "final", self._paths(federation.state), read)
        for client, reply in replies.items():
            if isinstance(reply, str):
                raise FaqsError(f"client {client} could not personalise its network: {reply}")
            scores[client] = reply
        return scores

    def node(self, client: int) -> int:
        """The node id of a client, once connected."""
        return self._nodes[client]

    def _paths(self, state: ServerState) -> dict[int, Architecture]:
        """Of every client that is connected, in the order of the nodes."""
        paths = state.paths(self.config.training.mask)
        return {client: paths[client] for client in self._nodes}

    def _assignment(self, client: int) -> Assignment:
        return Assignment(client, self.config, self._tables[client])

    def _read_update(self, state: ServerState, client: int, path: Architecture, content: RecordDict) -> _Trained:
        """Validate a round's reply; raises `WireError`."""
        cuts = shared_cuts(self._space, path)
        message = decode(read_blob(content), lengths=cut_lengths(state.weights, cuts))
        if message.header.get("round") != state.round:
            raise WireError(f"an update belongs to round {state.round}, got {message.header.get('round')!r}")
        decision = read_architecture(message.header.get("decision"), self._tables[client])
        scores = read_scores(message.header, self._tables[client]) if "scores" in message.header else None
        said = _number(message.header, "loss"), _number(message.header, "accuracy")
        update = Update(client, state.samples[client], cuts, message.tensors)
        return _Trained(update, decision, scores, *said)

    def _recover(self, federation: Federation) -> None:
        """Start lost clients over from the seed."""
        again = self._set_up(sorted(federation.lost), federation.state.round, federation.ledger)
        for client, count in again.items():
            if not isinstance(count, str):
                federation.lost.discard(client)
                forget_client(federation.state, self._space, self.config.seed, client)

    def _set_up(self, clients: Iterable[int], number: int, ledger: Ledger) -> dict[int, int | str]:
        """Send assignments; returns each client's number of training samples, or why it has none."""
        contents = {client: content_of("text", self._assignment(client).to_json()) for client in clients}
        return self._send("query.setup", "setup", number, contents, ledger, lambda _, content: _whole_number(content))

    def _exchange(
        self,
        federation: Federation,
        message_type: str,
        kind: Kind,
        paths: Mapping[int, Architecture],
        parse: Callable[[int, RecordDict], Parsed],
    ) -> dict[int, Parsed | str]:
        """Send every client what it misses on its path; returns its parsed reply, or the reason why there is none."""
        state = federation.state
        blobs = downlinks(state, self._space, paths, self.config)
        contents = {client: content_of("blob", blob) for client, blob in blobs.items()}
        ideal = {client: ideal_bytes(state, self._space, path) for client, path in paths.items()}
        return self._send(message_type, kind, state.round, contents, federation.ledger, parse, ideal)

    def _send(
        self,
        message_type: str,
        kind: Kind,
        number: int,
        contents: Mapping[int, RecordDict],
        ledger: Ledger,
        parse: Callable[[int, RecordDict], Parsed],
        ideal: Mapping[int, float] | None = None,
    ) -> dict[int, Parsed | str]:
        """One message per client out, its reply in, both entered in the ledger; `parse` refuses by `WireError`."""
        sent = {
            client: Message(content, self._nodes[client], message_type, group_id=str(number))
            for client, content in contents.items()
        }
        replies = {
            reply.metadata.src_node_id: reply
            for reply in self._grid.send_and_receive(list(sent.values()), timeout=REPLY_TIMEOUT_S)
        }
        outcome: dict[int, Parsed | str] = {}
        for client, message in sent.items():
            weights = (ideal or {}).get(client, 0.0)
            ledger.append(_entry(message, number, client, "down", kind, weights))
            reply = replies.get(self._nodes[client])
            if reply is None:
                outcome[client] = f"no reply within {REPLY_TIMEOUT_S:.0f} s"
                continue
            if reply.has_error():
                outcome[client] = _reason(reply)
            else:
                try:
                    outcome[client] = parse(client, reply.content)
                except WireError as error:
                    outcome[client] = str(error)
            refused = isinstance(outcome[client], str)
            ledger.append(
                _entry(reply, number, client, "up", kind, weights if kind == "train" else 0.0, refused=refused)
            )
        return outcome


def _entry(
    message: Message, number: int, client: int, direction: Direction, kind: Kind, ideal: float, refused: bool = False
) -> Entry:
    content = message.content if message.has_content() else RecordDict()
    values = (value for record in content.config_records.values() for value in record.values())
    payload = sum(len(value) for value in values if isinstance(value, str | bytes))
    flower, wire = count_bytes(content), wire_bytes(message, direction)
    return Entry(number, client, direction, kind, ideal, payload, flower, wire, refused)


def _reason(reply: Message) -> str:
    """What a client says of its failure, without the type that Flower wraps around it."""
    text = reply.error.reason or "failed without a reason"
    wrapped = re.fullmatch(r"<class '[\w.]+'>:<'(.*)'>", text, re.DOTALL)
    return wrapped[1] if wrapped else text


def _number(header: Header, name: str) -> float:
    value = header.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f"a reply states its {name} as a finite number, got {value!r}")
    return float(value)


def _whole_number(content: RecordDict) -> int:
    text = read_text(content)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise WireError(f"a set-up reply is a whole number, got {text[:40]!r}")
    return int(text)


def run_rounds(
    server: Server, federation: Federation | None, on_round: Callable[[Federation], None]
) -> tuple[Federation, dict[int, float]]:
    """All rounds that are left, then personalisation. `on_round` sees the state after every round (to checkpoint it).

    Returns the end state and each client's accuracy; raises `FaqsError`.
    """
    server.connect()
    if federation is None:
        federation = server.start()
    elif federation.state.round > server.config.rounds:
        raise RunError(f"a run of {server.config.rounds} rounds cannot be in round {federation.state.round}")
    while federation.state.round < server.config.rounds:
        server.run_round(federation)
        on_round(federation)
    return federation, server.finish(federation)
