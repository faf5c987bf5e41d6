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
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from faqs.config import SearchConfig, config_from_json
from faqs.data import ClientData, Dataset, client_data, load_dataset
from faqs.deltas import (
    Arrays,
    add,
    code,
    cut_lengths,
    digest,
    shared_arrays,
    take,
    zeros_like,
)
from faqs.errors import RunError, WireError
from faqs.members import Members, drawn, path_of, read_architecture, read_members, written_architecture
from faqs.pareto import Pareto
from faqs.preference import Preference, changed_costs, over_budget, project
from faqs.scoring import Scores, in_spreads, logit_scores, loss_scores, norm_scores, random_scores, with_hysteresis
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
    Step,
    accuracy,
    batches,
    expected_costs,
    fine_tune,
    initial_logits,
    keep_freed_memory,
    random_architecture,
    train_gates,
    train_weights,
)
from faqs.wire import Header, JsonValue, WireMessage, decode, encode, read_header
from hwcost import Architecture, BlockChoice, CostLayer, LookupTable, pack, unpack

PRIOR_SHARE = 0.25
"""How much the slight preference for more weights and bits counts beside measured losses: it decides between choices
that these do not tell apart, such as 4 and 8 bits, or 2 bits on a good day."""


_SHARED = ("reference", "residual")
"""A client's arrays of the shared weights' shapes."""


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
        return Hyperparameters.of(self.config.training.model_dump())

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
    """One client's state.

    `reference`: the shared weights as the client knows them; `residual`: what its messages have not been able to say.
    `logits`: float32 [blocks, choices], of gates where these are trained; `scores`: float64 of that shape, the client's
    own, and `common` the federation's mean in spreads, once there are any; `multipliers` those of its budgets;
    `decision` is the architecture of the next round; `personal` the decided network's state after `finalise`, else
    empty.
    """

    assignment: Assignment
    reference: Arrays
    residual: Arrays
    local: Arrays
    logits: torch.Tensor
    decision: Architecture
    scores: Scores | None = None
    common: Scores | None = None
    multipliers: dict[str, float] = field(default_factory=dict)
    personal: Arrays = field(default_factory=dict)

    @classmethod
    def start(cls, assignment: Assignment) -> "Participant":
        """A client before its first round, from the common seed."""
        config, table = assignment.config, assignment.table
        supernet = new_supernet(table.space, config.seed)
        reference = shared_arrays(supernet)
        local = {name: value.detach().numpy().copy() for name, value in local_tensors(supernet).items()}
        logits = initial_logits(table.space)
        return cls(assignment, reference, zeros_like(reference), local, logits, first_decision(assignment))

    def train(self, round_number: int, blob: bytes) -> bytes:
        """One round: take the server's difference, train, send back the coded difference of the active coordinates.

        Raises `WireError` when the blob is damaged or the references differ, `RunError` when training diverged.
        """
        config, table, settings = self.assignment.config, self.assignment.table, self.assignment.settings
        path, members = self._receive(blob, round_number)
        cuts = shared_cuts(table.space, path)
        supernet, data, draw = self._supernet(), self.assignment.data(), self._generator(round_number)
        rate = settings.learning_rate * 0.5 * (1 + np.cos(np.pi * round_number / config.rounds))
        if all(self.decision != architecture for architecture, _ in members):
            members = [*members, (self.decision, 1)]
        together = config.training.mask == "hull" and round_number >= config.warmup
        step = partial(self._step, path, members if together else [])
        loss = train_weights(supernet, step, data.train, settings, rate, draw("weights"))
        if not math.isfinite(loss):
            raise RunError(
                f"training keeps the loss a finite number, got {loss} in round {round_number}: lower [training] "
                f"learning_rate (it is {settings.learning_rate:g}), or give client {self.assignment.client} more images"
            )
        trained = take(shared_arrays(supernet), cuts)
        wanted = {
            name: trained[name] - known + self.residual[name][cuts[name]].reshape(-1)
            for name, known in take(self.reference, cuts).items()
        }
        tensors = code(wanted, cuts, config.wire.relative_step_up, config.wire.vector_step)
        for name, residual in self.residual.items():
            residual[...] = 0.0  # what left the mask is dropped
            if name in cuts:
                left = wanted[name] - tensors[name].dequantise()
                residual[cuts[name]] = left.reshape(residual[cuts[name]].shape)
        if config.trains_gates(round_number):
            costs, pareto = CostLayer(table), self._pareto()
            self.logits = train_gates(supernet, self.logits, data.train, costs, pareto, settings, draw("gates"))
            reached = {metric: float(cost) for metric, cost in expected_costs(self.logits, costs).items()}
            self.multipliers = dict(pareto.raised(reached).multipliers)
        told: Header = {}
        late = round_number >= config.warmup and self.decision == table.space.largest
        decides = config.decides(round_number) or late
        if config.scores(round_number) or (decides and self.scores is None):
            self.scores = self._score(supernet, data.train, draw("scores"))
            told["scores"] = written_scores(in_spreads(self.scores, table.space)[0])
        if decides:
            self._decide(standing=self.decision if round_number >= config.warmup and not late else None)
        self.local = {name: value.detach().numpy().copy() for name, value in local_tensors(supernet).items()}
        judged = decide(supernet, self.decision)
        recalibrate(judged, (images for images, _ in batches(data.train, 64, draw("statistics"))), judged)
        header: Header = {
            "round": round_number,
            "samples": len(data.train.labels),
            "decision": written_architecture(self.decision, table.space),
            "loss": float(np.float32(loss)),
            "accuracy": accuracy(judged, data.held_out),
        }
        return encode(WireMessage(header | told, tensors))

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
            "decision": written_architecture(self.decision, self.assignment.table.space),
            "accuracy": accuracy(network, data.held_out),
        }
        return encode(WireMessage(header, {}))

    def _step(self, path: Architecture, members: Members, generator: torch.Generator) -> Step:
        """Draw what a step trains: members of the federation, or the path and now and then what is inside it."""
        space, settings = self.assignment.table.space, self.assignment.settings

        def chance(share: float) -> bool:
            return float(torch.rand(1, generator=generator)) < share

        if not members:
            explores = chance(settings.explore_share)
            return Step(path, [random_architecture(space, generator, within=path)] if explores else [])
        first = path if chance(settings.hull_share) else None
        return Step(first, drawn(members, settings.members_per_step - (first is not None), generator))

    def _score(self, supernet: SuperNet, data: Dataset, generator: torch.Generator) -> Scores:
        """What the configured rule says of every choice of every block."""
        training = self.assignment.config.training
        if training.rule == "logits":
            return logit_scores(self.logits, supernet.space)
        if training.rule == "norms":
            return norm_scores(supernet)
        if training.rule == "random":
            return random_scores(supernet.space, generator)
        steps = math.ceil(training.scored_images / 64)
        return loss_scores(supernet, itertools.islice(batches(data, 64, generator), steps))

    def _decide(self, standing: Architecture | None) -> None:
        """Take the best-scoring architecture within the budgets, by the client's own scores and the federation's mean;
        raises `BudgetError` if there is none."""
        table, training = self.assignment.table, self.assignment.config.training
        space, client = table.space, str(self.assignment.client)
        prior, _ = in_spreads(logit_scores(initial_logits(space), space), space)
        if self.scores is None:
            scores = prior
        else:
            scores, spread = in_spreads(self.scores, space)
            if self.common is not None:
                scores = (1 - training.common_share) * scores + training.common_share * self.common
            if training.rule == "losses":  # gates are trained on costs and losses together; norms know no loss
                scores = self._with_costs(spread * scores) / spread
            scores = scores + PRIOR_SHARE * prior
        scores = with_hysteresis(scores, standing, space, training.hysteresis)
        self.decision = project(scores, table, self.assignment.preference, client)

    def _pareto(self) -> Pareto:
        form = self.assignment.config.training.pareto
        return Pareto.of(form, self.assignment.preference, self.assignment.table, self.multipliers)

    def _with_costs(self, scores: Scores) -> Scores:
        """Minus the Pareto function of every single change of the largest network, given what it does to the loss:
        minus `scores`, in nats, of which only differences within a block count."""
        table, pareto = self.assignment.table, self._pareto()
        if self.scores is None or not pareto.asks:
            return scores
        largest = [table.space.columns[choice] for choice in table.space.largest]
        rows = np.arange(len(largest))
        losses = scores[rows, largest][:, None] - scores - self.scores[rows, largest][:, None]
        costs = {metric: torch.from_numpy(values) for metric, values in changed_costs(table).items()}
        return np.where(table.legal, -pareto(torch.from_numpy(losses), costs).numpy(), 0.0)

    def _receive(self, blob: bytes, round_number: int) -> tuple[Architecture, Members]:
        """Take a message; returns the path whose weights it brings, and the members where it names them."""
        table, mask, header = self.assignment.table, self.assignment.config.training.mask, read_header(blob)
        decision = read_architecture(header.get("decision"), table)  # the server's word: it knows what it got
        members = read_members(header, table) if mask == "hull" else []
        path = path_of(mask, decision, members)
        cuts = shared_cuts(table.space, path)
        message = decode(blob, lengths=cut_lengths(self.reference, cuts))
        updated = {name: value.copy() for name, value in self.reference.items()}
        add(updated, cuts, message.tensors)
        if message.header.get("round") != round_number or message.header.get("digest") != digest(updated):
            raise WireError(
                f"client {self.assignment.client} and the server agree on what the client knows, got another digest "
                f"in round {round_number}: the client starts over from the seed"
            )
        self.reference, self.decision = updated, decision
        if "scores" in message.header:
            self.common = read_scores(message.header, self.assignment.table)
        return path, members

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
        arrays: dict[str, NDArray[Any]] = {"logits": self.logits.numpy()}
        said = (("scores", self.scores), ("common", self.common))
        arrays |= {name: value for name, value in said if value is not None}
        for group in (*_SHARED, "local", "personal"):
            arrays.update({f"{group}/{name}": value for name, value in getattr(self, group).items()})
        decision = [str(choice) for choice in self.decision]
        head = {"assignment": self.assignment.to_json(), "decision": decision, "multipliers": self.multipliers}
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
        groups: dict[str, Any] = {name: {} for name in (*_SHARED, "local", "personal")}
        for name, value in arrays.items():
            group, _, key = name.partition("/")
            if key:
                groups[group][key] = value.copy()
        order = list(shared_cuts(assignment.table.space, assignment.table.space.largest))
        for group in _SHARED:
            groups[group] = {name: groups[group][name] for name in order}
        scores, common = (arrays[name].copy() if name in arrays else None for name in ("scores", "common"))
        logits = torch.from_numpy(arrays["logits"].copy())
        multipliers = {str(name): float(value) for name, value in head["multipliers"].items()}
        return cls(
            assignment,
            logits=logits,
            decision=decision,
            scores=scores,
            common=common,
            multipliers=multipliers,
            **groups,
        )


def written_scores(scores: Scores) -> list[JsonValue]:
    """Scores as whole numbers, sixteenths of their spread up to 8 spreads: a row of choices for each block."""
    rows: list[JsonValue] = np.clip(np.round(16 * scores), -128, 128).astype(int).tolist()
    return rows


def read_scores(header: Header, table: LookupTable) -> Scores:
    """The scores [blocks, choices] that a header holds; raises `WireError`."""
    rows, (blocks, choices) = header.get("scores"), table.legal.shape
    if not isinstance(rows, list) or len(rows) != blocks:
        raise WireError(f"scores are a row for each of {blocks} blocks, got {rows!r:.80}")
    for row in rows:
        whole = isinstance(row, list) and all(type(value) is int and -128 <= value <= 128 for value in row)
        if not whole or not isinstance(row, list) or len(row) != choices:
            raise WireError(f"a row of scores has {choices} whole numbers within 128, got {row!r:.80}")
    return np.array(rows, dtype=np.float64) / 16


def first_decision(assignment: Assignment) -> Architecture:
    """The full network during a warm-up; without one, the largest network within the budgets."""
    space = assignment.table.space
    if assignment.config.warmup > 0:
        return space.largest
    return project(
        logit_scores(initial_logits(space), space), assignment.table, assignment.preference, str(assignment.client)
    )
