"""Writes what was measured into the README: every block between `<!-- begin:NAME -->` and `<!-- end:NAME -->`.

    python benchmarks/readme.py            rewrite the blocks from benchmarks/results
    python benchmarks/readme.py --check    change nothing; exit status 1 when a block is stale or missing

No figure of the README is typed by hand, so none can be older than its benchmark's result.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from record import RESULTS

from hwcost import note, write_atomically

README: Final = RESULTS.parents[1] / "README.md"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"


def signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def circumstances(document: dict[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    return (
        f"{machine['cpu']} ({machine['architecture']}, {machine['cores']} cores, {machine['threads']} used), "
        f"onnxruntime {versions['onnxruntime']}, load average {document['load_before']} before and "
        f"{document['load_after']} after, {document['date']}."
    )


def prediction(document: dict[str, Any]) -> str:
    columns = ("latency from", "median error", "mean", "worst", "within 5 %", "within 10 %", "in its interval")
    rows = []
    for way in document["ways"]:
        error = way["error"]
        shares = (error["median"], error["mean"], error["most"], way["within_5"], way["within_10"])
        rows.append((way["way"], *map(percent, shares), percent(way["inside_interval"])))
    profile, networks = document["profile"], document["networks"]
    times = [min(network["samples_s"]) for network in networks]
    took = "" if profile["seconds"] is None else f", measured in {profile['seconds']:.0f} s"
    half, none = (way["predicted_share"] for way in document["ways"][2:4])
    return "\n\n".join(
        (
            f"{len(networks)} random int8 networks of the two default search spaces, "
            f"{min(times) * 1e6:.0f} to {max(times) * 1e6:.0f} us, run end to end; a profile of {profile['rows']} rows"
            f"{took}. `measured twice` is the ceiling: the early passes against the late ones. `FLOPs only` is "
            "favoured: one constant per search space, fitted on these very networks.",
            table(columns, rows),
            f"Share of the latency that was predicted and not looked up, median: {percent(half)} with half of the "
            f"operators, {percent(none)} with none. {circumstances(document)}",
        )
    )


def lookup(document: dict[str, Any]) -> str:
    rows = [
        (
            row["space"],
            f"10^{row['networks_log10']:.1f}",
            f"{row['layers']:,}",
            f"{row['naming_s']['median'] * 1e3:.0f} ms",
            f"{row['first_s'] * 1e3:.0f} ms",
            f"{row['build_s']['median'] * 1e3:.0f} ms",
            f"{row['faster_than_one_by_one']['median']:.1f}",
        )
        for row in document["build"]
    ]
    trained = [
        (
            row["space"],
            f"{row['step_s']['median'] * 1e3:.0f} ms",
            f"{row['costs_s']['median'] * 1e6:.0f} us",
            f"{100 * row['share']['median']:.2f} %",
            f"{100 * row['share']['most']:.2f} %",
            f"{100 * row['with_over_without']['median']:+.1f} %",
        )
        for row in document["training"]
    ]
    again = [abs(row["without_over_without"][end]) for row in document["training"] for end in ("least", "most")]
    features, batch = document["features"], document["training"][0]["batch"]
    return "\n\n".join(
        (
            "Building the table after the fit; of these spaces only the first was profiled, so nothing is predicted "
            "there. `naming` is what any table starts with: the layers of every choice. `one by one /`: how many times "
            "longer it takes to name them and to price each distinct one alone.",
            table(
                ("space", "networks", "distinct layers", "naming", "first table", "table again", "one by one /"), rows
            ),
            f"The features of {features['operators']:,} operators never met take "
            f"{features['seconds']['median'] * 1e3:.0f} ms. The cost layer with {len(document['weights'])} weighted "
            f"costs, forward and backward, as a share of a gate step of {batch} images without it (torch on "
            f"{document['torch_threads']} threads):",
            table(("space", "gate step", "cost layer", "share", "largest", "whole steps with it"), trained),
            f"Medians. Whole steps without it differ from each other by up to {percent(max(again))}. "
            f"{circumstances(document)}",
        )
    )


def ways(document: dict[str, Any]) -> str:
    """Errors of networks by each way to predict them; those without intervals for all widths together."""
    columns = (
        "latency from",
        "networks",
        "mean error",
        "worst",
        "within 5 %",
        "within 10 %",
        "in its interval",
        "half-width",
    )
    rows = []
    for name, groups in document["ways"].items():
        for bits in ("fp32", "int8", "all") if groups["all"]["inside_interval"] is not None else ("all",):
            one = groups[bits]
            shares = (one["mape"], one["worst"], one["within_5"], one["within_10"], one["inside_interval"])
            half = percent(one["interval_half_width"])
            rows.append((f"{name}, {bits}", str(one["networks"]), *map(percent, shares), half))
    return table(columns, rows)


def predictors(document: dict[str, Any]) -> str:
    kernels = [
        (one["predictor"], f"{one['rows']:,}", *(percent(one[name]) for name in ("mape", "within_5", "within_10")),
         f"{one['large_rows']:,}", percent(one["within_10_large"]))
        for one in document["kernels"]
    ]  # fmt: skip
    sizes = [
        (
            f"{one['seconds']:.0f} s",
            f"{one['rows']:,}",
            *(percent(one["all"][name]) for name in ("mape", "within_5", "within_10")),
        )
        for one in document["by_size"]
    ]
    single, networks, profile = document["kernels_of_networks"], document["networks"], document["profile"]
    few = ", ".join(
        f"{name} {percent(one['within_10'])} of {one['kernels']}"
        for name, one in single["families"].items()
        if one["within_10"] < 0.9 and one["kernels"] >= 5
    )
    noise = sorted(one["noise"] for one in networks)
    speeds = [speed for one in networks for speed in one["speeds"]]
    as_run = document["as_run"]["as profiled"]["all"]
    fastest, slowest = (pick(min(one["samples_s"]) for one in networks) for pick in (min, max))
    strict = "every kernel predicted"
    over = sum(abs(one["error"][strict]) > 0.1 for one in networks)
    misses = [
        (f"{one['name']} {one['bits']}-bit", *(signed(one[name]) for name in ("error", "kernels", "composition")),
         ", ".join(f"{name} {signed(share)}" for name, share in one["families"].items() if abs(share) >= 0.005) or "-",
         percent(one["spread"]))
        for one in document["misses"]
    ]  # fmt: skip
    return "\n\n".join(
        (
            f"{len(networks)} networks that are not the profile's, {fastest * 1e3:.2f} to {slowest * 1e3:.0f} ms: the "
            "onnx package's own with random weights, and random ones of eighteen families at several input sizes "
            f"(seed {document['seed']}), each as fp32 and as int8 in the styles of onnxruntime's quantisation tool. "
            f"One profile of {profile['operators']:,} operators ({profile['rows']:,} rows, {profile['profile_s']:.0f} "
            f"s) and one fit ({profile['fit_s']:.0f} s). In `{strict}` no row of an operator that occurs in any of "
            "these networks was left to fit on; `alone` is one predictor for every family, on the same rows; "
            "`nn-meter` is that paper's recipe. `measured again`: what every second pass says of the others, which no "
            "predictor can be expected to surpass.",
            ways(document),
            f"A network's latency is the middle one of {len(networks[0]['samples_s'])} passes, at the speed that the "
            f"machine had when profiled; by kernels timed again it ran at {min(speeds):.2f} to {max(speeds):.2f} times "
            "that (`hwcost check` brings its prediction to the speed of the moment in the same way). Against the "
            f"fastest pass as it ran, {percent(as_run['within_10'])} are within 10 % and {percent(as_run['within_5'])} "
            f"within 5 %. Noise floor: passes lie {percent(noise[len(noise) // 2])} from their middle (median), "
            f"{percent(noise[int(0.9 * len(noise))])} or more for one network in ten.",
            f"Beyond 10 %: {over} of {len(networks)} networks. Every kernel of {'these' if over else 'the worst'} was "
            "timed too: `kernels` is what all their errors amount to, `composition` what the sum of measured kernels "
            "is off, as shares of the network's latency; `spread`: its slowest pass over its fastest.",
            table(("network", "error", "kernels", "composition", "of the kernels, most", "spread"), misses),
            f"Of {single['all']['kernels']:,} kernels of these networks, a random sample that was timed one by one, "
            f"{percent(single['all']['within_10'])} are predicted within 10 %. Of the "
            f"{single['large']['kernels']:,} over 20 us {percent(single['large']['within_10'])}, within 5 % "
            f"{percent(single['large']['within_5'])}, and {percent(single['large']['inside_interval'])} lie in their "
            f"interval; families of these below 90 %: {few or 'none'}.",
            "Kernels, cross-validated on the strict rows, near-identical ones held out together; `large`: over 20 us.",
            table(
                ("predictor", "kernels", "mean error", "within 5 %", "within 10 %", "large", "large within 10 %"),
                kernels,
            ),
            "Networks by profiling time, every kernel predicted, a random share of the operators:",
            table(("profiling", "rows", "mean error", "within 5 %", "within 10 %"), sizes),
            circumstances(document),
        )
    )


def another(document: dict[str, Any]) -> str:
    """The same benchmark on another machine, in short."""
    caches = document["machine"]["cache_bytes"]
    held = ", ".join(f"{name} {caches[name] / 2**20:.3g} MiB" for name in ("L2", "L3") if name in caches)
    single, misses = document["kernels_of_networks"], document["misses"]
    timed = [one for one in misses if not one["not_timed"]]
    kernels, composed = (statistics.median(abs(one[name]) for one in timed) for name in ("kernels", "composition"))
    return "\n\n".join(
        (
            f"The same on a processor of another kind ({held}), by the project as it was on {document['date']}:",
            ways(document),
            f"Of its kernels {percent(single['all']['within_10'])} are predicted within 10 %, of those over 20 us "
            f"{percent(single['large']['within_10'])}. {len(misses)} networks are more than 10 % off. In the "
            f"{len(timed)} of them all of whose kernels were timed, these account for {percent(kernels)} in the "
            f"median, and what their measured sum misses for {percent(composed)}: there a kernel costs more beside "
            "others than alone (docs/log.md).",
            circumstances(document),
        )
    )


def models(document: dict[str, Any]) -> str:
    columns = ("version", "models", "without a price", "median error", "within 5 %", "within 10 %", "within 20 %")
    rows = []
    for name, group in document["groups"].items():
        shares = (group["median"], *(group[f"within_{most}"] for most in (5, 10, 20)), group["within_interval"])
        rows.append((name, str(group["models"]), str(group["without_price"]), *map(percent, shares)))
    missed = [one for one in document["models"] if abs(one["error"]) > 0.1 and not one["uncovered_share"]]
    missed.sort(key=lambda one: -abs(one["error"]))
    named = ", ".join(f"{Path(one['model']).name} {one['style']} {signed(one['error'])}" for one in missed)
    packages = {one["model"].split("/")[0] for one in document["models"]}
    left = f" {len(document['left_out'])} were left out: what they need is not here." * bool(document["left_out"])
    return "\n\n".join(
        (
            f"{len({one['model'] for one in document['models']})} models from {len(packages)} public packages, as they "
            "are and as int8, predicted by one profile and checked after it. They showed which kernels a profile did "
            f"not know (docs/log.md), so they are not new any more.{left} Models with operators that have no price: "
            f"{document['groups']['as published']['without_price']}, counted and not judged.",
            table((*columns, "in its interval"), rows),
            f"Beyond 10 %: {named or 'none'}.",
            circumstances(document),
        )
    )


def wire(document: dict[str, Any]) -> str:
    columns = ("deltas", "coordinates", "entropy", "bits sent", "fp32 /", "plain zstd /", "encode", "decode")
    rows = [
        (
            f"{row['deltas']}, {row['space']}",
            f"{row['coordinates']:,}",
            f"{row['entropy_bits']:.2f}",
            f"{row['bits']:.2f} ({100 * row['over_entropy']:+.1f} %)",
            f"{row['smaller_than_fp32']:.1f}",
            f"{row['smaller_than_plain_zstd']:.2f}",
            f"{row['encode_mb_per_s']['median']:.0f} MB/s",
            f"{row['decode_mb_per_s']['median']:.0f} MB/s",
        )
        for row in document["rows"]
        if row["relative_step"] == document["default_step"]
    ]
    return "\n\n".join(
        (
            "Messages of every shared weight of the largest network at the default step; bits are per coordinate, the "
            "whole message included, beside the order-0 entropy of its codes. `fp32 /` and `plain zstd /`: how many "
            "times smaller than 32 bits, and than zstandard (level 19) of the same codes, a byte each.",
            table(columns, rows),
            f"MB of fp32 a second, medians. {circumstances(document)}",
        )
    )


def steps(document: dict[str, Any]) -> str:
    columns = ("a step of", "against", "median", "times as long", "times the memory")
    rows = [
        (
            one["step"],
            one["against"],
            f"{one['ms']['median']:.0f} ms",
            f"{one['ratio']['median']:.2f} ({one['ratio']['least']:.2f} to {one['ratio']['most']:.2f})",
            f"{one['memory']:.2f}",
        )
        for one in document["steps"]
    ]
    return "\n\n".join(
        (
            f"{document['batch']} images forward, backward and update, one thread, in turn with the same network in "
            "plain float. `supernet NAME`: every block takes that choice, in 8 bits, on slices of the shared weights; "
            "`gates`: straight-through samples over all choices; memory is the peak of a process less that of its "
            "imports.",
            table(columns, rows),
            circumstances(document),
        )
    )


def transfer(document: dict[str, Any]) -> str:
    columns = ("new device", "HELP", "from 10", "from 20", "ceiling", "one factor", "operations", "error from 10",
               "its ceiling", "noise", "one factor, error", "in its interval")  # fmt: skip
    rows = []
    for one in document["devices"]:
        ten, twenty = (one["methods"][count] for count in ("10", "20"))
        median, least, most = ten["transfer"]["spearman"]
        rows.append(
            (
                one["device"],
                "-" if one["help"] is None else f"{one['help']:.3f}",
                f"{median:.3f} ({least:.3f} to {most:.3f})",
                f"{twenty['transfer']['spearman'][0]:.3f}",
                f"{one['ceiling']['spearman']:.3f}",
                *(f"{ten[name]['spearman'][0]:.3f}" for name in ("one factor", "operations")),
                *map(percent, (ten["transfer"]["mape"][0], one["ceiling"]["mape"], one["noise"])),
                *map(percent, (ten["one factor"]["mape"][0], ten["transfer"]["inside"][0])),
            )
        )
    both = [one for one in document["devices"] if one["help"] is not None]
    better = [one["device"] for one in both if one["methods"]["10"]["transfer"]["spearman_all"][0] > one["help"]]
    short = "; ".join(
        f"on {one['device']} it is {one['methods']['10']['transfer']['spearman_all'][0]:.4f} of all rows against "
        f"{one['help']:.3f}, and features fitted on every row reach {one['ceiling']['spearman_all']:.4f}"
        for one in both
        if one["device"] not in better
    )
    count = len(document["devices"])
    return "\n\n".join(
        (
            f"{document['devices'][0]['distinct']:,} distinct networks of NAS-Bench-201, measured whole by others on "
            f"{count} devices. Each is new once, {document['known']} are known; of the new one, 10 or 20 networks of "
            "`hwcost.transfer`'s choice are looked at, and all others predicted. Rank correlation (Spearman), then "
            "mean errors; `ceiling`: the same features fitted on all of the device's latencies; `noise`: networks that "
            "no feature tells apart; `one factor`: times the known device that fits best; `operations`: least squares "
            f"without a prior. Median of {len(document['seeds'])} seeds, and their ends.",
            table(columns, rows),
            "HELP's figures are those of its paper (arXiv 2106.08630, table 3: 10 samples; mean of its six devices "
            f"0.932). Better than them, over all rows, on {len(better)} of the {len(both)} devices that both have"
            f"{f'; {short}' if short else ''}.",
        )
    )


def remote(document: dict[str, Any]) -> str:
    columns = ("against one measurement here", "median ratio", "median difference", "within the floor", "within 5 %")
    rows = []
    for name, found in (("another one here", document["here_again"]), ("over ssh", document["over_ssh"])):
        shares = (found["median_difference"], found["within_floor"], found["within_5_percent"])
        rows.append((name, f"{found['ratio']['median']:.4f}", *map(percent, shares)))
    took_s = document["seconds_per_timing"]
    return "\n\n".join(
        (
            f"{document['kernels']} kernels of the search spaces and of other networks, each the minimum of "
            f"{document['passes']} passes, once more here and once over ssh to this same machine. The noise floor is "
            f"what nine of ten kernels differ by between the two measurements here: "
            f"{percent(document['noise_floor'])}.",
            table(columns, rows),
            f"A timing takes {1e3 * took_s['here']:.0f} ms here and {1e3 * took_s['over ssh']:.0f} ms over ssh, all "
            f"included. {circumstances(document)}",
        )
    )


def devices(document: dict[str, Any]) -> str:
    names = [f"{one['device']} ({', '.join(one['sources'])})" for one in document["devices"]]
    signs = [
        (one["family"], str(one["operators"]), *(f"{ratio:.2f}" for ratio in one["ratios"]), percent(one["disagree"]))
        for one in document["int8_over_float"]
    ]
    decided = [
        ("x".join(map(str, one["image"])), percent(one["share"]),
         *(percent(one[name]) for name in ("differ", "blocks_that_differ", "others_network_over_budget")),
         f"{100 * (one['others_network_at_worst'] - 1):.0f} %")
        for one in document["decisions"]
    ]  # fmt: skip
    searched = [
        (one["device"], f"{1e6 * one['budget_s']:.0f} us", f"{1e6 * one['latency_s']:.0f} us", " ".join(one["blocks"]))
        for one in document["search"]
    ]
    draws = document["decisions"][0]["draws"]
    return "\n\n".join(
        (
            "Latency in int8 over that in float, medians of the operators that both profiles have; `other sign`: int8 "
            "is faster on one device and slower on the other.",
            table(("family", "operators", *names, "other sign"), signs),
            f"The same scores of the choices, {draws} drawn at random, decided on both devices within a budget at the "
            "same share of the way from the cheapest network to the dearest: how many networks and blocks differ, how "
            "often one device's network breaks the other's budget, and by how much at worst.",
            table(("image", "budget", "networks", "blocks", "breaks the other's budget", "at worst by"), decided),
            "One search on the embedded digits, two clients on each device, the budget half way:",
            table(("device", "budget", "predicted", "blocks"), searched),
            circumstances(document),
        )
    )


def adapted(document: dict[str, Any]) -> str:
    columns = ("new device", "operators measured", "one factor", "adapted", "within 10 %", "in its interval",
               "half-width", "never profiled", "in its interval")  # fmt: skip
    rows = []
    for one in document["results"]:
        ways, ours = one["ways"], one["ways"]["adapted"]
        beyond = ways.get("unseen")
        rows.append(
            (
                one["case"],
                str(one["samples"]),
                percent(ways["one factor"]["mape"]),
                *(percent(ours[name]) for name in ("mape", "within_10", "inside", "half_width")),
                *(("-", "-") if beyond is None else (percent(beyond["mape"]), percent(beyond["inside"]))),
            )
        )
    return "\n\n".join(
        (
            f"Devices like a measured one ({document['profile_rows']:,} rows), made from its rows so that the truth is "
            "known, each operator with 3 % noise; and the analytic estimate of a Raspberry Pi 4, which is hardly a "
            "sibling. Mean errors of the rows that were not measured; `one factor`: the median of the same samples; "
            "`never profiled`: operators that neither profile has, by the shifted fit. Medians of "
            f"{len(document['seeds'])} choices of samples.",
            table(columns, rows),
        )
    )


_MET: Final = ("within_table", "within_budget_measured", "within_budget_and_interval")


def search(document: dict[str, Any]) -> str:
    columns = (
        "seed",
        "mean accuracy",
        "worst client",
        "payload up / down",
        "on the wire up / down",
        "fp32 / payload",
        "fp32 / wire",
        "budgets met: table",
        "measured",
        "within interval",
    )
    rows = []
    for run in document["runs"]:
        levels = [run["traffic"][level] for level in ("payload", "wire")]
        rows.append(
            (
                str(run["seed"]),
                f"{run['accuracy']:.3f}",
                f"{run['least_accuracy']:.3f}",
                *(f"{level['up_bytes'] / 1e3:.1f} / {level['down_bytes'] / 1e3:.1f} kB" for level in levels),
                *(f"{level['fewer_than_fedavg']:.1f}" for level in levels),
                *(" of ".join(map(str, run[name])) for name in _MET),
            )
        )
    first, inside = document["runs"][0], [run["within_interval"] for run in document["runs"]]
    over = max(run["over_budget"]["most"] for run in document["runs"])
    errors = sorted(run["latency_error"]["median"] for run in document["runs"])
    return "\n\n".join(
        (
            f"Four clients, {document['rounds']} rounds, each client with budgets of its own on this machine; bytes "
            "are per client and round. `fp32 /`: how many times less than federated averaging of the largest network "
            f"in fp32 (computed: {first['fedavg_message_bytes'] / 1e3:.0f} kB each way). Accuracy is that of the "
            "exported int8 models on each client's own held-out share.",
            table(columns, rows),
            "Budgets met by the lookup table (latency and size); latency budgets met by the measured model, and met as "
            f"far as the prediction's interval reaches (at worst {percent(over)} over the budget). Measured latency "
            f"inside the predicted interval: {sum(one for one, _ in inside)} of {sum(total for _, total in inside)} "
            f"models; median error {percent(errors[len(errors) // 2])}. "
            f"{circumstances(document)}",
        )
    )


_FEDERATIONS: Final = {
    "A": "A: FedAvg, fp32",
    "AM": "AM: FedAvg with server momentum, fp32",
    "A2": "A2: FedAvg, 8-bit differences",
    "B": "B: multi-path search, fp32",
    "B2": "B2: DARTS supernet, computed",
    "C1": "C1: masked, fp32",
    "C2": "C2: this project's search",
}


def communication(document: dict[str, Any]) -> str:
    columns = (
        "arm",
        "seeds",
        "payload up / down",
        "on the wire up / down",
        "A / payload, wire",
        "B / payload, wire",
        "global accuracy",
        "personal accuracy",
        "to the target",
        "round",
    )
    arms, regime = document["arms"], document["regime"]

    def fewer(found: dict[str, Any], than: dict[str, Any] | None) -> str:
        if than is None:
            return "-"
        both = ([one[f"{level}_up"] + one[f"{level}_down"] for one in (than, found)] for level in ("payload", "wire"))
        return ", ".join(f"{sizes[0] / sizes[1]:.1f}" for sizes in both)

    def accuracy(found: dict[str, Any], name: str) -> str:
        if found[name] is None:
            return "-"
        deviation = found["spread"][name]["deviation"]
        return f"{100 * found[name]:.1f} %" + ("" if deviation is None else f" ± {100 * deviation:.1f}")

    rows = []
    for arm, name in _FEDERATIONS.items():
        found = arms[arm]
        if found is None:
            rows.append((name, "0", *["-"] * (len(columns) - 2)))
            continue
        rows.append(
            (
                name,
                "-" if found["computed"] else str(len(found["seeds"])),
                *(
                    " / ".join(f"{found[f'{level}_{way}'] / 1e3:.1f}" for way in ("up", "down")) + " kB"
                    for level in ("payload", "wire")
                ),
                *(fewer(found, arms[other]) for other in ("A", "B")),
                *(accuracy(found, name) for name in ("accuracy_global", "accuracy_personal")),
                "-" if found["bytes_to_target"] is None else f"{found['bytes_to_target'] / 1e6:.1f} MB",
                "-" if found["round_s"] is None else f"{found['round_s']:.0f} s",
            )
        )
    differences = [
        (
            " less ".join(name.split("-")),
            f"{found['networks']} networks" if "networks" in found else str(len(found["seeds"])),
            _points(found["accuracy_global"]),
            _points(found["accuracy_personal"]),
        )
        for name, found in document["differences"].items()
    ]
    paired = table(("accuracy of", "seeds", "global accuracy", "personal accuracy"), differences)
    alone = [
        "{:+.1f} and {:+.1f}".format(*(100 * (a - b) for a, b in (one["accuracy_global"], one["accuracy_personal"])))
        + f" (client {name})"
        for name, one in document["ceilings"].items()
    ]
    ceilings = (
        "`C2 less alone`: networks that the search decided for, as they come out of it, less the same networks trained "
        f"alone by all clients with FedAvg in fp32; global and personal, one by one: {', '.join(alone)}."
        if alone
        else ""
    )
    multi = arms["B"]
    whole = (
        f"B's accuracy is that of its derived networks; before that, with all paths, it is "
        f"{100 * multi['accuracy_global_of_all_paths']:.1f} % global. "
        if multi is not None
        else ""
    )
    images = regime["train_images"]
    return "\n\n".join(
        (
            f"{document['clients']} clients, Dirichlet({regime['alpha']:g}), {images:,} training images of which each "
            f"client holds {percent(regime['held_out_share'])} out, {document['rounds']} rounds of "
            f"{regime['local_epochs']} local epochs. Bytes are per client and round, everything counted; `A /`, `B /`: "
            "how many times fewer than that arm's, both ways. Global: on all test images, batch-norm statistics "
            "recomputed over all clients' images. Personal: on each client's held-out images after the same "
            f"fine-tuning. The target: {percent(regime['target_share'])} of A's best mean accuracy, all clients' "
            "bytes together.",
            table(columns, rows),
            f"± is the deviation over seeds. {whole}".rstrip(),
            "Differences of accuracy in points, and their paired bootstrap intervals of 95 % over seeds and images:",
            paired,
            *([ceilings] if ceilings else []),
            circumstances(document),
        )
    )


def rounds(document: dict[str, Any]) -> str:
    of_b, of_c2 = (document["rounds"][arm] for arm in ("B", "C2"))
    counts = " and ".join(str(len(document["seconds"][arm])) for arm in ("B", "C2"))
    return (
        f"Both at once, a core each, a round of B takes {of_b['median']:.0f} s and one of C2 {of_c2['median']:.0f} s, "
        f"**{document['ratio']:.2f}** times as long (medians of {counts} "
        f"rounds; the one in which clients first decide takes {of_c2['most']:.0f} s). {circumstances(document)}"
    )


_ABLATIONS: Final = {
    "C2": "C2: two members a step",
    "C2-own-mask": "each client trains and sends its own network only",
    "C2-one-member": "one network a step",
    "C2-three-members": "three networks a step",
    "C2-hull": "in half of the steps the hull, and a member that learns from it",
    "C2-labels": "random networks of the warm-up learn by the labels",
    "C2-held": "held to the federation's network (FedNTD)",
    "C2-plain": "no momentum on the server",
    "C2-no-warmup": "masks from the first round",
    "C2-no-explore": "no random networks in the warm-up",
    "C2-norms": "choices scored by norms",
    "C2-logits": "choices scored by trained gates",
    "C2-random": "choices scored at random",
    "C2-own-scores": "each client by its own scores",
    "C2-fine": "steps of 1.6 instead of 1.85 rms on the wire",
    "C2-even": "scales, shifts and biases in the same step as all else on the wire",
    "C2-float": "32-bit floats on the wire",
    "A": "A: FedAvg, fp32",
    "AM": "AM: FedAvg with server momentum, fp32",
}


def ablation(document: dict[str, Any]) -> str:
    arms, differences, regime = document["arms"], document["differences"], document["regime"]
    rows = []
    for arm, name in _ABLATIONS.items():
        found = arms.get(arm)
        if found is None:
            continue
        scores = ("accuracy_global", "accuracy_personal")
        if pair := differences.get(f"{arm}-C2"):
            against = [_points(pair[score]) for score in scores]
        elif pair := differences.get(f"C2-{arm}"):
            against = [_points(_negative(pair[score])) for score in scores]
        else:
            against = ["-"] * len(scores)
        rows.append(
            (
                name,
                str(len(found["seeds"])),
                *(f"{100 * found[score]:.1f} %" for score in scores),
                *against,
                f"{(found['payload_up'] + found['payload_down']) / 1e3:.0f} kB",
                "-" if found["round_cpu_s"] is None else f"{found['round_cpu_s']:.1f} s",
            )
        )
    columns = ("what is different", "seeds", "global", "personal", "global less C2's", "personal", "payload", "round")
    return "\n\n".join(
        (
            f"{document['clients']} clients, {regime['train_images']:,} images of which half are held out, "
            f"{document['rounds']} rounds of {regime['local_epochs']} local epoch; everything else as above. In "
            "brackets: paired bootstrap intervals of 95 % over the seeds there are, and images. Payload: per client "
            "and round, both ways. Round: processor time of all clients, median.",
            table(columns, rows),
            circumstances(document),
        )
    )


def _negative(found: dict[str, float]) -> dict[str, float]:
    return {"mean": -found["mean"], "low": -found["high"], "high": -found["low"]}


def _points(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"


def emulation(document: dict[str, Any]) -> str:
    rows = [
        (
            row["operator"],
            *(
                text
                for way in ("trial", "whole_run", "kernel")
                for text in (" / ".join(f"{rate:.2f}" for rate in row[way]), f"{row[f'{way}_gain']:.2f}")
            ),
            ", ".join(path.replace("+", " ") for path in row["paths"]),
        )
        for row in document["operators"]
    ]
    equal = sum(row["equal"] for row in document["repeats"])
    texts = [
        "Emulated, not measured: onnxruntime's aarch64 kernels executed by QEMU as a Cortex-A72, priced by llvm-mca. "
        "Multiply-accumulates per cycle, float / int8, and the gain of int8: in the trial that the method comes from; "
        "of a run priced as there (a hundred cycles a call); and of the kernel alone, as `--emulate` prices it.",
        table(("operator", "trial", "gain", "run, as there", "gain", "kernel alone", "gain", "multiplies with"), rows),
        f"In a second emulated machine {equal} of {len(document['repeats'])} runs executed exactly the same "
        "instructions.",
    ]
    if document["blocks"]:
        found, ratio = document["blocks"]["spearman"], document["blocks"]["published_over_emulated"]
        texts.append(
            f"{document['blocks']['blocks']} blocks of FBNet on a Pi 4, published by others for another runtime: rank "
            f"correlation {found['emulated']:.3f} (instruction counts {found['instructions']:.3f}, multiply-"
            f"accumulates {found['macs']:.3f}, the analytic estimate {found['estimated']:.3f}, bytes moved "
            f"{found['bytes']:.3f}: that runtime seems to wait for memory; at best 1). The published "
            f"times are {ratio['median']:.2f} times the emulated ones (median; 90 % lie within {ratio['p5']:.2f} and "
            f"{ratio['p95']:.2f})."
        )
    if document["networks"]:
        gains = [
            (
                row["network"],
                f"{row['gain']:.2f} ({row['gain_as_in_the_trial']:.2f})",
                "-" if row["published_gain"] is None else f"{row['published_gain']:.2f}",
                *(f"{1e3 * row['emulated_s_at_1.8_GHz'][kind]:.0f} ms" for kind in ("fp32", "int8")),
                *(
                    "-" if row["published_s"][kind] is None else f"{1e3 * row['published_s'][kind]:.0f} ms"
                    for kind in ("fp32", "int8")
                ),
            )
            for row in document["networks"]
        ]
        columns = ("network", "gain, emulated", "ncnn", "fp32, emulated", "int8", "fp32, ncnn", "int8")
        texts += [
            "Whole networks at 1.8 GHz beside published single-thread times of ncnn, another runtime (in "
            "brackets: a hundred cycles a call):",
            table(columns, gains),
        ]
    return "\n\n".join((*texts, circumstances(document)))


def transcript(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


BLOCKS: Final[dict[str, Callable[[Path], str]]] = {
    "transcript": lambda results: transcript((results / "transcript.txt").read_text(encoding="utf-8")),
    "prediction": lambda results: prediction(json.loads((results / "prediction.json").read_text(encoding="utf-8"))),
    "devices": lambda results: devices(json.loads((results / "devices.json").read_text(encoding="utf-8"))),
    "lookup": lambda results: lookup(json.loads((results / "lookup.json").read_text(encoding="utf-8"))),
    "predictors": lambda results: predictors(json.loads((results / "predictors.json").read_text(encoding="utf-8"))),
    "another": lambda results: another(json.loads((results / "predictors_another.json").read_text(encoding="utf-8"))),
    "models": lambda results: models(json.loads((results / "models.json").read_text(encoding="utf-8"))),
    "remote": lambda results: remote(json.loads((results / "remote.json").read_text(encoding="utf-8"))),
    "search": lambda results: search(json.loads((results / "search.json").read_text(encoding="utf-8"))),
    "communication": lambda results: communication(
        json.loads((results / "communication.json").read_text(encoding="utf-8"))
    ),
    "rounds": lambda results: rounds(json.loads((results / "rounds.json").read_text(encoding="utf-8"))),
    "ablation": lambda results: ablation(json.loads((results / "ablation.json").read_text(encoding="utf-8"))),
    "step": lambda results: steps(json.loads((results / "step.json").read_text(encoding="utf-8"))),
    "emulation": lambda results: emulation(json.loads((results / "emulation.json").read_text(encoding="utf-8"))),
    "adapt": lambda results: adapted(json.loads((results / "adapt.json").read_text(encoding="utf-8"))),
    "transfer": lambda results: transfer(json.loads((results / "transfer.json").read_text(encoding="utf-8"))),
    "wire": lambda results: wire(json.loads((results / "wire.json").read_text(encoding="utf-8"))),
}


def rewrite(text: str, results: Path) -> str:
    """The README's text with every block as the results say; raises `SystemExit` where a block or a result is not."""
    for name, block in BLOCKS.items():
        marks = (f"<!-- begin:{name} -->", f"<!-- end:{name} -->")
        pattern = re.compile(f"{re.escape(marks[0])}\n.*?{re.escape(marks[1])}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"the README has one block between {marks[0]} and {marks[1]}: put the two lines in")
        try:
            content = block(results)
        except OSError as error:
            raise SystemExit(f"the result of {name} cannot be read ({error.strerror}): run `make bench`") from None
        head, tail = pattern.split(text)
        text = f"{head}{marks[0]}\n{content}\n{marks[1]}{tail}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 when the README is stale")
    parser.add_argument("--readme", type=Path, default=README, help="the file (default: the project's)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder (default: benchmarks/results)")
    arguments = parser.parse_args()
    before = arguments.readme.read_text(encoding="utf-8")
    after = rewrite(before, arguments.results)
    if arguments.check:
        if before != after:
            sys.exit("the README's figures are those of benchmarks/results, got others: run benchmarks/readme.py")
        note("the README's figures are those of benchmarks/results")
    elif before != after:
        write_atomically(arguments.readme, after.encode())
        note("README rewritten")


if __name__ == "__main__":
    main()
