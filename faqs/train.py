"""A client's local work, free of any federation: training shared weights and gates, and judging a network.

Weights learn on one path through the supernet and on networks inside it (after the sandwich rule of arXiv 1903.05134):
in the warm-up random ones, so that no choice is judged on weights that never worked together, afterwards those that
clients have decided for. Gates
learn from straight-through samples on batches of their own while the weights stand still (first-order DARTS, arXiv
1806.09055).
"""

import copy
import ctypes
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from faqs.data import Dataset
from faqs.pareto import Pareto
from faqs.superkernel import Gates
from faqs.supernet import DecidedNet, SuperNet, recalibrate, shared_tensors
from hwcost import SKIP, Architecture, CostLayer, SearchSpace


@dataclass(frozen=True)
class Hyperparameters:
    """Of one client's local round.

    `explore_share`: of the steps on the full network (and on a client's own, where it trains no other) that also train
    a random network inside it; with the members of a federation, `members_per_step` of them are trained in each step,
    in `hull_share` of the steps the hull in place of one. With `distil` what is trained beside a
    larger network learns what that one says of the same images (in-place distillation, arXiv 1903.05134),
    else the labels. `gate_share`
    gate steps are taken per weight step where gates are trained at all. `keep_weight`: of the loss that holds a client
    to what the federation knows, see `not_true_distillation`. `flips`, `shift`: see `augmented`.
    """

    batch_size: int = 32
    local_epochs: int = 2
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    explore_share: float = 0.5
    members_per_step: int = 2
    hull_share: float = 0.0
    distil: bool = True
    keep_weight: float = 0.0
    gate_learning_rate: float = 0.05
    gate_share: float = 0.5
    gate_temperature: float = 1.0
    flips: bool = False
    shift: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Hyperparameters":
        """Those among the fields of a configuration."""
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})


@cache
def keep_freed_memory() -> None:
    """Let glibc keep memory that was freed instead of giving it back to the system: a training step allocates the same
    megabytes again and again, and fetching them page by page took up to half of its time. Does nothing elsewhere."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def batches(data: Dataset, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order; a last batch of a single sample is left out (batch norm needs two)."""
    order = torch.randperm(len(data.labels), generator=generator)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        if len(chosen) > 1:
            yield images[chosen], labels[chosen]


def augmented(images: Tensor, flips: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Each image [n, channels, height, width] mirrored with probability 1/2 where `flips`, and moved by -`shift` to
    `shift` pixels along both axes, zeros moving in."""
    if not flips and not shift:
        return images
    count, _, height, width = images.shape
    down, right = torch.randint(2 * shift + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flips else 0.0)
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + right[:, None]
    rows = torch.arange(height) + down[:, None]
    padded = functional.pad(images, (shift,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def initial_logits(space: SearchSpace) -> Tensor:
    """Gate logits [blocks, choices], -inf where illegal: a slight preference for more weights and bits, so that an
    untrained projection takes the largest network that the budgets allow."""
    logits = torch.full((len(space.blocks), len(space.choices)), -math.inf)
    for block in space.blocks:
        for index, choice in enumerate(space.choices):
            if space.legal(block, choice):
                capacity = 1.0 if choice == SKIP else float(choice.kernel * choice.expansion * choice.weight_bits)
                logits[block.index, index] = 0.02 * math.log2(capacity)
    return logits


def random_architecture(
    space: SearchSpace, generator: torch.Generator, within: Architecture | None = None
) -> Architecture:
    """A uniform draw per block over its legal choices, or over those whose weights are all part of `within`'s."""
    picked = []
    for block, most in zip(space.blocks, within or space.largest, strict=True):
        legal = [
            choice
            for choice in space.choices
            if space.legal(block, choice) and choice.kernel <= most.kernel and choice.expansion <= most.expansion
        ]
        picked.append(legal[int(torch.randint(len(legal), (1,), generator=generator))])
    return tuple(picked)


def not_true_distillation(scores: Tensor, before: Tensor, labels: Tensor) -> Tensor:
    """Mean KL(before || scores) over the softmax of all classes but the true one (FedNTD, arXiv 2106.03097): what the
    federation's network said of the classes that a client hardly sees is kept, the true class is left to the labels.

    scores, before: [n, classes]; labels: [n]. Zero for two classes.
    """
    count, classes = scores.shape
    others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, labels[:, None], False)
    kept = functional.log_softmax(before[others].view(count, classes - 1), dim=1)
    said = functional.log_softmax(scores[others].view(count, classes - 1), dim=1)
    return functional.kl_div(said, kept, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Step:
    """The networks that one step trains: the `first` by the labels, unless there is none, and others, which with
    `distil` learn what the first says."""

    first: Architecture | None
    others: Sequence[Architecture]


def train_weights(
    supernet: SuperNet,
    draw: Callable[[torch.Generator], Step],
    data: Dataset,
    settings: Hyperparameters,
    learning_rate: float,
    generator: torch.Generator,
) -> float:
    """Train the shared weights and local layers, in every step the networks that `draw` says; returns the mean loss of
    what was trained by the labels."""
    supernet.train()
    federation = copy.deepcopy(supernet).requires_grad_(False) if settings.keep_weight > 0 else None
    shared = shared_tensors(supernet)
    decayed = [value for value in shared.values() if value.dim() > 1]
    kept = {id(value) for value in decayed}
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in supernet.parameters() if id(parameter) not in kept]},
    ]
    optimiser = torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum)
    losses: list[float] = []
    gates_of = cache(supernet.hard_gates)

    def descend(architecture: Architecture, images: Tensor, labels: Tensor, target: Tensor | None = None) -> Tensor:
        """Add one network's gradient; returns its scores."""
        gates = gates_of(architecture)
        scores: Tensor = supernet(images, gates)
        loss = functional.cross_entropy(scores, labels if target is None else target)
        if target is None:
            losses.append(float(loss.detach()))
            if federation is not None:
                with torch.no_grad():
                    before = federation(images, gates)
                loss = loss + settings.keep_weight * not_true_distillation(scores, before, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return scores.detach()

    for _ in range(settings.local_epochs):
        for images, labels in batches(data, settings.batch_size, generator):
            images = augmented(images, settings.flips, settings.shift, generator)
            optimiser.zero_grad(set_to_none=True)
            step, target = draw(generator), None
            if step.first is not None:
                scores = descend(step.first, images, labels)
                target = torch.softmax(scores, dim=1) if settings.distil else None
            for other in step.others:
                descend(other, images, labels, target)
            nn.utils.clip_grad_norm_(supernet.parameters(), 5.0)
            optimiser.step()
    return float(np.mean(losses)) if losses else math.nan


def expected_costs(logits: Tensor, costs: CostLayer) -> dict[str, Tensor]:
    """By metric, over softmax(logits); logits: [blocks, choices], -inf where illegal."""
    found: dict[str, Tensor] = costs(torch.softmax(logits, dim=1).double())
    return found


def train_gates(
    supernet: SuperNet,
    logits: Tensor,
    data: Dataset,
    costs: CostLayer,
    pareto: Pareto,
    settings: Hyperparameters,
    generator: torch.Generator,
) -> Tensor:
    """New gate logits after some steps of the Pareto function on straight-through samples; the network is left
    unchanged. Where no cost matters to `pareto`, none is asked for."""
    steps = math.ceil(settings.gate_share * settings.local_epochs * math.ceil(len(data.labels) / settings.batch_size))
    legal = costs.legal
    free = torch.where(legal, logits, torch.zeros_like(logits)).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=settings.gate_learning_rate, betas=(0.5, 0.999))
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    supernet.train().requires_grad_(False)
    epochs = (batches(data, settings.batch_size, generator) for _ in range(steps))
    for images, labels in itertools.islice(itertools.chain.from_iterable(epochs), steps):
        masked = torch.where(legal, free, torch.full_like(free, -math.inf))
        gates = [Gates.sample(supernet.space, row, settings.gate_temperature, generator) for row in masked]
        loss = functional.cross_entropy(supernet(images, gates), labels)
        if pareto.asks:
            loss = pareto(loss, expected_costs(masked, costs))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    supernet.requires_grad_(True)
    supernet.load_state_dict(before)
    return torch.where(legal, free.detach(), torch.full_like(logits, -math.inf))


def fine_tune(
    network: DecidedNet, data: Dataset, settings: Hyperparameters, epochs: int, generator: torch.Generator
) -> None:
    """Personalise a decided network on its client's own data (cosine learning rate from a fifth of the federation's),
    then recompute its batch-norm statistics."""
    optimiser = torch.optim.SGD(
        network.parameters(), lr=settings.learning_rate / 5, momentum=settings.momentum, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(epochs, 1))
    network.train()
    for _ in range(epochs):
        for images, labels in batches(data, settings.batch_size, generator):
            images = augmented(images, settings.flips, settings.shift, generator)
            optimiser.zero_grad(set_to_none=True)
            functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
        schedule.step()
    recalibrate(network, (images for images, _ in batches(data, 64, generator)), network)
    network.eval()


def accuracy(network: DecidedNet, data: Dataset, batch_size: int = 256) -> float:
    """Share of the images whose class is predicted."""
    return float((class_scores(network, data.images, batch_size).argmax(axis=1) == data.labels).mean())


@torch.no_grad()
def class_scores(network: DecidedNet, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Scores [n, classes], float32, of images [n, channels, height, width]."""
    network.eval()
    chunks = torch.split(torch.from_numpy(images), batch_size)
    return torch.cat([network(chunk) for chunk in chunks]).numpy()
