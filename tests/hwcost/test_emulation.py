"""Emulated devices: what a trace costs, and the agent on a real emulated Arm core, where its tools are installed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hwcost.devices import load_device
from hwcost.emulation.cycles import CONTEXT, Core, Trace
from hwcost.emulation.instructions import disassemble, kernel_path, simulated, vector_name
from hwcost.emulation.machine import Emulated
from hwcost.emulation.profiling import emulate_profile
from hwcost.emulation.tools import Tools
from hwcost.errors import MeasurementError
from hwcost.graph import candidates
from hwcost.kernels import copies, prepare
from hwcost.ops import FLOAT, INT8, Conv
from hwcost.runtime import Given, Here

ADD = 0x91000400  # add x0, x0, #1
FMLA = 0x4E22CC20  # fmla v0.4s, v1.4s, v2.4s
LOAD_ON = 0x4CDF7820  # ld1 { v0.4s }, [x1], #16
CALL = 0x94000010  # bl
CAST_OF_PAIR = 0x08207C82  # casp w0, w1, w2, w3, [x4]
NO_INSTRUCTION = 0xFFFFFFFF

LLVM = pytest.mark.skipif(shutil.which("llvm-mca") is None, reason="needs llvm-mca, of the package llvm")
CONV = Conv.square(16, 32, 8, 3)


def trace(*blocks: tuple[tuple[int, ...], int]) -> Trace:
    """Blocks, each executed so many times, one after the other."""
    return Trace.of([words for words, _ in blocks], np.repeat(np.arange(len(blocks)), [count for _, count in blocks]))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ldp q0, q1, [x2], #32", ("ldp q0, q1, [x2]", "add x2, x2, #32")),
        ("ld1 { v0.4s }, [x1], x3", ("ld1 { v0.4s }, [x1]", "add x1, x1, x3")),
        ("str x0, [sp, #-16]!", ("sub sp, sp, #16", "str x0, [sp]")),
        ("ldrb w0, [x1, #48]!", ("add x1, x1, #48", "ldrb w0, [x1]")),
        ("ldr x0, [x1], #-8", ("ldr x0, [x1]", "sub x1, x1, #8")),
        ("mov v12.d[0], x1", ("mov v12.d[0], x1",)),
        ("ldr x0, [x1, #8]", ("ldr x0, [x1, #8]",)),
        ("ldaddal w0, w2, [x1]", ("ldr w2, [x1]", "str w0, [x1]")),
        ("bl #64", ("b #64",)),
        ("blr x8", ("br x8",)),
    ],
)
def test_what_a_simulator_would_price_wrongly_is_written_in_other_words(text: str, pieces: tuple[str, ...]) -> None:
    assert simulated(text) == pieces
    assert simulated("bl #64", slow_calls=True) == ("bl #64",)


def test_a_kernel_is_named_by_the_vector_products_it_executes_most() -> None:
    counts = {"smull": 90, "sadalp": 100, "smlal": 5, "add": 1000, "": 5000}
    assert kernel_path(counts) == "sadalp+smull" and kernel_path({"add": 3}) == ""
    assert vector_name("smull v0.8h, v1.8b, v2.8b") == "smull" and vector_name("smull x0, w1, w2") == ""


def test_a_loop_has_as_many_distinct_contexts_as_it_takes_to_fill_one() -> None:
    few, many = (trace(((ADD,) * 16, count), ((FMLA,) * 4, 1)) for count in (1_000, 100_000))
    assert len(few.counts()) == len(many.counts()) == CONTEXT // 16 + 2
    assert many.instructions - few.instructions == 99_000 * 16
    assert few.counts().keys() == many.counts().keys()
    other = trace(((FMLA,) * 16, 1_000), ((FMLA,) * 4, 1))
    assert not few.counts().keys() & other.counts().keys()


@LLVM
def test_a_chain_costs_its_latency_and_independent_work_its_throughput() -> None:
    core = Core("cortex-a72", 5)
    chain = core.cycles_between(trace(((ADD,) * 10, 100)), trace(((ADD,) * 10, 300)))
    assert chain == 2_000  # one a cycle, each waits for the one before
    sums = core.cycles_between(trace(((FMLA,) * 10, 100)), trace(((FMLA,) * 10, 300)))
    assert 3 <= sums / 2_000 <= 5  # each waits for the sum before it
    loads = core.cycles_between(trace(((LOAD_ON,) * 10, 100)), trace(((LOAD_ON,) * 10, 300)))
    assert loads / 2_000 <= 1.01  # the address is not late by the latency of memory


@LLVM
def test_cycles_repeat_and_depend_on_nothing_that_was_asked_before() -> None:
    few, many = trace(((ADD, FMLA), 50)), trace(((ADD, FMLA), 80), ((CALL, LOAD_ON), 3))
    used = Core("cortex-a72", 5)
    assert used.cycles(many) == used.cycles(many) == Core("cortex-a72", 5).cycles(many)
    assert used.cycles_between(few, many) == Core("cortex-a72", 5).cycles_between(few, many)
    assert used.cycles_between(many, few) == -used.cycles_between(few, many)
    assert used.names_between(few, many)["fmla"] == 30
    calls = trace(((ADD,), 10), ((CALL, ADD), 3))
    assert Core("cortex-a72", 5, slow_calls=True).cycles(calls) > used.cycles(calls) + 90


@LLVM
def test_what_no_model_of_the_core_knows_costs_nothing() -> None:
    unknown = disassemble([CAST_OF_PAIR])[CAST_OF_PAIR]
    assert unknown.startswith("casp ")
    with_it = trace(((ADD,) * 10, 20), ((CAST_OF_PAIR, ADD), 10))
    assert Core("neoverse-n1", 4).cycles(with_it) < 250


@LLVM
def test_what_is_no_instruction_is_nothing() -> None:
    assert disassemble([NO_INSTRUCTION, ADD]) == {NO_INSTRUCTION: "nop", ADD: "add x0, x0, #1"}


def test_a_trace_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.trace"
    np.array([2, 1, ADD, 1], np.uint32).tofile(path)
    with pytest.raises(MeasurementError, match=r"a trace is whole, 0\.trace is cut off"):
        Trace.read(path)
    np.array([2, 1, ADD, 2, FMLA, FMLA, 1, 0, 1], np.uint32).tofile(path)
    assert Trace.read(path).words() == {ADD: 1, FMLA: 4}


def test_a_class_says_what_its_processors_say_of_themselves() -> None:
    device = load_device("rpi4")
    assert device.emulation is not None
    files = device.emulation.system_files(4)
    assert files["proc/cpuinfo"].count("0xd08") == 4 and "processor : 3" in files["proc/cpuinfo"]
    assert files["sys/devices/system/cpu/online"] == "0-3\n"


def test_missing_tools_are_named_with_what_brings_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    tools = Tools(tmp_path / "cache")
    with pytest.raises(MeasurementError, match="missing here: Debian packages qemu-user llvm gcc libc6-dev"):
        tools.check()
    with pytest.raises(MeasurementError, match="run `sudo apt-get install -y --no-install-recommends qemu-user"):
        tools.install(print)
    with pytest.raises(MeasurementError, match="rpi5 does not"):
        emulate_profile(load_device("rpi5"), (CONV,), tools=tools)


def emulated(name: str) -> Iterator[Emulated]:
    if missing := Tools.here().missing():
        pytest.skip(f"emulation needs its tools (`hwcost emulator --install`), missing: {'; '.join(missing)}")
    with Emulated(load_device(name), Tools.here()) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def rpi4() -> Iterator[Emulated]:
    yield from emulated("rpi4")


def traces(runtime: Emulated, precision: object) -> tuple[Trace, Trace]:
    kernel = prepare(CONV, FLOAT if precision is FLOAT else INT8, "s8s8", 0, runtime, 1)
    found = []
    for count in (1, 2):
        model, feeds, weights = copies([kernel], count)
        found.append(runtime.trace(Given(model, 1, "none", weights=weights), feeds))
    return found[0], found[1]


def test_the_agent_runs_on_arm_and_answers_int8_to_the_bit(rpi4: Emulated) -> None:
    facts = rpi4.facts()
    assert (facts.architecture, facts.core, facts.cores) == ("aarch64", "Cortex-A72", 4)
    (int8,) = candidates(CONV, INT8, "s8s8", np.random.default_rng(0))
    (floating,) = candidates(CONV, FLOAT, "s8s8", np.random.default_rng(0))
    for candidate, tolerance in ((int8, 0.0), (floating, 1e-4)):
        given = Given(candidate.model.SerializeToString())
        (here,), (there,) = Here().run(given, candidate.feeds), rpi4.run(given, candidate.feeds)
        assert here.dtype == there.dtype and np.abs(here.astype(float) - there.astype(float)).max() <= tolerance


def test_traces_repeat_and_show_the_kernels_of_the_core(rpi4: Emulated) -> None:
    device = load_device("rpi4")
    rates = {}
    for precision in (FLOAT, INT8):
        few, many = traces(rpi4, precision)
        seconds, names = rpi4.seconds_between(few, many)
        again = traces(rpi4, precision)
        assert [one.words() for one in again] == [few.words(), many.words()]
        assert rpi4.seconds_between(*again) == (seconds, names)
        rates[precision] = CONV.macs / (rpi4.cycles(seconds))
        assert ("fmla" if precision is FLOAT else "sadalp") in kernel_path(names)
        assert "sdot" not in names
    assert 2 < rates[FLOAT] <= device.peak_macs_per_cycle["float"]
    assert rates[FLOAT] < rates[INT8] <= 2 * device.peak_macs_per_cycle["int8"]


def test_a_profile_says_that_it_is_emulated_and_goes_on_where_it_stopped(rpi4: Emulated, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    part = emulate_profile(load_device("rpi4"), (CONV,), precisions=(FLOAT,), journal=journal)
    assert part.sources == ("emulated",) and part.machine.cpu == "Cortex-A72 (emulated)"
    assert "emulated, not measured" in part.notes[0] and "qemu" in part.machine.system
    (row,) = part.rows
    assert row.realisation == "Conv [fmla]" and row.interval_s[0] < row.latency_s < row.interval_s[1]
    lines = journal.read_text()
    whole = emulate_profile(load_device("rpi4"), (CONV,), precisions=(FLOAT, INT8), journal=journal)
    assert whole.rows[0] == row and len(whole.rows) == 2 and journal.read_text().startswith(lines)


def test_a_core_with_dot_products_takes_other_kernels() -> None:
    for runtime in emulated("neoverse-n1"):
        _, names = runtime.seconds_between(*traces(runtime, INT8))
        assert "sdot" in kernel_path(names)
