"""Operators as text, and back: the inverse of `hwcost.ops.key`, and one cell per field for tables.

Everything follows from the fields and types of the dataclasses in `hwcost.ops`: a new kind of operator, or a new field,
is read and written without a word here.
"""

import ast
import json
import re
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hwcost.errors import FieldError, InvalidOperatorError
from hwcost.ops import Operator

KINDS: Final[dict[str, type[Any]]] = {cls.kind: cls for cls in get_args(get_args(Operator)[0])}
"""`conv`, `gemm`, ... -> the dataclass."""

_ANYTHING: Final = TypeAdapter[Any](Any)

Cell = str | int | float | bool | None
"""What a table can hold; None is blank."""


@cache
def field_types(kind: str) -> dict[str, Any]:
    """Field -> type of a kind of operator, in order, `kind` itself left out; raises `FieldError`."""
    if kind not in KINDS:
        raise FieldError("kind", f"an operator is one of {', '.join(KINDS)}, got {kind!r}")
    hints = get_type_hints(KINDS[kind])
    return {field.name: hints[field.name] for field in fields(KINDS[kind]) if field.name != "kind"}


def parse_key(text: str) -> Operator:
    """The operator whose `hwcost.ops.key` this is; fields that are left out have their defaults.

    A key holds no spaces, so neither do the texts of the operator that comes back. Raises `InvalidOperatorError`.
    """
    found = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", text, re.DOTALL)
    if found is None:
        raise InvalidOperatorError(f"an operator is written like gemm(m=1,k=64,n=10), got {text!r}")
    kind, body = found[1], found[2]
    types_of = field_types(kind)
    starts = list(re.finditer(rf"(?:^|,)\s*({'|'.join(types_of)})\s*=", body))
    if body.strip() and (not starts or body[: starts[0].start()].strip()):
        raise InvalidOperatorError(f"the fields of a {kind} are {', '.join(types_of)}, got {text!r}")
    values: dict[str, Any] = {}
    for start, stop in zip(starts, [*(after.start() for after in starts[1:]), len(body)], strict=False):
        if start[1] in values:
            raise FieldError(start[1], f"a field of an operator is given once, got it twice in {text!r}")
        values[start[1]] = _literal(body[start.end() : stop].strip(), types_of[start[1]])
    return _build(kind, values)


def operator_cells(op: Operator) -> dict[str, Cell]:
    """`kind` and every field; blank where an empty text or list is the default. `operator_from_cells` reads it."""
    cells: dict[str, Cell] = {"kind": op.kind}
    for field in fields(op):
        value = getattr(op, field.name)
        if field.name != "kind":
            cells[field.name] = None if value in ("", ()) and value == field.default else cell(value)
    return cells


def operator_from_cells(kind: str, cells: Mapping[str, Any]) -> Operator:
    """An operator from cells that are not blank: typed values, or texts as `operator_cells` writes them; lists of
    numbers also with commas, `3,3`. Raises `FieldError`."""
    types_of = field_types(kind)
    for name in cells:
        if name not in types_of:
            raise FieldError(name, f"a {kind} has no such field, so the cell is blank there, got {cells[name]!r}")
    return _build(kind, {name: _value(content, types_of[name]) for name, content in cells.items()})


def cell(value: Any) -> Cell:
    """One value as a cell: numbers as they are, whole numbers of a list as `1x2x3`, anything deeper as JSON, and so
    texts that would be taken for something else."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        plain = value.isprintable() and value == value.strip() and not value.startswith('"')
        return value if value and plain else json.dumps(value)
    if isinstance(value, tuple) and value and all(type(part) is int and part >= 0 for part in value):
        return "x".join(map(str, value))
    return _ANYTHING.dump_json(value).decode()


def text_of(content: str) -> str:
    """The text that `cell` wrote."""
    try:
        found = json.loads(content) if content.startswith('"') else content
    except ValueError:
        return content
    return str(found)


def _is_text(hint: Any) -> bool:
    return hint is str or (get_origin(hint) is Literal and all(isinstance(value, str) for value in get_args(hint)))


def _is_numbers(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(map(_is_numbers, get_args(hint)))
    return get_origin(hint) is tuple and set(get_args(hint)) <= {int, float, ...}


def _value(content: Any, hint: Any) -> Any:
    """What a cell says, as far as a text has to be taken apart; the numbers in it are left to pydantic."""
    if not isinstance(content, str):
        return content
    if _is_text(hint):
        return text_of(content)
    if content == "null" or content[:1] in ("[", "{", '"'):
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return content
    return re.split(r"\s*[x,]\s*", content) if _is_numbers(hint) else content


def _literal(text: str, hint: Any) -> Any:
    """A value within a key, which is written by `str`."""
    if _is_text(hint):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(KINDS[kind])


def _build(kind: str, values: dict[str, Any]) -> Operator:
    try:
        op: Operator = _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise FieldError("", message) from None
        name = str(first["loc"][0])
        if name not in values:
            raise FieldError(name, f"a {kind} needs it, got nothing") from None
        raise FieldError(name, f"{_rule(field_types(kind).get(name), message)}, got {values[name]!r}") from None
    return op


def _rule(hint: Any, message: str) -> str:
    if hint is int:
        return "a whole number is wanted"
    if get_origin(hint) is tuple and set(get_args(hint)) <= {int, ...}:
        parts = get_args(hint)
        example = "x".join("3" * (3 if ... in parts else len(parts)))
        return f"{'' if ... in parts else f'{len(parts)} '}whole numbers like {example} are wanted"
    return message
