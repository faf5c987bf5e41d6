import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hwcost.archive import pack, unpack
from hwcost.errors import FitError, UnknownPredictorError
from hwcost.features import feature_matrix, hardware_of
from hwcost.fit import FIT_VERSION, Fit, fit_path, fit_profile, grouped_folds, read_fit, spearman, write_fit
from hwcost.ops import FLOAT, INT8, Boundary, Conv, Elementwise, Gemm, Node, Operator, Precision, bytes_moved
from hwcost.predictors import predictor_names
from hwcost.pricing import CostModel
from hwcost.profiles import Network, Part, Profile, write_profile
from hwcost.testing import plausible_latency_s, plausible_profile, random_convolutions


def _operators(count: int = 44) -> list[Operator]:
    generator = np.random.default_rng(0)
    ops: list[Operator] = list(dict.fromkeys(random_convolutions(generator, count)))
    return [*ops, *(Elementwise("add", (1, 2**step, 14, 14)) for step in range(3, 7)), Gemm(1, 64, 10)]


@pytest.fixture(scope="module")
def profile() -> Profile:
    return plausible_profile(_operators())


@pytest.fixture(scope="module")
def fit(profile: Profile) -> Fit:
    return fit_profile(profile, folds=4)


def test_the_report_has_every_family_and_the_baselines_beside(profile: Profile, fit: Fit) -> None:
    by_family = {entry.family: entry for entry in fit.report}
    assert list(by_family) == ["conv.dense", "elementwise.add", "gemm"]
    assert sum(entry.rows for entry in fit.report) == len(profile.rows)
    dense = by_family["conv.dense"]
    compared = tuple(errors.predictor for errors in dense.errors)
    assert compared == tuple(name for name in predictor_names() if name not in (*dense.skipped, "nn-meter"))
    assert set(dense.skipped) == {"forest", "mlp"}
    assert dense.precision == INT8 and dense.sources == ("measured",)
    chosen = next(errors for errors in dense.errors if errors.predictor == dense.chosen)
    assert chosen.mape < 0.1 and chosen.rmspe >= chosen.mape
    assert chosen.within_5 <= chosen.within_10 and chosen.spearman is not None and chosen.spearman > 0.9
    assert {"flops", "roofline"} <= {errors.predictor for errors in by_family["elementwise.add"].errors}


def test_a_family_of_one_row_falls_back_to_the_roofline_and_says_why(fit: Fit) -> None:
    single = next(entry for entry in fit.report if entry.family == "gemm")
    assert (single.rows, single.chosen, single.errors) == (1, "roofline", ())
    assert single.skipped["mlp"].startswith("too few distinct operators to hold any out, got 1 rows")
    estimate = fit.predict("gemm", INT8, feature_matrix([(Gemm(1, 64, 10), INT8)]))
    assert estimate.high_s[0] / estimate.low_s[0] == pytest.approx(4.0)


def test_sums_and_products_of_floats_are_told_by_the_rows_of_both_and_quantised_ones_by_their_own() -> None:
    ops = [Elementwise("add", (1, channels, 14, 14)) for channels in range(8, 208, 8)]
    ops += [Elementwise("mul", (1, channels, 7, 7)) for channels in (16, 64, 256)]
    fit = fit_profile(plausible_profile(ops, precisions=(FLOAT, INT8)), names=["linear"])
    rows = {(entry.family, entry.precision): entry.rows for entry in fit.report}
    assert rows == {
        ("elementwise.add", FLOAT): 28, ("elementwise.mul", FLOAT): 28,
        ("elementwise.add", INT8): 25, ("elementwise.mul", INT8): 3,
    }  # fmt: skip
    only = fit_profile(plausible_profile(ops[:25], precisions=(FLOAT,)), names=["linear"])
    assert [(entry.family, entry.rows) for entry in only.report] == [("elementwise.add", 25)]


def test_learners_without_enough_rows_are_skipped_not_failed(fit: Fit) -> None:
    few = next(entry for entry in fit.report if entry.family == "elementwise.add")
    assert few.skipped["forest"] == "forest needs at least 40 rows, got 3: profile more operators"


def test_unseen_operators_lie_inside_the_interval_as_often_as_promised() -> None:
    held, errors = [], []
    for seed in range(8):
        fit = fit_profile(plausible_profile(_operators(45), seed=seed), names=["linear"])
        unseen = plausible_profile(random_convolutions(np.random.default_rng(90 + seed), 100), seed=90 + seed)
        estimate = fit.predict("conv.dense", INT8, feature_matrix((row.operator, INT8) for row in unseen.rows))
        true_s = np.array([row.latency_s for row in unseen.rows])
        held.append(((estimate.low_s <= true_s) & (true_s <= estimate.high_s)).mean())
        errors.append(np.median(np.abs(estimate.latency_s / true_s - 1)))
    assert np.mean(held) >= 0.88
    assert np.mean(errors) < 0.04


def test_what_was_not_measured_keeps_its_own_uncertainty() -> None:
    ops = [Conv.square(8 * step, 16, 14, 3) for step in range(1, 16)]
    estimated = fit_profile(plausible_profile(ops, source="estimated"), names=["roofline"])
    estimate = estimated.predict("conv.dense", INT8, feature_matrix([(ops[3], INT8)]))
    assert estimate.high_s[0] / estimate.latency_s[0] > 1.5
    assert estimate.latency_s[0] / estimate.low_s[0] > 1.5
    assert estimated.sources("conv.dense", INT8) == ("estimated",)


def test_precisions_are_fitted_apart_and_shared_kernels_together() -> None:
    fit = fit_profile(plausible_profile(_operators(10), precisions=(FLOAT, INT8)), names=["linear"])
    assert fit.knows("conv.dense", FLOAT) and fit.knows("conv.dense", INT8)
    assert not fit.knows("conv.depthwise", INT8)
    assert {errors.predictor for entry in fit.report for errors in entry.errors} == {"flops", "roofline", "linear"}


def test_near_identical_operators_are_held_out_together() -> None:
    ops = [Conv.square(8 * 2**step, 16, 14, 3, activation=name) for step in range(6) for name in ("none", "relu")]
    held_out = grouped_folds(feature_matrix((op, INT8) for op in ops), 3, np.random.default_rng(0))
    assert len(held_out) == 6
    assert np.sum(held_out, axis=0).tolist() == [1] * len(ops)
    assert all(mask[::2].tolist() == mask[1::2].tolist() for mask in held_out)


def test_spearman_ranks_with_ties() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 90.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 1.0, 3.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(0.8660254)
    assert spearman(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])) is None
    assert spearman(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None


def test_progress_is_told_family_by_family() -> None:
    told: list[tuple[int, int, str]] = []
    fit_profile(plausible_profile(_operators(5)), names=[], progress=lambda *call: told.append(call))
    assert told == [(1, 3, "conv.dense w8a8"), (2, 3, "elementwise.add w8a8"), (3, 3, "gemm w8a8")]


def test_an_unknown_predictor_or_a_single_fold_is_refused(profile: Profile) -> None:
    with pytest.raises(UnknownPredictorError, match="got 'oracle'"):
        fit_profile(profile, names=["oracle"])
    with pytest.raises(FitError, match="at least 2 folds, got 1"):
        fit_profile(profile, folds=1)


def test_a_fit_lies_beside_its_profile() -> None:
    assert fit_path(Path("profiles/rpi4.json")) == Path("profiles/rpi4.fit.safetensors")
    assert fit_path(Path("pi.4.json")) == Path("pi.4.fit.safetensors")


@pytest.mark.parametrize("name", ["flops", "roofline", "linear", "forest", "boosted", "mlp"])
def test_a_file_predicts_the_same_again(tmp_path: Path, profile: Profile, name: str) -> None:
    fit = fit_profile(profile, names=[name])
    write_fit(fit, tmp_path / "p.fit.safetensors")
    again = read_fit(tmp_path / "p.fit.safetensors")
    assert (again.report, again.profile_digest, again.device) == (fit.report, profile.digest, "plausible")
    features = feature_matrix((op, INT8) for op in random_convolutions(np.random.default_rng(4), 30))
    first, second = (one.predict("conv.dense", INT8, features) for one in (fit, again))
    for field in ("latency_s", "low_s", "high_s", "extrapolated"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path, profile: Profile, fit: Fit) -> None:
    write_profile(profile, tmp_path / "p.json")
    code = (
        "import sys; from pathlib import Path; from hwcost import fit_profile, read_profile, write_fit;"
        "write_fit(fit_profile(read_profile(Path(sys.argv[1])), folds=4), Path(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.json"), str(tmp_path / "other.safetensors")], check=True
    )
    write_fit(fit, tmp_path / "own.safetensors")
    assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def _with_head(data: bytes, change: dict[str, object]) -> bytes:
    head, arrays = unpack(data)
    return pack(json.dumps(json.loads(head) | change), arrays)


def test_bad_files_are_refused_with_what_to_do(tmp_path: Path, fit: Fit) -> None:
    path = tmp_path / "p.fit.safetensors"
    with pytest.raises(FitError, match=r"no fit at .*: make it with `hwcost fit`"):
        read_fit(path)
    write_fit(fit, path)
    data = path.read_bytes()
    head, arrays = unpack(data)
    arrays["conv.dense/w8a8/calibration.RANGE"] = arrays.pop("conv.dense/w8a8/calibration.range")
    flipped = bytearray(data)
    flipped[-1] ^= 1
    bad: list[tuple[bytes, str]] = [
        (b"", r"is not a fit that can be read: .*run `hwcost fit` again"),
        (b"not a fit at all", r"is not a fit that can be read: .*run `hwcost fit` again"),
        (data[:-20], r"is not a fit that can be read: .*run `hwcost fit` again"),
        (flipped, r"damaged, or that something else wrote; run `hwcost fit` again"),
        (pack(head, arrays), r"lacks the array .*run `hwcost fit` again"),
        (
            _with_head(data, {"version": FIT_VERSION + 1}),
            rf"is not a fit of version {FIT_VERSION}: version: .*run `hwcost fit` again",
        ),
        (_with_head(data, {"format": "other"}), rf"is not a fit of version {FIT_VERSION}: format: "),
        (
            _with_head(data, {"features": ["one"]}),
            r"fitted on other features, 1 instead of \d+; run `hwcost fit` again",
        ),
    ]
    for content, message in bad:
        path.write_bytes(content)
        with pytest.raises(FitError, match=message):
            read_fit(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save

    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"weight": np.zeros(3)}))
    with pytest.raises(FitError, match="is not a fit that can be read: a safetensors document without a head"):
        read_fit(path)


def _few(op_type: str, sizes: Sequence[int], s_per_element: float) -> tuple[list[Node], list[float]]:
    """Nodes that move data like any other, and take so much longer for each element."""
    ops = [Node(op_type, (f"float32[1,{size}]",), (f"float32[1,{size}]",)) for size in sizes]
    return ops, [
        1e-6 + bytes_moved(op, FLOAT) / 4e9 + size * s_per_element for op, size in zip(ops, sizes, strict=True)
    ]


def test_three_rows_tell_what_a_function_adds_to_moving_data_and_reshapes_do_not_disturb_that() -> None:
    known, unseen = [2_000, 60_000, 900_000], [700, 9_000, 25_000, 200_000, 3_000_000]
    maps = [Elementwise("relu", (1, int(size))) for size in np.geomspace(500, 2e6, 30)]
    reshapes = [Boundary("reshape", (1, int(size))) for size in np.geomspace(500, 2e6, 60)]
    exps, exp_s = _few("Exp", known, 2e-9)
    said = dict.fromkeys(reshapes, 3e-7) | dict(zip(exps, exp_s, strict=True))
    plain = plausible_profile([*maps, *reshapes, *exps], precisions=(FLOAT,), noise=0.01)
    rows = [
        row.model_copy(update={"latency_s": told_s, "interval_s": (told_s, told_s)})
        if (told_s := said.get(row.operator)) is not None
        else row
        for row in plain.rows
    ]
    fit = fit_profile(plain.changed(rows=tuple(rows)), names=["linear", "tiled"])
    (report,) = (one for one in fit.report if one.family == "node.Exp")
    assert {error.predictor: error for error in report.errors}["borrowed"].mape < 0.1
    ops, expected_s = _few("Exp", unseen, 2e-9)
    features = feature_matrix(((op, FLOAT) for op in ops), hardware_of(plain.machine, plain.int8_form))
    assert fit.predict("node.Exp", FLOAT, features).latency_s == pytest.approx(expected_s, rel=0.15)


def test_a_node_that_is_a_product_borrows_from_products_of_any_layout() -> None:
    products = [Gemm(m, k, n) for m, k, n in itertools.product((16, 64, 196), (32, 96, 300), (24, 64, 200))]
    plains = [Conv.square(taken, made, 14, 1) for taken, made in itertools.product((16, 48, 160), (32, 96, 256))]
    nodes = [
        Node("MatMul", (f"float32[1,{m},{k}]", f"float32[1,{k},{n}]"), (f"float32[1,{m},{n}]",))
        for m, k, n in ((49, 32, 49), (196, 64, 196), (16, 200, 24))
    ]
    maps = [Elementwise("relu", (1, size)) for size in (500, 4_000, 30_000)]
    floats = plausible_profile([*products, *nodes, *maps], precisions=(FLOAT,))
    plain = plausible_profile(plains, precisions=(Precision.parse("w32a32:plain"),))
    profile = floats.changed(rows=(*floats.rows, *plain.rows))
    fit = fit_profile(profile, names=["linear"])
    (report,) = (one for one in fit.report if one.family == "node.MatMul")
    errors = {error.predictor: error for error in report.errors}
    assert errors["borrowed"].mape < 0.3
    unseen = Node("MatMul", ("float32[1,100,48]", "float32[1,48,100]"), ("float32[1,100,100]",))
    features = feature_matrix([(unseen, FLOAT)], hardware_of(profile.machine, profile.int8_form))
    law_s = plausible_latency_s(unseen, np.random.default_rng(0), 0.0, FLOAT)
    assert fit.predict("node.MatMul", FLOAT, features).latency_s == pytest.approx([law_s], rel=0.3)


def test_networks_tell_of_kernels_without_a_row_by_what_is_predicted_and_nothing_where_that_is_impossible() -> None:
    whole = plausible_profile(_operators(60), noise=0.0)
    convolutions = [row for row in whole.rows if isinstance(row.operator, Conv)]
    slower, gone = 1.1, {row.layer for row in convolutions[::3]}

    def network(place: int, *more: Part) -> Network:
        chosen = [convolutions[(7 * place + step) % len(convolutions)] for step in range(6)]
        run_s = whole.run_overhead_s + slower * sum(row.latency_s for row in chosen)
        parts = [Part(operator=row.operator, precision=INT8, count=1) for row in chosen]
        return Network(name=f"network 0/{place} float", parts=(*parts, *more), samples_s=(run_s,) * 2)

    networks = tuple(network(place) for place in range(24))
    rows = tuple(row for row in whole.rows if row.layer not in gone)
    assert all(any((part.operator, INT8) in gone for part in one.parts) for one in networks)
    less = whole.changed(rows=rows, networks=networks)
    fit = fit_profile(less, names=["linear"])
    assert fit.composition is not None and fit.composition.networks == 24
    for one in networks:
        said = CostModel(less, fit).price_all([(part.operator, part.precision) for part in one.parts])
        assert said.latency_s == pytest.approx(one.samples_s[0], rel=0.05)
    unknown = Part(operator=Node("Erf", ("float32[8]",), ("float32[8]",), version=13), precision=FLOAT, count=1)
    left = fit_profile(less.changed(networks=(*networks[:20], network(20, unknown))), names=["linear"]).composition
    assert left is not None and left.networks == 20
    assert fit_profile(less.changed(networks=(network(0, unknown),)), names=["linear"]).composition is None
