"""Networks that others have timed, with random weights of the right shapes; batch normalisation is folded in."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Nodes = list[onnx.NodeProto]


class Graph:
    """A float network under construction; every method answers the name of what it adds."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: Nodes = []
        self._constants: list[onnx.TensorProto] = []
        self._input = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, height, width])
        self.channels = {"image": channels}

    def add(self, kind: str, *inputs: str, channels: int, **attributes: Any) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        self.channels[name] = channels
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def conv(self, x: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str = "relu") -> str:
        inside = self.channels[x] // groups
        spread = (2 / (inside * kernel * kernel)) ** 0.5
        weights = self.constant(self._rng.normal(0, spread, (out, inside, kernel, kernel)))
        bias = self.constant(self._rng.normal(0, 0.1, out))
        pads = [kernel // 2] * 4
        y = self.add("Conv", x, weights, bias, channels=out, kernel_shape=[kernel] * 2, strides=[stride] * 2,
                     pads=pads, group=groups)  # fmt: skip
        if act == "relu":
            return self.add("Relu", y, channels=out)
        if act == "relu6":
            return self.add("Clip", y, self.constant(0.0), self.constant(6.0), channels=out)
        return y

    def pool(self, x: str, kernel: int, stride: int) -> str:
        pads = [kernel // 2] * 4
        return self.add("MaxPool", x, channels=self.channels[x], kernel_shape=[kernel] * 2, strides=[stride] * 2,
                        pads=pads)  # fmt: skip

    def shuffled(self, x: str, groups: int, height: int, width: int) -> str:
        channels = self.channels[x]
        split = self.constant([1, groups, channels // groups, height, width], np.int64)
        y = self.add("Reshape", x, split, channels=channels)
        y = self.add("Transpose", y, channels=channels, perm=[0, 2, 1, 3, 4])
        return self.add("Reshape", y, self.constant([1, channels, height, width], np.int64), channels=channels)

    def classes(self, x: str, count: int) -> str:
        channels = self.channels[x]
        y = self.add("GlobalAveragePool", x, channels=channels)
        y = self.add("Flatten", y, channels=channels)
        weights = self.constant(self._rng.normal(0, 0.05, (channels, count)))
        return self.add("Gemm", y, weights, self.constant(np.zeros(count)), channels=count)

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, "network", [self._input], [helper.make_empty_tensor_value_info(output)], self._constants
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mobilenet_v1() -> onnx.ModelProto:
    g = Graph(3, 224, 224)
    x = g.conv("image", 32, 3, 2)
    widths = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
    for out, stride in widths:
        x = g.conv(g.conv(x, g.channels[x], 3, stride, g.channels[x]), out)
    return g.model(g.classes(x, 1000))


def mobilenet_v2() -> onnx.ModelProto:
    g = Graph(3, 224, 224)
    x = g.conv("image", 32, 3, 2, act="relu6")
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, out, count, stride in stages:
        for index in range(count):
            step = stride if index == 0 else 1
            y = g.conv(x, g.channels[x] * expand, act="relu6") if expand > 1 else x
            y = g.conv(g.conv(y, g.channels[y], 3, step, g.channels[y], "relu6"), out, act="")
            x = g.add("Add", x, y, channels=out) if step == 1 and g.channels[x] == out else y
    return g.model(g.classes(g.conv(x, 1280, act="relu6"), 1000))


def resnet18() -> onnx.ModelProto:
    g = Graph(3, 224, 224)
    x = g.pool(g.conv("image", 64, 7, 2), 3, 2)
    for out in (64, 128, 256, 512):
        for index in range(2):
            stride = 2 if index == 0 and out > 64 else 1
            y = g.conv(g.conv(x, out, 3, stride), out, 3, act="")
            short = g.conv(x, out, 1, stride, act="") if stride == 2 else x
            x = g.add("Relu", g.add("Add", y, short, channels=out), channels=out)
    return g.model(g.classes(x, 1000))


def squeezenet() -> onnx.ModelProto:
    """Version 1.1."""
    g = Graph(3, 224, 224)
    x = g.pool(g.conv("image", 64, 3, 2), 3, 2)
    for place, (narrow, wide) in enumerate(((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))):  # fmt: skip # noqa: E501
        if place in (2, 4):
            x = g.pool(x, 3, 2)
        y = g.conv(x, narrow)
        x = g.add("Concat", g.conv(y, wide), g.conv(y, wide, 3), channels=2 * wide, axis=1)
    return g.model(g.add("GlobalAveragePool", g.conv(x, 1000), channels=1000))


NETWORKS: Final[dict[str, Callable[[], onnx.ModelProto]]] = {
    "mobilenet": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "squeezenet": squeezenet,
    "resnet18": resnet18,
}
"""By the names that ncnn's benchmark has for them."""


def fbnet_block(
    height: int, width: int, inside: int, out: int, stride: int, expand: int, kernel: int, groups: int
) -> onnx.ModelProto:
    """A block of FBNet's space: expand, shuffle where there are groups, depthwise, project, and add what came in."""
    g = Graph(inside, height, width)
    y = g.conv("image", inside * expand, groups=groups)
    if groups > 1:
        y = g.shuffled(y, groups, height, width)
    y = g.conv(y, g.channels[y], kernel, stride, g.channels[y])
    y = g.conv(y, out, groups=groups, act="")
    return g.model(g.add("Add", "image", y, channels=out) if inside == out and stride == 1 else y)


def fbnet_skip(height: int, width: int, inside: int, out: int, stride: int) -> onnx.ModelProto:
    """What stands in that block's place where it is left out: nothing, or a 1x1 convolution that fits the shapes."""
    g = Graph(inside, height, width)
    same = inside == out and stride == 1
    return g.model(g.add("Identity", "image", channels=out) if same else g.conv("image", out, 1, stride))
