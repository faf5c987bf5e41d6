"""The sample that grows: by the shares first, then where predictors fail, and the same again from the same timings."""

import re
from collections import Counter
from itertools import islice

import numpy as np

from hwcost.adaptive import AdaptiveSample, held_out_errors
from hwcost.features import WAYS, family, feature_matrix, way_of
from hwcost.hardware import Hardware
from hwcost.ops import FLOAT, INT8, Conv, Pool, bytes_moved
from hwcost.prior import FAMILIES
from hwcost.sampling import family_streams, sampled_requests
from hwcost.testing import plausible_latency_s
from hwcost.timing import Request

SHARES = {name: share for name, (share, _) in FAMILIES.items()}
Rows = list[tuple[Request, float]]


def _sample(seed: int = 0) -> AdaptiveSample:
    return AdaptiveSample(seed, lambda op: sampled_requests(op, "u8u8"))


def _timed(requests: tuple[Request, ...], noise: float = 0.02, wild: str = "") -> Rows:
    """Latencies by the plausible law, those of one kind of operator random."""
    generator = np.random.default_rng(0)
    scatter = {op.kind: 1.0 if op.kind == wild else noise for op, _ in requests}
    return [
        ((op, precision), plausible_latency_s(op, generator, scatter[op.kind], precision)) for op, precision in requests
    ]


def test_a_sample_begins_with_a_few_rows_of_every_kind_and_then_has_the_shares() -> None:
    sample, none = _sample(), AdaptiveSample(0, lambda op: ())
    drawn, rows, whole = Counter[str](), Counter[tuple[str, str]](), sum(SHARES.values())
    usual: Counter[str] = Counter()
    while usual.total() < whole - 200:
        batch, usual_batch = sample.choose(200, []), none.choose(200, [])
        assert 0 < sum(batch.values()) <= sum(usual_batch.values()) == 200
        drawn.update(batch), usual.update(usual_batch)
        rows.update((family(op), str(precision)) for op, precision in sample.draw(batch))
        none.draw(usual_batch)
        if drawn.total() > 1400:
            break
    # What has nothing to be measured has no kinds: it holds the shares from the beginning.
    assert max(abs(usual[name] - usual.total() * share / whole) for name, share in SHARES.items()) < 4
    kinds = {(family(op), str(at)) for stream in family_streams(7).values() for one in islice(stream, 8)
             for op, at in sampled_requests(one, "u8u8")}  # fmt: skip
    assert len(kinds) > 150
    assert sum(rows[kind] >= 3 for kind in kinds) > 0.98 * len(kinds) and all(rows[kind] for kind in kinds)


def test_kinds_that_a_measurement_has_already_do_not_come_first() -> None:
    requests = _sample(3).draw(dict.fromkeys(SHARES, 24))
    assert sum(_sample()._lacking(list(requests)).values()) < 0.2 * sum(_sample()._lacking([]).values())


def test_once_it_holds_the_shares_it_grows_where_predictors_fail() -> None:
    sample = _sample()
    drawn = sample.draw(SHARES)
    while sample._lacking([]):
        drawn += sample.draw(sample.choose(100, []))
    requests = tuple(one for one in drawn if one[0].kind in ("pool", "gemm", "elementwise"))
    batches = [sample.choose(400, _timed(requests, wild=wild)) for wild in ("pool", "gemm")]
    pools, products = ("max", "average"), ("product of one row", "product of more rows")
    assert all(batches[0][name] > 2 * batches[1].get(name, 0) for name in pools)
    assert all(batches[1][name] > 2 * batches[0].get(name, 0) for name in products)
    assert sample.choose(400, _timed(requests, wild="gemm")) == batches[1]
    error = held_out_errors(_timed(requests), 0)
    assert 0.6 < len(error) / len(requests) <= 1
    assert np.median(list(error.values())) < 0.15


def test_the_same_batches_draw_the_same_operators_in_any_order_of_decision() -> None:
    first, second = _sample(4), _sample(4)
    batch, more = {"dense convolution": 5, "Gather": 2}, {"dense convolution": 3}
    assert (*first.draw(batch), *first.draw(more)) == (*second.draw(batch), *second.draw(more))
    conv = [op for op, _ in dict.fromkeys((*_sample(4).draw({"dense convolution": 8}),)) if isinstance(op, Conv)]
    assert len(set(conv)) == 8 and set(conv) <= set(islice(family_streams(4)["dense convolution"], 200))


def test_kinds_of_kernel_that_the_prior_seldom_draws_have_rows_enough_to_be_fitted_on() -> None:
    for seed in range(5):
        requests = _sample(seed).draw({"Resize": 56})
        ways = way_of(feature_matrix(requests)).tolist()
        rows = Counter((family(op), precision, way) for (op, precision), way in zip(requests, ways, strict=True))
        assert len(rows) == 11  # nearest, twice or not, linear and cubic; channels first or last; bytes or floats
        assert min(rows.values()) >= 3
        assert max(rows.values()) <= 7


def test_ways_to_convolve_that_few_networks_take_have_rows_enough_for_coefficients_of_their_own() -> None:
    for seed in range(3):
        found = [one for one in _sample(seed).draw({"dense convolution": 150}) if one[1] == FLOAT]
        rows = Counter(way_of(feature_matrix(found)).tolist())
        first = list(islice(family_streams(seed)["dense convolution"], 150))
        usual = Counter(way_of(feature_matrix((op, FLOAT) for op in first)).tolist())
        product = 1 + WAYS.index("algorithm_product")
        assert usual[product] < 10 <= rows[product]


def test_a_float_convolution_that_clips_or_maps_what_it_made_is_a_kind_of_its_own() -> None:
    for seed in range(3):
        drawn = _sample(seed).draw({"depthwise convolution": 12})
        passes = Counter(op.activation for op, at in drawn if isinstance(op, Conv) and at == FLOAT)
        assert passes["clip"] >= 3 and passes["none"] + passes["relu"] >= 3
        assert sum(passes.values()) - passes["clip"] - passes["none"] - passes["relu"] >= 3


def test_small_and_large_ones_of_a_kind_have_rows_beside_the_second_cache_of_the_machine() -> None:
    cache, few, many = 2 * 1024**2, [], []
    for seed in range(5):
        for found, hardware in ((few, Hardware(l2=10**9)), (many, Hardware(l2=cache))):
            sample = AdaptiveSample(seed, lambda op: ((op, FLOAT),), hardware)
            moved = [bytes_moved(op, FLOAT) / cache for op, _ in sample.draw({"relu": 12})]
            found.append((sum(1 / 3 < one <= 5 / 3 for one in moved), sum(5 / 3 < one <= 10 / 3 for one in moved)))
    assert min(min(counts) for counts in many) >= 2 > min(min(counts) for counts in few)


def test_the_first_rows_of_a_kind_are_of_a_common_size_one_beyond_the_second_cache_and_a_small_one() -> None:
    cache = 2 * 1024**2
    for seed in range(3):
        sample = AdaptiveSample(seed, lambda op: ((op, FLOAT),), Hardware(l2=cache))
        for name in ("relu", "sigmoid", "batch norm", "Pad", "Sum"):
            common, large, small = (bytes_moved(op, FLOAT) / cache for op, _ in sample.draw({name: 3}))
            assert 0.1 < common < 0.5 and 2 < large < 8 and 0.005 < small < 0.05


def test_a_kind_has_a_row_that_the_last_cache_does_not_hold() -> None:
    for seed in range(3):
        sample = AdaptiveSample(seed, lambda op: ((op, FLOAT),), Hardware(l3=8 * 1024**2))
        for name, count in (("relu", 12), ("max", 12), ("Mul with broadcast", 24), ("concatenation", 12)):
            moved = [bytes_moved(op, FLOAT) for op, _ in sample.draw({name: count})]
            assert max(moved) > 8 * 1024**2


def test_a_machine_that_tells_of_no_second_cache_is_sampled_like_a_common_one() -> None:
    requests = [AdaptiveSample(1, lambda op: ((op, FLOAT),), Hardware(l2=l2)).draw({"relu": 9}) for l2 in (0, 2**19)]
    assert requests[0] == requests[1]


def test_a_family_that_has_no_more_ends_quietly() -> None:
    sample = AdaptiveSample(0, lambda op: ((op, INT8),) if isinstance(op, Pool) else ())
    assert sample.draw({"no such family": 3}) == ()
    assert sample.draw({"dense convolution": 3}) == ()
    assert len(sample.draw({"max": 3})) == 3


def test_what_stands_beside_a_sample_comes_in_its_order_and_leaves_it_half_of_the_time() -> None:
    kernels = _sample(5).draw({"dense convolution": 40, "relu": 40})
    alone, sample = _sample(), AdaptiveSample(0, lambda op: sampled_requests(op, "u8u8"), beside=(*kernels, *kernels))
    came, others = list[Request](), list[Request]()
    while len(came) < len(kernels):
        batch = sample.choose(80, [])
        assert sum(batch.values()) == 80
        of_families = {name: count for name, count in batch.items() if name in SHARES}
        drawn, expected = sample.draw(batch), alone.draw(of_families)
        beside = [one for one in drawn if one not in expected]
        assert len(beside) <= 1.5 * len(expected)
        assert len(expected) <= 1.5 * len(beside) or len(came) + len(beside) == len(kernels)
        came, others = [*came, *beside], [*others, *expected]
    assert tuple(came) == kernels
    assert set(sample.choose(80, [])) <= set(SHARES)


def test_its_state_names_the_held_out_error() -> None:
    sample = _sample()
    assert sample.state() == ""
    sample.choose(10, _timed(sample.draw({"dense convolution": 60})))
    text = sample.state()
    found = re.fullmatch(r", held-out error (\d+\.\d) %, (\d+) % within 10 %", text)
    assert found and float(found[1]) < 10 and int(found[2]) > 50
