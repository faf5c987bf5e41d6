"""Two profiles side by side: ratios, ranks, what differs of the machines, and gains of opposite sign."""

import json
from pathlib import Path

import pytest

from hwcost.cli import cli
from hwcost.compare import compare_profiles
from hwcost.console import run_cli
from hwcost.errors import FitError, ProfileError
from hwcost.features import family
from hwcost.fit import fit_path, fit_profile, write_fit
from hwcost.ops import FLOAT, INT8, Conv, Operator, Precision, key
from hwcost.pricing import CostModel
from hwcost.profiles import Profile, Row, write_profile
from hwcost.space import SearchSpace
from hwcost.testing import plausible_profile

OPS = SearchSpace.for_image((1, 8, 8), 10).operators()
FIRST = plausible_profile(OPS, precisions=(FLOAT, INT8), noise=0.0)


def changed(profile: Profile, **changes: object) -> Profile:
    """A copy, validated, that has forgotten what the old one had worked out."""
    return Profile.model_validate({**dict(profile), **changes})


def slower(profile: Profile, factor: float, **changes: object) -> Profile:
    """Every row `factor` times slower."""
    rows = tuple(times(row, factor) for row in profile.rows)
    return changed(profile, rows=rows, **changes)


def times(row: Row, factor: float) -> Row:
    low_s, high_s = row.interval_s
    changes = {"latency_s": row.latency_s * factor, "interval_s": (low_s * factor, high_s * factor)}
    return row.model_copy(update=changes)


def one_row(profile: Profile, op: Operator, precision: Precision, factor: float) -> Profile:
    """One row `factor` times slower."""
    rows = [times(row, factor) if row.layer == (op, precision) else row for row in profile.rows]
    return changed(profile, rows=tuple(rows))


def test_a_profile_agrees_with_itself() -> None:
    found = compare_profiles(CostModel(FIRST), CostModel(FIRST))
    assert found.same_machine and found.differences == {}
    assert (found.overall.both, found.overall.only_first, found.overall.only_second) == (len(FIRST.rows), 0, 0)
    assert (found.overall.ratio, found.overall.ratio_5, found.overall.ratio_95) == (1, 1, 1)
    assert found.overall.spearman == pytest.approx(1) and found.overall.within_noise == 1
    assert found.overall.intervals_overlap == 1 and found.contradictions == ()


def test_a_device_that_is_slower_throughout_has_one_ratio_and_the_same_ranks() -> None:
    machine = FIRST.machine.model_copy(update={"cpu": "another", "onnxruntime": "9"})
    found = compare_profiles(CostModel(FIRST), CostModel(slower(FIRST, 3.0, machine=machine, device="other")))
    assert not found.same_machine
    assert found.differences == {
        "cpu": (FIRST.machine.cpu, "another"), "onnxruntime": ("unknown", "9"), "device": ("plausible", "other"),
    }  # fmt: skip
    assert found.overall.ratio == pytest.approx(3) and found.overall.spearman == pytest.approx(1)
    assert found.overall.within_noise == found.overall.intervals_overlap == 0
    for entry in found.families:
        assert entry.ratio == pytest.approx(3) and entry.ratio_5 == pytest.approx(3) == entry.ratio_95
    counted = {(entry.family, entry.precision): entry.both for entry in found.families}
    assert counted["conv.depthwise", "w8a8"] == sum(family(op) == "conv.depthwise" for op in OPS)
    assert sum(counted.values()) == len(FIRST.rows)


def test_within_noise_is_what_both_noise_floors_allow() -> None:
    apart = changed(FIRST, noise_floor=0.02)
    for factor, share in ((1.025, 1), (1.035, 0)):
        assert compare_profiles(CostModel(apart), CostModel(slower(FIRST, factor))).overall.within_noise == share


def test_the_operator_that_disagrees_most_stands_first_whatever_the_speed() -> None:
    odd = one_row(slower(FIRST, 10.0), OPS[5], INT8, 0.25)
    first, *others = compare_profiles(CostModel(FIRST), CostModel(odd)).extremes
    assert (first.operator, first.precision) == (OPS[5], INT8) and first.ratio == pytest.approx(2.5)
    assert [pair.ratio for pair in others] == pytest.approx([10.0] * len(others))


def test_int8_gains_of_opposite_sign_are_found_and_clear_ones_told() -> None:
    by_layer = {row.layer: row for row in FIRST.rows}
    conv = max((op for op in OPS if isinstance(op, Conv)), key=lambda op: op.macs)
    gain = by_layer[conv, FLOAT].latency_s / by_layer[conv, INT8].latency_s
    assert gain > 1.1
    for factor, clear in ((2.0, True), (1.01, False)):
        other = one_row(FIRST, conv, INT8, gain * factor)
        (found,) = compare_profiles(CostModel(FIRST), CostModel(other)).contradictions
        assert (found.operator, found.clear) == (conv, clear)
        assert found.first_gain == pytest.approx(gain) and found.second_gain == pytest.approx(1 / factor)


def test_a_width_is_compared_by_the_kernel_that_runs_it() -> None:
    """Real 2-bit kernels stand beside the int8 kernels that the other device runs such weights on."""
    narrow = Precision(2, 8)
    rows = [row.model_copy(update={"precision": narrow}) for row in FIRST.rows if row.precision == INT8]
    real = [times(row, 0.5) for row in rows if isinstance(row.operator, Conv)]
    second = changed(FIRST, rows=(*FIRST.rows, *real), realisations=())
    found = compare_profiles(CostModel(FIRST), CostModel(second))
    ratios = [entry.ratio for entry in found.families if entry.precision == "w2a8"]
    assert ratios == pytest.approx([0.5] * len(ratios)) and ratios
    assert found.overall.both == len(second.rows)


def test_what_one_alone_has_is_counted_and_priced_by_a_fit_if_wanted() -> None:
    fewer = changed(FIRST, rows=FIRST.rows[::2])
    found = compare_profiles(CostModel(fewer), CostModel(FIRST))
    assert (found.overall.both, found.overall.only_first) == (len(fewer.rows), 0)
    assert found.overall.only_second == len(FIRST.rows) - len(fewer.rows)
    fitted = CostModel(fewer, fit_profile(fewer, names=["linear"]))
    predicted = compare_profiles(fitted, CostModel(FIRST), predicted=True)
    assert predicted.overall.both > found.overall.both
    assert "predicted from measured rows" in {pair.first.label for pair in predicted.pairs}
    with pytest.raises(FitError, match="needs a fit beside one of the two profiles, got none: run `hwcost fit`"):
        compare_profiles(CostModel(fewer), CostModel(FIRST), predicted=True)


def test_profiles_that_share_nothing_are_an_error_with_the_remedy_that_helps() -> None:
    halves = [changed(FIRST, rows=rows) for rows in (FIRST.rows[::2], FIRST.rows[1::2])]
    with pytest.raises(ProfileError, match=r"share none: run `hwcost fit` and compare with --predicted"):
        compare_profiles(*map(CostModel, halves))
    kinds = [
        changed(FIRST, rows=tuple(row for row in FIRST.rows if isinstance(row.operator, Conv) is conv))
        for conv in (True, False)
    ]
    with pytest.raises(ProfileError, match="share none: profile one of them with operators of the other"):
        compare_profiles(*map(CostModel, kinds))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        run_cli(cli, "hwcost", [str(argument) for argument in arguments])
    return caught.value.code, *capsys.readouterr()


def test_the_command_prints_tables_or_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_profile(FIRST, first)
    write_profile(one_row(slower(FIRST, 1.1, device="again"), OPS[5], INT8, 3.0), second)
    code, out, _ = run(capsys, "compare", first, second)
    assert code == 0 and "again against plausible" in out and "conv.depthwise" in out
    assert f"the same machine: 0 of {len(FIRST.rows)} rows agree within their intervals" in out
    code, out, _ = run(capsys, "compare", first, second, "--json")
    document = json.loads(out)
    assert code == 0 and document["profiles"] == [str(first), str(second)] and document["same_machine"] is True
    assert document["differences"] == {"device": ["plausible", "again"]}
    assert document["overall"]["ratio"] == pytest.approx(1.1) and len(document["operators"]) == len(FIRST.rows)
    assert document["operators"][0]["operator"] == key(OPS[5])
    assert {"family", "precision", "both", "ratio", "spearman", "within_noise"} <= document["families"][0].keys()


def test_the_command_reads_fits_only_where_they_are_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_profile(changed(FIRST, rows=FIRST.rows[::2]), first)
    write_profile(changed(FIRST, rows=FIRST.rows[1::2]), second)
    write_fit(fit_profile(FIRST, names=["linear"]), fit_path(first))  # of another state of the profile
    code, out, err = run(capsys, "compare", first, second)
    assert (code, out) == (1, "") and "share none: run `hwcost fit` and compare with --predicted" in err
    assert "a fit belongs to one state of its profile" in run(capsys, "compare", first, second, "--predicted")[2]
    assert "no profile at none.json" in run(capsys, "compare", first, "none.json")[2]
