"""Rules by which a client scores the choices of its blocks; the projection then takes the best within its budgets.

- `losses`: what the loss rises by when one block takes a choice and all others stay the largest, on training images.
  One forward pass a choice, no training of its own; wants weights that were trained in every choice (the warm-up's
  random members).
- `logits`: free gate logits, trained by straight-through Gumbel samples (arXiv 1611.01144) while weights stand still.
- `norms`: what a wider kernel, more channels or more bits add to the weights, as a root mean square, so that size does
  not matter: the test of Single-Path NAS (arXiv 1904.02877), made free of scale, without its thresholds (the budget
  takes their place).

`in_spreads` puts scores in units of their own spread over the legal choices of the network, in which clients' scores
can be averaged and hysteresis means the same for all rules.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from faqs.quant import quantised_weight
from faqs.superkernel import Gates, SuperBlock
from faqs.supernet import SuperNet
from hwcost import SKIP, Architecture, SearchSpace

Scores = NDArray[np.float64]
"""[blocks, choices]; zero where a choice is illegal."""


def legal_mask(space: SearchSpace) -> NDArray[np.bool_]:
    """[blocks, choices]: which choice each block may take."""
    return np.array([[space.legal(block, choice) for choice in space.choices] for block in space.blocks])


def logit_scores(logits: Tensor, space: SearchSpace) -> Scores:
    """Log-probabilities of free gate logits [blocks, choices], -inf where illegal."""
    found = torch.log_softmax(logits.detach().double(), dim=1).numpy()
    return np.where(legal_mask(space), found, 0.0)


@torch.no_grad()
def loss_scores(supernet: SuperNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Minus the mean loss over `batches` (images, labels), in nats, with one block changed at a time.

    Normalised by each batch's own statistics, like training; the network is left unchanged. The blocks before the
    changed one are computed once.
    """
    space, legal = supernet.space, legal_mask(supernet.space)
    largest, scores, count = supernet.hard_gates(space.largest), np.zeros(legal.shape), 0
    before, was_training = {n: v.clone() for n, v in supernet.state_dict().items()}, supernet.training
    supernet.train()
    options = [Gates.hard(space, choice) for choice in space.choices]
    for images, labels in batches:
        x = supernet.enter(images)
        for block in space.blocks:
            for column in np.flatnonzero(legal[block.index]):
                y = supernet.leave(x, [options[column], *largest[block.index + 1 :]], start=block.index)
                scores[block.index, column] -= float(functional.cross_entropy(y, labels, reduction="sum"))
            x = supernet.blocks[block.index](x, largest[block.index])
        count += len(labels)
    supernet.load_state_dict(before)
    supernet.train(was_training)
    return scores / max(count, 1)


@torch.no_grad()
def norm_scores(supernet: SuperNet) -> Scores:
    """The root mean square of what each choice adds to the smallest one: rings of the depthwise kernel, halves of the
    hidden channels, and bits (the part of the quantisation error of the fewest bits that they remove)."""
    space, legal = supernet.space, legal_mask(supernet.space)
    scores = np.zeros(legal.shape)
    for spec, block in zip(space.blocks, supernet.blocks, strict=True):
        assert isinstance(block, SuperBlock)
        kernel, layers = block.depthwise.weight, (block.expand, block.depthwise, block.project)
        rings = [_rms(kernel[(ring > 0).expand_as(kernel)]) for ring in block.rings]
        halves = [
            _rms(torch.cat([block.expand.weight[part > 0].reshape(-1), block.project.weight[:, part > 0].reshape(-1)]))
            for part in block.parts
        ]
        errors = []
        for bits in space.weight_bits:
            pairs = [(layer.weight, quantised_weight(layer.weight, bits)) for layer in layers]
            errors.append(_rms(torch.cat([(latent - coded).reshape(-1) for latent, coded in pairs])))
        for column, choice in enumerate(space.choices):
            if choice != SKIP and legal[spec.index, column]:
                scores[spec.index, column] = (
                    sum(rings[: space.kernels.index(choice.kernel) + 1])
                    + sum(halves[: space.expansions.index(choice.expansion) + 1])
                    + errors[0]
                    - errors[space.weight_bits.index(choice.weight_bits)]
                )
    return scores


def random_scores(space: SearchSpace, generator: torch.Generator) -> Scores:
    """Standard normal draws."""
    legal = legal_mask(space)
    return np.where(legal, torch.randn(legal.shape, generator=generator, dtype=torch.float64).numpy(), 0.0)


def in_spreads(scores: Scores, space: SearchSpace) -> tuple[Scores, float]:
    """Each block's scores less their mean, over the standard deviation of all of them, which is returned, too (1 where
    all are alike)."""
    legal = legal_mask(space)
    means = np.where(legal, scores, 0.0).sum(axis=1, keepdims=True) / legal.sum(axis=1, keepdims=True)
    centred = np.where(legal, scores - means, 0.0)
    spread = float(np.sqrt(np.square(centred).sum() / legal.sum())) or 1.0
    return centred / spread, spread


def with_hysteresis(scores: Scores, decided: Architecture | None, space: SearchSpace, hysteresis: float) -> Scores:
    """Scores in which the standing decision is worth `hysteresis` spreads more."""
    scores = scores.copy()
    for block, choice in enumerate(decided or ()):
        scores[block, space.columns[choice]] += hysteresis
    return scores


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt()) if values.numel() else 0.0
