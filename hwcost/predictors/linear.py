"""Three plain models: proportional to the work (the baseline everybody starts with), and two sums of counts.

A sum has non-negative coefficients, so that it stays positive and grows with every count, also where nothing was
profiled: t = sum_i c_i x_i, c_i >= 0, least squares on the relative error.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hwcost.features import WAYS, column, way_of
from hwcost.predictors.base import Predictor, State, Values, prefixed, take, unprefixed
from hwcost.predictors.roofline import RooflinePredictor
from hwcost.tiling import WORK

_COUNTS = (
    ("log_macs",),
    ("log_macs_tiled_16",),
    ("log_input_elements",),
    ("log_output_elements",),
    ("log_weights",),
    ("log_output_plane", "log_reduction"),
    ("log_output_elements", "log_reduction"),
)
"""Each count as the product of the features named; the last two: elements of the unfolded input, and of all windows."""

_RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class FlopsPredictor(Predictor):
    """Seconds proportional to the multiply-accumulates (to the elements written where there are none)."""

    name = "flops"
    log_s_per_operation: float

    @staticmethod
    def _work(features: Values) -> Values:
        macs = features[:, column("log_macs")]
        return np.where(macs > 0, macs, features[:, column("log_output_elements")])

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        target = cls.check_rows(features, latency_s)
        return cls(float(np.median(target - cls._work(features))))

    def log_latency(self, features: Values) -> Values:
        return self._work(features) + self.log_s_per_operation

    def state(self) -> State:
        return {"log_s_per_operation": np.array(self.log_s_per_operation)}

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(float(take(state, "log_s_per_operation").item()))


def _counts(features: Values) -> Values:
    """1 and the counts, [rows, 1 + counts]."""
    columns = [np.exp(features[:, [column(name) for name in names]].sum(axis=1)) for names in _COUNTS]
    return np.column_stack([np.ones(len(features)), *columns])


def _non_negative(gram: Values, moment: Values, start: Values) -> Values:
    """argmin c' gram c / 2 - moment' c over c >= 0 for a positive definite gram: the active set of Lawson and Hanson,
    Solving Least Squares Problems (1974), chapter 23, from a `start` >= 0 that may be near."""
    size = len(moment)
    solution, free = start, start > 0
    tolerance = 1e-10 * max(float(np.abs(moment).max(initial=0.0)), 1e-300)
    for _ in range(3 * size + 1):
        trial = _solved(gram, moment, free)
        while (below := free & (trial <= 0)).any():
            # As far towards the trial as all stay positive; what meets zero first is held there.
            steps = np.where(below, solution / np.where(below, solution - trial, 1.0), np.inf)
            first = int(steps.argmin())
            solution = np.maximum(solution + max(steps[first], 0.0) * (trial - solution), 0.0)
            free[first] = False
            solution[~free] = 0.0
            trial = _solved(gram, moment, free)
        solution = trial
        slope = np.where(free, -np.inf, moment - gram @ solution)
        if slope.max(initial=-np.inf) <= tolerance:
            break
        free[slope.argmax()] = True
    result: Values = solution
    return result


def _solved(gram: Values, moment: Values, free: NDArray[np.bool_]) -> Values:
    """The unconstrained minimum over the free variables; the others are 0."""
    found = np.zeros(len(moment))
    found[free] = np.linalg.solve(gram[np.ix_(free, free)], moment[free])
    return found


@dataclass(frozen=True, eq=False)
class LinearPredictor(Predictor):
    """`coefficients`: seconds per call and per unit of each count, all at least 0."""

    name = "linear"
    min_rows = 3
    coefficients: Values

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        cls.check_rows(features, latency_s)
        relative = _counts(features) / latency_s[:, None]
        scale = np.sqrt((relative**2).mean(axis=0))
        design = relative / scale
        gram = design.T @ design + _RIDGE * len(design) * np.eye(len(scale))
        return cls(_non_negative(gram, design.sum(axis=0), np.zeros(len(scale))) / scale)

    def log_latency(self, features: Values) -> Values:
        return np.log(_counts(features) @ self.coefficients)

    def state(self) -> State:
        return {"coefficients": self.coefficients}

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(take(state, "coefficients", 1 + len(_COUNTS)))


_TERMS = (
    "log_read_bytes",
    "log_output_bytes",
    "log_weight_bytes",
    "log_input_elements",
    "log_output_elements",
    "log_window_elements",
    "log_runs",
    "log_run_rests",
    "log_planes",
    "log_tap_positions",
    "log_row_calls",
    "log_hard",
    "log_costly",
    "log_whole_blocks",
    "log_block_rests",
    "log_aliased_reads",
    "log_aliased_writes",
    "log_evicted_rows_l1",
    "log_evicted_rows_l2",
    "log_evicted_columns_l1",
    "log_evicted_columns_l2",
    "log_rest_positions",
    "log_evicted_rests",
    "log_copied_blocks",
    "log_forgotten_branches",
    "log_spilled_l1",
    "log_spilled_l2",
    "log_spilled_l3",
    "log_spilled_half_l3",
    "log_spilled_quarter_l3",
    *(f"log_{name}" for name in WORK),
)
_TERM_COLUMNS = [column(name) for name in _TERMS]
_ROBUST = 0.03
_ROUNDS = 6
_POOLED_RIDGE, _SHRINKAGE = 0.01, 0.2  # as strong as so many rows
_ALIKE = 0.05
"""A way's cost of a count is expected to be that of all rows, give or take as much again, where a row is right to this
share: without it, what a row is off becomes the cost of a count of which that row, the only one, has hardly any."""
_FAR = np.array([False, *(name.startswith("log_spilled") for name in _TERMS)])
"""Bytes that come from another cache, or from memory: each is expected to cost no more than a byte costs otherwise, as
much again as that being worth an error of `_ALIKE` in a row. Where hardly a row has such bytes, what that is off would
become their cost, and what has ten times as many would take ten times as long as it does."""
_UNLIKE = 0.2
"""By how much costs like those of all rows may miss most of a way's."""
_LEAST_SHARE = 1e-3
"""A cost that makes up less than this of the rows is as open as one that does, or nothing could be solved for."""
_LEAST_S = 1e-7
_LEEWAY = math.log(4.0)


@dataclass(frozen=True, eq=False)
class TiledPredictor(Predictor):
    """A sum over what the kernels loop over (`hwcost.tiling`), each algorithm with seconds per count of its own.

    `coefficients` [2 + ways, 1 + terms]: the first row is fitted on all rows and serves a way without any; the others
    (no way told, then `WAYS`) are drawn towards it, the more so the fewer their rows, unless their rows say otherwise:
    one way may take thirty times as long as another for the same counts.
    Large errors weigh less (iterated weights). Where few rows leave a count's cost open, a sum can go astray on an
    operator that has much of it; so it stays as near to the roofline of the same rows (`guard`) as it did on those of
    the same way, give or take a factor of four: `limits` [2 + ways, 2] are natural logarithms of what it may be beyond.
    """

    name = "tiled"
    min_rows = 4
    coefficients: Values
    guard: RooflinePredictor
    limits: Values

    @staticmethod
    def _terms(features: Values) -> Values:
        """1 and the counts, [rows, 1 + terms]."""
        logs = features[:, _TERM_COLUMNS]
        return np.column_stack([np.ones(len(features)), np.where(logs > 0, np.exp(np.minimum(logs, 60.0)), 0.0)])

    @classmethod
    def fit(cls, features: Values, latency_s: Values, generator: np.random.Generator) -> Self:
        cls.check_rows(features, latency_s)
        relative = cls._terms(features) / latency_s[:, None]
        way = way_of(features)
        far = _FAR / np.median(latency_s / np.exp(features[:, column("log_bytes")]))
        pooled = _robust(relative, np.zeros(relative.shape[1]), far, _POOLED_RIDGE)
        coefficients = np.tile(pooled, (2 + len(WAYS), 1))
        present = np.unique(way)
        for index in present if len(present) > 1 else []:
            coefficients[1 + index] = _of_way(relative[way == index], pooled, far)
        guard = RooflinePredictor.fit(features, latency_s, generator)
        free = cls(coefficients, guard, np.tile([-np.inf, np.inf], (2 + len(WAYS), 1)))
        beyond = free.log_latency(features) - guard.log_latency(features)
        limits = np.tile([beyond.min(), beyond.max()], (2 + len(WAYS), 1))
        for index in present:
            limits[1 + index] = beyond[way == index].min(), beyond[way == index].max()
        return cls(coefficients, guard, limits + np.array([-_LEEWAY, _LEEWAY]))

    def log_latency(self, features: Values) -> Values:
        seconds = (self._terms(features) * self.coefficients[1 + way_of(features)]).sum(axis=1)
        guard = self.guard.log_latency(features)
        logarithms: Values = guard + np.clip(
            np.log(np.maximum(seconds, _LEAST_S)) - guard, *self.limits[1 + way_of(features)].T
        )
        return logarithms

    def shares(self, features: Values) -> Values:
        """What share of the sum each term is, [rows, 1 + terms]."""
        parts = self._terms(features) * self.coefficients[1 + way_of(features)]
        result: Values = parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-30)
        return result

    def state(self) -> State:
        return {"coefficients": self.coefficients, "limits": self.limits, **prefixed("guard", self.guard.state())}

    @classmethod
    def from_state(cls, state: State) -> Self:
        coefficients = take(state, "coefficients", 2 + len(WAYS), 1 + len(_TERMS))
        guard = RooflinePredictor.from_state(unprefixed("guard", state))
        return cls(coefficients, guard, take(state, "limits", 2 + len(WAYS), 2))


def _of_way(relative: Values, pooled: Values, far: Values) -> Values:
    """Coefficients for the rows of one way: drawn towards `pooled` ones, as many times as long as its rows take; by
    themselves where most of them remain unexplained by that, and are not then."""
    longer = 1 / max(float(np.median(relative @ pooled)), 1e-9)
    drawn = _robust(relative, longer * pooled, far, _SHRINKAGE, _ALIKE)
    if (drawn_error := _usual_error(relative, drawn)) <= _UNLIKE:
        return drawn
    alone = _robust(relative, np.zeros_like(pooled), far, _POOLED_RIDGE)
    return alone if _usual_error(relative, alone) < drawn_error / 2 else drawn


def _usual_error(relative: Values, coefficients: Values) -> float:
    """How far the sums are off their rows, as a share, in the median."""
    return float(np.median(np.abs(relative @ coefficients - 1)))


def _robust(relative: Values, towards: Values, far: Values, shrinkage: float, alike: float = 0.0) -> Values:
    """Coefficients of counts over seconds [rows, terms] whose sums come near 1, drawn `towards` others: all alike, and
    those that are not 0 by the share that they are off, which costs as much as an error of `alike` in a row; those of
    `far` bytes (over their usual seconds, others 0) towards 0 as well."""
    scale = np.sqrt((relative**2).mean(axis=0))
    used = scale > 0
    design, goal = relative[:, used] / scale[used], towards[used] * scale[used]
    weight = np.ones(len(design))
    pull = shrinkage + np.where(goal > 0, alike / np.maximum(goal, _LEAST_SHARE), 0.0) ** 2
    pull = pull + (_ALIKE * far[used] / scale[used]) ** 2
    solution = goal
    for _ in range(_ROUNDS):
        weighted = design * weight[:, None]
        gram = weighted.T @ design + np.diag(pull)
        solution = _non_negative(gram, weighted.sum(axis=0) + pull * goal, solution)
        weight = _ROBUST / np.maximum(np.abs(design @ solution - 1.0), _ROBUST)
    result = towards.copy()
    result[used] = solution / scale[used]
    return result
