"""Budgets that mean something on any machine: each a share of the way from the cheapest network to the dearest one.

    faqs search ... $(python examples/budgets.py profiles/host.json profiles/rpi4.json)

Prints the `--budget` options of the demo's four clients. The search deals the profiles to the clients in turn, and so
does this.
"""

import sys
from pathlib import Path

from hwcost import LookupTable, SearchSpace, build_table, format_bytes, format_seconds, load_cost_model

# What each client limits, and how far from the cheapest network (0) towards the dearest one (1) its limit lies.
WISHES: tuple[dict[str, float], ...] = (
    {"latency": 0.5},
    {"latency": 0.4},
    {"size": 0.3},
    {"latency": 0.7, "size": 0.5},
)
DIGITS = SearchSpace.for_image((1, 8, 8), classes=10)


def limit(table: LookupTable, name: str, share: float) -> str:
    metric, written = {"latency": ("latency_s", format_seconds), "size": ("weight_bytes", format_bytes)}[name]
    least, most = table.cheapest(metric), table.dearest(metric)
    return written(least + share * (most - least)).replace(" ", "")


def main(profiles: list[str]) -> None:
    tables = [build_table(DIGITS, load_cost_model(Path(profile))) for profile in profiles]
    for client, wishes in enumerate(WISHES):
        for name, share in wishes.items():
            print(f"--budget {client}:{name}={limit(tables[client % len(tables)], name, share)}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} PROFILE [PROFILE ...]")
    main(sys.argv[1:])
