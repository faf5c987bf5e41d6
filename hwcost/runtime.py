"""The one door to onnxruntime: sessions that are the same everywhere, the stopwatch, and its refusals as our errors."""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from hwcost.errors import HwcostError, MeasurementError
from hwcost.limits import within

Timer = Callable[[Callable[[], object], float], float]
"""`timer(run, seconds)`: the duration in seconds of the shortest call of `run`, tried for about that long."""

RUNTIME_ERRORS: Final[tuple[type[Exception], ...]] = (
    *(
        getattr(runtime, name)
        for name in (
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "NotImplemented",
            "RuntimeException",
            "EPFail",
            "NoSuchFile",
            "NoModel",
            "InvalidProtobuf",
        )
    ),
    UnicodeDecodeError,  # of a message that quotes a damaged name
)
"""What the runtime raises when it refuses a model or an input."""

ANY_REFUSAL: Final[tuple[type[Exception], ...]] = (*RUNTIME_ERRORS, RuntimeError, MemoryError)
"""Those, and what it raises where it runs out of memory or has an output that is no array of numpy's."""

Optimise = Literal["all", "extended", "none"]
"""What the runtime makes of a graph: everything, blocked layouts included; fusions only; nothing."""

INT8_STYLES: Final = {"u8s8 per channel": ("u8", "s8"), "s8s8": ("s8", "s8"), "u8u8": ("u8", "u8")}
"""How quantisation tools write int8 networks: number formats of activations and weights. The second is the default of
the runtime's own tool, the first what it advises for x86."""
_LEVELS: Final = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_LEAST_RUNS: Final = 3


def session(
    model: bytes | str | Path,
    threads: int = 1,
    *,
    optimise: Optimise = "all",
    save_as: Path | None = None,
    weights_in: Path | None = None,
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    settings: Mapping[str, str] | None = None,
    most_s: float | None = None,
) -> onnxruntime.InferenceSession:
    """A CPU session of a serialised model or a file, the same everywhere: sequential, spinning as by default, silent.

    The runtime logs and prints nothing: what it refuses arrives as one of `RUNTIME_ERRORS`. `save_as` keeps the
    optimised model there; `weights_in` is the folder of those weights of a serialised model that lie in files of their
    own, `weights` are such weights in memory, which have to outlive the session; `settings` are further session
    configuration entries; after `most_s` a `TimeoutError` is raised.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    if weights_in is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_in))
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    options.graph_optimization_level = _LEVELS[optimise]
    if save_as is not None:
        options.optimized_model_filepath = str(save_as)
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
    source = str(model) if isinstance(model, Path) else model
    make = partial(onnxruntime.InferenceSession, source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    if most_s is None:
        return make()
    return within(most_s, make, stop=partial(options.set_load_cancellation_flag, True))


def run_once(
    running: onnxruntime.InferenceSession, feeds: Mapping[str, npt.NDArray[Any]], most_s: float
) -> dict[str, onnxruntime.OrtValue]:
    """Every output by its name, of any type, left in the runtime's memory; `TimeoutError` after `most_s`."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    outputs = [value.name for value in running.get_outputs()]
    given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
    run = partial(running.run_with_ort_values, outputs, given, options)
    values = within(most_s, run, stop=partial(setattr, options, "terminate", True))
    return dict(zip(outputs, values, strict=True))


def minimum_time(run: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """The shortest of repeated calls, in seconds: one to warm up, then as many as fit in `seconds`, three at least."""
    run()
    best, runs, now = math.inf, 0, clock()
    deadline = now + seconds
    while runs < _LEAST_RUNS or now < deadline:
        start = clock()
        run()
        now = clock()
        best = min(best, now - start)
        runs += 1
    return best


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn the runtime's exceptions into one line that names `what`."""
    try:
        yield
    except HwcostError:
        raise
    except ANY_REFUSAL as error:
        reason = " ".join(str(error).split())[:300]
        raise MeasurementError(
            f"onnxruntime must be able to run what is measured, it refused {what}: {reason}: "
            "leave it out or use another version of onnxruntime"
        ) from error


def time_model(
    model: bytes | str | Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    *,
    threads: int = 1,
    seconds: float = 1.0,
    passes: int = 3,
    weights_in: Path | None = None,
) -> tuple[float, tuple[float, ...]]:
    """End-to-end seconds of one `run()` of a model: the minimum over passes, each in a fresh session, and the passes.

    `seconds` is spent in all; `weights_in` as in `session`. Raises `MeasurementError` where the runtime refuses the
    model.
    """
    if passes < 1:
        raise MeasurementError(f"a timing has at least one pass, got passes={passes}: ask for more")
    samples: list[float] = []
    with refusals(str(model) if isinstance(model, str | Path) else "the model"):
        for _ in range(passes):
            running = session(model, threads, weights_in=weights_in)
            missing = [one.name for one in running.get_inputs() if one.name not in feeds]
            if missing:
                raise MeasurementError(
                    f"a timed model is fed every one of its inputs, got none for {', '.join(missing)}: feed them"
                )
            samples.append(minimum_time(partial(running.run, None, dict(feeds)), seconds / passes))
    return min(samples), tuple(samples)


def quantised(model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[Any]], style: str) -> onnx.ModelProto:
    """The model with int8 weights and activations, calibrated on `feeds`, between Q/DQ pairs as the runtime's own tool
    writes them; `style` is one of `INT8_STYLES`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Once(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter([dict(feeds)])

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            return next(self._left, None)

    activations, weights = INT8_STYLES[style]
    kinds = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
    with tempfile.TemporaryDirectory(prefix="hwcost-") as folder, _quiet_logs():
        target = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            str(target),
            Once(),
            quant_format=QuantFormat.QDQ,
            per_channel=style.endswith("per channel"),
            activation_type=kinds[activations],
            weight_type=kinds[weights],
        )
        return onnx.load(target)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """The quantisation tool advises steps for models other than ours, through the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
