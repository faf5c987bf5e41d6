"""How much longer kernels take in long runs: a few of them in ever more rounds, as the runtime runs them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from hwcost.composition import lengths_of
from hwcost.lengths import run_lengths, time_lengths
from hwcost.ops import Elementwise
from hwcost.profiles import read_profile, write_profile
from hwcost.runtime import Array, Given, Here, RefusedError, UnusableError
from hwcost.testing import plausible_profile


class Told(Here):
    """A machine on which a node takes so long, and which refuses those of so many runs."""

    def __init__(self, node_s: float, refused: tuple[int, ...] = (), error: type[Exception] = RefusedError) -> None:
        self.node_s, self.refused, self.error, self.runs = node_s, refused, error, 0

    def shortest_s(self, given: Given, feeds: Mapping[str, Array], seconds: float) -> float:
        if seconds < 0.2:  # a look at whether the runtime takes a kernel
            return super().shortest_s(given, feeds, min(seconds, 0.001))
        self.runs += 1
        if self.runs in self.refused:
            raise self.error("no room")
        assert isinstance(given.model, bytes)
        return self.node_s * given.model.count(b"Conv")


def test_kernels_are_timed_in_ever_more_rounds_as_long_as_runs_fit_a_pass() -> None:
    found = time_lengths(Told(1e-5), "u8u8", 0, 1)
    assert list(found) == [1, 3, 8, 25, 80]
    assert found[80] > 50 * found[1]
    few = time_lengths(Told(1e-5 * 0.3 / found[80]), "u8u8", 0, 1)
    assert list(few) == [1, 3, 8, 25]
    assert list(time_lengths(Told(10.0), "u8u8", 0, 1)) == [1]


def test_a_machine_without_room_for_all_rounds_tells_of_fewer_and_one_that_is_unusable_says_so() -> None:
    assert list(time_lengths(Told(1e-5, refused=(3,)), "u8u8", 0, 1)) == [1, 3]
    assert time_lengths(Told(1e-5, refused=(1,)), "u8u8", 0, 1) == {}
    with pytest.raises(UnusableError):
        time_lengths(Told(1e-5, refused=(2,), error=UnusableError), "u8u8", 0, 1)


def test_a_real_run_of_more_rounds_takes_longer() -> None:
    class Quick(Here):
        def shortest_s(self, given: Given, feeds: Mapping[str, Array], seconds: float) -> float:
            return super().shortest_s(given, feeds, min(seconds, 0.001))

    found = time_lengths(Quick(), "u8u8", 0, 1)
    assert found[3] > 2 * found[1] and found[8] > 2 * found[3]
    lengths = lengths_of(run_lengths([found]))
    assert lengths[0].longer == 0 and all(one.longer < 1 for one in lengths)


def test_lengths_are_those_that_every_pass_has_and_a_profile_keeps_them(tmp_path: Path) -> None:
    lengths = run_lengths([{1: 1e-3, 3: 3.1e-3, 8: 8.5e-3}, {1: 1.1e-3, 3: 3.2e-3}])
    assert [(one.rounds, one.run_s) for one in lengths] == [(1, (1e-3, 1.1e-3)), (3, (3.1e-3, 3.2e-3))]
    assert run_lengths([]) == run_lengths([{}, {1: 1.0}]) == ()
    plain = plausible_profile([Elementwise("add", (1, 8, 8, 8))])
    assert b'"lengths":' not in plain.to_json().partition(b'"rows"')[0]
    profile = plain.changed(lengths=lengths)
    write_profile(profile, tmp_path / "one.json")
    assert read_profile(tmp_path / "one.json") == profile and profile.digest != plain.digest
