"""Claim: a message of the federation comes within a few per cent of the empirical entropy of its codes, is 20 times
smaller than fp32 or more at the default step, no larger than int8 codes through plain zstandard, at tens of MB/s.

Messages have the tensors of a real search space's largest network. Their values are deltas: of the supernet after local
training on the digits, and synthetic ones (Laplace, Gauss, Student-t) with a scale of its own for each tensor. The
ceiling is the order-0 entropy of all codes of a message; what a coder spends below or above it is told as a share.
Baselines in the same run: 32 bits, and zstandard (level 19) of the codes, a byte each. Speeds are MB of fp32
a second through quantise + encode and decode + dequantise, medians of repeated runs. Under a minute.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from record import Benchmark, summary

from faqs.config import TrainingConfig, WireConfig
from faqs.data import load_dataset
from faqs.deltas import code, shared_arrays
from faqs.supernet import new_supernet, shared_cuts
from faqs.train import Hyperparameters, Step, train_weights
from faqs.wire import QuantisedTensor, Tensor, WireMessage, decode, encode
from hwcost import SearchSpace, note, print_table, progress

BENCHMARK: Final = Benchmark("wire", __doc__ or "")
SPACES: Final = {
    "digits": SearchSpace.for_image((1, 8, 8), 10),
    "CIFAR": SearchSpace.for_image((3, 32, 32), 10),
}
WIRE: Final = WireConfig()
DEFAULT_STEP: Final = WIRE.relative_step_up
STEPS: Final = (0.5, 1.0, DEFAULT_STEP)

Deltas = dict[str, NDArray[np.float32]]


def synthetic(space: SearchSpace, kind: str, rng: np.random.Generator) -> Deltas:
    """Flat deltas of unit-free shape: independent values, one log-normal scale a tensor."""
    draw: dict[str, Callable[[int], NDArray[np.float64]]] = {
        "Laplace": lambda size: rng.laplace(size=size),
        "Gauss": lambda size: rng.standard_normal(size=size),
        "Student-t": lambda size: rng.standard_t(3, size=size),
    }
    lengths = {name: value.size for name, value in shared_arrays(new_supernet(space, 0)).items()}
    return {
        name: (np.exp(rng.normal(-5.0, 1.0)) * draw[kind](size)).astype(np.float32) for name, size in lengths.items()
    }


def trained(space: SearchSpace, seed: int) -> Deltas:
    """What one epoch on the digits changes, from the common seed."""
    settings = Hyperparameters.of({**TrainingConfig().model_dump(), "local_epochs": 1})
    supernet = new_supernet(space, seed)
    before = shared_arrays(supernet)
    generator = torch.Generator().manual_seed(seed)
    digits, path = load_dataset("digits"), space.largest
    train_weights(supernet, lambda _: Step(path, []), digits, settings, settings.learning_rate, generator)
    after = shared_arrays(supernet)
    return {name: (after[name] - before[name]).reshape(-1) for name in before}


def entropy_bits(codes: NDArray[np.int8]) -> float:
    """Order-0 entropy of the codes, bits a coordinate."""
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / codes.size
    return float(-(shares * np.log2(shares)).sum())


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repetition, after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(space: SearchSpace, deltas: Deltas, relative_step: float, repeats: int) -> dict[str, Any]:
    lengths = {name: value.size for name, value in deltas.items()}
    count = sum(lengths.values())
    cuts = shared_cuts(space, space.largest)

    def quantised() -> dict[str, Tensor]:
        return code(deltas, cuts, relative_step, WIRE.vector_step)

    def send() -> bytes:
        return encode(WireMessage({"round": 1}, quantised()))

    def receive() -> dict[str, NDArray[np.float32]]:
        return {name: tensor.dequantise() for name, tensor in decode(blob, lengths=lengths).tensors.items()}

    def coded() -> dict[str, QuantisedTensor]:
        return {name: one for name, one in quantised().items() if isinstance(one, QuantisedTensor)}

    def plain() -> bytes:
        return zstandard.ZstdCompressor(level=19).compress(
            np.concatenate([one.codes for one in coded().values()]).tobytes()
        )

    blob, tensors = send(), coded()
    arrived = decode(blob, lengths=lengths).tensors
    if any(arrived[name] != tensor for name, tensor in tensors.items()):
        raise SystemExit("a message arrives as it was sent, got other codes")
    codes = np.concatenate([tensor.codes for tensor in tensors.values()])
    lost = sum(float(((value - tensors[name].dequantise()) ** 2).sum()) for name, value in deltas.items())
    entropy, bits, plain_bits = entropy_bits(codes), 8 * len(blob) / count, 8 * len(plain()) / count
    megabytes = 4 * count / 1e6
    speeds = {
        name: summary([megabytes / seconds for seconds in timed(work, repeats)])
        for name, work in (("encode", send), ("decode", receive), ("plain", plain))
    }
    return {
        "coordinates": count,
        "tensors": len(deltas),
        "relative_step": relative_step,
        "entropy_bits": entropy,
        "bits": bits,
        "over_entropy": bits / entropy - 1,
        "smaller_than_fp32": 32 / bits,
        "plain_zstd_bits": plain_bits,
        "smaller_than_plain_zstd": plain_bits / bits,
        "squared_error_share": lost / sum(float((value**2).sum()) for value in deltas.values()),
        "encode_mb_per_s": speeds["encode"],
        "decode_mb_per_s": speeds["decode"],
        "plain_zstd_encode_mb_per_s": speeds["plain"],
        "encode_against_plain_zstd": speeds["encode"]["median"] / speeds["plain"]["median"],
    }


def run(arguments: argparse.Namespace) -> None:
    document = BENCHMARK.start(arguments)
    rng = np.random.default_rng(arguments.seed)
    kinds = ("Laplace",) if arguments.quick else ("Laplace", "Gauss", "Student-t")
    names = ("digits",) if arguments.quick else tuple(SPACES)
    cases = {(kind, name): synthetic(SPACES[name], kind, rng) for name in names for kind in kinds}
    if not arguments.quick:
        cases = {("one epoch of training", "digits"): trained(SPACES["digits"], arguments.seed), **cases}
    rows: list[dict[str, Any]] = []
    with progress("coding") as report:
        for (kind, space), deltas in cases.items():
            for step in (DEFAULT_STEP,) if arguments.quick else STEPS:
                report(len(rows), len(cases) * len(STEPS), f"{kind}, {space}, step {step}")
                measured = measure(SPACES[space], deltas, step, 1 if arguments.quick else 9)
                rows.append({"deltas": kind, "space": space, **measured})
    columns = ("deltas", "space", "coordinates", "step", "entropy", "bits", "fp32 /", "zstd /", "encode", "decode")
    print_table(
        "Messages: bits a coordinate, how many times smaller, MB of fp32 a second",
        columns,
        [
            (
                row["deltas"],
                row["space"],
                str(row["coordinates"]),
                f"{row['relative_step']}",
                f"{row['entropy_bits']:.3f}",
                f"{row['bits']:.3f}",
                f"{row['smaller_than_fp32']:.1f}",
                f"{row['smaller_than_plain_zstd']:.2f}",
                f"{row['encode_mb_per_s']['median']:.0f}",
                f"{row['decode_mb_per_s']['median']:.0f}",
            )
            for row in rows
        ],
    )
    note(f"steps are in units of the rms; the default is {DEFAULT_STEP}")
    BENCHMARK.finish(arguments, document | {"default_step": DEFAULT_STEP, "rows": rows})


def main() -> None:
    run(BENCHMARK.options().parse_args())


if __name__ == "__main__":
    main()
