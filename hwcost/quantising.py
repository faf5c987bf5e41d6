"""int8 networks as the runtime's own quantisation tool writes them: the second door to onnxruntime, which runs nothing
that is timed."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnx

INT8_STYLES: Final = {"u8s8 per channel": ("u8", "s8"), "s8s8": ("s8", "s8"), "u8u8": ("u8", "u8")}
"""How quantisation tools write int8 networks: number formats of activations and weights. The second is the default of
the runtime's own tool, the first what it advises for x86."""


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
