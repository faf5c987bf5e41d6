"""The commands of `hwcost` that measure and predict nothing: they list, show and convert what is there.

`hwcost.cli` gathers them; heavy modules are imported inside the commands, so that `--help` is instant.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from hwcost.console import file_type, json_option, note, print_json, print_table, progress, writing
from hwcost.errors import ProfileError, QuantityError
from hwcost.units import parse_seconds

if TYPE_CHECKING:
    from hwcost.profiles import Int8Form, Profile

_Command = TypeVar("_Command", bound=Callable[..., Any])
PROFILES: Final = Path("profiles")
"""Where profiles lie unless the reader says otherwise."""


def duration(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Seconds of an option like `90s`, None where it is not given; raises `click.BadParameter`."""
    try:
        return None if text is None else parse_seconds(text)
    except QuantityError as error:
        raise click.BadParameter(str(error)) from None


def share(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """A share of an option like `2%`, None where it is not given; raises `click.BadParameter`."""
    try:
        found = None if text is None else float(text.removesuffix("%")) / 100
    except ValueError:
        found = -1.0
    if found is None or (text is not None and text.endswith("%") and 0 <= found < 1):
        return found
    raise click.BadParameter(f"a share is a percentage from 0% and below 100%, like 2%; got {text!r}")


@contextmanager
def journal_beside(target: Path, what: str, *, named: str = "") -> Iterator[Path]:
    """The journal of a profile that takes long to make: told where it is resumed or left for that, and deleted once the
    profile is written, which is for the block to do. `what` is the work in words, `named` a part of the file's name.
    """
    from hwcost.runtime import UnusableError

    journal = target.with_name(f"{target.name}{named}.partial.jsonl")
    if journal.exists():
        note(f"resuming the {what} that {journal} holds")
    try:
        yield journal
    except (KeyboardInterrupt, UnusableError):
        if journal.exists():
            note(f"what was done so far is in {journal}: run the same command again to go on from there")
        raise
    journal.unlink(missing_ok=True)


def ssh_options(command: _Command) -> _Command:
    """What reaches another machine; the command gets it as `remote`, None where it is about this machine."""

    @wraps(command)
    def connected(
        *args: Any, ssh: str | None, settings: tuple[str, ...], config: Path | None, python: str | None, **more: Any
    ) -> Any:
        if ssh is None:
            if settings or config or python:
                raise click.UsageError("--ssh-option, --ssh-config and --python are about another machine: add --ssh")
            return command(*args, remote=None, **more)
        from hwcost.ssh import Ssh

        with Ssh(ssh, python=python or "python3", options=settings, config=config, say=note) as remote:
            return command(*args, remote=remote, **more)

    for option in (
        click.option(
            "--python", metavar="PATH", help="The Python there, with numpy and onnxruntime.  [default: python3]"
        ),
        click.option("--ssh-config", "config", type=file_type(dir_okay=False), help="In the place of ~/.ssh/config."),
        click.option(
            "--ssh-option", "settings", multiple=True, metavar="NAME=VALUE", help="An option of ssh's; repeatable."
        ),
        click.option(
            "--ssh", metavar="USER@HOST[:PORT]", help="Time on this machine, through ssh: a name ssh knows will do."
        ),
    ):
        connected = option(connected)
    return cast(_Command, connected)


def standing_measurements(target: Path) -> "Profile | None":
    """The profile that stands at `target`, if one can be read and holds measurements."""
    from hwcost.profiles import read_profile

    try:
        found = read_profile(target) if target.exists() else None
    except ProfileError:
        return None
    return found if found is not None and "measured" in found.sources else None


@click.command()
@click.argument("profile_path", metavar="PROFILE", type=file_type())
@click.option("--plot", type=file_type(dir_okay=False), help="Draw latency against bits: a .svg, .png or .pdf file.")
@json_option
def show(profile_path: Path, plot: Path | None, as_json: bool) -> None:
    """Show a profile: its machine, where its numbers come from, and how each bit-width runs there.

    \b
    Examples:
      hwcost show profiles/rpi4.json
      hwcost show profiles/rpi4.json --plot rpi4.svg
    """
    from hwcost.profiles import read_profile
    from hwcost.report import profile_document, show_profile

    found = read_profile(profile_path)
    if plot is not None:
        from hwcost.plots import write_plot

        with progress(f"Drawing {plot}"), writing(plot):
            write_plot(found, plot)
    if as_json:
        print_json({**profile_document(found, profile_path), **({"plot": str(plot)} if plot else {})})
    else:
        show_profile(found, profile_path, in_full=True)
        if plot is not None:
            print(f"Plot: {plot}")


@click.command()
@json_option
def devices(as_json: bool) -> None:
    """List the device classes, say which one this machine is, and how each one's profile comes about.

    \b
    Example:
      hwcost devices
    """
    from hwcost.devices import HOST, known_devices, load_device, runs_here
    from hwcost.machine import facts_here, host_device_name

    facts = facts_here()
    here = f"{facts.cpu}, {facts.cores} cores; its profile is named {host_device_name(facts)}"
    entries = [(HOST, here, True, ["measured here", "over ssh"])]
    for known in map(load_device, known_devices()):
        mine = runs_here(known, facts)
        ways = ["measured here"] * mine + ["over ssh"] + ["emulated"] * (not mine and known.emulation is not None)
        ways += ["estimated"] * (not mine and known.estimate is not None)
        entries.append((known.name, known.description, mine, ways))
    if as_json:
        names = ("name", "description", "this_machine", "ways")
        print_json({"devices": [dict(zip(names, entry, strict=True)) for entry in entries]})
    else:
        rows = [
            (f"{name} (this machine)" if mine and name != HOST else name, text, " or ".join(ways))
            for name, text, mine, ways in entries
        ]
        print_table("Devices:", ("name", "description", "by `hwcost profile`"), rows)


@click.command()
@json_option
def predictors(as_json: bool) -> None:
    """List the predictors that `hwcost fit` compares.

    \b
    Example:
      hwcost predictors
    """
    from hwcost.predictors import BUILT_IN, load_predictor, predictor_names

    found = [(name, name in BUILT_IN, load_predictor(name).on_request) for name in predictor_names()]
    if as_json:
        keys = ("name", "built_in", "on_request")
        print_json({"predictors": [dict(zip(keys, one, strict=True)) for one in found]})
    else:
        rows = [
            (name, "built in" if own else "of another package", "on request" if asked else "always")
            for name, own, asked in found
        ]
        print_table("Predictors, simplest first:", ("name", "origin", "fitted"), rows)


@click.command()
@click.argument("first", metavar="PROFILE1", type=file_type())
@click.argument("second", metavar="PROFILE2", type=file_type())
@click.option("--predicted", is_flag=True, help="Price what only one of them has by the other's fit.")
@json_option
def compare(first: Path, second: Path, predicted: bool, as_json: bool) -> None:
    """Compare two profiles: machines, ratios of the latencies by family, and where they disagree.

    \b
    Examples:
      hwcost compare profiles/rpi4.json profiles/npu.json
      hwcost compare profiles/monday.json profiles/friday.json --json
    """
    from hwcost.compare import compare_files
    from hwcost.report import show_comparison

    with progress("Comparing"):
        found = compare_files(first, second, predicted=predicted)
    if as_json:
        print_json({"profiles": [str(first), str(second)], **found.document()})
    else:
        show_comparison(found)


@click.command("import")
@click.argument("table", type=file_type())
@click.option("--device", required=True, help="The device's name: small letters, digits and . _ - only.")
@click.option("--out", type=file_type(dir_okay=False), help="The profile to write.  [default: profiles/<device>.json]")
@click.option("--cpu", metavar="TEXT", help="What ran it: processor, runtime and its version.")
@click.option("--overhead", callback=duration, help="Time of one call without operators.  [default: 10us, assumed]")
@click.option(
    "--noise", callback=share, help="Of the latencies, and interval of rows that have none.  [default: 10%, assumed]"
)
@click.option(
    "--int8-form",
    type=click.Choice(["u8u8", "u8s8", "s8s8"]),
    default="s8s8",
    show_default=True,
    help="Number formats of activations and weights in its int8 kernels.",
)
@json_option
def import_(
    table: Path,
    device: str,
    out: Path | None,
    cpu: str | None,
    overhead: float | None,
    noise: float | None,
    int8_form: "Int8Form",
    as_json: bool,
) -> None:
    """Make a profile from a table of measurements, CSV or Parquet, of any runtime or accelerator.

    A row is an operator at a precision: `kind` and a column for each field (kernel as 3x3; blank is the default), or
    `operator` with the text that `hwcost show` prints; `precision` like w4a8; one of `latency_s`, `latency_ms`,
    `latency_us`; and optionally `low` and `high` in the same unit, `realisation`, `native`. The fastest of several rows
    of one operator and precision counts.

    \b
    Examples:
      hwcost import npu.csv --device npu --cpu "NPU of the X1, SDK 2.3" --overhead 40us --noise 2%
      hwcost export profiles/rpi4.json table.csv      the operators of a search, as a table to fill in
    """
    from hwcost.importing import import_profile
    from hwcost.profiles import write_profile
    from hwcost.report import profile_document, show_profile

    target = out or PROFILES / f"{device}.json"
    if standing_measurements(target) is not None:
        raise ProfileError(f"a table never replaces measurements, and {target} holds some: write elsewhere with --out")
    with progress(f"Reading {table}"):
        made = import_profile(table, device, overhead_s=overhead, noise=noise, cpu=cpu, int8_form=int8_form)
    with writing(target):
        write_profile(made, target)
    if as_json:
        print_json(profile_document(made, target))
    else:
        show_profile(made, target)


@click.command()
@click.argument("profile_path", metavar="PROFILE", type=file_type())
@click.argument("table", required=False, type=file_type(dir_okay=False))
@json_option
def export(profile_path: Path, table: Path | None, as_json: bool) -> None:
    """Write a profile's rows as a table that `hwcost import` reads: CSV or Parquet by the suffix, else CSV on stdout.

    A table holds operators, precisions, latencies and intervals; the machine and the samples stay in the profile.

    \b
    Examples:
      hwcost export profiles/rpi4.json | head
      hwcost export profiles/rpi4.json rpi4.parquet
    """
    from hwcost.profiles import read_profile
    from hwcost.tables import table_text, write_table

    if as_json and table is None:
        raise click.UsageError("--json is about a table that was written: name one, like TABLE.csv")
    found = read_profile(profile_path)
    if table is None:
        sys.stdout.write(table_text(found))
        return
    with writing(table):
        write_table(found, table)
    if as_json:
        print_json({"profile": str(profile_path), "table": str(table), "rows": len(found.rows)})
    else:
        print(f"{table}: {len(found.rows)} rows of {found.device}")
