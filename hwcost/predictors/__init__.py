"""The predictors by name: a literal table, loaded on use, and whatever other packages register.

A package adds its own by an entry point in the group `hwcost.predictors`, `name = "module:Class"`.
"""

from importlib import import_module
from importlib.metadata import entry_points

from hwcost.errors import UnknownPredictorError
from hwcost.predictors.base import Predictor

GROUP = "hwcost.predictors"

BUILT_IN: dict[str, str] = {
    "flops": "hwcost.predictors.linear:FlopsPredictor",
    "roofline": "hwcost.predictors.roofline:RooflinePredictor",
    "linear": "hwcost.predictors.linear:LinearPredictor",
    "tiled": "hwcost.predictors.linear:TiledPredictor",
    "forest": "hwcost.predictors.forest:ForestPredictor",
    "boosted": "hwcost.predictors.boosted:BoostedPredictor",
    "mlp": "hwcost.predictors.mlp:MlpPredictor",
    "nn-meter": "hwcost.predictors.nnmeter:NnMeterPredictor",
}
"""Simplest first: where two predict equally well, the first is kept."""

_DERIVED = {
    "borrowed": "hwcost.predictors.borrowed:BorrowedPredictor",
    "shifted": "hwcost.predictors.shifted:ShiftedPredictor",
}
"""Need another family's rows, or another device's predictor, so `hwcost.fit` and `hwcost.adapt` make them and nobody
asks for them."""


def _table() -> dict[str, str]:
    table = dict(BUILT_IN)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        if entry.name in table:
            raise UnknownPredictorError(
                f"a predictor's name is given once, got {entry.name!r} for {table[entry.name]} and for {entry.value}: "
                "uninstall one of the packages"
            )
        table[entry.name] = entry.value
    return table


def predictor_names() -> tuple[str, ...]:
    """Every name, the built-in ones first."""
    return tuple(_table())


def load_predictor(name: str) -> type[Predictor]:
    """The class of a name; raises `UnknownPredictorError`."""
    table = {**_DERIVED, **_table()}
    if name not in table:
        raise UnknownPredictorError(f"a predictor is one of {', '.join(_table())}, got {name!r}")
    module, _, attribute = table[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownPredictorError(f"predictor {name!r} cannot be loaded from {table[name]}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Predictor)):
        raise UnknownPredictorError(f"predictor {name!r} is a subclass of hwcost.Predictor, got {table[name]}")
    return found
