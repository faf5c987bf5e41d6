"""The stopwatch on replayed machines: what it takes for a run's time where others share the core."""

import itertools
import os
from collections.abc import Callable

import pytest

from hwcost import agent
from hwcost.agent import Cores, Stopwatch

RUN_S, ARITHMETIC_S = 1e-3, 1e-5


class Machine(Cores):
    """A clock that runs and arithmetic move on, by a pace that depends on the time; `slower(now)` times as long on each
    of its cores."""

    def __init__(self, *slower: Callable[[float], float]) -> None:
        self.now, self.slower, self.core = 0.0, slower, 0
        self.runs: list[float] = []
        self.watch = Stopwatch(lambda: self.now, self.arithmetic, lambda: self)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def __len__(self) -> int:
        return len(self.slower)

    def next(self) -> None:
        self.core = (self.core + 1) % len(self.slower)

    @property
    def times(self) -> float:
        return self.slower[self.core](self.now)

    def arithmetic(self) -> None:
        self.now += ARITHMETIC_S * self.times

    def run(self) -> None:
        self.runs.append(self.now)
        self.now += RUN_S * self.times

    def skip(self, seconds: float) -> None:
        self.now += seconds


def test_the_shortest_run_of_an_undisturbed_machine_counts_after_one_to_warm_up() -> None:
    machine = Machine(lambda now: 1.0)
    times = iter([9.0, 3.0, 2.0, 4.0])

    def run() -> None:
        machine.runs.append(machine.now)
        machine.now += next(times)

    assert machine.watch(run, 0.0) == pytest.approx(2.0)
    assert len(machine.runs) == 1 + 3


def test_runs_fill_the_seconds_and_no_more_where_nothing_disturbs() -> None:
    machine = Machine(lambda now: 1.0)
    assert machine.watch(machine.run, 0.02) == pytest.approx(RUN_S)
    assert 20 <= len(machine.runs) <= 26


@pytest.mark.parametrize("slower", [1.3, 1.5, 2.0])
def test_a_slow_spell_longer_than_a_timing_is_outlasted(slower: float) -> None:
    machine = Machine(lambda now: slower if 1.0 <= now < 1.06 else 1.0)
    assert machine.watch(machine.run, 0.01) == pytest.approx(RUN_S)
    machine.now = 1.0
    assert machine.watch(machine.run, 0.01) == pytest.approx(RUN_S)
    assert machine.now > 1.06


def test_spells_that_come_and_go_leave_enough_undisturbed_runs() -> None:
    machine = Machine(lambda now: 1.6 if int(now / 0.03) % 2 else 1.0)
    machine.watch(machine.run, 0.01)
    for _ in range(20):
        machine.skip(0.0137)
        assert machine.watch(machine.run, 0.01) == pytest.approx(RUN_S)


def test_patience_ends_and_what_was_timed_counts() -> None:
    machine = Machine(lambda now: 1.5 if now >= 1.0 else 1.0)
    machine.watch(machine.run, 0.01)
    machine.now = 1.0
    assert machine.watch(machine.run, 0.01) == pytest.approx(1.5 * RUN_S)
    assert 2.0 < machine.now < 2.02


@pytest.mark.parametrize(
    ("seconds", "patience_s"), [(0.0005, 0.005), (0.003, 0.18), (0.006, 0.72), (0.01, 1.0), (0.25, 1.0)]
)
def test_the_longer_a_timing_the_longer_it_waits_and_nothing_is_run_meanwhile(
    seconds: float, patience_s: float
) -> None:
    machine = Machine(lambda now: 1.5 if now >= 1.0 else 1.0)
    machine.watch(machine.run, 0.01)
    machine.now, before = 1.0, len(machine.runs)
    machine.watch(machine.run, seconds)
    took_s, run_s = machine.now - 1.0, 1.5 * RUN_S * (len(machine.runs) - before)
    assert max(seconds, patience_s) <= took_s < max(seconds, patience_s) + 6 * RUN_S
    assert run_s < max(seconds, 4 * 1.5 * RUN_S) + 7 * RUN_S


def test_a_machine_that_stays_slower_is_waited_for_some_seconds_in_all() -> None:
    machine = Machine(lambda now: 1.5 if now >= 1.0 else 1.0)
    machine.watch(machine.run, 0.01)
    machine.now, took_s = 1.0, []
    for _ in range(100):
        began = machine.now
        assert machine.watch(machine.run, 0.01) == pytest.approx(1.5 * RUN_S)
        took_s.append(machine.now - began)
    assert 3.0 < sum(took_s[:4]) < 4.1
    assert max(took_s[4:]) < 0.02


def test_a_spell_of_a_second_is_no_reason_to_take_the_machine_for_slower() -> None:
    machine = Machine(lambda now: 1.5 if 1.0 <= now < 2.03 else 1.0)
    machine.watch(machine.run, 0.01)
    machine.now, found = 1.0, []
    while machine.now < 2.03:
        found.append(machine.watch(machine.run, 0.01))
    assert found[-1] == pytest.approx(RUN_S)
    assert len(found) < 13


def test_a_machine_met_in_a_slow_spell_is_known_better_afterwards() -> None:
    machine = Machine(lambda now: 1.5 if now < 0.3 or 1.0 <= now < 1.05 else 1.0)
    assert machine.watch(machine.run, 0.01) == pytest.approx(1.5 * RUN_S)
    machine.now = 0.5
    machine.watch(machine.run, 0.01)
    machine.now = 1.0
    assert machine.watch(machine.run, 0.01) == pytest.approx(RUN_S)


def test_long_runs_are_few_however_slow_the_machine() -> None:
    machine = Machine(lambda now: 1.5 if now >= 1.0 else 1.0)
    machine.watch(machine.run, 0.01)
    machine.now, before = 1.0, len(machine.runs)

    def long_run() -> None:
        machine.run()
        machine.skip(0.5)

    machine.watch(long_run, 0.01)
    assert len(machine.runs) - before == 1 + 3


def test_a_disturbed_core_is_left_for_one_that_is_not() -> None:
    machine = Machine(lambda now: 1.5 if now >= 1.0 else 1.0, lambda now: 1.0)
    machine.watch(machine.run, 0.01)
    assert machine.core == 0
    machine.now, before = 1.0, len(machine.runs)
    assert machine.watch(machine.run, 0.01) == pytest.approx(RUN_S)
    assert machine.core == 1 and machine.now < 1.02 and len(machine.runs) - before <= 14


def test_where_all_cores_are_disturbed_the_first_that_rests_is_taken() -> None:
    machine = Machine(
        lambda now: 1.5 if now >= 1.0 else 1.0,
        lambda now: 1.5 if 1.0 <= now < 1.4 or now >= 1.42 else 1.0,
        lambda now: 1.5 if 1.0 <= now < 1.5 else 1.0,
    )
    machine.watch(machine.run, 0.01)
    machine.now = 1.0
    assert machine.watch(machine.run, 0.01) == pytest.approx(RUN_S)
    assert machine.core == 1 and 1.4 < machine.now < 1.415


def test_one_core_in_turn_with_another_makes_a_timing_where_both_are_disturbed_most_of_the_time() -> None:
    machine = Machine(
        lambda now: 1.0 if int(now / 0.004) % 4 == 0 else 1.6, lambda now: 1.0 if int(now / 0.004) % 4 == 2 else 1.6
    )
    machine.watch(machine.run, 0.01)
    for _ in range(20):
        machine.skip(0.0137)
        began = machine.now
        assert machine.watch(machine.run, 0.01) == pytest.approx(RUN_S)
        assert machine.now - began < 0.06


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be moved here")
def test_a_thread_is_moved_among_its_own_cores_and_may_use_all_afterwards() -> None:
    before, seen = os.sched_getaffinity(0), []
    with pytest.raises(ZeroDivisionError), Cores() as cores:
        assert len(cores) == len(before)
        for _ in range(2 * len(cores)):
            cores.next()
            seen.append(os.sched_getaffinity(0))
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before
    if len(before) > 1:
        assert {next(iter(one)) for one in seen} == before and all(len(one) == 1 for one in seen)
        assert all(one != other for one, other in itertools.pairwise(seen))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be moved here")
def test_a_thread_stays_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(agent, "_node_of", str)  # each has memory of its own
    with Cores() as own:
        before = os.sched_getaffinity(0)
        own.next()
        assert len(own) == 1 and os.sched_getaffinity(0) == before
    monkeypatch.setattr(agent, "_node_of", lambda core: "")
    monkeypatch.setattr(agent, "_text", lambda path: "")  # where the system does not tell
    with Cores() as own:
        assert len(own) == len(cores)
