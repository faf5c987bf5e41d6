"""Measure and predict what neural-network operators cost on a device, at 32, 8, 4 and 2 bits.

The names below are the public interface. They load on first use, so that importing the package, and `--help`, stay
light: no torch, scikit-learn, xgboost or onnxruntime before something needs them.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwcost.adapt import adapt_profile as adapt_profile
    from hwcost.agent import session as session
    from hwcost.archive import pack as pack
    from hwcost.archive import unpack as unpack
    from hwcost.check import Check as Check
    from hwcost.check import Prediction as Prediction
    from hwcost.check import check_model as check_model
    from hwcost.check import predict_model as predict_model
    from hwcost.compare import Comparison as Comparison
    from hwcost.compare import compare_profiles as compare_profiles
    from hwcost.console import note as note
    from hwcost.console import print_json as print_json
    from hwcost.console import print_table as print_table
    from hwcost.console import progress as progress
    from hwcost.console import run_cli as run_cli
    from hwcost.console import writing as writing
    from hwcost.devices import DeviceClass as DeviceClass
    from hwcost.devices import known_devices as known_devices
    from hwcost.devices import load_device as load_device
    from hwcost.devices import runs_here as runs_here
    from hwcost.errors import HwcostError as HwcostError
    from hwcost.errors import InvalidSpaceError as InvalidSpaceError
    from hwcost.errors import MeasurementError as MeasurementError
    from hwcost.errors import ModelError as ModelError
    from hwcost.errors import OutputError as OutputError
    from hwcost.errors import ProfileError as ProfileError
    from hwcost.errors import QuantityError as QuantityError
    from hwcost.errors import TransferError as TransferError
    from hwcost.errors import UnknownOperatorError as UnknownOperatorError
    from hwcost.errors import UnsupportedPrecisionError as UnsupportedPrecisionError
    from hwcost.estimate import estimate_profile as estimate_profile
    from hwcost.files import write_atomically as write_atomically
    from hwcost.fit import FamilyReport as FamilyReport
    from hwcost.fit import Fit as Fit
    from hwcost.fit import fit_path as fit_path
    from hwcost.fit import fit_profile as fit_profile
    from hwcost.fit import read_fit as read_fit
    from hwcost.fit import write_fit as write_fit
    from hwcost.importing import import_profile as import_profile
    from hwcost.layer import CostLayer as CostLayer
    from hwcost.lookup import METRICS as METRICS
    from hwcost.lookup import LookupTable as LookupTable
    from hwcost.lookup import build_table as build_table
    from hwcost.machine import detect_machine as detect_machine
    from hwcost.model import ModelLayers as ModelLayers
    from hwcost.model import read_model as read_model
    from hwcost.notation import parse_key as parse_key
    from hwcost.ops import FLOAT as FLOAT
    from hwcost.ops import INT8 as INT8
    from hwcost.ops import Boundary as Boundary
    from hwcost.ops import Conv as Conv
    from hwcost.ops import Elementwise as Elementwise
    from hwcost.ops import Gemm as Gemm
    from hwcost.ops import Operator as Operator
    from hwcost.ops import Pool as Pool
    from hwcost.ops import Precision as Precision
    from hwcost.predictors import load_predictor as load_predictor
    from hwcost.predictors import predictor_names as predictor_names
    from hwcost.predictors.base import Predictor as Predictor
    from hwcost.pricing import CostModel as CostModel
    from hwcost.pricing import Price as Price
    from hwcost.pricing import Total as Total
    from hwcost.pricing import load_cost_model as load_cost_model
    from hwcost.profiles import Int8Form as Int8Form
    from hwcost.profiles import Machine as Machine
    from hwcost.profiles import Profile as Profile
    from hwcost.profiles import Row as Row
    from hwcost.profiles import read_profile as read_profile
    from hwcost.profiles import write_profile as write_profile
    from hwcost.runtime import RUNTIME_ERRORS as RUNTIME_ERRORS
    from hwcost.runtime import time_model as time_model
    from hwcost.space import SKIP as SKIP
    from hwcost.space import Architecture as Architecture
    from hwcost.space import BlockChoice as BlockChoice
    from hwcost.space import BlockSpec as BlockSpec
    from hwcost.space import Layer as Layer
    from hwcost.space import SearchSpace as SearchSpace
    from hwcost.space import Stage as Stage
    from hwcost.tables import write_table as write_table
    from hwcost.transfer import Transfer as Transfer
    from hwcost.units import format_bytes as format_bytes
    from hwcost.units import format_joules as format_joules
    from hwcost.units import format_seconds as format_seconds
    from hwcost.units import parse_bytes as parse_bytes
    from hwcost.units import parse_joules as parse_joules
    from hwcost.units import parse_seconds as parse_seconds

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is loaded, whoever loads it

_PUBLIC: dict[str, str] = {
    "session": "hwcost.agent",
    "RUNTIME_ERRORS": "hwcost.runtime",
    "Int8Form": "hwcost.profiles",
    "unpack": "hwcost.archive",
    "pack": "hwcost.archive",
    "ProfileError": "hwcost.errors",
    "writing": "hwcost.console",
    "progress": "hwcost.console",
    "note": "hwcost.console",
    "print_table": "hwcost.console",
    "print_json": "hwcost.console",
    "run_cli": "hwcost.console",
    "write_atomically": "hwcost.files",
    "HwcostError": "hwcost.errors",
    "UnsupportedPrecisionError": "hwcost.errors",
    "QuantityError": "hwcost.errors",
    "InvalidSpaceError": "hwcost.errors",
    "Fit": "hwcost.fit",
    "FamilyReport": "hwcost.fit",
    "fit_path": "hwcost.fit",
    "fit_profile": "hwcost.fit",
    "read_fit": "hwcost.fit",
    "write_fit": "hwcost.fit",
    "CostLayer": "hwcost.layer",
    "METRICS": "hwcost.lookup",
    "LookupTable": "hwcost.lookup",
    "build_table": "hwcost.lookup",
    "detect_machine": "hwcost.machine",
    "FLOAT": "hwcost.ops",
    "INT8": "hwcost.ops",
    "Boundary": "hwcost.ops",
    "Conv": "hwcost.ops",
    "Elementwise": "hwcost.ops",
    "Gemm": "hwcost.ops",
    "Operator": "hwcost.ops",
    "Pool": "hwcost.ops",
    "Precision": "hwcost.ops",
    "load_predictor": "hwcost.predictors",
    "predictor_names": "hwcost.predictors",
    "Predictor": "hwcost.predictors.base",
    "CostModel": "hwcost.pricing",
    "Price": "hwcost.pricing",
    "Total": "hwcost.pricing",
    "load_cost_model": "hwcost.pricing",
    "Machine": "hwcost.profiles",
    "Profile": "hwcost.profiles",
    "Row": "hwcost.profiles",
    "read_profile": "hwcost.profiles",
    "write_profile": "hwcost.profiles",
    "time_model": "hwcost.runtime",
    "SKIP": "hwcost.space",
    "Architecture": "hwcost.space",
    "BlockChoice": "hwcost.space",
    "BlockSpec": "hwcost.space",
    "Layer": "hwcost.space",
    "SearchSpace": "hwcost.space",
    "Stage": "hwcost.space",
    "format_bytes": "hwcost.units",
    "format_joules": "hwcost.units",
    "format_seconds": "hwcost.units",
    "parse_bytes": "hwcost.units",
    "parse_joules": "hwcost.units",
    "parse_seconds": "hwcost.units",
    "OutputError": "hwcost.errors",
    "UnknownOperatorError": "hwcost.errors",
    "ModelError": "hwcost.errors",
    "MeasurementError": "hwcost.errors",
    "DeviceClass": "hwcost.devices",
    "known_devices": "hwcost.devices",
    "load_device": "hwcost.devices",
    "runs_here": "hwcost.devices",
    "estimate_profile": "hwcost.estimate",
    "ModelLayers": "hwcost.model",
    "read_model": "hwcost.model",
    "Prediction": "hwcost.check",
    "Check": "hwcost.check",
    "predict_model": "hwcost.check",
    "check_model": "hwcost.check",
    "Comparison": "hwcost.compare",
    "compare_profiles": "hwcost.compare",
    "import_profile": "hwcost.importing",
    "parse_key": "hwcost.notation",
    "write_table": "hwcost.tables",
    "adapt_profile": "hwcost.adapt",
    "Transfer": "hwcost.transfer",
    "TransferError": "hwcost.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hwcost' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
