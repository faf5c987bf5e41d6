"""How fast a machine is now: known answers from a stopwatch that says what it is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx_models import float_model

from hwcost.check import check_model
from hwcost.features import family
from hwcost.measure import profile_machine
from hwcost.model import read_model
from hwcost.ops import FLOAT
from hwcost.pricing import CostModel
from hwcost.profiles import Profile
from hwcost.runtime import Here
from hwcost.speed import anchors, machine_speed, time_anchors
from hwcost.timing import Timings

LATENCY_S = 2e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return float_model(tmp_path_factory.mktemp("models") / "m.onnx")


@pytest.fixture(scope="module")
def profile(model: Path) -> Profile:
    """The operators of a model as this machine runs them, all said to take `LATENCY_S`."""
    operators = tuple(dict.fromkeys(op for _, op, _ in read_model(model).layers))
    found = profile_machine(operators, device="here", precisions=[FLOAT], passes=1)
    said = {"latency_s": LATENCY_S, "interval_s": (LATENCY_S, LATENCY_S), "samples_s": (LATENCY_S,) * 2, "copies": 1}
    return found.model_copy(update={"rows": tuple(row.model_copy(update=said) for row in found.rows)})


def says(profile: Profile, seconds: float) -> Here:
    """A runtime whose kernels take so long."""

    def timer(run: Callable[[], object], _: float) -> float:
        run()
        return profile.run_overhead_s + seconds

    return Here(timer)


def test_anchors_are_settled_rows_of_different_families(profile: Profile) -> None:
    rows = anchors(profile)
    assert (
        len(rows) == len({family(row.operator) for row in rows}) == len({family(row.operator) for row in profile.rows})
    )
    once = [row.model_copy(update={"samples_s": (LATENCY_S,)}) for row in profile.rows]
    assert len(anchors(profile.model_copy(update={"rows": tuple(once)}))) == len(rows)
    (settled,) = anchors(profile.model_copy(update={"rows": (profile.rows[0], *once[1:])}))
    assert settled == profile.rows[0]
    changes = [
        {"samples_s": (LATENCY_S, 1.1 * LATENCY_S)},
        {"source": "estimated"},
        {"latency_s": 1e-6, "interval_s": (1e-6, 1e-6)},
    ]
    for change in changes:
        unfit = profile.model_copy(update={"rows": tuple(row.model_copy(update=change) for row in profile.rows)})
        assert anchors(unfit) == ()


@pytest.mark.parametrize("times", [0.5, 1.0, 1.25])
def test_the_speed_is_that_of_the_profiles_kernels(profile: Profile, times: float) -> None:
    rows = anchors(profile)
    passes = [time_anchors(profile, rows, Timings(says(profile, factor * LATENCY_S))) for factor in (times, 2 * times)]
    assert machine_speed(rows, passes) == pytest.approx(1 / times)


def test_too_few_kernels_tell_no_speed(profile: Profile) -> None:
    rows = anchors(profile)[:2]
    assert machine_speed(rows, [[LATENCY_S] * 2]) is None
    assert machine_speed((), [[], []]) is None
    gone = [anchor.model_copy(update={"realisation": "of another version"}) for anchor in anchors(profile)]
    passes = [time_anchors(profile, gone, Timings(says(profile, LATENCY_S)))]
    assert machine_speed(gone, passes) is None


def test_a_check_predicts_for_the_speed_of_the_moment_and_warns_of_another(model: Path, profile: Profile) -> None:
    same = check_model(model, CostModel(profile), seconds=0.0, passes=1, runtime=says(profile, LATENCY_S))
    slow = check_model(model, CostModel(profile), seconds=0.0, passes=1, runtime=says(profile, 2 * LATENCY_S))
    assert same.machine_speed == pytest.approx(1) and slow.machine_speed == pytest.approx(0.5)
    assert same.profiled_s == slow.profiled_s == pytest.approx(same.prediction.total.latency_s)
    said = slow.document()
    assert said["predicted_s"] == pytest.approx(2 * said["profiled_s"])
    assert said["interval_s"] == pytest.approx([2 * end for end in same.document()["interval_s"]])
    of_operators = sum(operator["predicted_s"] for operator in said["operators"])
    assert of_operators + said["run_overhead_s"] == pytest.approx(said["predicted_s"])
    assert slow.error == pytest.approx(said["predicted_s"] / slow.measured_s - 1)
    about = [[text for text in one.document()["warnings"] if "0.50 times the speed" in text] for one in (same, slow)]
    assert about[0] == [] and len(about[1]) == 1 and "profile it again" in about[1][0]


def test_without_kernels_to_time_a_check_predicts_for_the_machine_as_profiled(model: Path, profile: Profile) -> None:
    few = profile.model_copy(
        update={"rows": tuple(row.model_copy(update={"source": "estimated"}) for row in profile.rows)}
    )
    found = check_model(model, CostModel(few), seconds=0.0, passes=1, runtime=says(profile, 2 * LATENCY_S))
    assert found.machine_speed is None and found.prediction.total.latency_s == found.profiled_s
