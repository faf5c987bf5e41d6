from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from faqs.data import client_data, dirichlet_split, load_dataset
from faqs.errors import DataError


def test_digits_are_embedded_with_pixels_in_the_unit_interval() -> None:
    data = load_dataset("digits")
    assert data.image_shape == (1, 8, 8) and data.classes == 10
    assert data.images.min() >= 0 and data.images.max() == 1


def test_every_sample_goes_to_exactly_one_client_and_the_held_out_share_is_disjoint() -> None:
    data = load_dataset("digits")
    split = dirichlet_split(data.labels, 5, 0.5, np.random.default_rng(3))
    assert sorted(np.concatenate(split).tolist()) == list(range(len(data.labels)))
    own = client_data(data, 1, 5, 0.5, seed=3)
    pixels = {image.tobytes() for image in own.train.images}
    shared = sum(image.tobytes() in pixels for image in own.held_out.images)
    assert shared == 0
    assert len(own.held_out.labels) == round(0.25 * (len(own.train.labels) + len(own.held_out.labels)))


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    data = load_dataset("digits")
    first, again, other = (client_data(data, 0, 4, 0.5, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.train.labels, other.train.labels)


def test_npz_and_parquet_are_read_alike(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, 10, 12, 3), dtype=np.uint8)
    labels = random.integers(0, 3, 30)
    labels[:3] = [0, 1, 2]
    np.savez(tmp_path / "a.npz", x=images.transpose(0, 3, 1, 2), y=labels)
    encoded = []
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        encoded.append((tmp_path / f"{index}.png").read_bytes())
    pd.DataFrame({"image": encoded, "label": labels}).to_parquet(tmp_path / "a.parquet")
    npz, parquet = load_dataset(str(tmp_path / "a.npz")), load_dataset(str(tmp_path / "a.parquet"))
    assert npz.image_shape == (3, 10, 12) and npz.classes == 3
    assert np.array_equal(npz.images, parquet.images) and np.array_equal(npz.labels, parquet.labels)


def test_unreadable_data_is_one_line_that_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "text.csv").write_text("a,b")
    np.savez(tmp_path / "names.npz", a=np.zeros(3))
    np.savez(tmp_path / "range.npz", x=np.full((4, 2, 2), 7.0), y=np.array([0, 1, 0, 1]))
    np.savez(tmp_path / "one.npz", x=np.zeros((4, 2, 2)), y=np.zeros(4, np.int64))
    np.savez(tmp_path / "object.npz", x=np.array([{}], dtype=object), y=np.zeros(1, np.int64))
    expected = {
        "none.npz": "no such file",
        "bad.npz": "cannot read the data",
        "bad.parquet": "cannot read the data",
        "text.csv": "reads .npz and .parquet",
        "names.npz": "holds arrays x and y",
        "range.npz": r"floats in \[0, 1\]",
        "one.npz": "at least two classes",
        "object.npz": "cannot read the data",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message) as caught:
            load_dataset(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_too_many_clients_for_the_data_is_an_error_not_an_endless_draw() -> None:
    labels = np.arange(100) % 10
    with pytest.raises(DataError, match="use fewer clients or more data"):
        dirichlet_split(labels, 50, 0.5, np.random.default_rng(0))
    with pytest.raises(DataError, match="use a larger alpha or fewer clients"):
        dirichlet_split(np.arange(100) % 3, 5, 1e-3, np.random.default_rng(0))
    with pytest.raises(DataError, match="at least one client"):
        dirichlet_split(labels, 0, 0.5, np.random.default_rng(0))
