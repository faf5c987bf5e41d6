"""A profile brought to another device by a few measurements: known factors come back, intervals say what is open."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hwcost.adapt import Samples, adapt_profile, measure_samples, read_samples
from hwcost.cli import cli
from hwcost.composition import ROLES, STREAMS, Composition, kernel_class
from hwcost.console import run_cli
from hwcost.errors import HwcostError, TransferError
from hwcost.fit import Fit, fit_path, fit_profile, read_fit, write_fit
from hwcost.machine import detect_machine
from hwcost.ops import FLOAT, INT8, Conv, Elementwise, Precision, key
from hwcost.predictors.base import Calibration
from hwcost.predictors.linear import LinearPredictor
from hwcost.predictors.shifted import ShiftedPredictor
from hwcost.pricing import CostModel, load_cost_model
from hwcost.profiles import Profile, Row, read_profile, write_profile
from hwcost.sibling import Sibling
from hwcost.space import SearchSpace
from hwcost.tables import table_text
from hwcost.testing import plausible_profile, plausible_rows, random_convolutions
from hwcost.timing import Site, Survey, Task, Timing

SPACE = SearchSpace.for_image((3, 32, 32), 10)
FACTORS = {"float product": 3.0, "int8 product": 1.5, "float data": 2.0, "int8 data": 1.0}
UNSEEN = Conv.square(12, 40, 8, 3)


@pytest.fixture(scope="module")
def source() -> Profile:
    operators = [*SPACE.operators(), *random_convolutions(np.random.default_rng(1), 60)]
    return plausible_profile(list(dict.fromkeys(operators)), precisions=(FLOAT, INT8))


@pytest.fixture(scope="module")
def fit(source: Profile) -> Fit:
    return fit_profile(source, names=["linear"])


def truth_of(source: Profile, noise: float = 0.01, seed: int = 0) -> dict[tuple[object, Precision], Row]:
    """The rows of another device: each class of kernels by a factor of its own."""
    rng = np.random.default_rng(seed)
    rows = {}
    for row in source.rows:
        latency_s = row.latency_s * FACTORS[kernel_class(*row.layer)] * float(np.exp(noise * rng.standard_normal()))
        ends = {"interval_s": (0.99 * latency_s, 1.01 * latency_s), "realisation": "theirs"}
        rows[row.layer] = row.model_copy(update={"latency_s": latency_s, **ends})
    return rows


def sampled(source: Profile, count: int, seed: int = 0) -> Samples:
    truth, rows = truth_of(source), source.rows
    sibling = Sibling(tuple(row.layer for row in rows), np.array([row.latency_s for row in rows]))
    chosen = sibling.choose(count, seed)
    return Samples(tuple(truth[rows[place].layer] for place in chosen), detect_machine(), "u8u8", 0.01, 5e-6)


def errors(source: Profile, samples: Samples) -> tuple[float, float, float]:
    """Mean error of rows that were not measured, the share in their intervals, and the median half-width."""
    truth = truth_of(source)
    adapted, _ = adapt_profile(source, samples, "new")
    rows = [row for row in adapted.rows if row.source == "adapted"]
    wanted = np.array([truth[row.layer].latency_s for row in rows])
    found = np.array([row.latency_s for row in rows])
    inside = [row.interval_s[0] <= seconds <= row.interval_s[1] for row, seconds in zip(rows, wanted, strict=True)]
    widths = [row.interval_s[1] / row.latency_s - 1 for row in rows]
    return float(np.abs(found / wanted - 1).mean()), float(np.mean(inside)), float(np.median(widths))


def test_known_factors_of_kernel_classes_come_back(source: Profile) -> None:
    few, many = (errors(source, sampled(source, count)) for count in (8, 40))
    assert few[0] < 0.25 and many[0] < 0.06  # one factor for all would be 40 % off
    assert many[1] > 0.85 and many[2] < few[2]


def test_where_nothing_was_measured_intervals_stay_wide(source: Profile) -> None:
    truth = truth_of(source)
    products = [row for row in truth.values() if kernel_class(*row.layer) == "int8 product"][:30]
    adapted, _ = adapt_profile(source, Samples(tuple(products), detect_machine(), "u8u8", 0.01), "new")
    widths: dict[str, list[float]] = {}
    for row in adapted.rows:
        if row.source == "adapted":
            widths.setdefault(kernel_class(*row.layer), []).append(row.interval_s[1] / row.latency_s - 1)
    assert np.median(widths["float data"]) > 3 * np.median(widths["int8 product"])


def test_rows_say_where_they_come_from_and_samples_stay_as_measured(source: Profile) -> None:
    samples = sampled(source, 12)
    adapted, none = adapt_profile(source, samples, "new")
    assert none is None and adapted.sources == ("adapted", "measured") and not adapted.networks
    assert [row for row in adapted.rows if row.source == "measured"] == list(samples.rows)
    assert {row.layer for row in adapted.rows} == {row.layer for row in source.rows}
    assert "adapted from profile plausible (measured; a law, not a device) by 12 operators" in adapted.notes[0]
    again, _ = adapt_profile(source, sampled(source, 12), "new")
    assert again.rows == adapted.rows and again.run_overhead_s == 5e-6


def test_samples_are_of_every_class_of_kernels_and_of_all_sizes(source: Profile) -> None:
    rows = sampled(source, 20).rows
    assert {kernel_class(*row.layer) for row in rows} == set(FACTORS)
    latency_s = [row.latency_s for row in rows]
    assert max(latency_s) > 20 * min(latency_s)


def test_the_fit_goes_along_and_is_kept_like_any_other(source: Profile, fit: Fit, tmp_path: Path) -> None:
    adapted, shifted = adapt_profile(source, sampled(source, 40), "new", fit)
    assert shifted is not None
    write_profile(adapted, tmp_path / "new.json")
    write_fit(shifted, fit_path(tmp_path / "new.json"))
    model, before = load_cost_model(tmp_path / "new.json"), CostModel(source, fit)
    for precision in (FLOAT, INT8):
        price, there = model.price(UNSEEN, precision), before.price(UNSEEN, precision)
        assert price.label == "predicted from adapted and measured rows" and price.runs_as == precision
        assert price.latency_s / there.latency_s == pytest.approx(FACTORS[kernel_class(UNSEEN, precision)], rel=0.15)
        assert price.high_s / price.latency_s > there.high_s / there.latency_s
    assert {report.chosen for report in shifted.report} == {"shifted"}
    assert "adapted" in model.price_all(SPACE.layers(SPACE.largest)).sources


def test_errors_that_operators_share_do_not_cancel_in_a_network(source: Profile, fit: Fit) -> None:
    composition = Composition(
        networks=8,
        factors=dict.fromkeys(ROLES, 1.0),
        kernel_s=1e-8,
        near_bytes=2**20,
        s_per_byte=dict.fromkeys(STREAMS, 1e-11),
        measured_width=0.03,
        predicted_width=0.05,
    )
    composed = Fit(fit.device, fit.profile_digest, fit.seed, fit.folds, fit.families, composition)
    adapted, shifted = adapt_profile(source, sampled(source, 8), "new", composed)
    model = CostModel(adapted, shifted)
    for price in model.price_all(SPACE.layers(SPACE.largest)).prices:
        if price.source == "adapted":
            assert price.part_s[0] < price.low_s and price.part_s[1] > price.high_s
    assert shifted is not None and shifted.composition is not None and shifted.composition.kernel_s != 1e-8


def test_operators_that_the_sibling_only_predicts_are_samples_too(source: Profile, fit: Fit) -> None:
    samples = sampled(source, 12)
    (price,) = CostModel(source, fit).prices([(UNSEEN, INT8)])
    other = samples.rows[0].model_copy(update={"operator": UNSEEN, "precision": INT8})
    strange = samples.rows[0].model_copy(update={"operator": Elementwise("tanh", (1, 8)), "precision": FLOAT})
    extra = Samples((*samples.rows, other, strange), samples.machine, "u8u8", 0.01)
    adapted, _ = adapt_profile(source, extra, "new", fit)
    assert price.source == "predicted" and "by 13 operators" in adapted.notes[0]
    assert "1 measured operators are unknown there, and stand for themselves" in adapted.notes
    assert adapted.find(UNSEEN, INT8) == other


def test_what_cannot_be_adapted_is_refused_in_words(source: Profile) -> None:
    samples = sampled(source, 12)
    with pytest.raises(TransferError, match="a name of its own, got 'plausible'"):
        adapt_profile(source, samples, "plausible")
    few = Samples(samples.rows[:3], samples.machine, "u8u8", 0.01)
    with pytest.raises(TransferError, match="at least as many operators as it has classes of kernels, 4, got 3"):
        adapt_profile(source, few, "new")
    strange = samples.rows[0].model_copy(update={"operator": Elementwise("tanh", (1, 8)), "precision": FLOAT})
    with pytest.raises(TransferError, match="got 1 of which profile plausible knows none"):
        adapt_profile(source, Samples((strange,), samples.machine, "u8u8", 0.01), "new")
    sibling = Sibling(tuple(row.layer for row in source.rows), np.array([row.latency_s for row in source.rows]))
    with pytest.raises(TransferError, match="at least one operator"):
        sibling.shift([], [])
    with pytest.raises(TransferError, match="operators are chosen, got 0"):
        sibling.choose(0, 0)


@dataclass
class Elsewhere:
    """A device at the other end of a wire: 10 us a call, and kernels of 5 us."""

    asked: int = 0

    def take_all(self, tasks: Sequence[Task]) -> Iterator[Timing]:
        for task in tasks:
            self.asked += 1
            copies = task.copies or 100
            run_s = 1e-5 + 5e-6 * copies * len(task.requests)
            yield Timing(point=task.point, stage=task.stage, copies=copies, run_s=run_s)

    def survey(self, wanted: Survey) -> Site:
        machine = detect_machine(wanted.threads).model_copy(update={"cpu": "elsewhere"})
        return Site(machine=machine, warnings=("it is warm there",), int8_form="s8s8")


def test_timings_may_come_from_elsewhere(source: Profile) -> None:
    elsewhere = Elsewhere()
    samples = measure_samples(source, 9, passes=1, timings=elsewhere)
    assert elsewhere.asked and len(samples.rows) == 9 and samples.machine.cpu == "elsewhere"
    adapted, _ = adapt_profile(source, samples, "new")
    assert adapted.int8_form == "s8s8" and "it is warm there" in adapted.notes
    with pytest.raises(
        TransferError, match=r"one operator for each of its classes .* got 3 for plausible: ask for more"
    ):
        measure_samples(source, 3, timings=elsewhere)
    there = source.model_copy(update={"machine": elsewhere.survey(Survey(threads=1, seed=0)).machine})
    with pytest.raises(TransferError, match=r"plausible is of this one \(elsewhere\)"):
        measure_samples(there, 9, timings=elsewhere)


def test_a_shifted_predictor_is_its_arrays() -> None:
    features, latency_s = plausible_rows(0, 80)
    base = LinearPredictor.fit(features, latency_s, np.random.default_rng(0))
    shifted = ShiftedPredictor.adapt(base, features, 2.0 * latency_s)
    np.testing.assert_allclose(shifted.log_latency(features), base.log_latency(features) + np.log(2.0), atol=0.1)
    again = ShiftedPredictor.from_state(shifted.state())
    np.testing.assert_array_equal(again.log_latency(features), shifted.log_latency(features))
    twice = ShiftedPredictor.adapt(shifted, features, 4.0 * latency_s)
    np.testing.assert_array_equal(
        ShiftedPredictor.from_state(twice.state()).log_latency(features), twice.log_latency(features)
    )
    assert (twice.predict(features, Calibration.of(features, np.zeros(80))).latency_s > 0).all()
    with pytest.raises(HwcostError, match="lacks the array 'knots'"):
        ShiftedPredictor.from_state({})
    with pytest.raises(HwcostError, match="one base, got 0"):
        ShiftedPredictor.from_state({"knots": np.zeros((2, 1))})
    with pytest.raises(HwcostError, match="at rising latencies"):
        ShiftedPredictor.from_state({**shifted.state(), "knots": np.array([[1.0, 0.0], [0.0, 0.0]])})


def run(*arguments: object) -> object:
    with pytest.raises(SystemExit) as caught:
        run_cli(cli, "hwcost", [str(argument) for argument in arguments])
    return caught.value.code


def test_the_command_adapts_by_a_table_and_others_take_what_it_writes(
    source: Profile, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_profile(source, Path("theirs.json"))
    table = sampled(source, 30)
    write_profile(source.model_copy(update={"rows": table.rows}), Path("measured.json"))
    Path("ours.csv").write_text(table_text(read_profile(Path("measured.json"))))
    write_fit(fit, fit_path(Path("theirs.json")))
    command = ("adapt", "--from", "theirs.json", "--device", "ours", "--measurements", "ours.csv")
    assert run(*command, "--overhead", "20us", "--cpu", "ours", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sources"] == {"adapted": len(source.rows) - 30, "imported": 30}
    assert document["run_overhead_s"] == pytest.approx(20e-6) and document["machine"]["cpu"] == "ours"
    made = read_profile(Path("profiles/ours.json"))
    assert read_fit(fit_path(Path("profiles/ours.json"))).profile_digest == made.digest
    for other in (("show", "profiles/ours.json"), ("compare", "theirs.json", "profiles/ours.json")):
        assert run(*other) == 0
        assert "adapted" in capsys.readouterr().out
    assert run(*command) == 0  # over its own kind
    capsys.readouterr()
    for arguments, said in (
        ((*command, "--samples", "9"), "--samples is for measuring a machine"),
        (("adapt", "--from", "theirs.json", "--device", "ours", "--noise", "2%"), "--noise is for a table"),
        ((*command, "--out", "theirs.json"), "never replaces the one it comes from"),
        ((*command, "--out", "measured.json"), "never replaces the one it comes from, or a measured one"),
        ((*command[:3], "--device", "rpi4"), "it is no rpi4"),
        ((*command[:4], "Not a name", *command[5:]), "a device is named with"),
    ):
        assert run(*arguments) != 0
        assert said in " ".join(capsys.readouterr().err.split())
    write_profile(made, Path("theirs.json"))
    assert run(*command) == 1
    assert "is a fit of another state of theirs.json: run `hwcost fit theirs.json`" in capsys.readouterr().err


def test_a_profile_without_a_fit_says_what_is_missing(
    source: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_profile(source, Path("theirs.json"))
    monkeypatch.setattr("hwcost.timing.Timings", lambda runtime, say: Elsewhere())
    assert run("adapt", "--from", "theirs.json", "--device", "ours", "--samples", "8", "--budget", "1s") == 0
    printed = capsys.readouterr()
    assert "theirs.json has no fit to take along: run `hwcost fit profiles/ours.json`" in printed.err
    assert "8 measured" in printed.out and not fit_path(Path("profiles/ours.json")).exists()


def test_measuring_the_adapted_device_leaves_nothing_of_the_other(source: Profile) -> None:
    samples = sampled(source, 12)
    adapted, _ = adapt_profile(source, samples, "new")
    fields = {name: getattr(adapted, name) for name in Profile.model_fields}
    fresh = Profile.model_validate({**fields, "rows": samples.rows[:5]})
    kept = fresh.with_rows_of(adapted)
    assert kept.sources == ("measured",) and len(kept.rows) == 12


def test_the_fastest_of_equal_rows_of_a_table_counts(source: Profile, tmp_path: Path) -> None:
    row = source.rows[0]
    lines = [f'"{key(row.operator)}",{row.precision},{micros}' for micros in (9, 7, 8)]
    path = tmp_path / "ours.csv"
    path.write_text("operator,precision,latency_us\n" + "\n".join(lines))
    samples = read_samples(path, source, noise=0.05)
    assert [one.latency_s for one in samples.rows] == [pytest.approx(7e-6)]
    assert samples.noise_floor == 0.05 and samples.int8_form == source.int8_form and samples.run_overhead_s is None
