"""How every arm is judged: the same images, the same recomputed statistics, the same fine-tuning.

Global: every network on all test images, its batch-norm statistics recomputed over all clients' training images (no
label is used). Personal: each client's network on that client's held-out images, statistics recomputed over its own
training images, before and after a fine-tuning on them.
"""

import base64
import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from faqs.data import Dataset, load_dataset
from faqs.ledger import Ledger
from faqs.supernet import recalibrate
from faqs.train import augmented, batches
from federations.regime import Place, Regime, generator

Hits = NDArray[np.bool_]
"""Which images a network classifies correctly."""

STATISTICS_BATCH = 100


@dataclass(frozen=True)
class Judgement:
    """`overall[i]`: network i on the test images; `before[k]`, `after[k]`: client k's network on its held-out images,
    without and with fine-tuning."""

    overall: Sequence[Hits]
    before: Sequence[Hits]
    after: Sequence[Hits]

    def to_json(self) -> dict[str, Any]:
        return {name: [packed(hits) for hits in getattr(self, name)] for name in ("overall", "before", "after")}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Judgement":
        return cls(*([unpacked(text) for text in fields[name]] for name in ("overall", "before", "after")))

    @property
    def accuracy_global(self) -> float:
        """Mean over the networks."""
        return float(np.mean([hits.mean() for hits in self.overall]))

    def personal(self, which: str = "after") -> tuple[float, float]:
        """Mean over the clients, weighted by their held-out images, and plain."""
        parts: Sequence[Hits] = getattr(self, which)
        return float(np.concatenate(parts).mean()), float(np.mean([hits.mean() for hits in parts]))


@dataclass(frozen=True)
class Found:
    """What a finished arm has to show. A point of the `curve`, one a round: the mean accuracy of the clients' networks
    on their held-out images after the local epochs, their loss, and all bytes so far (`payload`, `wire`)."""

    ledger: Ledger
    curve: list[dict[str, float]]
    seconds: list[float]
    cpu_seconds: list[float]
    judgement: Judgement
    facts: dict[str, Any]


def packed(hits: Hits) -> str:
    """Number of images, and their bits, deflated, in base 64."""
    return f"{len(hits)}:{base64.b64encode(zlib.compress(np.packbits(hits).tobytes(), 9)).decode()}"


def unpacked(text: str) -> Hits:
    count, _, data = text.partition(":")
    bits = np.frombuffer(zlib.decompress(base64.b64decode(data)), np.uint8)
    return np.unpackbits(bits, count=int(count)).astype(np.bool_)


@torch.no_grad()
def hits(network: nn.Module, data: Dataset, batch_size: int = 250) -> Hits:
    network.eval()
    chunks = torch.split(torch.from_numpy(data.images), batch_size)
    predicted = torch.cat([network(chunk).argmax(dim=1) for chunk in chunks]).numpy()
    found: Hits = predicted == data.labels
    return found


def with_statistics(network: nn.Module, images: NDArray[np.float32]) -> nn.Module:
    """A copy whose batch-norm statistics are those of `images`, taken in their order."""
    network = copy.deepcopy(network)

    def chunks() -> Iterator[Tensor]:
        # The last batch takes the rest, so that none is too small to have a variance.
        count = max(1, len(images) // STATISTICS_BATCH)
        yield from torch.tensor_split(torch.from_numpy(images), count)

    recalibrate(network, chunks(), network)
    return network.eval()


def descend(
    network: nn.Module,
    groups: Iterable[dict[str, Any]],
    data: Dataset,
    regime: Regime,
    rates: Sequence[float],
    draw: torch.Generator,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """Train by SGD with augmentation, an epoch for each learning rate; returns the mean loss of the last one."""
    optimiser = torch.optim.SGD(list(groups), lr=0.0, momentum=regime.momentum)
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    network.train()
    losses: list[float] = []
    for rate in rates:
        losses.clear()
        for group in optimiser.param_groups:
            group["lr"] = rate
        for images, labels in batches(data, regime.batch_size, draw):
            optimiser.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(network(augmented(images, regime.flip, regime.shift, draw)), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, regime.clip_norm)
            optimiser.step()
            losses.append(float(loss.detach()))
            after_step()
    return float(np.mean(losses)) if losses else 0.0


def fine_tuned(network: nn.Module, data: Dataset, regime: Regime, draw: torch.Generator) -> nn.Module:
    """A personal copy, as `faqs.train.fine_tune` makes one: a cosine from a fifth of the federation's rate, no weight
    decay."""
    network, epochs = copy.deepcopy(network), regime.personal_epochs
    rates = [regime.learning_rate / 5 * 0.5 * (1 + np.cos(np.pi * epoch / epochs)) for epoch in range(epochs)]
    descend(network, [{"params": list(network.parameters())}], data, regime, rates, draw)
    return network


def judge(network: nn.Module, place: Place, regime: Regime, seed: int) -> Judgement:
    """One network for all clients."""
    test = load_dataset(str(place.test))
    overall = hits(with_statistics(network, place.everyone(regime, seed)), test)
    before, after = [], []
    for client in range(regime.clients):
        data = place.client(regime, seed, client)
        before.append(hits(with_statistics(network, data.train.images), data.held_out))
        personal = fine_tuned(network, data.train, regime, generator(seed, client, 0, 1))
        after.append(hits(with_statistics(personal, data.train.images), data.held_out))
    return Judgement([overall], before, after)
