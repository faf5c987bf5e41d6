"""Measurement tables: a profile's rows as CSV or Parquet, so that other runtimes and accelerators can be priced too.

One row is one operator at one precision. The operator is `kind` and one column per field of its dataclass in
`hwcost.ops`, as `hwcost.notation` writes them (a blank cell is the field's default), or one column `operator` with the
text of `hwcost.ops.key`. Beside it stand `precision` (`w8a8`); exactly one of `latency_s`, `latency_ms`, `latency_us`;
and, if there are any, `low` and `high` (both, in the unit of the latency, which their names may carry: `low_us`),
`realisation` and `native`. Any other column is an error, since it may be a misspelt field.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hwcost.errors import FieldError, HwcostError, TableError
from hwcost.files import write_atomically
from hwcost.notation import KINDS, Cell, cell, field_types, operator_cells, operator_from_cells, parse_key, text_of
from hwcost.ops import Operator, Precision
from hwcost.profiles import Profile, Row

_SECONDS: Final = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6}
_FIELDS: Final = frozenset(name for kind in KINDS for name in field_types(kind))
_PARQUET: Final = b"PAR1"
_YES_NO: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class _Record:
    """A row of a table: where it stands, and its cells that are not blank."""

    place: str
    cells: dict[str, Any]


@dataclass(frozen=True)
class _Columns:
    """What the header says: whether operators are keys, the column of the latency, and those of its interval's ends."""

    compact: bool
    latency: str
    ends: tuple[str, str] | None

    @classmethod
    def of(cls, header: Sequence[str]) -> "_Columns":
        """Raises `TableError` for a header that no table of measurements has."""
        if not header:
            raise TableError("a table begins with the names of its columns, got nothing")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise TableError(f"every column of a table has a name of its own, got {twice[0]!r} twice")
        found = [name for name in _SECONDS if name in header]
        if len(found) != 1:
            got = " and ".join(found) or f"only {', '.join(header)}"
            raise TableError(f"a table has exactly one of the columns {', '.join(_SECONDS)}, got {got}")
        (latency,) = found
        unit = latency.removeprefix("latency")
        lows = [name for name in ("low", f"low{unit}") if name in header]
        highs = [name for name in ("high", f"high{unit}") if name in header]
        if len(lows) > 1 or len(lows) != len(highs):
            got = ", ".join((*lows, *highs))
            raise TableError(f"an interval is the two columns low{unit} and high{unit}, got {got}")
        compact = "operator" in header
        operator = {"operator"} if compact else {"kind", *_FIELDS}
        for name in ("operator" if compact else "kind", "precision"):
            if name not in header:
                raise TableError(f"a table has a column {name}, got only {', '.join(header)}")
        for name in header:
            if name not in {*operator, "precision", latency, *lows, *highs, "realisation", "native"}:
                raise TableError(
                    f"column {name!r} is unknown: beside {'operator' if compact else 'kind and fields of operators'}, "
                    f"a table has precision, {latency}, low{unit}, high{unit}, realisation and native; "
                    "rename it or leave it out"
                )
        return cls(compact, latency, (lows[0], highs[0]) if lows else None)


def table_text(profile: Profile) -> str:
    """The rows as CSV, seconds as they are; `read_rows` reads back the same operators, precisions and numbers."""
    header, records = _flat(profile)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for record in records:
        writer.writerow([_csv(record.get(name)) for name in header])
    return out.getvalue()


def write_table(profile: Profile, path: Path) -> None:
    """The rows as CSV or Parquet, by the suffix; whole or not at all. Raises `TableError`, `OSError`."""
    writers: dict[str, Callable[[Profile], bytes]] = {
        ".csv": lambda rows: table_text(rows).encode(),
        ".parquet": _parquet,
    }
    if path.suffix.lower() not in writers:
        raise TableError(f"a table is written as {' or '.join(writers)}, got {path}")
    write_atomically(path, writers[path.suffix.lower()](profile))


def _flat(profile: Profile) -> tuple[list[str], list[dict[str, Cell]]]:
    """Header and rows; only fields of operators that the profile has."""
    records = [
        operator_cells(row.operator)
        | {
            "precision": str(row.precision),
            "latency_s": row.latency_s,
            "low_s": row.interval_s[0],
            "high_s": row.interval_s[1],
            "realisation": cell(row.realisation),
            "native": row.native,
        }
        for row in profile.rows
    ]
    last = ("precision", "latency_s", "low_s", "high_s", "realisation", "native")
    operator = dict.fromkeys(name for record in records for name in record if name not in last)
    return [*operator, *last], records


def _csv(content: Cell) -> str:
    if isinstance(content, bool):
        return "true" if content else "false"
    return "" if content is None else str(content)


def _parquet(profile: Profile) -> bytes:
    """A column of one type keeps it; one that differs from kind to kind is text."""
    import pyarrow
    import pyarrow.parquet

    header, records = _flat(profile)
    columns: dict[str, list[Cell]] = {name: [record.get(name) for record in records] for name in header}
    for name, contents in columns.items():
        if len({type(content) for content in contents if content is not None}) > 1:
            columns[name] = [None if content is None else _csv(content) for content in contents]
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def read_rows(path: Path, noise: float) -> tuple[Row, ...]:
    """Every row of a table, `source: imported`, repeated ones too; `noise` is the half-width, as a share, of the
    interval of a row that has none. Raises `TableError` naming the file, the first wrong row, its column and the rule.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TableError(f"no table at {path}: `hwcost export PROFILE TABLE.csv` shows what one looks like") from None
    except OSError as error:
        raise TableError(f"cannot read table {path}: {error.strerror}") from error
    rows: list[Row] = []
    wrong: list[str] = []
    try:
        header, records = _read_parquet(data) if data.startswith(_PARQUET) else _read_csv(data, path)
        columns = _Columns.of(header)
        for record in records:
            try:
                rows.append(_row(record.cells, columns, noise))
            except FieldError as error:
                where = f"{record.place}, column {error.field}" if error.field else record.place
                wrong.append(f"{where}: {error.text}")
    except TableError as error:
        raise TableError(f"{path}: {error}") from None
    if wrong:
        more = f" ({len(wrong) - 1} more rows are wrong)" if len(wrong) > 1 else ""
        raise TableError(f"{path}, {wrong[0]}{more}; nothing was imported, correct the table")
    if not rows:
        raise TableError(f"{path}: a table has at least one row under its header, got none")
    return tuple(rows)


def _read_csv(data: bytes, path: Path) -> tuple[list[str], Iterator[_Record]]:
    if path.suffix.lower() == ".parquet":
        raise TableError(f"a Parquet file begins with {_PARQUET.decode()}, got {data[:4]!r}: write the table again")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"a table is Parquet or CSV in UTF-8, got another byte at {error.start}: convert it") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [name.strip() for name in _next_line(reader) or ()]
    return header, _csv_records(reader, header)


def _next_line(reader: Any) -> list[str] | None:
    try:
        line: list[str] | None = next(reader, None)
    except csv.Error as error:
        raise TableError(f"line {reader.line_num}: not CSV with commas and double quotes ({error})") from None
    return line


def _csv_records(reader: Any, header: Sequence[str]) -> Iterator[_Record]:
    """Raises `TableError` for a line with more or fewer cells than the header; empty lines are passed over."""
    number = 0
    while True:
        line = reader.line_num + 1
        cells = _next_line(reader)
        if cells is None:
            return
        if not cells:
            continue
        number += 1
        if len(cells) != len(header):
            raise TableError(f"row {number} (line {line}): a row has {len(header)} cells, got {len(cells)}")
        stripped = zip(header, map(str.strip, cells), strict=True)
        yield _Record(f"row {number} (line {line})", {name: text for name, text in stripped if text})


def _read_parquet(data: bytes) -> tuple[list[str], Iterator[_Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise TableError(f"not a Parquet file that can be read ({' '.join(str(error).split())[:200]})") from None
    records = (
        _Record(f"row {number}", {name: content for name, content in cells.items() if not _blank(content)})
        for number, cells in enumerate(table.to_pylist(), 1)
    )
    return list(table.column_names), records


def _blank(content: Any) -> bool:
    return content is None or content == "" or (isinstance(content, float) and math.isnan(content))


def _row(cells: Mapping[str, Any], columns: _Columns, noise: float) -> Row:
    """Raises `FieldError` with the column."""
    op = _operator(cells, columns)
    precision = _precision(cells, op)
    scale = _SECONDS[columns.latency]
    latency_s = _seconds(cells, columns.latency, scale)
    interval_s = (latency_s / (1 + noise), latency_s * (1 + noise))
    if columns.ends is not None and any(end in cells for end in columns.ends):
        low_s, high_s = (_seconds(cells, end, scale) for end in columns.ends)
        if not low_s <= latency_s <= high_s:
            got = " to ".join(str(cells[end]) for end in columns.ends)
            raise FieldError(columns.ends[0], f"the interval holds the latency {cells[columns.latency]}, got {got}")
        interval_s = (low_s, high_s)
    return Row(
        operator=op,
        precision=precision,
        realisation=text_of(str(cells.get("realisation", "imported"))),
        native=_truth(cells, "native", default=True),
        source="imported",
        latency_s=latency_s,
        interval_s=interval_s,
    )


def _operator(cells: Mapping[str, Any], columns: _Columns) -> Operator:
    if not columns.compact:
        return operator_from_cells(str(cells.get("kind", "")), {name: cells[name] for name in cells if name in _FIELDS})
    try:
        return parse_key(str(cells.get("operator", "")))
    except HwcostError as error:
        raise FieldError("operator", str(error)) from None


def _precision(cells: Mapping[str, Any], op: Operator) -> Precision:
    try:
        precision = Precision.parse(str(cells.get("precision", "")))
    except HwcostError as error:
        raise FieldError("precision", str(error)) from None
    bits = precision.activation_bits
    if not op.weights and precision.weight_bits != bits:
        raise FieldError("precision", f"without weights an operator is of one width, w{bits}a{bits}, got {precision}")
    return precision


def _seconds(cells: Mapping[str, Any], column: str, scale: float) -> float:
    content = cells.get(column)
    try:
        value = float(content) * scale if content is not None and not isinstance(content, bool) else math.nan
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise FieldError(column, f"a positive number is wanted, got {'nothing' if content is None else repr(content)}")
    return value


def _truth(cells: Mapping[str, Any], column: str, *, default: bool) -> bool:
    content = cells.get(column, default)
    found = content if isinstance(content, bool) else _YES_NO.get(str(content).lower())
    if found is None:
        raise FieldError(column, f"true or false is wanted, got {content!r}")
    return found
