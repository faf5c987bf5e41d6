import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from faqs.scoring import Scores, legal_mask, logit_scores, loss_scores, norm_scores, with_hysteresis
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


def test_loss_scores_rank_choices_as_the_losses_of_whole_networks_do(supernet: SuperNet) -> None:
    scores, losses = loss_scores(supernet, BATCHES, NOTHING), np.zeros_like(NOTHING)
    supernet.train()
    with torch.no_grad():
        for block, column in zip(*np.nonzero(legal_mask(SPACE)), strict=True):
            gates = supernet.hard_gates(in_place_of(int(block), SPACE.choices[column]))
            losses[block, column] = np.mean(
                [float(functional.cross_entropy(supernet(x, gates), y)) for x, y in BATCHES]
            )
    for row, legal, lost in zip(scores, legal_mask(SPACE), losses, strict=True):
        assert np.corrcoef(row[legal], -lost[legal])[0, 1] > 1 - 1e-6
    differences = (scores[0, 1] - scores[0, 5]) / (losses[0, 5] - losses[0, 1])
    assert differences == pytest.approx((scores[3, 1] - scores[3, 6]) / (losses[3, 6] - losses[3, 1]), rel=1e-3)


def test_loss_scores_leave_the_network_as_it_was(supernet: SuperNet) -> None:
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    supernet.eval()
    first, again = loss_scores(supernet, BATCHES, NOTHING), loss_scores(supernet, BATCHES, NOTHING)
    assert np.array_equal(first, again)
    assert not supernet.training
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


def test_penalties_lower_the_scores_of_what_they_name(supernet: SuperNet) -> None:
    penalties = NOTHING.copy()
    penalties[1, SPACE.columns[BlockChoice(5, 2, 8)]] = 50.0
    scores = loss_scores(supernet, BATCHES, penalties)
    assert int(scores[1][legal_mask(SPACE)[1]].argmin()) == int(
        np.flatnonzero(np.flatnonzero(legal_mask(SPACE)[1]) == SPACE.columns[BlockChoice(5, 2, 8)])[0]
    )


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


@pytest.mark.parametrize("rule", ["losses", "norms", "logits"])
def test_scores_are_in_units_of_their_spread_and_zero_where_illegal(supernet: SuperNet, rule: str) -> None:
    found: dict[str, Scores] = {
        "losses": loss_scores(supernet, BATCHES, NOTHING),
        "norms": norm_scores(supernet),
        "logits": logit_scores(initial_logits(SPACE), SPACE),
    }
    scores, legal = found[rule], legal_mask(SPACE)
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
