"""The differentiable cost layer: the expected cost of soft choices, linear in their probabilities.

A one-hot choice costs exactly (to the last bit) what the lookup table says of the decoded network: products with 0
and 1 are exact, and the blocks are added in the table's own order.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hwcost.errors import TableError
from hwcost.lookup import METRICS, LookupTable

_ILLEGAL_MASS = 1e-3


class CostLayer(nn.Module):
    """No parameters; buffers `values` float64 [metrics, blocks, choices], `fixed` float64 [metrics], `legal` bool
    [blocks, choices]. They follow `.to(device)` but keep their dtype under `.float()`: costs stay exact."""

    values: Tensor
    fixed: Tensor
    legal: Tensor

    def __init__(self, table: LookupTable) -> None:
        super().__init__()
        stacked = [torch.from_numpy(table.values[metric].copy()) for metric in METRICS]
        self.register_buffer("values", torch.stack(stacked), persistent=False)
        fixed = torch.tensor([table.fixed[metric] for metric in METRICS], dtype=torch.float64)
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("legal", torch.from_numpy(table.legal.copy()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CostLayer":
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def forward(self, probabilities: Tensor) -> dict[str, Tensor]:
        """Expected cost per metric, each a float64 scalar.

        probabilities: [blocks, choices], a row a distribution over `space.choices`. Raises `TableError` for another
        shape, and for probability on an illegal choice, which would be free.
        """
        if probabilities.shape != self.legal.shape:
            raise TableError(
                f"the cost layer takes probabilities of shape {tuple(self.legal.shape)} (blocks, choices), "
                f"got {tuple(probabilities.shape)}"
            )
        if bool((probabilities.detach()[~self.legal].abs() > _ILLEGAL_MASS).any()):
            raise TableError("an illegal choice has probability 0, got more: mask the logits with `layer.legal`")
        expected = (self.values * probabilities.to(torch.float64)).sum(dim=2)
        total = self.fixed
        for block in expected.unbind(dim=1):
            total = total + block
        return dict(zip(METRICS, total.unbind(), strict=True))
