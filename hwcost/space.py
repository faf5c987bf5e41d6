"""Search spaces: a family of inverted-residual networks, and what each of its members executes.

A `SearchSpace` fixes the macro-architecture (stem, stages, head) and the choices per block: skip where the shapes
allow it, depthwise kernel, expansion, weight bits (MBConv after MobileNetV2, arXiv 1801.04381; choices after
Single-Path NAS, arXiv 1904.02877). It tells the profiler which operators to measure and the lookup table what each
choice costs. Activations are 8-bit; the stem and the classifier stay at 8-bit weights.
"""

import itertools
import re
from dataclasses import dataclass
from functools import cached_property

from hwcost.errors import InvalidSpaceError
from hwcost.ops import INT8, Boundary, Conv, Elementwise, Gemm, Operator, Pool, Precision

Layer = tuple[Operator, Precision]


@dataclass(frozen=True)
class BlockChoice:
    """One decided block, written `k3e6b4`; the skipped block is `SKIP`, written `skip`."""

    kernel: int
    expansion: int
    weight_bits: int

    def __str__(self) -> str:
        return "skip" if self == SKIP else f"k{self.kernel}e{self.expansion}b{self.weight_bits}"

    @classmethod
    def parse(cls, text: str) -> "BlockChoice":
        """Raises `InvalidSpaceError` for anything but `skip` or `k<kernel>e<expansion>b<bits>`."""
        match = re.fullmatch(r"k(\d{1,2})e(\d{1,2})b(\d{1,2})", text)
        if text == "skip":
            return SKIP
        if match is None:
            raise InvalidSpaceError(f"a block is written `skip` or like `k3e6b8`, got {text!r}")
        return cls(int(match[1]), int(match[2]), int(match[3]))


SKIP = BlockChoice(0, 0, 0)

Architecture = tuple[BlockChoice, ...]
"""One choice per block, in order."""


@dataclass(frozen=True)
class Stage:
    """`blocks` blocks of `channels` output channels; the first one has the stride."""

    channels: int
    blocks: int
    stride: int


@dataclass(frozen=True)
class BlockSpec:
    """Where a block stands: its shapes, and whether it may be skipped (stride 1, equal channels)."""

    index: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    stride: int

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def output_size(self) -> tuple[int, int]:
        return (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1


@dataclass(frozen=True)
class SearchSpace:
    """A family of networks for images of shape (channels, height, width) and a number of classes."""

    image: tuple[int, int, int]
    classes: int
    stem_channels: int
    stages: tuple[Stage, ...]
    stem_stride: int = 1
    kernels: tuple[int, ...] = (3, 5)
    expansions: tuple[int, ...] = (3, 6)
    weight_bits: tuple[int, ...] = (2, 4, 8)

    def __post_init__(self) -> None:
        numbers: tuple[int, ...] = (*self.image, self.classes, self.stem_channels, self.stem_stride)
        numbers += tuple(n for stage in self.stages for n in (stage.channels, stage.blocks, stage.stride))
        if min(numbers) < 1 or not self.stages:
            raise InvalidSpaceError(f"a search space has at least one stage and no size below 1, got {self}")
        for name, values in (("kernels", self.kernels), ("expansions", self.expansions), ("bits", self.weight_bits)):
            if not values or list(values) != sorted(set(values)) or min(values) < 1:
                raise InvalidSpaceError(f"the {name} of a search space are distinct, rising and positive, got {values}")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise InvalidSpaceError(f"the kernels of a search space are odd, got {self.kernels}")
        for bits in self.weight_bits:
            Precision(bits, 8)
        self.blocks  # noqa: B018  (shapes are checked by building them)

    @classmethod
    def for_image(cls, image: tuple[int, int, int], classes: int) -> "SearchSpace":
        """The default family for an image size: about 8x8 (digits), 32x32 (CIFAR), or larger."""
        size = min(image[1:])
        if size < 16:
            return cls(image, classes, 16, (Stage(16, 1, 1), Stage(24, 2, 2), Stage(32, 2, 2)))
        stages = (Stage(16, 2, 1), Stage(24, 3, 2), Stage(40, 3, 2), Stage(64, 3, 1))
        return cls(image, classes, 16, stages, stem_stride=1 if size < 64 else 2)

    @cached_property
    def blocks(self) -> tuple[BlockSpec, ...]:
        channels, (height, width) = self.stem_channels, self.stem_output_size
        specs: list[BlockSpec] = []
        for stage in self.stages:
            for position in range(stage.blocks):
                stride = stage.stride if position == 0 else 1
                spec = BlockSpec(len(specs), channels, stage.channels, height, width, stride)
                specs.append(spec)
                channels, (height, width) = stage.channels, spec.output_size
        return tuple(specs)

    @property
    def stem_output_size(self) -> tuple[int, int]:
        _, height, width = self.image
        return (height - 1) // self.stem_stride + 1, (width - 1) // self.stem_stride + 1

    @cached_property
    def choices(self) -> tuple[BlockChoice, ...]:
        """Every choice in a fixed order, `SKIP` first; a block that cannot be skipped has all but the first."""
        numbers = itertools.product(self.kernels, self.expansions, self.weight_bits)
        return (SKIP, *(BlockChoice(*triple) for triple in numbers))

    @cached_property
    def columns(self) -> dict[BlockChoice, int]:
        """The position of each choice in `choices`."""
        return {choice: column for column, choice in enumerate(self.choices)}

    @property
    def largest(self) -> Architecture:
        """Largest kernel, expansion and bits everywhere, nothing skipped."""
        return (BlockChoice(self.kernels[-1], self.expansions[-1], self.weight_bits[-1]),) * len(self.blocks)

    def legal(self, block: BlockSpec, choice: BlockChoice) -> bool:
        return choice in self.columns and (choice != SKIP or block.residual)

    def validate(self, architecture: Architecture) -> None:
        """Raises `InvalidSpaceError` with the block that is not a member of this space."""
        if len(architecture) != len(self.blocks):
            raise InvalidSpaceError(f"an architecture here has {len(self.blocks)} blocks, got {len(architecture)}")
        for block, choice in zip(self.blocks, architecture, strict=True):
            if not self.legal(block, choice):
                raise InvalidSpaceError(f"block {block.index} cannot be {choice}: not a choice of this search space")

    def block_layers(self, block: BlockSpec, choice: BlockChoice) -> tuple[Layer, ...]:
        """What one block executes: expand 1x1, depthwise, project 1x1, and the addition of a residual."""
        if choice == SKIP:
            return ()
        precision = Precision(choice.weight_bits, 8)
        hidden = block.in_channels * choice.expansion
        pad, (height, width) = choice.kernel // 2, block.output_size
        expand = Conv(block.in_channels, hidden, block.height, block.width, (1, 1))
        depthwise = Conv(
            hidden,
            hidden,
            block.height,
            block.width,
            (choice.kernel, choice.kernel),
            (block.stride, block.stride),
            (pad, pad, pad, pad),
            groups=hidden,
        )
        project = Conv(hidden, block.out_channels, height, width, (1, 1))
        layers: tuple[Layer, ...] = ((expand, precision), (depthwise, precision), (project, precision))
        if block.residual:
            layers += ((Elementwise("add", (1, block.out_channels, height, width)), INT8),)
        return layers

    def fixed_layers(self) -> tuple[Layer, ...]:
        """What every member executes, in order: stem, pooling and classifier, and what stands between them.

        The runtime's int8 convolutions and pools are channels-last, so the input is transposed once after its
        quantisation, and the pooled plane back again before it is flattened for the classifier.
        """
        channels, height, width = self.image
        last = self.blocks[-1]
        stem = Conv(
            channels, self.stem_channels, height, width, (3, 3), (self.stem_stride, self.stem_stride), (1, 1, 1, 1)
        )
        return (
            (Boundary("quantize", (1, channels, height, width)), INT8),
            (Boundary("transpose", (1, channels, height, width), (0, 2, 3, 1)), INT8),
            (stem, INT8),
            (Pool.global_average(last.out_channels, *last.output_size), INT8),
            (Boundary("transpose", (1, 1, 1, last.out_channels), (0, 3, 1, 2)), INT8),
            (Boundary("reshape", (1, last.out_channels, 1, 1)), INT8),
            (Gemm(1, last.out_channels, self.classes), INT8),
            (Boundary("dequantize", (1, self.classes)), INT8),
        )

    def layers(self, architecture: Architecture) -> tuple[Layer, ...]:
        """What a decided network executes, fixed layers first; raises `InvalidSpaceError`."""
        self.validate(architecture)
        pairs = zip(self.blocks, architecture, strict=True)
        return self.fixed_layers() + tuple(
            layer for block, choice in pairs for layer in self.block_layers(block, choice)
        )

    def operators(self) -> tuple[Operator, ...]:
        """Every distinct operator of any member, in a stable order."""
        seen: dict[Operator, None] = {op: None for op, _ in self.fixed_layers()}
        for block in self.blocks:
            for choice in self.choices:
                seen.update({op: None for op, _ in self.block_layers(block, choice)})
        return tuple(seen)
