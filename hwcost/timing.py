"""One timing: a task says what to run, a timing how long it took. Nothing here knows of passes, profiles or budgets.

Timings are plain documents, kept in a journal. Graphs are built here; what runs them may be another process or another
machine.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from hwcost.errors import HwcostError
from hwcost.hardware import TURNS
from hwcost.int8form import choose_int8_form
from hwcost.kernels import Kernel, copies_for, prepare, rounds
from hwcost.machine import cool_down, detect_machine, quietness
from hwcost.ops import Operator, Precision, key
from hwcost.profiles import Int8Form, Machine, PrecisionField
from hwcost.runtime import EndedError, Here, Job, Runtime, UnusableError, refusals

Request = tuple[Operator, Precision]

_PASS_S: Final = 0.006
"""How long the runs of one timing last at once; timings that are taken together come again, see `shortest_runs`."""
_TOGETHER, _TOGETHER_BYTES = 8, 2**27
"""Timings whose models are loaded before the first of them is run, and the bytes that these may take."""
_KEPT_KERNELS: Final = 1024
_KEPT_BYTES: Final = 2**27
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


class Survey(BaseModel):
    """Asks what a `Site` answers."""

    model_config = _STRICT

    threads: int = Field(ge=1)
    seed: int


Take = Callable[[Sequence[Task]], Iterable[Timing]]
"""Does tasks of one stage, in order; what the runtime refuses is said in the timing, not raised."""


def _nobody(text: str) -> None:
    """Hears what is said."""


@dataclass
class Timings:
    """Timings by the stopwatch of a runtime, in this process unless another one is given.

    Tasks of different stages run in different processes, where the runtime has any, and the machine is cool when one
    begins; `say` tells what is waited for.
    """

    runtime: Runtime = field(default_factory=Here)
    say: Callable[[str], None] = _nobody
    sleep: Callable[[float], None] = time.sleep
    _stage: int | None = None
    _kept: OrderedDict[tuple[object, ...], tuple[Kernel, int]] = field(default_factory=OrderedDict)
    _kept_bytes: int = 0

    def take(self, task: Task) -> Timing:
        """One timing; what the runtime refuses, or what ends its process twice, is said in it. Raises
        `UnusableError` where none starts."""
        self._begin(task.stage)
        try:
            with refusals(task.label):
                try:
                    return self._timed([task])[0]
                except EndedError:
                    return self._timed([task])[0]
        except UnusableError:
            raise
        except HwcostError as error:
            return Timing(point=task.point, stage=task.stage, refused=str(error))

    def take_all(self, tasks: Sequence[Task]) -> Iterator[Timing]:
        """One timing of each of some tasks of one stage, some at a time: these are all loaded before they are timed in
        turn, for where somebody else has the machine most of the time, nothing else should be done while it rests.
        Where one fails, they are timed one by one. Raises like `take`."""
        for start in range(0, len(tasks), _TOGETHER):
            some = tasks[start : start + _TOGETHER]
            self._begin(some[0].stage)
            try:
                with refusals("some operators together"):
                    timings = self._timed(some)
            except UnusableError:
                raise
            except HwcostError:
                timings = list(map(self.take, some))
            yield from timings

    def _begin(self, stage: int) -> None:
        if self._stage not in (None, stage):
            self.runtime.renew()
            cool_down(self.runtime.facts, self.say, self.sleep)
        self._stage = stage

    def survey(self, wanted: Survey) -> Site:
        """What is to be known before measuring; raises `MeasurementError` where no int8 kernel is exact."""
        facts = cool_down(self.runtime.facts, self.say, self.sleep)
        warnings = quietness(facts)
        for warning in warnings:
            self.say(warning)
        form = choose_int8_form(self.runtime, threads=wanted.threads, seed=wanted.seed)
        return Site(machine=detect_machine(wanted.threads, facts), warnings=warnings, int8_form=form)

    def _timed(self, tasks: Sequence[Task]) -> list[Timing]:
        """With those of the tasks together that take no more than so many bytes."""
        runs: list[tuple[list[Kernel], int]] = []
        groups: list[list[Job]] = []
        left = 0
        for task in tasks:
            kernels = [self._prepared(task, *request) for request in task.requests]
            count = task.copies or copies_for(kernels[0], task.overhead_s, self.runtime, task.threads)
            runs.append((kernels, count))
            size = sum(kernel.constant_bytes * count + TURNS * kernel.input_bytes for kernel in kernels)
            if size > left or not groups:
                groups.append([])
                left = _TOGETHER_BYTES
            left -= size
            groups[-1].append(rounds(kernels, count, task.threads))
        runs_s = [run_s for group in groups for run_s in self.runtime.shortest_each_s(group, _PASS_S)]
        return [
            Timing(
                point=task.point,
                stage=task.stage,
                run_s=run_s,
                copies=count,
                realisation=kernels[0].realisation,
                native=kernels[0].native,
                others=kernels[0].others,
            )
            for task, (kernels, count), run_s in zip(tasks, runs, runs_s, strict=True)
        ]

    def _prepared(self, task: Task, op: Operator, precision: Precision) -> Kernel:
        about = (op, precision, task.int8_form, task.seed, task.threads)
        found = self._kept.get((*about, task.realisation))
        if found is not None:
            self._kept.move_to_end((*about, task.realisation))
            return found[0]
        kernel = prepare(
            op, precision, task.int8_form, task.seed, self.runtime, task.threads, realisation=task.realisation
        )
        self._keep((*about, kernel.realisation), replace(kernel, others={}))
        self._keep((*about, task.realisation), kernel)
        return kernel

    def _keep(self, about: tuple[object, ...], kernel: Kernel) -> None:
        """Beside those used last; what was not used for longest goes where they become too many."""
        _, before = self._kept.pop(about, (None, 0))
        size = kernel.constant_bytes + kernel.input_bytes
        self._kept[about] = kernel, size
        self._kept_bytes += size - before
        while self._kept_bytes > _KEPT_BYTES or len(self._kept) > _KEPT_KERNELS:
            _, (_, gone) = self._kept.popitem(last=False)
            self._kept_bytes -= gone
