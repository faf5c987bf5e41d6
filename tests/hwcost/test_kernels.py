"""Kernels as the runtime executes them, and runs of many copies: what each copy reads, owns and leaves behind."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from hwcost.agent import session
from hwcost.graph import candidates, other_kernels, supported_precisions
from hwcost.kernels import HELD_ELEMENTS, Kernel, copies, executed_kernel, held_outputs, prepare
from hwcost.measure import measure_operators
from hwcost.ops import FLOAT, INT8, PLAIN, Boundary, Conv, Elementwise, Gemm, Node, Operator, Precision, bytes_moved
from hwcost.prior import FAMILIES
from hwcost.profiles import Int8Form, Machine
from hwcost.runtime import RUNTIME_ERRORS, Here
from hwcost.sampling import family_streams
from hwcost.timing import Task, Timing, Timings

CONV = Conv.square(16, 24, 8, 3)
LARGE = Conv.square(64, 64, 6, 3)
"""Its weights are handed over beside a model."""
COPIED: tuple[tuple[Operator, Precision], ...] = (
    (CONV, FLOAT),
    (CONV, INT8),
    (LARGE, FLOAT),
    (LARGE, INT8),
    (LARGE, PLAIN),
    (Gemm(2, 96, 64), FLOAT),
    (Gemm(2, 96, 64), INT8),
    (Gemm(2, 96, 64), Precision(4, 32)),
    (Elementwise("add", (1, 8, 16, 16)), FLOAT),
    (Elementwise("add", (1, 8, 16, 16)), INT8),
    (Boundary("quantize", (1, HELD_ELEMENTS)), INT8),
    (Node("PRelu", ("float32[1,32,8,8]", "=float32[32,1,1]"), ("float32[1,32,8,8]",), version=16), FLOAT),
)
COUNT = 7


def kernel_of(op: Operator, precision: Precision, form: Int8Form = "u8u8") -> Kernel:
    return executed_kernel(op, candidates(op, precision, form, np.random.default_rng(0))[0], Here())


class Copies:
    """`count` copies of a kernel: the model, what is fed, and every constant by its name."""

    def __init__(self, kernel: Kernel, count: int = COUNT) -> None:
        self.data, self.feeds, weights = copies([kernel], count)
        self.weights = {name: one.value for name, one in weights.items()}
        self.graph = onnx.load_from_string(self.data).graph
        beside = self.weights
        inside = [one for one in self.graph.initializer if one.name not in beside]
        self.constants = {one.name: numpy_helper.to_array(one) for one in inside} | beside
        self.nodes = [node for node in self.graph.node if node.name]

    def values(self, position: int) -> list[npt.NDArray[Any]]:
        """What each copy's first node reads at one place of its inputs, a constant."""
        return [self.constants[node.input[position]] for node in self.nodes]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_draws_runs_at_every_precision_and_makes_what_it_says(name: str) -> None:
    stream = itertools.islice(family_streams(11)[name], 60)
    small = (op for op in stream if op.macs < 40_000_000 and bytes_moved(op, FLOAT) < 40_000_000)
    drawn = sorted(small, key=lambda op: op.macs + bytes_moved(op, FLOAT))
    assert drawn
    for op in drawn[: 3 if drawn[0].weights < 1_000_000 else 1]:
        precisions = (*supported_precisions(op), *other_kernels(op, "u8u8"))
        assert precisions
        for precision in precisions:
            for candidate in candidates(op, precision, "u8u8", np.random.default_rng(0)):
                try:
                    answers = session(candidate.model.SerializeToString()).run(None, candidate.feeds)
                except RUNTIME_ERRORS:
                    assert name.startswith("reorder"), op  # whose blocks are those of another CPU
                    continue
                assert np.isfinite(np.asarray(answers[0], np.float64)).all(), op
                if isinstance(op, Node):
                    assert (answers[0].shape, str(answers[0].dtype)) == (op.writes[0].shape, op.writes[0].dtype)
                else:
                    filled = {op.output_elements}
                    if isinstance(op, Boundary) and op.function == "reorder_input":  # the last block is filled up
                        filled = {op.output_elements // op.shape[1] * -(-op.shape[1] // b) * b for b in (1, 8, 16)}
                    assert answers[0].size in filled, op


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_the_kernel_of_a_residual_convolution_is_one_node_that_reads_the_residual(activation: str) -> None:
    op = replace(CONV, activation=activation, residual=True)
    kernel = kernel_of(op, FLOAT)
    (node,) = kernel.nodes
    assert "Conv" in node.op_type and node.input[3] in kernel.inputs
    channels = kernel.inputs[node.input[3]].size // (op.output_height * op.output_width)
    assert channels in (op.out_channels, -(-op.out_channels // 16) * 16)  # whole blocks, where vectors are wide
    assert len(kernel.inputs) == 2 and len(kernel.constants) == 2


def test_a_plain_convolution_reads_its_weights_anew() -> None:
    kernel = kernel_of(CONV, PLAIN)
    assert kernel.realisation == "Conv weights read anew" and not kernel.constants
    assert [array.shape for array in kernel.inputs.values()] == [(1, 16, 8, 8), (24, 16, 3, 3), (24,)]


@pytest.mark.parametrize("op", [CONV, Gemm(2, 16, 8)], ids=["conv", "gemm"])
@pytest.mark.parametrize("form", ["u8u8", "u8s8", "s8s8"])
def test_an_int8_form_is_the_devices_unless_the_precision_names_one(op: Operator, form: Int8Form) -> None:
    kinds = {"u": np.uint8, "s": np.int8}
    others = [precision for precision in other_kernels(op, form) if precision.weight_bits == 8]
    assert [precision.kernel for precision in others] == [one for one in ("u8s8", "u8u8") if one != form]
    for precision in (INT8, *others):
        kernel, named = kernel_of(op, precision, form), precision.kernel or form
        assert kernel.realisation.endswith(f" {named}")
        (activation,) = kernel.inputs.values()
        weights = numpy_helper.to_array(kernel.constants[kernel.nodes[0].input[3]])
        assert (activation.dtype, weights.dtype) == (kinds[named[0]], kinds[named[2]])


@pytest.mark.parametrize("channels", [24, 40])
def test_a_reorder_is_of_the_blocks_that_this_machine_has(channels: int) -> None:
    """Which is seen from a convolution, whose output the runtime pads to whole blocks; half a block tells 8 from 16."""
    conv = kernel_of(Conv.square(16, channels, 8, 3), FLOAT)
    if not conv.realisation.startswith("nchwc"):
        pytest.skip("no blocked layouts on this machine")
    padded = max(tensor.dims[0] for tensor in conv.constants.values())
    reorder = prepare(Boundary("reorder_output", (1, channels, 4, 4)), FLOAT, "u8u8", 0, Here(), 1)
    (array,) = reorder.inputs.values()
    assert array.shape == (1, padded, 4, 4)
    assert reorder.realisation == f"nchwc.ReorderOutput blocks of {8 if padded == channels else 16}"


@pytest.mark.parametrize(("op", "precision"), COPIED, ids=lambda value: str(value)[:60])
def test_only_a_tick_is_fed_and_copies_take_turns_with_three_sets_of_inputs(op: Operator, precision: Precision) -> None:
    kernel = kernel_of(op, precision)
    made = Copies(kernel)
    running = session(made.data, optimise="none", weights=made.weights)
    assert list(made.feeds) == [value.name for value in running.get_inputs()] == ["tick"]
    assert [answer.shape for answer in running.run(None, made.feeds)] == [(1,)]
    # Initial values that could be fed: for the runtime they are no constants.
    given = {value.name for value in made.graph.input} - {"tick"}
    assert given == {value.name for value in running.get_overridable_initializers()}
    assert len(given) == 3 * len(kernel.inputs)
    places = [place for place, name in enumerate(kernel.nodes[0].input) if name in kernel.inputs]
    assert places and len(made.nodes) == COUNT
    for place in places:
        read = [node.input[place] for node in made.nodes]
        assert set(read) <= given and read[:3] == read[3:6] and len(set(read[:3])) == 3 and read[6] == read[0]
        for name in read:
            np.testing.assert_array_equal(made.constants[name], kernel.inputs[kernel.nodes[0].input[place]])


@pytest.mark.parametrize(("op", "precision"), COPIED, ids=lambda value: str(value)[:60])
def test_weights_are_a_copys_own_in_content_and_all_else_is_as_it_was(op: Operator, precision: Precision) -> None:
    kernel = kernel_of(op, precision)
    made = Copies(kernel)
    for position, name in enumerate(kernel.nodes[0].input):
        if name not in kernel.constants:
            continue
        original, values = numpy_helper.to_array(kernel.constants[name]), made.values(position)
        assert all((value.shape, value.dtype) == (original.shape, original.dtype) for value in values)
        np.testing.assert_array_equal(values[0], original)
        if original.ndim > 1 and original.size > 1:
            assert len({value.tobytes() for value in values}) == COUNT
            assert all(np.sum(value != original) <= 2 for value in values)
        else:  # scales, zero-points, biases
            for value in values:
                np.testing.assert_array_equal(value, original)


def test_heavy_weights_and_inputs_are_not_in_the_model() -> None:
    for op, precision in ((LARGE, FLOAT), (LARGE, INT8)):
        kernel = kernel_of(op, precision)
        made = Copies(kernel)
        given = {value.name for value in made.graph.input}
        heavy_bytes = sum(array.nbytes for name, array in made.weights.items() if name not in given)
        assert len(made.weights.keys() - given) == COUNT and heavy_bytes >= COUNT * op.weights
        (flowing,) = kernel.inputs.values()
        inputs = [made.weights[name] for name in made.weights.keys() & given]
        assert len(inputs) == (3 if precision == FLOAT else 0), flowing.nbytes  # the narrow one has 2,304 bytes
        assert all(np.array_equal(array, flowing) for array in inputs)
        assert sum(len(one.raw_data) for one in made.graph.initializer if one.name in made.weights) == 0
    assert not Copies(kernel_of(Elementwise("relu", (1, 8)), FLOAT)).weights


@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize(
    "op",
    [
        Elementwise("relu", (1, HELD_ELEMENTS)),
        Elementwise("relu", (1, HELD_ELEMENTS - 1)),
        Conv.square(16, 32, 8, 3),
        Boundary("reshape", (1, HELD_ELEMENTS)),
        Node("Erf", (f"float32[{2 * HELD_ELEMENTS}]",), (f"float32[{2 * HELD_ELEMENTS}]",), version=13),
    ],
    ids=str,
)
def test_large_outputs_are_kept_alive_for_two_more_rounds(op: Operator, count: int) -> None:
    made = Copies(kernel_of(op, FLOAT), count)
    held = [node for node in made.graph.node if node.op_type == "Shape"]
    assert len(held) == held_outputs(op, count)
    assert (len(held) > 0) is (op.output_elements >= HELD_ELEMENTS and op.kind != "boundary" and count > 2)
    order = {node.output[0]: place for place, node in enumerate(made.nodes)}
    rounds = [order[node.input[0]] for node in held]
    assert rounds == list(range(len(held)))
    for node, round_ in zip(held, rounds, strict=True):  # asked for its shape after the copy two rounds later
        before = list(made.graph.node)[: list(made.graph.node).index(node)]
        assert sum(bool(one.name) for one in before) == round_ + 3


def test_what_works_in_place_reads_what_the_one_before_wrote() -> None:
    made = Copies(kernel_of(Boundary("reshape", (1, 6, 4, 4)), FLOAT))
    assert [node.input[0] for node in made.nodes[1:]] == [node.output[0] for node in made.nodes[:-1]]


def test_kernels_in_turn_keep_their_inputs_and_weights_apart() -> None:
    kernels = [kernel_of(CONV, INT8), kernel_of(CONV, INT8), kernel_of(Gemm(2, 16, 8), FLOAT)]
    data, feeds, weights = copies(kernels, 4)
    graph = onnx.load_from_string(data).graph
    names = [node.name for node in graph.node if node.name]
    assert len(names) == len(set(names)) == 12
    read = [set(node.input) for node in graph.node if node.name]
    inputs = {value.name for value in graph.input}
    for one, other in itertools.combinations(range(3), 2):
        assert not read[one] & read[other] & inputs
    assert session(data, optimise="none", weights={name: one.value for name, one in weights.items()}).run(None, feeds)


def test_the_fastest_candidate_is_kept_and_the_others_are_recorded_with_its_row() -> None:
    request = (Gemm(1, 64, 32), Precision(4, 32))
    task = Task(point="row", requests=(request,), int8_form="u8u8", seed=0, threads=1)
    timing = Timings().take(task)
    kept, (other,) = timing.realisation, timing.others
    assert {kept, other} == {f"MatMulNBits 4-bit, accuracy_level{level}" for level in ("=4", " unset")}
    assert timing.others[other] >= 1
    again = Timings().take(task.model_copy(update={"realisation": other}))
    assert (again.realisation, again.others) == (other, {})

    def replay(task: Task) -> Timing:
        """The trial was in the first timing; 10 us a call, 2 us a kernel."""
        run_s = (10 + 2 * len(task.requests) * (task.copies or 100)) * 1e-6
        others = timing.others if request in task.requests and not task.realisation else {}
        return Timing(
            point=task.point, stage=task.stage, copies=task.copies or 100, run_s=run_s, realisation=kept, others=others
        )

    machine = Machine(cpu="a replay", architecture="none", cores=1)
    (row,) = measure_operators(
        [request], int8_form="u8u8", machine=machine, passes=1, take=lambda tasks: map(replay, tasks)
    ).rows
    assert list(row.others) == [other] and row.others[other] >= row.latency_s
