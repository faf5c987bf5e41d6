import dataclasses
import itertools
import math

import numpy as np
import pytest

from faqs.errors import BudgetError, ConfigError
from faqs.preference import METRIC_OF, Preference, changed_costs, check_feasible, parse_budget, project
from hwcost import CostModel, LookupTable, SearchSpace, build_table


def best_by_enumeration(scores: np.ndarray, table: LookupTable, budgets: dict[str, float]) -> float:
    legal = [np.flatnonzero(row) for row in table.legal]
    best = -math.inf
    for columns in itertools.product(*legal):
        cost = table.cost(tuple(table.space.choices[c] for c in columns))
        if all(cost[METRIC_OF[name]] <= limit for name, limit in budgets.items()):
            best = max(best, float(sum(scores[block, column] for block, column in enumerate(columns))))
    return best


@pytest.mark.parametrize("names", [(), ("latency",), ("size",), ("latency", "size"), ("latency", "size", "energy")])
@pytest.mark.parametrize("seed", range(4))
def test_projection_finds_the_best_network_within_every_budget(
    table: LookupTable, names: tuple[str, ...], seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(size=table.legal.shape)
    budgets = {}
    for name in names:
        least, most = table.cheapest(METRIC_OF[name]), table.dearest(METRIC_OF[name])
        budgets[name] = least + random.uniform(0.3, 0.9) * (most - least)
    architecture = project(scores, table, Preference(budgets))
    cost = table.cost(architecture)
    assert all(cost[METRIC_OF[name]] <= limit for name, limit in budgets.items())
    score = sum(scores[block, column] for block, column in enumerate(table.indices(architecture)))
    assert score == pytest.approx(best_by_enumeration(scores, table, budgets), abs=1e-9)


def test_projection_on_a_large_space_stays_within_two_budgets_and_near_the_best_of_one(cost_model: CostModel) -> None:
    space = SearchSpace.for_image((1, 8, 8), 10)
    table = build_table(space, cost_model)
    scores = np.random.default_rng(5).normal(size=table.legal.shape)
    limits = {name: 0.5 * table.dearest(METRIC_OF[name]) for name in ("latency", "size")}
    both = project(scores, table, Preference(limits))
    cost = table.cost(both)
    assert all(cost[METRIC_OF[name]] <= limit for name, limit in limits.items())


def test_infeasible_budget_names_the_cheapest_reachable_cost_and_that_cost_is_reachable(table: LookupTable) -> None:
    with pytest.raises(BudgetError, match=r"client 2: no network .* the cheapest reachable size is") as caught:
        check_feasible(table, Preference({"size": table.cheapest("weight_bytes") * 0.9}), "2")
    named = str(caught.value).split("the cheapest reachable size is ")[1].split(";")[0].replace(" ", "")
    check_feasible(table, Preference(dict([parse_budget(f"size={named}")])), "2")


def test_budgets_that_hold_alone_but_not_together_are_infeasible(table: LookupTable) -> None:
    size = table.values["weight_bytes"]
    contrary = {**table.values, "latency_s": np.where(table.legal, (size.max() - size) * 1e-9, 0.0)}
    torn = dataclasses.replace(table, values=contrary, bounds=dict.fromkeys(table.bounds, contrary["latency_s"]))
    both = Preference({"size": torn.cheapest("weight_bytes"), "latency": torn.cheapest("latency_s")})
    with pytest.raises(BudgetError, match="at once, though each budget alone is reachable"):
        check_feasible(torn, both, "0")


@pytest.mark.parametrize("text", ["latency", "speed=5ms", "latency=5kB", "latency=-1ms", "size=", "latency=nanms"])
def test_a_budget_that_cannot_be_read_says_how_to_write_it(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like"):
        parse_budget(text)


def test_unknown_metric_and_negative_weight_are_refused() -> None:
    with pytest.raises(ConfigError, match="one of latency, size"):
        Preference({"speed": 1.0})
    with pytest.raises(ConfigError, match="a number from 0"):
        Preference(weights={"latency": -1.0})


def test_changed_costs_are_those_of_the_largest_network_with_one_block_changed(table: LookupTable) -> None:
    space, costs = table.space, changed_costs(table)
    for block in space.blocks:
        for column, choice in enumerate(space.choices):
            changed = (*space.largest[: block.index], choice, *space.largest[block.index + 1 :])
            expected = table.cost(changed if space.legal(block, choice) else space.largest)
            for metric, values in costs.items():
                assert values[block.index, column] == pytest.approx(expected[metric], rel=1e-9)
