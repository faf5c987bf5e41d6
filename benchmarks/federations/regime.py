"""What is the same for every arm: data, split, macro-architecture, rounds, local training, judgement."""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from faqs.data import ClientData, Dataset, client_data, load_dataset
from hwcost import Architecture, BlockChoice, SearchSpace, Stage, write_atomically

DIGITS: Final = "digits"
"""In place of a folder of images: the embedded ones, for plumbing."""


@dataclass(frozen=True)
class Regime:
    """Every arm's. `shares[k % len(shares)]`: client k's budgets, as the share of the way from the cheapest network's
    latency and size to those of `reference` with the most weight bits, which is the network of the baselines: on
    average a client may spend what that network costs."""

    # data
    train_images: int = 10_000
    test_images: int = 10_000
    clients: int = 10
    alpha: float = 0.5
    held_out_share: float = 0.5
    # macro-architecture and choices
    stem_channels: int = 16
    stem_stride: int = 2
    stages: tuple[tuple[int, int, int], ...] = ((16, 1, 1), (24, 2, 2), (40, 2, 2), (64, 2, 1))
    kernels: tuple[int, ...] = (3, 5)
    expansions: tuple[int, ...] = (3, 6)
    weight_bits: tuple[int, ...] = (2, 4, 8)
    reference: tuple[int, int] = (3, 6)
    shares: tuple[float, ...] = (1.4, 1.2, 1.0, 0.8, 0.6)
    # training
    rounds: int = 30
    local_epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    flip: bool = True
    shift: int = 4
    # the multi-path arm: steps of its alphas per step of its weights, and their Adam's learning rate
    alpha_steps: float = 0.5
    alpha_learning_rate: float = 0.01
    # judgement
    personal_epochs: int = 4
    target_share: float = 0.95

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON has them: tuples are lists."""
        return {name: _listed(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Regime":
        return cls(**{name: _tupled(value) for name, value in fields.items()})

    def space(self, image: tuple[int, int, int], classes: int) -> SearchSpace:
        stages = tuple(Stage(*stage) for stage in self.stages)
        choices = (self.kernels, self.expansions, self.weight_bits)
        return SearchSpace(image, classes, self.stem_channels, stages, self.stem_stride, *choices)

    def fixed(self, space: SearchSpace) -> Architecture:
        """The network of the baselines, with the most weight bits."""
        return (BlockChoice(*self.reference, space.weight_bits[-1]),) * len(space.blocks)

    def rate(self, number: int) -> float:
        """The learning rate of a round, from 0: a cosine over the rounds."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * number / self.rounds))


QUICK: Final = Regime(
    train_images=300,
    test_images=200,
    clients=3,
    stem_channels=8,
    stem_stride=1,
    stages=((8, 1, 1), (16, 2, 2)),
    shares=(1.0, 0.8),
    rounds=2,
    local_epochs=1,
    batch_size=16,
    shift=1,
    personal_epochs=1,
)

ABLATION: Final = Regime(train_images=6_000, rounds=25, local_epochs=1)


@dataclass(frozen=True)
class Place:
    """Where one seed's data lies: `train` the images that the clients share, `test` those that judge every arm."""

    train: Path
    test: Path

    def client(self, regime: Regime, seed: int, client: int) -> ClientData:
        return _client(self.train, regime, seed, client)

    def everyone(self, regime: Regime, seed: int) -> NDArray[np.float32]:
        """The training images of all clients, in an order drawn from the seed."""
        shares = [self.client(regime, seed, client).train.images for client in range(regime.clients)]
        images = np.concatenate(shares)
        return images[np.random.default_rng([seed, 4]).permutation(len(images))]


@lru_cache(maxsize=32)
def _client(train: Path, regime: Regime, seed: int, client: int) -> ClientData:
    dataset = load_dataset(str(train))
    return client_data(dataset, client, regime.clients, regime.alpha, seed, regime.held_out_share)


def place_data(source: str, regime: Regime, seed: int, work: Path) -> Place:
    """Draw the seed's training images from `source` (a folder with train.parquet and test.parquet, or `digits`) and
    write them below `work`, unless they are there."""
    name = "digits" if source == DIGITS else "images"
    place = Place(work / f"{name}-{regime.train_images}-{seed}.npz", work / f"{name}-test-{regime.test_images}.npz")
    if not (place.train.exists() and place.test.exists()):
        if source == DIGITS:
            digits = load_dataset(DIGITS)
            order = np.random.default_rng(0).permutation(len(digits.labels))
            test, rest = digits.subset(order[: regime.test_images]), digits.subset(order[regime.test_images :])
        else:
            rest = load_dataset(str(Path(source) / "train.parquet"))
            test = load_dataset(str(Path(source) / "test.parquet"))
            test = test.subset(np.arange(min(regime.test_images, len(test.labels))))
        drawn = np.random.default_rng([seed, 3]).permutation(len(rest.labels))[: regime.train_images]
        _write(place.train, rest.subset(np.sort(drawn)))
        _write(place.test, test)
    return place


def _write(path: Path, data: Dataset) -> None:
    import io

    stream = io.BytesIO()
    np.savez(stream, x=np.round(data.images * 255).astype(np.uint8), y=data.labels)
    write_atomically(path, stream.getvalue())


def generator(*entropy: int) -> torch.Generator:
    """Random numbers of one purpose, the same in every process."""
    state = np.random.SeedSequence(list(entropy)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def _listed(value: Any) -> Any:
    return [_listed(one) for one in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(one) for one in value) if isinstance(value, list) else value
