"""Gradient-boosted trees (xgboost) on the residual of a plain model.

The trees are read out of the fitted booster and kept as `Trees`, so predicting needs no xgboost, whatever its version.
"""

import json

import numpy as np

from hwcost.predictors.base import Values
from hwcost.predictors.forest import Trees, TreesPredictor, mean_of

_ROUNDS = 120
_BAGS = 2
_PARAMETERS = {
    "objective": "reg:pseudohubererror",
    "huber_slope": 0.05,  # rows that other work disturbed must not bend the trees
    "base_score": 0.0,
    "eta": 0.1,
    "max_depth": 4,
    "min_child_weight": 1.0,
    "lambda": 1.0,
    "subsample": 0.8,
    "colsample_bytree": 0.8,
    "tree_method": "exact",
    "nthread": 1,
    "verbosity": 0,
}


class BoostedPredictor(TreesPredictor):
    """xgboost with exact splits, one thread: the same seed gives the same trees. The correction never falls where an
    input that costs time grows, as the plain model does not (its terms' shares of the whole are left free)."""

    name = "boosted"

    def learn(self, inputs: Values, residual: Values, generator: np.random.Generator) -> None:
        import xgboost

        data = xgboost.DMatrix(inputs.astype(np.float32), label=residual, nthread=1)
        parameters = {**_PARAMETERS, "monotone_constraints": tuple(self.rising.astype(int).tolist())}
        bags = [
            xgboost.train({**parameters, "seed": int(generator.integers(2**31))}, data, num_boost_round=_ROUNDS)
            for _ in range(_BAGS)
        ]
        self.trees = mean_of([_copy(bytes(bag.save_raw("json"))) for bag in bags])


def _copy(document: bytes) -> Trees:
    """The nodes of a booster's JSON; a leaf carries its value in `split_conditions` and has child -1."""
    trees = json.loads(document)["learner"]["gradient_booster"]["model"]["trees"]
    roots = np.cumsum([0, *(len(tree["left_children"]) for tree in trees[:-1])])

    def joined(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.array(tree[name], dtype=dtype) for tree in trees])

    offset = np.repeat(roots, [len(tree["left_children"]) for tree in trees])
    left, right = joined("left_children", np.int64), joined("right_children", np.int64)
    leaf, own = left < 0, np.arange(len(left))
    conditions = joined("split_conditions", np.float32)
    return Trees(
        roots.astype(np.int32),
        np.where(leaf, 0, joined("split_indices", np.int64)).astype(np.int32),
        np.where(leaf, np.float32(0), conditions),
        np.where(leaf, own, left + offset).astype(np.int32),
        np.where(leaf, own, right + offset).astype(np.int32),
        np.where(leaf, conditions, np.float32(0)),
    )
