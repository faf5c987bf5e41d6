"""What `hwcost show` says of bit-widths: which are real, how long they take beside float, and the plot of it."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hwcost.errors import OutputError
from hwcost.ops import FLOAT, INT8, PLAIN, PRECISIONS, Conv, Elementwise, Gemm, Operator, Precision
from hwcost.plots import write_plot
from hwcost.profiles import Machine, Profile, Realisation, Row, Source, write_profile
from hwcost.realisations import Realised, kind_or_family, realised
from hwcost.report import profile_document, show_profile

INT4, INT2 = Precision(4, 8), Precision(2, 8)
UNSIGNED_SIGNED = Precision(8, 8, "u8s8")
DENSE, WIDER, GEMM = Conv.square(8, 8, 8, 3), Conv.square(16, 16, 8, 3), Gemm(1, 64, 32)
UNPACKED = Realisation(kind="conv", precision=INT4, runs_as=INT8, native=False, description="unpacked on loading")


def row(op: Operator, precision: Precision, latency_us: float, kernel: str = "", native: bool = True) -> Row:
    latency_s = latency_us * 1e-6
    return Row(
        operator=op,
        precision=precision,
        realisation=kernel or f"kernel of {precision}",
        native=native,
        source="measured",
        latency_s=latency_s,
        interval_s=(latency_s, latency_s),
    )


def profile(*rows: Row, source: Source = "measured", unpacked: bool = True) -> Profile:
    return Profile(
        device="board",
        created="2026-01-01T00:00:00Z",
        machine=Machine(cpu="a law", architecture="none", cores=1, onnxruntime="1.32.0"),
        int8_form="u8u8",
        run_overhead_s=1e-5,
        noise_floor=0.01,
        realisations=(UNPACKED,) if unpacked else (),
        rows=tuple(one.model_copy(update={"source": source}) for one in rows),
    )


FEW = (row(DENSE, FLOAT, 10), row(DENSE, INT8, 5), row(WIDER, INT8, 100), row(GEMM, INT8, 3))


def by_precision(found: tuple[Realised, ...], group: str = "conv.dense") -> dict[Precision, Realised]:
    return {entry.precision: entry for entry in found if entry.group == group}


def shown(made: Profile, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_profile(made, Path("board.json"), in_full=True)
    return capsys.readouterr().out.splitlines()


def test_a_ratio_is_that_of_operators_that_have_both() -> None:
    int8 = by_precision(realised(profile(*FEW)))[INT8]
    assert int8.ratio is not None and int8.ratio.median == pytest.approx(0.5)
    assert (len(int8.rows), len(int8.ratios)) == (2, 1)
    assert int8.latency_s.median == pytest.approx(52.5e-6)
    (gemm,) = by_precision(realised(profile(*FEW)), "gemm").values()
    assert gemm.ratio is None and gemm.document()["ratio"] is None and not gemm.is_compared


def test_narrow_weights_are_real_only_where_they_have_rows_of_their_own() -> None:
    unpacked = by_precision(realised(profile(*FEW)))
    assert unpacked[INT4].way == "as w8a8" and unpacked[INT4].native_share == 0
    assert unpacked[INT4].ratios == unpacked[INT8].ratios and INT2 not in unpacked
    real = by_precision(realised(profile(*FEW, row(DENSE, INT4, 4))))
    assert real[INT4].way == "native" and real[INT4].ratios == pytest.approx((0.4,))


def test_operators_of_one_group_may_differ() -> None:
    ops = [Elementwise(function, (1, 8, 4, 4)) for function in ("add", "relu", "clip", "tanh")]
    made = profile(*(row(op, INT8, 2, native=op.function == "add") for op in ops))
    (mixed,) = realised(made, kind_or_family)
    assert (mixed.group, mixed.way, mixed.native_share) == ("elementwise", "mixed", 0.25)
    assert {entry.group: entry.way for entry in realised(made)} == {
        "elementwise.add": "native", "elementwise.clip": "not native", "elementwise.relu": "not native",
        "elementwise.tanh": "not native",
    }  # fmt: skip


def test_kernels_are_counted_and_other_kernels_of_a_width_stand_beside_it() -> None:
    made = profile(
        *FEW, row(DENSE, PLAIN, 20, "Conv weights read anew"), row(DENSE, UNSIGNED_SIGNED, 2.5, "QLinearConv u8s8")
    )
    found = by_precision(realised(made))
    assert list(found) == [FLOAT, PLAIN, INT8, UNSIGNED_SIGNED, INT4]
    assert found[PLAIN].ratios == pytest.approx((2.0,)) and found[UNSIGNED_SIGNED].ratios == pytest.approx((0.25,))
    assert found[INT8].kernels == {"kernel of w8a8": 2}
    documents = profile_document(made, Path("board.json"))["realisations"]
    entry = next(one for one in documents if one["precision"] == "w8a8:u8s8")
    assert entry == {
        "family": "conv.dense", "precision": "w8a8:u8s8", "weight_bits": 8, "activation_bits": 8, "runs": "native",
        "runs_as": "w8a8:u8s8", "native_share": 1.0, "operators": 1, "sources": ["measured"],
        "kernels": {"QLinearConv u8s8": 1}, "slower": {}, "latency_s": pytest.approx(2.5e-6), "compared": 1,
        "ratio": pytest.approx(0.25), "ratio_5": pytest.approx(0.25), "ratio_95": pytest.approx(0.25),
    }  # fmt: skip


def test_what_was_tried_and_slower_stands_beside_what_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    kept = [row(Gemm(1, 8, n), Precision(4, 32), 4, "level=4").model_dump() for n in (8, 16, 24)]
    for one, others in zip(kept, ({"level unset": 8e-6}, {"level unset": 48e-6}, {}), strict=True):
        one["others"] = others
    made = profile(*map(Row.model_validate, kept))
    (found,) = realised(made)
    assert found.document()["slower"] == {"level unset": {"operators": 2, "ratio": pytest.approx(7.0)}}
    assert any("level=4 (3); tried and slower: level unset (2, 7.00x)" in line for line in shown(made, capsys))
    again = Profile.model_validate_json(made.to_json())
    assert again == made and made.to_json().count(b"others") == 2


def test_the_matrix_says_what_runs_and_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(profile(*FEW, row(DENSE, UNSIGNED_SIGNED, 2.5), source="estimated"), capsys)
    head = next(line for line in lines if "w32a32" in line)
    place = next(number for number, line in enumerate(lines) if "│ conv.dense" in line)
    cells, below = ([cell.strip() for cell in line.split("│")[1:-1]] for line in lines[place : place + 2])
    assert [name.strip() for name in head.split("┃")[1:-1]] == ["operators", "w32a32", "w8a8", "w4a8", "other kernels"]
    assert cells == ["conv.dense", "native", "native", "as w8a8", "u8s8 0.25x"]
    assert below == ["", "", "0.50x (1)", "", ""]
    assert any("the median of so many operators; estimated" in line for line in lines)


def test_the_matrix_of_every_precision_fits_120_columns(capsys: pytest.CaptureFixture[str]) -> None:
    convolutions = [Conv.square(8, 8 * count, 8, 3, groups=8) for count in range(1, 101)]
    products = [Gemm(1, 8, count) for count in range(1, 101)]
    rows = [row(op, one, 100, native=False) for op in convolutions for one in (FLOAT, INT8, PLAIN, UNSIGNED_SIGNED)]
    rows += [row(op, one, 100, native=False) for op in products for one in PRECISIONS if one not in (INT4, INT2)]
    lines = shown(profile(*rows), capsys)
    start, end = (
        next(place for place, line in enumerate(lines) if line.startswith(words))
        for words in ("How each", "The slowest")
    )
    assert (
        all(str(one) in lines[start + 3] for one in PRECISIONS if one != INT2) and "other kernels" in lines[start + 3]
    )
    assert any("1.00x (100)" in line for line in lines)
    assert max(map(len, lines[start:end])) <= 120


def test_bars_are_as_long_as_the_median_ratio_and_marked_by_what_is_real(capsys: pytest.CaptureFixture[str]) -> None:
    rows = (row(DENSE, PLAIN, 20), row(DENSE, Precision(8, 32), 900, native=False))
    lines = shown(profile(*FEW, *rows), capsys)
    bars = {words[2]: words[3] for line in lines if (words := line.split())[1:2] == ["bits"]}
    assert abs(2 * len(bars["w8a8"]) - len(bars["w32a32"])) <= 1 and len(bars["w4a8"]) == len(bars["w8a8"])
    assert set(bars["w8a8"]) == {"█"} and set(bars["w4a8"]) == {"░"}
    assert bars["w8a32"][0] == "▒" and bars["w8a32"][-1] == "▶" and "▶" not in bars["w32a32:plain"]
    assert any(line.split() == ["conv.dense", "w8a8", "kernel", "of", "w8a8", "(2)"] for line in lines)


def test_without_float_nothing_is_compared_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = profile(*FEW[1:])
    lines = shown(made, capsys)
    assert not any("Latency against bits" in line for line in lines) and any("as w8a8" in line for line in lines)
    write_plot(made, tmp_path / "p.svg")
    found = texts(tmp_path / "p.svg")
    assert {"conv.dense", "gemm"} <= found and not any("that of the same operator" in text for text in found)


def texts(path: Path) -> set[str]:
    return {"".join(found.itertext()) for found in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")}


def test_a_plot_names_device_sources_families_kernels_and_ways(tmp_path: Path) -> None:
    path = tmp_path / "plots" / "board.svg"
    write_plot(profile(*FEW, source="estimated"), path)
    found = texts(path)
    assert {"board: latency against bits", "conv.dense", "0.50x (1)", "10 us (1)", "native"} <= found
    assert "kernel of w8a8   w8a8" in found and "as w8a8   w4a8" in found
    assert any("4 estimated rows (none of them timed by hwcost on the device)" in text for text in found)
    assert any("unpacked" in text for text in found) and "not native" not in found
    assert "gemm" not in found, "it has nothing to be compared with"
    before = path.read_bytes()
    write_plot(profile(*FEW, source="estimated"), path)
    assert path.read_bytes() == before


def test_a_kernels_name_from_anywhere_is_shown_as_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = profile(row(DENSE, FLOAT, 3, "$x_{\x1b[31m <b>"), row(DENSE, INT8, 3))
    write_plot(made, tmp_path / "p.svg")
    assert "$x_{\\x1b[31m <b>   w32a32" in texts(tmp_path / "p.svg")
    assert any("$x_{\\x1b[31m <b> (1)" in line for line in shown(made, capsys))


@pytest.mark.parametrize(("name", "start"), [("p.png", b"\x89PNG"), ("p.PDF", b"%PDF"), ("p.svg", b"<?xml")])
def test_a_plot_is_of_the_kind_that_its_suffix_says(tmp_path: Path, name: str, start: bytes) -> None:
    write_plot(profile(*FEW), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_another_suffix_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a plot is written as \.svg, \.png, \.pdf, got .*p\.txt: rename it"):
        write_plot(profile(*FEW), tmp_path / "p.txt")
    assert not list(tmp_path.iterdir())


def test_what_is_only_shown_loads_no_plots(tmp_path: Path) -> None:
    write_profile(profile(*FEW), tmp_path / "board.json")
    script = """
import sys
from hwcost.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print("matplotlib" in sys.modules)
"""

    def loaded(*options: str) -> list[str]:
        command = [sys.executable, "-c", script, "show", "board.json", "--json", *options]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return ran.stdout.splitlines()

    assert loaded()[-1] == "False"
    document, plotted = loaded("--plot", "p.png")
    assert plotted == "True" and json.loads(document)["plot"] == "p.png" and (tmp_path / "p.png").exists()
