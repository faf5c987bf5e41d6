"""Movements from one end to the other: which are rounded how finely, and that both ends agree on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

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


def _arrived(wanted: NDArray[np.floating], step: float) -> NDArray[np.float32]:
    """What a message brings of a vector."""
    return code({"b": wanted.astype(np.float32)}, CUTS, step)["b"].dequantise()


def _drawn(kind: str, random: np.random.Generator, size: int = 20_000) -> NDArray[np.float32]:
    draws = {
        "Laplace": random.laplace(size=size),
        "Gauss": random.normal(size=size),
        "Student-t": random.standard_t(3, size=size),
        "few": random.laplace(size=size) * (random.random(size) < 0.1),
    }
    return draws[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["Laplace", "Gauss", "Student-t", "few"])
@pytest.mark.parametrize("step", [0.3, 1.2, 1.6])
def test_what_the_dead_zone_takes_the_step_gives_back(kind: str, step: float) -> None:
    wanted = _drawn(kind, np.random.default_rng(0)).astype(np.float64)
    moved = _arrived(wanted, step).astype(np.float64)
    assert np.vdot(moved, wanted) == pytest.approx(np.vdot(wanted, wanted), rel=0.01)
    assert np.vdot(moved - wanted, moved - wanted) < 0.5 * np.vdot(wanted, wanted)


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50), step=st.floats(0.1, 8.0))
def test_a_message_never_errs_by_more_than_it_says(values: list[float], step: float) -> None:
    wanted = np.array(values)
    lost = _arrived(wanted, step).astype(np.float64) - wanted
    assert np.vdot(lost, lost) <= 1.0001 * np.vdot(wanted, wanted)


@pytest.mark.parametrize("kind", ["Laplace", "Gauss", "Student-t", "few"])
@pytest.mark.parametrize(("step", "most"), [(1.2, 0.6), (1.8, 1.2), (2.4, 2.5)])
def test_what_errors_leave_behind_does_not_grow_from_round_to_round(kind: str, step: float, most: float) -> None:
    random = np.random.default_rng(0)
    residual = np.zeros(2_000, np.float32)
    for _ in range(40):
        fresh = _drawn(kind, random, 2_000)
        wanted = fresh + residual
        residual = wanted - _arrived(wanted, step)
    assert np.sqrt(np.mean(residual**2) / np.mean(fresh**2)) < most


def _settled(step: float, seed: int) -> float:
    """The loss that ten clients' average ends with: quadratic losses, optima apart, a learning rate that goes to zero,
    momentum on the server, errors fed back, one reference of all."""
    random, size, rounds = np.random.default_rng(seed), 2_000, 30
    curvature = np.exp(random.uniform(np.log(0.02), 0.0, size))
    optima = random.normal(size=(10, size))
    weights = 2 * random.normal(size=size)
    reference, velocity, residual = weights.copy(), np.zeros(size), np.zeros((10, size))
    for number in range(rounds):
        moved = 1 - np.exp(-curvature * 0.5 * (1 + np.cos(np.pi * number / rounds)))
        noise = 0.3 * np.sqrt(moved) * random.normal(size=(10, size))
        wanted = moved * (optima - reference) + noise + residual
        arrived = np.stack([_arrived(one, step) for one in wanted])
        residual = wanted - arrived
        velocity = 0.7 * velocity + arrived.mean(axis=0)
        weights = weights + velocity
        reference = reference + _arrived(weights - reference, step)
    return float(np.mean(curvature * (reference - optima.mean(axis=0)) ** 2))


def test_coarse_steps_leave_a_federation_where_floats_leave_it() -> None:
    """Read by the step that made them, codes of 1.6 end twice as high and those of 2 six times."""
    floats, fine, coarse = (np.mean([_settled(step, seed) for seed in range(3)]) for step in (0.0, 1.6, 2.0))
    assert fine < 1.3 * floats
    assert coarse < 4 * floats
