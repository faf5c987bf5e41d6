"""The super kernel block: one set of weights that holds every choice of an inverted-residual block.

After Single-Path NAS (arXiv 1904.02877): a smaller depthwise kernel is the centre of the largest one, a smaller
expansion is its first channels; skipping is the identity. `Gates` say how much of each is switched on: hard 0/1 for a
decided block, straight-through samples while gates are trained. All hidden channels are computed and the closed
ones are masked after their normalisation and activation, so that a closed channel is exactly absent (its batch-norm
shift included) and its statistics stay alive. `SlicedBlock` is the same block with the closed parts cut out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from faqs.quant import ActivationQuantiser, quantised_weight, weight_clip
from hwcost import SKIP, BlockChoice, BlockSpec, SearchSpace


@dataclass(frozen=True)
class Gates:
    """One block's gates, scalars in [0, 1]: `keep` (0 skips the block), `kernels[i]` (the ring that the i-th kernel
    size adds is on; the first is always 1), `expansions[i]` likewise, `bits[i]` (one-hot over the weight bits)."""

    keep: Tensor
    kernels: Tensor
    expansions: Tensor
    bits: Tensor

    @classmethod
    def of(cls, space: SearchSpace, keep: Tensor, inner: Tensor) -> "Gates":
        """`inner` is a distribution over the choices that are no skip (shape [choices - 1], sums to 1): each gate is
        the sum of the choices that need it, so that one-hot gives hard gates and gradients reach every choice."""

        def share(needs: Callable[[BlockChoice], bool]) -> Tensor:
            return inner[torch.tensor([needs(choice) for choice in space.choices[1:]])].sum()

        return cls(
            keep,
            torch.stack([share(lambda c, size=size: c.kernel >= size) for size in space.kernels]),  # type: ignore[misc]
            torch.stack([share(lambda c, e=e: c.expansion >= e) for e in space.expansions]),  # type: ignore[misc]
            torch.stack([share(lambda c, b=b: c.weight_bits == b) for b in space.weight_bits]),  # type: ignore[misc]
        )

    @classmethod
    def hard(cls, space: SearchSpace, choice: BlockChoice) -> "Gates":
        """The gates of a decided block."""
        inner = torch.tensor([float(choice == other) for other in space.choices[1:]])
        return cls.of(space, torch.tensor(float(choice != SKIP)), inner)

    @classmethod
    def sample(cls, space: SearchSpace, logits: Tensor, temperature: float, generator: torch.Generator) -> "Gates":
        """Straight-through Gumbel-softmax sample (arXiv 1611.01144) of one block's logits, shape [choices], -inf where
        illegal. Skip or keep is drawn first, then the choice given keep, so that a skipped block still has an inside
        that the gradient of `keep` can compare with."""
        keep_logits = torch.stack([logits[0], logits[1:].logsumexp(dim=0)])
        keep = _straight_through(keep_logits, temperature, generator)[1]
        return cls.of(space, keep, _straight_through(logits[1:], temperature, generator))


def _straight_through(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype).clamp(1e-6, 1.0 - 1e-6)
    soft = torch.softmax((logits - torch.log(-torch.log(uniform))) / temperature, dim=0)
    hard = torch.zeros_like(soft)
    hard[soft.argmax()] = 1.0
    return (hard - soft).detach() + soft


class ConvNorm(nn.Module):
    """Convolution with quantised weights, batch norm, an optional ReLU, and 8-bit activations.

    The ReLU is the quantiser's clip at zero, as in the exported integer network.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel, kernel))
        self.norm = nn.BatchNorm2d(out_channels)
        self.quantise = ActivationQuantiser(signed=not relu)
        nn.init.kaiming_normal_(self.weight, mode="fan_out" if groups == 1 else "fan_in", nonlinearity="relu")

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """`weight` is what the caller made of `self.weight`: quantised, gated."""
        y = functional.conv2d(x, weight, None, self.stride, weight.shape[-1] // 2, 1, self.groups)
        normalised: Tensor = self.quantise(self.norm(y))
        return normalised


class SuperBlock(nn.Module):
    """All choices of one block over shared weights: expand [h, in, 1, 1], depthwise [h, 1, k, k] and
    project [out, h, 1, 1] for the largest hidden width h and kernel k."""

    def __init__(self, space: SearchSpace, spec: BlockSpec) -> None:
        super().__init__()
        self.space, self.spec = space, spec
        hidden = spec.in_channels * space.expansions[-1]
        self.expand = ConvNorm(spec.in_channels, hidden, 1)
        self.depthwise = ConvNorm(hidden, hidden, space.kernels[-1], spec.stride, groups=hidden)
        self.project = ConvNorm(hidden, spec.out_channels, 1, relu=False)
        self.add = ActivationQuantiser(signed=True) if spec.residual else None
        largest = space.kernels[-1]
        rings, inner = [], torch.zeros(largest, largest)
        for kernel in space.kernels:
            margin = (largest - kernel) // 2
            mask = torch.zeros(largest, largest)
            mask[margin : largest - margin, margin : largest - margin] = 1.0
            rings.append(mask - inner)
            inner = mask
        steps, start = [], 0
        for expansion in space.expansions:
            part = torch.zeros(hidden)
            part[start : spec.in_channels * expansion] = 1.0
            start = spec.in_channels * expansion
            steps.append(part)
        self.register_buffer("rings", torch.stack(rings), persistent=False)
        self.register_buffer("parts", torch.stack(steps), persistent=False)
        self.rings: Tensor
        self.parts: Tensor

    def _weight(self, weight: Tensor, bits: Tensor, active: Tensor | None = None) -> Tensor:
        clip = weight_clip(weight, active)
        if not bits.requires_grad:
            return quantised_weight(weight, self.space.weight_bits[int(bits.argmax())], clip)
        widths = enumerate(self.space.weight_bits)
        return torch.stack([bits[i] * quantised_weight(weight, width, clip) for i, width in widths]).sum(dim=0)

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        """x [n, in, height, width] -> [n, out, ...]."""
        if not gates.keep.requires_grad and float(gates.keep) == 0.0:
            return x
        kernel_mask = torch.einsum("i,ijk->jk", gates.kernels, self.rings)
        channel_mask = torch.einsum("i,ic->c", gates.expansions, self.parts)
        hidden = self.expand(x, self._weight(self.expand.weight, gates.bits))
        ring_weight = self._weight(self.depthwise.weight, gates.bits, kernel_mask)
        hidden = self.depthwise(hidden, ring_weight * kernel_mask)
        hidden = hidden * channel_mask[:, None, None]
        y: Tensor = self.project(
            hidden, self._weight(self.project.weight, gates.bits, channel_mask[None, :, None, None])
        )
        if self.add is None:
            return y
        kept: Tensor = self.add(x + y)
        return gates.keep * kept + (1.0 - gates.keep) * x


class SlicedBlock(nn.Module):
    """One decided block (not `SKIP`) with weights of its own, cut out of a `SuperBlock`."""

    def __init__(self, spec: BlockSpec, choice: BlockChoice) -> None:
        super().__init__()
        hidden = spec.in_channels * choice.expansion
        self.spec, self.choice = spec, choice
        self.expand = ConvNorm(spec.in_channels, hidden, 1)
        self.depthwise = ConvNorm(hidden, hidden, choice.kernel, spec.stride, groups=hidden)
        self.project = ConvNorm(hidden, spec.out_channels, 1, relu=False)
        self.add = ActivationQuantiser(signed=True) if spec.residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in (self.expand, self.depthwise, self.project):
            clip = weight_clip(layer.weight)
            y = layer(y, quantised_weight(layer.weight, self.choice.weight_bits, clip))
        if self.add is not None:
            y = self.add(x + y)
        return y


def block_slices(space: SearchSpace, spec: BlockSpec, choice: BlockChoice) -> dict[str, tuple[slice, ...]]:
    """Which part of each shared weight of a block a choice uses: name -> one slice per axis; nothing for a skip."""
    if choice == SKIP:
        return {}
    every, hidden = slice(None), slice(0, spec.in_channels * choice.expansion)
    margin = (space.kernels[-1] - choice.kernel) // 2
    centre = slice(margin, margin + choice.kernel)
    return {
        "expand.weight": (hidden, every, every, every),
        "depthwise.weight": (hidden, every, centre, centre),
        "project.weight": (every, hidden, every, every),
    }


def slice_block(block: SuperBlock, choice: BlockChoice) -> SlicedBlock:
    """Cut a decided block out; it computes exactly what the gated block computes."""
    sliced = SlicedBlock(block.spec, choice)
    cuts = block_slices(block.space, block.spec, choice)
    hidden = block.spec.in_channels * choice.expansion
    target = sliced.state_dict()
    for name, value in block.state_dict().items():
        if name in cuts:
            value = value[cuts[name]]
        elif name.startswith(("expand.norm", "depthwise.norm")) and value.dim() == 1:
            value = value[:hidden]
        target[name] = value.clone()
    sliced.load_state_dict(target)
    return sliced
