"""The commands of `hwcost` for a device that is not at hand: what is written in place of measurements, and with what.

Emulation is closest to a device: its own kernels, executed. A device class that was emulated once ships the result, so
that everybody has it without the tools. Otherwise there is the analytic estimate. Whichever it is, the reader is told.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from hwcost.cli_profiles import journal_beside, standing_measurements
from hwcost.console import json_option, note, print_json, progress, writing
from hwcost.errors import ProfileError, UnsupportedPrecisionError

if TYPE_CHECKING:
    from hwcost.devices import DeviceClass
    from hwcost.ops import Precision
    from hwcost.profiles import Profile

Way = Literal["emulate", "estimate"]
_Command = TypeVar("_Command", bound=Callable[..., Any])

_ESTIMATED: Final = 500
"""Operators of other networks in an estimate: an analytic model has no more to tell."""
_EMULATED: Final = 760
"""Operators of other networks that are emulated, at all precisions: about a second each, half an hour in all."""
_EMULATED_WORK: Final = 1e7
"""Multiply-accumulates that take about a second under emulation, at every precision: larger operators are rarer."""


def way_options(command: _Command) -> _Command:
    """How a profile is made of a device that is not this machine; `way` is None where the reader does not say."""
    command = click.option(
        "--estimate",
        "way",
        flag_value="estimate",
        help="Estimate the device analytically, even where better is shipped.",
    )(command)
    return click.option(
        "--emulate",
        "way",
        flag_value="emulate",
        help="Run its kernels under emulation (`hwcost emulator`), and price their instructions.",
    )(command)


def profile_absent(
    device: "DeviceClass",
    target: Path,
    way: Way | None,
    *,
    images: Sequence[tuple[int, int, int]],
    samples: int | None,
    models: Sequence[Path],
    precisions: "tuple[Precision, ...] | None",
    seed: int,
) -> "Profile":
    """Write a profile of a device that is not this machine, and say plainly what it is.

    Raises `ProfileError` where it would replace measurements.
    """
    from hwcost.estimate import estimate_profile
    from hwcost.profiles import write_profile
    from hwcost.sampling import default_operators, spread_operators

    if standing_measurements(target) is not None:
        raise ProfileError(
            f"only measurements replace measurements, and {target} holds some: write elsewhere with --out"
        )
    if way == "emulate":
        from hwcost.emulation.profiling import emulate_profile

        emulated = partial(
            emulate_profile,
            device,
            default_operators(images, seed, 0),
            sampled=spread_operators(seed, _EMULATED if samples is None else samples, _EMULATED_WORK),
            models=models,
            precisions=precisions,
            seed=seed,
        )
        return _emulate(device, target, emulated)
    if models:
        raise click.UsageError(
            f"{device.name} is not this machine, so a model is executed for it with --emulate or measured with --ssh: "
            "add one of them, or leave out --model"
        )
    made = shipped_profile(device, precisions) if way is None else None
    if made is not None:
        what = (
            f"the emulated profile that this package ships: the kernels of {device.description}, executed under "
            "emulation and priced by a model of its core. It is"
        )
    else:
        count = _ESTIMATED if samples is None else samples
        made = estimate_profile(device, default_operators(images, seed, count), precisions=precisions)
        what = f"estimates from an analytic model of {device.description}. They are"
    with writing(target):
        write_profile(made, target)
    note(
        f"{device.name} is not this machine, so nothing was timed: {target} holds {what} good for ratios and ranking, "
        "each within a wide interval, not for milliseconds. To measure for real, run the same command on the board, or "
        "here with --ssh USER@BOARD."
    )
    return made


def shipped_profile(device: "DeviceClass", precisions: "tuple[Precision, ...] | None" = None) -> "Profile | None":
    """What was emulated of this class when the package was made, all of it or these precisions; None if nothing was.

    Raises `UnsupportedPrecisionError` where it has none of them.
    """
    from importlib.resources import as_file, files

    from hwcost.profiles import read_profile

    entry = files("hwcost") / "devices" / f"{device.name}.profile.json"
    if not entry.is_file():
        return None
    with as_file(entry) as path:
        found = read_profile(path)
    if precisions is None:
        return found
    rows = tuple(row for row in found.rows if row.precision in precisions)
    if not rows:
        raise UnsupportedPrecisionError(
            f"a profile holds precisions that have a kernel, got {', '.join(map(str, precisions))}: "
            "ask for w8a8, narrower weights run on its kernels"
        )
    return found.changed(rows=rows)


def _emulate(device: "DeviceClass", target: Path, emulated: Callable[..., "Profile"]) -> "Profile":
    """Emulate and write, with a journal to resume from."""
    from hwcost.profiles import write_profile

    with journal_beside(target, "emulation", named=".emulated") as journal:
        with progress(f"Emulating {device.name}") as report:
            made = emulated(journal=journal, progress=report)
        with writing(target):
            write_profile(made, target)
    note(
        f"{device.name} was emulated, not timed: {target} holds what a model of its core says of the kernels that it "
        "would execute. Good for ratios and ranking, each within an interval, not for milliseconds. To measure for "
        "real, run this without --emulate on the board, or here with --ssh USER@BOARD."
    )
    return made


@click.command()
@click.option("--install", is_flag=True, help="Bring what is missing, saying what.")
@json_option
def emulator(install: bool, as_json: bool) -> None:
    """Tell whether the tools for `hwcost profile --emulate` are here, or install them. Linux only.

    These are QEMU, llvm and a C compiler, from the system's packages (as root; else the command to run is printed), and
    a small system for the emulated architecture in your cache folder, about 200 MB: Debian packages unpacked beside
    each other, onnxruntime and numpy. Nothing of it is installed into the system.

    \b
    Examples:
      hwcost emulator               what is missing
      hwcost emulator --install     bring it
    """
    from hwcost.devices import known_devices, load_device
    from hwcost.emulation.tools import Tools

    tools = Tools.here()
    if install:
        tools.install(note)
    missing = tools.missing()
    classes = [name for name in known_devices() if load_device(name).emulation is not None]
    if as_json:
        print_json({"ready": not missing, "missing": missing, "folder": str(tools.folder), "devices": classes})
    elif missing:
        print(f"Missing: {'; '.join(missing)}.\n`hwcost emulator --install` brings it.")
    else:
        print(f"Ready: {tools.folder}\nDevices that can be emulated: {', '.join(classes)}")
