import itertools
import random

import pytest

from hwcost.errors import InvalidSpaceError
from hwcost.ops import Conv
from hwcost.space import SKIP, BlockChoice, SearchSpace, Stage

SPACES = [SearchSpace.for_image(image, 10) for image in ((1, 8, 8), (3, 32, 32), (3, 96, 64))]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.image[1]}px")
def test_shapes_flow_from_block_to_block(space: SearchSpace) -> None:
    draw = random.Random(0)
    for _ in range(20):
        legal = ([c for c in space.choices if space.legal(block, c)] for block in space.blocks)
        architecture = tuple(draw.choice(choices) for choices in legal)
        size, channels = space.stem_output_size, space.stem_channels
        for block, choice in zip(space.blocks, architecture, strict=True):
            convolutions = [op for op, _ in space.block_layers(block, choice) if isinstance(op, Conv)]
            for op in convolutions:
                assert (op.in_channels, op.height, op.width) == (channels, *size)
                channels, size = op.out_channels, (op.output_height, op.output_width)
            if choice == SKIP:
                assert convolutions == []
        assert channels == space.stages[-1].channels and size == space.blocks[-1].output_size


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.image[1]}px")
def test_the_operators_of_a_space_are_those_of_its_members(space: SearchSpace) -> None:
    members = {op for op, _ in space.fixed_layers()}
    for block, choice in itertools.product(space.blocks, space.choices):
        members |= {op for op, _ in space.block_layers(block, choice)}
    operators = space.operators()
    assert len(set(operators)) == len(operators) and set(operators) == members
    assert all(op in members for op, _ in space.layers(space.largest))


def test_only_a_block_that_keeps_its_shape_may_be_skipped() -> None:
    space = SPACES[0]
    skippable = [space.legal(block, SKIP) for block in space.blocks]
    assert skippable == [True, False, True, False, True]
    with pytest.raises(InvalidSpaceError, match="block 1 cannot be skip"):
        space.validate((SKIP,) * 5)
    with pytest.raises(InvalidSpaceError, match="has 5 blocks, got 1"):
        space.validate((SKIP,))


@pytest.mark.parametrize("text", ["skip", "k3e6b4", "k11e12b8"])
def test_a_choice_is_written_and_read(text: str) -> None:
    assert str(BlockChoice.parse(text)) == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": ()}, "at least one stage"),
        ({"stages": (Stage(0, 1, 1),)}, "no size below 1"),
        ({"kernels": (3, 4)}, "are odd"),
        ({"kernels": (5, 3)}, "distinct, rising and positive"),
        ({"weight_bits": (3,)}, "a precision is one of"),
    ],
)
def test_a_space_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    whole = {"image": (1, 8, 8), "classes": 10, "stem_channels": 8, "stages": (Stage(8, 1, 1),), **fields}
    with pytest.raises(ValueError, match=message):
        SearchSpace(**whole)  # type: ignore[arg-type]
    with pytest.raises(InvalidSpaceError, match="`skip` or like `k3e6b8`, got 'k3'"):
        BlockChoice.parse("k3")
