"""The super kernel block: one set of weights that holds every choice of an inverted-residual block.

After Single-Path NAS (arXiv 1904.02877): a smaller depthwise kernel is the centre of the largest one, a smaller
expansion is its first channels; skipping is the identity. `Gates` say how much of each is switched on: hard 0/1 for a
decided block, straight-through samples while gates are trained. For samples all hidden channels are computed and the
closed ones are masked after their normalisation and activation, so that a closed channel is exactly absent, its
batch-norm shift included. With hard gates only what is open is computed, on slices of the shared weights.
`SlicedBlock` is the same block with weights of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from faqs.quant import ActivationQuantiser, quantised_weight, weight_clip
from hwcost import SKIP, BlockChoice, BlockSpec, SearchSpace


@dataclass(frozen=True)
class Gates:
    """One block's gates, scalars in [0, 1]: `keep` (0 skips the block), `kernels[i]` (the ring that the i-th kernel
    size adds is on; the first is always 1), `expansions[i]` likewise, `bits[i]` (one-hot over the weight bits). Hard
    gates name their `choice`."""

    keep: Tensor
    kernels: Tensor
    expansions: Tensor
    bits: Tensor
    choice: BlockChoice | None = None

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
        return replace(cls.of(space, torch.tensor(float(choice != SKIP)), inner), choice=choice)

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
        """`weight` is what the caller made of `self.weight`: quantised, gated, perhaps only its first output channels;
        of the normalisation as many channels are used, and learn."""
        channels, kernel = weight.shape[0], weight.shape[-1]
        if self.groups > 1 and kernel > 3:
            y: Tensor = _Depthwise.apply(x, weight, self.stride)  # type: ignore[no-untyped-call]
        else:
            y = functional.conv2d(x, weight, None, self.stride, kernel // 2, 1, channels if self.groups > 1 else 1)
        quantised: Tensor = self.quantise(self._normalise(y, channels))
        return quantised

    def _normalise(self, y: Tensor, channels: int) -> Tensor:
        norm = self.norm
        if channels == norm.num_features:
            whole: Tensor = norm(y)
            return whole
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        if self.training:
            norm.num_batches_tracked.add_(1)
        momentum = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        mean, variance = norm.running_mean[:channels], norm.running_var[:channels]
        weight, bias = norm.weight[:channels], norm.bias[:channels]
        return functional.batch_norm(y, mean, variance, weight, bias, self.training, momentum, norm.eps)


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of more than 3x3, padded by half its kernel. x [n, c, h, w], weight [c, 1, k, k].

    The gradient of the weight is put together from overlapping windows of 3x3: oneDNN has a fast kernel for these
    alone (a 5x5 one took 2.5 to 3 times as long, 7x7 1.5 to 4 times; 96 to 384 channels of 16x16 to 4x4).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (of_x, of_weight, _), stride = ctx.needs_input_grad, ctx.stride
        channels, _, kernel, _ = weight.shape

        def gradient(x: Tensor, weight: Tensor, padding: int, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
            found = torch.ops.aten.convolution_backward(
                gradients[0], x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], channels,
                [*wanted, False],
            )  # fmt: skip
            return found[0], found[1]

        x_gradient, weight_gradient = None, None
        if of_x:
            x_gradient, _ = gradient(x, weight, kernel // 2, (True, False))
        if of_weight:
            margin, (height, width) = kernel // 2, gradients[0].shape[2:]
            padded = functional.pad(x, (margin,) * 4)
            weight_gradient = torch.empty_like(weight)
            starts = range(0, kernel - 2, 2)  # an odd kernel is covered by windows of 3 at every second place
            for top in starts:
                for left in starts:
                    rows, columns = slice(top, top + 3), slice(left, left + 3)
                    window = padded[:, :, top : top + (height - 1) * stride + 3, left : left + (width - 1) * stride + 3]
                    part = weight_gradient[:, :, rows, columns]
                    part.copy_(gradient(window, weight[:, :, rows, columns], 0, (False, True))[1])
        return x_gradient, weight_gradient, None


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
        if gates.choice is not None:
            return self._decided(x, gates.choice)
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

    def _decided(self, x: Tensor, choice: BlockChoice) -> Tensor:
        if choice == SKIP:
            return x
        cuts, y = block_slices(self.space, self.spec, choice), x
        for name, layer in (("expand", self.expand), ("depthwise", self.depthwise), ("project", self.project)):
            y = layer(y, quantised_weight(layer.weight, choice.weight_bits, cut=cuts[f"{name}.weight"]))
        return y if self.add is None else self.add(x + y)


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
            y = layer(y, quantised_weight(layer.weight, self.choice.weight_bits))
        if self.add is not None:
            y = self.add(x + y)
        return y


def block_slices(space: SearchSpace, spec: BlockSpec, choice: BlockChoice) -> dict[str, tuple[slice, ...]]:
    """Which part of each shared tensor of a block a choice uses: name -> one slice per axis; nothing for a skip."""
    if choice == SKIP:
        return {}
    every, hidden = slice(None), slice(0, spec.in_channels * choice.expansion)
    margin = (space.kernels[-1] - choice.kernel) // 2
    centre = slice(margin, margin + choice.kernel)
    cuts: dict[str, tuple[slice, ...]] = {
        "expand.weight": (hidden, every, every, every),
        "depthwise.weight": (hidden, every, centre, centre),
        "project.weight": (every, hidden, every, every),
    }
    for layer, channels in (("expand", hidden), ("depthwise", hidden), ("project", every)):
        cuts |= {f"{layer}.norm.{name}": (channels,) for name in ("weight", "bias")}
    return cuts


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
