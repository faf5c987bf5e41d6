"""Members, their hull, and how messages name them."""

from collections import Counter

import pytest
import torch

from faqs.errors import WireError
from faqs.members import drawn, hull, path_of, read_members, written_members
from faqs.supernet import new_supernet, shared_cuts, shared_tensors
from faqs.train import random_architecture
from faqs.wire import JsonValue
from hwcost import SKIP, BlockChoice, LookupTable, SearchSpace


@pytest.mark.parametrize("seed", range(4))
def test_a_hull_holds_the_weights_of_all_members_and_of_nothing_larger(space: SearchSpace, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    members = [random_architecture(space, generator) for _ in range(3)]
    used = shared_tensors(new_supernet(space, 0))

    def marked(architecture: tuple[BlockChoice, ...]) -> dict[str, torch.Tensor]:
        marks = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in used.items()}
        for name, cut in shared_cuts(space, architecture).items():
            marks[name][cut] = True
        return marks

    around, inside = marked(hull(members)), [marked(member) for member in members]
    for name, marks in around.items():
        assert all(not (one[name] & ~marks).any() for one in inside)
    for block, choices in enumerate(zip(*members, strict=True)):
        around_block = hull(members)[block]
        if around_block == SKIP:
            assert set(choices) == {SKIP}
        else:
            for field in ("kernel", "expansion", "weight_bits"):
                assert getattr(around_block, field) == max(getattr(choice, field) for choice in choices)
    space.validate(hull(members))
    assert hull([hull(members), *members]) == hull(members)


def test_the_mask_says_what_a_client_trains(space: SearchSpace) -> None:
    small, large = (BlockChoice(3, 3, 4),) * len(space.blocks), space.largest
    assert path_of("own", small, [(large, 1)]) == small
    assert path_of("hull", small, [(large, 1)]) == large
    assert path_of("hull", small, [(small, 3)]) == small


def test_members_are_drawn_as_often_as_clients_have_them(space: SearchSpace) -> None:
    small, large = (BlockChoice(3, 3, 4),) * len(space.blocks), space.largest
    generator = torch.Generator().manual_seed(0)
    counts = Counter(drawn([(small, 3), (large, 1)], 1, generator)[0] for _ in range(2000))
    assert counts[small] + counts[large] == 2000
    assert abs(counts[small] / 2000 - 0.75) < 0.04


@pytest.mark.parametrize(("count", "found"), [(0, 0), (1, 1), (2, 2), (5, 2)])
def test_no_member_is_drawn_twice_for_a_step(space: SearchSpace, count: int, found: int) -> None:
    members = [((BlockChoice(3, 3, 4),) * len(space.blocks), 9), (space.largest, 1)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        architectures = drawn(members, count, generator)
        assert len(architectures) == len(set(architectures)) == found


def test_members_survive_a_header(table: LookupTable) -> None:
    space, generator = table.space, torch.Generator().manual_seed(0)
    members = [(random_architecture(space, generator), count) for count in (5, 2, 1)]
    assert read_members({"members": written_members(members, space)}, table) == members


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (None, "names 1 to 64 members"),
        ([], "names 1 to 64 members"),
        ([[1, 1, 1]] * 65, "names 1 to 64 members"),
        ([[0, 1, 1]], "the number of its clients"),
        ([[True, 1, 1]], "the number of its clients"),
        (["text"], "the number of its clients"),
        ([[1, 1]], "one choice for each"),
        ([[1, 1, 10_000]], "a legal choice by its index"),
        ([[1, 1, -1]], "a legal choice by its index"),
        ([[1, 1, 1.0]], "a legal choice by its index"),
    ],
)
def test_a_header_without_members_is_refused(table: LookupTable, rows: JsonValue, rule: str) -> None:
    blocks = len(table.space.blocks)
    if isinstance(rows, list):  # written for two blocks
        rows = [[*row, *[1] * (blocks - 2)] if isinstance(row, list) and len(row) == 3 else row for row in rows]
    with pytest.raises(WireError, match=rule):
        read_members({"members": rows}, table)
