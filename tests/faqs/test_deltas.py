"""Movements from one end to the other: which are rounded how finely, and that both ends agree on them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from faqs.deltas import Arrays, add, code, cut_lengths, take, zeros_like
from faqs.supernet import Cut
from faqs.wire import WireMessage, decode, encode

CUTS: dict[str, Cut] = {"a": (slice(0, 6), slice(2, 9)), "b": (slice(None),)}


def _arrays(random: np.random.Generator, scale: float = 1.0) -> Arrays:
    return {
        "a": (scale * random.laplace(size=(9, 12))).astype(np.float32),
        "b": (scale * random.laplace(size=40)).astype(np.float32),
        "c": (scale * random.laplace(size=(3, 3))).astype(np.float32),
    }


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(st.sampled_from([0.0, 0.3, 1.2, 3.0]), min_size=1, max_size=5),
    vector_step=st.sampled_from([0.1, 0.25, 1.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_both_ends_move_alike(seed: int, steps: list[float], vector_step: float, scale: float) -> None:
    random = np.random.default_rng(seed)
    here, there = zeros_like(_arrays(random)), zeros_like(_arrays(random))
    for step in steps:
        wanted = take(_arrays(random, scale), CUTS)
        tensors = code(wanted, CUTS, step, vector_step)
        add(here, CUTS, tensors)
        got = decode(encode(WireMessage({}, tensors)), lengths=cut_lengths(there, CUTS))
        add(there, CUTS, got.tensors)
        assert all(here[name].tobytes() == there[name].tobytes() for name in here)
        assert not here["c"].any() and not here["a"][:, :2].any()
        if step == 0:
            assert all(tensors[name].dequantise().tobytes() == wanted[name].tobytes() for name in CUTS)


def test_vectors_are_rounded_more_finely() -> None:
    wanted = take(_arrays(np.random.default_rng(0)), CUTS)
    tensors = code(wanted, CUTS, 1.2, vector_step=0.25)
    lost = {
        name: np.mean((tensors[name].dequantise() - value) ** 2) / np.mean(value**2) for name, value in wanted.items()
    }
    assert lost["b"] < 0.2 * lost["a"]
