"""The arms beside each other, from whatever results there are: means, spreads, ratios, paired intervals."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from federations.arms import ABLATIONS, CEILING, COMPUTED, LEVELS, SEARCHES, check_arm, read_result
from federations.judge import Judgement
from federations.regime import Regime

ARMS: Final = ("A", "AM", "A2", "B", COMPUTED, *SEARCHES)
BYTES: Final = tuple(f"{level}_{direction}" for level in LEVELS for direction in ("up", "down"))
ACCURACIES: Final = ("accuracy_global", "accuracy_personal", "accuracy_personal_plain", "accuracy_personal_before")
PAIRS: Final = (
    ("C2", "A"),
    ("C2", "B"),
    ("C1", "A"),
    ("C1", "B"),
    ("A2", "A"),
    ("C2", "A2"),
    ("AM", "A"),
    ("C2", "AM"),
)
DARTS_STATE_BYTES: Final = 8_029_000
"""FedNAS's DARTS supernet: 1,930,618 weights, 224 alphas and the batch-norm statistics in float32."""
DRAWS: Final = 2000
_WHOLE: Final = "accuracy_global_of_all_paths"

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
_Pair = tuple[NDArray[np.bool_], NDArray[np.bool_]]


class _Beside(NamedTuple):
    """A network that C2 decided for a client and that was trained alone by FedAvg in float, too: which of all test
    images, and of the client's own, were right in the search and alone."""

    client: int
    seed: int
    architecture: list[str]
    overall: _Pair
    personal: _Pair


def read_results(results: Path, regime: Regime) -> Results:
    """By arm and seed, whatever there is; raises `ValueError` where one is of another regime."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {arm: {} for arm in ARMS}
    for path in sorted(results.glob("*-*.json")):
        arm, _, seed = path.stem.rpartition("-")
        document = read_result(results, check_arm(arm), int(seed), regime)
        if document is not None:
            found.setdefault(arm, {})[int(seed)] = document
    return {arm: dict(sorted(by_seed.items())) for arm, by_seed in found.items()}


def compare(results: Results, regime: Regime) -> dict[str, Any]:
    """The document's own part: `arms`, `ratios`, `differences`; an arm without a result is null."""
    targets = {
        seed: regime.target_share * max(point["accuracy"] for point in done["curve"])
        for seed, done in results.get("A", {}).items()
    }
    arms: dict[str, Any] = {}
    for arm in dict.fromkeys((*ARMS, *results)):
        arms[arm] = _arm(results[arm], targets) if results.get(arm) else None
    arms[COMPUTED] = computed()
    seeds = sorted({seed for by_seed in results.values() for seed in by_seed})
    beside = list(_beside_ceilings(results))
    return {
        "arms": arms,
        "ratios": ratios(arms),
        "differences": differences(results, beside),
        "ceilings": {
            f"{one.client}, seed {one.seed}": {
                "architecture": one.architecture,
                "accuracy_global": [float(right.mean()) for right in one.overall],
                "accuracy_personal": [float(right.mean()) for right in one.personal],
            }
            for one in beside
        },
        "seeds": seeds,
        "rounds": regime.rounds,
        "clients": regime.clients,
        "regime": regime.to_json(),
    }


def _arm(by_seed: Mapping[int, Mapping[str, Any]], targets: Mapping[int, float]) -> dict[str, Any]:
    done = list(by_seed.values())
    sent: dict[str, Any] = {name: float(np.mean([one["bytes"][name] for one in done])) for name in BYTES}
    reached = {seed: _bytes_to(one["curve"], targets[seed]) for seed, one in by_seed.items() if seed in targets}
    values = [value for value in reached.values() if value is not None]
    scores: dict[str, Any] = {name: float(np.mean([one[name] for one in done])) for name in ACCURACIES}
    spread = {name: spread_of([one[name] for one in done]) for name in ACCURACIES[:2]}
    whole = [one["facts"][_WHOLE] for one in done if _WHOLE in one["facts"]]  # of a multi-path search
    times, cpu_times = ([t for one in done for t in one["timing"][name]] for name in ("round_s", "round_cpu_s"))
    return {
        **sent,
        **scores,
        "spread": spread,
        "bytes_to_target": float(np.mean(values)) if values and len(values) == len(reached) else None,
        "bytes_to_target_by_seed": {str(seed): value for seed, value in reached.items()},
        "round_s": float(np.median(times)),
        "round_cpu_s": float(np.median(cpu_times)) if cpu_times else None,
        "first_round": _mean_of([one["bytes"]["first_round"] for one in done]),
        "last_round": _mean_of([one["bytes"]["last_round"] for one in done]),
        "seeds": sorted(by_seed),
        "by_seed": {
            str(seed): {name: one[name] for name in ACCURACIES}
            | {"round_s": float(np.median(one["timing"]["round_s"]))}
            for seed, one in by_seed.items()
        },
        "computed": False,
        **({_WHOLE: float(np.mean(whole))} if whole else {}),
    }


def computed() -> dict[str, Any]:
    """Arm B2: nothing is trained; a state goes down and comes up, and nothing around it is counted."""
    nothing: dict[str, Any] = dict.fromkeys((*ACCURACIES, "bytes_to_target", "round_s", "round_cpu_s"))
    return {name: float(DARTS_STATE_BYTES) for name in BYTES} | nothing | {"seeds": [], "computed": True}


def spread_of(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "least": min(values),
        "most": max(values),
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


def _mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in BYTES}


def _bytes_to(curve: Sequence[Mapping[str, float]], target: float) -> float | None:
    """Of all clients, both ways, on the wire, until the curve is first there."""
    return next((float(point["wire"]) for point in curve if point["accuracy"] >= target), None)


def ratios(arms: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How many times fewer bytes the first of a pair sends, both ways together; its round's time over the other's."""
    found = {}
    for one, other in (*PAIRS, ("C2", COMPUTED)):
        first, second = arms.get(one), arms.get(other)
        if not first or not second:
            continue
        both = {level: [arm[f"{level}_up"] + arm[f"{level}_down"] for arm in (first, second)] for level in LEVELS}
        entry = {level: sizes[1] / sizes[0] for level, sizes in both.items()}
        for name in ("round_s", "round_cpu_s"):
            if first[name] and second[name]:
                entry[name] = first[name] / second[name]
        if first["bytes_to_target"] and second["bytes_to_target"]:
            entry["bytes_to_target"] = second["bytes_to_target"] / first["bytes_to_target"]
        found[f"{one}/{other}"] = entry
    return found


def differences(results: Results, beside: Sequence[_Beside]) -> dict[str, Any]:
    """Accuracy of the first of a pair less the second's, on the seeds that both have, with paired intervals of 95 %;
    and of those of C2's networks that were trained alone, too, less that: networks take the place of seeds."""
    found: dict[str, Any] = {}
    for one, other in (*PAIRS, *((arm, "C2") for arm in ABLATIONS)):
        seeds = sorted(set(results.get(one, {})) & set(results.get(other, {})))
        if not seeds:
            continue
        pairs = [tuple(Judgement.from_json(results[arm][seed]["correct"]) for arm in (one, other)) for seed in seeds]
        overall = np.stack([_mean_hits(first) - _mean_hits(second) for first, second in pairs])
        personal = [_less(np.concatenate(first.after), np.concatenate(second.after)) for first, second in pairs]
        found[f"{one}-{other}"] = {
            "seeds": seeds,
            "accuracy_global": crossed_interval(overall),
            "accuracy_personal": nested_interval(personal),
        }
    if beside:
        found["C2-alone"] = {
            "seeds": sorted({network.seed for network in beside}),
            "networks": len(beside),
            "accuracy_global": crossed_interval(np.stack([_less(*network.overall) for network in beside])),
            "accuracy_personal": nested_interval([_less(*network.personal) for network in beside]),
        }
    return found


def _less(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    return first.astype(np.float64) - second


def _mean_hits(judgement: Judgement) -> NDArray[np.float64]:
    """Of the networks, for each test image."""
    return np.asarray(np.stack(judgement.overall).mean(axis=0), dtype=np.float64)


def crossed_interval(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean of values [seeds, images] and its bootstrap interval, seeds and images drawn anew, both arms on the same."""
    seeds, images = values.shape
    draw, means = np.random.default_rng(0), np.empty(DRAWS)
    for index in range(DRAWS):
        weights = np.bincount(draw.integers(images, size=images), minlength=images)
        means[index] = (values[draw.integers(seeds, size=seeds)].mean(axis=0) @ weights) / images
    return _interval(float(values.mean()), means)


def nested_interval(values: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """The same where every seed has images of its own."""
    draw, means = np.random.default_rng(0), np.empty(DRAWS)
    for index in range(DRAWS):
        drawn = [values[seed] for seed in draw.integers(len(values), size=len(values))]
        means[index] = np.mean([one[draw.integers(len(one), size=len(one))].mean() for one in drawn])
    return _interval(float(np.mean([one.mean() for one in values])), means)


def _interval(mean: float, means: NDArray[np.float64]) -> dict[str, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": mean, "low": float(low), "high": float(high)}


def _beside_ceilings(results: Results) -> Iterator[_Beside]:
    for arm, by_seed in results.items():
        if (found := CEILING.fullmatch(arm)) is None:
            continue
        client = int(found[1])
        for seed in sorted(set(by_seed) & set(results.get("C2", {}))):
            searched = results["C2"][seed]
            ours, alone = (Judgement.from_json(one["correct"]) for one in (searched, by_seed[seed]))
            yield _Beside(
                client,
                seed,
                searched["facts"]["architectures"][client],
                (ours.overall[client], alone.overall[0]),
                (ours.after[client], alone.after[client]),
            )


def rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The arms as a table; `COLUMNS` are its heads."""
    lines = []
    for arm, found in document["arms"].items():
        if found is None:
            lines.append((arm, *["-"] * (len(COLUMNS) - 1)))
            continue
        to_target = found["bytes_to_target"]
        lines.append(
            (
                f"{arm} (computed)" if found["computed"] else arm,
                str(len(found["seeds"])),
                *(f"{found[name] / 1e3:.1f}" for name in ("payload_up", "payload_down", "wire_up", "wire_down")),
                *(_percent(found, name) for name in ("accuracy_global", "accuracy_personal")),
                "-" if to_target is None else f"{to_target / 1e6:.1f}",
                "-" if found["round_s"] is None else f"{found['round_s']:.1f}",
            )
        )
    return lines


COLUMNS: Final = (
    "arm",
    "seeds",
    "payload up, kB",
    "down",
    "wire up, kB",
    "down",
    "global",
    "personal",
    "MB to target",
    "s a round",
)


def _percent(found: Mapping[str, Any], name: str) -> str:
    if found[name] is None:
        return "-"
    deviation = found["spread"][name]["deviation"]
    return f"{100 * found[name]:.2f} %" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
