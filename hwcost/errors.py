"""Every error that hwcost raises on purpose: one base, and each child also a builtin type.

A message says the rule, what was got, and what to do; the command line prints it as one line and exits 1.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class HwcostError(Exception):
    """Base of all deliberate errors of this package."""


class UnknownDeviceError(HwcostError, LookupError):
    """A device class that no file in `hwcost/devices/` describes."""


class UnknownOperatorError(HwcostError, LookupError):
    """An operator that cannot be described, measured or priced: never priced at zero."""


class UnknownPredictorError(HwcostError, LookupError):
    """A predictor name that is neither built in nor an entry point of `hwcost.predictors`."""


class UnsupportedPrecisionError(HwcostError, ValueError):
    """A pair of weight and activation bits that has no realisation for an operator."""


class InvalidOperatorError(HwcostError, ValueError):
    """An operator whose numbers contradict each other (an empty output, channels not divisible by groups)."""


class FieldError(InvalidOperatorError):
    """One field of an operator that cannot be read; `field` names it, empty where the fields contradict each other."""

    def __init__(self, field: str, text: str) -> None:
        self.field, self.text = field, text
        super().__init__(f"{field}: {text}" if field else text)


class InvalidSpaceError(HwcostError, ValueError):
    """A search space or an architecture that is not legal."""


class ProfileError(HwcostError, ValueError):
    """A profile that is missing, unreadable, of another version, or that contradicts itself."""


class TransferError(HwcostError, ValueError):
    """What is known of some devices cannot be carried over to another: too few samples, none that fit, the same one."""


class FitError(HwcostError, ValueError):
    """A fitted predictor that is missing, stale, unreadable, or that cannot be fitted from these rows."""


class TableError(HwcostError, ValueError):
    """A lookup table that contradicts itself, or that is asked for a metric or shape it does not have; a measurement
    table (CSV, Parquet) that cannot be read."""


class ModelError(HwcostError, ValueError):
    """An ONNX model that cannot be read or whose shapes are not known."""


class MeasurementError(HwcostError, RuntimeError):
    """The runtime refused to build or run an operator, or a profile was asked for on the wrong machine."""


class QuantityError(HwcostError, ValueError):
    """A quantity such as `5ms` or `100kB` that cannot be read."""


class OutputError(HwcostError, OSError):
    """A file that could not be written (a full disk, no permission)."""


def first_fault(error: "ValidationError", whole: str = "the document") -> str:
    """The first wrong field of a document and its rule, `rows.0.latency_s: Input should be greater than 0`.

    `whole` names the place of a fault that is of no single field.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
