"""Claim: a profile brought to a similar device by 20 of its operators is several times closer to it than by one factor,
and costs half a per cent where one factor is all that differs; its intervals hold 90 % of the operators or more.

The truth is a measured profile of this machine (--profile, or measured now for two minutes); every sibling is compared
with rows that were not among the samples, over several choices of samples. Two kinds of siblings:

- devices made from the truth itself, whose differences are therefore known: all operators by one factor; every class,
  kind and family of kernels by a factor of its own (30, 20 and 10 % apart); the same, and 2 us more for each operator;
  each with 3 % noise. Of these also: operators that neither profile has a row of, predicted by the shifted fit.
- the analytic model of a Raspberry Pi 4, adapted to this machine: not a sibling at all, and nearly the worst case.

The baseline is one factor, the median of the same samples. About a minute beside measuring.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from record import Benchmark

from hwcost import (
    Fit,
    Profile,
    Row,
    SearchSpace,
    detect_machine,
    estimate_profile,
    fit_profile,
    load_device,
    note,
    print_table,
    progress,
    read_profile,
)
from hwcost.adapt import Samples, adapt_profile
from hwcost.composition import kernel_class
from hwcost.features import family
from hwcost.machine import host_device_name
from hwcost.measure import profile_machine
from hwcost.pricing import CostModel
from hwcost.sampling import default_operators
from hwcost.sibling import Sibling
from hwcost.testing import plausible_profile

BENCHMARK: Final = Benchmark("adapt", __doc__ or "")
COUNTS: Final = (10, 20, 50, 100)
NOISE: Final = 0.03
MEASURE_S: Final = 120.0

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """A known device's profile, its fit if that is tried too, and rows of the new device: to be sampled, and unseen."""

    name: str
    source: Profile
    fit: Fit | None
    rows: tuple[Row, ...]
    unseen: tuple[Row, ...] = ()


def with_rows(profile: Profile, rows: Sequence[Row]) -> Profile:
    fields = {name: getattr(profile, name) for name in Profile.model_fields}
    return Profile.model_validate({**fields, "networks": (), "rows": tuple(rows)})


def made(rows: Sequence[Row], latency_s: Values) -> tuple[Row, ...]:
    """The rows with other latencies, which a measurement would find within its noise."""
    return tuple(
        row.model_copy(update={"latency_s": seconds, "interval_s": (0.98 * seconds, 1.02 * seconds), "samples_s": ()})
        for row, seconds in zip(rows, latency_s.tolist(), strict=True)
    )


def siblings(truth: Profile, predictors: Sequence[str], rng: np.random.Generator) -> list[Case]:
    """Devices made from the truth: half of the operators are in the known device's profile, the others unseen."""
    operators = list(dict.fromkeys(row.operator for row in truth.rows))
    hidden = {operators[place] for place in rng.permutation(len(operators))[: len(operators) // 3].tolist()}
    source = with_rows(truth, [row for row in truth.rows if row.operator not in hidden])
    with progress("fitting the known device") as report:
        fit = fit_profile(source, names=predictors, progress=report)
    latency_s = np.array([row.latency_s for row in truth.rows])
    noise = np.exp(NOISE * rng.standard_normal(len(latency_s)))
    parts: Values = np.zeros(len(latency_s))
    for spread, names in (
        (0.3, [kernel_class(*row.layer) for row in truth.rows]),
        (0.2, [family(row.operator).partition(".")[0] for row in truth.rows]),
        (0.1, [f"{family(row.operator)} {row.precision}" for row in truth.rows]),
    ):
        own = {name: spread * rng.standard_normal() for name in sorted(set(names))}
        parts = parts + np.array([own[name] for name in names])
    laws = {
        "one factor": 2.3 * latency_s * noise,
        "a factor for every kernel path": 2.3 * latency_s * np.exp(parts) * noise,
        "the same, and 2 us an operator": (1.5 * latency_s * np.exp(parts) + 2e-6) * noise,
    }
    cases = []
    for name, seconds in laws.items():
        rows = made(truth.rows, seconds)
        seen = tuple(row for row in rows if row.operator not in hidden)
        unseen = tuple(row for row in rows if row.operator in hidden and known(fit, source, row))
        cases.append(Case(name, source, fit, seen, unseen))
    return cases


def known(fit: Fit, source: Profile, row: Row) -> bool:
    return fit.knows(family(row.operator), source.realised_as(*row.layer))


def pi_to_here(truth: Profile) -> Case:
    operators = tuple(dict.fromkeys(row.operator for row in truth.rows))
    estimated = estimate_profile(load_device("rpi4"), operators)
    rows = tuple(row for row in truth.rows if estimated.find(*row.layer) is not None)
    both = {row.layer for row in rows}
    source = with_rows(estimated, [row for row in estimated.rows if row.layer in both])
    return Case("estimate of a Pi 4, to this machine", source, None, rows)


def judged(latency_s: Values, ends_s: Values, rows: Sequence[Row]) -> dict[str, float]:
    truth_s = np.array([row.latency_s for row in rows])
    error = np.abs(latency_s / truth_s - 1)
    inside = (ends_s[0] <= truth_s) & (truth_s <= ends_s[1])
    return {
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "within_10": float((error <= 0.1).mean()),
        "inside": float(inside.mean()),
        "half_width": float(np.median(ends_s[1] / latency_s)) - 1,
    }


def trial(case: Case, count: int, seed: int, truth: Profile) -> dict[str, dict[str, float]]:
    """One choice of samples: rows not sampled, by one factor and adapted, and operators unseen."""
    by_layer = {row.layer: row for row in case.rows}
    latency_s = {row.layer: row.latency_s for row in case.source.rows}
    layers = [row.layer for row in case.source.rows]
    chosen = Sibling(tuple(layers), np.array([latency_s[layer] for layer in layers])).choose(count, seed)
    sampled = [by_layer[layers[place]] for place in chosen]
    held = [row for row in case.rows if row.layer not in {one.layer for one in sampled}]
    factor = float(np.median([row.latency_s / latency_s[row.layer] for row in sampled]))
    scaled = factor * np.array([latency_s[row.layer] for row in held])
    samples = Samples(tuple(sampled), truth.machine, case.source.int8_form, 0.01, truth.run_overhead_s)
    adapted, fit = adapt_profile(case.source, samples, "new", case.fit)
    found = [adapted.find(*row.layer) for row in held]
    ours = np.array([row.latency_s for row in found if row])
    ends = np.array([row.interval_s for row in found if row]).T
    result = {"one factor": judged(scaled, np.stack([scaled, scaled]), held), "adapted": judged(ours, ends, held)}
    if case.unseen and fit is not None:
        prices = CostModel(adapted, fit).prices([row.layer for row in case.unseen])
        said = np.array([(price.latency_s, price.low_s, price.high_s) for price in prices]).T
        result["unseen"] = judged(said[0], said[1:], case.unseen)
    return result


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument("--profile", type=Path, help="a measured profile (default: this machine's, measured now)")
    parser.add_argument("--seeds", type=int, default=5, help="choices of samples (default: 5; 1 with --quick)")
    run(parser.parse_args())


def measured(arguments: argparse.Namespace) -> Profile:
    if arguments.profile is not None:
        return read_profile(arguments.profile)
    if arguments.quick:
        return plausible_profile(SearchSpace.for_image((3, 32, 32), 10).operators())
    with progress("measuring this machine") as report:
        return profile_machine(
            default_operators(((1, 8, 8),), arguments.seed, 0),
            device=host_device_name(),
            widen=True,
            seed=arguments.seed,
            budget_s=MEASURE_S,
            progress=report,
            skip_unsupported=True,
        )


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    truth = measured(arguments)
    rng = np.random.default_rng([arguments.seed, 7])
    cases = siblings(truth, ["linear"] if arguments.quick else ["linear", "tiled"], rng)
    cases.append(pi_to_here(truth))
    seeds = [arguments.seed * 1000 + number for number in range(1 if arguments.quick else arguments.seeds)]
    counts = COUNTS[:2] if arguments.quick else COUNTS
    results: list[dict[str, Any]] = []
    with progress("adapting") as report:
        for done, case in enumerate(cases):
            report(done, len(cases), case.name)
            for count in counts:
                trials = [trial(case, count, seed, truth) for seed in seeds]
                ways = {
                    way: {name: float(np.median([one[way][name] for one in trials])) for name in figures}
                    for way, figures in trials[0].items()
                }
                results.append(
                    {
                        "case": case.name,
                        "samples": count,
                        "rows": len(case.rows),
                        "unseen": len(case.unseen),
                        "ways": ways,
                    }
                )
    here = truth.machine.fingerprint == detect_machine().fingerprint
    document |= {"seeds": seeds, "profile_rows": len(truth.rows), "profile_of_this_machine": here, "results": results}
    show(results)
    BENCHMARK.finish(arguments, document)


def show(results: Sequence[dict[str, Any]]) -> None:
    note("errors of rows that were not sampled; medians over the seeds")
    columns = (
        "device",
        "samples",
        "one factor",
        "adapted",
        "within 10 %",
        "in interval",
        "half-width",
        "unseen",
        "in it",
    )
    rows = []
    for one in results:
        ways = one["ways"]
        ours, unseen = ways["adapted"], ways.get("unseen")
        shares = (ways["one factor"]["mape"], *(ours[name] for name in ("mape", "within_10", "inside", "half_width")))
        beyond = ("-", "-") if unseen is None else (f"{unseen['mape']:.1%}", f"{unseen['inside']:.1%}")
        rows.append((one["case"], str(one["samples"]), *(f"{share:.1%}" for share in shares), *beyond))
    print_table("Mean error of operators:", columns, rows)


if __name__ == "__main__":
    main()
