"""The lookup table: what every choice of every block of a search space costs on one device.

It is computed once per (space, device), small enough to travel to a client as JSON, and exact: a member's cost is the
fixed part plus one entry per block, added in that order everywhere, so that the table, the differentiable layer and any
other reader get the same floats. An illegal choice is marked, not free.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwcost.energy import energy_j
from hwcost.errors import TableError, first_fault
from hwcost.ops import activation_bytes, weight_bytes
from hwcost.pricing import COMPOSITION, CostModel, Price
from hwcost.space import Architecture, Layer, SearchSpace

METRICS: Final = ("latency_s", "weight_bytes", "activation_bytes", "energy_j")
"""Seconds per call, stored bytes of the weights, bytes of all activations written, joules (modelled)."""

# 1: first version.
TABLE_VERSION: Final = 1

_BOUNDS = ("latency_low_s", "latency_high_s")
_COLUMNS = (*METRICS, *_BOUNDS)
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LookupTable:
    """Costs of a space on a device.

    `values[metric]` and `bounds[end]`: float64 [blocks, choices], choices in the order of `space.choices`, 0 where not
    `legal` (bool, same shape) and where a block is skipped. `fixed`, `fixed_bounds`: what every member pays (for the
    latency, the runtime's overhead too). `bounds` are the ends of the latency's interval, `latency_low_s` and
    `latency_high_s`.
    `sources`: where the latencies come from. Raises `TableError` when these contradict each other.
    """

    space: SearchSpace
    device: str
    values: dict[str, Values]
    bounds: dict[str, Values]
    fixed: dict[str, float]
    fixed_bounds: dict[str, float]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = (len(self.space.blocks), len(self.space.choices))
        for what, entries, names in (
            ("values", self.values, METRICS),
            ("bounds", self.bounds, _BOUNDS),
            ("fixed", self.fixed, METRICS),
            ("fixed_bounds", self.fixed_bounds, _BOUNDS),
        ):
            if tuple(entries) != names:
                raise TableError(f"the {what} of a lookup table are {', '.join(names)}, got {', '.join(entries)}")
        for name, array in (self.values | self.bounds).items():
            if array.shape != shape or not (np.isfinite(array).all() and (array >= 0).all()):
                raise TableError(
                    f"{name} of a lookup table is {shape[0]} blocks x {shape[1]} choices of finite costs, at least 0, "
                    f"got shape {array.shape}: build the table again"
                )
            if array[~self.legal].any():
                raise TableError(f"{name} of a lookup table is 0 where a choice is illegal: build the table again")
        if not all(np.isfinite(cost) and cost > 0 for cost in (self.fixed | self.fixed_bounds).values()):
            raise TableError(f"the fixed costs of a lookup table are positive, got {self.fixed | self.fixed_bounds}")
        for array in (*self.values.values(), *self.bounds.values()):
            array.flags.writeable = False
        self.legal.flags.writeable = False

    @cached_property
    def legal(self) -> NDArray[np.bool_]:
        """bool [blocks, choices]."""
        rows = [[self.space.legal(block, choice) for choice in self.space.choices] for block in self.space.blocks]
        return np.array(rows, dtype=np.bool_)

    def indices(self, architecture: Architecture) -> tuple[int, ...]:
        """The column of each block's choice; raises `InvalidSpaceError`."""
        self.space.validate(architecture)
        return tuple(self.space.columns[choice] for choice in architecture)

    def cost(self, architecture: Architecture) -> dict[str, float]:
        """Every metric of one member; raises `InvalidSpaceError`."""
        columns = self.indices(architecture)
        return {metric: _add_up(self.fixed[metric], self.values[metric], columns) for metric in METRICS}

    def latency_interval(self, architecture: Architecture) -> tuple[float, float]:
        """The seconds between which one call of a member lies, about 90 % (`hwcost.pricing` argues the rule)."""
        columns = self.indices(architecture)
        low_s, high_s = (_add_up(self.fixed_bounds[end], self.bounds[end], columns) for end in _BOUNDS)
        return low_s, high_s

    def cheapest(self, metric: str) -> float:
        """The least that any member costs, to name it when a budget is infeasible."""
        return self._extreme(metric, np.argmin, np.inf)

    def dearest(self, metric: str) -> float:
        """The most that any member costs."""
        return self._extreme(metric, np.argmax, -np.inf)

    def _extreme(self, metric: str, pick: Callable[..., NDArray[np.intp]], outside: float) -> float:
        if metric not in METRICS:
            raise TableError(f"a metric is one of {', '.join(METRICS)}, got {metric!r}")
        columns = pick(np.where(self.legal, self.values[metric], outside), axis=1)
        return _add_up(self.fixed[metric], self.values[metric], tuple(columns.tolist()))

    def to_json(self) -> str:
        """One JSON document; floats round-trip exactly."""
        return _TableFile(
            space=self.space,
            device=self.device,
            values={name: array.tolist() for name, array in self.values.items()},
            bounds={name: array.tolist() for name, array in self.bounds.items()},
            fixed=self.fixed,
            fixed_bounds=self.fixed_bounds,
            sources=self.sources,
        ).model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> "LookupTable":
        """Validated; raises `TableError` naming the wrong field."""
        try:
            document = _TableFile.model_validate_json(text)
            return cls(
                document.space,
                document.device,
                {name: np.array(rows, dtype=np.float64) for name, rows in document.values.items()},
                {name: np.array(rows, dtype=np.float64) for name, rows in document.bounds.items()},
                document.fixed,
                document.fixed_bounds,
                document.sources,
            )
        except ValidationError as error:
            raise TableError(
                f"not a lookup table of version {TABLE_VERSION}: {first_fault(error)}: build the table again"
            ) from None
        except ValueError as error:  # rows of unequal length
            if isinstance(error, TableError):
                raise
            raise TableError(f"the values of a lookup table are rows of equal length, got {error}") from None


class _TableFile(BaseModel):
    """The JSON form."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: Literal["hwcost-lookup-table"] = "hwcost-lookup-table"
    version: Literal[1] = TABLE_VERSION
    space: SearchSpace
    device: str = Field(min_length=1)
    values: dict[str, list[list[float]]]
    bounds: dict[str, list[list[float]]]
    fixed: dict[str, float]
    fixed_bounds: dict[str, float]
    sources: tuple[str, ...]


def _add_up(fixed: float, values: Values, columns: tuple[int, ...]) -> float:
    """Fixed part first, then block by block: the one order of summation."""
    total = fixed
    for row, column in enumerate(columns):
        total += float(values[row, column])
    return total


def build_table(space: SearchSpace, cost_model: CostModel) -> LookupTable:
    """Price every choice of every block, each distinct layer once; raises `UnknownOperatorError`."""
    fixed_layers = space.fixed_layers()
    groups = {
        (row, column): space.block_layers(block, choice)
        for row, block in enumerate(space.blocks)
        for column, choice in enumerate(space.choices)
        if space.legal(block, choice)
    }
    layers = tuple(dict.fromkeys(itertools.chain(fixed_layers, *groups.values())))
    prices = cost_model.prices(layers)
    costs = np.array([*map(_layer_cost, layers, prices), (0.0,) * len(_COLUMNS)])  # the last row: no layer
    row_of = {layer: row for row, layer in enumerate(layers)}
    # [blocks, choices, layers of a block]: rows of `costs`
    members = np.full((len(space.blocks), len(space.choices), max(map(len, groups.values()))), len(layers))
    for position, group in groups.items():
        members[position][: len(group)] = [row_of[layer] for layer in group]
    entries = dict(zip(_COLUMNS, _in_order(np.moveaxis(costs[members], 2, 0)).transpose(2, 0, 1), strict=True))
    fixed = dict(zip(_COLUMNS, _in_order(costs[[row_of[layer] for layer in fixed_layers]]).tolist(), strict=True))
    overhead_s = cost_model.profile.run_overhead_s
    fixed["latency_s"] += overhead_s
    for end, factor in zip(_BOUNDS, (1 - COMPOSITION, 1 + COMPOSITION), strict=True):
        fixed[end] += overhead_s * factor
    return LookupTable(
        space,
        cost_model.device,
        {name: entries[name] for name in METRICS},
        {name: entries[name] for name in _BOUNDS},
        {name: fixed[name] for name in METRICS},
        {name: fixed[name] for name in _BOUNDS},
        tuple(sorted({price.label for price in prices})),
    )


def _in_order(costs: Values) -> Values:
    """The sum over the first axis, one after the other as they are executed (numpy's own sum may pair them)."""
    total = np.zeros(costs.shape[1:])
    for cost in costs:
        total = total + cost
    return total


def _layer_cost(layer: Layer, price: Price) -> tuple[float, ...]:
    """In the order of `_COLUMNS`. Storage at the stored precision; time and energy on the kernel that runs it."""
    op, precision = layer
    return (
        price.latency_s,
        float(weight_bytes(op, precision)),
        float(activation_bytes(op, precision)),
        energy_j(op, price.runs_as),
        *price.part_s,
    )
