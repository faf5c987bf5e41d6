"""The configuration of one search: a TOML file, the command line's options over it, and the copy in the run folder."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from faqs.errors import ConfigError
from faqs.pareto import Form
from faqs.preference import Preference, parse_budget
from hwcost import InvalidSpaceError, SearchSpace, Stage, UnsupportedPrecisionError

DEFAULT_WEIGHTS = {"latency": 0.05, "size": 0.05}
"""The mild preference of a client that states none."""

Mask = Literal["hull", "own"]
"""What a client exchanges after the decisions: the smallest network that holds all clients', or its own."""

_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClientConfig(BaseModel):
    """One client: the profile of its device and its preference; budgets as users write them (`latency = "5ms"`)."""

    model_config = _STRICT

    profile: str | None = None
    budget: dict[str, str] = {}
    weights: dict[str, float] = {}

    @property
    def preference(self) -> Preference:
        """Raises `ConfigError`."""
        budgets = dict(parse_budget(f"{name}={value}") for name, value in self.budget.items())
        weights = self.weights if self.weights or budgets else DEFAULT_WEIGHTS
        return Preference(budgets, dict(weights))


class SpaceConfig(BaseModel):
    """A search space other than the default for the image size; `stages` are [channels, blocks, stride]."""

    model_config = _STRICT

    stem_channels: int = 16
    stem_stride: int = 1
    stages: list[tuple[int, int, int]]
    kernels: list[int] = [3, 5]
    expansions: list[int] = [3, 6]
    weight_bits: list[int] = [2, 4, 8]


class TrainingConfig(BaseModel):
    """How clients train locally and afterwards on their own."""

    model_config = _STRICT

    batch_size: int = Field(default=32, ge=2)
    local_epochs: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    explore_share: float = Field(default=0.5, ge=0, le=1)
    mask: Mask = "hull"
    members_per_step: int = Field(default=2, ge=1, le=16)
    hull_share: float = Field(default=0.0, ge=0, le=1)
    distil: bool = True
    keep_weight: float = Field(default=0.0, ge=0)
    rule: Literal["losses", "logits", "norms", "random"] = "losses"
    pareto: Form = "additive"
    scored_images: int = Field(default=256, ge=2)
    gate_learning_rate: float = Field(default=0.05, gt=0)
    gate_share: float = Field(default=0.5, ge=0)
    gate_temperature: float = Field(default=1.0, gt=0)
    flips: bool = False
    shift: int = Field(default=0, ge=0, le=64)
    common_share: float = Field(default=1.0, ge=0, le=1)
    hysteresis: float = Field(default=0.5, ge=0)
    personal_epochs: int = Field(default=8, ge=0)


class WireConfig(BaseModel):
    """Quantisation steps of the deltas, in units of their root mean square, up and down; 0 sends them as floats. Those
    of vectors (scales, shifts, biases) are `vector_step` of that: they are few, and a network bears less of their
    rounding."""

    model_config = _STRICT

    relative_step_up: float = Field(default=1.6, ge=0, le=8)
    relative_step_down: float = Field(default=1.6, ge=0, le=8)
    vector_step: float = Field(default=0.2, gt=0, le=1)


class ServerConfig(BaseModel):
    """How the server takes the clients' mean: as the step itself, or as the gradient of an optimiser."""

    model_config = _STRICT

    optimiser: Literal["plain", "momentum", "adam"] = "momentum"
    learning_rate: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.7, ge=0, lt=1)


class SearchConfig(BaseModel):
    """Everything that a run depends on, apart from the profiles themselves."""

    model_config = _STRICT

    data: str = "digits"
    clients: int = Field(default=4, ge=1, le=10_000)
    alpha: float = Field(default=0.5, gt=0)
    held_out_share: float = Field(default=0.25, gt=0, lt=1)
    rounds: int = Field(default=8, ge=1)
    warmup_rounds: int | None = Field(default=None, ge=0)
    frozen_rounds: int | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    profiles: list[str] = []
    budget: dict[str, str] = {}
    weights: dict[str, float] = {}
    training: TrainingConfig = TrainingConfig()
    wire: WireConfig = WireConfig()
    server: ServerConfig = ServerConfig()
    space: SpaceConfig | None = None
    client: Annotated[list[ClientConfig], Field(max_length=10_000)] = []

    @property
    def warmup(self) -> int:
        """Rounds on the full network before the first decision: given, or 40 % of all."""
        return min(self.rounds, self.warmup_rounds if self.warmup_rounds is not None else round(0.4 * self.rounds))

    @property
    def search_end(self) -> int:
        """The first round in which decisions no longer change: the last 20 % are frozen unless given."""
        frozen = self.frozen_rounds if self.frozen_rounds is not None else round(0.2 * self.rounds)
        return max(self.warmup, self.rounds - frozen)

    def trains_gates(self, number: int) -> bool:
        """Whether a client trains gate logits in this round, as only the rule `logits` does."""
        return self.training.rule == "logits" and (1 <= number < self.search_end or number == self.warmup - 1)

    def scores(self, number: int) -> bool:
        """Whether a client scores its choices in this round: once, a round before it decides, so that all clients'
        scores have been averaged by then; with gates, whose scores cost nothing, in every round from there on."""
        first = max(self.warmup - 2, 0)
        return number == first or (self.training.rule == "logits" and first < number < self.search_end)

    def decides(self, number: int) -> bool:
        """Whether clients decide at the end of this round: once, or with gates in every round of the search. One that
        has missed it decides when it is back."""
        first = max(self.warmup - 1, 0)
        return number == first or (self.training.rule == "logits" and first < number < self.search_end)

    def client_config(self, index: int) -> ClientConfig:
        """A client's own table over what is said for all; profiles are dealt in turn."""
        own = self.client[index] if index < len(self.client) else ClientConfig()
        profile = own.profile or (self.profiles[index % len(self.profiles)] if self.profiles else None)
        if profile is None:
            raise ConfigError(f"client {index} needs a device profile: pass --profile profiles/NAME.json")
        return ClientConfig(
            profile=profile, budget={**self.budget, **own.budget}, weights={**self.weights, **own.weights}
        )

    def search_space(self, image: tuple[int, int, int], classes: int) -> SearchSpace:
        """The space for these images; raises `ConfigError`."""
        if self.space is None:
            return SearchSpace.for_image(image, classes)
        try:
            return SearchSpace(
                image,
                classes,
                self.space.stem_channels,
                tuple(Stage(*stage) for stage in self.space.stages),
                self.space.stem_stride,
                tuple(self.space.kernels),
                tuple(self.space.expansions),
                tuple(self.space.weight_bits),
            )
        except (InvalidSpaceError, UnsupportedPrecisionError) as error:
            raise ConfigError(f"in [space]: {error}") from None


def parse_config(fields: Mapping[str, Any], where: str) -> SearchConfig:
    """Validate; raises `ConfigError` naming the place, the field and the rule."""
    clients = fields.get("client")
    if isinstance(clients, list) and clients:
        given = fields.get("clients", len(clients))
        if given != len(clients):
            raise ConfigError(f"{where}: clients = {given} but there are {len(clients)} [[client]] tables: drop one")
        fields = {**fields, "clients": len(clients)}
    try:
        config = SearchConfig.model_validate(fields)
        for index in range(len(config.client)):
            _ = config.client[index].preference
        _ = ClientConfig(budget=config.budget, weights=config.weights).preference
        return config
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {field}: {first['msg']}, got {first['input']!r}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The fields of a configuration file, not yet validated; raises `ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from None


def config_from_json(text: str, where: str) -> SearchConfig:
    """The copy in a run folder; raises `ConfigError`."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not a configuration: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where} is not a configuration: an object is expected")
    return parse_config(fields, where)
