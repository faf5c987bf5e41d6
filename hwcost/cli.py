"""The `hwcost` command: profile a device, fit predictors, predict and check models; more in `hwcost.cli_profiles`.

Commands only translate between the reader and the library. Heavy modules are imported inside the commands, so that
`--help` is instant.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hwcost.cli_absent import emulator, profile_absent, way_options
from hwcost.cli_adapt import adapt
from hwcost.cli_profiles import (
    PROFILES,
    compare,
    devices,
    duration,
    export,
    import_,
    journal_beside,
    predictors,
    show,
    ssh_options,
    standing_measurements,
)
from hwcost.console import file_type, json_option, note, print_json, progress, run_cli, writing
from hwcost.errors import FitError, MeasurementError, ModelError

if TYPE_CHECKING:
    from hwcost.check import Prediction
    from hwcost.cli_absent import Way
    from hwcost.devices import DeviceClass
    from hwcost.machine import Facts
    from hwcost.profiles import Profile
    from hwcost.ssh import Ssh

Sizes = tuple[int, ...]
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _sizes(text: str) -> Sizes:
    """`3,32,32` as numbers; raises `click.BadParameter`."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise click.BadParameter(f"sizes are positive numbers with commas between, like 3,32,32; got {text!r}")
    return sizes


def _images(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    images = []
    for sizes in map(_sizes, texts):
        if len(sizes) != 3:
            raise click.BadParameter(f"an image is channels,height,width, got {','.join(map(str, sizes))}")
        images.append((sizes[0], sizes[1], sizes[2]))
    return tuple(images)


def _shapes(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, Sizes]:
    shapes = {}
    for text in texts:
        name, _equals, sizes = text.rpartition("=")
        if not name:
            raise click.BadParameter(f"a shape is written name=1,3,224,224; got {text!r}")
        shapes[name] = _sizes(sizes) if sizes else ()
    return shapes


def _model_options(command: _Command) -> _Command:
    """What `predict` and `check` both take."""
    for option in (
        click.option(
            "--allow-uncovered", is_flag=True, help="Leave out operators without a price, and say their share."
        ),
        click.option("--bits", type=click.Choice(["8", "32"]), help="Refuse a model whose weights are of other bits."),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            callback=_shapes,
            metavar="NAME=N,C,H,W",
            help="Shape of an input that the model leaves open; repeatable.",
        ),
        click.option(
            "--profile",
            "profile_path",
            type=file_type(),
            required=True,
            help="The device's profile; its fit is read from beside it.",
        ),
        click.argument("model", type=file_type()),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="faqs-hwcost")
def cli() -> None:
    """Measure and predict what neural-network operators cost on a device, at 32, 8, 4 and 2 bits.

    \b
    Example: from nothing to a prediction beside its measurement
      hwcost profile && hwcost fit
      hwcost check model.onnx --profile profiles/<this machine>.json
    """


@cli.command()
@click.option(
    "--device",
    default="host",
    show_default=True,
    help="A name of `hwcost devices`; `host` is whatever is measured. With --ssh, also a name of your own.",
)
@click.option("--out", type=file_type(dir_okay=False), help="The profile to write.  [default: profiles/<device>.json]")
@click.option(
    "--budget",
    default="7m",
    show_default=True,
    callback=duration,
    help="Time to measure for, at least one pass over the search spaces.",
)
@click.option(
    "--passes",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="Timings of an operator at most; two that agree are enough.",
)
@click.option(
    "--samples",
    type=click.IntRange(0, 5000),
    help="Operators of other networks, beside those of the search spaces.  [default: what four fifths of the budget "
    "allow, most of the families that are hardest to predict]",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=file_type(dir_okay=False),
    metavar="MODEL.onnx",
    help="Measure what this model executes here, too; repeatable.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    default=("1,8,8", "3,32,32"),
    show_default=True,
    callback=_images,
    metavar="C,H,W",
    help="Image size whose whole search space is profiled; repeatable.",
)
@click.option("--precision", "precisions", multiple=True, help="Only this one, like w8a8; repeatable.  [default: all]")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads per run.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sample, weights and order.")
@ssh_options
@way_options
@json_option
def profile(
    device: str,
    out: Path | None,
    budget: float,
    passes: int,
    samples: int | None,
    models: tuple[Path, ...],
    images: tuple[tuple[int, int, int], ...],
    precisions: tuple[str, ...],
    threads: int,
    seed: int,
    remote: "Ssh | None",
    way: "Way | None",
    as_json: bool,
) -> None:
    """Measure a device's operators, here or over ssh; where it is not at hand, write the emulated profile that is
    shipped, or emulate it, or estimate it.

    \b
    Examples:
      hwcost profile                  measure this machine, and name the profile after it
      hwcost profile --budget 20s     the same in a hurry: fewer operators of other networks
      hwcost profile --device rpi4    on a Pi 4: measure; elsewhere: an emulated profile that says so
      hwcost profile --device rpi4 --emulate
                                      emulate it anew, after `hwcost emulator --install`
      hwcost profile --device rpi4 --ssh pi@raspberrypi.local
                                      measure that Pi 4, which needs Python with numpy and onnxruntime
      hwcost profile --device my-board --ssh me@board:2222 --python /srv/venv/bin/python
                                      measure whatever that is, and call it so

    An interrupted measurement resumes when the same command is run again.
    """
    from hwcost.devices import HOST
    from hwcost.machine import facts_here, host_device_name
    from hwcost.ops import Precision
    from hwcost.report import profile_document, show_profile
    from hwcost.sampling import default_operators, prior_operators

    wanted = tuple(map(Precision.parse, precisions)) or None
    facts = facts_here() if remote is None else remote.facts()
    known, measured = _device(device, facts, remote, way)
    name = host_device_name(facts) if device == HOST else device
    target = out or PROFILES / f"{name}.json"
    if measured:
        from hwcost.measure import profile_machine
        from hwcost.model import read_model
        from hwcost.whole import affordable_networks

        made = _measure(
            target,
            threads,
            remote,
            partial(
                profile_machine,
                default_operators(images, seed, 0),
                device=name,
                precisions=wanted,
                sampled=prior_operators(seed, samples or 0),
                exact=[
                    (op, precision) for model in models for _, op, precision in read_model(model, runtime=remote).layers
                ],
                networks=affordable_networks(budget) if samples is None and wanted is None else 0,
                widen=samples is None,
                passes=passes,
                seed=seed,
                threads=threads,
                budget_s=budget,
                skip_unsupported=True,
            ),
        )
    elif known is not None and threads == 1:
        made = profile_absent(
            known, target, way, images=images, samples=samples, models=models, precisions=wanted, seed=seed
        )
    else:
        raise click.UsageError(
            f"{name} is not this machine, and what is not measured is for one thread: measure it with --ssh, or leave "
            "out --threads"
        )
    if as_json:
        print_json(profile_document(made, target))
    else:
        show_profile(made, target)


def _device(name: str, facts: "Facts", remote: "Ssh | None", way: "Way | None") -> tuple["DeviceClass | None", bool]:
    """The class of that name, None where a machine is measured whatever it is; and whether it is measured, which it is
    not where the reader asks for another way.

    Raises `UnknownDeviceError`, and `MeasurementError` where the machine at the other end is of another class.
    """
    from hwcost.devices import HOST, check_name, class_of, known_devices, load_device, runs_here

    if way is not None:
        if remote is not None or name == HOST:
            raise click.UsageError(f"--{way} is of a device that is not at hand: name its class, and leave out --ssh")
        return load_device(name), False
    if name == HOST or (remote is not None and name not in known_devices()):
        check_name(name)
        return None, True
    known = load_device(name)
    if runs_here(known, facts):
        return known, True
    if remote is not None:
        other = class_of(facts)
        raise MeasurementError(
            f"--device {name} is for a {known.description}, {remote.target} is a {facts.cpu}: to measure it all the "
            f"same, give it another name, like --device {other or 'my-board'}, or --device {HOST}"
        )
    return known, False


def _measure(target: Path, threads: int, remote: "Ssh | None", measured: Callable[..., "Profile"]) -> "Profile":
    """Time a machine, in processes of their own, keeping a journal beside the profile until that is written.

    `measured` is `profile_machine`, all but where the timings come from. Operators that an older profile of this
    machine has and this one does not are kept; a measured profile of another machine is never replaced (`ProfileError`,
    before anything is timed).
    """
    from hwcost.machine import detect_machine
    from hwcost.pipe import Piped
    from hwcost.profiles import write_profile

    older = standing_measurements(target)
    if older is not None:
        older.check_same_machine(detect_machine(threads, remote.facts() if remote else None))
    with journal_beside(target, "measurement") as journal:
        with progress(f"Measuring {remote.target}" if remote else "Measuring") as report, Piped() as here:
            made = measured(journal=journal, progress=report, runtime=remote or here, say=note)
        if older is not None:
            made = made.with_rows_of(older)
        with writing(target):
            write_profile(made, target)
    return made


@cli.command()
@click.argument("profiles", nargs=-1, type=file_type(dir_okay=False))
@click.option(
    "--profiles",
    "folder",
    type=file_type(file_okay=False),
    default=PROFILES,
    show_default=True,
    help="Folder whose profiles are all fitted when none is named.",
)
@click.option(
    "--predictor",
    "names",
    multiple=True,
    help="Only this one, beside the baselines; repeatable.  [default: all but those on request]",
)
@click.option("--folds", type=click.IntRange(2, 100), default=5, show_default=True, help="Of the cross-validation.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the folds and the predictors.")
@json_option
def fit(profiles: tuple[Path, ...], folder: Path, names: tuple[str, ...], folds: int, seed: int, as_json: bool) -> None:
    """Fit predictors on profiles, and say how good they are on operators that they have not seen.

    All predictors are cross-validated per operator family and precision; the best is kept beside the profile.

    \b
    Examples:
      hwcost fit                                every profile in profiles/
      hwcost fit profiles/rpi4.json --json      one of them
      hwcost fit --predictor linear             one predictor beside the baselines
    """
    from hwcost.fit import fit_path, fit_profile, write_fit
    from hwcost.profiles import read_profile
    from hwcost.report import show_fit

    paths = profiles or tuple(sorted(folder.glob("*.json")))
    if not paths:
        raise FitError(f"a fit needs a profile, got none in {folder}: make one with `hwcost profile`")
    documents: list[dict[str, Any]] = []
    for path in paths:
        found = read_profile(path)
        with progress(f"Fitting {found.device}") as report:
            fitted = fit_profile(found, names=names or None, seed=seed, folds=folds, progress=report)
        target = fit_path(path)
        with writing(target):
            write_fit(fitted, target)
        if not as_json:
            show_fit(found, fitted, target)
        families = [entry.model_dump(mode="json") for entry in fitted.report]
        documents.append({"profile": str(path), "device": found.device, "fit": str(target), "families": families})
    if as_json:
        print_json({"fits": documents})


@cli.command()
@_model_options
@json_option
def predict(
    model: Path, profile_path: Path, shapes: dict[str, Sizes], bits: str | None, allow_uncovered: bool, as_json: bool
) -> None:
    """Predict how long one run of an ONNX model takes on a profiled device.

    \b
    Example:
      hwcost predict model.onnx --profile profiles/rpi4.json --shape input=1,3,224,224
    """
    from hwcost.check import predict_model
    from hwcost.pricing import load_cost_model
    from hwcost.report import show_prediction

    cost_model = load_cost_model(profile_path)
    with progress(f"Reading {model}"):
        prediction = predict_model(model, cost_model, shapes=shapes, allow_uncovered=allow_uncovered)
    _expect_bits(prediction, bits)
    _warn(prediction)
    if as_json:
        print_json(prediction.document())
    else:
        show_prediction(prediction)


@cli.command()
@_model_options
@click.option("--time", default="2s", show_default=True, callback=duration, help="How long to run the model.")
@click.option(
    "--passes", type=click.IntRange(1, 100), default=3, show_default=True, help="Sessions; the fastest run counts."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the inputs.")
@ssh_options
@json_option
def check(
    model: Path,
    profile_path: Path,
    shapes: dict[str, Sizes],
    bits: str | None,
    allow_uncovered: bool,
    time: float,
    passes: int,
    seed: int,
    remote: "Ssh | None",
    as_json: bool,
) -> None:
    """Predict a model, run it here or over ssh, and show both; the profile has to be of the machine that runs it.

    \b
    Examples:
      hwcost check model.onnx --profile profiles/<this machine>.json
      hwcost check model.onnx --profile profiles/rpi4.json --ssh pi@raspberrypi.local
    """
    from hwcost.check import check_model
    from hwcost.pricing import load_cost_model
    from hwcost.report import show_check

    cost_model = load_cost_model(profile_path)
    with progress(f"Running {model}"):
        checked = check_model(
            model,
            cost_model,
            shapes=shapes,
            allow_uncovered=allow_uncovered,
            seconds=time,
            passes=passes,
            seed=seed,
            runtime=remote,
        )
    _expect_bits(checked.prediction, bits)
    _warn(checked.prediction)
    if as_json:
        print_json(checked.document())
    else:
        show_check(checked)


def _warn(prediction: "Prediction") -> None:
    for warning in prediction.warnings:
        note(f"hwcost: warning: {warning}")


def _expect_bits(prediction: "Prediction", bits: str | None) -> None:
    if bits is not None and prediction.bits != int(bits):
        raise ModelError(
            f"--bits {bits} asks for a model of mostly {bits}-bit weights, {prediction.model} has {prediction.bits}: "
            "leave --bits out, or export the model at that width"
        )


for _command in (adapt, show, devices, emulator, predictors, compare, import_, export):
    cli.add_command(_command)


def main() -> None:
    """Entry point of the `hwcost` command."""
    run_cli(cli, "hwcost")


if __name__ == "__main__":
    main()
