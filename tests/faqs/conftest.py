"""A small search space, its table for the estimated Raspberry Pi 4, and configurations that run in seconds."""

from pathlib import Path
from typing import Any

import pytest

from faqs.config import SearchConfig, parse_config
from hwcost import CostModel, LookupTable, SearchSpace, build_table, write_profile
from hwcost.devices import load_device
from hwcost.estimate import estimate_profile

TINY_SPACE = {"stem_channels": 8, "stages": [(8, 1, 1), (8, 2, 2)]}


def tiny_fields(**changes: Any) -> dict[str, Any]:
    training = {"local_epochs": 1, "personal_epochs": 1, "batch_size": 64}
    return {"rounds": 3, "clients": 3, "alpha": 2.0, "space": TINY_SPACE, "training": training, **changes}


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return tiny_config().search_space((1, 8, 8), 10)


def tiny_config(**changes: Any) -> SearchConfig:
    return parse_config(tiny_fields(profiles=["rpi4.json"], **changes), "test")


@pytest.fixture(scope="session")
def cost_model(space: SearchSpace) -> CostModel:
    wider = SearchSpace.for_image((1, 8, 8), 10).operators()
    return CostModel(estimate_profile(load_device("rpi4"), tuple(dict.fromkeys(space.operators() + wider))), None)


@pytest.fixture(scope="session")
def table(space: SearchSpace, cost_model: CostModel) -> LookupTable:
    return build_table(space, cost_model)


@pytest.fixture
def profile_path(tmp_path: Path, cost_model: CostModel) -> Path:
    path = tmp_path / "rpi4.json"
    write_profile(cost_model.profile, path)
    return path
