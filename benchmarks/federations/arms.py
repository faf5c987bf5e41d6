"""One arm with one seed as a job: done once, kept as a JSON file, gone on with where it was killed."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from faqs.data import load_dataset
from faqs.ledger import Ledger
from federations import baselines, searches
from federations.judge import Found
from federations.regime import Regime, place_data
from hwcost import BlockChoice, SearchSpace, detect_machine, note, write_atomically

BASELINES: Final = ("A", "AM", "A2", "B")
SEARCHES: Final = ("C1", "C2")
ABLATIONS: Final = tuple(f"C2-{name}" for name in searches.VARIANTS)
COMPUTED: Final = "B2"
CEILING: Final = re.compile(r"ceiling-(\d+)")

# 1: first version.
RESULT_VERSION: Final = 1


@dataclass(frozen=True)
class Job:
    """One arm with one seed. `source`: a folder of images, or `digits`; `work`: of the checkpoints; `results`: of the
    files. All paths are absolute."""

    arm: str
    seed: int
    regime: Regime
    source: str
    work: Path
    results: Path
    quick: bool = False

    @property
    def result(self) -> Path:
        return result_path(self.results, self.arm, self.seed)

    @property
    def folder(self) -> Path:
        return self.work / f"{self.arm}-{self.seed}"


def result_path(results: Path, arm: str, seed: int) -> Path:
    return results / f"{arm}-{seed}.json"


def check_arm(arm: str) -> str:
    """The arm's name; raises `ValueError` for one that is none."""
    if arm in (*BASELINES, *SEARCHES, *ABLATIONS, COMPUTED) or CEILING.fullmatch(arm):
        return arm
    known = ", ".join((*BASELINES, COMPUTED, *SEARCHES))
    raise ValueError(
        f"an arm is one of {known}, or ceiling-CLIENT, or an ablation ({', '.join(ABLATIONS)}), got {arm!r}"
    )


def options(arm: str, regime: Regime) -> dict[str, Any]:
    """What of the method is switched on in an arm, beyond the regime; a result that was made with others is refused."""
    if arm in (*SEARCHES, *ABLATIONS):
        return searches.search_options(arm, regime)
    return {"server": {"optimiser": "momentum", "momentum": baselines.MOMENTUM}} if arm == "AM" else {}


def read_result(results: Path, arm: str, seed: int, regime: Regime) -> dict[str, Any] | None:
    """What is kept of an arm and a seed, None where nothing is; raises `ValueError` for another regime's."""
    path = result_path(results, arm, seed)
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    ours: dict[str, Any] = {"version": RESULT_VERSION} | regime.to_json()
    theirs = {"version": document.get("version")} | document.get("regime", {})
    ours |= options(arm, regime)
    theirs |= document.get("options", {})
    names = dict.fromkeys((*ours, *theirs))
    differ = [
        f"{name} {theirs.get(name)!r}, not {ours.get(name)!r}" for name in names if ours.get(name) != theirs.get(name)
    ]
    if differ:
        raise ValueError(f"{path} is of another regime ({'; '.join(differ)}): remove it, or pass another --results")
    return document


def run_job(job: Job) -> str:
    """Do it unless it is done; returns in a line what happened."""
    name = f"{job.arm}, seed {job.seed}"
    with alone(job.folder / "lock") as free:
        if not free:
            return f"{name}: another process is at it"
        if read_result(job.results, job.arm, job.seed, job.regime) is not None:
            return f"{name}: done before"
        torch.set_num_threads(1)
        try:
            with chdir(job.work):
                found = _run(job)
        except searches.NotYetError as reason:
            return f"{name}: left out: {reason}"
        document = _document(job, found)
        write_atomically(job.result, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return (
        f"{name}: {float(document['accuracy_global']):.4f} global, {float(document['accuracy_personal']):.4f} personal"
    )


@contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Whether this process has the lock, which goes with the process however that ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _run(job: Job) -> Found:
    """In its work folder: paths travel in the set-up, so they are short and the same everywhere."""
    place = place_data(job.source, job.regime, job.seed, Path())
    data = load_dataset(str(place.train))
    space = job.regime.space(data.image_shape, data.classes)

    def report(done: int) -> None:
        note(f"{job.arm}, seed {job.seed}: round {done} of {job.regime.rounds}")

    if job.arm in (*SEARCHES, *ABLATIONS):
        tables = searches.cost_tables(space, Path(), job.quick)
        config = searches.search_config(job.arm, job.regime, job.seed, place, tables)
        return searches.run(config, job.regime, place, job.folder, report)
    if CEILING.fullmatch(job.arm):
        architecture = _searched(job, space)
    else:
        architecture = () if job.arm == "B" else job.regime.fixed(space)
    task = baselines.Task(job.arm, job.regime, job.seed, place, space, architecture)
    return baselines.run(task, job.folder, report)


def _searched(job: Job, space: SearchSpace) -> tuple[BlockChoice, ...]:
    """What C2 decided for the client of a ceiling; raises `NotYetError`."""
    matched = CEILING.fullmatch(job.arm)
    assert matched is not None
    client, searched = int(matched[1]), read_result(job.results, "C2", job.seed, job.regime)
    if searched is None:
        raise searches.NotYetError(f"it trains what C2 decided, and C2 has no result for seed {job.seed}")
    if client >= job.regime.clients:
        raise searches.NotYetError(f"there is no client {client}")
    architecture = tuple(map(BlockChoice.parse, searched["facts"]["architectures"][client]))
    space.validate(architecture)
    return architecture


def _document(job: Job, found: Found) -> dict[str, Any]:
    """Everything but `timing` is the same in every run."""
    judgement = found.judgement
    weighted, plain = judgement.personal()
    weighted_before, plain_before = judgement.personal("before")
    return {
        "version": RESULT_VERSION,
        "arm": job.arm,
        "seed": job.seed,
        "regime": job.regime.to_json(),
        "options": options(job.arm, job.regime),
        "accuracy_global": judgement.accuracy_global,
        "accuracy_personal": weighted,
        "accuracy_personal_plain": plain,
        "accuracy_personal_before": weighted_before,
        "accuracy_personal_before_plain": plain_before,
        "bytes": bytes_per_round(found.ledger, job.regime),
        "curve": found.curve,
        "facts": found.facts,
        "correct": judgement.to_json(),
        "timing": {
            "round_s": found.seconds,
            "round_cpu_s": found.cpu_seconds,
            "machine": detect_machine().model_dump(include={"cpu", "architecture", "cores"}),
            "load": round(os.getloadavg()[0], 2),
        },
    }


LEVELS: Final = ("ideal", "payload", "flower", "wire")


def bytes_per_round(ledger: Ledger, regime: Regime) -> dict[str, Any]:
    """Means per client and round, everything that was sent counted; and those of the first and the last round."""

    def mean(totals: Mapping[str, float], messages: int) -> dict[str, float]:
        names = [f"{level}_{direction}" for level in LEVELS for direction in ("up", "down")]
        return {name: totals[name] / messages for name in names}

    rounds = ledger.select(kind="train").by_round()
    return {
        **mean(ledger.totals(), regime.clients * regime.rounds),
        "messages": len(ledger),
        "first_round": mean(rounds[min(rounds)], regime.clients),
        "last_round": mean(rounds[max(rounds)], regime.clients),
    }
