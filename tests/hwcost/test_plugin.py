"""A predictor of another distribution, installed as its users would install it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hwcost.profiles import write_profile
from hwcost.testing import plausible_profile, random_convolutions

_PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "median-latency"
version = "1.0"

[project.entry-points."hwcost.predictors"]
median = "median_latency:MedianPredictor"

[tool.setuptools]
py-modules = ["median_latency"]
"""

_MODULE = '''
"""Every operator costs what the median one does."""

from dataclasses import dataclass

import numpy as np

from hwcost import Predictor


@dataclass(frozen=True, eq=False)
class MedianPredictor(Predictor):
    name = "median"
    log_s: float

    @classmethod
    def fit(cls, features, latency_s, generator):
        return cls(float(np.median(cls.check_rows(features, latency_s))))

    def log_latency(self, features):
        return np.full(len(features), self.log_s)

    def state(self):
        return {"log_s": np.array(self.log_s)}

    @classmethod
    def from_state(cls, state):
        return cls(float(state["log_s"]))
'''

_COMMAND = "import sys; from hwcost.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds the installed distribution alone."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(_PROJECT)
    (source / "median_latency.py").write_text(_MODULE)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    return site


def _hwcost(site: Path, *arguments: str) -> str:
    paths = [str(site), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_distribution_adds_its_predictor_to_the_list(site: Path) -> None:
    assert "median" in _hwcost(site, "predictors")


def test_an_installed_predictor_is_fitted_compared_and_stored(site: Path, tmp_path: Path) -> None:
    profile = tmp_path / "plausible.json"
    ops = random_convolutions(np.random.default_rng(0), 20)
    write_profile(plausible_profile(list(dict.fromkeys(ops))), profile)
    document = json.loads(_hwcost(site, "fit", str(profile), "--predictor", "median", "--json"))
    text = json.dumps(document)
    assert '"median"' in text and '"roofline"' in text
    assert profile.with_name("plausible.fit.safetensors").exists()
