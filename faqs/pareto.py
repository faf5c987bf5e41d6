"""The Pareto function: how a client's loss and the costs of its network become one number to descend.

Forms, with CE the cross-entropy, c_i a cost, r_i that of the largest network, T_i its budget, or r_i where it has none:

- `additive`     CE + sum_i w_i log(c_i / r_i)
- `product`      CE * prod_i (c_i / T_i)^w_i                         (MnasNet, arXiv 1807.11626)
- `chebyshev`    max(CE, max_i w_i c_i / T_i) + 0.05 (CE + sum_i w_i c_i / T_i)
                 (augmented weighted Chebyshev: w_i is the loss that a cost at its target is worth)
- `lagrangian`   the additive form, and for each budget [max(0, m_i + rho g_i)^2 - m_i^2] / (2 rho), g_i = c_i / T_i - 1
                 (augmented Lagrangian for inequalities); the multipliers m_i grow by rho g_i after each round of gates

Whatever the form, budgets are met by projection afterwards; a form only says which networks are preferred.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from faqs.preference import METRIC_OF, Preference, reference_costs
from hwcost import LookupTable

Form: TypeAlias = Literal["additive", "product", "chebyshev", "lagrangian"]
_AUGMENTED = 0.05
_RHO = 1.0


@dataclass(frozen=True)
class Pareto:
    """A form with one client's weights, budgets and, where it has any, multipliers; by the users' names of costs."""

    form: Form
    weights: Mapping[str, float]
    budgets: Mapping[str, float]
    references: Mapping[str, float]
    multipliers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, form: Form, preference: Preference, table: LookupTable, multipliers: Mapping[str, float]) -> "Pareto":
        names = list(dict.fromkeys((*preference.weights, *preference.budgets)))
        return cls(form, preference.weights, preference.budgets, reference_costs(table, names), multipliers)

    @property
    def asks(self) -> bool:
        """Whether any cost matters."""
        return bool(self.weights) or (self.form == "lagrangian" and bool(self.budgets))

    def __call__(self, cross_entropy: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        """One number for each element of `cross_entropy`; `costs` by metric of the lookup table, of the same shape."""

        def over(name: str, target: float) -> Tensor:
            return (costs[METRIC_OF[name]] / target).to(cross_entropy.dtype)

        aimed = [(w, over(name, self.budgets.get(name, self.references[name]))) for name, w in self.weights.items()]
        if self.form == "product":
            value = cross_entropy
            for weight, share in aimed:
                value = value * share**weight
            return value
        if self.form == "chebyshev":
            parts = torch.stack([cross_entropy, *(weight * share for weight, share in aimed)])
            return parts.amax(dim=0) + _AUGMENTED * parts.sum(dim=0)
        value = cross_entropy
        for name, weight in self.weights.items():
            value = value + weight * torch.log(over(name, self.references[name]))
        if self.form == "lagrangian":
            for name, limit in self.budgets.items():
                multiplier = self.multipliers.get(name, 0.0)
                pushed = (multiplier + _RHO * (over(name, limit) - 1)).clamp(min=0)
                value = value + (pushed.square() - multiplier**2) / (2 * _RHO)
        return value

    def raised(self, costs: Mapping[str, float]) -> "Pareto":
        """After a round that ended at these expected costs, by metric: m_i = max(0, m_i + rho g_i)."""
        if self.form != "lagrangian":
            return self
        excess = {name: costs[METRIC_OF[name]] / limit - 1 for name, limit in self.budgets.items()}
        raised = {name: max(0.0, self.multipliers.get(name, 0.0) + _RHO * over) for name, over in excess.items()}
        return replace(self, multipliers=raised)
