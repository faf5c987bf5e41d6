"""The agent: one file for a board that has Python, numpy and onnxruntime and nothing else."""

import ast
import io
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx_models import float_model

from hwcost import agent
from hwcost.onnxfile import example_feeds, load_model

BLOCKED = """
import runpy, sys
known = {*sys.stdlib_module_names, "numpy", "onnxruntime"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in known:
            raise ImportError(f"{name} is not on the board")
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def conversation(*heads: dict[str, object], blobs: tuple[bytes, ...] = ()) -> bytes:
    """The bytes of requests; blobs belong to the last one."""
    stream = io.BytesIO()
    for place, head in enumerate(heads):
        own = blobs if place == len(heads) - 1 else ()
        listed = [(agent.digest_of(blob), len(blob), True) for blob in own]
        agent.write_frame(stream, {**head, "blobs": listed}, own)
    return stream.getvalue()


def test_a_board_needs_python_numpy_and_onnxruntime_only(tmp_path: Path) -> None:
    file = load_model(float_model(tmp_path / "model.onnx"))
    ((name, feed),) = example_feeds(file, 0).items()
    timed = {
        "do": "shortest",
        "threads": 1,
        "optimise": "all",
        "model": [0],
        "seconds": 0.0,
        "feeds": {name: {"dtype": "<f4", "shape": feed.shape, "blob": 1}},
    }
    requests = conversation({"do": "facts"}, {"do": "load"}, timed, blobs=(file.data(), feed.tobytes()))
    command = [sys.executable, "-P", "-c", BLOCKED, agent.__file__, agent.ALONE]
    ran = subprocess.run(command, input=requests, capture_output=True, check=True, timeout=120)
    ready, facts, loaded, timing = map(json.loads, ran.stdout.splitlines())
    assert (ready["format"], ready["version"]) == (agent.FORMAT, agent.VERSION)
    assert facts["answer"]["cores"] >= 1 and loaded["answer"]["onnxruntime"]
    (seconds,) = timing["answer"]
    assert seconds > 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted where Linux lists them")
@pytest.mark.parametrize(
    "loads", ["from hwcost import agent", "import agent", "import hwcost; hwcost.session"], ids=["agent", "file", "api"]
)
def test_the_runtime_tells_nobody_of_a_session(tmp_path: Path, loads: str) -> None:
    model = float_model(tmp_path / "model.onnx")
    code = f"""
import os, sys
sys.path.append({str(Path(agent.__file__).parent)!r})
{loads}
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
running = onnxruntime.InferenceSession({str(model)!r}, options)
print(len(os.listdir("/proc/self/task")))
"""
    home = tmp_path / "home"
    home.mkdir()
    folders = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(home))
    environment = {**folders, "OPENBLAS_NUM_THREADS": "1"}  # and nothing that says that this is a test
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=120)
    assert ran.stdout == b"1\n"
    assert list(home.iterdir()) == []


def test_it_is_written_for_the_python_that_boards_have() -> None:
    ast.parse(Path(agent.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))


def test_what_is_missing_is_named() -> None:
    code = BLOCKED.replace(', "onnxruntime"', "")
    command = [sys.executable, "-P", "-c", code, agent.__file__, agent.ALONE]
    ran = subprocess.run(command, input=conversation({"do": "load"}), capture_output=True, check=True, timeout=120)
    answer = json.loads(ran.stdout.splitlines()[1])["answer"]
    assert (answer["missing"], answer["reason"]) == ("onnxruntime", "onnxruntime is not on the board")


def test_a_copy_of_weights_is_aligned_and_its_own_in_its_first_elements() -> None:
    base = np.arange(12, dtype=np.int8).reshape(3, 4)
    copies = [agent.own_copy(base, number) for number in range(300)]
    assert all(copy.ctypes.data % 64 == 0 for copy in copies)
    np.testing.assert_array_equal(copies[0], base)
    assert len({copy.tobytes() for copy in copies[1:]}) == 299
    assert all(np.sum(copy != base) <= 2 for copy in copies)
    scales = np.ones(4, np.float32)
    np.testing.assert_array_equal(agent.own_copy(scales, 7), scales)


def test_both_ends_of_a_pipe_keep_and_forget_the_same_blobs() -> None:
    store = agent.Store(most_bytes=16_000)
    blobs = {str(number): bytes(4000) for number in range(5)}
    store.keep({"small": b"x", "huge": bytes(9000)})
    assert "small" not in store and "huge" not in store
    for digest, blob in blobs.items():
        store.keep({digest: blob})
        store.keep({"0": blobs["0"]})
    assert [digest for digest in blobs if digest in store] == ["0", "2", "3", "4"]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside"])
def test_files_of_weights_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    request = agent.Request({"files": {name: 0}}, [b"weights"])
    with pytest.raises(ValueError, match="files lie in the folder for them"):
        request.write_files(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_frame_that_ends_early_is_an_error() -> None:
    with pytest.raises(EOFError):
        agent.exactly(io.BytesIO(b"abc"), 4)
    for line in (b"{}", b"[]\n", b"no JSON\n"):
        with pytest.raises(ValueError):
            agent.read_line(io.BytesIO(line))
    assert agent.read_line(io.BytesIO()) is None


class Session:
    """A session of which every run takes a time, the first of some in a row longer, and is written down."""

    def __init__(self, runs: list["Session"], path: Path, seconds: float = 0.0) -> None:
        self.runs, self.path, self.seconds = runs, path, seconds

    def get_inputs(self) -> list[object]:
        return []

    def run(self, names: None, feeds: dict[str, object]) -> None:
        self.runs.append(self)
        time.sleep(self.seconds)

    def end_profiling(self) -> str:
        cold = [place == 0 or self.runs[place - 1] is not self for place, one in enumerate(self.runs) if one is self]
        events: list[dict[str, object]] = []
        for is_cold in cold:
            events.append({"cat": "Node", "name": "conv_kernel_time", "dur": 500 if is_cold else 99})
            events.append({"cat": "Session", "name": "model_run", "dur": 1000})
        self.path.write_text(json.dumps(events))
        return str(self.path)


@pytest.mark.parametrize(("most_runs", "expected"), [(1, 1), (5, 5), (1000, 8)])
def test_a_node_is_timed_in_runs_that_follow_runs_of_the_same_session(
    tmp_path: Path, most_runs: int, expected: int
) -> None:
    runs: list[Session] = []
    running, telling = Session(runs, tmp_path / "none"), Session(runs, tmp_path / "events.json")
    _, nodes_s = agent.node_times(running, telling, {}, 0.02, most_runs)
    rows = [len(list(group)) for _, group in itertools.groupby(runs[2:], key=id)]
    assert set(rows) == {expected} and rows[0::2] == rows[1::2] and runs[2] is running
    assert sum(rows[1::2]) <= most_runs
    assert nodes_s["conv"] == pytest.approx(99.5e-6 if expected > 1 else 500.5e-6)


def test_long_runs_are_few_whatever_would_be_enough(tmp_path: Path) -> None:
    runs: list[Session] = []
    both = [Session(runs, tmp_path / f"{name}.json", 0.02) for name in ("none", "events")]
    agent.node_times(*both, {}, 0.03, 1000)
    assert [one is both[0] for one in runs] == [True, False] * 2


class _Recorded:
    """A session whose runs take what was recorded, in seconds."""

    def __init__(self, name: str, seconds: list[float]) -> None:
        self.name, self.seconds = name, seconds

    def get_inputs(self) -> list[object]:
        return []

    def run(self, wanted: None, feeds: dict[str, object]) -> "_Recorded":
        return self


def test_sessions_are_timed_in_turn_until_two_times_agree() -> None:
    turns: list[str] = []

    def timer(run: Callable[[], object], seconds: float) -> float:
        session = run()
        assert isinstance(session, _Recorded) and seconds == 0.006
        turns.append(session.name)
        return session.seconds.pop(0)

    held = [
        (_Recorded("calm", [1.0, 1.01, 9.0, 9.0]), {}),
        (_Recorded("late", [1.5, 1.0, 1.01, 9.0]), {}),
        (_Recorded("never", [4.0, 3.0, 2.0, 1.0]), {}),
    ]
    assert agent.shortest_runs(held, 0.006, timer) == [1.0, 1.0, 1.0]
    assert turns == ["calm", "late", "never"] * 2 + ["late", "never", "never"]
    turns.clear()
    assert agent.shortest_runs([(_Recorded("alone", [3.0, 1.0]), {})], 0.006, timer) == [3.0]
    assert turns == ["alone"]
