"""Measurement tables: what is written is read back, what is wrong is named, and real narrow kernels count."""

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwcost import notation
from hwcost.cli import cli
from hwcost.console import run_cli
from hwcost.errors import HwcostError, InvalidOperatorError, TableError
from hwcost.fit import fit_path, fit_profile, write_fit
from hwcost.importing import ASSUMED_NOISE, ASSUMED_OVERHEAD_S, import_profile
from hwcost.lookup import build_table
from hwcost.notation import operator_cells, operator_from_cells, parse_key
from hwcost.ops import FLOAT, INT8, PRECISIONS, Boundary, Conv, Elementwise, Gemm, Node, Operator, Pool, Precision, key
from hwcost.pricing import CostModel, load_cost_model
from hwcost.profiles import Profile, Row, read_profile, write_profile
from hwcost.space import SearchSpace
from hwcost.tables import read_rows, table_text, write_table
from hwcost.testing import plausible_profile

SPACE = SearchSpace.for_image((1, 8, 8), 10)
INT4, INT2 = Precision(4, 8), Precision(2, 8)

sizes = st.integers(1, 4096)
shapes = st.lists(st.integers(1, 512), min_size=1, max_size=5).map(tuple)
convolutions = st.builds(
    lambda groups, per_group, out, plane, kernel, pads, activation: Conv(
        groups * per_group, groups * out, *plane, kernel, pads=pads, groups=groups, activation=activation
    ),
    st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.tuples(st.integers(7, 99), st.integers(7, 99)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from(["none", "relu", "hardswish"]),
)  # fmt: skip
operators: st.SearchStrategy[Operator] = st.one_of(
    convolutions,
    st.builds(Gemm, sizes, sizes, sizes),
    st.builds(Pool.global_average, sizes, st.integers(1, 64), st.integers(1, 64)),
    st.builds(Elementwise, st.sampled_from(["add", "tanh"]), shapes),
    st.builds(Boundary, st.sampled_from(["quantize", "reshape"]), shapes),
    st.integers(1, 5).flatmap(
        lambda rank: st.builds(
            Boundary,
            st.just("transpose"),
            st.tuples(*[st.integers(1, 99)] * rank),
            st.permutations(range(rank)).map(tuple),
        )
    ),
    st.builds(
        Node,
        st.sampled_from(["Softmax", "Concat"]),
        st.lists(st.sampled_from(["float32[1,64]", "", "=int64[2]:2,3", "=float32[64]"]), max_size=3).map(tuple),
        st.just(("float32[1,64]",)),
        st.sampled_from(["{}", '{"axis":1}', '{"equation":"bij,bjk->bik","k":[1,2]}']),
        st.sampled_from(["", "com.microsoft"]),
        st.integers(1, 22),
    ),
)
seconds = st.floats(1e-300, 1e6)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    op = draw(operators)
    precision = draw(st.sampled_from(PRECISIONS if op.weights else (FLOAT, INT8)))
    low_s, latency_s, high_s = sorted(draw(st.tuples(seconds, seconds, seconds)))
    return Row(
        operator=op,
        precision=precision,
        realisation=draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=20)),
        native=draw(st.booleans()),
        source="measured",
        latency_s=latency_s,
        interval_s=(low_s, high_s),
    )


def profile_of(*found: Row) -> Profile:
    return Profile.model_validate({**dict(plausible_profile(SPACE.operators()[:1])), "rows": found})


def said(row: Row) -> tuple[object, ...]:
    """What a table carries of a row."""
    return row.operator, row.precision, row.latency_s, row.interval_s, row.realisation, row.native


def in_unit(text: str, rename: dict[str, str], factor: float) -> str:
    """A CSV table with columns renamed and their numbers multiplied."""
    header, *lines = csv.reader(io.StringIO(text))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([rename.get(name, name) for name in header])
    for line in lines:
        pairs = zip(header, line, strict=True)
        writer.writerow([repr(float(cell) * factor) if name in rename else cell for name, cell in pairs])
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        run_cli(cli, "hwcost", [str(argument) for argument in arguments])
    return caught.value.code, *capsys.readouterr()


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# Text and back.


@given(operators)
def test_a_key_is_read_back(op: Operator) -> None:
    assert parse_key(key(op)) == op


@given(operators)
def test_cells_are_read_back_typed_and_as_text(op: Operator) -> None:
    cells = {name: content for name, content in operator_cells(op).items() if content is not None}
    kind = str(cells.pop("kind"))
    assert operator_from_cells(kind, cells) == op
    assert operator_from_cells(kind, {name: str(content) for name, content in cells.items()}) == op


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(found=st.lists(rows(), min_size=1, max_size=8, unique_by=lambda row: row.layer))
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_read_back_exactly(tmp_path: Path, suffix: str, found: list[Row]) -> None:
    path = tmp_path / f"t{suffix}"
    write_table(profile_of(*found), path)
    again = read_rows(path, 0.1)
    assert list(map(said, again)) == list(map(said, found))
    assert {row.source for row in again} == {"imported"}


@dataclass(frozen=True)
class _Later:
    """A kind of operator that does not exist yet."""

    equation: str
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] = ()
    layout: str = ""
    scale: float = 1.0
    fused: bool = False
    group: int | None = None
    mode: Literal["a", "b"] = "a"
    kind: Literal["later"] = "later"


@pytest.mark.parametrize(
    "op",
    [
        _Later("bij,bjk->bik", ((1, 2), ()), ("x", "=y[1]:2,3")),
        _Later('{"p":"q"}', (), ("",), layout='"quoted"', scale=1e-7, fused=True, group=3, mode="b"),
        _Later("=", ((7,),), layout="null"),
    ],
)
def test_kinds_of_operators_to_come_are_read_back(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(notation.KINDS, "later", _Later)
    assert parse_key(key(op)) == op
    cells = {name: content for name, content in operator_cells(op).items() if content is not None}
    del cells["kind"]
    assert operator_from_cells("later", cells) == op
    assert operator_from_cells("later", {name: str(content) for name, content in cells.items()}) == op


def test_fields_that_a_key_leaves_out_have_their_defaults() -> None:
    short = "conv(in_channels=3, out_channels=8, height=9, width=9, kernel=(3, 3))"
    assert parse_key(short) == Conv(3, 8, 9, 9, (3, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an operator is written like gemm"),
        ("gemm", "an operator is written like gemm"),
        ("lstm(m=1)", "an operator is one of conv, gemm"),
        ("gemm(m=1,k=2)", "n: a gemm needs it, got nothing"),
        ("gemm(m=1,k=2,n=many)", "n: a whole number is wanted, got 'many'"),
        ("gemm(m=1,k=2,n=3,n=4)", "n: a field of an operator is given once"),
        ("gemm(rows=1)", "the fields of a gemm are m, k, n"),
        ("gemm(m=0,k=2,n=3)", "sizes of an operator are at least 1"),
        ("conv(in_channels=3,out_channels=8,height=9,width=9,kernel=(3))", "kernel: 2 whole numbers like 3x3"),
        ("gemm(m=" + "(" * 5000 + ",k=1,n=1)", "m: a whole number is wanted"),
    ],
)
def test_what_is_no_key_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidOperatorError, match=message.replace("(", r"\(")):
        parse_key(text)


@given(st.text())
def test_any_text_is_an_operator_or_a_deliberate_error(text: str) -> None:
    for attempt in (text, f"gemm({text})", f"conv(in_channels={text},kernel={text})"):
        try:
            parse_key(attempt)
        except HwcostError as error:
            assert str(error)


# Forms of a table.


def test_units_lists_and_blanks_are_understood(tmp_path: Path) -> None:
    text = """kind,in_channels,out_channels,height,width,kernel,pads,m,k,n,precision,latency_us,low_us,high_us,native
conv,16,32.0,8,8,3x3,"1, 1,1,1",,,,w4a8,12.5,12,14,
conv,16,32,8,8,"3,3",,,,,w8a8,20,,,no

gemm,,,,,,,1,64,10,w8a8,3,2.5,3.5,yes
"""
    first, second, third = read_rows(table(tmp_path, text), 0.25)
    assert first.operator == Conv(16, 32, 8, 8, (3, 3), pads=(1, 1, 1, 1)) and first.precision == INT4
    assert first.latency_s == pytest.approx(12.5e-6) and first.interval_s == pytest.approx((12e-6, 14e-6))
    assert first.native and first.realisation == "imported"
    assert second.operator == Conv(16, 32, 8, 8, (3, 3)) and not second.native
    assert second.interval_s == pytest.approx((16e-6, 25e-6))
    assert third.operator == Gemm(1, 64, 10)


def test_operators_may_be_keys(tmp_path: Path) -> None:
    ops = SPACE.operators()
    lines = [f'"{key(op)}",w8a8,{index + 1}' for index, op in enumerate(ops)]
    found = read_rows(table(tmp_path, "\n".join(["operator,precision,latency_ms", *lines])), 0.1)
    assert tuple(row.operator for row in found) == ops
    assert [row.latency_s for row in found] == pytest.approx([(index + 1) / 1000 for index in range(len(ops))])


def test_parquet_is_known_by_its_content_and_may_hold_typed_columns(tmp_path: Path) -> None:
    columns = {
        "kind": ["conv", "gemm"], "in_channels": [3.0, None], "out_channels": [8, None], "height": [9, None],
        "width": [9, None], "kernel": [[3, 3], None], "m": [None, 1], "k": [None, 64], "n": [float("nan"), 10],
        "precision": ["w8a8"] * 2, "latency_ms": [1, 2.5], "native": [True, None],
    }  # fmt: skip
    path = tmp_path / "table.csv"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    first, second = read_rows(path, 0.1)
    assert (first.operator, second.operator) == (Conv(3, 8, 9, 9, (3, 3)), Gemm(1, 64, 10))
    assert (first.latency_s, second.latency_s) == (1e-3, 2.5e-3)


def test_a_table_for_spreadsheets_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfkind,m,k,n,precision,latency_s\r\ngemm,1,2,3,w8a8,1e-5\r\n")
    assert read_rows(path, 0.1)[0].operator == Gemm(1, 2, 3)


HEAD = "kind,m,k,n,precision,latency_us\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a table begins with the names of its columns"),
        (HEAD, "a table has at least one row under its header"),
        ("kind,m,k,n,precision,latency\ngemm,1,2,3,w8a8,1", "exactly one of the columns latency_s, latency_ms"),
        ("kind,m,precision,latency_s,latency_ms\n", "exactly one of .*, got latency_s and latency_ms"),
        ("kind,m,m,precision,latency_s\n", "a name of its own, got 'm' twice"),
        ("m,k,n,precision,latency_s\n", "a table has a column kind"),
        ("kind,m,k,n,latency_s\n", "a table has a column precision"),
        ("kind,m,k,nn,precision,latency_s\n", "column 'nn' is unknown: .*rename it or leave it out"),
        ("operator,m,precision,latency_s\n", "column 'm' is unknown: beside operator, a table has precision"),
        ("kind,m,k,n,precision,latency_us,low_us\n", "the two columns low_us and high_us, got low_us"),
        ("kind,m,k,n,precision,latency_us,low_ms,high_ms\n", "column 'low_ms' is unknown"),
        (HEAD + "gemm,1,2,3,w8a8\n", r"row 1 \(line 2\): a row has 6 cells, got 5"),
        (HEAD + 'gemm,1,2,3,w8a8,1\n"gemm,1', r"line 3: not CSV with commas and double quotes"),
        (HEAD + "gemm,1,2,3,w8a8,1\n\ngem,1,2,3,w8a8,1\n", r"row 2 \(line 4\), column kind: an operator is one of"),
        (HEAD + ",1,2,3,w8a8,1\n", "column kind: an operator is one of .* got ''"),
        (HEAD + "gemm,1,x,3,w8a8,1\n", "row 1 .*, column k: a whole number is wanted, got 'x'"),
        (HEAD + "gemm,1,2.5,3,w8a8,1\n", "column k: a whole number is wanted, got '2.5'"),
        (HEAD + "gemm,1,,3,w8a8,1\n", "column k: a gemm needs it, got nothing"),
        (HEAD + "gemm,1,0,3,w8a8,1\n", r"row 1 \(line 2\): the sizes of an operator are at least 1"),
        (HEAD + "conv,1,2,3,w8a8,1\n", "column m: a conv has no such field, so the cell is blank there, got '1'"),
        (HEAD + "gemm,1,2,3,w3a8,1\n", "column precision: a precision is one of .* got 'w3a8'"),
        (HEAD + "gemm,1,2,3,,1\n", "column precision: a precision is one of"),
        (HEAD + "gemm,1,2,3,w8a8,\n", "column latency_us: a positive number is wanted, got nothing"),
        (HEAD + "gemm,1,2,3,w8a8,-1\n", "column latency_us: a positive number is wanted, got '-1'"),
        (HEAD + "gemm,1,2,3,w8a8,nan\n", "column latency_us: a positive number is wanted, got 'nan'"),
        (HEAD + 'gemm,1,2,3,w8a8,"1,5"\n', "column latency_us: a positive number is wanted, got '1,5'"),
        (HEAD + "gemm,1,2,3,w8a8,x\ngemm,y,2,3,w8a8,1\n", r"column latency_us: .* \(1 more rows are wrong\)"),
        (
            "kind,m,k,n,precision,latency_s,low,high\ngemm,1,2,3,w8a8,5,6,7\n",
            "column low: the interval holds the latency 5, got 6 to 7",
        ),
        ("kind,m,k,n,precision,latency_s,low,high\ngemm,1,2,3,w8a8,5,,7\n", "column low: a positive number is wanted"),
        ("kind,m,k,n,precision,latency_s,native\ngemm,1,2,3,w8a8,5,maybe\n", "column native: true or false is wanted"),
        ("kind,function,shape,precision,latency_s\nelementwise,add,4,w4a8,5\n", "without weights .* w8a8, got w4a8"),
        ("operator,precision,latency_s\ngemm(m=1),w8a8,5\n", "column operator: k: a gemm needs it"),
        (
            "kind,in_channels,out_channels,height,width,kernel,precision,latency_s\nconv,3,8,9,9,3,w8a8,1\n",
            "column kernel: 2 whole numbers like 3x3 are wanted",
        ),
    ],
)
def test_bad_tables_are_one_line_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(TableError, match=message) as caught:
        read_rows(path, 0.1)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no table at .*: `hwcost export PROFILE TABLE.csv` shows"):
        read_rows(tmp_path / "none.csv", 0.1)
    with pytest.raises(TableError, match="cannot read table"):
        read_rows(tmp_path, 0.1)
    with pytest.raises(TableError, match="a Parquet file begins with PAR1"):
        read_rows(table(tmp_path, HEAD, "t.parquet"), 0.1)
    (tmp_path / "t.csv").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(TableError, match="not a Parquet file that can be read"):
        read_rows(tmp_path / "t.csv", 0.1)
    (tmp_path / "t.csv").write_bytes(b"kind\xff\xfe")
    with pytest.raises(TableError, match="a table is Parquet or CSV in UTF-8"):
        read_rows(tmp_path / "t.csv", 0.1)
    with pytest.raises(TableError, match=r"a table is written as \.csv or \.parquet"):
        write_table(plausible_profile(SPACE.operators()), tmp_path / "t.xlsx")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: (HEAD + text).encode())))
def test_any_bytes_are_a_table_or_a_deliberate_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv"
    for content in (data, b"PAR1" + data):
        path.write_bytes(content)
        with pytest.raises(TableError):
            read_rows(path, 0.1)


# Profiles from tables.


def low_bit_profile(ops: tuple[Operator, ...] = SPACE.operators()) -> Profile:
    """An accelerator by the plausible law, whose convolutions cost 0.6 and 0.4 of int8 at 4 and 2 bits."""
    int8 = plausible_profile(ops, noise=0.0)
    narrow = [
        row.model_copy(update={"precision": precision, "latency_s": row.latency_s * share, "interval_s": bounds})
        for row in int8.rows
        if isinstance(row.operator, Conv)
        for precision, share in ((INT4, 0.6), (INT2, 0.4))
        if (bounds := (row.interval_s[0] * share, row.interval_s[1] * share))
    ]
    return profile_of(*int8.rows, *narrow)


def test_what_a_table_cannot_know_is_assumed_and_said_or_given(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + "gemm,1,2,3,w8a8,1\n")
    assumed = import_profile(path, "npu")
    assert (assumed.noise_floor, assumed.run_overhead_s) == (pytest.approx(ASSUMED_NOISE), ASSUMED_OVERHEAD_S)
    assert assumed.rows[0].interval_s == pytest.approx((1e-6 / 1.1, 1.1e-6))
    assert "one call without operators: assumed, the table does not say" in assumed.notes
    assert assumed.notes[0] == "imported from t.csv, not measured here" and assumed.sources == ("imported",)
    given_ = import_profile(path, "npu", overhead_s=4e-5, noise=0.02, cpu="X1", int8_form="u8s8")
    assert (given_.noise_floor, given_.run_overhead_s, given_.machine.cpu) == (0.02, 4e-5, "X1")
    assert given_.rows[0].interval_s == pytest.approx((1e-6 / 1.02, 1.02e-6)) and given_.int8_form == "u8s8"
    assert "one call without operators: as given" in given_.notes
    assert import_profile(path, "other").machine.fingerprint != assumed.machine.fingerprint
    with pytest.raises(TableError, match=r"a device is named with .* got 'My NPU'"):
        import_profile(path, "My NPU")


def test_of_repeated_rows_the_fastest_counts_and_a_note_says_so(tmp_path: Path) -> None:
    lines = "gemm,1,2,3,w8a8,3\ngemm,1,2,4,w8a8,9\ngemm,1,2,3,w8a8,2\ngemm,1,2,3,w32a32,1\n"
    profile = import_profile(table(tmp_path, HEAD + lines), "npu")
    assert [row.latency_s for row in profile.rows] == pytest.approx([2e-6, 9e-6, 1e-6])
    assert profile.rows[0].samples_s == pytest.approx((3e-6, 2e-6))
    assert "1 of 4 rows repeat others: the fastest of each counts" in profile.notes


def test_widths_without_rows_are_held_in_the_next_wider_one_and_real_ones_are_not(tmp_path: Path) -> None:
    conv = Conv.square(16, 16, 8, 3)
    text = f'operator,precision,latency_us\n"{key(conv)}",w8a8,4\n"{key(conv)}",w4a8,3\n"{key(Gemm(1, 2, 3))}",w8a8,1\n'
    model = CostModel(import_profile(table(tmp_path, text), "npu"))
    assert [model.price(conv, precision).latency_s for precision in (INT8, INT4, INT2)] == pytest.approx(
        [4e-6, 3e-6, 3e-6]
    )
    assert [model.runs_as(conv, precision) for precision in (INT8, INT4, INT2)] == [INT8, INT4, INT4]
    assert model.runs_as(Gemm(1, 2, 3), INT2) == INT8
    assert any(note.startswith("conv at w2a8 runs as w4a8") for note in model.profile.notes)
    assert not any("conv at w4a8" in note for note in model.profile.notes)


def test_a_table_that_cannot_price_a_search_says_what_it_lacks(tmp_path: Path) -> None:
    write_table(low_bit_profile(), tmp_path / "all.csv")
    assert not any("a search needs" in note for note in import_profile(tmp_path / "all.csv", "npu").notes)
    kept = tuple(
        row
        for row in low_bit_profile().rows
        if not isinstance(row.operator, Pool)
        and not (isinstance(row.operator, Conv) and row.operator.depthwise and row.precision == INT2)
    )
    write_table(profile_of(*kept), tmp_path / "some.csv")
    note = import_profile(tmp_path / "some.csv", "npu").notes[-1]
    assert note.endswith("this table has none of conv.depthwise w2a8, pool.global_average w8a8")


def test_real_narrow_convolutions_are_cheaper_in_a_lookup_table_looked_up_or_predicted(tmp_path: Path) -> None:
    path = tmp_path / "npu.csv"
    write_table(low_bit_profile(), path)
    profile = import_profile(path, "npu")
    larger = SearchSpace.for_image((3, 32, 32), 10)
    models = {SPACE: CostModel(profile), larger: CostModel(profile, fit_profile(profile, names=["linear"]))}
    for space, model in models.items():
        latency_s = build_table(space, model).values["latency_s"]
        for choice in space.choices[1:]:
            if choice.weight_bits == 2:
                by_bits = [
                    latency_s[:, space.choices.index(dataclasses.replace(choice, weight_bits=bits))]
                    for bits in (2, 4, 8)
                ]
                assert (np.diff(np.array(by_bits), axis=0) > 0).all()
    assert build_table(larger, models[larger]).sources == ("imported", "predicted from imported rows")


# The commands.


def test_import_and_export_undo_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = low_bit_profile()
    write_profile(first, folder / "first.json")
    code, out, _ = run(capsys, "export", "first.json", "t.parquet")
    assert (code, out) == (0, f"t.parquet: {len(first.rows)} rows of plausible\n")
    code, out, _ = run(capsys, "import", "t.parquet", "--device", "npu", "--cpu", "X1", "--overhead", "40us", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["profile"], document["device"], document["sources"]) == (
        "profiles/npu.json", "npu", {"imported": len(first.rows)},
    )  # fmt: skip
    runs = {(entry["family"], entry["precision"]): entry["runs"] for entry in document["realisations"]}
    assert runs["conv.dense", "w2a8"] == "native"
    assert document["run_overhead_s"] == pytest.approx(4e-5)
    again = read_profile(folder / "profiles" / "npu.json")
    assert list(map(said, again.rows)) == list(map(said, first.rows))
    code, out, err = run(capsys, "export", "profiles/npu.json")
    assert (code, out, err) == (0, table_text(first), "")


def test_an_imported_profile_is_shown_fitted_and_found_by_the_cost_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(low_bit_profile(), folder / "t.csv")
    code, out, _ = run(capsys, "import", "t.csv", "--device", "npu", "--noise", "2%")
    assert code == 0 and "imported from t.csv, not measured here" in out
    path = folder / "profiles" / "npu.json"
    profile = read_profile(path)
    write_fit(fit_profile(profile, names=["linear"]), fit_path(path))
    unseen = Conv.square(20, 28, 9, 3)
    prices = [load_cost_model(path).price(unseen, precision) for precision in (INT2, INT4, INT8)]
    assert [price.label for price in prices] == ["predicted from imported rows"] * 3
    assert prices[0].latency_s < prices[1].latency_s < prices[2].latency_s


@pytest.mark.parametrize(
    "arguments", [("--noise", "2"), ("--noise", "x%"), ("--noise", "100%"), ("--overhead", "soon")]
)
def test_wrong_options_are_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, _, err = run(capsys, "import", "t.csv", "--device", "npu", *arguments)
    assert code == 2 and "like" in err and not list(folder.iterdir())


def test_nothing_is_written_for_a_wrong_table_nor_over_measurements(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(folder, HEAD + "gemm,1,2,3,w8a8,1\ngemm,1,2,3,w8a8,fast\n")
    code, out, err = run(capsys, "import", "t.csv", "--device", "npu")
    assert (code, out) == (
        1,
        "",
    ) and "row 2 (line 3), column latency_us: a positive number is wanted, got 'fast'" in err
    assert [path.name for path in folder.iterdir()] == ["t.csv"]
    (folder / "profiles").mkdir()
    write_profile(plausible_profile(SPACE.operators()), folder / "profiles" / "npu.json")
    table(folder, HEAD + "gemm,1,2,3,w8a8,1\n")
    code, _, err = run(capsys, "import", "t.csv", "--device", "npu")
    assert code == 1 and "a table never replaces measurements" in err and "--out" in err
    assert read_profile(folder / "profiles" / "npu.json").sources == ("measured",)


def test_an_export_is_whole_or_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no profile at none.json" in run(capsys, "export", "none.json")[2]
    write_profile(plausible_profile(SPACE.operators()), folder / "p.json")
    code, _, err = run(capsys, "export", "p.json", "t.txt")
    assert code == 1 and "a table is written as .csv or .parquet, got t.txt" in err
    assert run(capsys, "export", "p.json", "--json")[0] == 2
    assert [path.name for path in folder.iterdir()] == ["p.json"]
    document = json.loads(run(capsys, "export", "p.json", "t.csv", "--json")[1])
    assert document == {"profile": "p.json", "table": "t.csv", "rows": len(SPACE.operators())}


def test_a_unit_is_that_of_the_columns_name(tmp_path: Path) -> None:
    profile = low_bit_profile()
    rename = {"latency_s": "latency_us", "low_s": "low_us", "high_s": "high"}
    found = read_rows(table(tmp_path, in_unit(table_text(profile), rename, 1e6)), 0.1)
    assert [row.latency_s for row in found] == pytest.approx([row.latency_s for row in profile.rows])
    assert [row.interval_s for row in found] == [pytest.approx(row.interval_s) for row in profile.rows]
