"""What of a machine decides how the runtime's kernels loop; `hwcost.tiling` counts the loops."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WHOLLY_HELD, WHOLLY_SPILLED = 1 / 3, 5 / 3
"""A kernel is timed in three places in turn: its first bytes are lost when it moves so much of a cache, its last when
it moves so much; seen with copies, sums and maps of 0.2 to 5 MiB beside 2 MiB of cache."""
TURNS: Final = 3
"""Places that the copies of a kernel take turns with, in one run of a timing."""
_RUN_S: Final = 3e-4
"""A run holds copies for at least this long."""
_MOST_COPIES: Final = 256
_MOST_CONSTANT_BYTES: Final = 4 * 1024**2
_MOST_L3: Final = 64 * 1024**2
"""A guest of a large machine is told the cache of all its cores; of what one core streams, this much stays there."""


@dataclass(frozen=True)
class Hardware:
    """What of a machine decides how kernels tile: floats in a vector, whether float convolutions run in blocks of
    channels, the number formats of its usual int8 kernels (activations, weights), and the bytes of the caches (0 where
    there is none)."""

    lanes: int = 8
    blocked: bool = True
    int8_form: str = "u8u8"
    l1: int = 32 * 1024
    l2: int = 512 * 1024
    l3: int = 16 * 1024 * 1024

    @classmethod
    def of(
        cls, features: Sequence[str], architecture: str, cache_bytes: Mapping[str, int], int8_form: str = int8_form
    ) -> "Hardware":
        """From what a profile tells of its machine; what it does not tell is as on a common core of a server."""
        arm = architecture.lower().startswith(("aarch64", "arm"))
        return cls(
            lanes=4 if arm else 16 if "avx512f" in features else cls.lanes,
            blocked=not arm,
            int8_form=int8_form,
            l1=cache_bytes.get("L1d", cls.l1),
            l2=cache_bytes.get("L2", cls.l2),
            l3=min(cache_bytes.get("L3", 0 if cache_bytes else cls.l3), _MOST_L3),
        )

    @property
    def positions(self) -> int:
        """Neighbouring outputs that one float convolution tile holds."""
        return 6 if self.lanes == 16 else 3

    @property
    def product_rows(self) -> int:
        """Rows of a float product's tile."""
        return {16: 12, 8: 6}.get(self.lanes, 4)

    @property
    def product_columns(self) -> int:
        return max(2 * self.lanes, 16)

    @property
    def indirect_tile(self) -> tuple[int, int]:
        """Outputs and channels of a tile of the int8 kernels for signed weights."""
        return {16: (6, 64), 8: (4, 16)}.get(self.lanes, (2, 8))

    @property
    def int8_tasks(self) -> int:
        """Tasks that one thread makes of a quantised convolution at most."""
        return 5 if self.blocked else 64


def spilled(moved: NDArray[Any] | float, cache: float) -> NDArray[np.float64]:
    """Which share of the bytes that kernels of this size move a cache has lost when they come up again."""
    beyond = (np.asarray(moved) / max(cache, 1) - WHOLLY_HELD) / (WHOLLY_SPILLED - WHOLLY_HELD)
    share: NDArray[np.float64] = np.clip(beyond, 0.0, 1.0)
    return share


def row_copies(constant_bytes: int, kernel_s: float) -> int:
    """How many copies of a kernel that takes so long, each with constants of its own, make a run long enough to be
    timed well, within bounds of size."""
    most = max(1, min(_MOST_COPIES, _MOST_CONSTANT_BYTES // max(1, constant_bytes)))
    return min(max(math.ceil(_RUN_S / kernel_s), 1), most)
