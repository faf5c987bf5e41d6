"""A profile of a device that is not at hand: its kernels, traced under emulation and priced by a model of its core.

A row is what a second copy of a kernel adds to a run, so neither a call's cost nor the layout changes around it are in
it. Layers that move more bytes than they compute are held back by memory, which a trace does not show: no row is
faster than the device's bandwidth allows. What is not modelled: caches short of that, threads, throttling. So rows are
good for ratios and ranking; each says `emulated` and names the instructions that its kernel multiplies with.
"""

import hashlib
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hwcost.devices import DeviceClass
from hwcost.emulation.instructions import kernel_path
from hwcost.emulation.machine import Emulated, emulation_of
from hwcost.emulation.tools import Tools
from hwcost.errors import HwcostError, MeasurementError, UnsupportedPrecisionError
from hwcost.features import hardware_of
from hwcost.graph import supported_precisions
from hwcost.int8form import choose_int8_form
from hwcost.journal import Conditions, Journal
from hwcost.kernels import Kernel, copies, prepare
from hwcost.machine import detect_machine
from hwcost.measure import unpacked_realisations
from hwcost.model import read_model
from hwcost.ops import FLOAT, INT8, PLAIN, Elementwise, Operator, Precision, bytes_moved, key
from hwcost.profiles import Int8Form, Machine, Profile, Realisation, Row
from hwcost.runtime import EndedError, Given, UnusableError, refusals
from hwcost.sampling import sampled_requests
from hwcost.timing import Request, Timing

Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`."""

_CALL: Final[Request] = (Elementwise("add", (1, 24, 4, 4)), INT8)
"""A small kernel, for the cost of a call."""
_MOST_UNPACKED: Final = 1_000_000
"""Weights of few bits beside float activations, of a sampled operator."""
_UNBLOCKED: Final = Realisation(
    kind="conv",
    precision=PLAIN,
    runs_as=FLOAT,
    native=True,
    description="float kernel; the runtime has no blocked layouts for this core",
)


def emulate_profile(
    device: DeviceClass,
    operators: Sequence[Operator],
    *,
    sampled: Sequence[Operator] = (),
    models: Sequence[Path] = (),
    precisions: Sequence[Precision] | None = None,
    seed: int = 0,
    journal: Path | None = None,
    progress: Progress | None = None,
    tools: Tools | None = None,
) -> Profile:
    """A profile of these operators at every precision that has a kernel, or at those of `precisions`; one thread.

    `sampled` stand for those of other networks, and are run on the kernels too that a runtime chooses for these; what
    `models` execute there is run just so. `journal` is a file to resume from, left there for the caller to delete.
    Operators that the runtime refuses are left out, and a note says how many. Raises `MeasurementError` where
    emulation's tools are missing, and `UnsupportedPrecisionError` where nothing is left to run.
    """
    emulation, tools = emulation_of(device), tools or Tools.here()
    tools.check()
    with Emulated(device, tools) as runtime:
        machine = _machine(device, runtime)
        form = choose_int8_form(runtime, seed=seed)
        requests = [(op, precision) for op in operators for precision in supported_precisions(op)]
        requests += [request for op in sampled for request in sampled_requests(op, form) if not _is_slow(request)]
        exact = [(op, precision) for model in models for _, op, precision in read_model(model, runtime=runtime).layers]
        requests = [*exact, *(one for one in requests if precisions is None or one[1] in precisions)]
        blocked = hardware_of(machine, form).blocked
        wanted = tuple(dict.fromkeys((op, _kernel(precision, form, blocked)) for op, precision in requests))
        if not wanted:
            raise UnsupportedPrecisionError(
                f"an emulated profile holds precisions that have a kernel, got {', '.join(map(str, precisions or ()))} "
                "for operators that have none of these: ask for w8a8, narrower weights run on its kernels"
            )
        about = (machine.fingerprint, machine.system, emulation.model_dump_json(), tools.name)
        fingerprint = hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
        with Journal(journal, Conditions(fingerprint=fingerprint, int8_form=form, seed=seed)) as book:
            for place, request in enumerate(wanted):
                name = _name(request)
                if progress is not None:
                    progress(place, len(wanted), request[0].kind)
                if not book.of(name):
                    book.add(_emulated(runtime, request, form, seed))
            found = {request: book.of(_name(request))[0] for request in wanted}
        call_s = _call_s(runtime, form, seed)
    rows = tuple(_row(device, request, timing) for request, timing in found.items() if timing.run_s is not None)
    refused = len(found) - len(rows)
    return Profile(
        device=device.name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine,
        int8_form=form,
        run_overhead_s=call_s,
        noise_floor=0.0,
        notes=(*_notes(device), *((f"{refused} operators were left out, the runtime refused them",) * bool(refused))),
        realisations=(*unpacked_realisations(rows), *(() if blocked else (_UNBLOCKED,))),
        rows=rows,
    )


def _kernel(precision: Precision, form: Int8Form, blocked: bool) -> Precision:
    """The precision whose kernel a core runs of its own accord, without that kernel's name."""
    return FLOAT if precision == PLAIN and not blocked else precision.usual_on(form)


def _is_slow(request: Request) -> bool:
    """Whether it is a large product with weights alone in few bits: each of several kernels is tried, minutes long."""
    op, precision = request
    return precision.weight_bits < precision.activation_bits and op.weights > _MOST_UNPACKED


def _name(request: Request) -> str:
    return f"row: {key(request[0])} at {request[1]}"


def _machine(device: DeviceClass, runtime: Emulated) -> Machine:
    """The emulated machine, with what emulates it in the place of its system."""
    return detect_machine(1, runtime.facts()).model_copy(
        update={
            "cpu": f"{device.cpu} (emulated)",
            "features": device.features,
            "cores": device.cores,
            "cache_bytes": dict(device.cache_bytes),
            "affinity": (),
            "governor": "unknown",
            "system": f"no board: {_version('qemu-aarch64')}, {_version('llvm-mca')}",
        }
    )


def _version(program: str) -> str:
    """`qemu 7.2.22`: the first number that a program prints, under its package's name."""
    text = subprocess.run((Tools.program(program), "--version"), capture_output=True, text=True, check=False).stdout
    number = next((word for word in text.split() if word[0].isdigit() and "." in word), "of unknown version")
    return f"{program.partition('-')[0]} {number}"


def _notes(device: DeviceClass) -> tuple[str, ...]:
    emulation = emulation_of(device)
    return (
        f"emulated, not measured: the runtime's own kernels for {device.description}, one thread, executed by QEMU "
        f"({emulation.qemu_cpu}) and priced by llvm-mca ({emulation.mca_cpu}); use it for ratios and ranking, not for "
        "milliseconds. To measure, run the same command on the board.",
        f"calibration: {emulation.calibration:g} wall-clock cycles per traced cycle; {emulation.calibrated_by}",
        f"intervals: a factor of {emulation.interval_factor:g}, {emulation.memory_interval_factor:g} where memory is "
        "the limit; not modelled: caches, threads, throttling",
    )


def _emulated(runtime: Emulated, request: Request, form: Int8Form, seed: int) -> Timing:
    """One row's seconds, or why there are none."""
    (op, precision), name = request, _name(request)
    try:
        with refusals(name):
            try:
                kernel = prepare(op, precision, form, seed, runtime, 1)
                seconds, names = _second_copy(runtime, kernel)
            except EndedError:  # once more, in a process of its own
                kernel = prepare(op, precision, form, seed, runtime, 1)
                seconds, names = _second_copy(runtime, kernel)
    except UnusableError:
        raise
    except HwcostError as error:
        return Timing(point=name, refused=str(error))
    if seconds <= 0:
        return Timing(point=name, refused=f"an operator takes time, got none for {name}")
    path = kernel_path(names)
    return Timing(
        point=name,
        run_s=seconds,
        realisation=f"{kernel.realisation} [{path}]" if path else kernel.realisation,
        native=kernel.native,
        others=kernel.others,
    )


def _second_copy(runtime: Emulated, kernel: Kernel) -> tuple[float, dict[str, int]]:
    traces = []
    for count in (1, 2):
        model, feeds, weights = copies([kernel], count)
        traces.append(runtime.trace(Given(model, 1, "none", weights=weights), feeds))
    return runtime.seconds_between(*traces)


def _call_s(runtime: Emulated, form: Int8Form, seed: int) -> float:
    """Of one call of the runtime, without operators."""
    kernel = prepare(*_CALL, form, seed, runtime, 1)
    model, feeds, weights = copies([kernel], 1)
    one_s = runtime.shortest_s(Given(model, 1, "none", weights=weights), feeds, 0.0)
    call_s = one_s - _second_copy(runtime, kernel)[0]
    if call_s <= 0:
        raise MeasurementError(f"a call of the runtime takes time, got {call_s} s: use another version of onnxruntime")
    return call_s


def _row(device: DeviceClass, request: Request, timing: Timing) -> Row:
    (op, precision), emulation = request, emulation_of(device)
    assert timing.run_s is not None, "rows are of what ran"
    memory_s = bytes_moved(op, precision) / device.memory_bytes_per_s
    factor = emulation.memory_interval_factor if memory_s > timing.run_s else emulation.interval_factor
    latency_s = max(timing.run_s, memory_s)
    return Row(
        operator=op,
        precision=precision,
        realisation=timing.realisation,
        native=timing.native,
        source="emulated",
        latency_s=latency_s,
        interval_s=(latency_s / factor, latency_s * factor),
        others={name: max(timing.run_s * ratio, memory_s) for name, ratio in timing.others.items()},
    )
