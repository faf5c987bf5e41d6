"""The supernet of a search space, its decided members, and which of its numbers travel.

Shared (sent, averaged): the latent weights of the convolutions and the classifier, and the scales and shifts of batch
norm. Local (never sent): the statistics of batch norm, activation clips and gate logits, so that each client keeps its
own statistics (half of FedBN, arXiv 2102.07623: scales and shifts of one's own cost a third of the global accuracy)
and its own architecture.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from faqs.quant import ActivationQuantiser, quantise_input, quantised_weight
from faqs.superkernel import ConvNorm, Gates, SlicedBlock, SuperBlock, block_slices, slice_block
from hwcost import SKIP, Architecture, SearchSpace

Cut = tuple[slice, ...]


class _Network(nn.Module):
    """Stem and head, 8 bits, around blocks."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        last = space.stages[-1].channels
        self.stem = ConvNorm(space.image[0], space.stem_channels, 3, space.stem_stride)
        self.pool = ActivationQuantiser(signed=True)
        self.classifier = nn.Linear(last, space.classes)
        self.logits = ActivationQuantiser(signed=True, clip=16.0)

    def _head(self, x: Tensor) -> Tensor:
        pooled = self.pool(x.mean(dim=(2, 3)))
        quantised = quantised_weight(self.classifier.weight, 8)
        scores: Tensor = self.logits(functional.linear(pooled, quantised, self.classifier.bias))
        return scores

    def _stem(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # everything after it follows; half the time
        x: Tensor = self.stem(quantise_input(images), quantised_weight(self.stem.weight, 8))
        return x


class SuperNet(_Network):
    """Every member of a search space over one set of weights."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.blocks = nn.ModuleList(SuperBlock(space, spec) for spec in space.blocks)

    def forward(self, images: Tensor, gates: Sequence[Gates]) -> Tensor:
        """images [n, channels, height, width] in [0, 1], one `Gates` a block -> class scores [n, classes]."""
        return self.leave(self.enter(images), gates)

    def enter(self, images: Tensor) -> Tensor:
        """What the first block is given."""
        return self._stem(images)

    def leave(self, x: Tensor, gates: Sequence[Gates], start: int = 0) -> Tensor:
        """Class scores from the input of block `start` on; `gates` are those of that block and of all after it."""
        for block, gate in zip(self.blocks[start:], gates, strict=True):
            x = block(x, gate)
        return self._head(x)

    def hard_gates(self, architecture: Architecture) -> list[Gates]:
        """The gates of a decided architecture; raises `hwcost.InvalidSpaceError`."""
        self.space.validate(architecture)
        return [Gates.hard(self.space, choice) for choice in architecture]


class DecidedNet(_Network):
    """One member of the space, with weights of its own."""

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        super().__init__(space)
        space.validate(architecture)
        self.architecture = architecture
        pairs = zip(space.blocks, architecture, strict=True)
        self.blocks = nn.ModuleDict({str(s.index): SlicedBlock(s, choice) for s, choice in pairs if choice != SKIP})

    def forward(self, images: Tensor) -> Tensor:
        """images [n, channels, height, width] in [0, 1] -> class scores [n, classes]."""
        x = self._stem(images)
        for block in self.blocks.values():
            x = block(x)
        return self._head(x)


def decide(supernet: SuperNet, architecture: Architecture) -> DecidedNet:
    """Cut a decided network out of the supernet: it computes what the gated supernet computes."""
    decided = DecidedNet(supernet.space, architecture)
    target = decided.state_dict()
    target.update({n: v.clone() for n, v in supernet.state_dict().items() if not n.startswith("blocks.")})
    for spec, block in zip(supernet.space.blocks, supernet.blocks, strict=True):
        choice = architecture[spec.index]
        if choice != SKIP:
            assert isinstance(block, SuperBlock)
            for name, value in slice_block(block, choice).state_dict().items():
                target[f"blocks.{spec.index}.{name}"] = value
    decided.load_state_dict(target)
    return decided


_SHARED_FIXED = {
    "stem.weight": 4,
    "stem.norm.weight": 1,
    "stem.norm.bias": 1,
    "classifier.weight": 2,
    "classifier.bias": 1,
}
"""Shared tensors outside the blocks, and how many axes each has."""


def shared_cuts(space: SearchSpace, architecture: Architecture) -> dict[str, Cut]:
    """The active part of every shared tensor for an architecture: name -> one slice per axis, in wire order.

    Both ends derive it from the decisions, so that no mask is ever sent.
    """
    cuts: dict[str, Cut] = {name: (slice(None),) * axes for name, axes in _SHARED_FIXED.items()}
    for spec, choice in zip(space.blocks, architecture, strict=True):
        for name, cut in block_slices(space, spec, choice).items():
            cuts[f"blocks.{spec.index}.{name}"] = cut
    return cuts


def shared_tensors(supernet: SuperNet) -> dict[str, Tensor]:
    """The parameters that travel, by name: the keys of `shared_cuts` of the largest architecture, in that order."""
    parameters = dict(supernet.named_parameters())
    return {name: parameters[name] for name in shared_cuts(supernet.space, supernet.space.largest)}


def local_tensors(supernet: SuperNet) -> dict[str, Tensor]:
    """What a client keeps to itself: statistics of batch norm and activation clips."""
    shared = shared_tensors(supernet)
    return {name: value for name, value in supernet.state_dict().items() if name not in shared}


def new_supernet(space: SearchSpace, seed: int) -> SuperNet:
    """A supernet whose weights follow from the seed alone: both ends can make it, so that it is never sent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SuperNet(space)


def recalibrate(network: nn.Module, batches: Iterable[Tensor], run: Callable[[Tensor], Tensor]) -> None:
    """Recompute the batch-norm statistics over `batches` (cumulative average), for the path that `run` takes."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    training = network.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for images in batches:
            run(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(training)
