"""The server's side of the numbers: what it sends to whom, and how masked updates are averaged per element.

A mask is what a path through the supernet uses: a client's own decision, or the hull of all clients' decisions.
W_j += eta * sum_k a_k m_kj d_kj / sum_k a_k m_kj with a_k the samples of client k and m_kj its mask (our design): a
coordinate that nobody sent stays as it was, and how many were trained by anyone is reported as coverage. The mean can
be taken as the gradient of a server optimiser instead.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from faqs.config import Mask, SearchConfig, ServerConfig
from faqs.deltas import Arrays, add, code, cut_lengths, digest, shared_arrays, take
from faqs.members import MOST_MEMBERS, Members, path_of, written_architecture, written_members
from faqs.supernet import Cut, new_supernet, shared_cuts
from faqs.wire import Header, JsonValue, Tensor, WireMessage, encode
from hwcost import Architecture, SearchSpace

_SECOND, _ADAPTIVITY = np.float32(0.99), np.float32(1e-3)
"""FedAdam's beta_2 and tau."""


@dataclass
class ServerState:
    """All that the server carries from round to round. `references[k]`, `decisions[k]`, `samples[k]` are client k's,
    `scores` the mean of what the clients said of their choices last, as it is written in a message; `first`, `second`:
    moments of the server's optimiser, by weights, where it has any."""

    weights: Arrays
    references: list[Arrays]
    decisions: list[Architecture]
    samples: list[int]
    round: int = 0
    scores: list[JsonValue] | None = None
    first: Arrays = field(default_factory=dict)
    second: Arrays = field(default_factory=dict)

    @classmethod
    def start(
        cls, space: SearchSpace, seed: int, decisions: Sequence[Architecture], samples: Sequence[int]
    ) -> "ServerState":
        """Weights from the seed, which every client makes for itself."""
        weights = shared_arrays(new_supernet(space, seed))
        references = [{name: value.copy() for name, value in weights.items()} for _ in decisions]
        return cls(weights, references, list(decisions), list(samples))

    @property
    def members(self) -> Members:
        """The networks that clients have decided for and how many have: at most `MOST_MEMBERS`, the most frequent."""
        return Counter(self.decisions).most_common(MOST_MEMBERS)

    def paths(self, mask: Mask) -> list[Architecture]:
        """The networks whose weights each client receives and sends in this round."""
        members = self.members
        return [path_of(mask, decision, members) for decision in self.decisions]


@dataclass(frozen=True)
class Update:
    """What one client sent in a round, validated: how far it wants the active coordinates moved."""

    client: int
    samples: int
    cuts: Mapping[str, Cut]
    tensors: Mapping[str, Tensor] = field(repr=False)


def downlinks(
    state: ServerState, space: SearchSpace, paths: Mapping[int, Architecture], config: SearchConfig
) -> dict[int, bytes]:
    """The blobs that bring clients up to date on their paths; moves the server's copies of their references."""
    members = state.members if config.training.mask == "hull" else []
    return {client: _downlink(state, space, client, path, members, config) for client, path in paths.items()}


def _downlink(
    state: ServerState, space: SearchSpace, client: int, path: Architecture, members: Members, config: SearchConfig
) -> bytes:
    cuts = shared_cuts(space, path)
    reference = state.references[client]
    behind = {name: now - known for (name, now), known in zip(
        take(state.weights, cuts).items(), take(reference, cuts).values(), strict=True)}  # fmt: skip
    tensors = code(behind, cuts, config.wire.relative_step_down, config.wire.vector_step)
    add(reference, cuts, tensors)
    decision = written_architecture(state.decisions[client], space)
    header: Header = {"round": state.round, "digest": digest(reference), "decision": decision}
    if members:
        header["members"] = written_members(members, space)
    if state.scores is not None:
        header["scores"] = state.scores
    return encode(WireMessage(header, tensors))


def forget_client(state: ServerState, space: SearchSpace, seed: int, client: int) -> None:
    """Start a client over from the common seed: after it lost its state, or when the two references differ."""
    state.references[client] = shared_arrays(new_supernet(space, seed))


def ideal_bytes(state: ServerState, space: SearchSpace, path: Architecture) -> float:
    """L0: active weights times their bits / 8; stem and classifier count 8 bits, batch norm's scales and shifts 32."""
    lengths = cut_lengths(state.weights, shared_cuts(space, path))
    bits = dict.fromkeys(lengths, 8)
    for name in lengths:
        if ".norm." in name:
            bits[name] = 32
        elif name.startswith("blocks."):
            bits[name] = path[int(name.split(".")[1])].weight_bits
    return sum(lengths[name] * bits[name] for name in lengths) / 8


def aggregate(state: ServerState, updates: Sequence[Update], server: ServerConfig) -> float:
    """Move the weights by the updates, in place; returns the share of coordinates that somebody trained.

    With D the mean of what was sent, per coordinate and weighted by samples: `plain` adds eta D; `momentum` (FedAvgM,
    arXiv 1909.06335) v = beta v + D and adds eta v; `adam` (FedAdam, arXiv 2003.00295) m = beta m + (1 - beta) D,
    s = 0.99 s + 0.01 D^2 and adds eta m / (sqrt(s) + 0.001). What nobody sent stays as it is, its moments too.
    """
    covered = total = 0
    for name, value in state.weights.items():
        moved, mass = np.zeros_like(value), np.zeros_like(value)
        for update in updates:
            if name in update.cuts:
                cut = update.cuts[name]
                view = moved[cut]
                view += update.samples * update.tensors[name].dequantise().reshape(view.shape)
                mass[cut] += update.samples
        touched = mass > 0
        mean = moved[touched] / mass[touched]
        value[touched] += np.float32(server.learning_rate) * _step(state, name, touched, mean, server)
        covered += int(touched.sum())
        total += value.size
    return covered / total


def _step(
    state: ServerState, name: str, touched: NDArray[np.bool_], mean: NDArray[np.float32], server: ServerConfig
) -> NDArray[np.float32]:
    """The direction of the touched coordinates of one tensor; moves their moments."""
    if server.optimiser == "plain":
        return mean
    share = np.float32(1.0 if server.optimiser == "momentum" else 1.0 - server.momentum)
    first = state.first.setdefault(name, np.zeros_like(state.weights[name]))
    first[touched] = np.float32(server.momentum) * first[touched] + share * mean
    if server.optimiser == "momentum":
        return first[touched]
    second = state.second.setdefault(name, np.zeros_like(state.weights[name]))
    second[touched] = _SECOND * second[touched] + (1 - _SECOND) * np.square(mean)
    return np.asarray(first[touched] / (np.sqrt(second[touched]) + _ADAPTIVITY), np.float32)
