"""Claim: an operator that is measured over ssh takes as long as one measured here, within what two measurements here
differ by, and measuring it takes hardly longer.

An OpenSSH server on the loopback interface stands for the other machine, so the kernels are the same and only the way
to them differs. Three arms time the same kernels in turn, pass by pass, each in a process of its own for each pass:
here, here again, and over ssh; a kernel's time is its minimum over the passes. What the two arms here differ by is the
noise floor, and the ceiling of agreement. Two minutes.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from loopback import Loopback, missing
from record import Benchmark, summary

from hwcost import Int8Form, note, print_table, progress
from hwcost.errors import MeasurementError
from hwcost.ops import key
from hwcost.pipe import Piped
from hwcost.sampling import default_operators, sampled_requests
from hwcost.timing import Request, Survey, Task, Timings

BENCHMARK: Final = Benchmark("remote", __doc__ or "")
ARMS: Final = ("here", "here again", "over ssh")
PASSES: Final = 8
REQUESTS: Final = 80


def chosen(seed: int, count: int, form: Int8Form) -> list[Request]:
    """Operators of the search spaces and of other networks, at every precision that has a kernel."""
    operators = default_operators(((1, 8, 8), (3, 32, 32)), seed, 300)
    requests = [request for op in operators for request in sampled_requests(op, form) if op.macs < 5e7]
    order = np.random.default_rng(seed).permutation(len(requests))
    return [requests[index] for index in order[:count]]


def measure(board: Loopback, seed: int, count: int, passes: int) -> dict[str, Any]:
    run_s: dict[str, dict[Request, list[float]]] = {arm: {} for arm in ARMS}
    spent_s = dict.fromkeys(ARMS, 0.0)
    with ExitStack() as stack, progress("Timing") as report:
        runtimes = (Piped(), Piped(), board.reached(say=note))
        arms = {arm: Timings(stack.enter_context(one)) for arm, one in zip(ARMS, runtimes, strict=True)}
        form = arms["here"].survey(Survey(threads=1, seed=seed)).int8_form
        requests = chosen(seed, count, form)
        first: dict[Request, Task] = {}
        for request in requests:
            task = Task(
                point=f"{key(request[0])} {request[1]}", requests=(request,), int8_form=form, seed=seed, threads=1
            )
            timing = arms["here"].take(task)
            if not timing.refused:
                told = {"copies": timing.copies, "realisation": timing.realisation}
                first[request] = task.model_copy(update=told)
        for timings in arms.values():  # prepares every kernel, which is not what is compared
            for task in first.values():
                timings.take(task)
        for number in range(passes):
            for place, arm in enumerate(np.roll(ARMS, number)):
                report(3 * number + place, 3 * passes, str(arm))
                start_s = time.perf_counter()
                for request, task in first.items():
                    timing = arms[str(arm)].take(task.model_copy(update={"stage": number + 1}))
                    if timing.run_s is None:
                        raise MeasurementError(timing.refused)
                    run_s[str(arm)].setdefault(request, []).append(timing.run_s)
                spent_s[str(arm)] += time.perf_counter() - start_s
    least = {arm: np.array([min(samples) for samples in run_s[arm].values()]) for arm in ARMS}
    twice, remote = least["here again"] / least["here"], least["over ssh"] / least["here"]
    floor = float(np.quantile(np.abs(np.log(twice)), 0.9))
    return {
        "kernels": len(first),
        "refused": len(requests) - len(first),
        "passes": passes,
        "int8_form": form,
        "run_us": summary([1e6 * value for value in least["here"]]),
        "noise_floor": floor,
        "here_again": _agreement(twice, floor),
        "over_ssh": _agreement(remote, floor),
        "seconds_per_timing": {arm: spent_s[arm] / (passes * len(first)) for arm in ARMS},
    }


def _agreement(ratio: "np.ndarray[Any, np.dtype[np.float64]]", floor: float) -> dict[str, Any]:
    apart = np.abs(np.log(ratio))
    return {
        "ratio": summary(list(ratio)),
        "median_difference": float(np.median(apart)),
        "within_floor": float(np.mean(apart <= floor)),
        "within_2_percent": float(np.mean(apart <= np.log(1.02))),
        "within_5_percent": float(np.mean(apart <= np.log(1.05))),
    }


def main() -> None:
    parser = BENCHMARK.options()
    arguments = parser.parse_args()
    if lacking := missing():
        raise SystemExit(f"the other machine is reached through a server on this one: {lacking}")
    document = BENCHMARK.start(arguments)
    count, passes = (6, 2) if arguments.quick else (REQUESTS, PASSES)
    with tempfile.TemporaryDirectory(prefix="hwcost-") as folder:
        board = Loopback(Path(folder))
        try:
            document |= measure(board, arguments.seed, count, passes)
        finally:
            board.stop()
    rows = [
        (
            arm,
            f"{found['ratio']['median']:.4f}",
            f"{100 * found['median_difference']:.2f} %",
            f"{100 * found['within_floor']:.0f} %",
            f"{100 * found['within_5_percent']:.0f} %",
        )
        for arm, found in (("here again", document["here_again"]), ("over ssh", document["over_ssh"]))
    ]
    columns = ("against here", "median ratio", "median difference", "within the noise floor", "within 5 %")
    print_table(f"{document['kernels']} kernels, minimum of {passes} passes:", columns, rows)
    BENCHMARK.finish(arguments, document)


if __name__ == "__main__":
    main()
