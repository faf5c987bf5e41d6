"""How long weights are waited for: one kernel in ever more copies, as the runtime runs it."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hwcost.measure import profile_machine
from hwcost.ops import Elementwise
from hwcost.profiles import read_profile, write_profile
from hwcost.runtime import Array, Given, Here, RefusedError, UnusableError
from hwcost.testing import plausible_profile
from hwcost.waits import USES, waits_of
from hwcost.weights import time_weights, weight_streams

QUARTER = 256 * 256 * 4


class Small(Here):
    """A machine with room for so many bytes of weights."""

    def __init__(self, room: int, error: type[Exception] = RefusedError) -> None:
        self.room, self.error = room, error

    def shortest_s(self, given: Given, feeds: Mapping[str, Array], seconds: float) -> float:
        if sum(one.value.nbytes for one in (given.weights or {}).values()) > self.room:
            raise self.error("no room")
        return super().shortest_s(given, feeds, min(seconds, 0.001))


def test_a_kernel_is_timed_in_ever_more_copies() -> None:
    found = time_weights(Here(), "u8u8", 0, 1)
    for use in USES:
        sizes = [size for name, size in found if name == use]
        assert sizes[0] == pytest.approx(QUARTER, rel=0.01) and sizes[-1] > 100 * 2**20
        copies = np.divide(sizes, sizes[0])
        assert (copies == copies.round()).all() and (np.diff(copies) > 0).all() and len(copies) > 8
        assert all(found[use, more] > 1.5 * found[use, less] for less, more in pairwise(sizes[1::2]))
    assert found["again", sizes[-1]] > 2 * found["once", sizes[-1]]


def test_a_machine_without_room_for_all_copies_tells_of_fewer() -> None:
    found = time_weights(Small(5 * QUARTER), "u8u8", 0, 1)
    assert [(use, round(size / QUARTER)) for use, size in found] == [
        (use, n) for use in ("again", "once") for n in (1, 4)
    ]
    assert time_weights(Small(0), "u8u8", 0, 1) == {}


def test_a_runtime_that_does_not_start_says_so() -> None:
    with pytest.raises(UnusableError):
        time_weights(Small(0, UnusableError), "u8u8", 0, 1)


def test_a_byte_takes_what_its_run_takes_less_a_call_in_every_pass() -> None:
    (stream,) = weight_streams(
        [{("once", 1000): 2e-6, ("again", 1000): 3e-6}, {("once", 1000): 3e-6, ("once", 4000): 1e-3}], 1e-6
    )
    assert (stream.use, stream.bytes) == ("once", 1000) and stream.s_per_byte == pytest.approx((1e-9, 2e-9))
    (short,) = weight_streams([{("again", 10): 1e-6}], 2e-6)
    assert 0 < short.s_per_byte[0] < 1e-7
    assert weight_streams([], 1e-6) == weight_streams([{}], 1e-6) == ()


def test_a_profile_keeps_what_weights_cost_and_one_without_is_written_as_ever(tmp_path: Path) -> None:
    plain = plausible_profile([Elementwise("add", (1, 8, 8, 8))])
    assert b'"weights":' not in plain.to_json().partition(b'"rows"')[0]
    streams = weight_streams([{("again", 2**20): 1e-3, ("once", 2**21): 3e-3}], 1e-6)
    profile = plain.changed(weights=streams)
    write_profile(profile, tmp_path / "one.json")
    assert read_profile(tmp_path / "one.json") == profile and profile.digest != plain.digest


def test_whole_networks_come_with_what_weights_cost_and_are_run_as_often_as_the_budget_allows() -> None:
    add = Elementwise("add", (1, 8, 8, 8))
    for budget_s, passes in ((0.5, 2), (None, 3)):
        profile = profile_machine([add], device="here", networks=1, passes=1, budget_s=budget_s)
        assert {len(network.samples_s) for network in profile.networks} == {passes}
        assert all(len(stream.s_per_byte) == passes + 1 for stream in profile.weights)
        waits = waits_of(profile.weights)
        assert sum(map(len, waits.of.values())) == len(profile.weights) > 10


def test_networks_whose_kernels_a_budget_does_not_reach_are_left_out_and_counted() -> None:
    add = Elementwise("add", (1, 8, 8, 8))
    profile = profile_machine([add], device="here", networks=1, passes=1, budget_s=0.5, widen=True)
    assert not profile.networks
    assert {row.operator for row in profile.rows} == {add}
    assert any("2 whole networks were left out, not all of their kernels" in note for note in profile.notes)
