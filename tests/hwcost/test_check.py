"""Models as a whole: every operator priced or named, and the prediction beside a measurement of the same machine."""

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import Builder, float_model, quantised_model

from hwcost.check import Check, _shared_out, check_model, predict_model
from hwcost.devices import load_device
from hwcost.errors import MeasurementError, ModelError, UnknownOperatorError
from hwcost.estimate import estimate_profile
from hwcost.measure import profile_machine
from hwcost.model import read_model
from hwcost.ops import FLOAT, INT8, Boundary, Conv, Precision
from hwcost.pricing import CostModel
from hwcost.profiles import Profile
from hwcost.runtime import Given, Here


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return float_model(tmp_path_factory.mktemp("models") / "m.onnx")


@pytest.fixture(scope="module")
def measured(model: Path) -> Profile:
    """This machine, measured once over on exactly the operators of the model."""
    operators = tuple(dict.fromkeys(op for _, op, _ in read_model(model).layers))
    return profile_machine(operators, device="here", precisions=[FLOAT], passes=1)


@pytest.fixture(scope="module")
def estimated(model: Path) -> Profile:
    layers = read_model(model, layout="portable").layers
    return estimate_profile(load_device("rpi4"), [op for _, op, _ in layers])


def test_a_prediction_is_the_sum_of_what_the_runtime_executes_and_the_call(model: Path, measured: Profile) -> None:
    prediction = predict_model(model, CostModel(measured))
    assert [operator.operator for operator in prediction.operators] == [op for _, op, _ in read_model(model).layers]
    rows_s = sum(operator.price.latency_s for operator in prediction.operators)
    assert prediction.total.latency_s == pytest.approx(measured.run_overhead_s + rows_s)
    assert prediction.total.low_s < prediction.total.latency_s < prediction.total.high_s
    assert (prediction.device, prediction.bits, prediction.uncovered_share) == ("here", 32, 0)
    assert prediction.total.sources == ("measured",)


def test_a_check_shows_the_measurement_beside_the_prediction(model: Path, measured: Profile) -> None:
    checked = check_model(model, CostModel(measured), seconds=0.2, passes=2)
    assert checked.measured_s == statistics.median(checked.samples_s) and len(checked.samples_s) == 2
    assert checked.noise_floor >= measured.noise_floor
    document = checked.document()
    assert document["error"] == pytest.approx(document["predicted_s"] / document["measured_s"] - 1)
    fields = ["model", "bits", "predicted_s", "interval_s", "measured_s", "error", "noise_floor", "uncovered_share"]
    assert {*fields, "operators"} <= document.keys()
    assert (document["model"], document["bits"], document["uncovered_share"]) == (str(model), 32, 0)
    low_s, high_s = document["interval_s"]
    assert low_s < document["predicted_s"] < high_s
    assert len(document["operators"]) == len(checked.prediction.operators)
    assert {"name", "operator", "precision", "predicted_s", "interval_s", "source"} <= document["operators"][0].keys()
    assert all(operator["measured_s"] > 0 for operator in document["operators"])
    assert json.loads(json.dumps(document)) == document


def test_a_node_of_two_operators_is_shared_out_as_predicted_and_one_that_nothing_is_told_of_has_no_time(
    model: Path, measured: Profile
) -> None:
    operators = predict_model(model, CostModel(measured)).operators[:3]
    twice = [replace(one, place=place) for one, place in zip(operators, (4, 4, 7), strict=True)]
    first_s, second_s, lost_s = _shared_out(twice, {4: 3.0})
    assert lost_s is None and first_s is not None and second_s is not None
    assert first_s + second_s == pytest.approx(3)
    assert first_s / second_s == pytest.approx(operators[0].price.latency_s / operators[1].price.latency_s)


@dataclass(frozen=True)
class Cramped(Here):
    """This process, in which a model is not to be had twice."""

    def node_times(self, *_: object) -> tuple[float, dict[str, float]]:
        raise MemoryError("std::bad_alloc")


def test_where_its_nodes_cannot_be_timed_a_model_is_checked_in_total(model: Path, measured: Profile) -> None:
    checked = check_model(model, CostModel(measured), seconds=0.1, passes=1, runtime=Cramped())
    assert checked.measured_s > 0 and set(checked.operators_s) == {None}
    assert any(text.startswith("what each operator took is not known: timing its nodes") for text in checked.warnings)
    assert {operator["measured_s"] for operator in checked.document()["operators"]} == {None}


def test_the_interval_is_held_against_the_measurement(model: Path, measured: Profile) -> None:
    prediction = predict_model(model, CostModel(measured))
    total, nobody_told = prediction.total, (None,) * len(prediction.operators)
    inside = Check(prediction, total.high_s, (total.high_s,), nobody_told, 0.0, total.latency_s)
    assert inside.within_interval
    assert not replace(inside, measured_s=prediction.total.high_s * 1.01).within_interval


def test_another_machines_profile_is_not_checked_here(model: Path, estimated: Profile) -> None:
    with pytest.raises(MeasurementError) as caught:
        check_model(model, CostModel(estimated))
    text = str(caught.value)
    assert text.startswith(
        "a model is checked on the machine of its profile, profile rpi4 is of Cortex-A72 (estimated)"
    )
    assert "profile this machine" in text and "`hwcost predict`" in text


def test_another_version_of_the_runtime_is_allowed_and_said(model: Path, measured: Profile) -> None:
    older = measured.machine.model_copy(update={"onnxruntime": "1.21.0"})
    cost_model = CostModel(measured.model_copy(update={"machine": older}))
    prediction = predict_model(model, cost_model)
    assert predict_model(model, CostModel(measured)).warnings == ()
    (warning,) = prediction.warnings
    assert warning.startswith("profile here is of onnxruntime 1.21.0, this is ")
    assert [one.operator for one in prediction.operators] == [op for _, op, _ in read_model(model).layers]
    checked = check_model(model, cost_model, seconds=0.05, passes=1)
    assert checked.document()["warnings"][0] == warning == prediction.document()["warnings"][0]


def test_another_machine_is_predicted_without_this_machines_layouts(model: Path, estimated: Profile) -> None:
    prediction = predict_model(model, CostModel(estimated))
    assert prediction.warnings[0].startswith("profile rpi4 is of Cortex-A72 (estimated), this is ")
    assert prediction.total.sources == ("estimated",)
    assert all(operator.operator.kind != "boundary" or operator.name == "flatten7" for operator in prediction.operators)


def test_another_machines_int8_kernels_are_those_of_the_files_formats_as_far_as_they_were_profiled(
    tmp_path: Path,
) -> None:
    path = quantised_model(tmp_path / "q.onnx")
    operators = [op for _, op, _ in read_model(path, layout="portable").layers]
    profile = estimate_profile(load_device("rpi4"), operators)
    products = {op for op in operators if op.macs}

    def runs_as(profile: Profile) -> set[str]:
        priced = predict_model(path, CostModel(profile)).operators
        return {str(one.price.runs_as) for one in priced if one.operator in products}

    assert runs_as(profile) == {"w8a8"}
    named = [
        row.model_copy(update={"precision": Precision(8, 8, "u8u8")})
        for row in profile.rows
        if row.precision == INT8 and row.operator in products
    ]
    assert runs_as(Profile.model_validate(dict(profile) | {"rows": (*profile.rows, *named)})) == {"w8a8:u8u8"}


def test_on_x86_signed_activations_become_unsigned(tmp_path: Path) -> None:
    arm = estimate_profile(load_device("rpi4"), [Conv(3, 4, 8, 8, (1, 1))])
    x86 = arm.model_copy(update={"machine": arm.machine.model_copy(update={"architecture": "x86_64"})})
    named = [row.model_copy(update={"precision": Precision(8, 8, "u8s8")}) for row in arm.rows if row.precision == INT8]
    build = Builder()
    scale, zero = build.constant(np.float32(0.05)), build.constant(np.int8(0))
    x = build.node("DequantizeLinear", build.node("QuantizeLinear", "x", scale, zero), scale, zero)
    codes = build.constant(build.rng.integers(-100, 100, (4, 3, 1, 1)).astype(np.int8))
    y = build.node("Conv", x, build.node("DequantizeLinear", codes, scale, zero), kernel_shape=[1, 1])
    y = build.node("DequantizeLinear", build.node("QuantizeLinear", y, scale, zero), scale, zero)
    path = build.save(tmp_path / "q.onnx", [1, 3, 8, 8], y)
    boundaries = [Boundary("quantize", (1, 3, 8, 8)), Boundary("dequantize", (1, 4, 8, 8))]
    ends = estimate_profile(load_device("rpi4"), boundaries).rows
    for profile, expected in ((arm, "w8a8"), (x86, "w8a8:u8s8")):
        whole = Profile.model_validate(dict(profile) | {"rows": (*profile.rows, *named, *ends)})
        convs = [one for one in predict_model(path, CostModel(whole)).operators if one.operator.kind == "conv"]
        assert [str(one.price.runs_as) for one in convs] == [expected]


def test_an_unknown_node_is_an_error_unless_its_share_is_wanted(tmp_path: Path, estimated: Profile) -> None:
    build = Builder()
    x = build.node("Relu", build.conv("x", 12, 3, 3, stride=2))
    positive = build.node("Greater", build.node("ReduceSum", x, keepdims=0), build.constant(np.float32(0)))
    made = helper.make_empty_tensor_value_info
    one, other = (
        helper.make_graph([helper.make_node(op_type, [x], [op_type])], op_type, [], [made(op_type)])
        for op_type in ("Erf", "Neg")
    )
    path = build.save(
        tmp_path / "m.onnx", [1, 3, 16, 16], build.node("If", positive, then_branch=one, else_branch=other)
    )
    with pytest.raises(UnknownOperatorError, match=r"got none for 3 of .*: If if4, reducesum2 .* --allow-uncovered"):
        predict_model(path, CostModel(estimated))
    prediction = predict_model(path, CostModel(estimated), allow_uncovered=True)
    assert prediction.uncovered[0] == "If if4" and 0 < prediction.uncovered_share < 1


def test_an_operator_that_was_not_profiled_is_an_error_unless_its_share_is_wanted(
    model: Path, estimated: Profile
) -> None:
    fewer = estimated.model_copy(update={"rows": tuple(row for row in estimated.rows if row.operator.kind != "conv")})
    cost_model = CostModel(Profile.model_validate(dict(fewer)))
    with pytest.raises(UnknownOperatorError) as caught:
        predict_model(model, cost_model)
    assert "got none for 3 of" in str(caught.value) and "(conv.depthwise at w32a32)" in str(caught.value)
    assert "run `hwcost fit` to predict what was not profiled" in str(caught.value)
    prediction = predict_model(model, cost_model, allow_uncovered=True)
    assert len(prediction.uncovered) == 3 and 0 < prediction.uncovered_share < 1
    assert all(not isinstance(operator.operator, Conv) for operator in prediction.operators)


def test_a_model_of_which_nothing_has_a_price_is_refused(model: Path, estimated: Profile) -> None:
    lone = estimate_profile(load_device("rpi4"), [Conv.square(7, 7, 7, 7)])
    with pytest.raises(ModelError, match="needs one operator that has a price"):
        predict_model(model, CostModel(lone), allow_uncovered=True)


def test_nodes_are_timed_in_the_graph_that_was_priced(model: Path, measured: Profile) -> None:
    made: list[Path] = []

    class Once(Here):
        """A runtime that makes the graph it executes but once, as the next might have its nodes in another order."""

        def optimised(self, given: Given, target: Path, weights_file: str = "", most_s: float | None = None) -> None:
            if given.optimise == "all":
                made.append(target)
            assert len(made) <= 1
            super().optimised(given, target, weights_file, most_s)

    checked = check_model(model, CostModel(measured), seconds=0.1, passes=1, runtime=Once())
    assert all(seconds is not None for seconds in checked.operators_s)
