"""Claim: the search sends at least 16 times fewer bytes than fp32 federated averaging of the fixed k3e6 network, and 45
times fewer than a federated multi-path search, both ways, at an accuracy no worse than federated averaging's by 0.5
points.

Arms, all with the same split, seeds, macro-architecture, rounds and local epochs: A, FedAvg in fp32; AM, the same with
the server momentum of C2; A2, FedAvg of 8-bit differences with error feedback; B, multi-path search with averaged
alphas, fp32; B2, FedNAS's DARTS supernet, its bytes computed; C1, masked fp32 transmission; C2, the search as it is;
ceiling-K, the network that C2 decided for client K trained alone like A's. Messages are counted at four levels (ideal,
payload, Flower's own count, wire), as means per client and round. A is not charged for handing the last average out; C1
and C2 are, and for their set-up.

--ablation takes a shorter regime (3,000 training images, 25 rounds of one local epoch) and compares C2 with one variant
for each thing taken out or exchanged: `own-mask`, each client trains and sends its own network only; `one-member`,
`three-members`, as many networks a step; `hull`, the hull in place of a member in half of the steps, which the other
member learns from; `labels`, random networks of the warm-up learn by the labels; `held` to what the federation's
network says of other classes (FedNTD); `plain`, no momentum on the server; `no-warmup`, masks from the first round;
`no-explore`, no random networks in the warm-up; `norms`, `logits`, `random`, other scores of choices; `own-scores`,
each client by its own; `fine`, smaller steps on the wire; `even`, the same step for scales, shifts and biases as for
all else; `float`, 32-bit floats.

Accuracy: global, every network on all test images after its batch-norm statistics were recomputed over all clients'
training images; personal, on each client's held-out images after the same local fine-tuning. Bytes to target: until the
mean accuracy of the clients' networks on their held-out images, after a round's local epochs, first reaches a share of
A's best.

    python -m benchmarks.communication --data FOLDER     compute what is missing (hours), then compare
    python -m benchmarks.communication                   compare what there is
    python -m benchmarks.communication --quick           every step on small images; the figures mean nothing
    python -m benchmarks.communication --ablation        the same three for the ablations

FOLDER has CIFAR-10 as train.parquet and test.parquet (columns image, label). Every arm and seed is kept in
results/communication/ARM-SEED.json when it is done, with which images were classified correctly; a killed run goes on
after its last round when it is started again with the same --work. Several may run at once in the same folders. The
ceilings are run when they are asked for, after C2: --arms ceiling-0,ceiling-4.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the siblings, when this runs as benchmarks.communication

from federations.arms import ABLATIONS, COMPUTED, Job, check_arm, run_job
from federations.comparison import ARMS, COLUMNS, compare, read_results, rows
from federations.regime import ABLATION, DIGITS, QUICK, Regime
from record import RESULTS, Benchmark

from faqs.errors import FaqsError
from hwcost import HwcostError, note, print_table

BENCHMARK: Final = Benchmark("communication", __doc__ or "")
ABLATION_CLAIM: Final = (
    "Claim: without any of what is on by default in the search, or with another rule in its place, its networks are "
    "less accurate or its messages larger, on the same seeds and images."
)
WORK: Final = Path(__file__).resolve().parents[1] / "runs"
PER_PROCESS: Final = {
    "OMP_NUM_THREADS": "1",
    # Freed memory is kept, so that no step waits for the system to hand it out again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def names(text: str) -> list[str]:
    try:
        return [check_arm(part) for part in text.split(",") if part]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def jobs(arguments: argparse.Namespace, regime: Regime, source: str, work: Path, results: Path) -> list[Job]:
    """Seed by seed, so that every arm has some result early."""
    return [
        Job(arm, seed, regime, source, work, results, arguments.quick)
        for seed in arguments.seeds
        for arm in arguments.arms
        if arm != COMPUTED and (arm != "B" or seed in arguments.seeds_b)
    ]


def run_all(todo: Sequence[Job], side_by_side: int) -> None:
    if side_by_side == 1:
        for job in todo:
            note(run_job(job))
        return
    with ProcessPoolExecutor(side_by_side, mp_context=get_context("spawn")) as pool:
        for finished in as_completed([pool.submit(run_job, job) for job in todo]):
            note(finished.result())


def run(arguments: argparse.Namespace, benchmark: Benchmark) -> None:
    document = benchmark.start(arguments)
    regime = QUICK if arguments.quick else ABLATION if arguments.ablation else Regime()
    regime = replace(regime, rounds=arguments.rounds or regime.rounds)
    with tempfile.TemporaryDirectory(prefix="faqs-bench-") as folder:
        work = (arguments.work or (Path(folder) if arguments.quick else WORK / benchmark.name)).resolve()
        results = (arguments.results or (work / "results" if arguments.quick else RESULTS / benchmark.name)).resolve()
        if arguments.quick or arguments.data:
            source = DIGITS if arguments.data is None else str(arguments.data.resolve())
            if source == DIGITS:
                note("no --data: the embedded digits stand in for CIFAR-10")
            run_all(jobs(arguments, regime, source, work, results), arguments.jobs)
        else:
            note("no --data: nothing is computed, what there is is compared")
        compared = compare(read_results(results, regime), regime)
    print_table(f"{regime.clients} clients, {regime.rounds} rounds; per client and round", COLUMNS, rows(compared))
    benchmark.finish(arguments, document | compared)


def main() -> None:
    if any(os.environ.get(name) != value for name, value in PER_PROCESS.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **PER_PROCESS})
    parser = BENCHMARK.options()
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--full", action="store_true", help="the whole regime; the default")
    mode.add_argument("--report", action="store_true", help="compute nothing, whatever --data says")
    parser.add_argument("--ablation", action="store_true", help="what each part of the search is worth")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 as train.parquet and test.parquet")
    parser.add_argument("--arms", type=names, help="separated by commas (default: all but the ceilings)")
    parser.add_argument("--seeds", type=numbers, help="separated by commas (default: 0,1,2,3,4; --seed with --quick)")
    parser.add_argument("--seeds-b", type=numbers, help="of arm B, among --seeds (default: the first two)")
    parser.add_argument("--rounds", type=int, help="instead of the regime's; the results are another regime's then")
    parser.add_argument("--jobs", type=int, default=1, help="arms and seeds side by side, one thread each (default: 1)")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder of checkpoints (default: runs/communication or runs/ablation; none with --quick)",
    )
    parser.add_argument(
        "--results", type=Path, help="folder of results (default: results/communication or results/ablation)"
    )
    arguments = parser.parse_args()
    arguments.arms = arguments.arms or (["A", "AM", "C2", *ABLATIONS] if arguments.ablation else list(ARMS))
    arguments.seeds = arguments.seeds or ([arguments.seed] if arguments.quick else list(range(5)))
    arguments.seeds_b = arguments.seeds_b or arguments.seeds[:2]
    if arguments.report:
        arguments.data = None
    benchmark = Benchmark("ablation", ABLATION_CLAIM) if arguments.ablation else BENCHMARK
    if arguments.results is not None:
        arguments.out = arguments.out or arguments.results / f"{benchmark.name}.json"
    try:
        run(arguments, benchmark)
    except (FaqsError, HwcostError, ValueError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
