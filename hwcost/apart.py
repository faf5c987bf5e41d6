"""Reading somebody else's model in a process of its own: what breaks there breaks nothing here.

Some models end the process that reads them: the runtime and onnx divide by a zero, or leave an array, before they
refuse, and no check of theirs comes first. `python -m hwcost.apart` reads one model and answers with one line of JSON.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter

from hwcost.errors import HwcostError, ModelError
from hwcost.model import Layout, ModelLayers, read_model
from hwcost.ops import Operator
from hwcost.profiles import PrecisionField

_HERE: Final = (sys.executable, "-P", "-m", "hwcost.apart")
_SHAPES: Final = TypeAdapter[dict[str, tuple[int, ...]]](dict[str, tuple[int, ...]])


class _Answer(BaseModel):
    """`ModelLayers` as JSON, or why there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str = ""
    layers: tuple[tuple[str, Operator, PrecisionField], ...] = ()
    uncovered: tuple[str, ...] = ()
    uncovered_elements: int = 0
    elements: int = 0


def read_apart(
    path: Path, *, shapes: Mapping[str, tuple[int, ...]] | None = None, layout: Layout = "executed"
) -> ModelLayers:
    """`read_model` in a child process; raises `ModelError` too where that does not live to answer."""
    command = (*_HERE, str(path), layout, json.dumps(dict(shapes or {})))
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if ran.returncode != 0 or not ran.stdout.endswith(b"\n"):
        code = ran.returncode
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise ModelError(
            f"a model is read to its end, the process that read {path} {end}: export the model again, give smaller "
            "sizes, or use another version of onnxruntime"
        )
    answer = _Answer.model_validate(json.loads(ran.stdout.splitlines()[-1]))
    if answer.error:
        raise ModelError(answer.error)
    return ModelLayers(answer.layers, answer.uncovered, answer.uncovered_elements, answer.elements)


def _answer(path: Path, layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> _Answer:
    try:
        found = read_model(path, shapes=shapes, layout=layout)
    except HwcostError as error:
        return _Answer(error=str(error))
    return _Answer(
        layers=found.layers,
        uncovered=found.uncovered,
        uncovered_elements=found.uncovered_elements,
        elements=found.elements,
    )


def main() -> None:
    """Entry point of `python -m hwcost.apart PATH LAYOUT SHAPES`. What libraries print goes to stderr."""
    path, layout, shapes = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = _answer(Path(path), "executed" if layout == "executed" else "portable", _SHAPES.validate_json(shapes))
    print(json.dumps(answer.model_dump(mode="json")), file=answers, flush=True)


if __name__ == "__main__":
    main()
