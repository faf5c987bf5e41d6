"""Whole networks of a profile: at which speed they are told, and which are."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from hwcost.measure import profile_machine
from hwcost.ops import FLOAT, INT8, Conv, Elementwise
from hwcost.profiles import Profile
from hwcost.runtime import Here
from hwcost.whole import NetworkRuns, large_kernels, whole_networks

LATENCY_S = 2e-4


def _says(seconds: float) -> Here:
    """A runtime in which everything takes so long."""

    def timer(run: Callable[[], object], _: float) -> float:
        run()
        return seconds

    return Here(timer)


def _told(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total and "whole networks" in what


def _runs(folder: Path, seconds: float) -> NetworkRuns:
    runs = NetworkRuns(folder, 1, "u8s8", seed=3, threads=1, runtime=_says(seconds))
    assert runs.first(lambda: 0.0, None, _told) > 0
    return runs


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The kernels of both networks, all said to take `LATENCY_S`."""
    kernels = _runs(tmp_path_factory.mktemp("networks"), 1e-3).kernels()
    found = profile_machine([], exact=kernels, device="here", passes=1, skip_unsupported=True)
    said = {"latency_s": LATENCY_S, "interval_s": (LATENCY_S, LATENCY_S), "samples_s": (LATENCY_S,) * 2, "copies": 1}
    return found.changed(rows=tuple(row.model_copy(update=said) for row in found.rows))


@pytest.mark.parametrize("times", [0.8, 1.0, 2.0])
def test_networks_are_told_at_the_speed_of_the_rows(profile: Profile, tmp_path: Path, times: float) -> None:
    run_s = profile.run_overhead_s + times * LATENCY_S
    found = _runs(tmp_path, run_s).told(profile, lambda: 1e9, _told)
    assert [len(network.samples_s) for network in found.networks] == [3, 3]
    for network in found.networks:
        assert network.samples_s == pytest.approx([run_s / times] * 3)
    assert found.rows == profile.rows and found.digest != profile.digest


def test_no_pass_is_begun_that_a_budget_has_no_time_for_but_two_always_are(profile: Profile, tmp_path: Path) -> None:
    for budget_s, passes in ((0.0, 2), (1.0, 2), (1e9, 3)):  # a pass takes 1.4 s
        found = _runs(tmp_path / str(budget_s), 1e-3).told(profile, lambda: budget_s, _told)  # noqa: B023 - called here
        assert {len(network.samples_s) for network in found.networks} == {passes}


def test_passes_lie_as_far_apart_as_the_rows_take(profile: Profile, tmp_path: Path) -> None:
    runs, shares = _runs(tmp_path, 1e-3), []

    def known(share: float) -> Profile:
        shares.append(share)
        return profile

    for share in (0.0, 0.1, 0.3, 0.35, 0.6, 0.7, 0.9, 1.0):
        runs.among(share, partial(known, share), _told)
    assert shares == [0.0, 0.35]
    assert {len(network.samples_s) for network in runs.told(profile, lambda: 1e9, _told).networks} == {3}


def test_a_pass_among_the_rows_is_told_at_the_speed_of_the_whole_profile(profile: Profile, tmp_path: Path) -> None:
    run_s = profile.run_overhead_s + 3 * LATENCY_S
    runs = _runs(tmp_path, run_s)
    slow = {"latency_s": 2 * LATENCY_S, "interval_s": (LATENCY_S, 2 * LATENCY_S), "samples_s": (2 * LATENCY_S,)}
    first = profile.changed(rows=tuple(row.model_copy(update=slow) for row in profile.rows))
    runs.among(0.0, lambda: first, _told)
    for network in runs.told(profile, lambda: 1e9, _told).networks:
        assert network.samples_s == pytest.approx([run_s / 3] * 3)


def test_every_pass_is_run_in_a_process_of_its_own(profile: Profile, tmp_path: Path) -> None:
    class Counted(Here):
        renewed: ClassVar[list[int]] = []

        def renew(self) -> None:
            self.renewed.append(1)

    none, runs = (
        NetworkRuns(tmp_path, count, "u8s8", seed=3, threads=1, runtime=Counted(_says(1e-3).timer)) for count in (0, 1)
    )
    for one in (none, runs):
        one.first(lambda: 0.0, None, _told)
    assert not none.told(profile, lambda: 1e9, _told).networks and not Counted.renewed
    (first, *_) = runs.told(profile, lambda: 1e9, _told).networks
    assert len(Counted.renewed) == len(first.samples_s)


def test_a_network_without_the_rows_of_its_large_kernels_is_left_out(profile: Profile, tmp_path: Path) -> None:
    runs = _runs(tmp_path, 1e-3)
    int8 = {kernel for kernel in runs.kernels() if kernel[1] != FLOAT}
    rows = [row for row in profile.rows if (row.operator, row.precision) not in int8]
    found = runs.told(profile.changed(rows=tuple(rows)), lambda: 1e9, _told)
    assert [network.name for network in found.networks] == ["network 3/0 float"]
    assert found.notes[-1] == "1 whole networks were left out, not all of their kernels were timed"


def test_a_profile_holds_all_kernels_of_a_network_and_rows_of_the_large_ones(profile: Profile, tmp_path: Path) -> None:
    names = {network.name: network for network in _runs(tmp_path, 1e-3).told(profile, lambda: 1e9, _told).networks}
    for network in whole_networks(tmp_path / "again", 1, 3, Here()):
        parts = {(part.operator, part.precision): part.count for part in names[network.name].parts}
        assert parts == Counter(network.layers)
        large = {(op, precision.usual_on("u8s8")) for op, precision in large_kernels(network.layers)}
        assert large <= {row.layer for row in profile.rows} and len(large) < len(parts)


def test_large_kernels_are_the_fewest_that_do_nine_tenths_of_the_work() -> None:
    small, large = Elementwise("relu", (1, 8, 8, 8)), Conv.square(64, 64, 28, 3)
    assert large_kernels([(small, FLOAT), (large, FLOAT), (small, FLOAT)]) == [(large, FLOAT)]
    assert large_kernels([(small, INT8), (large, INT8), (small, INT8)]) == [(large, INT8)]
    assert large_kernels([(small, FLOAT)]) == [(small, FLOAT)]
    many = [(small, FLOAT)] * 4000 + [(large, FLOAT)]  # which take as long as the large one, or longer
    assert set(large_kernels(many)) == {(small, FLOAT), (large, FLOAT)}
    alike = [(Elementwise("relu", (1, 512 + one)), FLOAT) for one in range(100)]
    assert large_kernels(alike) == alike[-len(large_kernels(alike)) :] and 85 <= len(large_kernels(alike)) <= 91


def test_a_profile_without_networks_knows_nothing_of_weights() -> None:
    profile = profile_machine([Elementwise("add", (1, 8, 8, 8))], device="here", precisions=[FLOAT], passes=1)
    assert profile.networks == profile.weights == ()
