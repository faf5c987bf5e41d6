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
    dims = tuple(range(1, weight.dim()))  # below, float64, so that the order of summation does not matter
    if active is None:
        norm: Tensor = torch.linalg.vector_norm(weight.detach(), dim=dims, keepdim=True, dtype=torch.float64)
        clip = norm.mul_(CLIP_RMS / math.sqrt(weight.numel() / weight.shape[0]))
    else:
        square = weight.detach().double().square()
        mask = active.detach().double().expand_as(square)
        mean_square = (square * mask).sum(dim=dims, keepdim=True) / mask.sum(dim=dims, keepdim=True).clamp(min=1.0)
        clip = mean_square.sqrt().mul_(CLIP_RMS)
    return clip.clamp_(min=_SMALLEST_CLIP).to(weight.dtype)


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


def quantised_weight(weight: Tensor, bits: int, clip: Tensor | None = None, cut: tuple[slice, ...] = ()) -> Tensor:
    """Weights on the b-bit grid, those of `cut` alone where one is given; the gradient passes straight through inside
    the clip, not outside. Without a `clip` it is `weight_clip` of them.

    What `container_values` of the nested codes times `container_unit` are, in float arithmetic, which is exact here.
    """
    quantised: Tensor = _StraightThrough.apply(weight, bits, clip, cut)  # type: ignore[no-untyped-call]
    return quantised


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int, clip: Tensor | None, cut: tuple[slice, ...]) -> Tensor:
        part = weight[cut]
        if clip is None:
            clip = weight_clip(part)
        scaled = part * (128.0 / clip)
        ctx.save_for_backward(scaled)
        ctx.cut, ctx.shape = cut, weight.shape
        codes = scaled.round().clamp_(-127, 127)
        if bits < 8:
            codes = codes.mul_(2.0 ** (bits - 8)).floor_().mul_(2.0).add_(1.0)
        return codes.mul_(container_unit(clip, bits))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,), (scaled,) = gradients, ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradient, scaled, -128.0, 128.0)
        if not ctx.cut:
            return passed, None, None, None
        whole = gradient.new_zeros(ctx.shape)
        whole[ctx.cut] = passed
        return whole, None, None, None


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
        return _step(self.log_clip, self.high)

    def forward(self, x: Tensor) -> Tensor:
        quantised: Tensor = _LearnedClip.apply(x, self.log_clip, self.low, self.high)  # type: ignore[no-untyped-call]
        return quantised


def _step(log_clip: Tensor, high: int) -> Tensor:
    return log_clip.exp() / high


class _LearnedClip(torch.autograd.Function):
    """round(clamp(x / step)) * step with step = exp(log_clip) / high; the gradient of x passes inside the range, that
    of the step is LSQ's equation 3, scaled by 1 / sqrt(numel * high).

    d y / d step is y / step outside the range and (y - x) / step inside, so input and output are all that is kept; and
    d step / d log_clip is the step itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_clip: Tensor, low: int, high: int) -> Tensor:
        step = _step(log_clip, high)
        y = (x / step).round_().clamp_(low, high).mul_(step)
        ctx.save_for_backward(x, y, step)
        ctx.range = (low, high)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        x, y, step = ctx.saved_tensors
        low, high = ctx.range
        value = step.item()
        of_x = torch.ops.aten.hardtanh_backward(gradient, x, low * value, high * value)
        of_clip = (_dot(gradient, y) - _dot(of_x, x)) / math.sqrt(x.numel() * high)
        return of_x, of_clip, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, in one pass where both lie in memory alike."""
    if a.dim() == 4 and a.stride() == b.stride() and a.is_contiguous(memory_format=torch.channels_last):
        a, b = (one.as_strided((one.numel(),), (1,)) for one in (a, b))
    return torch.dot(a.reshape(-1), b.reshape(-1))


def quantise_input(x: Tensor) -> Tensor:
    """Images in [0, 1] on the 1/255 grid: the input of every network, an 8-bit image as it is."""
    return torch.round(x * 255.0).clamp(0, 255) / 255.0
