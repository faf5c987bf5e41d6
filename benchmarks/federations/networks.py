"""The networks of the baselines, in float: one member of the space, and all its members as paths beside each other."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hwcost import SKIP, Architecture, BlockChoice, BlockSpec, SearchSpace


class _ConvNorm(nn.Sequential):
    """Convolution, batch norm, and ReLU6 where `relu`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        fan: Literal["fan_in", "fan_out"] = "fan_out" if groups == 1 else "fan_in"
        nn.init.kaiming_normal_(convolution.weight, mode=fan, nonlinearity="relu")
        layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
        super().__init__(*layers, *([nn.ReLU6(inplace=True)] if relu else []))


class MBConv(nn.Module):
    """An inverted residual (arXiv 1801.04381) of one kernel and expansion; the identity is added where shapes allow."""

    def __init__(self, spec: BlockSpec, choice: BlockChoice) -> None:
        super().__init__()
        hidden = spec.in_channels * choice.expansion
        self.residual = spec.residual
        self.layers = nn.Sequential(
            _ConvNorm(spec.in_channels, hidden, 1),
            _ConvNorm(hidden, hidden, choice.kernel, spec.stride, groups=hidden),
            _ConvNorm(hidden, spec.out_channels, 1, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class _MultiPath(nn.Module):
    """One block: every choice a path with weights of its own; `alphas` [paths] mix them by their softmax."""

    def __init__(self, spec: BlockSpec, choices: Sequence[BlockChoice]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Identity() if choice == SKIP else MBConv(spec, choice) for choice in choices)
        self.alphas = nn.Parameter(torch.zeros(len(choices)))

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(self.alphas, dim=0)
        mixed = torch.zeros((), device=x.device)
        for share, path in zip(shares, self.paths, strict=True):
            mixed = mixed + share * path(x)
        return mixed


class _Network(nn.Module):
    """Stem and head around blocks that are named by their index."""

    def __init__(self, space: SearchSpace, blocks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.space = space
        self.stem = _ConvNorm(space.image[0], space.stem_channels, 3, space.stem_stride)
        self.blocks = nn.ModuleDict(blocks)
        self.classifier = nn.Linear(space.stages[-1].channels, space.classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """images [n, channels, height, width] in [0, 1] -> class scores [n, classes]."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        for block in self.blocks.values():
            x = block(x)
        scores: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return scores


class FloatNet(_Network):
    """One member of the space; its weight bits say nothing here."""

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        pairs = zip(space.blocks, architecture, strict=True)
        super().__init__(space, {str(spec.index): MBConv(spec, choice) for spec, choice in pairs if choice != SKIP})
        self.architecture = architecture


class MultiPathNet(_Network):
    """All members of the space, none of them sharing a weight with another path of its block."""

    def __init__(self, space: SearchSpace) -> None:
        self.choices = [path_choices(space, spec) for spec in space.blocks]
        pairs = zip(space.blocks, self.choices, strict=True)
        super().__init__(space, {str(spec.index): _MultiPath(spec, choices) for spec, choices in pairs})

    def alphas(self) -> list[nn.Parameter]:
        return [value for name, value in self.named_parameters() if name.endswith(".alphas")]

    def derived(self) -> FloatNet:
        """The path with the largest alpha of every block, with the weights it has."""
        best = [int(alphas.argmax()) for alphas in self.alphas()]
        network = FloatNet(self.space, tuple(choices[i] for choices, i in zip(self.choices, best, strict=True)))
        own = self.state_dict()
        state = {}
        for name in network.state_dict():
            head, _, rest = name.partition(".")
            if head == "blocks":
                index, _, rest = rest.partition(".")
                state[name] = own[f"blocks.{index}.paths.{best[int(index)]}.{rest}"]
            else:
                state[name] = own[name]
        network.load_state_dict(state)
        return network


def path_choices(space: SearchSpace, spec: BlockSpec) -> list[BlockChoice]:
    """A block's legal choices in float: those of one width, since the widths would be copies of each other."""
    widest = space.weight_bits[-1]
    return [choice for choice in space.choices if space.legal(spec, choice) and choice.weight_bits in (0, widest)]
