import itertools

import pytest
import torch
from torch import Tensor

from faqs.superkernel import Gates, SuperBlock
from faqs.supernet import (
    DecidedNet,
    SuperNet,
    decide,
    local_tensors,
    new_supernet,
    recalibrate,
    shared_cuts,
    shared_tensors,
)
from faqs.train import random_architecture
from hwcost import SKIP, BlockChoice, InvalidSpaceError, SearchSpace, Stage

SPACE = SearchSpace(
    (2, 9, 12), 5, 6, (Stage(6, 2, 1), Stage(8, 2, 2)), kernels=(3, 5, 7), expansions=(1, 2, 4), weight_bits=(2, 4, 8)
)
IMAGES = torch.rand(6, 2, 9, 12, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def supernet() -> SuperNet:
    """With statistics and a normalisation that are no longer those of the start."""
    made, generator = new_supernet(SPACE, 1), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.num_features, generator=generator))
                module.bias.copy_(torch.randn(module.num_features, generator=generator))
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return made.eval()


@pytest.mark.parametrize("seed", range(6))
def test_a_decided_network_computes_what_the_gated_supernet_computes(supernet: SuperNet, seed: int) -> None:
    architecture = random_architecture(SPACE, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        gated = supernet(IMAGES, supernet.hard_gates(architecture))
        decided = decide(supernet, architecture).eval()(IMAGES)
    assert torch.allclose(gated, decided, atol=1e-5)
    assert float(gated.std()) > 0.1


def test_a_skipped_block_is_the_identity(supernet: SuperNet) -> None:
    block = supernet.blocks[1]
    x = torch.rand(2, 6, 9, 12)
    assert torch.equal(block(x, Gates.hard(SPACE, SKIP)), x)


def test_closed_channels_and_rings_change_nothing_whatever_they_hold(supernet: SuperNet) -> None:
    block = supernet.blocks[0]
    assert isinstance(block, SuperBlock)
    gates, x = Gates.hard(SPACE, BlockChoice(3, 2, 4)), torch.rand(2, 6, 9, 12)
    with torch.no_grad():
        before = block(x, gates)
        block.expand.weight[12:] += 3.0
        block.expand.norm.bias[12:] += 5.0
        block.depthwise.weight[:, :, 0] += 2.0
        block.depthwise.norm.bias[12:] += 5.0
        block.project.weight[:, 12:] += 1.0
        assert torch.equal(block(x, gates), before)


def test_one_hot_choices_give_hard_nested_gates() -> None:
    for choice in SPACE.choices[1:]:
        gates = Gates.hard(SPACE, choice)
        assert gates.keep == 1
        assert gates.kernels.tolist() == [float(size <= choice.kernel) for size in SPACE.kernels]
        assert gates.expansions.tolist() == [float(size <= choice.expansion) for size in SPACE.expansions]
        assert gates.bits.tolist() == [float(bits == choice.weight_bits) for bits in SPACE.weight_bits]
    assert Gates.hard(SPACE, SKIP).keep == 0


def test_sampled_gates_are_hard_forward_and_reach_every_legal_choice_backward(supernet: SuperNet) -> None:
    logits = torch.zeros(len(SPACE.choices), requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    gates = Gates.sample(SPACE, logits, 1.0, generator)
    for value in (gates.keep[None], gates.kernels, gates.expansions, gates.bits):
        assert set(value.detach().round(decimals=5).abs().tolist()) <= {0.0, 1.0}
    supernet.blocks[1](torch.rand(2, 6, 9, 12), gates).square().sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad != 0).all())


def test_an_illegal_skip_is_never_sampled(supernet: SuperNet) -> None:
    logits = torch.zeros(len(SPACE.choices))
    logits[0] = -torch.inf
    generator = torch.Generator().manual_seed(0)
    assert all(float(Gates.sample(SPACE, logits, 1.0, generator).keep) == 1.0 for _ in range(50))


def test_an_architecture_that_is_no_member_is_refused(supernet: SuperNet) -> None:
    with pytest.raises(InvalidSpaceError, match="block 2 cannot be skip"):
        supernet.hard_gates((SKIP, SKIP, SKIP, SKIP))
    with pytest.raises(InvalidSpaceError, match="has 4 blocks, got 1"):
        DecidedNet(SPACE, (SKIP,))


@pytest.mark.parametrize("seed", range(4))
def test_shared_cuts_are_exactly_the_weights_of_the_decided_network(supernet: SuperNet, seed: int) -> None:
    architecture = random_architecture(SPACE, torch.Generator().manual_seed(seed))
    decided, shared = dict(decide(supernet, architecture).named_parameters()), shared_tensors(supernet)
    cuts = shared_cuts(SPACE, architecture)
    for name, cut in cuts.items():
        assert torch.equal(shared[name][cut], decided[name]), name
    assert {name for name in decided if not name.endswith("log_clip")} == set(cuts)


def test_more_bits_need_no_other_weights() -> None:
    """Latent weights serve every width, so that a client may change its bits without being sent anything."""
    narrow, wide = (tuple(BlockChoice(5, 2, bits) for _ in SPACE.blocks) for bits in (2, 8))
    assert shared_cuts(SPACE, narrow) == shared_cuts(SPACE, wide)


def test_every_number_of_the_supernet_is_either_shared_or_local(supernet: SuperNet) -> None:
    shared, local = shared_tensors(supernet), local_tensors(supernet)
    assert not shared.keys() & local.keys()
    assert shared.keys() | local.keys() == supernet.state_dict().keys()
    assert list(shared) == list(shared_cuts(SPACE, SPACE.largest))
    assert not [name for name in shared if "running" in name or "clip" in name]


def test_the_seed_alone_makes_the_weights() -> None:
    torch.manual_seed(123)
    first, drawn = new_supernet(SPACE, 5), torch.rand(1)
    torch.manual_seed(321)
    second, other = new_supernet(SPACE, 5), new_supernet(SPACE, 6)
    torch.manual_seed(123)
    assert torch.equal(torch.rand(1), drawn), "the global generator is left as it was"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_recalibration_gives_the_statistics_of_the_path_and_restores_the_rest(supernet: SuperNet) -> None:
    decided = decide(supernet, SPACE.largest).eval()
    before = {name: value.clone() for name, value in decided.named_parameters()}
    recalibrate(decided, itertools.repeat(IMAGES, 3), decided)
    seen: list[Tensor] = []
    decided.stem.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        decided(IMAGES)
    assert torch.allclose(decided.stem.norm.running_mean, seen[0].mean(dim=(0, 2, 3)), atol=1e-5)  # type: ignore[arg-type]
    assert decided.stem.norm.momentum == 0.1
    assert not decided.training
    assert all(torch.equal(value, before[name]) for name, value in decided.named_parameters())


@pytest.mark.parametrize("seed", range(4))
def test_a_random_network_inside_another_one_uses_weights_of_that_one_alone(supernet: SuperNet, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outer = random_architecture(SPACE, generator)
    for _ in range(10):
        inner = random_architecture(SPACE, generator, outer)
        SPACE.validate(inner)
        supernet.zero_grad()
        supernet.train()(IMAGES, supernet.hard_gates(inner)).square().sum().backward()
        cuts = shared_cuts(SPACE, outer)
        for name, value in shared_tensors(supernet).items():
            if value.grad is not None:
                outside = value.grad.clone()
                if name in cuts:
                    outside[cuts[name]] = 0.0
                assert not outside.any(), name
