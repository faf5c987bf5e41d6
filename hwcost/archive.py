"""Arrays and a text head in one safetensors document: no pickle, and equal content gives equal bytes.

The head goes under a single metadata key, because safetensors writes several keys in a random order.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

_KEY = "head"


def pack(head: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The document's bytes; shapes are kept, scalars included."""
    contiguous = {name: np.array(array, order="C") for name, array in sorted(arrays.items())}
    return bytes(save(contiguous, metadata={_KEY: head}))


def unpack(data: bytes) -> tuple[str, dict[str, NDArray[Any]]]:
    """Head and arrays; raises `ValueError` saying what is wrong when `pack` did not write `data`."""
    try:
        arrays = dict(load(data))
        length = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_KEY)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a safetensors document: {error}") from None
    if not isinstance(head, str):
        raise ValueError("a safetensors document without a head")
    return head, arrays
