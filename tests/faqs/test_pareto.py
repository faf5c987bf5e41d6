import math
from typing import get_args

import pytest
import torch

from faqs.pareto import Form, Pareto
from faqs.preference import Preference
from faqs.train import expected_costs
from hwcost import CostLayer, LookupTable

COSTS = {"latency_s": torch.tensor(3e-3, dtype=torch.float64), "weight_bytes": torch.tensor(2e4, dtype=torch.float64)}


def pareto(form: Form, **multipliers: float) -> Pareto:
    references = {"latency": 4e-3, "size": 8e4}
    return Pareto(form, {"latency": 0.5, "size": 0.2}, {"latency": 2e-3}, references, multipliers)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("additive", 1.5 + 0.5 * math.log(3 / 4) + 0.2 * math.log(2 / 8)),
        ("product", 1.5 * (3 / 2) ** 0.5 * (2 / 8) ** 0.2),
        ("chebyshev", 1.5 + 0.05 * (1.5 + 0.5 * 1.5 + 0.2 * 0.25)),
        ("lagrangian", 1.5 + 0.5 * math.log(3 / 4) + 0.2 * math.log(2 / 8) + ((0.25 + 0.5) ** 2 - 0.25**2) / 2),
    ],
)
def test_each_form_is_its_formula(form: Form, expected: float) -> None:
    made = pareto(form, latency=0.25)
    assert float(made(torch.tensor(1.5), COSTS)) == pytest.approx(expected, rel=1e-6)
    both = made(torch.tensor([1.5, 1.5]), {name: cost.repeat(2) for name, cost in COSTS.items()})
    assert both.tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_the_dearest_cost_rules_the_chebyshev_form_once_it_exceeds_the_loss() -> None:
    loss = torch.tensor(0.1, requires_grad=True)
    latency = COSTS["latency_s"].clone().requires_grad_(True)
    pareto("chebyshev")(loss, {**COSTS, "latency_s": latency}).backward()  # type: ignore[no-untyped-call]
    assert loss.grad is not None and latency.grad is not None
    assert float(loss.grad) == pytest.approx(0.05) and float(latency.grad) == pytest.approx(1.05 * 0.5 / 2e-3)


def test_a_budget_that_holds_pulls_at_nothing_and_one_that_is_broken_pulls_harder_every_round() -> None:
    made, pulls = pareto("lagrangian"), []
    for _ in range(3):
        latency = COSTS["latency_s"].clone().requires_grad_(True)
        (made(torch.tensor(0.0), {**COSTS, "latency_s": latency}) - 0.5 * torch.log(latency)).backward()  # type: ignore[no-untyped-call]
        assert latency.grad is not None
        pulls.append(float(latency.grad) * 2e-3)
        made = made.raised({"latency_s": 3e-3})
    assert pulls == pytest.approx([0.5, 1.0, 1.5], rel=1e-5)
    for _ in range(4):
        made = made.raised({"latency_s": 1e-3})
    assert made.multipliers == {"latency": 0.0}
    latency = torch.tensor(1e-3, dtype=torch.float64, requires_grad=True)
    (made(torch.tensor(0.0), {**COSTS, "latency_s": latency}) - 0.5 * torch.log(latency)).backward()  # type: ignore[no-untyped-call]
    assert latency.grad is not None and abs(float(latency.grad) * 1e-3) < 1e-6
    assert pareto("additive", latency=2.0).raised({"latency_s": 3e-3}).multipliers == {"latency": 2.0}


@pytest.mark.parametrize("form", get_args(Form))
def test_a_client_without_wishes_descends_its_loss_alone(form: Form, table: LookupTable) -> None:
    made = Pareto.of(form, Preference(), table, {})
    assert not made.asks
    logits = torch.zeros(table.legal.shape).masked_fill(~torch.from_numpy(table.legal.copy()), -math.inf)
    value = made(torch.tensor(0.7), expected_costs(logits, CostLayer(table)))
    assert float(value) == pytest.approx(0.7 if form != "chebyshev" else 0.7 * 1.05)
