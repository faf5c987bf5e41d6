"""Which operators a default profile measures: enough of every family, seeded, within what can be timed."""

import subprocess
import sys
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import get_args

import pytest

import hwcost
from hwcost.errors import InvalidSpaceError
from hwcost.features import family
from hwcost.graph import supported_precisions
from hwcost.ops import FLOAT, INT8, BoundaryFunction, Conv, ElementwiseFunction, Gemm, PoolFunction
from hwcost.prior import FAMILIES
from hwcost.profiles import read_profile
from hwcost.sampling import default_operators, family_streams, prior_operators, sampled_requests, spread_operators
from hwcost.space import SearchSpace

IMAGES = ((1, 8, 8), (3, 32, 32))


def test_a_default_profile_has_enough_of_every_family() -> None:
    operators = default_operators(IMAGES)
    counts = Counter(map(family, operators))
    kinds = {"pool": PoolFunction, "elementwise": ElementwiseFunction, "boundary": BoundaryFunction}
    families = {f"{kind}.{name}" for kind, names in kinds.items() for name in get_args(names)}
    convolutions = {"conv.dense", "conv.depthwise", "conv.grouped"}
    assert set(counts) >= {*families, *convolutions, "gemm", "node.MatMul", "node.Softmax", "node.LayerNormalization"}
    assert counts["gemm"] >= 30 and min(counts[name] for name in families) >= 10
    rows = Counter(op.m > 1 for op in operators if isinstance(op, Gemm))
    assert min(rows[True], rows[False]) >= 10


def test_every_family_is_a_stream_of_its_own() -> None:
    streams, again = family_streams(3), family_streams(3)
    assert list(streams) == list(FAMILIES)
    for name, stream in streams.items():
        drawn = list(islice(stream, 12))
        assert len(set(drawn)) == len(drawn) > 1, name
        assert drawn == list(islice(again[name], 12))


def test_sampled_operators_are_measured_on_what_other_networks_run() -> None:
    conv = Conv.square(16, 16, 8, 3)
    precisions = [str(precision) for _, precision in sampled_requests(conv, "u8u8")]
    assert precisions == ["w32a32", "w8a8", "w32a32:plain", "w8a8:u8s8"]
    products = [sampled_requests(Gemm(1, 32, n), "u8u8") for n in range(1, 61)]
    weight_only = sum(any(str(precision) == "w4a32" for _, precision in one) for one in products)
    assert 8 < weight_only < 32
    assert all({FLOAT, INT8} < {precision for _, precision in one} for one in products)


def test_the_sample_is_seeded_and_distinct_and_has_kernels() -> None:
    sample = prior_operators(7)
    assert len(set(sample)) == len(sample)
    assert prior_operators(8, 40) != sample[:40]
    assert all(supported_precisions(op) for op in sample)
    code = "from hwcost.sampling import prior_operators; print(prior_operators(7))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(sample)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one_and_as_broad() -> None:
    sample = prior_operators(7)
    for count in (0, 40, len(sample) + 100):
        assert prior_operators(7, count)[: len(sample)] == sample[:count]
    assert {op.kind for op in prior_operators(7, 90)} == {"conv", "gemm", "pool", "elementwise", "boundary", "node"}


def test_the_default_profile_holds_the_search_spaces_of_its_images() -> None:
    operators = default_operators(IMAGES, 0, 20)
    assert len(set(operators)) == len(operators)
    for image in IMAGES:
        assert set(SearchSpace.for_image(image, 10).operators()) <= set(operators)


def test_a_spread_sample_begins_with_a_few_of_every_kind_as_far_apart_as_there_are() -> None:
    sample, whole = spread_operators(7, 700, 1e7), prior_operators(7, None, 1e7)
    assert set(sample) < set(whole) == set(spread_operators(7, None, 1e7))
    assert sample[:50] == spread_operators(7, 50, 1e7)
    counts, all_counts = Counter(map(family, sample)), Counter(map(family, whole))
    assert all(counts[name] >= min(count, 4) for name, count in all_counts.items())
    for name in ("conv.dense", "pool.max", "node.LayerNormalization", "elementwise.add"):
        sizes = [op.output_elements for op in sample if family(op) == name]
        every = [op.output_elements for op in whole if family(op) == name]
        assert max(sizes) > max(every) / 4 and min(sizes) < min(every) * 4


def test_large_operators_are_rare_where_work_is_dear_but_there() -> None:
    usual, dear = prior_operators(7, 800), prior_operators(7, 800, 1e6)
    large = [sum(op.macs > 1e6 for op in sample) for sample in (usual, dear)]
    assert 0 < large[1] < large[0] / 2
    assert sum(op.macs for op in dear) < sum(op.macs for op in usual) / 4


def test_the_emulated_profile_that_ships_knows_every_kind_of_operator_but_those_of_blocked_layouts() -> None:
    profile = read_profile(Path(hwcost.__file__).parent / "devices" / "rpi4.profile.json")
    drawn = Counter(map(family, prior_operators(0, None, 1e7)))
    rows = Counter(family(op) for op in {row.operator for row in profile.rows})
    blocked = ("boundary.reorder", "node.Upsample")
    missing = {name for name, count in drawn.items() if rows[name] < min(count, 3) and not name.startswith(blocked)}
    assert not missing
    forms = {
        name: {f"w8a8{form}" for form in ("", ":u8s8", ":u8u8")} for name in ("conv.dense", "conv.depthwise", "gemm")
    }
    found = defaultdict(set)
    for row in profile.rows:
        found[family(row.operator)].add(str(row.precision))
    assert all(form in found[name] for name, wanted in forms.items() for form in wanted)


def test_a_sample_larger_than_what_its_families_hold_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"few": (1, lambda rng: Gemm(1, int(rng.integers(1, 9)), 8))}
    monkeypatch.setattr("hwcost.sampling.FAMILIES", few)
    assert {op.channels for op in prior_operators(0, 8)} == {8}
    with pytest.raises(InvalidSpaceError, match=r"holds as many as its families have, got a wish for 9"):
        prior_operators(0, 9)
