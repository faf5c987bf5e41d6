"""Data of a federation: reading it, splitting it over clients, and each client's own held-out share.

A data set is images in [0, 1] with integer labels. `digits` ships with scikit-learn; a path may be an `.npz` (arrays
`x` or `images`, `y` or `labels`) or a `.parquet` (columns `image`: encoded bytes, `label`).
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faqs.errors import DataError

_SPLIT_ATTEMPTS = 100


@dataclass(frozen=True)
class Dataset:
    """images: float32 [n, channels, height, width] in [0, 1]; labels: int64 [n] in 0..classes-1."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, indices: NDArray[np.int64]) -> "Dataset":
        return Dataset(self.images[indices], self.labels[indices], self.classes)


@lru_cache(maxsize=2)
def load_dataset(spec: str) -> Dataset:
    """`digits`, or a path to `.npz` or `.parquet`, read once per process.

    Raises `DataError` saying what is expected and what was found.
    """
    if spec == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return _checked(spec, np.asarray(bunch.images) / 16.0, np.asarray(bunch.target))
    path = Path(spec)
    if not path.is_file():
        raise DataError(f"--data is `digits` or the path of an .npz or .parquet file, got {spec}: no such file")
    try:
        if path.suffix == ".npz":
            images, labels = _read_npz(path)
        elif path.suffix == ".parquet":
            images, labels = _read_parquet(path)
        else:
            raise DataError(f"--data reads .npz and .parquet files, got {spec}: convert it to one of them")
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read the data in {spec}: {reason}") from error
    return _checked(spec, images, labels)


def _read_npz(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
            for image_name, label_name in (("x", "y"), ("images", "labels")):
                if {image_name, label_name} <= names:
                    return arrays[image_name], arrays[label_name]
    except zipfile.BadZipFile as error:
        raise DataError(f"cannot read the data in {path}: not an .npz archive ({error})") from error
    raise DataError(f"an .npz holds arrays x and y (or images and labels), got {sorted(names)} in {path}")


def _read_parquet(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    import pandas as pd
    from PIL import Image

    table = pd.read_parquet(path)
    if not {"image", "label"} <= set(table.columns):
        raise DataError(f"a .parquet has the columns image and label, got {sorted(table.columns)} in {path}")
    decoded = [np.asarray(Image.open(io.BytesIO(data))) for data in table["image"]]
    if len({image.shape for image in decoded}) > 1:
        raise DataError(f"all images of a data set have one size, got several in {path}")
    images = np.stack(decoded)
    return (images.transpose(0, 3, 1, 2) if images.ndim == 4 else images), table["label"].to_numpy()


def _checked(spec: str, images: NDArray[np.generic], labels: NDArray[np.generic]) -> Dataset:
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or len(images) == 0 or labels.shape != (len(images),):
        raise DataError(
            f"data is images [n, height, width] or [n, channels, height, width] and n labels, "
            f"got {images.shape} and {labels.shape} in {spec}"
        )
    pixels = images.astype(np.float32) / (255.0 if images.dtype == np.uint8 else 1.0)
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise DataError(f"pixels are uint8, or floats in [0, 1], got {pixels.min()} to {pixels.max()} in {spec}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(f"labels are integers from 0, got {labels.dtype} from {labels.min()} in {spec}")
    classes = int(labels.max()) + 1
    if classes < 2:
        raise DataError(f"a data set has at least two classes, got {classes} in {spec}")
    return Dataset(np.ascontiguousarray(pixels, dtype=np.float32), labels.astype(np.int64), classes)


def dirichlet_split(
    labels: NDArray[np.int64], clients: int, alpha: float, generator: np.random.Generator, smallest: int = 20
) -> list[NDArray[np.int64]]:
    """Indices per client: each class is dealt by proportions drawn from Dirichlet(alpha) (arXiv 1909.06335).

    Drawn again until every client has `smallest` samples; raises `DataError` when that does not happen.
    """
    if clients < 1:
        raise DataError(f"a federation has at least one client, got {clients}: use --clients 1 or more")
    if clients * smallest > len(labels):
        raise DataError(
            f"each client needs at least {smallest} samples, got {len(labels)} samples for {clients} clients: "
            "use fewer clients or more data"
        )
    for _ in range(_SPLIT_ATTEMPTS):
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
        for label in range(int(labels.max()) + 1):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(clients, alpha))
            edges = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, piece in zip(parts, np.split(members, edges), strict=True):
                part.append(piece)
        split = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, split)) >= smallest:
            return split
    raise DataError(
        f"no Dirichlet({alpha}) split in {_SPLIT_ATTEMPTS} draws gave each of {clients} clients {smallest} samples: "
        "use a larger alpha or fewer clients"
    )


@dataclass(frozen=True)
class ClientData:
    """One client's share: what it trains on, and what it holds out to be judged by."""

    train: Dataset
    held_out: Dataset


def client_data(
    dataset: Dataset, client: int, clients: int, alpha: float, seed: int, held_out_share: float = 0.25
) -> ClientData:
    """The share of one client, the same in every process for the same seed."""
    indices = dirichlet_split(dataset.labels, clients, alpha, np.random.default_rng([seed, 1]))[client]
    shuffled = np.random.default_rng([seed, 2, client]).permutation(indices)
    held_out = max(1, round(len(shuffled) * held_out_share))
    return ClientData(dataset.subset(np.sort(shuffled[held_out:])), dataset.subset(np.sort(shuffled[:held_out])))
