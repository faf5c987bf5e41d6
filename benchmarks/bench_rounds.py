"""Claim: a round of the search takes at most half as long as one of a federated multi-path search.

Both federations of the communication benchmark at once, a core each, so that whatever else the machine does hits both
alike: the full regime on CIFAR-10, until the search has decided and gone on for some rounds, when both are stopped; or
the quick one on the embedded digits. About 10 minutes.

    python benchmarks/bench_rounds.py --data FOLDER     FOLDER has CIFAR-10 as train.parquet and test.parquet
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Final

from federations.regime import QUICK
from record import Benchmark, summary

from hwcost import note, print_table

BENCHMARK: Final = Benchmark("rounds", __doc__ or "")
LEAST: Final = {"B": 5, "C2": 14}
"""Rounds of each before both are stopped; of the search's first ten, clients train all networks, and decide then."""
ROOT: Final = Path(__file__).resolve().parents[1]
ROUND: Final = re.compile(r"(\w+), seed \d+: round \d+ of \d+")


def round_seconds(options: list[str], least: dict[str, int]) -> dict[str, list[float]]:
    """Seconds between the reports of one round and the next, of both, until each has so many rounds or all are over."""
    ended: dict[str, list[float]] = {arm: [] for arm in least}
    command = [sys.executable, "-m", "benchmarks.communication", "--arms", ",".join(least), "--jobs", "2", *options]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert running.stderr is not None
        for line in running.stderr:
            if found := ROUND.search(line):
                ended[found[1]].append(time.monotonic())
                note(line.rstrip())
            if all(len(times) > least[arm] for arm, times in ended.items()):
                break
        else:
            if running.wait():
                raise subprocess.CalledProcessError(running.returncode, command)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGTERM)
            running.wait()
    return {arm: [after - before for before, after in pairwise(times)] for arm, times in ended.items()}


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    with tempfile.TemporaryDirectory(prefix="faqs-bench-", ignore_cleanup_errors=True) as folder:
        options = ["--work", folder, "--results", f"{folder}/results", "--seeds", str(arguments.seed)]
        options += ["--data", str(arguments.data.resolve())] if arguments.data else ["--quick"]
        seconds = round_seconds(options, dict.fromkeys(LEAST, QUICK.rounds) if arguments.quick else LEAST)
    found = {arm: summary(times) for arm, times in seconds.items()}
    ratio = found["C2"]["median"] / found["B"]["median"]
    rows = [
        (arm, str(len(seconds[arm])), f"{one['median']:.1f} s", f"{one['most']:.1f} s") for arm, one in found.items()
    ]
    print_table("A round of all clients", ("arm", "rounds", "median", "longest"), rows)
    note(f"a round of the search takes {ratio:.2f} times as long as one of the multi-path search")
    BENCHMARK.finish(arguments, document | {"rounds": found, "seconds": seconds, "ratio": ratio})


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 as train.parquet and test.parquet")
    arguments = parser.parse_args()
    if bool(arguments.quick) == bool(arguments.data):
        parser.error("give --data the folder with CIFAR-10, or --quick for a few rounds on the embedded digits")
    run(arguments)


if __name__ == "__main__":
    main()
