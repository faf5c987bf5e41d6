"""What every command line of this project shares: exit codes, one-line errors, progress, JSON, and guarded writing.

Results go to stdout, everything else (progress, notes, errors) to stderr. Exit codes: 0 done, 1 an error, 2 wrong
usage, 130 interrupted.
"""

import errno
import io
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hwcost.errors import HwcostError, OutputError

Report = Callable[[int, int, str], None]
"""Reports progress: (done, total, what is being done)."""

json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="End with one JSON document, the last line of stdout."
)

_QUIET_S: Final = 10.0
_LONGEST_LINE: Final = 2000
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def file_type(**options: Any) -> "click.Path[Path]":
    """The type of an option that names a file or a folder; `options` are those of `click.Path`."""
    return click.Path(path_type=Path, **options)


def _shown(text: str) -> str:
    """Control characters, of a name in somebody else's file, shown instead of obeyed by the terminal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def note(text: str) -> None:
    """One line for the reader, on stderr."""
    print(_shown(text), file=sys.stderr, flush=True)


def print_json(document: Mapping[str, object]) -> None:
    """One JSON document on one line of stdout; NaN and infinities are refused (`ValueError`)."""
    print(json.dumps(document, allow_nan=False, ensure_ascii=False), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column is left-aligned, the others right-aligned. Nothing is cut in a pipe."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    console.print(_shown(title))
    console.print(table)


@contextmanager
def progress(description: str) -> Iterator[Report]:
    """A progress bar on stderr, gone when the work is done; it moves when what it yields is called, else it pulses.

    Without a terminal: one line when the work begins, and one now and then.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        note(f"{description} ...")
        yield _line_now_and_then(description)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[what]}"), console=console, transient=True) as bars:
        task = bars.add_task(escape(description), total=None, what="")
        yield lambda done, total, what: bars.update(task, completed=done, total=total, what=escape(what))


def _line_now_and_then(description: str) -> Report:
    last_s = time.monotonic()

    def report(done: int, total: int, what: str) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _QUIET_S:
            last_s = time.monotonic()
            note(f"{description}: {done} of {total}, {what}")

    return report


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failed write of `path` into one line that says what to do; raises `OutputError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, HwcostError):
            raise
        reason = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space or write elsewhere" if full else "choose a place that you may write to"
        raise OutputError(f"cannot write {path}: {reason}; {remedy}, nothing was half-written") from error


def _fail(prog: str, message: str) -> int:
    line = " ".join(message.split())
    note(f"{prog}: error: {line if len(line) <= _LONGEST_LINE else f'{line[:_LONGEST_LINE]} ...'}")
    return 1


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"cannot use {error.filename}: {reason}"


def _run(
    command: click.Command, prog: str, arguments: Sequence[str] | None, errors: tuple[type[Exception], ...]
) -> int:
    try:
        result = command.main(
            args=None if arguments is None else list(arguments), prog_name=prog, standalone_mode=False
        )
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        note(f"{prog}: interrupted")
        return 130
    except errors as error:
        return _fail(prog, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(prog, _describe(error))
    return result if isinstance(result, int) else 0


def run_cli(
    command: click.Command,
    prog: str,
    arguments: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (HwcostError,),
) -> NoReturn:
    """Run a command and exit: 0, 1 with one line on stderr, 2 for wrong usage, 130 when interrupted.

    `errors` are the deliberate ones, whose text is shown as it stands; anything unforeseen is one line with a hint
    (`HWCOST_DEBUG=1` shows where it came from).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file may be called what is no text
    debug = f"{prog.upper()}_DEBUG"
    try:
        code = _run(command, prog, arguments, errors)
    except Exception as error:
        if os.environ.get(debug):
            traceback.print_exc()
        code = _fail(prog, f"unexpected {type(error).__name__}: {error} (please report it; {debug}=1 shows where)")
    sys.exit(code)
