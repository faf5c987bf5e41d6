"""Measuring: what is computed from timings, resuming, budgets and refusals. Timings are replayed, never asserted on."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwcost.agent import stopwatch
from hwcost.basis import settled
from hwcost.errors import MeasurementError, UnsupportedPrecisionError
from hwcost.graph import supported_precisions
from hwcost.machine import detect_machine
from hwcost.measure import Measurements, measure_operators, profile_machine
from hwcost.ops import FLOAT, INT8, Boundary, Conv, Elementwise, Gemm, Operator, Pool, Precision
from hwcost.profiles import read_profile, write_profile
from hwcost.runtime import Here, time_model
from hwcost.timing import Request, Task, Timing, Timings

_REQUESTS: list[Request] = [
    (Conv.square(8, 8, 6, 3), INT8),
    (Gemm(1, 32, 10), Precision(4, 32)),
    (Boundary("quantize", (1, 1, 8, 8)), INT8),
]
_REFUSED = Pool("max", 8, 4, 4, (2, 2), (1, 1), (2, 2, 2, 2))


@dataclass
class FakeClock:
    """Time passes when somebody sleeps, and when a timing is taken."""

    time_s: float = 0.0
    slept_s: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds
        self.slept_s.append(seconds)


@dataclass
class Recorded:
    """Timings that were recorded, so to speak: 10 us a call, kernels of 2 us, a row's as `row_us` says by its number.

    Each takes `takes_s` of the clock; the one after the `last` is interrupted.
    """

    clock: FakeClock = field(default_factory=FakeClock)
    row_us: Callable[[Task, int], float] = lambda task, number: 3.0
    takes_s: float = 0.025
    last: int | None = None
    seen: dict[str, list[float]] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)

    def take(self, task: Task) -> Timing:
        if len(self.tasks) == self.last:
            raise KeyboardInterrupt
        self.clock.time_s += self.takes_s
        self.tasks.append(task)
        times = self.seen.setdefault(task.point, [])
        times.append(self.clock.time_s)
        kernel_us = self.row_us(task, len(times)) if task.point.startswith("row") else 2.0 * len(task.requests)
        copies = task.copies or 100
        return Timing(point=task.point, stage=task.stage, copies=copies, run_s=(10 + kernel_us * copies) * 1e-6)

    def measure(self, requests: list[Request], **options: object) -> Measurements:
        measured = partial(measure_operators, requests, int8_form="u8u8", machine=detect_machine(), clock=self.clock)
        return measured(take=lambda tasks: map(self.take, tasks), **options)  # type: ignore[arg-type]

    def rows(self) -> dict[str, list[float]]:
        """When each row was timed."""
        return {point: times for point, times in self.seen.items() if point.startswith("row")}


def _brief(run: Callable[[], object], seconds: float) -> float:
    """A real timing, as short as it can be and outlast a disturbance."""
    return stopwatch(run, 0.002)


def _never(run: Callable[[], object], seconds: float) -> float:
    raise AssertionError("everything was to come from the journal")


def _measure(
    journal: Path | None, timer: Callable[[Callable[[], object], float], float] = _brief, skip_unsupported: bool = False
) -> Measurements:
    """Two passes over everything: what is never settled."""
    return measure_operators(
        _REQUESTS,
        int8_form="u8u8",
        machine=detect_machine(),
        passes=2,
        seed=3,
        journal=journal,
        take=Timings(Here(timer)).take_all,
        clock=FakeClock(),
        skip_unsupported=skip_unsupported,
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measurements]:
    """A whole measurement of this machine, and its journal."""
    journal = tmp_path_factory.mktemp("recorded") / "journal.jsonl"
    return journal, _measure(journal)


def test_every_request_becomes_a_measured_row_with_an_interval(recorded: tuple[Path, Measurements]) -> None:
    _, found = recorded
    assert [(row.operator, row.precision) for row in found.rows] == _REQUESTS
    for row in found.rows:
        assert row.source == "measured"
        assert len(row.samples_s) == 2
        assert row.latency_s == min(row.samples_s)
        assert row.interval_s[0] < row.latency_s < row.interval_s[1]
    assert found.rows[0].realisation == "QLinearConv u8u8"
    assert found.rows[1].realisation.startswith("MatMulNBits 4-bit, accuracy_level")
    assert found.run_overhead_s > 0


def test_a_complete_journal_gives_the_same_rows_without_timing_anything(recorded: tuple[Path, Measurements]) -> None:
    journal, found = recorded
    assert _measure(journal, _never) == found


def test_an_interrupted_run_resumes_and_keeps_what_was_measured(
    recorded: tuple[Path, Measurements], tmp_path: Path
) -> None:
    whole = recorded[0].read_bytes()
    lines = whole.splitlines(keepends=True)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b"".join(lines[:40]) + lines[40][:25])

    def interrupted(run: Callable[[], object], seconds: float) -> float:
        if journal.read_bytes().count(b"\n") > 41:
            raise KeyboardInterrupt
        return _brief(run, seconds)

    with pytest.raises(KeyboardInterrupt):
        _measure(journal, interrupted)
    kept = journal.read_bytes()
    assert kept.startswith(b"".join(lines[:40]))
    assert kept.count(b"\n") > 40
    found = _measure(journal)
    resumed = journal.read_bytes()
    assert resumed.startswith(kept)
    assert resumed.count(b"\n") == whole.count(b"\n")
    assert [row.copies for row in found.rows if row.precision == INT8]
    points = [json.loads(line)["point"] for line in resumed.splitlines()[1:]]
    assert sorted(points) == sorted(json.loads(line)["point"] for line in lines[1:])


def test_what_is_taken_from_each_other_is_timed_together(recorded: tuple[Path, Measurements], tmp_path: Path) -> None:
    """A faster clock that only some of it saw says nothing."""
    lines = recorded[0].read_text().splitlines()
    timings = [json.loads(line) for line in lines[1:]]
    for _, stage in itertools.groupby(timings, lambda timing: timing["stage"]):
        together = [timing["point"].split(":")[0] in ("overhead", "held", "alone", "in turn") for timing in stage]
        assert together == sorted(together, reverse=True)
    faster = [
        {**timing, "stage": 99, "run_s": 0.8 * timing["run_s"]}
        for timing in timings
        if timing["point"].startswith("in turn") and timing["point"].endswith(", 2 copies")
    ]
    journal = tmp_path / "journal.jsonl"
    journal.write_text("\n".join([*lines, *map(json.dumps, faster)]) + "\n")
    assert faster and _measure(journal, _never).switch_s == recorded[1].switch_s


def test_latencies_follow_from_recorded_timings(recorded: tuple[Path, Measurements], tmp_path: Path) -> None:
    """10 us a call; kernels take 2 us alone and 0.1 us longer in turn; rows take 3, 3.3 us a copy."""
    seen: dict[str, int] = {}

    def replayed(line: str) -> str:
        entry = json.loads(line)
        point, copies = entry["point"], entry.get("copies", 1)
        number = seen[point] = seen.get(point, 0) + 1
        role = point.split(":")[0]
        kernels = 1 + point.count(" and ")
        us = {"overhead": 1.0, "alone": 2.0, "held": 2.0, "in turn": kernels * 2.1, "reference": 4.0}
        us["row"] = 2.7 + 0.3 * number
        slower = 1 + (0.01 * (number % 3) if role == "reference" else 0)
        entry["run_s"] = (10 + us[role] * copies) * slower * 1e-6
        return json.dumps(entry)

    head, *timings = recorded[0].read_text().splitlines()
    journal = tmp_path / "journal.jsonl"
    journal.write_text("\n".join([head, *map(replayed, timings)]) + "\n")
    found = _measure(journal, _never)
    assert found.run_overhead_s == pytest.approx(10e-6)
    assert found.switch_s == pytest.approx(0.1e-6)
    assert found.noise_floor == pytest.approx(0.01)
    for row in found.rows:
        assert row.samples_s == pytest.approx((3.1e-6, 3.4e-6))
        assert row.latency_s == pytest.approx(3.1e-6)
        margin_s = 0.01 * 3.1e-6 + 0.1 * 10e-6 / row.copies + 0.05e-6
        assert row.interval_s == pytest.approx((3.1e-6 - margin_s, max(3.25e-6, 3.1e-6 + margin_s)))
    assert found.notes == (
        "0 of 3 rows settled: two passes within 1.5 %",
        "3 rows did not settle in 2 passes",
        "each row holds 100 ns for the change from another kernel",
    )


def test_timings_that_contradict_each_other_are_errors(recorded: tuple[Path, Measurements], tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text(re.sub(r'("point":"overhead[^}]*"run_s":)[^,]*', r"\g<1>1e-6", recorded[0].read_text()))
    _measure(journal, _never)
    journal.write_text(re.sub(r'("point":"row[^}]*"run_s":)[^,]*', r"\g<1>1e-9", recorded[0].read_text()))
    with pytest.raises(MeasurementError, match=r"an operator takes time, got none .* for conv\(.*measure again"):
        _measure(journal, _never)
    journal.write_text(
        re.sub(r'("point":"overhead[^}]*160 copies"[^}]*"run_s":)[^,]*', r"\g<1>1", recorded[0].read_text())
    )
    with pytest.raises(
        MeasurementError, match=r"a call of the runtime takes time, got .* for 16 operators .* come to rest"
    ):
        _measure(journal, _never)


def test_a_sampled_operator_that_took_no_longer_than_a_call_costs_no_other_row(
    recorded: tuple[Path, Measurements], tmp_path: Path
) -> None:
    journal, text = tmp_path / "journal.jsonl", recorded[0].read_text()
    journal.write_text(re.sub(r'("point":"row: gemm[^}]*"run_s":)[^,]*', r"\g<1>1e-9", text))
    found = _measure(journal, _never, skip_unsupported=True)
    assert [row.operator for row in found.rows] == [_REQUESTS[0][0], _REQUESTS[2][0]]
    assert len(found.skipped) == 1 and "for gemm(" in found.skipped[0]
    assert "1 operators were left out because their runs took no longer than a call" in found.notes
    journal.write_text(re.sub(r'("point":"row[^}]*"run_s":)[^,]*', r"\g<1>1e-9", text))
    with pytest.raises(MeasurementError, match=r"an operator takes time, got none"):
        _measure(journal, _never, skip_unsupported=True)


def test_a_row_whose_two_shortest_timings_agree_is_settled() -> None:
    assert settled([5.0, 3.0, 3.04])
    assert not settled([3.0, 3.05])
    assert not settled([3.0])


def test_settled_rows_are_timed_no_more_and_others_up_to_the_passes() -> None:
    quiet, noisy, late = (Gemm(1, 32, n) for n in (1, 2, 3))

    def row_us(task: Task, number: int) -> float:
        op = task.requests[0][0]
        return 3.0 if op == quiet else 3.0 + 0.2 * number if op == noisy else 3.0 + 0.2 * max(0, 3 - number)

    timings = Recorded(row_us=row_us)
    found = timings.measure([(op, FLOAT) for op in (quiet, noisy, late)], passes=5)
    assert [len(row.samples_s) for row in found.rows] == [2, 5, 4]
    assert found.notes[:2] == ("2 of 3 rows settled: two passes within 1.5 %", "1 rows did not settle in 5 passes")


def test_every_pass_has_a_process_and_an_order_of_its_own_and_times_what_rows_lean_on() -> None:
    timings = Recorded(row_us=lambda task, number: 3.0 + number)
    timings.measure([(Gemm(1, 32, n), FLOAT) for n in range(1, 30)], passes=3)
    orders = [[task.point for task in timings.tasks if task.stage == stage] for stage in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert len({task.stage for task in timings.tasks}) == 3
    assert sum(point.startswith("reference") for point in orders[0]) == 12


def test_what_comes_between_stages_takes_none_of_the_budget_and_sees_what_is_known() -> None:
    turns: list[tuple[float, int]] = []
    requests: list[Request] = [(Gemm(1, 32, n), FLOAT) for n in range(1, 200)]
    plain, timings = (Recorded(row_us=lambda task, number: 3.0 + number) for _ in range(2))

    def between(share: float, found: Callable[[], Measurements]) -> None:
        turns.append((share, len(found().rows)))
        timings.clock.sleep(100.0)

    undisturbed = plain.measure(requests, passes=5, budget_s=40)
    found = timings.measure(requests, passes=5, budget_s=40, between=between)
    assert [len(row.samples_s) for row in found.rows] == [len(row.samples_s) for row in undisturbed.rows]
    shares = [share for share, _ in turns]
    assert len(turns) > 1 and shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 1
    assert {rows for _, rows in turns} == {199}


def test_two_timings_of_a_row_lie_apart_where_there_is_time() -> None:
    timings = Recorded(row_us=lambda task, number: 3.0 + number)
    timings.measure([(Gemm(1, 32, n), FLOAT) for n in range(1, 30)], passes=3)
    for times in timings.rows().values():
        assert min(after - before for before, after in itertools.pairwise(times)) > 8
    hurried = Recorded(row_us=lambda task, number: 3.0 + number)
    hurried.measure([(Gemm(1, 32, n), FLOAT) for n in range(1, 30)], passes=3, budget_s=10)
    assert {len(times) for times in hurried.rows().values()} == {3}
    assert sum(hurried.clock.slept_s) < 2


def test_a_budget_is_kept_but_everything_asked_for_has_one_timing() -> None:
    said: list[tuple[int, int, str]] = []
    timings = Recorded(row_us=lambda task, number: 3.0 + number)
    requests: list[Request] = [(Gemm(1, 32, n), FLOAT) for n in range(1, 200)]
    found = timings.measure(requests, passes=5, budget_s=12, progress=lambda *step: said.append(step))
    assert 11.5 < timings.clock.now() < 12.5
    assert {len(row.samples_s) for row in found.rows} <= {1, 2, 3}
    assert any(
        re.fullmatch(r"199 rows had no further pass: the budget of 12 s was used up", one) for one in found.notes
    )
    assert said[0][2].startswith("first pass: ") and said[-1][:2] <= (12, 12)
    late = Recorded()
    found = late.measure(requests, budget_s=1)
    assert {len(row.samples_s) for row in found.rows} == {1} and len(found.rows) == 199


def test_slow_spells_are_reported() -> None:
    timings = Recorded(row_us=lambda task, number: 3.0 + number)
    take = timings.take

    def slow(task: Task) -> Timing:
        timing = take(task)
        assert timing.run_s is not None
        return timing.model_copy(update={"run_s": timing.run_s * (1.2 if task.stage == 1 else 1.0)})

    timings.take = slow  # type: ignore[method-assign]
    found = timings.measure([(Gemm(1, 32, 8), FLOAT)], passes=3)
    assert (
        "the machine was not quiet: in 1 of 3 stages the references ran up to 20 % slower than at best" in found.notes
    )


@dataclass
class _Numbered:
    """A sample of matrix products in two families, which deals half to each."""

    drawn: int = 0
    chosen: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def choose(self, size: int, rows: object) -> dict[str, int]:
        assert isinstance(rows, list)
        self.chosen.append(size)
        self.rows.append(len(rows))
        return {"even": size // 2, "odd": size - size // 2}

    def draw(self, families: dict[str, int]) -> tuple[Request, ...]:
        first, self.drawn = self.drawn, self.drawn + sum(families.values())
        return tuple((Gemm(2, 8, n + 1), FLOAT) for n in range(first, self.drawn))

    def state(self) -> str:
        return ", so far so good"


def test_four_fifths_of_the_budget_widen_the_sample_and_the_rest_settles_what_it_can(tmp_path: Path) -> None:
    said: list[str] = []
    sample, timings = _Numbered(), Recorded(row_us=lambda task, number: 3.0)
    found = timings.measure(_REQUESTS, budget_s=120, sample=sample, progress=lambda *step: said.append(step[2]))
    firsts = [times[0] for times in timings.rows().values()]
    assert 91 < max(firsts) < 98
    assert len(found.rows) == len(_REQUESTS) + sample.drawn > 1500
    assert 0.15 < np.mean([len(row.samples_s) == 2 for row in found.rows]) < 0.35
    assert timings.clock.now() < 121
    assert 4 <= len(sample.chosen) <= 6 and sample.rows == sorted(set(sample.rows))
    assert any("sampling, " in text and ", so far so good: gemm" in text for text in said)


def test_a_killed_run_makes_the_same_decisions_again(tmp_path: Path) -> None:
    """By a clock whose sums are exact, so that two halves of a second make a second."""
    whole = Recorded(takes_s=0.03125).measure(
        _REQUESTS, budget_s=40, sample=_Numbered(), journal=tmp_path / "whole.jsonl"
    )
    halves = tmp_path / "halves.jsonl"
    for last in (40, 300, 700):
        before = halves.read_bytes() if halves.exists() else b""
        with pytest.raises(KeyboardInterrupt):
            Recorded(takes_s=0.03125, last=last).measure(_REQUESTS, budget_s=40, sample=_Numbered(), journal=halves)
        assert halves.read_bytes().startswith(before)
    found = Recorded(takes_s=0.03125).measure(_REQUESTS, budget_s=40, sample=_Numbered(), journal=halves)
    assert [(row.operator, row.precision) for row in found.rows] == [
        (row.operator, row.precision) for row in whole.rows
    ]
    once, twice = ((tmp_path / name).read_text().splitlines() for name in ("whole.jsonl", "halves.jsonl"))
    assert [line for line in once if '"families"' in line] == [line for line in twice if '"families"' in line]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (
            lambda text: text.replace('"seed":3', '"seed":4', 1),
            "under its own conditions, got another seed in .*delete it",
        ),
        (
            lambda text: re.sub('"fingerprint":"', '"fingerprint":"x', text, count=1),
            "got another fingerprint in .*delete",
        ),
        (lambda text: text.replace('"version":2', '"version":9', 1), "is not a journal of version 2: delete it"),
        (lambda text: "not JSON\n" + text, "is not a journal of version 2: delete it"),
    ],
)
def test_a_foreign_journal_is_refused(
    recorded: tuple[Path, Measurements], tmp_path: Path, damage: Callable[[str], str], text: str
) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text(damage(recorded[0].read_text()))
    before = journal.read_bytes()
    with pytest.raises(MeasurementError, match=text):
        _measure(journal, _never)
    assert journal.read_bytes() == before


def test_a_place_that_takes_no_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        MeasurementError, match=r"keeps a journal to be resumed from, got .*: Is a directory: free some"
    ):
        _measure(tmp_path, _never)


def test_a_full_disk_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(MeasurementError, match=r"No space left on device: free some space"):
        _measure(Path("/dev/full"), _never)


def test_what_the_runtime_refuses_is_named_or_listed() -> None:
    requests: list[Request] = [(_REFUSED, FLOAT), _REQUESTS[0]]
    machine = detect_machine()
    with pytest.raises(MeasurementError, match=r"refused pool\(function=max.*\) at w32a32: .*leave it out"):
        measure_operators(requests, int8_form="u8u8", machine=machine, passes=1, take=Timings(Here(_brief)).take_all)
    found = measure_operators(
        requests,
        int8_form="u8u8",
        machine=machine,
        passes=1,
        take=Timings(Here(_brief)).take_all,
        skip_unsupported=True,
    )
    assert [row.operator for row in found.rows] == [_REQUESTS[0][0]]
    assert len(found.skipped) == 1
    assert "refused pool(function=max" in found.skipped[0]
    assert "1 operators were skipped because onnxruntime refused them" in found.notes


@pytest.mark.parametrize(("requests", "passes"), [([], 1), (_REQUESTS, 0)])
def test_nothing_to_measure_is_an_error(requests: list[Request], passes: int) -> None:
    with pytest.raises(MeasurementError, match=r"at least one pass and one operator, got passes=\d and \d operators"):
        measure_operators(requests, int8_form="u8u8", machine=detect_machine(), passes=passes)


def test_a_profile_of_this_machine_survives_its_file(tmp_path: Path) -> None:
    operators: list[Operator] = [Gemm(1, 32, 10), Conv.square(8, 8, 6, 3), Elementwise("add", (1, 8, 6, 6))]
    profile = profile_machine(operators, device="here", passes=1, runtime=Here(_brief))
    assert len(profile.rows) == sum(len(supported_precisions(op)) for op in operators)
    narrow = profile.describe_realisation(operators[1], Precision(4, 8))
    assert (narrow.native, narrow.runs_as) == (False, INT8)
    assert narrow.description == "int8 kernel; 4-bit storage unpacked when the session loads"
    assert profile.find(operators[1], Precision(2, 8)) == profile.find(operators[1], INT8)
    assert profile.sources == ("measured",)
    write_profile(profile, tmp_path / "here.json")
    assert read_profile(tmp_path / "here.json") == profile


def test_a_profile_of_precisions_without_kernels_is_an_error() -> None:
    with pytest.raises(
        UnsupportedPrecisionError, match=r"got w4a8 for 1 operators that have none of these: measure w8a8"
    ):
        profile_machine([Conv.square(8, 8, 6, 3)], device="here", precisions=[Precision(4, 8)])


def test_a_model_is_timed_in_passes_and_the_minimum_counts(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feeds = {"x": np.zeros((1, 4), np.float32)}
    onnx.save(model, tmp_path / "model.onnx")
    for given in (model.SerializeToString(), tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        best_s, samples = time_model(given, feeds, seconds=0.0, passes=2)
        assert len(samples) == 2
        assert 0 < best_s == min(samples)
    with pytest.raises(MeasurementError, match=r"it refused the model: .*leave it out"):
        time_model(b"not a model", feeds)
    with pytest.raises(MeasurementError, match=r"it refused .*absent\.onnx: "):
        time_model(tmp_path / "absent.onnx", feeds)
    with pytest.raises(MeasurementError, match=r"fed every one of its inputs, got none for x: feed them"):
        time_model(model.SerializeToString(), {"z": feeds["x"]})
    with pytest.raises(MeasurementError, match=r"at least one pass, got passes=0"):
        time_model(model.SerializeToString(), feeds, passes=0)


def test_a_burst_of_noise_while_the_overhead_is_timed_is_waited_out() -> None:
    """The first timings of many copies are ten times too long; the run goes on until they no longer are."""
    timings = Recorded()
    noisy = 0

    def burst(task: Task) -> Timing:
        nonlocal noisy
        timing = Recorded.take(timings, task)
        noisy += task.copies == 160
        late = task.copies == 160 and noisy < 8
        return timing.model_copy(update={"run_s": (timing.run_s or 0) * (10 if late else 1)})

    timings.take = burst  # type: ignore[method-assign]
    found = timings.measure(_REQUESTS[:1], passes=1)
    assert found.run_overhead_s == pytest.approx(10e-6)
    assert timings.clock.slept_s[:5] == [0.5] * 5
