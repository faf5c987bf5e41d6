"""The baselines as real federations: Flower's own FedAvg over a ClientApp, every message through the in-process Grid.

A: the fixed network in float, every weight and batch-norm statistic sent and averaged. AM: the same, with momentum on
the server (FedAvgM, arXiv 1909.06335), for weights only. A2: A as 8-bit differences with error feedback both ways. B:
the multi-path network, its alphas sent and averaged too. A network of another arm's architecture is trained like A's.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

import faqs.engine  # noqa: F401 - sets Flower's environment before Flower is imported
from faqs.data import Dataset, load_dataset
from faqs.engine import InProcessGrid, Traffic
from faqs.ledger import Entry, Ledger
from faqs.train import augmented, batches
from federations.codec import Arrays, decode, feed_back
from federations.judge import Found, descend, hits, judge, with_statistics
from federations.networks import FloatNet, MultiPathNet
from federations.regime import Place, Regime, generator
from hwcost import Architecture, BlockChoice, SearchSpace, pack, unpack, write_atomically

LEAST_VARIANCE: Final = 1e-5
"""Of a batch norm: a quantised variance may have been rounded to zero or below."""

MOMENTUM: Final = 0.7
"""Of the server of arm AM: that of the search's."""

app = ClientApp()


@dataclass(frozen=True)
class Task:
    """One arm with one seed; `architecture`: of the network, empty for the multi-path one."""

    arm: str
    regime: Regime
    seed: int
    place: Place
    space: SearchSpace
    architecture: Architecture = ()

    @property
    def quantised(self) -> bool:
        return self.arm == "A2"

    def network(self) -> FloatNet | MultiPathNet:
        """Before the first round, from the seed alone."""
        torch.set_num_threads(1)  # sums in one order: the same bits on every run
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return FloatNet(self.space, self.architecture) if self.architecture else MultiPathNet(self.space)

    def to_json(self) -> str:
        return json.dumps(
            {
                "arm": self.arm,
                "regime": self.regime.to_json(),
                "seed": self.seed,
                "place": [str(self.place.train), str(self.place.test)],
                "image": self.space.image,
                "classes": self.space.classes,
                "architecture": [str(choice) for choice in self.architecture],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Task":
        fields = json.loads(text)
        regime, image = Regime.from_json(fields["regime"]), fields["image"]
        return cls(
            fields["arm"],
            regime,
            fields["seed"],
            Place(*map(Path, fields["place"])),
            regime.space((image[0], image[1], image[2]), fields["classes"]),
            tuple(map(BlockChoice.parse, fields["architecture"])),
        )


# What travels: every parameter and batch-norm statistic, in float32.


def travelling(network: nn.Module) -> Arrays:
    """Copies by name; the counters of batch norm, which nothing reads, stay at home."""
    state = network.state_dict()
    return {name: value.numpy().copy() for name, value in state.items() if value.is_floating_point()}


def load(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    values = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    for name, value in values.items():
        if name.endswith("running_var"):
            value.clamp_(min=LEAST_VARIANCE)
    network.load_state_dict(values, strict=False)


def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord(array_dict={name: Array(ndarray=value) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def _blob(content: RecordDict, record: str) -> bytes:
    blob = content.config_records[record]["blob"]
    if not isinstance(blob, bytes):
        raise TypeError(f"the record {record!r} has a blob of bytes, got {type(blob).__name__}")
    return blob


def _number(content: RecordDict, record: str, name: str) -> float:
    value = (content.metric_records if record in content.metric_records else content.config_records)[record][name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} in the record {record!r} is a number, got {value!r}")
    return float(value)


# A client.


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round: local epochs from what the server sent, then an honest look at the own held-out images."""
    task = Task.from_json(str(context.run_config["task"]))
    client, number = int(context.node_config["partition-id"]), int(_number(message.content, "config", "server-round"))
    data, network = task.place.client(task.regime, task.seed, client), task.network()
    if task.quantised:
        reference, residual = _known(task, context.state, travelling(network))
        for name, value in decode(_blob(message.content, "config"), reference).items():
            reference[name] += value
        load(network, reference)
    else:
        load(network, from_record(message.content.array_records["arrays"]))
    loss = train_locally(network, data.train, task.regime, number, generator(task.seed, client, number))
    judged = hits(with_statistics(network, data.train.images), data.held_out)
    trained = travelling(network)
    metrics = MetricRecord()
    metrics["num-examples"], metrics["loss"], metrics["accuracy"] = len(data.train.labels), loss, float(judged.mean())
    content = RecordDict({"metrics": metrics})
    if task.quantised:
        wanted = {name: trained[name] - reference[name] + residual[name] for name in trained}
        blob, residual = feed_back(wanted)
        content["config"] = ConfigRecord({"blob": blob})
        groups = {"reference": reference, "residual": residual}
        arrays = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
        context.state["known"] = ConfigRecord({"blob": pack("", arrays)})
    else:
        content["arrays"] = to_record(trained)
    return Message(content, reply_to=message)


def _known(task: Task, state: RecordDict, first: Arrays) -> tuple[Arrays, Arrays]:
    """What this client knows of the weights, and what it has not been able to say of its differences."""
    if "known" not in state:
        return {name: value.copy() for name, value in first.items()}, {n: np.zeros_like(v) for n, v in first.items()}
    _, arrays = unpack(_blob(state, "known"))
    reference, residual = ({n: arrays[f"{group}/{n}"].copy() for n in first} for group in ("reference", "residual"))
    return reference, residual


def train_locally(
    network: FloatNet | MultiPathNet, data: Dataset, regime: Regime, number: int, draw: torch.Generator
) -> float:
    """The local epochs of a round; returns the mean loss of the last one."""
    weights = [value for name, value in network.named_parameters() if not name.endswith(".alphas")]
    groups: list[dict[str, Any]] = [
        {"params": [value for value in weights if value.dim() > 1], "weight_decay": regime.weight_decay},
        {"params": [value for value in weights if value.dim() == 1]},
    ]
    rates = [regime.rate(number)] * regime.local_epochs
    if isinstance(network, FloatNet):
        return descend(network, groups, data, regime, rates, draw)
    descent = AlphaDescent(network, data, regime, draw)
    return descend(network, groups, data, regime, rates, draw, after_step=descent.step)


class AlphaDescent:
    """Steps of the alphas between those of the weights, on other batches (first-order DARTS, arXiv 1806.09055)."""

    def __init__(self, network: MultiPathNet, data: Dataset, regime: Regime, draw: torch.Generator) -> None:
        self._network, self._regime, self._draw = network, regime, draw
        self._alphas = network.alphas()
        self._optimiser = torch.optim.Adam(self._alphas, lr=regime.alpha_learning_rate, betas=(0.5, 0.999))
        self._batches = self._endless(data)
        self._owed = 0.0

    def _endless(self, data: Dataset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from batches(data, self._regime.batch_size, self._draw)

    def step(self) -> None:
        self._owed += self._regime.alpha_steps
        while self._owed >= 1:
            self._owed -= 1
            images, labels = next(self._batches)
            images = augmented(images, self._regime.flip, self._regime.shift, self._draw)
            loss = functional.cross_entropy(self._network(images), labels)
            for alphas, gradient in zip(self._alphas, torch.autograd.grad(loss, self._alphas), strict=True):
                alphas.grad = gradient
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)


# The server.


@dataclass
class State:
    """A federation between two rounds. `weights`: the average; `known`: what every client has been told of it, for the
    quantised arm; `velocity`: of the weights, for the arm with momentum."""

    weights: Arrays
    known: Arrays
    ledger: Ledger = field(default_factory=Ledger)
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    nodes: Mapping[int, bytes] = field(default_factory=dict)
    velocity: Arrays = field(default_factory=dict)

    @property
    def round(self) -> int:
        return len(self.curve)

    def to_bytes(self, task: Task) -> bytes:
        arrays = {f"weights/{name}": value for name, value in self.weights.items()}
        arrays |= {f"known/{name}": value for name, value in self.known.items()}
        arrays |= {f"velocity/{name}": value for name, value in self.velocity.items()}
        arrays |= {f"node/{node}": np.frombuffer(data, np.uint8) for node, data in self.nodes.items()}
        head = {
            "task": task.to_json(),
            "names": list(self.weights),
            "ledger": self.ledger.to_json(),
            "curve": self.curve,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        return pack(json.dumps(head), arrays)

    @classmethod
    def from_bytes(cls, data: bytes, task: Task, where: Path) -> "State":
        """Raises `ValueError` for a checkpoint of another task, or one that is damaged."""
        text, arrays = unpack(data)
        head = json.loads(text)
        if head["task"] != task.to_json():
            raise ValueError(f"{where} is of another regime or place: remove it, or pass another --work")
        weights, known = ({n: arrays[f"{group}/{n}"].copy() for n in head["names"]} for group in ("weights", "known"))
        nodes = {int(name[5:]): value.tobytes() for name, value in arrays.items() if name.startswith("node/")}
        ledger = Ledger.from_json(head["ledger"])
        velocity = {name[9:]: value.copy() for name, value in arrays.items() if name.startswith("velocity/")}
        return cls(weights, known, ledger, head["curve"], head["seconds"], head["cpu_seconds"], nodes, velocity)


def tell(state: State) -> bytes:
    """The blob that brings the clients up to date but for rounding, which the next one carries; moves `known`."""
    blob, _ = feed_back({name: value - state.known[name] for name, value in state.weights.items()})
    for name, value in decode(blob, state.known).items():
        state.known[name] += value
    return blob


class Server:
    """Rounds of one task; Flower's `FedAvg` chooses the clients, builds the messages and averages the replies."""

    def __init__(self, task: Task) -> None:
        self._task, clients = task, task.regime.clients
        self._grid = InProcessGrid(app, clients, {"task": task.to_json()})
        self._strategy = FedAvg(min_train_nodes=clients, min_available_nodes=clients)

    def start(self) -> State:
        weights = travelling(self._task.network())
        return State(weights, {name: value.copy() for name, value in weights.items()}, nodes=self._grid.save_states())

    def go_on(self, state: State) -> None:
        self._grid.load_states(state.nodes)

    def run_round(self, state: State) -> None:
        """In place; raises `RuntimeError` when a client fails."""
        began, cpu_began, seen = time.perf_counter(), time.process_time(), len(self._grid.traffic)
        arrays, config = ArrayRecord(), ConfigRecord()
        if self._task.quantised:
            config["blob"] = tell(state)
        else:
            arrays = to_record(state.weights)
        messages = list(self._strategy.configure_train(state.round, arrays, config, self._grid))
        messages.sort(key=lambda message: message.metadata.dst_node_id)  # Flower draws an order of its own
        replies = self._grid.send_and_receive(messages)
        self._enter(state, messages, replies, self._grid.traffic[seen:])
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"arm {self._task.arm}, round {state.round}: {reply.error.reason}")
        averaged, metrics = self._strategy.aggregate_train(state.round, [self._opened(one, state) for one in replies])
        assert averaged is not None and metrics is not None
        for name, value in from_record(averaged).items():
            state.weights[name] = self._moved(state, name, value).astype(np.float32)
        scores = [_number(reply.content, "metrics", "accuracy") for reply in replies]
        totals = state.ledger.totals()
        state.curve.append(
            {
                "accuracy": float(np.mean(scores)),
                "loss": _number(RecordDict({"metrics": metrics}), "metrics", "loss"),
                **{level: totals[f"{level}_up"] + totals[f"{level}_down"] for level in ("payload", "wire")},
            }
        )
        state.nodes = self._grid.save_states()
        state.seconds.append(round(time.perf_counter() - began, 3))
        state.cpu_seconds.append(round(time.process_time() - cpu_began, 3))

    def _moved(self, state: State, name: str, averaged: NDArray[np.float32]) -> NDArray[np.float32]:
        """A weight after a round, from the clients' average of it, or of its differences in the quantised arm."""
        if self._task.quantised:
            return state.weights[name] + averaged
        if self._task.arm != "AM" or "running_" in name:
            return averaged
        velocity = MOMENTUM * state.velocity.get(name, np.float32(0)) + (averaged - state.weights[name])
        state.velocity[name] = velocity
        return state.weights[name] + velocity

    def _opened(self, reply: Message, state: State) -> Message:
        """A reply as `FedAvg` averages it: with the difference that its blob holds as an array record."""
        if self._task.quantised:
            blob = _blob(reply.content, "config")
            reply.content = RecordDict(
                {"arrays": to_record(decode(blob, state.weights)), "metrics": reply.content["metrics"]}
            )
        return reply

    def _enter(
        self, state: State, messages: Iterable[Message], replies: Iterable[Message], traffic: Iterable[Traffic]
    ) -> None:
        payload = {("down", one.metadata.dst_node_id): payload_bytes(one.content) for one in messages}
        payload |= {
            ("up", one.metadata.src_node_id): payload_bytes(one.content) for one in replies if one.has_content()
        }
        width = 1 if self._task.quantised else 4
        ideal = float(width * sum(value.size for value in state.weights.values()))
        nodes = list(self._grid.get_node_ids())
        for crossed in traffic:
            state.ledger.append(
                Entry(
                    state.round,
                    nodes.index(crossed.node_id),
                    crossed.direction,
                    "train",
                    ideal,
                    payload.get((crossed.direction, crossed.node_id), 0),
                    crossed.flower_bytes,
                    crossed.wire_bytes,
                    crossed.error,
                )
            )


def payload_bytes(content: RecordDict) -> int:
    """Values of arrays and blobs, and nothing around them."""
    arrays = [array for record in content.array_records.values() for array in record.values()]
    blobs = [value for record in content.config_records.values() for value in record.values()]
    size = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)
    return size + sum(len(value) for value in blobs if isinstance(value, bytes))


def run(task: Task, folder: Path, on_round: Callable[[int], None]) -> Found:
    """All rounds that are left after the checkpoint in `folder`, one checkpoint a round, then the judgement."""
    checkpoint, server = folder / "checkpoint.safetensors", Server(task)
    if checkpoint.exists():
        state = State.from_bytes(checkpoint.read_bytes(), task, checkpoint)
        server.go_on(state)
    else:
        state = server.start()
    while state.round < task.regime.rounds:
        server.run_round(state)
        write_atomically(checkpoint, state.to_bytes(task))
        on_round(state.round)
    network = task.network()
    if task.quantised:
        tell(state)  # judged is what clients have: the last average as it would reach them
    load(network, state.known if task.quantised else state.weights)
    facts: dict[str, Any] = {"parameters": sum(value.size for value in state.weights.values())}
    if isinstance(network, MultiPathNet):
        everyone = task.place.everyone(task.regime, task.seed)
        mixed = hits(with_statistics(network, everyone), load_dataset(str(task.place.test)))
        facts["accuracy_global_of_all_paths"] = float(mixed.mean())
        facts["alphas"] = [[round(alpha, 4) for alpha in alphas.tolist()] for alphas in network.alphas()]
        network = network.derived()
    facts["architecture"] = [str(choice) for choice in network.architecture]
    judgement = judge(network, task.place, task.regime, task.seed)
    return Found(state.ledger, state.curve, state.seconds, state.cpu_seconds, judgement, facts)
