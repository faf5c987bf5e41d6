import numpy as np
import pytest
import torch
from torch import Tensor

from hwcost.errors import TableError
from hwcost.layer import CostLayer
from hwcost.lookup import METRICS, LookupTable, build_table
from hwcost.pricing import CostModel
from hwcost.space import SearchSpace
from hwcost.testing import plausible_profile

SPACES = [SearchSpace.for_image((1, 8, 8), 10), SearchSpace.for_image((3, 32, 32), 10)]


@pytest.fixture(scope="module", params=SPACES, ids=["digits", "cifar"])
def table(request: pytest.FixtureRequest) -> LookupTable:
    return build_table(request.param, CostModel(plausible_profile(request.param.operators())))


def _soft(layer: CostLayer, generator: torch.Generator) -> Tensor:
    logits = torch.randn(layer.legal.shape, generator=generator, dtype=torch.float64)
    return logits.masked_fill(~layer.legal, -torch.inf).softmax(dim=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_one_hot_choice_costs_exactly_what_the_table_says(table: LookupTable, dtype: torch.dtype) -> None:
    layer, generator = CostLayer(table), np.random.default_rng(0)
    for _ in range(300):
        columns = [int(generator.choice(np.flatnonzero(row))) for row in table.legal]
        one_hot = torch.nn.functional.one_hot(torch.tensor(columns), len(table.space.choices)).to(dtype)
        expected = table.cost(tuple(table.space.choices[column] for column in columns))
        assert {metric: cost.item() for metric, cost in layer(one_hot).items()} == expected


def test_soft_choices_cost_their_expectation(table: LookupTable) -> None:
    layer = CostLayer(table)
    soft = _soft(layer, torch.Generator().manual_seed(0))
    costs = layer(soft)
    assert tuple(costs) == METRICS
    for metric, cost in costs.items():
        expected = table.fixed[metric] + (soft.numpy() * table.values[metric]).sum()
        assert cost.shape == () and cost.dtype == torch.float64
        assert cost.item() == pytest.approx(expected)


def test_the_layer_is_linear_in_the_probabilities(table: LookupTable) -> None:
    layer, generator = CostLayer(table), torch.Generator().manual_seed(1)
    first, second = _soft(layer, generator), _soft(layer, generator)
    mixed, one, two = (layer(soft) for soft in (0.3 * first + 0.7 * second, first, second))
    for metric in METRICS:
        assert mixed[metric].item() == pytest.approx(0.3 * one[metric].item() + 0.7 * two[metric].item())


def test_gradients_are_the_entries_of_the_table(table: LookupTable) -> None:
    layer = CostLayer(table)
    probabilities = _soft(layer, torch.Generator().manual_seed(2)).requires_grad_()
    for metric in METRICS:
        (gradient,) = torch.autograd.grad(layer(probabilities)[metric], probabilities)
        np.testing.assert_array_equal(gradient.numpy(), table.values[metric])


def test_gradcheck_through_a_softmax(table: LookupTable) -> None:
    layer = CostLayer(table)
    logits = torch.randn(layer.legal.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def relative_costs(logits: Tensor) -> Tensor:
        costs = layer(logits.masked_fill(~layer.legal, -torch.inf).softmax(dim=1))
        return torch.stack([costs[metric] / table.cheapest(metric) for metric in METRICS])

    assert torch.autograd.gradcheck(relative_costs, (logits.requires_grad_(),))


def test_casting_the_model_keeps_costs_exact(table: LookupTable) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), CostLayer(table)).half()
    layer = model[1]
    assert isinstance(layer, CostLayer)
    assert model[0].weight.dtype == torch.float16
    assert layer.values.dtype == torch.float64
    np.testing.assert_array_equal(layer.values[0].numpy(), table.values["latency_s"])
    assert not layer.state_dict() and not list(layer.parameters())


def test_probability_on_an_illegal_choice_is_refused(table: LookupTable) -> None:
    uniform = torch.full(table.legal.shape, 1 / table.legal.shape[1])
    assert not table.legal.all()
    with pytest.raises(TableError, match=r"illegal choice has probability 0.*mask the logits with `layer\.legal`"):
        CostLayer(table)(uniform)


def test_another_shape_is_refused(table: LookupTable) -> None:
    with pytest.raises(TableError, match=r"probabilities of shape \(\d+, \d+\) \(blocks, choices\), got \(2, 2\)"):
        CostLayer(table)(torch.ones(2, 2))
