"""Claim: the commands of the README do what it shows, on any machine.

Runs them in a temporary folder, as a reader would, and keeps what appears on the terminal (stdout and stderr as they
come); long tables are cut, which "..." says. The device is a board that is not at hand, so nothing is timed. 2 minutes.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from record import RESULTS, Benchmark

from hwcost import note, print_json, write_atomically

BENCHMARK: Final = Benchmark("transcript", __doc__ or "")
COMMANDS: Final = (
    "hwcost profile --device rpi4",
    "hwcost fit",
    "faqs search --profile profiles/rpi4.json --budget latency=300us --budget 0:size=20kB",
    "faqs show {run}",
)
QUICK: Final = (
    "hwcost profile --device rpi4 --samples 0 --image 1,8,8",
    "hwcost show profiles/rpi4.json",
)
_MOST_ROWS: Final = 5
_MOST_NOTES: Final = 2
_WIDTH: Final = 150


def shorten(text: str) -> str:
    """A command's output with long tables, lists of notes and lines cut, and no place on this machine."""
    kept: list[str] = []
    rows = notes = 0
    for line in text.splitlines():
        line = re.sub(r"(?<![\w./-])/(?:[^/\s]+/)+", "", line.rstrip())
        rows = rows + 1 if line.startswith("│") else 0
        notes = notes + 1 if line.startswith("  note ") else 0
        if rows > _MOST_ROWS or notes > _MOST_NOTES:
            if not kept[-1].endswith("..."):
                kept.append("  ..." if notes else "│ ...")
        elif len(line) > _WIDTH and line[:1] not in "┏┃┡│└":
            kept.append(line[: line.rindex(" ", 0, _WIDTH)] + " ...")
        else:
            kept.append(line)
    return "\n".join(kept)


def run(arguments: argparse.Namespace) -> None:
    document: dict[str, Any] = BENCHMARK.start(arguments)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    parts, codes = [], []
    with tempfile.TemporaryDirectory(prefix="faqs-bench-") as folder:
        for template in QUICK if arguments.quick else COMMANDS:
            runs = sorted(Path(folder, "runs").glob("*"))
            command = template.format(run=runs[-1].relative_to(folder) if runs else "")
            note(f"$ {command}")
            done = subprocess.run(
                command.split(),
                cwd=folder,
                env={**os.environ, "PATH": path, "COLUMNS": str(_WIDTH)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            codes.append(done.returncode)
            parts.append(f"$ {command}\n{shorten(done.stdout)}\n")
    text = "\n".join(parts)
    target = arguments.out or (None if arguments.quick else RESULTS / "transcript.txt")
    if target is not None:
        write_atomically(target, text.encode())
        note(f"written: {os.path.relpath(target)}")
    print_json(document | {"commands": len(codes), "exit_codes": codes, "lines": text.count("\n")})
    if any(codes):
        sys.exit(f"every command of the transcript succeeds, got exit codes {codes}")


def main() -> None:
    run(BENCHMARK.options().parse_args())


if __name__ == "__main__":
    main()
