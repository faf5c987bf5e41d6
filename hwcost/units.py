"""Reading and printing quantities. Inside, everything is SI: seconds, bytes (1 kB = 1000 B), joules."""

import math
import re

from hwcost.errors import QuantityError

_SCALES: dict[str, dict[str, float]] = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "m": 60.0, "min": 60.0, "h": 3600.0},
    "size": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "nJ": 1e-9},
}
_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]+)\s*")


def _parse(text: str, quantity: str, example: str) -> float:
    scales = _SCALES[quantity]
    match = _PATTERN.fullmatch(text)
    if match is None or match.group(2) not in scales:
        raise QuantityError(
            f"a {quantity} is a number with a unit ({', '.join(scales)}), got {text!r}: write it like {example}"
        )
    value = float(match.group(1)) * scales[match.group(2)]
    if not (math.isfinite(value) and value > 0):
        raise QuantityError(f"a {quantity} must be positive and finite, got {text!r}: write it like {example}")
    return value


def parse_seconds(text: str) -> float:
    """Seconds of a text such as `5ms` or `10m`; raises `QuantityError`."""
    return _parse(text, "time", "5ms")


def parse_bytes(text: str) -> float:
    """Bytes of a text such as `100kB`; raises `QuantityError`."""
    return _parse(text, "size", "100kB")


def parse_joules(text: str) -> float:
    """Joules of a text such as `0.5mJ`; raises `QuantityError`."""
    return _parse(text, "energy", "0.5mJ")


def _format(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for scale, unit in steps:
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    scale, unit = steps[-1]
    return f"{value / scale:.3g} {unit}"


def format_seconds(value_s: float) -> str:
    """`0.00512` -> `5.12 ms`."""
    if value_s >= 100:
        return f"{value_s / 60:.1f} min"
    return _format(value_s, ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")))


def format_bytes(value: float) -> str:
    """`123456` -> `123 kB` (1 kB = 1000 B)."""
    if abs(value) < 1000:
        return f"{value:.0f} B"
    return _format(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")))


def format_joules(value_j: float) -> str:
    """`1.2e-5` -> `12 uJ`."""
    return _format(value_j, ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ")))
