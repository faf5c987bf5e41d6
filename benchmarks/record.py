"""What every benchmark does alike: its options, the circumstances of a run, and where its result goes."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from hwcost import detect_machine, note, print_json, write_atomically, writing

RESULTS: Final = Path(__file__).resolve().parent / "results"
_VERSIONS: Final = ("faqs-hwcost", "numpy", "onnxruntime", "torch", "xgboost-cpu", "zstandard")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark by its name and its claim, the first paragraph of its script's docstring."""

    name: str
    docstring: str

    @property
    def claim(self) -> str:
        return " ".join(self.docstring.split("\n\n")[0].split())

    def options(self) -> argparse.ArgumentParser:
        """--seed, --quick and --out, for a script to add its own."""
        parser = argparse.ArgumentParser(
            description=self.docstring, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
        parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; the figures mean nothing")
        where = f"benchmarks/results/{self.name}.json, nowhere with --quick"
        parser.add_argument("--out", type=Path, help=f"file of the result (default: {where})")
        return parser

    def start(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """The head of the result: what is claimed, and where and when it was tried."""
        return {
            "benchmark": self.name,
            "claim": self.claim,
            "quick": bool(arguments.quick),
            "seed": int(arguments.seed),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": detect_machine().model_dump(exclude={"affinity", "system"}),
            "load_before": load(),
            "versions": {name: version(name) for name in _VERSIONS},
        }

    def finish(self, arguments: argparse.Namespace, document: dict[str, Any]) -> None:
        """Write the result, and print it as the last line of stdout."""
        document["load_after"] = load()
        target = arguments.out or (None if arguments.quick else RESULTS / f"{self.name}.json")
        if target is not None:
            with writing(target):
                write_atomically(target, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
            note(f"written: {os.path.relpath(target)}")
        print_json(document)


def load() -> float:
    """Processes that wanted a core in the last minute, on average; 1 of them is the benchmark itself."""
    return round(os.getloadavg()[0], 2)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, and the ends of the values."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "median": float(np.median(array)),
        "mean": float(array.mean()),
        "least": float(array.min()),
        "most": float(array.max()),
    }
