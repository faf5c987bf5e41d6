"""Small real ONNX models, built by hand, for the tests that read and run models."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 12
"""No multiple of any block of channels, so that blocked layouts have to pad."""


class Builder:
    """Nodes and constants in order; weights drawn from one seed."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_y"], name=name, **attributes))
        return f"{name}_y"

    def weights(self, *shape: int) -> np.ndarray:
        return (self.rng.standard_normal(shape) * 0.1).astype(np.float32)

    def conv(self, x: str, out_channels: int, in_channels: int, kernel: int, groups: int = 1, stride: int = 1) -> str:
        w = self.constant(self.weights(out_channels, in_channels // groups, kernel, kernel))
        b = self.constant(self.weights(out_channels))
        pad = kernel // 2
        return self.node("Conv", x, w, b, kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2, group=groups)

    def save(self, path: Path, x_shape: list[int | str], output: str, outputs: int = 1) -> Path:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)
        y = [helper.make_empty_tensor_value_info(output)] * outputs
        graph = helper.make_graph(self.nodes, "model", [x], y, self.constants)
        opsets = [helper.make_opsetid("", 21)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path


def float_model(path: Path, x_shape: list[int | str] | None = None, *, extra: str | None = None) -> Path:
    """Stem, depthwise, pointwise with a residual, pool, classifier; `extra` names a node type put before the pool."""
    build = Builder()
    stem = build.node("Relu", build.conv("x", CHANNELS, 3, 3, stride=2))
    x = build.node(
        "Clip",
        build.conv(stem, CHANNELS, CHANNELS, 3, CHANNELS),
        build.constant(np.float32(0)),
        build.constant(np.float32(6)),
    )
    x = build.node("Add", stem, build.conv(x, CHANNELS, CHANNELS, 1))
    if extra is not None:
        x = build.node(extra, x)
    x = build.node("Flatten", build.node("GlobalAveragePool", x))
    x = build.node("Gemm", x, build.constant(build.weights(10, CHANNELS)), build.constant(build.weights(10)), transB=1)
    return build.save(path, x_shape or [1, 3, 16, 16], build.node("Softmax", x))


def quantised_model(path: Path) -> Path:
    """Two convolutions, an addition, a pool and a classifier between quantise and dequantise nodes, uint8."""
    build = Builder()
    scale, zero = build.constant(np.float32(0.05)), build.constant(np.uint8(128))

    def quantised(x: str) -> str:
        return build.node("DequantizeLinear", build.node("QuantizeLinear", x, scale, zero), scale, zero)

    def weights(*shape: int) -> str:
        codes = build.constant(build.rng.integers(1, 255, shape).astype(np.uint8))
        return build.node("DequantizeLinear", codes, build.constant(np.float32(0.01)), zero)

    x = quantised("x")
    first = quantised(build.node("Conv", x, weights(16, 3, 3, 3), kernel_shape=[3, 3], pads=[1] * 4))
    second = quantised(build.node("Conv", first, weights(16, 16, 1, 1), kernel_shape=[1, 1]))
    pooled = quantised(build.node("GlobalAveragePool", quantised(build.node("Add", first, second))))
    flat = quantised(build.node("Flatten", pooled))
    return build.save(path, [1, 3, 8, 8], quantised(build.node("Gemm", flat, weights(10, 16), transB=1)))
