"""The `faqs` command: search, and what can be done again with a finished run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwcost import format_bytes, format_seconds, note, print_json, print_table, progress, run_cli, writing

if TYPE_CHECKING:
    from faqs.config import SearchConfig
    from faqs.runs import RoundReport, RunFolder

_json = click.option("--json", "as_json", is_flag=True, help="End with one JSON document, the last line of stdout.")


def _file(**options: Any) -> "click.Path[Path]":
    return click.Path(path_type=Path, **options)


_run = click.argument("run", type=_file())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="faqs-hwcost")
def cli() -> None:
    """Find, in a federation, one quantised network per client: each within its own budget on its own device.

    \b
    Example: four clients on the embedded digits, priced for a Raspberry Pi 4
      hwcost profile --device rpi4 && hwcost fit
      faqs search --profile profiles/rpi4.json --budget latency=5ms --out runs/first
      faqs show runs/first
    """


@cli.command()
@click.option(
    "--profile", "profiles", multiple=True, help="Profile of a device; several are dealt to the clients in turn."
)
@click.option("--data", help="`digits` (embedded), or an .npz or .parquet file.  [default: digits]")
@click.option("--clients", type=int, help="How many clients share the data.  [default: 4]")
@click.option("--alpha", type=float, help="Dirichlet parameter of the split: small is uneven.  [default: 0.5]")
@click.option("--rounds", type=click.IntRange(1, 100_000), help="Rounds of the federation.  [default: 8]")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="[CLIENT:]NAME=VALUE",
    help="Hard limit for all clients or one: latency=5ms, size=100kB, energy=2mJ, activations=50kB, 2:size=20kB; "
    "repeatable.",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="[CLIENT:]NAME=NUMBER",
    help="Weight of log(cost) in a client's Pareto loss: latency=0.1; repeatable.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Of the split, the weights and everything random.  [default: 0]"
)
@click.option("--out", type=_file(), help="The run folder, new or empty.  [default: runs/<date-time>]")
@click.option("--resume", type=_file(), help="Go on with this run folder, with its own configuration.")
@click.option("--config", "config_path", type=_file(), help="A TOML file; options given here win over it.")
@_json
def search(
    profiles: tuple[str, ...],
    data: str | None,
    clients: int | None,
    alpha: float | None,
    rounds: int | None,
    budgets: tuple[str, ...],
    weights: tuple[str, ...],
    seed: int | None,
    out: Path | None,
    resume: Path | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Search, personalise, export, check and report.

    A run that was killed goes on with --resume RUN to the same result, from its last finished round.

    \b
    Examples:
      faqs search --profile profiles/rpi4.json
      faqs search --profile profiles/host.json --budget latency=2ms --budget 0:size=20kB --seed 1 --json
      faqs search --profile profiles/host.json --data train.parquet --clients 10 --rounds 40 --out runs/cifar
      faqs search --resume runs/cifar
    """
    given: dict[str, Any] = {"data": data, "clients": clients, "alpha": alpha, "rounds": rounds, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    if resume is not None:
        if given or profiles or budgets or weights or out or config_path:
            raise click.UsageError("--resume goes on with the run's own configuration: give no other option but --json")
        run = _open(resume)
    else:
        config = _configure(given, profiles, budgets, weights, config_path)
        run = _create(config, out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    _search(run)
    _finish(run)
    _print_run(run, as_json)


def _open(path: Path) -> "RunFolder":
    from faqs.runs import RunFolder

    return RunFolder.open(path)


def _create(config: "SearchConfig", folder: Path) -> "RunFolder":
    from faqs.prepare import prepare

    prepared = prepare(config)
    from faqs.runs import RunFolder  # loads torch: after everything that can be wrong with the input

    with writing(folder):
        return RunFolder.create(folder, config, prepared)


def _configure(
    given: dict[str, Any],
    profiles: tuple[str, ...],
    budgets: tuple[str, ...],
    weights: tuple[str, ...],
    config_path: Path | None,
) -> "SearchConfig":
    """The file, the options over it, validated."""
    from faqs.config import SearchConfig, parse_config, read_toml

    fields = read_toml(config_path) if config_path is not None else {}
    fields.update(given)
    if profiles:
        fields["profiles"] = list(profiles)
    count = fields.get("clients", len(fields.get("client", [])) or SearchConfig().clients)
    own = [dict(entry) for entry in fields.get("client", [])]
    for option, texts in (("budget", budgets), ("weights", weights)):
        for text in texts:
            client, name, value = _preference(text, option, count)
            if client is not None:
                own += [{} for _ in range(count - len(own))]
            target = fields if client is None else own[client]
            target[option] = {**target.get(option, {}), name: value}
    if own:
        fields["client"] = own
    return parse_config(fields, str(config_path or "the options"))


def _preference(text: str, option: str, clients: int) -> tuple[int | None, str, str | float]:
    """`2:size=20kB` -> (2, "size", "20kB"); raises `ConfigError`."""
    from faqs.errors import ConfigError

    head, colon, rest = text.rpartition(":")
    name, equals, value = rest.partition("=")
    if not equals or (colon and not (head.isdigit() and int(head) < clients)):
        raise ConfigError(
            f"--{option.removesuffix('s')} is written [CLIENT:]NAME=VALUE with a client below {clients}, got {text!r}: "
            "write it like latency=5ms or 2:size=20kB"
        )
    if option == "budget":
        return (int(head) if colon else None), name, value
    try:
        return (int(head) if colon else None), name, float(value)
    except ValueError:
        raise ConfigError(f"--weight takes a number, got {text!r}: write it like latency=0.1") from None


def _search(run: "RunFolder") -> None:
    from faqs import search as steps

    with progress("searching") as report, writing(run.path):

        def on_round(done: "RoundReport", rounds: int) -> None:
            mean = sum(done.accuracy.values()) / len(done.accuracy)
            report(done.round + 1, rounds, f"loss {done.loss:.3f}, held-out accuracy {mean:.3f}")
            for client, reason in done.refused.items():
                note(f"round {done.round}: client {client} was left out: {reason}")

        steps.search(run, on_round)


def _finish(run: "RunFolder") -> None:
    from faqs import search as steps
    from faqs.report import write_report

    with _steps(run, "exporting and checking") as report:
        steps.export(run, report)
        checks = steps.check(run, report)
    for client, found in enumerate(checks):
        if not found["agrees"]:
            note(
                f"the exported model of client {client} disagrees with torch beyond rounding: see faqs check {run.path}"
            )
    with writing(run.path):
        run.write_json("result.json", steps.result(run))
        write_report(run.path)


@contextmanager
def _steps(run: "RunFolder", what: str) -> Iterator[Callable[[int, int, str], None]]:
    with progress(what) as report, writing(run.path):
        yield report


@cli.command()
@_run
@_json
def export(run: Path, as_json: bool) -> None:
    """Write every client's ONNX model again from the run's weights.

    \b
    Example: faqs export runs/first
    """
    from faqs import search as steps

    folder = _open(run)
    with _steps(folder, "exporting") as report:
        paths = steps.export(folder, report)
    for path in paths:
        click.echo(f"{path}  {format_bytes(path.stat().st_size)}")
    if as_json:
        print_json({"run": str(run), "models": [str(path) for path in paths]})


@cli.command()
@_run
@_json
def check(run: Path, as_json: bool) -> None:
    """Run every exported model here: torch against onnxruntime, predicted against measured.

    Latency is measured where a client's device is this machine. Exit status 1 when a model does not agree with torch.

    \b
    Example: faqs check runs/first
    """
    from faqs import search as steps
    from faqs.errors import ExportError

    folder = _open(run)
    with _steps(folder, "checking") as report:
        checks = steps.check(folder, report)
    rows = [
        [
            str(client),
            f"{found['accuracy_torch']:.3f}",
            f"{found['accuracy_onnx']:.3f}",
            f"{found['agreement']:.4f}",
            *_latency(found["predicted_latency_s"], found["interval_s"], found["measured_latency_s"]),
            _verdict(found["within_interval"]),
            _verdict(found["within_budget"]),
        ]
        for client, found in enumerate(checks)
    ]
    columns = ["client", "torch", "onnx", "agreement", "predicted", "interval", "measured", "in interval", "in budget"]
    print_table("Exported models, run on this machine", columns, rows)
    if as_json:
        print_json({"run": str(run), "clients": checks})
    wrong = [client for client, found in enumerate(checks) if not found["agrees"]]
    if wrong:
        raise ExportError(
            f"an exported model computes what torch computes, got disagreement for clients {wrong} of {run}"
        )


@cli.command()
@_run
@_json
def show(run: Path, as_json: bool) -> None:
    """What a run found: architecture, cost, accuracy and bytes.

    \b
    Example: faqs show runs/first
    """
    _print_run(_open(run), as_json)


@cli.command()
@_run
@_json
def report(run: Path, as_json: bool) -> None:
    """Write report.html again: tables and plots of a run, in one file.

    \b
    Example: faqs report runs/first
    """
    from faqs.report import write_report

    with writing(_open(run).path):
        path = write_report(run)
    click.echo(str(path))
    if as_json:
        print_json({"run": str(run), "report": str(path)})


def _latency(predicted_s: float, interval_s: list[float], measured_s: float | None) -> list[str]:
    low, high = interval_s
    measured = "not this machine" if measured_s is None else format_seconds(measured_s)
    return [format_seconds(predicted_s), f"{format_seconds(low)} - {format_seconds(high)}", measured]


def _verdict(holds: bool | None) -> str:
    return "-" if holds is None else "yes" if holds else "no"


def _print_run(run: "RunFolder", as_json: bool) -> None:
    from faqs.preference import Preference
    from faqs.record import read_run
    from faqs.search import result

    found = result(run)
    rows = []
    for client in found["clients"]:
        latency = _latency(client["predicted_latency_s"], client["predicted_interval_s"], client["measured_latency_s"])
        rows.append(
            [
                str(client["id"]),
                client["device"],
                Preference(client["budget"]).describe(),
                " ".join(client["architecture"]),
                *latency,
                format_bytes(client["size_bytes"]),
                f"{client['accuracy']:.3f}",
            ]
        )
    columns = ["client", "device", "budget", "blocks", "predicted", "interval", "measured", "size", "accuracy"]
    print_table(f"{found['run']}: {found['rounds']} rounds", columns, rows)
    for device in read_run(run.path).devices.values():
        if set(device.sources) != {"measured"}:
            click.echo(f"Latencies of {device.device} are {', '.join(device.sources)}: not all measured on the device.")
    sent = found["bytes"]
    click.echo(
        f"Sent: {format_bytes(sent['payload_up'])} up and {format_bytes(sent['payload_down'])} down as payload, "
        f"{format_bytes(sent['wire_up'])} and {format_bytes(sent['wire_down'])} on the wire."
    )
    if (run.path / "report.html").exists():
        click.echo(f"Report: {run.path / 'report.html'}")
    if as_json:
        print_json(found)


def main() -> None:
    """Entry point of the `faqs` command."""
    from faqs.errors import FaqsError
    from hwcost import HwcostError

    run_cli(cli, "faqs", errors=(FaqsError, HwcostError))
