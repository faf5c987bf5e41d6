"""What networks are made of: families of operators, and how an operator of each is drawn.

Sizes and widths are those of published networks: plain convolutions (VGG, arXiv 1409.1556), residual bottlenecks
(ResNet, 1512.03385; ResNeXt, 1611.05431), dense growth (DenseNet, 1608.06993), inverted residuals (MobileNetV2,
1801.04381), channel shuffles (ShuffleNet, 1707.01083), attention (1706.03762; on images, 2010.11929), and what
quantisation tools and the runtime's optimiser leave between them. Draws are random on purpose: no network's operators
are copied. The widths that a draw favours are multiples of 8, as in most networks; others come up too.
"""

from functools import partial
from typing import Any, Final, get_args

from hwcost.ops import BoundaryFunction, ElementwiseFunction, PoolFunction
from hwcost.prior import kernels, nodes
from hwcost.prior.draws import Draw as Draw

_SHARES: Final[dict[str, int]] = {
    **{"average": 64, "max": 48, "global_max": 16},
    **dict.fromkeys(("relu", "clip", "sigmoid", "hardswish", "leakyrelu", "QuickGelu"), 24),
    **dict.fromkeys(("Erf", "Gelu"), 12),
}
"""Shares that are not those of their like: means take many ways, maxima over a plane are rare, and some functions are
behind every convolution (`QuickGelu` is what a SiLU becomes), or in every perceptron."""

_UNARY: Final[tuple[tuple[str, int, str, dict[str, Any]], ...]] = (
    ("Erf", 13, "", {}),
    ("Exp", 13, "", {}),
    ("Sqrt", 13, "", {}),
    ("Reciprocal", 13, "", {}),
    ("Abs", 13, "", {}),
    ("Neg", 13, "", {}),
    ("Log", 13, "", {}),
    ("Elu", 6, "", {"alpha": 1.0}),
    ("Softplus", 1, "", {}),
    ("Gelu", 1, "com.microsoft", {}),
    ("QuickGelu", 1, "com.microsoft", {"alpha": 1.0}),
    ("Sin", 7, "", {}),
    ("Cos", 7, "", {}),
    ("Atan", 7, "", {}),
    ("Floor", 13, "", {}),
    ("Ceil", 13, "", {}),
    ("Round", 11, "", {}),
    ("Sign", 13, "", {}),
    ("Selu", 6, "", {}),
    ("Celu", 12, "", {"alpha": 1.0}),
    ("Mish", 18, "", {}),
    ("Softsign", 1, "", {}),
)
"""Functions of one tensor: type, version, domain, attributes."""

FAMILIES: Final[dict[str, tuple[int, Draw]]] = {
    "dense convolution": (220, kernels.dense),
    "depthwise convolution": (84, kernels.depthwise),
    "grouped convolution": (90, kernels.grouped),
    "residual convolution": (40, kernels.residual),
    "convolution of a line": (60, kernels.line),
    "scaling": (14, kernels.scaling),
    "excitation": (24, kernels.excitation),
    "product of one row": (44, kernels.classifier),
    "large product": (20, kernels.large_classifier),
    "product of more rows": (60, kernels.product),
    "to channels last": (24, kernels.to_channels_last),
    "to channels first": (24, kernels.to_channels_first),
    "other transposes": (48, kernels.shuffle),
    "weights": (16, kernels.weights),
    **{name: (_SHARES.get(name, 32), partial(kernels.pool, name)) for name in get_args(PoolFunction)},
    **{name: (_SHARES.get(name, 12), partial(kernels.elementwise, name)) for name in get_args(ElementwiseFunction)},
    **{name: (24, partial(kernels.boundary, name)) for name in get_args(BoundaryFunction) if name != "transpose"},
    "concatenation": (56, nodes.concat),
    **{f"{name} with broadcast": (56, partial(nodes.broadcast, name)) for name in ("Add", "Mul")},
    **{f"{name} with broadcast": (24, partial(nodes.broadcast, name)) for name in ("Sub", "Div")},
    **{f"{name} with broadcast": (40, partial(nodes.int8_broadcast, name)) for name in ("QLinearAdd", "QLinearMul")},
    "Div": (10, partial(nodes.same_size, "Div")),
    "Sum": (12, nodes.summation),
    **{name: (8, partial(nodes.extreme, name)) for name in ("Max", "Min")},
    "comparison": (18, nodes.comparison),
    "Cast": (16, nodes.cast),
    **{
        op_type: (_SHARES.get(op_type, 7), partial(nodes.unary, op_type, version, domain, settings))
        for op_type, version, domain, settings in _UNARY
    },
    "Pow": (10, nodes.power),
    "PRelu": (24, nodes.prelu),
    "softmax": (40, nodes.softmax),
    "layer norm": (36, nodes.norm),
    "batch norm": (24, nodes.batch_norm),
    "instance norm": (10, nodes.instance_norm),
    "local response norm": (16, nodes.lrn),
    "Split": (24, nodes.split),
    "Slice": (18, nodes.slicing),
    "Pad": (14, nodes.pad),
    "Tile": (6, nodes.tile),
    "Resize": (56, nodes.resize),
    "blocked upsampling": (24, nodes.blocked_upsample),
    "reduction": (64, nodes.reduction),
    "largest values": (16, nodes.extremes),
    "CumSum": (6, nodes.running_sum),
    "GridSample": (6, nodes.grid_sample),
    "transposed convolution": (36, nodes.transposed_convolution),
    "attention": (30, nodes.attention),
    "fused attention": (14, nodes.fused_attention),
    "biased GELU": (12, nodes.biased_gelu),
    "int8 attention": (16, nodes.int8_attention),
    "Gather": (20, nodes.gather),
    "slow pools": (64, nodes.slow_pool),
    "Expand": (8, nodes.expand),
    "Where": (8, nodes.where),
    "depth and space": (10, nodes.space),
    "recurrent": (36, nodes.recurrent),
    "dynamic quantisation": (60, nodes.dynamic),
}
"""The share of each family in a sample, and how it draws an operator."""
