"""The stopwatch on replayed machines: what it takes for a run's time where others share the core."""

from collections.abc import Callable

import pytest

from hwcost.agent import Stopwatch

RUN_S, ARITHMETIC_S = 1e-3, 1e-5


class Machine:
    """A clock that runs and arithmetic move on, by a pace that depends on the time; `slower(now)` times as long."""

    def __init__(self, slower: Callable[[float], float]) -> None:
        self.now, self.slower = 0.0, slower
        self.runs: list[float] = []
        self.watch = Stopwatch(lambda: self.now, self.arithmetic)

    def arithmetic(self) -> None:
        self.now += ARITHMETIC_S * self.slower(self.now)

    def run(self) -> None:
        self.runs.append(self.now)
        self.now += RUN_S * self.slower(self.now)

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
    assert machine.now < 1.0 + 0.15


def test_a_machine_that_stays_slower_is_waited_for_some_seconds_in_all() -> None:
    machine = Machine(lambda now: 1.5 if now >= 1.0 else 1.0)
    machine.watch(machine.run, 0.01)
    machine.now, took_s = 1.0, []
    for _ in range(100):
        began = machine.now
        assert machine.watch(machine.run, 0.01) == pytest.approx(1.5 * RUN_S)
        took_s.append(machine.now - began)
    assert min(took_s[:25]) > 0.09
    assert max(took_s[50:]) < 0.02


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
