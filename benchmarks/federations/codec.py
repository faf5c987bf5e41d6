"""Eight-bit differences, the usual way to send less: uniform and symmetric, a scale per tensor, deflated by zstandard.

What rounding leaves out is carried to the next message (error feedback, arXiv 1809.07599): by the client in its
residual, by the server in the difference between its weights and what the clients know.
"""

from collections.abc import Mapping

import numpy as np
import zstandard
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]

LEVELS = 127
ZSTD_LEVEL = 19


def encode(wanted: Mapping[str, NDArray[np.float32]]) -> bytes:
    """One blob: the scale of every tensor (float32), then every code (int8), in the order of the names."""
    scales = np.array([np.abs(value).max(initial=0.0) / LEVELS for value in wanted.values()], dtype="<f4")
    codes = [
        np.rint(value / (scale if scale > 0 else np.float32(1))).clip(-LEVELS, LEVELS).astype(np.int8).tobytes()
        for value, scale in zip(wanted.values(), scales, strict=True)
    ]
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(scales.tobytes() + b"".join(codes))


def decode(blob: bytes, like: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """The differences of a blob for tensors of the names and shapes of `like`; raises `ValueError`."""
    most = sum(4 + value.size for value in like.values())
    try:
        data = zstandard.ZstdDecompressor().decompress(blob, max_output_size=most)
    except zstandard.ZstdError as error:
        raise ValueError(f"a blob of differences is deflated by zstandard, got another one: {error}") from None
    if len(data) != most:
        raise ValueError(f"a blob for these tensors holds {most} bytes, got {len(data)}")
    scales = np.frombuffer(data, "<f4", len(like))
    arrays, start = {}, 4 * len(like)
    for (name, value), scale in zip(like.items(), scales, strict=True):
        codes = np.frombuffer(data, np.int8, value.size, start)
        arrays[name] = (codes.astype(np.float32) * scale).reshape(value.shape)
        start += value.size
    return arrays


def feed_back(wanted: Mapping[str, NDArray[np.float32]]) -> tuple[bytes, Arrays]:
    """The blob for what is wanted (this round's difference plus the last residual), and the residual it leaves."""
    blob = encode(wanted)
    decoded = decode(blob, wanted)
    return blob, {name: value - decoded[name] for name, value in wanted.items()}
