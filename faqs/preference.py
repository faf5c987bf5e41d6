"""What a client wants: hard budgets, weights of a Pareto loss, or both; and the decision that respects them.

Two instruments, each where it works: *weights* pull the gates by the additive Pareto function
CE + sum_i w_i log(cost_i / reference_i) on the differentiable cost layer's expectation; *budgets* are met by
projection, which picks the best-scoring architecture whose table cost lies within every budget (our design: a
Lagrangian on budgets closed the skips first). A decided architecture therefore meets its budgets by the table, always.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from faqs.errors import BudgetError, ConfigError
from hwcost import (
    Architecture,
    LookupTable,
    QuantityError,
    format_bytes,
    format_joules,
    format_seconds,
    parse_bytes,
    parse_joules,
    parse_seconds,
)

METRIC_OF = {
    "latency": "latency_s",
    "size": "weight_bytes",
    "activations": "activation_bytes",
    "energy": "energy_j",
}
"""The names that users write, and the lookup table's metrics."""

_PARSERS = {"latency": parse_seconds, "size": parse_bytes, "activations": parse_bytes, "energy": parse_joules}
_FORMATS = {"latency": format_seconds, "size": format_bytes, "activations": format_bytes, "energy": format_joules}

LABELS_PER_STEP = 4_000
"""How many partial architectures the projection carries from block to block before it thins them out."""


@dataclass(frozen=True)
class Preference:
    """budgets: name -> limit in SI units; weights: name -> weight of log(cost) beside the cross-entropy."""

    budgets: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.budgets, *self.weights):
            if name not in METRIC_OF:
                raise ConfigError(f"a budget or weight is one of {', '.join(METRIC_OF)}, got {name!r}")
        for name, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"the weight of {name} is a number from 0, got {weight}")

    def describe(self) -> str:
        """`latency<=5 ms, size<=100 kB, weight latency=0.1`."""
        parts = [f"{name}<={format_metric(name, limit)}" for name, limit in self.budgets.items()]
        parts += [f"weight {name}={weight:g}" for name, weight in self.weights.items()]
        return ", ".join(parts) or "none"


def format_metric(name: str, value: float) -> str:
    """A cost in the units that people use for it."""
    return _FORMATS[name](value)


def _at_least(name: str, value: float) -> str:
    """Formatted, rounded up to three digits, so that what is printed is reachable."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return format_metric(name, math.ceil(value / unit * (1 + 1e-9)) * unit)


def parse_budget(text: str) -> tuple[str, float]:
    """`latency=5ms` -> ("latency", 0.005); raises `ConfigError`."""
    name, equals, value = text.partition("=")
    if not equals or name.strip() not in METRIC_OF:
        raise ConfigError(
            f"a budget is written NAME=VALUE with NAME one of {', '.join(METRIC_OF)}, got {text!r}: "
            "write it like latency=5ms or size=100kB"
        )
    try:
        return name.strip(), _PARSERS[name.strip()](value)
    except QuantityError as error:
        raise ConfigError(f"in the budget {text!r}: {error}") from None


def check_feasible(table: LookupTable, preference: Preference, client: str) -> None:
    """Raises `BudgetError` naming the cheapest reachable cost when no architecture is within the budgets."""
    for name, limit in preference.budgets.items():
        cheapest = table.cheapest(METRIC_OF[name])
        if cheapest > limit:
            raise BudgetError(
                f"client {client}: no network of this search space is within {name}<={format_metric(name, limit)} on "
                f"{table.device}: the cheapest reachable {name} is {_at_least(name, cheapest)}; raise the budget"
            )
    project(np.zeros(table.legal.shape), table, preference, client)


def project(scores: NDArray[np.float64], table: LookupTable, preference: Preference, client: str = "?") -> Architecture:
    """The legal architecture with the highest sum of `scores` [blocks, choices] within every budget.

    Dynamic programming over the blocks on partial architectures (labels) that carry their exact costs: a label is
    dropped when its cheapest completion breaks a budget or another label is better in score and no worse in
    any cost; beyond `LABELS_PER_STEP` one best label is kept per cell of a grid over the costs. Raises `BudgetError`
    when nothing is within the budgets. What it returns is checked against the table.
    """
    names = list(preference.budgets)
    if not names:
        free = np.where(table.legal, scores, -np.inf).argmax(axis=1)
        return tuple(table.space.choices[index] for index in free)
    metrics = [METRIC_OF[name] for name in names]
    limits = np.array([preference.budgets[name] for name in names]) * (1 - 1e-12)  # sums in another order stay within
    costs = np.stack([table.values[m] for m in metrics], axis=-1)
    blocks = len(table.legal)
    least = np.array([[table.values[m][b][table.legal[b]].min() for m in metrics] for b in range(blocks)])
    least_after = np.concatenate([np.cumsum(least[::-1], axis=0)[::-1][1:], np.zeros((1, len(names)))])
    label_scores, label_costs = np.zeros(1), np.array([[table.fixed[m] for m in metrics]])
    picks: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for block in range(blocks):
        options = np.flatnonzero(table.legal[block])
        grown_scores = (label_scores[:, None] + scores[block, options][None]).ravel()
        grown_costs = (label_costs[:, None] + costs[block, options][None]).reshape(-1, len(names))
        fits = (grown_costs + least_after[block] <= limits).all(axis=1)
        if not fits.any():
            raise BudgetError(
                f"client {client}: no network of this search space is within {preference.describe()} on "
                f"{table.device} at once, though each budget alone is reachable: raise one of them"
            )
        kept = np.flatnonzero(fits)
        kept = kept[_undominated(grown_scores[kept], grown_costs[kept], limits)]
        picks.append((kept // len(options), options[kept % len(options)]))
        label_scores, label_costs = grown_scores[kept], grown_costs[kept]
    best = int(np.argmax(label_scores))
    chosen: list[int] = []
    for parents, options in reversed(picks):
        chosen.append(int(options[best]))
        best = int(parents[best])
    architecture = tuple(table.space.choices[index] for index in reversed(chosen))
    cost = table.cost(architecture)
    for name in over_budget(cost, preference.budgets):
        raise BudgetError(
            f"client {client}: a decided network meets its budget {name}<="
            f"{format_metric(name, preference.budgets[name])}, got {format_metric(name, cost[METRIC_OF[name]])}"
        )
    return architecture


def over_budget(cost: Mapping[str, float], budgets: Mapping[str, float]) -> list[str]:
    """The names of the budgets that a table cost breaks."""
    return [name for name, limit in budgets.items() if cost[METRIC_OF[name]] > limit]


def _undominated(
    scores: NDArray[np.float64], costs: NDArray[np.float64], limits: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indices of the labels worth keeping, best score first."""
    order: NDArray[np.int64] = np.lexsort((*costs.T[::-1], -scores))
    costs = costs[order]
    if len(order) > LABELS_PER_STEP:
        resolution = LABELS_PER_STEP ** (1.0 / costs.shape[1])
        cells = np.floor(costs / limits * resolution).astype(np.int64)
        _, first = np.unique(cells, axis=0, return_index=True)
        thinned = np.unique(np.concatenate([first, costs.argmin(axis=0)]))
        order, costs = order[thinned], costs[thinned]
    if costs.shape[1] == 1:
        before = np.minimum.accumulate(costs[:, 0])
        kept: NDArray[np.int64] = order[np.concatenate([[True], costs[1:, 0] < before[:-1]])]
        return kept
    keep_indices: list[int] = []
    front = np.empty((0, costs.shape[1]))
    for position, cost in enumerate(costs):
        if not (front <= cost).all(axis=1).any():
            keep_indices.append(position)
            front = np.concatenate([front[~(front >= cost).all(axis=1)], cost[None]])
    return order[keep_indices]


def reference_costs(table: LookupTable, names: Sequence[str]) -> dict[str, float]:
    """The costs of the largest network: what the Pareto loss measures weighted costs against."""
    cost = table.cost(table.space.largest)
    return {name: cost[METRIC_OF[name]] for name in names}


def changed_costs(table: LookupTable) -> dict[str, NDArray[np.float64]]:
    """By metric, the cost of the largest network with one block changed, [blocks, choices]; unchanged where illegal."""
    largest = [table.space.columns[choice] for choice in table.space.largest]
    whole, rows = table.cost(table.space.largest), np.arange(len(largest))
    return {
        metric: np.where(table.legal, whole[metric] + values - values[rows, largest][:, None], whole[metric])
        for metric, values in table.values.items()
    }
