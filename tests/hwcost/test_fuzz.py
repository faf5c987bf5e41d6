"""Damaged models, profiles and fits, through the command itself: it answers, or says in one line why not."""

import contextlib
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_models import float_model, quantised_model

import hwcost.limits
import hwcost.model
from hwcost.archive import pack, unpack
from hwcost.cli import cli
from hwcost.console import run_cli
from hwcost.devices import load_device
from hwcost.errors import HwcostError
from hwcost.estimate import estimate_profile
from hwcost.fit import fit_path, fit_profile, write_fit
from hwcost.machine import detect_machine
from hwcost.model import read_model
from hwcost.profiles import Profile, write_profile

SHIPPED = Path(onnx.__file__).parent / "backend" / "test" / "data"
CASES = (
    "batch_normalization", "conv", "convtranspose", "dequantizelinear", "einsum", "gathernd", "gemm", "gru",
    "identity", "if_", "loop", "pad", "qlinearconv", "resize", "roialign", "scan", "slice", "topk",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63))
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    1e-320,
    1e308,
    0.5,
    "",
    "\x1b[31m",
    "ü",
    [],
    [1] * 99,
    {},
    {"a": 1},
)

Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module", autouse=True)
def little_time_and_memory() -> Iterator[None]:
    """What a damaged model grows into is refused at a gigabyte or so, and after some seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hwcost.limits, "_SHARE", 0.05)
        patch.setattr(hwcost.model, "_MOST_S", 5.0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, an estimate that has a price for most of both, and its fit; as of this machine, so `check` runs."""
    folder = tmp_path_factory.mktemp("sound")
    models = (float_model(folder / "float.onnx"), quantised_model(folder / "int8.onnx"))
    operators = {op: None for path in models for _, op, _ in read_model(path).layers}
    made = estimate_profile(load_device("rpi4"), list(operators))
    profile = Profile.model_validate({**dict(made), "machine": detect_machine()})
    write_profile(profile, folder / "p.json")
    write_fit(fit_profile(profile, names=["linear"]), fit_path(folder / "p.json"))
    return folder


def fuzz(examples: int) -> settings:
    """The same examples in every run, however long each takes."""
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and the last line of stderr, after making sure that it is an answer or one line of an error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        run_cli(cli, "hwcost", [str(argument) for argument in arguments])
    code, lines = caught.value.code, err.getvalue().splitlines()
    assert code in (0, 1)
    assert "Traceback" not in err.getvalue() and "unexpected" not in err.getvalue()
    errors = [line for line in lines if line.startswith("hwcost: error: ")]
    assert len(errors) == code and (code == 0) == bool(out.getvalue())
    if code == 0:
        json.loads(out.getvalue().splitlines()[-1])
    return code, lines[-1] if lines else ""


def damages() -> st.SearchStrategy[Damage]:
    """Flipped bits, a cut, a piece moved, a piece of something else; places are shares of the length."""
    share = st.floats(0, 1, exclude_max=True)

    def flip(places: list[tuple[float, int]]) -> Damage:
        def damage(data: bytes) -> bytes:
            damaged = bytearray(data)
            for place, bit in places if damaged else ():
                damaged[int(place * len(damaged))] ^= 1 << bit
            return bytes(damaged)

        return damage

    def cut(place: float) -> Damage:
        return lambda data: data[: int(place * len(data))]

    def splice(to: float, start: float, length: int, instead: bool) -> Damage:
        def damage(data: bytes) -> bytes:
            i, j = int(to * len(data)), int(start * len(data))
            return data[:i] + data[j : j + length] + data[i + length * instead :]

        return damage

    def write(place: float, piece: bytes) -> Damage:
        return lambda data: data[: int(place * len(data))] + piece + data[int(place * len(data)) + len(piece) :]

    return st.one_of(
        st.builds(flip, st.lists(st.tuples(share, st.integers(0, 7)), min_size=1, max_size=8)),
        st.builds(cut, share),
        st.builds(splice, share, share, st.sampled_from((1, 4, 16, 64)), st.booleans()),
        st.builds(write, share, st.binary(min_size=1, max_size=8)),
    )


# Models


def leaves(message: Message) -> Iterator[tuple[Message, Any]]:
    """Every value and list that is set in a protobuf, and in what it holds."""
    for field, value in message.ListFields():
        single = isinstance(value, Message)
        if not single:
            yield message, field
        if field.message_type is not None:
            for part in [value] if single else value:
                yield from leaves(part)


def disturb(model: onnx.ModelProto, random: random.Random) -> None:
    """Change, remove or repeat something anywhere in a model, so that it stays a protobuf."""
    owner, field = random.choice(list(leaves(model)))
    value = getattr(owner, field.name)
    repeated = hasattr(value, "append") or hasattr(value, "add")
    with contextlib.suppress(ValueError, TypeError):  # a value that the field cannot hold
        if repeated and random.random() < 0.3:
            del value[random.randrange(len(value))]
        elif repeated and field.message_type is not None:
            value.add().CopyFrom(value[random.randrange(len(value))])
        elif repeated:
            value[random.randrange(len(value))] = random.choice(NUMBERS)
        elif isinstance(value, str):
            setattr(
                owner, field.name, random.choice(("", "x", "y", value + value, *(n.op_type for n in model.graph.node)))
            )
        elif isinstance(value, bytes):
            setattr(
                owner,
                field.name,
                random.choice((b"", value[: len(value) // 2], bytes(len(value)), b"\xff" * len(value))),
            )
        else:
            setattr(owner, field.name, random.choice((*NUMBERS, float("nan"))))


@pytest.fixture(scope="module")
def valid() -> list[bytes]:
    """Small models of all kinds: what the onnx package ships, and some of its cases of single operators."""
    for name in CASES:
        import_module(f"{node_cases.__name__}.{name}")
    shipped = [path.read_bytes() for path in sorted(SHIPPED.rglob("model.onnx")) if path.stat().st_size < 100_000]
    cases = [case.model.SerializeToString() for case in sorted(node_cases._NodeTestCases, key=lambda case: case.name)]
    assert len(shipped) > 100 and len(cases) > 100
    return shipped + cases


def test_every_valid_model_is_read_or_refused_by_name(valid: list[bytes], tmp_path: Path) -> None:
    read = 0
    for data in random.Random(0).sample(valid, 60):
        (tmp_path / "m.onnx").write_bytes(data)
        for layout in ("executed", "portable"):
            try:
                read += read_model(tmp_path / "m.onnx", layout=layout).elements >= 0  # type: ignore[arg-type]
            except HwcostError as error:
                assert "m.onnx" in str(error) and "\n" not in str(error)
    assert read > 60


@pytest.mark.parametrize("command", ["predict", "check"])
@pytest.mark.parametrize("name", ["float.onnx", "int8.onnx"])
def test_a_damaged_model_file_is_used_or_refused_in_one_line(
    folder: Path, tmp_path: Path, command: str, name: str
) -> None:
    sound, path = (folder / name).read_bytes(), tmp_path / "m.onnx"
    options = ("--profile", folder / "p.json", "--allow-uncovered", "--json")
    timed = ("--time", "1ms", "--passes", "1") if command == "check" else ()
    path.write_bytes(sound)
    assert run(command, path, *options, *timed)[0] == 0

    @fuzz(40 if command == "predict" else 10)
    @given(st.lists(damages(), min_size=1, max_size=3))
    def damaged(steps: list[Damage]) -> None:
        data = sound
        for step in steps:
            data = step(data)
        path.write_bytes(data)
        run(command, path, *options, *timed)

    damaged()


def test_a_model_that_says_something_else_is_used_or_refused_in_one_line(
    folder: Path, tmp_path: Path, valid: list[bytes]
) -> None:
    path = tmp_path / "m.onnx"
    codes = {0: 0, 1: 0}

    @fuzz(250)
    @given(st.integers(0, 2**32), st.booleans())
    def disturbed(seed: int, own: bool) -> None:
        choice = random.Random(seed)
        name = choice.choice(("float.onnx", "int8.onnx"))
        model = onnx.load_from_string((folder / name).read_bytes() if own else choice.choice(valid))
        for _ in range(choice.choice((1, 1, 2, 3))):
            disturb(model, choice)
        path.write_bytes(model.SerializeToString())
        code, _ = run("predict", path, "--profile", folder / "p.json", "--allow-uncovered", "--json")
        codes[code] += 1

    disturbed()
    assert min(codes.values()) > 10, "some changes are harmless, and some are not"


# Profiles


def test_a_damaged_profile_file_is_used_or_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    sound, path = (folder / "p.json").read_bytes(), tmp_path / "p.json"

    @fuzz(100)
    @given(st.lists(damages(), min_size=1, max_size=3))
    def damaged(steps: list[Damage]) -> None:
        data = sound
        for step in steps:
            data = step(data)
        path.write_bytes(data)
        run("show", path, "--json")

    damaged()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


def test_a_profile_that_says_something_else_is_used_or_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"

    @fuzz(100)
    @given(st.integers(0, 2**32), st.sampled_from(("show", "predict")))
    def disturbed(seed: int, command: str) -> None:
        choice = random.Random(seed)
        document = json.loads((folder / "p.json").read_bytes())
        for _ in range(choice.choice((1, 1, 2))):
            container, key = choice.choice(list(places(document)))
            if choice.random() < 0.2:
                del container[key]
            else:
                container[key] = choice.choice(VALUES)
        path.write_text(json.dumps(document))
        if command == "show":
            run("show", path, "--json")
        else:
            run("predict", folder / "float.onnx", "--profile", path, "--allow-uncovered", "--json")

    disturbed()


# Fits


def test_a_damaged_fit_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes((folder / "p.json").read_bytes())
    sound, path = fit_path(folder / "p.json").read_bytes(), fit_path(tmp_path / "p.json")

    @fuzz(60)
    @given(st.lists(damages(), min_size=1, max_size=3))
    def damaged(steps: list[Damage]) -> None:
        data = sound
        for step in steps:
            data = step(data)
        path.write_bytes(data)
        code, line = run(
            "predict", folder / "float.onnx", "--profile", tmp_path / "p.json", "--allow-uncovered", "--json"
        )
        assert code == (data != sound) and (code == 0 or "run `hwcost fit` again" in line)

    damaged()


def test_a_fit_of_other_arrays_is_used_or_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes((folder / "p.json").read_bytes())
    head, arrays = unpack(fit_path(folder / "p.json").read_bytes())

    @fuzz(100)
    @given(st.integers(0, 2**32))
    def disturbed(seed: int) -> None:
        choice, changed = random.Random(seed), dict(arrays)
        name = choice.choice(sorted(arrays))
        array = changed.pop(name)
        ways: list[Callable[[], np.ndarray]] = [
            lambda: np.full_like(array, choice.choice((np.nan, np.inf, 0, -1, 1e308, -1e308))),
            lambda: array.reshape(-1)[:-1],
            lambda: np.stack([array, array]),
            lambda: array.astype(choice.choice((np.float16, np.int8, np.bool_))),
            lambda: np.zeros(0),
        ]
        if choice.random() < 0.9:
            with np.errstate(all="ignore"):
                changed[name] = choice.choice(ways)()
        fit_path(tmp_path / "p.json").write_bytes(pack(head, changed))
        run("predict", folder / "float.onnx", "--profile", tmp_path / "p.json", "--allow-uncovered", "--json")

    disturbed()


# As a process of its own: what no test within this one would survive to report


def test_the_process_itself_ends_with_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes((folder / "float.onnx").read_bytes()[:700])
    (tmp_path / "half.json").write_bytes((folder / "p.json").read_bytes()[:700])
    for arguments in (
        ("predict", tmp_path / "half.onnx", "--profile", folder / "p.json"),
        ("check", tmp_path, "--profile", folder / "p.json"),
        ("show", tmp_path / "half.json"),
    ):
        command = [sys.executable, "-m", "hwcost.cli", *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
        errors = [line for line in ran.stderr.splitlines() if not line.endswith(" ...")]
        assert ran.returncode == 1 and ran.stdout == "" and len(errors) == 1
        assert errors[0].startswith("hwcost: error: ")


def test_a_model_whose_name_is_no_text_is_named_all_the_same(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / b"m\xff\x1b[31m.onnx".decode(errors="surrogateescape")
    path.write_bytes((folder / "float.onnx").read_bytes())
    for options in ((), ("--json",)):
        command = [
            sys.executable,
            "-m",
            "hwcost.cli",
            "predict",
            str(path),
            "--profile",
            str(folder / "p.json"),
            *options,
        ]
        ran = subprocess.run([*command, "--allow-uncovered"], capture_output=True, timeout=300)
        assert ran.returncode == 0 and b"predicted" in ran.stdout and b"\x1b" not in ran.stdout + ran.stderr
