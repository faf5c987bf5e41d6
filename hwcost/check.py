"""A whole model: what it should cost by a profile, and what it does cost here, side by side.

Predicting reads the graph that the runtime executes and prices every operator; checking closes the loop, by running
the model on the profile's own machine. A share that cannot be priced is an error, or, if the caller insists, is stated.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwcost.errors import MeasurementError, ModelError, UnknownOperatorError
from hwcost.machine import detect_machine
from hwcost.model import Layout, ModelLayers, example_feeds, load_model, read_model
from hwcost.ops import Operator, Precision, key
from hwcost.pricing import CostModel, Price, Total
from hwcost.runtime import time_model

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PricedOperator:
    """One executed operator of a model; two where the runtime fused an addition into a node."""

    name: str
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
    tensor elements that the model reads and writes.
    """

    model: str
    device: str
    bits: int
    total: Total
    operators: tuple[PricedOperator, ...]
    uncovered: tuple[str, ...]
    uncovered_share: float

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
            "operators": [operator.document() for operator in self.operators],
        }


@dataclass(frozen=True)
class Check:
    """A prediction beside what was measured here: the minimum over passes, and the passes, in seconds per run.

    `noise_floor`: how far passes differ, as a share; an error below it says nothing.
    """

    prediction: Prediction
    measured_s: float
    samples_s: tuple[float, ...]
    noise_floor: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.prediction.total.latency_s / self.measured_s - 1

    @property
    def within_interval(self) -> bool:
        return self.prediction.total.low_s <= self.measured_s <= self.prediction.total.high_s

    def document(self) -> dict[str, Any]:
        """The check as JSON values: the prediction's, and `measured_s`, `error`, `noise_floor`."""
        return {
            **self.prediction.document(),
            "measured_s": self.measured_s,
            "samples_s": list(self.samples_s),
            "error": self.error,
            "within_interval": self.within_interval,
            "noise_floor": self.noise_floor,
        }


def is_this_machine(cost_model: CostModel) -> bool:
    """Whether the profile was made on this machine, with this runtime."""
    machine = cost_model.profile.machine
    return detect_machine(machine.threads).fingerprint == machine.fingerprint


def predict_model(
    path: Path, cost_model: CostModel, *, shapes: Shapes | None = None, allow_uncovered: bool = False
) -> Prediction:
    """Price every operator that the model executes: in this machine's graph where the profile is of this machine,
    otherwise in one without this machine's layouts.

    `shapes` gives sizes for open inputs. Raises `ModelError`; `UnknownOperatorError` naming what has no price, unless
    `allow_uncovered`.
    """
    layout: Layout = "executed" if is_this_machine(cost_model) else "portable"
    found = read_model(path, shapes=shapes, layout=layout)
    reasons = _unpriced(found, cost_model)
    uncovered = [*found.uncovered, *(f"{found.layers[index][0]} ({reasons[index]})" for index in reasons)]
    if uncovered and not allow_uncovered:
        listed = ", ".join(uncovered[:3]) + (f" and {len(uncovered) - 3} more" if len(uncovered) > 3 else "")
        raise UnknownOperatorError(
            f"every operator of a model needs a price, got none for {len(uncovered)} of {path}: {listed}; "
            "profile and fit such operators, or leave them out knowingly with --allow-uncovered"
        )
    priced = [layer for index, layer in enumerate(found.layers) if index not in reasons]
    if not priced:
        raise ModelError(f"a prediction needs one operator that has a price, {path} has none: profile more operators")
    total = cost_model.price_all([(op, precision) for _, op, precision in priced])
    operators = tuple(PricedOperator(*layer, price) for layer, price in zip(priced, total.prices, strict=True))
    lost = [found.layers[index][1] for index in reasons]
    elements = found.uncovered_elements + sum(op.input_elements + op.output_elements + op.weights for op in lost)
    share = min(elements / max(found.elements, 1), 1.0)
    return Prediction(str(path), cost_model.device, _bits(found), total, operators, tuple(uncovered), share)


def _unpriced(found: ModelLayers, cost_model: CostModel) -> dict[int, str]:
    """Positions of the layers that the cost model refuses, with its reason."""
    refusals: dict[tuple[Operator, Precision], str] = {}
    layers = [(op, precision) for _, op, precision in found.layers]
    try:
        cost_model.prices(layers)
    except UnknownOperatorError:
        for layer in dict.fromkeys(layers):
            try:
                cost_model.price(*layer)
            except UnknownOperatorError as error:
                refusals[layer] = str(error)
    return {index: refusals[layer] for index, layer in enumerate(layers) if layer in refusals}


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
) -> Check:
    """Predict a model and run it here for about `seconds`, with inputs drawn from `seed`.

    Raises like `predict_model`, and `MeasurementError` where the profile is of another machine.
    """
    machine = cost_model.profile.machine
    here = detect_machine(machine.threads)
    if not is_this_machine(cost_model):
        raise MeasurementError(
            f"a model is checked on the machine of its profile, profile {cost_model.device} is of {machine.cpu} with "
            f"onnxruntime {machine.onnxruntime}, this is {here.cpu} with onnxruntime {here.onnxruntime}: run the check "
            "there, profile this machine, or ask for the prediction alone with `hwcost predict`"
        )
    prediction = predict_model(path, cost_model, shapes=shapes, allow_uncovered=allow_uncovered)
    model = load_model(path, shapes)
    latency_s, samples_s = time_model(
        model.SerializeToString(), example_feeds(model, seed), threads=machine.threads, seconds=seconds, passes=passes
    )
    spread = statistics.median(samples_s) / latency_s - 1
    return Check(prediction, latency_s, samples_s, max(spread, cost_model.profile.noise_floor))
