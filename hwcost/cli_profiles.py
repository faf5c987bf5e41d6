"""The commands of `hwcost` that measure and predict nothing: they list, show and convert what is there.

`hwcost.cli` gathers them; heavy modules are imported inside the commands, so that `--help` is instant.
"""

from pathlib import Path

import click

from hwcost.console import file_type, json_option, print_json, print_table


@click.command()
@click.argument("profile_path", metavar="PROFILE", type=file_type())
@json_option
def show(profile_path: Path, as_json: bool) -> None:
    """Show a profile: its machine, where its numbers come from, and how each bit-width runs there.

    \b
    Example:
      hwcost show profiles/rpi4.json
    """
    from hwcost.profiles import read_profile
    from hwcost.report import profile_document, show_profile

    found = read_profile(profile_path)
    if as_json:
        print_json(profile_document(found, profile_path))
    else:
        show_profile(found, profile_path)


@click.command()
@json_option
def devices(as_json: bool) -> None:
    """List the device classes, and mark what this machine is.

    \b
    Example:
      hwcost devices
    """
    from hwcost.devices import HOST, known_devices, load_device, runs_here
    from hwcost.machine import detect_machine, host_device_name

    machine = detect_machine()
    here = f"{machine.cpu}, {machine.cores} cores; its profile is named {host_device_name()}"
    entries = [(HOST, here, True)]
    entries += [(known.name, known.description, runs_here(known)) for known in map(load_device, known_devices())]
    if as_json:
        names = ("name", "description", "this_machine")
        print_json({"devices": [dict(zip(names, entry, strict=True)) for entry in entries]})
    else:
        rows = [(name, text, "measured here" if mine else "estimated here") for name, text, mine in entries]
        print_table("Devices:", ("name", "description", "by `hwcost profile`"), rows)


@click.command()
@json_option
def predictors(as_json: bool) -> None:
    """List the predictors that `hwcost fit` compares.

    \b
    Example:
      hwcost predictors
    """
    from hwcost.predictors import BUILT_IN, predictor_names

    names = predictor_names()
    if as_json:
        print_json({"predictors": [{"name": name, "built_in": name in BUILT_IN} for name in names]})
    else:
        rows = [(name, "built in" if name in BUILT_IN else "of another package") for name in names]
        print_table("Predictors, simplest first:", ("name", "origin"), rows)
