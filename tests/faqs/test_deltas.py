"""Movements from one end to the other: what is foretold, what is coded, and that both ends agree on it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faqs.deltas import (
    DOWN,
    UP,
    Arrays,
    add,
    code_movement,
    cut_lengths,
    movement,
    read_carries,
    take,
    zeros_like,
)
from faqs.errors import WireError
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
    steps=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.2, 3.0]), st.booleans()), min_size=1, max_size=5),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    kept=st.sampled_from([UP, DOWN]),
)
def test_both_ends_move_alike_whatever_is_foretold(
    seed: int, steps: list[tuple[float, bool]], scale: float, kept: float
) -> None:
    random = np.random.default_rng(seed)
    here, there = zeros_like(_arrays(random)), zeros_like(_arrays(random))
    for step, foretell in steps:
        wanted = take(_arrays(random, scale), CUTS)
        tensors, carries = code_movement(wanted, here, CUTS, step, foretell=foretell)
        blob = encode(WireMessage({"carries": carries}, tensors))
        moved = movement(tensors, carries, here, CUTS, kept)
        got = decode(blob, lengths=cut_lengths(there, CUTS))
        heard = movement(got.tensors, read_carries(got.header, CUTS), there, CUTS, kept)
        assert all(moved[name].tobytes() == heard[name].tobytes() for name in CUTS)
        assert all(here[name].tobytes() == there[name].tobytes() for name in here)
        assert not here["c"].any() and not here["a"][:, :2].any()
        assert carries == "" or (len(carries) == len(CUTS) and foretell and step > 0)
        if step == 0:
            assert all(moved[name].tobytes() == wanted[name].tobytes() for name in CUTS)


def test_what_goes_on_as_it_went_is_coded_with_less_error_at_the_same_step() -> None:
    errors = {}
    for foretell in (False, True):
        random = np.random.default_rng(0)
        trend, pull, lost = zeros_like(_arrays(random)), take(_arrays(random), CUTS), []
        for _ in range(12):
            fresh = take(_arrays(random, 0.3), CUTS)
            wanted = {name: pull[name] + fresh[name] for name in CUTS}
            tensors, carries = code_movement(wanted, trend, CUTS, 1.2, foretell=foretell)
            moved = movement(tensors, carries, trend, CUTS, UP)
            lost.append(sum(float(((moved[name] - wanted[name]) ** 2).sum()) for name in CUTS))
        errors[foretell] = np.mean(lost[4:])
    assert errors[True] < 0.5 * errors[False]


def test_a_movement_that_turns_back_is_not_foretold() -> None:
    random = np.random.default_rng(0)
    trend = zeros_like(_arrays(random))
    wanted = take(_arrays(random), CUTS)
    movement(code_movement(wanted, trend, CUTS, 0.5, foretell=True)[0], "", trend, CUTS, DOWN)
    turned = {"a": -wanted["a"], "b": wanted["b"] / 2}
    _, carries = code_movement(turned, trend, CUTS, 1.0, foretell=True)
    assert carries == "08"


def test_vectors_are_rounded_more_finely() -> None:
    wanted = take(_arrays(np.random.default_rng(0)), CUTS)
    tensors, _ = code_movement(wanted, zeros_like(_arrays(np.random.default_rng(0))), CUTS, 1.2, vector_step=0.25)
    lost = {
        name: np.mean((tensors[name].dequantise() - value) ** 2) / np.mean(value**2) for name, value in wanted.items()
    }
    assert lost["b"] < 0.2 * lost["a"]


def test_what_leaves_the_mask_is_not_carried_on() -> None:
    random = np.random.default_rng(0)
    trend = _arrays(random)
    kept = {"b": CUTS["b"]}
    wanted = take(_arrays(random), kept)
    tensors, carries = code_movement(wanted, trend, kept, 1.0, foretell=True)
    target = zeros_like(trend)
    add(target, kept, movement(tensors, carries, trend, kept, UP))
    assert not trend["a"].any() and not trend["c"].any()
    assert target["b"].any() and not target["a"].any() and not target["c"].any()


@pytest.mark.parametrize("carries", ["0", "000", "0g", "0A", 1, None, ["0", "0"], "é0"])
def test_carries_that_are_none_are_refused(carries: object) -> None:
    with pytest.raises(WireError, match="carries are a hexadecimal digit for each of 2 tensors"):
        read_carries({"carries": carries}, CUTS)  # type: ignore[dict-item]
    assert read_carries({}, CUTS) == read_carries({"carries": ""}, CUTS) == ""


def test_a_movement_beyond_what_floats_hold_is_refused_and_changes_nothing() -> None:
    trend: Arrays = {"b": np.full(40, 3e38, np.float32)}
    tensors, _ = code_movement({"b": np.full(40, 2e38, np.float32)}, zeros_like(trend), {"b": CUTS["b"]}, 0.0)
    with pytest.raises(WireError, match="a movement is of finite numbers"):
        movement(tensors, "f", trend, {"b": CUTS["b"]}, DOWN)
    assert (trend["b"] == np.float32(3e38)).all()
