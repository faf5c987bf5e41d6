"""Arrays and a text head in one safetensors document: no pickle, equal content gives equal bytes, damage is noticed.

The head goes under a single metadata key, because safetensors writes several keys in a random order. A checksum over
everything stands before it: a flipped bit in an array would still be a number.
"""

import json
import zlib
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
    return bytes(save(contiguous, metadata={_KEY: f"{_checksum(head, contiguous)} {head}"}))


def unpack(data: bytes) -> tuple[str, dict[str, NDArray[Any]]]:
    """Head and arrays; raises `ValueError` saying what is wrong when these are not the bytes that `pack` wrote."""
    try:
        arrays = dict(load(data))
        length = int.from_bytes(data[:8], "little")
        marked = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_KEY)
    except (SafetensorError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise ValueError(f"not a safetensors document: {error}") from None
    if not isinstance(marked, str):
        raise ValueError("a safetensors document without a head")
    checksum, _, head = marked.partition(" ")
    if checksum != _checksum(head, arrays):
        raise ValueError("a safetensors document that was damaged, or that something else wrote")
    return head, arrays


def _checksum(head: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """CRC-32 of the head and of each array's name, type, shape and bytes, in hexadecimal."""
    crc = zlib.crc32(head.encode())
    for name, array in sorted(arrays.items()):
        crc = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return f"{crc:08x}"
