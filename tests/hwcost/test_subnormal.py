"""Weights below 1.2e-38: how many there are, what one costs by two known timings, and what a model pays for its own."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwcost.check import predict_model
from hwcost.features import hardware_of
from hwcost.measure import profile_machine
from hwcost.model import read_model
from hwcost.pricing import CostModel
from hwcost.profiles import Profile, read_profile, write_profile
from hwcost.runtime import Here
from hwcost.subnormal import subnormal_vectors, time_subnormal

TINY = np.float32(1e-40)


def test_what_is_neither_nought_nor_normal_counts_and_so_do_the_vectors_that_have_it() -> None:
    values = np.ones((4, 16), np.float32)
    assert subnormal_vectors(values, 16) == (0, 0)
    values[0, :2], values[1, 3], values[2, 5], values[3, 0] = TINY, -TINY, 0.0, np.finfo(np.float32).tiny
    assert subnormal_vectors(values, 16) == (3, 2)
    assert subnormal_vectors(values, 2) == (3, 2)
    assert subnormal_vectors(values, 1) == (3, 3)
    assert subnormal_vectors(np.array([np.nan, np.inf, -0.0], np.float32), 4) == (0, 0)
    assert subnormal_vectors(np.zeros((0,), np.float32), 4) == (0, 0)


def test_a_use_costs_what_one_convolution_takes_longer_with_than_without() -> None:
    said = iter([1e-3, 3e-3])

    def timer(run: Callable[[], object], seconds: float) -> float:
        run()
        return next(said) if seconds == 0.03 else 1e-3

    assert time_subnormal(Here(timer), "u8s8", 0, 1, 16) == pytest.approx(2e-3 / (64 * 64 / 16 / 8 * 49))


def _model(path: Path, subnormal: int) -> Path:
    """One 1x1 convolution over 8x8 pixels, with so many such weights."""
    weights = np.random.default_rng(0).normal(0, 0.1, (32, 16, 1, 1)).astype(np.float32)
    weights.reshape(-1)[:subnormal] = TINY
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="thin", kernel_shape=[1, 1])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 8, 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    model = _model(tmp_path_factory.mktemp("models") / "m.onnx", 0)
    exact = [(op, precision) for _, op, precision in read_model(model).layers]
    return profile_machine([], exact=exact, device="here", passes=1)


def test_a_model_pays_for_every_vector_that_has_one_and_is_told(profile: Profile, tmp_path: Path) -> None:
    plain = predict_model(_model(tmp_path / "plain.onnx", 0), CostModel(profile))
    assert not any("subnormal" in warning for warning in plain.warnings)
    path = _model(tmp_path / "spoilt.onnx", 40)
    (found,) = read_model(path, lanes=hardware_of(profile.machine, profile.int8_form).lanes).subnormal
    assert found.weights == 40 and 3 <= found.vectors <= 40
    unknown = predict_model(path, CostModel(profile))
    assert unknown.total == plain.total
    assert any(
        text.startswith("40 weights of y") and "which is not predicted; set them to 0" in text
        for text in unknown.warnings
    )
    known = predict_model(path, CostModel(profile.changed(subnormal_s=4e-8)))
    more_s = 4e-8 * found.vectors * 64
    assert known.total.latency_s == pytest.approx(plain.total.latency_s + more_s)
    assert sum(one.price.latency_s for one in known.operators) == pytest.approx(
        sum(one.price.latency_s for one in plain.operators) + more_s
    )
    assert known.total.low_s < plain.total.low_s + more_s < known.total.latency_s < known.total.high_s
    assert any("takes 40 ns longer here for each use, which is predicted" in text for text in known.warnings)


def test_a_profile_keeps_what_one_costs_and_one_without_is_written_as_ever(profile: Profile, tmp_path: Path) -> None:
    assert b"subnormal" not in profile.to_json()
    known = profile.changed(subnormal_s=3.7e-8)
    write_profile(known, tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == known and known.digest != profile.digest
    assert math.isclose(read_profile(tmp_path / "p.json").subnormal_s, 3.7e-8)
    assert profile.with_rows_of(known).subnormal_s == 3.7e-8  # as its networks, measured at the same time
