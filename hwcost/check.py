"""A whole model: what it should cost by a profile, and what it does cost here, side by side.

Predicting reads the graph that the runtime executes and prices every operator; checking closes the loop, by running
the model on the profile's own machine. A share that cannot be priced is an error, or, if the caller insists, is stated.
"""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwcost.errors import MeasurementError, ModelError, UnknownOperatorError
from hwcost.features import family, hardware_of
from hwcost.machine import detect_machine, quietness
from hwcost.model import Layout, ModelLayers, read_model, time_nodes
from hwcost.onnxfile import example_feeds, load_model
from hwcost.ops import INT8, Operator, Precision, key, weight_uses
from hwcost.pricing import CostModel, Price, Total
from hwcost.profiles import Machine, Profile
from hwcost.runtime import Here, Runtime, time_model
from hwcost.space import Layer
from hwcost.speed import anchors, speed_between, time_anchors
from hwcost.timing import Timings
from hwcost.units import format_seconds

_LISTED = 3
"""Nodes that an error names."""
_UNLIKE = 0.1
"""How far a machine's speed may lie from that of its profile without a word: clocks and neighbours move it by less."""
_FOR_NODES = 0.25
"""Share of a check's seconds in which its nodes are timed."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PricedOperator:
    """One executed operator of a model, and its node's place in the executed graph; two where the runtime fused an
    addition into a node."""

    name: str
    place: int
    operator: Operator
    precision: Precision
    price: Price

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "operator": key(self.operator),
            "precision": str(self.precision),
            "runs_as": str(self.price.runs_as),
            "predicted_s": self.price.latency_s,
            "interval_s": [self.price.low_s, self.price.high_s],
            "source": self.price.label,
        }


@dataclass(frozen=True)
class Prediction:
    """What one run of a model should take, in seconds, on `device`.

    `uncovered` names nodes that have no price and are left out of the total; `uncovered_share` is their part of all
    tensor elements that the model reads and writes. `warnings`: how what was profiled differs from what is here.
    """

    model: str
    device: str
    bits: int
    total: Total
    operators: tuple[PricedOperator, ...]
    uncovered: tuple[str, ...]
    uncovered_share: float
    warnings: tuple[str, ...] = ()

    def at_speed(self, speed: float) -> "Prediction":
        """For the same machine when it is so many times as fast."""
        total = self.total.at_speed(speed)
        operators = (replace(one, price=price) for one, price in zip(self.operators, total.prices, strict=True))
        return replace(self, total=total, operators=tuple(operators))

    def document(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        return {
            "model": self.model,
            "device": self.device,
            "bits": self.bits,
            "predicted_s": self.total.latency_s,
            "interval_s": [self.total.low_s, self.total.high_s],
            "run_overhead_s": self.total.run_overhead_s,
            "sources": list(self.total.sources),
            "uncovered": list(self.uncovered),
            "uncovered_share": self.uncovered_share,
            "warnings": list(self.warnings),
            "operators": [operator.document() for operator in self.operators],
        }


@dataclass(frozen=True)
class Check:
    """A prediction beside what was measured here: the median of the passes, as a model usually runs, which is what is
    predicted; and the passes, in seconds per run.

    `operators_s` is what each operator of the prediction took inside the model, by the runtime's own profile, which
    counts whole microseconds (None: it does not tell); a node of two operators is shared out as predicted.
    `noise_floor`: how far passes differ, as a share; an error below it says nothing. `machine_speed`: how fast kernels
    of the profile run now, over how fast they ran when it was made (None: it has none to time). The prediction is for a
    machine of that speed; `profiled_s` is the one for the machine as it was profiled. `warnings`: reasons to distrust
    the measurement.
    """

    prediction: Prediction
    measured_s: float
    samples_s: tuple[float, ...]
    operators_s: tuple[float | None, ...]
    noise_floor: float
    profiled_s: float
    machine_speed: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.prediction.total.latency_s / self.measured_s - 1

    @property
    def within_interval(self) -> bool:
        return self.prediction.total.low_s <= self.measured_s <= self.prediction.total.high_s

    def document(self) -> dict[str, Any]:
        """The check as JSON values: the prediction's, and `measured_s`, `error`, `noise_floor`, `machine_speed`, ...;
        each operator's has its `measured_s`."""
        document = self.prediction.document()
        operators = zip(document["operators"], self.operators_s, strict=True)
        return {
            **document,
            "operators": [{**operator, "measured_s": seconds} for operator, seconds in operators],
            "measured_s": self.measured_s,
            "samples_s": list(self.samples_s),
            "error": self.error,
            "within_interval": self.within_interval,
            "noise_floor": self.noise_floor,
            "machine_speed": self.machine_speed,
            "profiled_s": self.profiled_s,
            "warnings": [*self.prediction.warnings, *self.warnings],
        }


def _machine_here(profile: Profile, runtime: Runtime) -> Machine:
    return detect_machine(profile.machine.threads, runtime.facts())


def _differences(profile: Profile, here: Machine) -> tuple[str, ...]:
    """Why a prediction by this profile is not quite of what runs here, one sentence each."""
    theirs = profile.machine
    warnings = []
    if not here.is_same_hardware(theirs):
        warnings.append(
            f"profile {profile.device} is of {theirs.cpu}, this is {here.cpu}: the prediction is for that machine, "
            "from the graph that onnxruntime makes for any"
        )
    if theirs.onnxruntime not in (here.onnxruntime, "unknown"):
        warnings.append(
            f"profile {profile.device} is of onnxruntime {theirs.onnxruntime}, this is {here.onnxruntime}, whose "
            "kernels and graph may differ: profile the device again to be sure"
        )
    return tuple(warnings)


def predict_model(
    path: Path,
    cost_model: CostModel,
    *,
    shapes: Shapes | None = None,
    allow_uncovered: bool = False,
    runtime: Runtime | None = None,
    keep: Path | None = None,
) -> Prediction:
    """Price every operator that the model executes: in this machine's graph where the profile is of this machine,
    otherwise in one without this machine's layouts.

    `shapes` gives sizes for open inputs; the machine is the one of `runtime`, by default this one. The graph is left in
    the folder `keep`, as by `read_model`. Raises `ModelError`; `UnknownOperatorError` naming what has no price, unless
    `allow_uncovered`.
    """
    runtime = runtime or Here()
    here = _machine_here(cost_model.profile, runtime)
    layout: Layout = "executed" if here.is_same_hardware(cost_model.profile.machine) else "portable"
    profile = cost_model.profile
    lanes = hardware_of(profile.machine, profile.int8_form).lanes
    found = read_model(path, shapes=shapes, layout=layout, runtime=runtime, lanes=lanes, keep=keep)
    if layout == "portable":
        layers = ((name, op, _executed_there(cost_model, op, precision)) for name, op, precision in found.layers)
        found = replace(found, layers=tuple(layers))
    lost = _unpriced(found, cost_model)
    names = [f"{found.layers[index][0]} ({family(op)} at {precision})" for index, (op, precision) in lost.items()]
    uncovered = [*found.uncovered, *names]
    if uncovered and not allow_uncovered:
        listed = ", ".join(uncovered[:_LISTED]) + (
            f" and {len(uncovered) - _LISTED} more" if uncovered[_LISTED:] else ""
        )
        remedy = (
            "profile and fit such operators" if cost_model.fit else "run `hwcost fit` to predict what was not profiled"
        )
        raise UnknownOperatorError(
            f"every operator of a model needs a price on {cost_model.device}, got none for {len(uncovered)} of {path}: "
            f"{listed}; {remedy}, or leave them out knowingly with --allow-uncovered"
        )
    placed = enumerate(zip(found.layers, found.places, strict=True))
    priced = [(layer, place) for index, (layer, place) in placed if index not in lost]
    if not priced:
        raise ModelError(f"a prediction needs one operator that has a price, {path} has none: profile more operators")
    vectors = {one.place: one.vectors for one in found.subnormal}
    total = cost_model.price_all([(op, precision) for (_, op, precision), _ in priced]).longer(
        [profile.subnormal_s * vectors.get(place, 0) * weight_uses(op) for (_, op, _), place in priced]
    )
    operators = tuple(
        PricedOperator(name, place, op, precision, price)
        for ((name, op, precision), place), price in zip(priced, total.prices, strict=True)
    )
    elements = found.uncovered_elements + sum(_elements(op) for op, _ in lost.values())
    share = min(elements / max(found.elements, 1), 1.0)
    return Prediction(
        str(path),
        cost_model.device,
        _bits(found),
        total,
        operators,
        tuple(uncovered),
        share,
        (*_differences(cost_model.profile, here), *_slow_weights(found, profile.subnormal_s)),
    )


def _slow_weights(found: ModelLayers, subnormal_s: float) -> Iterator[str]:
    """Of weights with which some processors take a hundred times as long."""
    if found.subnormal:
        one = max(found.subnormal, key=lambda one: one.weights)
        more = f", and {len(found.subnormal) - 1} more nodes have such weights" if found.subnormal[1:] else ""
        costs = (
            f"every vector with one takes {format_seconds(subnormal_s)} longer here for each use, which is predicted"
            if subnormal_s
            else "some processors, of Intel above all, take up to a hundred times as long for a product with one, "
            "which is not predicted"
        )
        yield (
            f"{one.weights} weights of {one.name} are subnormal, neither 0 nor as large as 1.2e-38{more}: {costs}; set "
            "them to 0 in the file"
        )


def _unpriced(found: ModelLayers, cost_model: CostModel) -> dict[int, Layer]:
    """The layers that the cost model refuses, by their position."""
    layers = [(op, precision) for _, op, precision in found.layers]
    try:
        cost_model.prices(layers)
    except UnknownOperatorError:
        return {index: layer for index, layer in enumerate(layers) if not cost_model.knows(*layer)}
    return {}


def _executed_there(cost_model: CostModel, op: Operator, precision: Precision) -> Precision:
    """What an operator of a portable graph runs as on the device. The runtime keeps the file's int8 formats, but makes
    activations unsigned on x86; formats of which nothing was profiled are taken for the device's own."""
    if not precision.kernel:
        return precision
    arm = cost_model.profile.machine.architecture.lower().startswith(("aarch64", "arm"))
    named = precision if arm else Precision(8, 8, precision.kernel.replace("s8s8", "u8s8"))
    return named if cost_model.knows(op, named) else INT8


def _elements(op: Operator) -> int:
    return op.input_elements + op.output_elements + op.weights


def _bits(found: ModelLayers) -> int:
    """Weight bits at which most multiply-accumulates are done."""
    macs: dict[int, int] = {}
    for _, op, precision in found.layers:
        macs[precision.weight_bits] = macs.get(precision.weight_bits, 0) + op.macs
    return max(macs, key=lambda bits: (macs[bits], bits), default=32)


def check_model(
    path: Path,
    cost_model: CostModel,
    *,
    shapes: Shapes | None = None,
    allow_uncovered: bool = False,
    seconds: float = 2.0,
    passes: int = 3,
    seed: int = 0,
    runtime: Runtime | None = None,
) -> Check:
    """Predict a model and run it for about `seconds`, on the machine of `runtime` (this one by default), with inputs
    drawn from `seed`, of which a quarter tells its nodes' times; before and after, some of the profile's kernels are
    timed, which takes a second, and the prediction is brought to the speed that these have now.

    Raises like `predict_model`, and `MeasurementError` where the profile is of another machine.
    """
    machine = cost_model.profile.machine
    runtime = runtime or Here()
    here = _machine_here(cost_model.profile, runtime)
    if not here.is_same_hardware(machine):
        raise MeasurementError(
            f"a model is checked on the machine of its profile, profile {cost_model.device} is of {machine.cpu} with "
            f"{machine.cores} cores, this is {here.cpu} with {here.cores}: run the check there, profile this machine, "
            "or ask for the prediction alone with `hwcost predict`"
        )
    with tempfile.TemporaryDirectory(prefix="hwcost-") as kept:
        prediction = predict_model(
            path, cost_model, shapes=shapes, allow_uncovered=allow_uncovered, runtime=runtime, keep=Path(kept)
        )
        file = load_model(path, shapes)
        warnings = quietness(runtime.facts())
        rows = anchors(cost_model.profile)
        timings = Timings(runtime)
        before_s = time_anchors(cost_model.profile, rows, timings)
        feeds = example_feeds(file, seed)
        least_s, samples_s = time_model(
            file.data(),
            feeds,
            threads=machine.threads,
            seconds=(1 - _FOR_NODES) * seconds,
            passes=passes,
            weights_in=file.folder,
            runtime=runtime,
        )
        nodes_s: Mapping[int, float] = {}
        try:
            nodes_s = time_nodes(
                file,
                Path(kept),
                feeds,
                threads=machine.threads,
                seconds=_FOR_NODES * seconds,
                overhead_s=cost_model.profile.run_overhead_s,
                runtime=runtime,
            )
        except ModelError as error:  # it takes the model twice, which may be more than there is room for
            warnings = (*warnings, f"what each operator took is not known: {error}")
    latency_s = statistics.median(samples_s)
    speed = speed_between(rows, before_s, time_anchors(cost_model.profile, rows, timings))
    floor = max(latency_s / least_s - 1, cost_model.profile.noise_floor)
    if speed is not None and abs(speed - 1) > max(_UNLIKE, floor):
        warnings = (
            *warnings,
            f"the profile's kernels run at {speed:.2f} times the speed that they had when it was made; the prediction "
            "is brought to that, but not all kernels change alike: let the machine come to rest, or profile it again",
        )
    now = prediction if speed is None else prediction.at_speed(speed)
    operators_s = _shared_out(now.operators, nodes_s)
    return Check(now, latency_s, samples_s, operators_s, floor, prediction.total.latency_s, speed, warnings)


def _shared_out(operators: Sequence[PricedOperator], nodes_s: Mapping[int, float]) -> tuple[float | None, ...]:
    """What each operator took, of its node's seconds the share that is predicted for it."""
    predicted_s: defaultdict[int, float] = defaultdict(float)
    for one in operators:
        predicted_s[one.place] += one.price.latency_s
    return tuple(
        nodes_s[one.place] * one.price.latency_s / predicted_s[one.place] if one.place in nodes_s else None
        for one in operators
    )
