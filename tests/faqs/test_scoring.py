import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from faqs.scoring import (
    Scores,
    in_spreads,
    legal_mask,
    logit_scores,
    loss_scores,
    norm_scores,
    random_scores,
    with_hysteresis,
)
from faqs.supernet import SuperNet, new_supernet
from faqs.train import initial_logits
from hwcost import SKIP, BlockChoice, SearchSpace, Stage

SPACE = SearchSpace((2, 8, 8), 5, 6, (Stage(6, 2, 1), Stage(8, 2, 2)), kernels=(3, 5), expansions=(1, 2))
NOTHING = np.zeros((len(SPACE.blocks), len(SPACE.choices)))
GENERATOR = torch.Generator().manual_seed(3)
BATCHES = [
    (torch.rand(16, 2, 8, 8, generator=GENERATOR), torch.randint(5, (16,), generator=GENERATOR)) for _ in range(2)
]


@pytest.fixture
def supernet() -> SuperNet:
    return new_supernet(SPACE, 1)


def in_place_of(block: int, choice: BlockChoice) -> tuple[BlockChoice, ...]:
    changed = list(SPACE.largest)
    changed[block] = choice
    return tuple(changed)


def test_loss_scores_are_the_losses_of_whole_networks_with_one_block_changed(supernet: SuperNet) -> None:
    scores = loss_scores(supernet, BATCHES)
    supernet.train()
    with torch.no_grad():
        for block, column in zip(*np.nonzero(legal_mask(SPACE)), strict=True):
            gates = supernet.hard_gates(in_place_of(int(block), SPACE.choices[column]))
            loss = np.mean([float(functional.cross_entropy(supernet(x, gates), y)) for x, y in BATCHES])
            assert scores[block, column] == pytest.approx(-loss, abs=1e-5)
    assert not scores[~legal_mask(SPACE)].any()


def test_loss_scores_leave_the_network_as_it_was(supernet: SuperNet) -> None:
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    supernet.eval()
    first, again = loss_scores(supernet, BATCHES), loss_scores(supernet, BATCHES)
    assert np.array_equal(first, again)
    assert not supernet.training
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


def test_norms_prefer_what_holds_larger_weights(supernet: SuperNet) -> None:
    with torch.no_grad():
        supernet.blocks[0].depthwise.weight[:, :, 0] *= 30.0  # in the outer ring
        supernet.blocks[1].depthwise.weight[:, :, [0, -1]] *= 0.0
        supernet.blocks[1].depthwise.weight[:, :, :, [0, -1]] *= 0.0
    scores, column = norm_scores(supernet), SPACE.columns
    wider = scores[:, column[BlockChoice(5, 2, 8)]] - scores[:, column[BlockChoice(3, 2, 8)]]
    assert wider[0] > 3 * wider[2] > 0
    assert wider[1] == pytest.approx(0.0, abs=1e-9)
    more_bits = scores[:, column[BlockChoice(3, 2, 8)]] - scores[:, column[BlockChoice(3, 2, 2)]]
    assert (more_bits > 0).all()


@pytest.mark.parametrize("rule", ["losses", "norms", "logits", "random"])
def test_scores_are_in_units_of_their_spread_and_zero_where_illegal(supernet: SuperNet, rule: str) -> None:
    found: dict[str, Scores] = {
        "losses": loss_scores(supernet, BATCHES),
        "norms": norm_scores(supernet),
        "logits": logit_scores(initial_logits(SPACE), SPACE),
        "random": random_scores(SPACE, torch.Generator().manual_seed(0)),
    }
    (scores, spread), legal = in_spreads(found[rule], SPACE), legal_mask(SPACE)
    assert spread > 0 and in_spreads(NOTHING, SPACE)[1] == 1.0
    assert not scores[~legal].any()
    assert float(np.square(scores[legal]).mean()) == pytest.approx(1.0)
    assert np.abs(scores.sum(axis=1)).max() < 1e-9


def test_the_standing_decision_is_worth_its_hysteresis() -> None:
    decided = tuple(itertools.islice(itertools.cycle(SPACE.choices[1:]), len(SPACE.blocks)))
    gained = with_hysteresis(NOTHING, decided, SPACE, 0.5)
    assert [float(gained[i, SPACE.columns[choice]]) for i, choice in enumerate(decided)] == [0.5] * len(decided)
    assert gained.sum() == pytest.approx(0.5 * len(decided))
    assert not with_hysteresis(NOTHING, None, SPACE, 0.5).any()
    assert SPACE.columns[SKIP] == 0
