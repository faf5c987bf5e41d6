"""A random forest on the residual of a plain model; and `Trees`, decision trees as plain arrays that numpy can walk.

scikit-learn (as xgboost, in `boosted`) is needed to fit only: the fitted trees are copied node by node, so a stored
predictor does not depend on a library's version, and nothing is unpickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwcost.errors import FitError
from hwcost.predictors.base import State, Values, take
from hwcost.predictors.residual import ResidualPredictor

_TREES = 30


@dataclass(frozen=True, eq=False)
class Trees:
    """Trees in one run of nodes: `roots` [trees] and, per node, the column compared, the threshold, the two children
    (a leaf is its own child) and the value of a leaf. Left when input < threshold. Children come after their parent."""

    roots: NDArray[np.int32]
    columns: NDArray[np.int32]
    thresholds: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        nodes = np.arange(len(self.columns))
        lengths = {len(array) for array in (self.thresholds, self.left, self.right, self.values)}
        leaf = (self.left == nodes) & (self.right == nodes)
        inner = (self.left > nodes) & (self.right > nodes) & (self.left < len(nodes)) & (self.right < len(nodes))
        in_range = (self.roots >= 0).all() and (self.roots < len(nodes)).all() and (self.columns >= 0).all()
        if lengths != {len(nodes)} or not (in_range and (leaf | inner).all()):
            raise FitError("the nodes of stored trees are consistent, got others: run `hwcost fit` again")

    def total(self, inputs: Values) -> Values:
        """The sum of the leaves reached in every tree, [rows]. Inputs [rows, columns] are compared as float32."""
        compared = inputs.astype(np.float32)
        rows = np.arange(len(inputs))[:, None]
        node = np.broadcast_to(self.roots, (len(inputs), len(self.roots)))
        while True:
            goes_left = compared[rows, self.columns[node]] < self.thresholds[node]
            following = np.where(goes_left, self.left[node], self.right[node])
            if np.array_equal(following, node):
                break
            node = following
        result: Values = self.values[node].astype(np.float64).sum(axis=1)
        return result

    def state(self) -> State:
        return {name: getattr(self, name) for name in Trees.__annotations__}

    @classmethod
    def from_state(cls, state: State, columns: int) -> "Trees":
        """Raises `FitError` for nodes that contradict each other or compare a column that inputs do not have."""
        roots, compared, left, right = (
            take(state, name, None).astype(np.int32) for name in ("roots", "columns", "left", "right")
        )
        if (compared >= columns).any():
            raise FitError(f"stored trees compare {columns} columns, got more: run `hwcost fit` again")
        thresholds, values = (take(state, name, None).astype(np.float32) for name in ("thresholds", "values"))
        return cls(roots, compared, thresholds, left, right, values)


def mean_of(bags: Sequence[Trees]) -> Trees:
    """The mean of several sums of trees, as one sum."""
    offsets = np.cumsum([0, *(len(trees.columns) for trees in bags[:-1])]).astype(np.int32)
    moved = [
        (trees.roots + offset, trees.left + offset, trees.right + offset)
        for trees, offset in zip(bags, offsets, strict=True)
    ]
    roots, left, right = (np.concatenate(arrays) for arrays in zip(*moved, strict=True))
    columns, thresholds = (
        np.concatenate([getattr(trees, name) for trees in bags]) for name in ("columns", "thresholds")
    )
    values = np.concatenate([trees.values for trees in bags]) / np.float32(len(bags))
    return Trees(roots, columns, thresholds, left, right, values.astype(np.float32))


class TreesPredictor(ResidualPredictor):
    """Base of the two tree learners: `trees` add up to the residual."""

    min_rows = 12
    trees: Trees

    def correction(self, inputs: Values) -> Values:
        return self.trees.total(inputs)

    def learned_state(self) -> State:
        return self.trees.state()

    def restore(self, state: State) -> None:
        self.trees = Trees.from_state(state, len(self.columns))


class ForestPredictor(TreesPredictor):
    """scikit-learn's random forest: its mean becomes a sum of leaves divided by the number of trees."""

    name = "forest"
    min_rows = 40  # on fewer it was no better than boosted trees, and its fits take as long

    def learn(self, inputs: Values, residual: Values, generator: np.random.Generator) -> None:
        from sklearn.ensemble import RandomForestRegressor

        forest = RandomForestRegressor(
            n_estimators=_TREES,
            max_features=0.33,
            min_samples_leaf=2,
            random_state=int(generator.integers(2**31)),
            n_jobs=1,
        )
        forest.fit(inputs.astype(np.float32), residual)
        self.trees = copy_forest(forest)


def copy_forest(forest: object) -> Trees:
    """The nodes of a fitted forest; scikit-learn goes left on <=, so thresholds move up to the next float."""
    trees = [estimator.tree_ for estimator in forest.estimators_]  # type: ignore[attr-defined]
    offsets = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("columns", "thresholds", "left", "right", "values")}
    for offset, tree in zip(offsets, trees, strict=True):
        leaf = tree.children_left < 0
        own = np.arange(tree.node_count)
        parts["columns"].append(np.where(leaf, 0, tree.feature))
        # Inputs are float32, so x <= t is x < the first float32 above t.
        threshold = tree.threshold.astype(np.float32)
        threshold = np.where(threshold > tree.threshold, threshold, np.nextafter(threshold, np.float32(np.inf)))
        parts["thresholds"].append(np.where(leaf, np.float32(0), threshold))
        parts["left"].append(np.where(leaf, own, tree.children_left) + offset)
        parts["right"].append(np.where(leaf, own, tree.children_right) + offset)
        parts["values"].append(tree.value[:, 0, 0] / len(trees))
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return Trees(
        offsets.astype(np.int32),
        joined["columns"].astype(np.int32),
        joined["thresholds"].astype(np.float32),
        joined["left"].astype(np.int32),
        joined["right"].astype(np.int32),
        joined["values"].astype(np.float32),
    )
