"""NAS-Bench-201 as a table of networks: what a cell computes, which cells are one, and what a cell costs in outline.

A cell has four nodes in order and an operation on each of the six edges between them. Whatever an edge of `none` leaves
without a path from input to output is not computed, and `skip_connect` computes nothing. The network is fifteen equal
cells, five each at 16, 32 and 64 channels on planes of 32, 16 and 8, between a stem, two reducing blocks and a head.
"""

import csv
import gzip
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

TABLE: Final = "nasbench201_cifar10_ms.csv.gz"
OPERATIONS: Final = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES: Final = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From node, to node, in the order in which a cell is written."""
_NODES: Final = 4
_FIRST: Final = tuple(edge for edge, (source, _) in enumerate(EDGES) if source == 0)
_PATHS: Final = ((3,), (0, 4), (1, 5), (0, 2, 5))
"""The edges of every path from input to output."""
_OPERATION: Final = re.compile(r"([a-z0-9_]+)~(\d)")
_PRUNED: Final = {"raspi4": 1.0}
"""Rows of a device below so many milliseconds are of graphs that the converter emptied."""
_MACS: Final = {
    "nor_conv_1x1": 5 * sum(plane**2 * width**2 for width, plane in ((16, 32), (32, 16), (64, 8))),
    "nor_conv_3x3": 9 * 5 * sum(plane**2 * width**2 for width, plane in ((16, 32), (32, 16), (64, 8))),
}
"""Multiply-accumulates of an operation in all fifteen cells."""
_FIXED_MACS: Final = 7_783_424
"""Those outside the cells: the stem, the two reducing blocks, and the head."""


def _roughly(name: str) -> float:
    """How long an operation takes, in multiply-accumulates of one 1x1 convolution; a pool reads as much as that."""
    return {"nor_conv_3x3": 9.0, "nor_conv_1x1": 1.0, "avg_pool_3x3": 1.0}.get(name, 0.0)


@dataclass(frozen=True)
class Cell:
    """The operation on each edge, in the order of `EDGES`."""

    operations: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """From `|nor_conv_3x3~0|+|...|`; raises `ValueError`."""
        found = _OPERATION.findall(text)
        nodes = [int(source) for _, source in found]
        if nodes != [source for source, _ in EDGES] or not {name for name, _ in found} <= set(OPERATIONS):
            raise ValueError(f"a cell has an operation of NAS-Bench-201 on each of six edges, got {text!r}")
        return cls(tuple(name for name, _ in found))

    @cached_property
    def live(self) -> tuple[bool, ...]:
        """Which edges lie on a path from input to output."""
        used = [name != "none" for name in self.operations]
        fed, wanted = {0}, {_NODES - 1}
        for (source, target), used_ in zip(EDGES, used, strict=True):
            if used_ and source in fed:
                fed.add(target)
        for (source, target), used_ in reversed(list(zip(EDGES, used, strict=True))):
            if used_ and target in wanted:
                wanted.add(source)
        return tuple(
            used_ and source in fed and target in wanted for (source, target), used_ in zip(EDGES, used, strict=True)
        )

    @cached_property
    def terms(self) -> tuple[Counter[str], ...]:
        """What each node is a sum of: operations applied to what their source is, `x` being the input."""
        sums: list[Counter[str]] = [Counter({"x": 1})] + [Counter() for _ in range(_NODES - 1)]
        for (source, target), name, live in zip(EDGES, self.operations, self.live, strict=True):
            if live and name == "skip_connect":
                sums[target] += sums[source]
            elif live:
                sums[target][f"{name}({_text(sums[source])})"] += 1
        return tuple(sums)

    @cached_property
    def computation(self) -> str:
        """Equal for cells that compute the same from the same operations: their output as a formula, and what has to
        be computed for it, since two branches may share an operation or each have one of its own."""
        made = Counter(
            f"{name}({_text(self.terms[source])})"
            for (source, _), name, live in zip(EDGES, self.operations, self.live, strict=True)
            if live and name != "skip_connect"
        )
        return f"{_text(self.terms[-1])} of {_text(made)}"

    @cached_property
    def kept(self) -> tuple[bool, ...]:
        """Which edges a converter keeps that removes what the output does not read: all on a path to the output."""
        wanted, found = {_NODES - 1}, []
        for (source, target), name in reversed(list(zip(EDGES, self.operations, strict=True))):
            found.append(target in wanted)
            if target in wanted and name != "none":
                wanted.add(source)
        return tuple(reversed(found))

    @property
    def longest(self) -> list[int]:
        """How often each operation but `none` stands on the path from input to output that takes longest, roughly."""
        found: list[str] = []
        for path in _PATHS:
            names = [self.operations[edge] for edge in path]
            if "none" not in names and sum(map(_roughly, names)) >= sum(map(_roughly, found)):
                found = names
        return [found.count(name) for name in OPERATIONS[1:]]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the network, all edges computed."""
        return _FIXED_MACS + sum(_MACS.get(name, 0) for name in self.operations)

    def counts(self, edges: tuple[bool, ...]) -> list[int]:
        """How often each operation but `none` stands on these edges."""
        on = Counter(name for name, used in zip(self.operations, edges, strict=True) if used)
        return [on[name] for name in OPERATIONS[1:]]

    def additions(self, edges: tuple[bool, ...]) -> int:
        """Sums of two tensors that these edges need."""
        into = Counter(
            target
            for (_, target), name, used in zip(EDGES, self.operations, edges, strict=True)
            if used and name != "none"
        )
        return sum(count - 1 for count in into.values())


def _text(terms: Counter[str]) -> str:
    return "+".join(sorted(terms.elements()))


@dataclass(frozen=True, eq=False)
class Table:
    """Latencies in seconds [networks, devices], nan where a row does not count, of cells in the order of the file."""

    cells: tuple[Cell, ...]
    devices: tuple[str, ...]
    latency_s: Values


def read_table(folder: Path) -> Table:
    """The latency table of a folder; every column but the cell's is a device. Raises `SystemExit`."""
    path = folder / TABLE
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SystemExit(
            f"the latency tables are wanted in {folder}, got no {TABLE} ({error.strerror}): name --data"
        ) from None
    devices = tuple(name for name in rows[0] if name not in ("arch_idx", "arch_str"))
    latency_ms = np.array([[float(row[device] or "nan") for device in devices] for row in rows])
    for place, device in enumerate(devices):
        latency_ms[latency_ms[:, place] < _PRUNED.get(device, 0.0), place] = np.nan
    return Table(tuple(Cell.parse(row["arch_str"]) for row in rows), devices, latency_ms * 1e-3)


def distinct(cells: tuple[Cell, ...]) -> NDArray[np.int64]:
    """The class of each cell, [cells]: equal numbers compute the same."""
    _, classes = np.unique(np.array([cell.computation for cell in cells]), return_inverse=True)
    return classes.reshape(-1)


def ways_to_count(cells: tuple[Cell, ...]) -> dict[str, Values]:
    """What a device may execute of a cell: every edge, as an eager runtime does; what the output reads, as a converted
    graph does; what lies on a path from input to output, as one does that folds constants, too; the longest such path,
    where branches run at once. Each gives a constant, the number of every operation and, where nothing idle is left, of
    additions, [networks, features]."""
    every = (True,) * len(EDGES)
    eager = [[1, *cell.counts(every)] for cell in cells]
    converted = [[1, *cell.counts(cell.kept), cell.additions(cell.kept)] for cell in cells]
    folded = [[1, *cell.counts(cell.live), cell.additions(cell.live)] for cell in cells]
    reads_input = np.array(
        [any(cell.kept[edge] and cell.operations[edge] != "none" for edge in _FIRST) for cell in cells]
    )
    connected = np.array([any(cell.live) for cell in cells])
    return {
        "eager": np.array(eager, dtype=np.float64),
        "converted": np.array(converted) * reads_input[:, None].astype(np.float64),
        "folded": np.array(folded) * connected[:, None].astype(np.float64),
        "longest path": np.array([[1, *cell.longest] for cell in cells], dtype=np.float64),
    }
