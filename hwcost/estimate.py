"""An analytic model of a device class, for when no such board is at hand: ratios and ranking, not milliseconds.

Timing this machine and calling it another would be wrong even in sign: an x86 server and a Cortex-A72 disagree on
whether int8 pays. So the estimate rests on the board's own kernels: multiply-accumulates per cycle of each kernel
class, traced, times one constant fitted to published wall-clock times; the memory's bandwidth where that is the limit;
a fixed cost per node. Not modelled: threads, shapes that fill a kernel's tiles badly, throttling. Every row says
`estimated` and carries an interval accordingly wide, which no fit on such rows can narrow.
"""

from collections.abc import Iterable, Sequence

from hwcost.devices import DeviceClass, ElementClass, IntervalClass, KernelClass, NumberFormat, Rates
from hwcost.errors import UnknownDeviceError, UnsupportedPrecisionError
from hwcost.graph import supported_precisions
from hwcost.ops import FLOAT, INT8, Boundary, Conv, Elementwise, Gemm, Node, Operator, Pool, Precision, bytes_moved
from hwcost.profiles import Machine, Profile, Realisation, Row

_WEIGHT_ONLY = (Precision(8, 32), Precision(4, 32), Precision(2, 32))
_TRANSCENDENTAL = ("sigmoid", "hardswish", "hardsigmoid", "tanh")
_TRANSCENDENTAL_NODES = ("Softmax", "Erf", "Exp", "Log", "Pow", "Elu", "Softplus", "Gelu", "QuickGelu", "LRN")


def _rates(device: DeviceClass) -> Rates:
    """What an estimate of this class rests on; raises `UnknownDeviceError` where there is nothing."""
    if device.estimate is None:
        emulated = ", or emulate one with --emulate" if device.emulation else ""
        raise UnknownDeviceError(
            f"an estimate rests on rates of the runtime's kernels, there are none for {device.name}: measure one, "
            f"`hwcost profile --device {device.name}` on it or with --ssh USER@HOST{emulated}"
        )
    return device.estimate


def _kernel_class(op: Conv | Gemm) -> KernelClass:
    if isinstance(op, Gemm):
        return "gemm"
    if op.depthwise:
        return "depthwise"
    return "pointwise" if op.kernel == (1, 1) and op.groups == 1 else "dense"


def _element_work(op: Pool | Elementwise | Boundary | Node) -> tuple[ElementClass, int]:
    """The class of a kernel without multiply-accumulates, and how often its unit of work is done."""
    if isinstance(op, Pool):
        return "window", op.output_elements * op.kernel[0] * op.kernel[1]
    if isinstance(op, Node):
        amount = max(op.input_elements, op.output_elements)
        return "transcendental" if op.op_type in _TRANSCENDENTAL_NODES else "arithmetic", amount
    if op.function in _TRANSCENDENTAL:
        return "transcendental", op.output_elements
    if op.function in ("quantize", "dequantize"):
        return "quantise", op.output_elements
    return "arithmetic", op.output_elements


def estimate_latency(device: DeviceClass, op: Operator, precision: Precision) -> float:
    """Seconds of one execution on one core: the slower of arithmetic and memory, plus a node's fixed cost.

    `precision` is float, int8, or (Gemm) weight-only, which dequantises its weights on every run and then is float.
    """
    rates = _rates(device)
    number_format: NumberFormat = "int8" if precision.activation_bits == 8 else "float"
    if isinstance(op, Boundary) and op.function == "reshape":
        return rates.node_overhead_s
    per_element = rates.cycles_per_element[number_format]
    if isinstance(op, Conv | Gemm):
        cycles = rates.calibration * op.macs / rates.macs_per_cycle[number_format][_kernel_class(op)]
    elif isinstance(op, Node) and op.macs:
        cycles = rates.calibration * op.macs / rates.macs_per_cycle[number_format]["gemm"]
    else:
        element_class, amount = _element_work(op)
        cycles = per_element[element_class] * amount
    memory_s = bytes_moved(op, precision) / device.memory_bytes_per_s
    latency_s = max(cycles / device.clock_hz, memory_s) + rates.node_overhead_s
    if precision in _WEIGHT_ONLY:
        unpacked_s = 2 * 4 * op.weights / device.memory_bytes_per_s
        latency_s += max(per_element["dequantise_weight"] * op.weights / device.clock_hz, unpacked_s)
    return latency_s


def _describe(op: Operator, precision: Precision) -> str:
    if precision in _WEIGHT_ONLY:
        return f"estimated: MatMulNBits ({precision.weight_bits} bits) unpacked to float on every run"
    if precision == FLOAT:
        return "estimated: float kernel"
    return "estimated: QLinearConv" if isinstance(op, Conv) else f"estimated: int8 {op.kind} kernel"


def _interval_class(op: Operator, precision: Precision) -> IntervalClass:
    if not isinstance(op, Conv | Gemm) or precision in _WEIGHT_ONLY:
        return "untraced"
    return "int8" if precision == INT8 else "float"


def _row(device: DeviceClass, op: Operator, precision: Precision) -> Row:
    latency_s = estimate_latency(device, op, precision)
    factor = _rates(device).interval_factor[_interval_class(op, precision)]
    return Row(
        operator=op,
        precision=precision,
        realisation=_describe(op, precision),
        native=precision not in _WEIGHT_ONLY,
        source="estimated",
        latency_s=latency_s,
        interval_s=(latency_s / factor, latency_s * factor),
    )


def _rates_first(entry: tuple[str, str]) -> tuple[bool, str]:
    return entry[0] not in Rates.model_fields, entry[0]


def estimate_profile(
    device: DeviceClass, operators: Iterable[Operator], *, precisions: Sequence[Precision] | None = None
) -> Profile:
    """A profile of `device` for one thread, every row `source: estimated`; the same input gives the same bytes.

    Raises `UnknownDeviceError` for a class without rates, and `UnsupportedPrecisionError` where no operator has any of
    `precisions` (all that have a kernel by default).
    """
    rates = _rates(device)
    rows = tuple(
        _row(device, op, precision)
        for op in dict.fromkeys(operators)
        for precision in supported_precisions(op)
        if precisions is None or precision in precisions
    )
    if not rows:
        raise UnsupportedPrecisionError(
            f"an estimate is of precisions that have a kernel, got {', '.join(map(str, precisions or ())) or 'none'} "
            "for operators that have none of these: ask for w8a8, narrower weights run on its kernels"
        )
    unpacked = tuple(
        Realisation(
            kind=kind,
            precision=Precision(bits, 8),
            runs_as=INT8,
            native=False,
            description=f"{bits}-bit weights in storage, unpacked to int8 when the session loads",
        )
        for kind in ("conv", "gemm")
        for bits in (4, 2)
    )
    return Profile(
        device=device.name,
        created=device.revised,
        machine=Machine(
            cpu=f"{device.cpu} (estimated)",
            architecture=device.architecture,
            features=device.features,
            cores=device.cores,
            cache_bytes=dict(device.cache_bytes),
            system="no board: analytic model",
        ),
        int8_form=rates.int8_form,
        run_overhead_s=rates.run_overhead_s,
        noise_floor=0.0,
        notes=(
            f"estimated, not measured: an analytic model of {device.description}, one thread; use it for ratios and "
            "ranking. To measure, run the same command on the board.",
            *(f"{field}: {source}" for field, source in sorted(device.sources.items(), key=_rates_first)),
        ),
        realisations=unpacked,
        rows=rows,
    )
