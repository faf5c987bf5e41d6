"""What crosses between the two ends, as arrays: active parts of shared weights, their coded differences, references.

Each end keeps the client's *reference*: the shared weights as the client knows them, the sum of everything it was sent
since the common seed. The server sends the coded difference between its weights and that reference, which is error
feedback for free (what one message leaves out, the next one carries) and catch-up for free (a coordinate that joins
the mask brings all that was missed). Equality of the two copies is checked by a digest.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from faqs.supernet import Cut, SuperNet, shared_tensors
from faqs.wire import ExactTensor, QuantisedTensor, Tensor, quantise, reconstruction_step, step_for

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


def code(
    wanted: Mapping[str, NDArray[np.float32]], cuts: Mapping[str, Cut], relative_step: float, vector_step: float = 1.0
) -> dict[str, Tensor]:
    """Quantise flat differences, the step of each tensor in units of its root mean square, or `vector_step` of that for
    one of a single axis; with a step of 0 leave all of them exact."""
    coded: dict[str, Tensor] = {}
    for name, values in wanted.items():
        if relative_step == 0:
            coded[name] = ExactTensor(values)
        else:
            step = step_for(values, relative_step * (vector_step if len(cuts[name]) == 1 else 1.0))
            codes = quantise(values, step)
            coded[name] = QuantisedTensor(codes, reconstruction_step(values, codes, step))
    return coded


def add(target: Arrays, cuts: Mapping[str, Cut], tensors: Mapping[str, Tensor]) -> None:
    """target[cut] += decoded, in place."""
    for name, cut in cuts.items():
        view = target[name][cut]
        view += tensors[name].dequantise().reshape(view.shape)


def zeros_like(arrays: Arrays) -> Arrays:
    return {name: np.zeros_like(value) for name, value in arrays.items()}


def digest(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """16 hexadecimal digits that change with any bit of any array."""
    total = hashlib.blake2b(digest_size=8)
    for name, array in arrays.items():
        total.update(name.encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
