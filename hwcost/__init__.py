"""Measure and predict what neural-network operators cost on a device, at 32, 8, 4 and 2 bits.

The names below are the public interface. They load on first use, so that importing the package, and `--help`, stay
light: no torch, scikit-learn, xgboost or onnxruntime before something needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwcost.errors import HwcostError as HwcostError
    from hwcost.profiles import Profile as Profile

_PUBLIC: dict[str, str] = {
    "HwcostError": "hwcost.errors",
    "Profile": "hwcost.profiles",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hwcost' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
