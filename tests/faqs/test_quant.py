import numpy as np
import pytest
import torch
from torch import Tensor

from faqs.quant import (
    CLIP_RMS,
    ActivationQuantiser,
    container_unit,
    container_values,
    nested_codes,
    quantise_input,
    quantised_weight,
    weight_clip,
    weight_codes,
)

BITS = (2, 4, 8)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))


def test_a_narrower_code_is_a_prefix_of_every_wider_one() -> None:
    codes8 = torch.arange(-127, 128, dtype=torch.int8)
    codes4, codes2 = nested_codes(codes8, 4), nested_codes(codes8, 2)
    assert torch.equal(nested_codes(codes8, 8), codes8)
    assert torch.equal(codes4 >> 2, codes2)
    assert (codes4.min(), codes4.max(), codes2.min(), codes2.max()) == (-8, 7, -2, 1)


@pytest.mark.parametrize("bits", BITS)
def test_container_values_fit_int8_and_stand_for_the_trained_weights(weight: Tensor, bits: int) -> None:
    clip = weight_clip(weight)
    values = container_values(nested_codes(weight_codes(weight, clip), bits), bits)
    assert values.dtype == torch.int8
    assert int(values.abs().max()) <= {8: 127, 4: 15, 2: 3}[bits]
    assert bits == 8 or bool((values % 2 != 0).all())
    assert torch.equal(values * container_unit(clip, bits), quantised_weight(weight, bits, clip))


@pytest.mark.parametrize(("bits", "bins"), [(8, 256), (4, 16), (2, 4)])
def test_inside_the_clip_a_weight_moves_by_half_a_bin_at_most(weight: Tensor, bits: int, bins: int) -> None:
    clip = weight_clip(weight)
    inside = weight.abs() < clip * (126 / 128)
    moved = (quantised_weight(weight, bits, clip) - weight).abs() / clip
    # Below 8 bits the bins are those of rounded 8-bit codes: half an 8-bit bin more.
    assert float(moved[inside].max()) <= 1 / bins + (0 if bits == 8 else 1 / 256) + 1e-6


def test_more_bits_are_closer(weight: Tensor) -> None:
    errors = [float((quantised_weight(weight, bits, weight_clip(weight)) - weight).square().mean()) for bits in BITS]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_passes_inside_the_clip_only(weight: Tensor, bits: int) -> None:
    clip = torch.full((6, 1, 1, 1), 0.8)
    leaf = weight.clone().requires_grad_(True)
    quantised_weight(leaf, bits, clip).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, (weight.abs() <= 0.8).float())


def test_the_clip_counts_active_weights_only(weight: Tensor) -> None:
    active = torch.zeros(3, 3)
    active[1, 1] = 1.0
    assert torch.equal(weight_clip(weight, active), weight_clip(weight[:, :, 1:2, 1:2]))
    expected = CLIP_RMS * weight.double().square().mean(dim=(1, 2, 3)).sqrt()
    assert torch.allclose(weight_clip(weight).reshape(-1).double(), expected)


@pytest.mark.parametrize("bits", BITS)
def test_weights_of_zero_stay_next_to_zero(bits: int) -> None:
    zeros = torch.zeros(2, 3, 1, 1)
    assert float(quantised_weight(zeros, bits, weight_clip(zeros)).abs().max()) < 1e-6
    assert float(weight_clip(zeros, torch.zeros(1)).min()) > 0


@pytest.mark.parametrize(("signed", "low", "high"), [(False, 0, 255), (True, -128, 127)])
def test_activations_are_codes_of_a_step(signed: bool, low: int, high: int) -> None:
    quantiser = ActivationQuantiser(signed, clip=2.0)
    x = torch.linspace(-5, 5, 2001)
    codes = quantiser(x).detach() / quantiser.step.detach()
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert (round(float(codes.min())), round(float(codes.max()))) == (low, high)
    inside = x.abs() < 1.9 if signed else (x > 0) & (x < 1.9)
    step = float(quantiser.step.detach())
    assert float((quantiser(x).detach() - x)[inside].abs().max()) <= step / 2 + 1e-6


def test_the_step_learns_from_what_is_clipped_and_what_is_rounded() -> None:
    quantiser = ActivationQuantiser(signed=False, clip=2.0)
    clipped, rounded = torch.tensor([9.0]), torch.tensor([1.0])
    step = float(quantiser.step.detach())
    for x, expected in ((clipped, 255.0), (rounded, round(1.0 / step) - 1.0 / step)):
        quantiser.zero_grad()
        quantiser(x).sum().backward()
        # d/d log_clip = d/d step * step, scaled by 1 / sqrt(numel * high)
        assert quantiser.log_clip.grad is not None
        assert float(quantiser.log_clip.grad) == pytest.approx(expected * step / 255**0.5, rel=1e-3, abs=1e-5)


def test_the_gradient_of_an_activation_stops_at_the_range() -> None:
    quantiser = ActivationQuantiser(signed=False, clip=2.0)
    x = torch.tensor([-1.0, 0.5, 1.5, 3.0], requires_grad=True)
    quantiser(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_an_8_bit_image_is_its_own_quantisation() -> None:
    image = torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255))
    assert torch.equal(quantise_input(image), image)
    assert float(quantise_input(torch.tensor(0.5))) == pytest.approx(128 / 255)
    assert quantise_input(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 1.0]
