"""One timing: a task says what to run, a timing how long it took. Nothing here knows of passes, profiles or budgets.

Tasks and timings are plain documents, so that another process, or another machine, can do the work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from hwcost.errors import HwcostError
from hwcost.int8form import choose_int8_form
from hwcost.kernels import copies_for, prepare, run_time
from hwcost.machine import detect_machine, quietness
from hwcost.ops import INT8, Operator, Precision, key
from hwcost.profiles import Int8Form, Machine, PrecisionField
from hwcost.runtime import Timer, minimum_time, refusals

Request = tuple[Operator, Precision]

_PASS_S: Final = 0.010
"""How long the runs of one timing last in all."""
_KEPT_KERNELS: Final = 64
"""Enough for what is timed again and again, which every row leans on."""
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Task(BaseModel):
    """Runs of `copies` rounds of the kernels of these requests (0: as many as a timing needs).

    `realisation` names the kernel that earlier timings used (empty: the fastest one), `overhead_s` is the cost of one
    call as far as it is known. Tasks of one `stage` may share a process, those of different stages do not.
    """

    model_config = _STRICT

    point: str
    stage: int = 0
    requests: tuple[tuple[Operator, PrecisionField], ...] = Field(min_length=1)
    int8_form: Int8Form
    seed: int
    threads: int = Field(ge=1)
    copies: int = Field(default=0, ge=0)
    realisation: str = ""
    overhead_s: NonNegativeFloat = 0.0

    @property
    def label(self) -> str:
        """What is run, in words."""
        return " and ".join(f"{key(op)} at {precision}" for op, precision in self.requests)


class Timing(BaseModel):
    """One pass over one point: the shortest run of `copies` kernels, in seconds; or why there is none.

    `at_s` is when it was taken, in seconds of measuring since the first timing of all; `others` are realisations that
    a short trial found slower, and how many times as long they took, where this timing made the choice.
    """

    model_config = _STRICT

    point: str
    stage: int = 0
    run_s: PositiveFloat | None = None
    copies: int = Field(default=1, ge=1)
    realisation: str = ""
    native: bool = True
    others: dict[str, Annotated[float, Field(ge=1)]] = {}
    refused: str = ""
    at_s: NonNegativeFloat = 0.0


class Site(BaseModel):
    """Where timings are taken: the machine, reasons to distrust timings taken now, and its best int8 form."""

    model_config = _STRICT

    machine: Machine
    warnings: tuple[str, ...]
    int8_form: Int8Form

    def usual(self, precision: Precision) -> Precision:
        """The same, where its kernel is the one that is used here anyway without its name."""
        return INT8 if precision.kernel == self.int8_form else precision


class Survey(BaseModel):
    """Asks what a `Site` answers."""

    model_config = _STRICT

    threads: int = Field(ge=1)
    seed: int


Take = Callable[[Task], Timing]
"""Does one task; what the runtime refuses is said in the timing, not raised."""


class Timings(Protocol):
    """Where timings come from: this process, or others."""

    def take(self, task: Task) -> Timing:
        """Do one task; what the runtime refuses is said in the timing, not raised."""

    def survey(self, wanted: Survey) -> Site:
        """What is to be known before measuring; raises `MeasurementError` where no int8 kernel is exact."""


@dataclass(frozen=True)
class InProcess:
    """Timings by a stopwatch in this process."""

    timer: Timer = minimum_time

    def take(self, task: Task) -> Timing:
        try:
            with refusals(task.label):
                return _timed(task, self.timer)
        except HwcostError as error:
            return Timing(point=task.point, stage=task.stage, refused=str(error))

    def survey(self, wanted: Survey) -> Site:
        machine, warnings = detect_machine(wanted.threads), quietness()
        form = choose_int8_form(threads=wanted.threads, seed=wanted.seed, timer=self.timer)
        return Site(machine=machine, warnings=warnings, int8_form=form)


_prepared = lru_cache(_KEPT_KERNELS)(prepare)


def _timed(task: Task, timer: Timer) -> Timing:
    kernels = [
        _prepared(op, precision, task.int8_form, task.seed, task.threads, timer, task.realisation)
        for op, precision in task.requests
    ]
    count = task.copies or copies_for(kernels[0], task.overhead_s, task.threads, timer)
    return Timing(
        point=task.point,
        stage=task.stage,
        run_s=run_time(kernels, count, task.threads, timer, _PASS_S),
        copies=count,
        realisation=kernels[0].realisation,
        native=kernels[0].native,
        others=kernels[0].others,
    )
