"""`hwcost adapt`: a profile of a new device from one that is like it. `hwcost.cli` gathers the command."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwcost.cli_profiles import PROFILES, duration, share, ssh_options, standing_measurements
from hwcost.console import file_type, json_option, note, print_json, progress, writing
from hwcost.errors import ProfileError

if TYPE_CHECKING:
    from hwcost.adapt import Samples
    from hwcost.profiles import Int8Form, Profile
    from hwcost.ssh import Ssh


@click.command()
@click.option(
    "--from", "source_path", type=file_type(), required=True, help="The profile of a device that is like the new one."
)
@click.option("--device", required=True, help="The new device's name: small letters, digits and . _ - only.")
@click.option("--out", type=file_type(dir_okay=False), help="The profile to write.  [default: profiles/<device>.json]")
@click.option(
    "--samples", type=click.IntRange(1, 5000), help="How many operators to measure on this machine.  [default: 20]"
)
@click.option("--budget", callback=duration, help="Time to measure for, after one timing of each.  [default: 1m]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads per run.  [default: 1]")
@click.option(
    "--measurements", type=file_type(), metavar="TABLE", help="Take measurements from a table (CSV, Parquet) instead."
)
@click.option("--cpu", metavar="TEXT", help="With a table: what ran it, processor, runtime and its version.")
@click.option("--overhead", callback=duration, help="With a table: time of one call without operators.")
@click.option("--noise", callback=share, help="With a table: of latencies that have no interval.  [default: 10%]")
@click.option(
    "--int8-form",
    type=click.Choice(["u8u8", "u8s8", "s8s8"]),
    help="With a table: number formats of activations and weights in its int8 kernels.  [default: the profile's]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice, weights and order.")
@ssh_options
@json_option
def adapt(
    source_path: Path,
    device: str,
    out: Path | None,
    samples: int | None,
    budget: float | None,
    threads: int | None,
    measurements: Path | None,
    cpu: str | None,
    overhead: float | None,
    noise: float | None,
    int8_form: "Int8Form | None",
    seed: int,
    remote: "Ssh | None",
    as_json: bool,
) -> None:
    """Make a profile of a device from that of a similar one and a few measurements.

    Operators that say most of all others are measured here, or read from a table as `hwcost import` takes it. The rest
    of the other device's rows, and its fit if there is one, are shifted by the ratios found: `source: adapted`, with
    intervals that are narrow where something like it was measured, and wide where nothing was.

    \b
    Examples:
      hwcost adapt --from profiles/rpi4.json --device this-board
      hwcost adapt --from profiles/rpi4.json --device rock --ssh me@rock.local --samples 20
      hwcost adapt --from profiles/rpi4.json --device rpi5 --measurements twenty.csv
    """
    from hwcost.adapt import adapt_profile, read_samples
    from hwcost.fit import fit_path, read_fit, write_fit
    from hwcost.profiles import check_device_name, read_profile, write_profile
    from hwcost.report import profile_document, show_profile

    here: dict[str, object] = {"--samples": samples, "--budget": budget, "--threads": threads, "--ssh": remote}
    of_table = {"--cpu": cpu, "--overhead": overhead, "--noise": noise, "--int8-form": int8_form}
    needless = [name for name, value in (here if measurements else of_table).items() if value is not None]
    if needless:
        raise click.UsageError(
            f"{needless[0]} is for {'measuring a machine' if measurements else 'a table'}: leave it out, or "
            f"{'leave out' if measurements else 'add'} --measurements"
        )
    check_device_name(device)
    target = out or PROFILES / f"{device}.json"
    standing = standing_measurements(target)
    if target.resolve() == source_path.resolve() or (standing is not None and "adapted" not in standing.sources):
        raise ProfileError(
            f"an adapted profile never replaces the one it comes from, or a measured one, and {target} is such: write "
            "it elsewhere with --out"
        )
    source, fitted_path = read_profile(source_path), fit_path(source_path)
    fit = read_fit(fitted_path) if fitted_path.exists() else None
    if fit is not None and fit.profile_digest != source.digest:
        raise ProfileError(f"{fitted_path} is a fit of another state of {source_path}: run `hwcost fit {source_path}`")
    if measurements is not None:
        with progress(f"Reading {measurements}"):
            found = read_samples(measurements, source, noise=noise, overhead_s=overhead, cpu=cpu, int8_form=int8_form)
    else:
        found = _measure(source, device, samples, budget, threads, seed, remote)
    with progress("Adapting"):
        made, shifted = adapt_profile(source, found, device, fit)
    with writing(target):
        write_profile(made, target)
    fit_target = fit_path(target)
    if shifted is not None:
        with writing(fit_target):
            write_fit(shifted, fit_target)
    else:
        fit_target.unlink(missing_ok=True)  # of an older profile
        note(f"{source_path} has no fit to take along: run `hwcost fit {target}`")
    if as_json:
        print_json(profile_document(made, target) | {"fit": None if shifted is None else str(fit_target)})
    else:
        show_profile(made, target)


def _measure(
    source: "Profile",
    device: str,
    samples: int | None,
    budget: float | None,
    threads: int | None,
    seed: int,
    remote: "Ssh | None",
) -> "Samples":
    """On this machine, in processes of their own, or over ssh; raises `ProfileError` for another machine's name."""
    from hwcost.adapt import DEFAULT_SAMPLES, measure_samples
    from hwcost.devices import known_devices, load_device, runs_here
    from hwcost.machine import facts_here
    from hwcost.pipe import Piped
    from hwcost.timing import Timings

    facts = facts_here() if remote is None else remote.facts()
    if device in known_devices() and not runs_here(load_device(device), facts):
        raise ProfileError(
            f"{facts.cpu} is measured, and it is no {device}: name it otherwise, or hand in a table of measurements "
            "of that device with --measurements"
        )
    with progress("Measuring") as report, Piped() as here:
        return measure_samples(
            source,
            DEFAULT_SAMPLES if samples is None else samples,
            budget_s=60.0 if budget is None else budget,
            threads=threads or 1,
            seed=seed,
            progress=report,
            timings=Timings(remote or here, note),
        )
