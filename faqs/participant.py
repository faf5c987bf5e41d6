"""One client of the federation, without any networking: its state, and what it does with each message.

The state is a value that can be written as bytes after every message and read again in another process: everything
random is drawn from (seed, client, round), so that a client that was killed continues to the same bits.
"""

import itertools
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from faqs.config import SearchConfig, config_from_json
from faqs.data import ClientData, Dataset, client_data, load_dataset
from faqs.deltas import Arrays, add, code, cut_lengths, digest, shared_arrays, take
from faqs.errors import RunError, WireError
from faqs.preference import Preference, cost_penalties, over_budget, project
from faqs.scoring import Scores, logit_scores, loss_scores, norm_scores, with_hysteresis
from faqs.supernet import (
    SuperNet,
    decide,
    local_tensors,
    new_supernet,
    recalibrate,
    shared_cuts,
    shared_tensors,
)
from faqs.train import (
    Hyperparameters,
    accuracy,
    batches,
    fine_tune,
    initial_logits,
    keep_freed_memory,
    train_gates,
    train_weights,
)
from faqs.wire import Header, WireMessage, decode, encode, read_header
from hwcost import Architecture, BlockChoice, LookupTable, pack, unpack

PRIOR_SHARE = 0.25
"""How much the slight preference for more weights and bits counts beside measured losses: it decides between choices
that these do not tell apart, such as 4 and 8 bits, or 2 bits on a good day."""


@dataclass(frozen=True)
class Assignment:
    """What a client is told once: who it is, the run's configuration, and the cost table of its device."""

    client: int
    config: SearchConfig
    table: LookupTable

    @cached_property
    def preference(self) -> Preference:
        return self.config.client_config(self.client).preference

    @cached_property
    def settings(self) -> Hyperparameters:
        fields = self.config.training.model_dump(exclude={"rule", "scored_images", "hysteresis", "personal_epochs"})
        return Hyperparameters(**fields)

    def data(self) -> ClientData:
        """Raises `DataError`."""
        config = self.config
        dataset = load_dataset(config.data)
        return client_data(dataset, self.client, config.clients, config.alpha, config.seed, config.held_out_share)

    def to_json(self) -> str:
        return json.dumps(
            {"client": self.client, "config": self.config.model_dump_json(), "table": self.table.to_json()}
        )

    @classmethod
    def from_json(cls, text: str) -> "Assignment":
        """Raises `RunError` and whatever the parts raise when they are not valid."""
        try:
            fields = json.loads(text)
            client, config, table = fields["client"], fields["config"], fields["table"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"an assignment has client, config and table, got a document without: {error}") from None
        return cls(int(client), config_from_json(config, "assignment"), LookupTable.from_json(table))


_read_assignment = lru_cache(maxsize=64)(Assignment.from_json)


@dataclass
class Participant:
    """One client's state. `logits`: float32 [blocks, choices], of gates where these are trained; `scores`: float64 of
    that shape, by which the next decision is taken; `decision` is the architecture of the next round;
    `personal` the decided network's state after `finalise`, else empty."""

    assignment: Assignment
    reference: Arrays
    residual: Arrays
    local: Arrays
    logits: torch.Tensor
    scores: Scores
    decision: Architecture
    personal: Arrays = field(default_factory=dict)

    @classmethod
    def start(cls, assignment: Assignment) -> "Participant":
        """A client before its first round, from the common seed."""
        config, table = assignment.config, assignment.table
        supernet = new_supernet(table.space, config.seed)
        reference = shared_arrays(supernet)
        residual = {name: np.zeros_like(value) for name, value in reference.items()}
        local = {name: value.detach().numpy().copy() for name, value in local_tensors(supernet).items()}
        logits = initial_logits(table.space)
        scores = logit_scores(logits, table.space)
        return cls(assignment, reference, residual, local, logits, scores, first_decision(assignment))

    def train(self, round_number: int, blob: bytes) -> bytes:
        """One round: take the server's difference, train, send back the coded difference of the active coordinates.

        Raises `WireError` when the blob is damaged or the references differ.
        """
        config, table, settings = self.assignment.config, self.assignment.table, self.assignment.settings
        self._receive(blob, round_number)
        cuts = shared_cuts(table.space, self.decision)
        supernet, data, draw = self._supernet(), self.assignment.data(), self._generator(round_number)
        rate = settings.learning_rate * 0.5 * (1 + np.cos(np.pi * round_number / config.rounds))
        loss = train_weights(
            supernet, self.decision, data.train, settings, rate, round_number < config.warmup, draw("weights")
        )
        trained = take(shared_arrays(supernet), cuts)
        wanted = {
            name: trained[name] - known + self.residual[name][cuts[name]].reshape(-1)
            for name, known in take(self.reference, cuts).items()
        }
        tensors = code(wanted, config.wire.relative_step_up)
        for name, residual in self.residual.items():
            residual[...] = 0.0  # what left the mask is dropped
            if name in cuts:
                left = wanted[name] - tensors[name].dequantise()
                residual[cuts[name]] = left.reshape(residual[cuts[name]].shape)
        if config.training.rule == "logits" and (
            1 <= round_number < config.search_end or round_number == config.warmup - 1
        ):
            self.logits = train_gates(
                supernet, self.logits, data.train, table, self.assignment.preference, settings, draw("gates")
            )
        if config.warmup - 1 <= round_number < config.search_end:
            self._score(supernet, data.train, draw("scores"))
            self._decide(standing=self.decision if round_number >= config.warmup else None)
        self.local = {name: value.detach().numpy().copy() for name, value in local_tensors(supernet).items()}
        judged = decide(supernet, self.decision)
        recalibrate(judged, (images for images, _ in batches(data.train, 64, draw("statistics"))), judged)
        header: Header = {
            "round": round_number,
            "samples": len(data.train.labels),
            "decision": list(table.indices(self.decision)),
            "loss": float(np.float32(loss)),
            "accuracy": accuracy(judged, data.held_out),
        }
        return encode(WireMessage(header, tensors))

    def finalise(self, round_number: int, blob: bytes) -> bytes:
        """Take the last difference, cut the decided network out, personalise and keep it; only its score is sent."""
        self._receive(blob, round_number)
        # Over its budget here, its decisions never arrived: it still has the full network of the warm-up.
        if over_budget(self.assignment.table.cost(self.decision), self.assignment.preference.budgets):
            self._decide(standing=None)
        network = decide(self._supernet(), self.decision)
        data, draw, training = self.assignment.data(), self._generator(round_number), self.assignment.config.training
        fine_tune(network, data.train, self.assignment.settings, training.personal_epochs, draw("personal"))
        self.personal = {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}
        header: Header = {
            "round": round_number,
            "samples": len(data.train.labels),
            "decision": list(self.assignment.table.indices(self.decision)),
            "accuracy": accuracy(network, data.held_out),
        }
        return encode(WireMessage(header, {}))

    def _score(self, supernet: SuperNet, data: Dataset, generator: torch.Generator) -> None:
        """Judge every choice of every block by the configured rule."""
        training = self.assignment.config.training
        if training.rule == "logits":
            self.scores = logit_scores(self.logits, supernet.space)
        elif training.rule == "norms":
            self.scores = norm_scores(supernet)
        else:
            steps = math.ceil(training.scored_images / 64)
            penalties = cost_penalties(self.assignment.table, self.assignment.preference)
            found = loss_scores(supernet, itertools.islice(batches(data, 64, generator), steps), penalties)
            self.scores = found + PRIOR_SHARE * logit_scores(initial_logits(supernet.space), supernet.space)

    def _decide(self, standing: Architecture | None) -> None:
        """Take the best-scoring architecture within the budgets; raises `BudgetError` if there is none."""
        table, hysteresis = self.assignment.table, self.assignment.config.training.hysteresis
        scores = with_hysteresis(self.scores, standing, table.space, hysteresis)
        self.decision = project(scores, table, self.assignment.preference, str(self.assignment.client))

    def _receive(self, blob: bytes, round_number: int) -> None:
        decision = read_decision(read_header(blob), self.assignment.table)  # the server's word: it knows what it got
        cuts = shared_cuts(self.assignment.table.space, decision)
        message = decode(blob, lengths=cut_lengths(self.reference, cuts))
        updated = {name: value.copy() for name, value in self.reference.items()}
        add(updated, cuts, message.tensors)
        if message.header.get("round") != round_number or message.header.get("digest") != digest(updated):
            raise WireError(
                f"client {self.assignment.client} and the server agree on what the client knows, got another digest "
                f"in round {round_number}: the client starts over from the seed"
            )
        self.reference, self.decision = updated, decision

    def _supernet(self) -> SuperNet:
        keep_freed_memory()
        torch.set_num_threads(1)  # sums in one order: the same bits on every run
        supernet = new_supernet(self.assignment.table.space, self.assignment.config.seed)
        with torch.no_grad():
            for name, parameter in shared_tensors(supernet).items():
                parameter.copy_(torch.from_numpy(self.reference[name]))
        supernet.load_state_dict({n: torch.from_numpy(v) for n, v in self.local.items()}, strict=False)
        return supernet

    def _generator(self, round_number: int) -> Callable[[str], torch.Generator]:
        def draw(purpose: str) -> torch.Generator:
            entropy = [self.assignment.config.seed, self.assignment.client, round_number, zlib.crc32(purpose.encode())]
            state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
            return torch.Generator().manual_seed(int(state >> 1))

        return draw

    def to_bytes(self) -> bytes:
        """The state as one safetensors document."""
        arrays: dict[str, NDArray[Any]] = {"logits": self.logits.numpy(), "scores": self.scores}
        for group in ("reference", "residual", "local", "personal"):
            arrays.update({f"{group}/{name}": value for name, value in getattr(self, group).items()})
        head = {"assignment": self.assignment.to_json(), "decision": [str(choice) for choice in self.decision]}
        return pack(json.dumps(head), arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Participant":
        """Raises `RunError` when the document is damaged."""
        try:
            text, arrays = unpack(data)
            head = json.loads(text)
            assignment = _read_assignment(head["assignment"])
            decision = tuple(map(BlockChoice.parse, head["decision"]))
            assignment.table.space.validate(decision)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"a client's state cannot be read ({error}): resume from an older checkpoint") from None
        groups: dict[str, Any] = {name: {} for name in ("reference", "residual", "local", "personal")}
        for name, value in arrays.items():
            group, _, key = name.partition("/")
            if key:
                groups[group][key] = value.copy()
        order = list(shared_cuts(assignment.table.space, assignment.table.space.largest))
        for group in ("reference", "residual"):
            groups[group] = {name: groups[group][name] for name in order}
        logits, scores = torch.from_numpy(arrays["logits"].copy()), arrays["scores"].copy()
        return cls(assignment, logits=logits, scores=scores, decision=decision, **groups)


def read_decision(header: Header, table: LookupTable) -> Architecture:
    """The architecture that a header names by indices into the choices; raises `WireError` where it is not legal."""
    indices = header.get("decision")
    blocks, choices = table.legal.shape
    if not isinstance(indices, list) or len(indices) != blocks:
        raise WireError(f"a message names one choice for each of {blocks} blocks, got {indices!r}")
    for block, index in enumerate(indices):
        if type(index) is not int or not 0 <= index < choices or not table.legal[block, index]:
            raise WireError(f"block {block} takes a legal choice by its index below {choices}, got {index!r}")
    return tuple(table.space.choices[index] for index in indices if isinstance(index, int))


def first_decision(assignment: Assignment) -> Architecture:
    """The full network during a warm-up; without one, the largest network within the budgets."""
    space = assignment.table.space
    if assignment.config.warmup > 0:
        return space.largest
    return project(
        logit_scores(initial_logits(space), space), assignment.table, assignment.preference, str(assignment.client)
    )
