"""What crosses between the two ends, as arrays: active parts of shared weights, their coded differences, references.

Each end keeps the client's *reference*: the shared weights as the client knows them, the sum of everything it was sent
since the common seed. The server sends the coded difference between its weights and that reference, which is error
feedback for free (what one message leaves out, the next one carries) and catch-up for free (a coordinate that joins
the mask brings all that was missed). Equality of the two copies is checked by a digest.

Movements go on as they went: the server's by its momentum, a client's because its own data pulls it the same way in
every round. So each end also keeps the trend of the movements in either direction, and a message may code only what a
share of that, its *carry*, does not foretell (differential pulse-code modulation).
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from faqs.errors import WireError
from faqs.supernet import Cut, SuperNet, shared_tensors
from faqs.wire import ExactTensor, Header, QuantisedTensor, Tensor, quantise, step_for

Arrays = dict[str, NDArray[np.float32]]
"""Shared weights by name, in the order of `faqs.supernet.shared_tensors`."""


def shared_arrays(supernet: SuperNet) -> Arrays:
    """Copies of the shared weights."""
    return {name: value.detach().numpy().copy() for name, value in shared_tensors(supernet).items()}


def cut_lengths(arrays: Mapping[str, NDArray[np.float32]], cuts: Mapping[str, Cut]) -> dict[str, int]:
    """Active coordinates per tensor: what a message for these decisions must hold."""
    return {name: arrays[name][cut].size for name, cut in cuts.items()}


def take(arrays: Mapping[str, NDArray[np.float32]], cuts: Mapping[str, Cut]) -> Arrays:
    """The active coordinates, one flat array per active tensor."""
    return {name: arrays[name][cut].reshape(-1) for name, cut in cuts.items()}


def code(wanted: Mapping[str, NDArray[np.float32]], relative_step: float) -> dict[str, Tensor]:
    """Quantise flat differences, the step of each tensor in units of its root mean square; with 0 leave them exact."""
    coded: dict[str, Tensor] = {}
    for name, values in wanted.items():
        if relative_step == 0:
            coded[name] = ExactTensor(values)
        else:
            step = step_for(values, relative_step)
            coded[name] = QuantisedTensor(quantise(values, step), step)
    return coded


CARRIES: Final = "0123456789abcdef"
"""A tensor's carry in a header, in sixteenths of the trend."""
UP: Final = 0.5
"""How much of a client's trend is left after one more movement: every round's is the pull of its data and chance."""
DOWN: Final = 0.0
"""The server's trend is its last movement: its momentum holds all before that."""


def code_movement(
    wanted: Mapping[str, NDArray[np.float32]],
    trend: Arrays,
    cuts: Mapping[str, Cut],
    relative_step: float,
    vector_step: float = 1.0,
    foretell: bool = False,
) -> tuple[dict[str, Tensor], str]:
    """What a message holds so that the other end, which knows the trend, too, moves as wanted (flat, by name) but for
    rounding: codes, with `vector_step` of the step for tensors of one axis, and the carries, a hexadecimal digit for
    each tensor in the order of `cuts` (least squares). Nothing is carried unless `foretell`, and with exact values."""
    before, carries, left = take(trend, cuts), "", wanted
    if foretell and relative_step > 0 and any(value.any() for value in before.values()):
        carries = "".join(_carry(wanted[name], value) for name, value in before.items())
        left = {name: wanted[name] - value for name, value in _carried(before, carries).items()}
    tensors: dict[str, Tensor] = {}
    for name, value in left.items():
        tensors |= code({name: value}, relative_step * (vector_step if len(cuts[name]) == 1 else 1.0))
    return tensors, carries


def movement(
    tensors: Mapping[str, Tensor], carries: str, trend: Arrays, cuts: Mapping[str, Cut], kept: float
) -> Arrays:
    """How far a message moves the active coordinates, flat by name. The trend becomes that and a share `kept` (`UP` or
    `DOWN`) of what it was; elsewhere there is none. Raises `WireError` where that is no finite number."""
    before = take(trend, cuts)
    with np.errstate(over="ignore"):
        moved = {name: tensors[name].dequantise() + value for name, value in _carried(before, carries).items()}
        onward = {name: value + np.float32(kept) * before[name] for name, value in moved.items()}
    if not all(np.isfinite(value).all() for value in (*moved.values(), *onward.values())):
        raise WireError("a movement is of finite numbers, got one beyond float32: the sender's update has diverged")
    for name, value in trend.items():
        value[...] = 0.0
        if name in cuts:
            value[cuts[name]] = onward[name].reshape(value[cuts[name]].shape)
    return moved


def read_carries(header: Header, cuts: Mapping[str, Cut]) -> str:
    """The carries that a header names, if any; raises `WireError`."""
    carries = header.get("carries", "")
    if not isinstance(carries, str) or len(carries) not in (0, len(cuts)) or not set(carries) <= set(CARRIES):
        raise WireError(f"carries are a hexadecimal digit for each of {len(cuts)} tensors, got {carries!r:.80}")
    return carries


def _carry(wanted: NDArray[np.float32], trend: NDArray[np.float32]) -> str:
    power = float(np.vdot(trend, trend))
    share = float(np.vdot(wanted, trend)) / power if power > 0 else 0.0
    return CARRIES[round(len(CARRIES) * min(max(share, 0.0), 1 - 1 / len(CARRIES)))]


def _carried(before: Arrays, carries: str) -> Arrays:
    shares = [CARRIES.index(digit) / len(CARRIES) for digit in carries] or [0.0] * len(before)
    return {name: np.float32(share) * value for (name, value), share in zip(before.items(), shares, strict=True)}


def add(target: Arrays, cuts: Mapping[str, Cut], moved: Arrays) -> None:
    """target[cut] += moved, in place."""
    for name, cut in cuts.items():
        view = target[name][cut]
        view += moved[name].reshape(view.shape)


def zeros_like(arrays: Arrays) -> Arrays:
    return {name: np.zeros_like(value) for name, value in arrays.items()}


def digest(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """16 hexadecimal digits that change with any bit of any array."""
    total = hashlib.blake2b(digest_size=8)
    for name, array in arrays.items():
        total.update(name.encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
