"""From a profile to predictors: cross-validate them all, keep the best per family and precision, say how good it is.

Rows are split so that near-identical operators never sit on both sides; few rows are left out one at a time. The
chosen predictor is fitted again on every row, and its interval is calibrated on the errors it made while held out
(split conformal prediction). What is needed to predict again is one safetensors file: arrays, and a JSON head.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from threadpoolctl import threadpool_limits

from hwcost.archive import pack, unpack
from hwcost.composition import Composition, learnt
from hwcost.errors import FitError, HwcostError, first_fault
from hwcost.features import FEATURE_NAMES, RANGE_FEATURES, SIZE_FEATURES, column, family, feature_matrix, hardware_of
from hwcost.files import read_file, write_atomically
from hwcost.ops import FLOAT, Precision
from hwcost.predictors import load_predictor, predictor_names
from hwcost.predictors.base import Calibration, Estimate, Predictor, Spread, State, Values, prefixed, take, unprefixed
from hwcost.predictors.borrowed import BorrowedPredictor
from hwcost.predictors.linear import TiledPredictor
from hwcost.profiles import PrecisionField, Profile, Row, Source
from hwcost.space import Layer

# 1: first version. 2: features by tile, widths by way and latency. 3: composition by working set. 4: by second cache.
# 5: by what caches hold of weights alone and together. 6: by role, and averaged over what caches may hold. 7: lines of
# rests by thirds, weights used once by the last cache. 8: what neighbours leave of the last cache. 9: waits for weights
# and kernels as they are measured, pixels that are doubled. 10: few rows by relatives and what their work adds.
# 11: by how long a network takes, and weights that are used once. 12: bytes from memory, factors and axes that are
# turned, architectures. 13: recurrent layers as products. 14: constants as other inputs, maxima, masked stores, rests.
# 15: what others bring into the last cache as it is measured, pools of blocks.
FIT_VERSION: Final = 15

BASELINES = ("flops", "roofline")
"""Always reported beside the others. The first is never chosen (it knows no start-up and no memory); the second is also
what remains when a family has too few rows to compare."""

_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
_LARGE_S = 20e-6
_MOST_BYTES = 2**28
_RELATIVES: Final = ((("node.", "elementwise.", "boundary."), 8), (("conv.",), 24))
_PRODUCTS: Final = ("gemm", "conv.dense", "node."), 24
"""Families that are relatives, and of how few rows one of them may borrow from the others; those of a node that is a
product of matrices are all products, whatever kernel lays out their weights."""
_LEAST_RELATIVES = 8
_NO_RELATIVES: Final = ("boundary.reshape",)
"""Families that do nothing with what they are handed: of moving data they tell nothing."""
_TWINS = (("elementwise.add", "elementwise.mul"),)
"""Families that in float are one loop but for an instruction, which waits for memory: each is fitted on the rows of
both. In 8 bits their arithmetic differs, and tells."""
_SMALL_GAIN = 0.02  # a more complex predictor has to be better by this share
_STANDARD_ERRORS: Final = 2.0

Fitter = Callable[[Values, Values, np.random.Generator], Predictor]
"""Fits a predictor on features [rows, features] and seconds [rows]."""
Progress = Callable[[int, int, str], None]
"""Called with (done, total, what) after each family."""


class PredictorErrors(BaseModel):
    """Held-out errors of one predictor as shares of the true latency; `bias` is the error of the sum over all rows, and
    `spearman` None with fewer than 3 rows. `large_rows` take over 20 us; of them `within_10_large` is the share."""

    model_config = _STRICT

    predictor: str
    mape: float
    rmspe: float
    within_5: float
    within_10: float
    bias: float
    spearman: float | None
    large_rows: int = 0
    within_10_large: float | None = None


class FamilyReport(BaseModel):
    """One family at one realised precision: how many rows, what was chosen, how all predictors did when held out.

    `errors` is empty when the rows are too few (or too alike) to hold any out; `skipped` says why a predictor is
    absent. `interval` is the half-width of the interval, as a share, in the median over the rows; `coverage` the share
    of rows whose interval, calibrated on the other folds, held them.
    """

    model_config = _STRICT

    family: str
    precision: PrecisionField
    rows: int = Field(ge=1)
    sources: tuple[Source, ...] = Field(min_length=1)
    chosen: str
    interval: float = Field(ge=0)
    coverage: float | None = None
    errors: tuple[PredictorErrors, ...] = ()
    skipped: dict[str, str] = {}


class _Head(BaseModel):
    """The JSON head of the file."""

    model_config = _STRICT

    format: Literal["hwcost-fit"] = "hwcost-fit"
    version: Literal[15] = FIT_VERSION
    device: str
    profile_digest: str
    seed: int
    folds: int
    features: tuple[str, ...]
    composition: Composition | None = None
    report: tuple[FamilyReport, ...] = Field(min_length=1)


@dataclass(frozen=True, eq=False)
class FittedFamily:
    """The chosen predictor of one family and precision, its calibration, and its lines of the report."""

    report: FamilyReport
    predictor: Predictor
    calibration: Calibration


@dataclass(frozen=True, eq=False)
class Fit:
    """Everything fitted on one state of one profile."""

    device: str
    profile_digest: str
    seed: int
    folds: int
    families: tuple[FittedFamily, ...]
    composition: Composition | None = None

    @property
    def report(self) -> tuple[FamilyReport, ...]:
        """The error table, by family and precision."""
        return tuple(entry.report for entry in self.families)

    @cached_property
    def _by_family(self) -> dict[tuple[str, Precision], FittedFamily]:
        return {(entry.report.family, entry.report.precision): entry for entry in self.families}

    def knows(self, name: str, precision: Precision) -> bool:
        """Whether a family was fitted at a (realised) precision."""
        return (name, precision) in self._by_family

    def sources(self, name: str, precision: Precision) -> tuple[Source, ...]:
        """The sources of the rows that a family was fitted on."""
        return self._by_family[name, precision].report.sources

    def predict(self, name: str, precision: Precision, features: Values) -> Estimate:
        """Predict operators of one family, features [operators, features]."""
        entry = self._by_family[name, precision]
        return entry.predictor.predict(features, entry.calibration)


def fit_profile(
    profile: Profile,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    folds: int = 5,
    progress: Progress | None = None,
) -> Fit:
    """Fit the predictors called `names` (by default all but those on request; the two baselines always) on every family
    of a profile.

    Raises `FitError` for fewer than 2 folds, `UnknownPredictorError` for a name.
    """
    if folds < 2:
        raise FitError(f"cross-validation needs at least 2 folds, got {folds}")
    wanted = set(predictor_names() if names is None else names) | set(BASELINES)
    classes = {name: load_predictor(name) for name in sorted(wanted - set(predictor_names()))}  # refuses unknown names
    classes = {name: load_predictor(name) for name in predictor_names() if name in wanted}
    if names is None:
        classes = {name: kind for name, kind in classes.items() if not kind.on_request}
    groups: defaultdict[tuple[str, Precision], list[Row]] = defaultdict(list)
    for row in profile.rows:
        groups[family(row.operator), profile.realised_as(row.operator, row.precision)].append(row)
    families: list[FittedFamily] = []
    unseen_s: dict[Layer, float] = {}
    # Many small problems: threads cost more than they bring, and would sum in an order of their own.
    with threadpool_limits(limits=1):
        for (name, precision), rows in sorted(groups.items()):
            fitters: dict[str, Fitter] = {predictor: kind.fit for predictor, kind in classes.items()}
            if (relatives := _relatives(name, precision, groups, profile)) is not None:
                fitters["borrowed"] = relatives
            told = [*rows, *(row for twin in _twins(name, precision) for row in groups.get((twin, precision), ()))]
            fitted, residual = _fit_family(name, precision, told, profile, fitters, seed, folds)
            families.append(fitted)
            for row, error in zip(rows, residual.tolist(), strict=False):
                unseen_s[row.layer] = row.latency_s * math.exp(error)
            if progress is not None:
                progress(len(families), len(groups), f"{name} {precision}")
    fit = Fit(profile.device, profile.digest, seed, folds, tuple(families))
    return replace(fit, composition=learnt(profile, unseen_s, _without_rows(profile, fit)))


def _without_rows(profile: Profile, fit: Fit) -> dict[Layer, float]:
    """Seconds of those kernels of a profile's networks that have no row there, as predicted."""
    groups: defaultdict[tuple[str, Precision], list[Layer]] = defaultdict(list)
    for op, precision in dict.fromkeys(
        (part.operator, part.precision) for one in profile.networks for part in one.parts
    ):
        if profile.find(op, precision) is None:
            groups[family(op), profile.realised_as(op, precision)].append((op, precision))
    hardware, found = hardware_of(profile.machine, profile.int8_form), dict[Layer, float]()
    for (name, runs_as), layers in groups.items():
        if fit.knows(name, runs_as):
            features = feature_matrix(((op, runs_as) for op, _ in layers), hardware)
            found.update(zip(layers, fit.predict(name, runs_as, features).latency_s.tolist(), strict=True))
    return found


def _generator(seed: int, *parts: object) -> np.random.Generator:
    """Independent of the order in which families, predictors and folds are fitted."""
    return np.random.default_rng([seed, zlib.crc32("/".join(map(str, parts)).encode())])


def _twins(name: str, precision: Precision) -> tuple[str, ...]:
    """The other families whose rows tell of this one."""
    if precision != FLOAT:
        return ()
    return tuple(twin for twins in _TWINS if name in twins for twin in twins if twin != name)


def _relatives(
    name: str, precision: Precision, groups: Mapping[tuple[str, Precision], Sequence[Row]], profile: Profile
) -> Fitter | None:
    """Fits few rows from what their relatives cost; None for a family that needs or has none."""
    members, own = groups[name, precision], (name, *_twins(name, precision))
    product = name.startswith("node.") and all(row.operator.macs for row in members)
    kinds, few = _PRODUCTS if product else next((one for one in _RELATIVES if name.startswith(one[0])), ((), 0))
    if len(members) >= few:
        return None
    rows = [
        (row.operator, at, row.latency_s)
        for (other, at), found in groups.items()
        if other.startswith(kinds)
        and other not in (*own, *_NO_RELATIVES)
        and (_bits(at) == _bits(precision) if product else at == precision)
        for row in found
    ]
    features = feature_matrix((row[:2] for row in rows), hardware_of(profile.machine, profile.int8_form))
    latency_s = np.array([latency_s for _, _, latency_s in rows])
    if product:
        alike = features[:, column("algorithm_product")] > 0
        features, latency_s = features[alike], latency_s[alike]
    if len(latency_s) < _LEAST_RELATIVES:
        return None
    base = TiledPredictor.fit(features, latency_s, np.random.default_rng(0))
    return lambda features, latency_s, generator: BorrowedPredictor.adapt(base, features, latency_s)


def _bits(precision: Precision) -> tuple[int, int]:
    return precision.weight_bits, precision.activation_bits


def _fit_family(
    name: str,
    precision: Precision,
    rows: Sequence[Row],
    profile: Profile,
    fitters: Mapping[str, Fitter],
    seed: int,
    folds: int,
) -> tuple[FittedFamily, Values]:
    """The fitted family, and the log-residuals of its rows while they were held out (empty: none could be)."""
    features = feature_matrix(
        ((row.operator, precision) for row in rows), hardware_of(profile.machine, profile.int8_form)
    )
    latency_s = np.array([row.latency_s for row in rows])
    held_out = grouped_folds(features, folds, _generator(seed, name, precision))
    residuals: dict[str, Values] = {}
    skipped: dict[str, str] = {}
    for predictor, fitter in fitters.items():
        what = f"{name}/{precision}"
        try:
            residuals[predictor] = _held_out_residuals(predictor, fitter, features, latency_s, held_out, seed, what)
        except FitError as error:
            skipped[predictor] = str(error)
    errors = tuple(_errors(predictor, residual, latency_s) for predictor, residual in residuals.items())
    chosen = _choose(residuals) if residuals or "borrowed" not in fitters else "borrowed"
    fitted = fitters[chosen](features, latency_s, _generator(seed, name, precision, chosen))
    residual = residuals.get(chosen, np.zeros(0))
    log_latency = np.log(latency_s)[: len(residual)] + residual
    calibration = Calibration.of(features, residual, profile.noise_floor, _systematic(rows), log_latency)
    report = FamilyReport(
        family=name,
        precision=precision,
        rows=len(rows),
        sources=tuple(sorted({row.source for row in rows})),
        chosen=chosen,
        interval=math.expm1(_typical_width(calibration, features, np.log(latency_s)) + max(calibration.systematic)),
        coverage=_coverage(features, residual, latency_s, held_out, profile.noise_floor),
        errors=errors,
        skipped=skipped,
    )
    return FittedFamily(report, fitted, calibration), residual


def grouped_folds(features: Values, folds: int, generator: np.random.Generator) -> tuple[NDArray[np.bool_], ...]:
    """Masks of the held-out rows, one per fold; empty when nothing can be held out.

    Operators whose sizes and windows fall into the same cell of half a natural logarithm go together; with at most
    twice as many such groups as folds, each group is held out alone.
    """
    sizes = features[:, [column(name) for name in (*SIZE_FEATURES, "kernel_height", "kernel_width")]]
    _, group = np.unique(np.round(sizes * 2), axis=0, return_inverse=True)
    group = group.reshape(-1)
    count = int(group.max()) + 1
    if count < 2:
        return ()
    order = generator.permutation(count)
    fold = order if count <= 2 * folds else order % folds
    return tuple(fold[group] == index for index in range(int(fold.max()) + 1))


def _held_out_residuals(
    predictor: str,
    fitter: Fitter,
    features: Values,
    latency_s: Values,
    held_out: tuple[NDArray[np.bool_], ...],
    seed: int,
    what: str,
) -> Values:
    """Log predicted minus log true of every row while it was held out; raises `FitError` when there are too few."""
    if not held_out:
        raise FitError(f"too few distinct operators to hold any out, got {len(latency_s)} rows: profile more operators")
    residuals = np.zeros(len(latency_s))
    for index, mask in enumerate(held_out):
        generator = _generator(seed, what, predictor, index)
        fitted = fitter(features[~mask], latency_s[~mask], generator)
        residuals[mask] = fitted.log_latency(features[mask]) - np.log(latency_s[mask])
    return residuals


def _typical_width(calibration: Calibration, features: Values, log_latency: Values) -> float:
    return float(np.median(calibration.widths(features, log_latency)))


def _coverage(
    features: Values, residual: Values, latency_s: Values, held_out: tuple[NDArray[np.bool_], ...], floor: float
) -> float | None:
    """The share of rows within the interval that the residuals of the other folds give; None with too few rows."""
    if len(residual) < 10 or len(held_out) < 2:
        return None
    log_latency = np.log(latency_s) + residual
    inside = np.zeros(len(residual), dtype=bool)
    for mask in held_out:
        rest = ~mask
        calibration = Calibration.of(features[rest], residual[rest], floor, log_latency=log_latency[rest])
        inside[mask] = np.abs(residual[mask]) <= calibration.widths(features[mask], log_latency[mask])
    return float(inside.mean())


def _errors(predictor: str, residuals: Values, latency_s: Values) -> PredictorErrors:
    relative = np.abs(np.expm1(np.clip(residuals, -50, 50)))
    predicted = np.exp(residuals) * latency_s
    large = latency_s > _LARGE_S
    return PredictorErrors(
        predictor=predictor,
        mape=float(relative.mean()),
        rmspe=float(np.sqrt((relative**2).mean())),
        within_5=float((relative <= 0.05).mean()),
        within_10=float((relative <= 0.10).mean()),
        bias=float(predicted.sum() / latency_s.sum() - 1.0),
        spearman=spearman(predicted, latency_s),
        large_rows=int(large.sum()),
        within_10_large=float((relative[large] <= 0.10).mean()) if large.any() else None,
    )


def _ranks(values: Values) -> Values:
    """Ranks with ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Values = (last - (counts - 1) / 2)[inverse.reshape(-1)]
    return ranks


def spearman(first: Values, second: Values) -> float | None:
    """Rank correlation of two series, ties averaged; None with fewer than 3 values, or when all are equal."""
    if len(first) < 3:
        return None
    ranks = np.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = float(np.sqrt((ranks**2).sum(axis=1).prod()))
    return None if norm == 0 else float((ranks[0] * ranks[1]).sum() / norm)


def _choose(residuals: Mapping[str, Values]) -> str:
    """The smallest mean |log-residual|, outliers cut at a factor of four; a more complex one has to earn its place.
    What is best by less than two standard errors gives way to the sum of counts, which grows as kernels do where no row
    is: a wider form of the rule in Breiman et al., Classification and Regression Trees (1984), section 3.4.3."""
    errors = {name: np.minimum(np.abs(residual), math.log(4.0)) for name, residual in residuals.items()}
    chosen, best = BASELINES[1], math.inf
    for name, error in errors.items():
        if name != BASELINES[0] and error.mean() < best * (1 - _SMALL_GAIN):
            chosen, best = name, float(error.mean())
    if TiledPredictor.name in errors and chosen in errors:
        gain = errors[TiledPredictor.name] - errors[chosen]
        if gain.mean() < _STANDARD_ERRORS * gain.std() / math.sqrt(len(gain)):
            return TiledPredictor.name
    return chosen


def _systematic(rows: Sequence[Row]) -> tuple[float, float]:
    """What held-out residuals cannot show: rows that were not measured share the error of what made them, which is
    their own interval (the median of its log-widths). Measured rows have none."""
    widths = [
        (math.log(row.latency_s / row.interval_s[0]), math.log(row.interval_s[1] / row.latency_s))
        for row in rows
        if row.source != "measured"
    ]
    if not widths:
        return 0.0, 0.0
    below, above = np.median(np.array(widths), axis=0).tolist()
    return below, above


def fit_path(profile_path: Path) -> Path:
    """Where the fit of a profile lies: `rpi4.json` -> `rpi4.fit.safetensors`, beside it."""
    return profile_path.with_name(f"{profile_path.name.removesuffix('.json')}.fit.safetensors")


def write_fit(fit: Fit, path: Path) -> None:
    """Write whole or not at all; the same fit gives the same bytes. Raises `OSError`."""
    arrays: State = {}
    for entry in fit.families:
        prefix = f"{entry.report.family}/{entry.report.precision}"
        arrays |= prefixed(f"{prefix}/predictor", entry.predictor.state())
        calibration = entry.calibration
        widths = [calibration.log_width, calibration.floor, *calibration.systematic]
        arrays[f"{prefix}/calibration.widths"] = np.array(widths)
        arrays[f"{prefix}/calibration.ways"] = calibration.spread.ways
        arrays[f"{prefix}/calibration.knots"] = calibration.spread.knots
        arrays[f"{prefix}/calibration.range"] = np.stack([calibration.lows, calibration.highs])
    head = _Head(
        device=fit.device,
        profile_digest=fit.profile_digest,
        seed=fit.seed,
        folds=fit.folds,
        features=FEATURE_NAMES,
        composition=fit.composition,
        report=fit.report,
    )
    write_atomically(path, pack(head.model_dump_json(), arrays))


def read_fit(path: Path) -> Fit:
    """Read and validate; raises `FitError` naming the file and what to do."""
    try:
        data = read_file(path, _MOST_BYTES)
    except FileNotFoundError:
        raise FitError(f"no fit at {path}: make it with `hwcost fit`") from None
    except OSError as error:
        raise FitError(f"cannot read fit {path}: {error.strerror}: run `hwcost fit` again") from error
    try:
        text, arrays = unpack(data)
        head = _Head.model_validate_json(text)
        if head.features != FEATURE_NAMES:
            raise FitError(f"it was fitted on other features, {len(head.features)} instead of {len(FEATURE_NAMES)}")
        classes = {name: load_predictor(name) for name in {report.chosen for report in head.report}}
        families = tuple(_restore(report, classes[report.chosen], arrays) for report in head.report)
    except ValidationError as error:
        fault = first_fault(error, "the head")
        raise FitError(f"{path} is not a fit of version {FIT_VERSION}: {fault}; run `hwcost fit` again") from None
    except (ValueError, LookupError, ArithmeticError, HwcostError) as error:
        raise FitError(f"{path} is not a fit that can be read: {error}; run `hwcost fit` again") from error
    return Fit(head.device, head.profile_digest, head.seed, head.folds, families, head.composition)


def _restore(report: FamilyReport, kind: type[Predictor], arrays: State) -> FittedFamily:
    prefix = f"{report.family}/{report.precision}"
    predictor = kind.from_state(unprefixed(f"{prefix}/predictor", arrays))
    width, floor, below, above = take(arrays, f"{prefix}/calibration.widths", 4).tolist()
    lows, highs = take(arrays, f"{prefix}/calibration.range", 2, len(RANGE_FEATURES))
    spread = Spread(
        take(arrays, f"{prefix}/calibration.ways", None), take(arrays, f"{prefix}/calibration.knots", 2, None)
    )
    return FittedFamily(report, predictor, Calibration(width, (below, above), lows, highs, spread, floor))
