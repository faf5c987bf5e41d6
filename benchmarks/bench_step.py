"""Claim: a training step of the supernet takes at most 1.5 times that of a plain float network of the same size, and a
client's memory at most 3 times as much.

The macro-architecture is that of the communication benchmark. Steps (forward, backward, update of 32 images, one
thread) of the supernet on one decided path and of the same network in plain float, in turn, so that whatever else the
machine does hits both alike; the same for the multi-path network of the baselines and for a gate step with all widths.
Memory is the peak of a process of its own for each, less that of a process that only imports (Linux). About 2 minutes.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from federations.networks import FloatNet, MultiPathNet
from federations.regime import Regime
from record import Benchmark, summary
from torch import nn
from torch.nn import functional

from faqs.superkernel import Gates
from faqs.supernet import new_supernet
from faqs.train import initial_logits, keep_freed_memory
from hwcost import BlockChoice, note, print_table, progress

BENCHMARK: Final = Benchmark("step", __doc__ or "")
BATCH: Final = 32
NETWORKS: Final = ("k3e6", "k5e6", "k3e3")
Step = Callable[[], None]


def stepper(kind: str, seed: int) -> Step:
    """One training step of `plain NAME`, `supernet NAME`, `gates` or `multi-path`."""
    regime, generator = Regime(), torch.Generator().manual_seed(seed)
    space = regime.space((3, 32, 32), 10)
    images = torch.rand((BATCH, *space.image), generator=generator)
    labels = torch.randint(space.classes, (BATCH,), generator=generator)
    what, _, name = kind.partition(" ")
    architecture = (BlockChoice.parse(f"{name or 'k5e6'}b8"),) * len(space.blocks)
    network: nn.Module
    run: Callable[[torch.Tensor], torch.Tensor]
    if what in ("plain", "multi-path"):
        network = run = FloatNet(space, architecture) if what == "plain" else MultiPathNet(space)
    else:
        network = supernet = new_supernet(space, seed)
        decided, logits = supernet.hard_gates(architecture), initial_logits(space).requires_grad_(True)

        def run(x: torch.Tensor) -> torch.Tensor:
            if what == "supernet":
                return supernet(x, decided)  # type: ignore[no-any-return]
            return supernet(x, [Gates.sample(space, row, 1.0, generator) for row in logits])  # type: ignore[no-any-return]

    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(run(images), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def paired(first: Step, second: Step, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios first / second of steps in turn, and the milliseconds of the first."""
    for step in (first, second) * 2:
        step()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return summary([a / b for a, b in pairs]), summary([1e3 * a for a, _ in pairs])


def peak_bytes(kind: str) -> int:
    """Of a process that takes three steps (`nothing`: that only imports)."""
    script = Path(__file__).resolve()
    done = subprocess.run([sys.executable, str(script), "--peak-of", kind], capture_output=True, text=True, check=True)
    return int(done.stdout)


def print_peak(kind: str, seed: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    if kind != "nothing":
        step = stepper(kind, seed)
        for _ in range(3):
            step()
    # Not getrusage: that counts from before exec, so the parent's memory, too.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(1024 * int(status["VmHWM"].split()[0]))


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    repeats = 3 if arguments.quick else 60
    pairs = [(f"supernet {name}", f"plain {name}") for name in NETWORKS]
    pairs += [("gates", "plain k5e6"), ("multi-path", "plain k3e6")]
    empty, rows = peak_bytes("nothing"), []
    found: list[dict[str, Any]] = []
    with progress("stepping") as report:
        for place, (kind, baseline) in enumerate(pairs):
            report(place, len(pairs), kind)
            ratio, milliseconds = paired(stepper(kind, arguments.seed), stepper(baseline, arguments.seed), repeats)
            memory = (peak_bytes(kind) - empty) / (peak_bytes(baseline) - empty)
            found.append({"step": kind, "against": baseline, "ratio": ratio, "ms": milliseconds, "memory": memory})
            cells = (f"{milliseconds['median']:.0f} ms", f"{ratio['median']:.2f}", f"{memory:.2f}")
            rows.append((kind, baseline, *cells))
    print_table("Training steps of 32 images", ("step", "against", "median", "time /", "memory /"), rows)
    worst = max(one["ratio"]["median"] for one in found[: len(NETWORKS)])
    note(f"the supernet's steps take up to {worst:.2f} times a plain network's")
    BENCHMARK.finish(arguments, document | {"batch": BATCH, "steps": found})


def main() -> None:
    parser = BENCHMARK.options()
    parser.add_argument("--peak-of", help="print the peak memory of these steps, in bytes, and nothing else")
    arguments = parser.parse_args()
    if arguments.peak_of:
        print_peak(arguments.peak_of, arguments.seed)
    else:
        run(arguments)


if __name__ == "__main__":
    main()
