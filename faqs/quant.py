"""Bit-sharing quantisation: one latent weight serves 8, 4 and 2 bits, and every width is a prefix of the 8-bit code.

The 8-bit code is c8 = clamp(round(128 w / a), -127, 127) for a clip `a` per output channel; the b-bit code is its top
b bits, c8 >> (8 - b) (floor, so that codes nest exactly: our design after the bit-sharing idea of arXiv 2210.08450).
A b-bit code stands for the middle of its bin: (2 c + 1) 2^(7 - b) in units of a / 128, an odd number that fits an
int8 container, so that an exported network holds exactly the numbers that were trained. Gradients pass straight
through inside the clip (STE, arXiv 1308.3432). Activations are 8-bit with a learned clip (LSQ, arXiv 1902.08153).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

CLIP_RMS = 2.5
"""The clip of a channel's weights in units of their root mean square: a compromise between the optimal clips of a
Gaussian at 2 bits (about 2) and at 4 bits (about 2.7)."""

_SMALLEST_CLIP = 1e-6


def weight_clip(weight: Tensor, active: Tensor | None = None) -> Tensor:
    """Clip a per output channel, shape [out, 1, ...]: `CLIP_RMS` times the rms of the channel's active weights.

    `active` is a 0/1 tensor that broadcasts to `weight`; without it all weights count. No gradient passes.
    """
    square = weight.detach().double().square()  # float64, so that the order of summation does not matter
    dims = tuple(range(1, weight.dim()))
    if active is None:
        mean_square = square.mean(dim=dims, keepdim=True)
    else:
        mask = active.detach().double().expand_as(square)
        mean_square = (square * mask).sum(dim=dims, keepdim=True) / mask.sum(dim=dims, keepdim=True).clamp(min=1.0)
    return (CLIP_RMS * mean_square.sqrt()).clamp(min=_SMALLEST_CLIP).to(weight.dtype)


def weight_codes(weight: Tensor, clip: Tensor) -> Tensor:
    """8-bit codes (int8, -127..127) of latent weights."""
    return torch.round(weight.detach() * (128.0 / clip)).clamp(-127, 127).to(torch.int8)


def nested_codes(codes8: Tensor, bits: int) -> Tensor:
    """The top `bits` bits of 8-bit codes: floor, so that a narrower code is a prefix of every wider one."""
    return codes8 >> (8 - bits)


def container_values(codes: Tensor, bits: int) -> Tensor:
    """The int8 numbers that b-bit codes stand for, in units of `container_unit`: c at 8 bits, 2 c + 1 below."""
    return codes if bits == 8 else 2 * codes + 1


def container_unit(clip: Tensor, bits: int) -> Tensor:
    """The weight that one step of `container_values` is worth: a / 128 at 8 bits, a 2^(7-b) / 128 below."""
    return clip / 128.0 if bits == 8 else clip * (2.0 ** (7 - bits) / 128.0)


def quantised_weight(weight: Tensor, bits: int, clip: Tensor) -> Tensor:
    """Weights on the b-bit grid, same shape; the gradient passes straight through inside the clip, not outside."""
    codes = nested_codes(weight_codes(weight, clip), bits)
    grid = container_values(codes, bits).to(weight.dtype) * container_unit(clip, bits)
    inside = torch.maximum(torch.minimum(weight, clip), -clip)
    return grid + (inside - inside.detach())  # exactly the grid: the second term is zero


class ActivationQuantiser(nn.Module):
    """8-bit activations with a learned clip: codes 0..255 of [0, clip] (`signed=False`) or -128..127 of +-clip.

    `step` is what an exported network uses.
    """

    def __init__(self, signed: bool, clip: float = 6.0) -> None:
        super().__init__()
        self.signed = signed
        self.low, self.high = (-128, 127) if signed else (0, 255)
        self.log_clip = nn.Parameter(torch.tensor(math.log(clip)))

    @property
    def step(self) -> Tensor:
        """The value of one code, a positive scalar."""
        return self.log_clip.exp() / self.high

    def forward(self, x: Tensor) -> Tensor:
        quantised: Tensor = _LearnedStep.apply(x, self.step, self.low, self.high)  # type: ignore[no-untyped-call]
        return quantised


class _LearnedStep(torch.autograd.Function):
    """round(clamp(x / step)) * step; the gradient of x passes inside the range, that of the step is LSQ's equation 3,
    scaled by 1 / sqrt(numel * high)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        scaled = x / step
        codes = scaled.round().clamp_(low, high)
        ctx.save_for_backward(scaled, codes)
        ctx.range = (low, high)
        return codes * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        scaled, codes = ctx.saved_tensors
        low, high = ctx.range
        inside = (scaled >= low) & (scaled <= high)
        of_x = gradient * inside
        of_step = (gradient * codes).sum() - (of_x * scaled).sum()
        return of_x, of_step / math.sqrt(scaled.numel() * high), None, None


def quantise_input(x: Tensor) -> Tensor:
    """Images in [0, 1] on the 1/255 grid: the input of every network, an 8-bit image as it is."""
    return torch.round(x * 255.0).clamp(0, 255) / 255.0
