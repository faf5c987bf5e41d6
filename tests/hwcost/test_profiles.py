import json
import os
from pathlib import Path
from typing import Any

import pytest

from hwcost.errors import ProfileError, UnknownOperatorError
from hwcost.ops import FLOAT, INT8, Conv, Gemm, Operator, Precision
from hwcost.profiles import Machine, Profile, Realisation, Row, read_profile, write_profile

CONV, GEMM = Conv.square(8, 16, 8, 3), Gemm(1, 16, 10)
MACHINE = Machine(cpu="test", architecture="x86_64", cores=2, onnxruntime="1.32.0")


def row(op: Operator, precision: Precision, latency_s: float = 1e-5, **fields: Any) -> Row:
    whole = {"realisation": "kernel", "native": True, "source": "measured", **fields}
    interval = (latency_s * 0.9, latency_s * 1.1)
    return Row(operator=op, precision=precision, latency_s=latency_s, interval_s=interval, **whole)


def profile(*rows: Row, machine: Machine = MACHINE) -> Profile:
    unpacked = Realisation(kind="conv", precision=Precision(4, 8), runs_as=INT8, native=False, description="unpacked")
    return Profile(
        device="test",
        created="2026-01-01",
        machine=machine,
        int8_form="u8u8",
        run_overhead_s=1e-5,
        noise_floor=0.01,
        realisations=(unpacked,),
        rows=rows,
    )


def test_a_profile_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    made = profile(row(CONV, INT8, samples_s=(1e-5, 1.234567890123e-5)), row(GEMM, FLOAT, 1 / 3))
    write_profile(made, tmp_path / "a.json")
    found = read_profile(tmp_path / "a.json")
    assert found == made and found.digest == made.digest
    assert found.digest != profile(row(CONV, INT8, 2e-5)).digest


def test_narrow_weights_are_found_by_the_kernel_that_runs_them_and_say_so() -> None:
    made = profile(row(CONV, INT8), row(GEMM, INT8))
    assert made.find(CONV, Precision(4, 8)) == made.find(CONV, INT8) == made.rows[0]
    assert not made.describe_realisation(CONV, Precision(4, 8)).native
    assert made.describe_realisation(CONV, INT8).native
    assert made.find(GEMM, Precision(4, 8)) is None and made.find(Gemm(2, 16, 10), INT8) is None
    with pytest.raises(UnknownOperatorError, match="has no gemm at w4a8: profile the device with that precision"):
        made.describe_realisation(GEMM, Precision(4, 8))


def test_two_measurements_of_one_machine_join_and_the_newer_rows_win() -> None:
    older, newer = profile(row(CONV, INT8, 5e-5), row(GEMM, INT8, 6e-5)), profile(row(CONV, INT8, 1e-5))
    joined = newer.with_rows_of(older)
    assert {(r.operator.kind, r.latency_s) for r in joined.rows} == {("conv", 1e-5), ("gemm", 6e-5)}


@pytest.mark.parametrize(
    "change", [{"cpu": "other"}, {"threads": 2}, {"onnxruntime": "1.30.0"}, {"features": ("avx2",)}]
)
def test_measurements_of_different_machines_are_never_joined(change: dict[str, Any]) -> None:
    other = profile(row(GEMM, INT8), machine=MACHINE.model_copy(update=change))
    with pytest.raises(ProfileError, match=r"one machine's measurements: .*: write to another file with --out"):
        profile(row(CONV, INT8)).with_rows_of(other)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows", 0, "latency_s"), -1.0, r"rows\.0\.latency_s: Input should be greater than 0"),
        (("rows", 0, "latency_s"), 1.0, r"rows\.0: .*interval_s must hold latency_s"),
        (("rows", 0, "operator", "kernel"), [0, 3], r"rows\.0\.operator\.conv: .*at least 1"),
        (("rows", 0, "operator", "kind"), "convolve", r"rows\.0\.operator: .*convolve"),
        (("rows", 0, "precision"), "w3a8", r"rows\.0\.precision: .*a precision is one of"),
        (("rows", 0, "source"), "guessed", r"rows\.0\.source"),
        (("machine", "cores"), 0, r"machine\.cores"),
        (("device",), "../x", r"device: String should match pattern"),
        (("version",), 3, r"version: Input should be 2"),
        (("extra",), 1, r"extra: Extra inputs are not permitted"),
        (("rows",), [], r"rows: .*at least 1 item"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    document = json.loads(profile(row(CONV, INT8)).to_json())
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(ProfileError, match=f"is not a profile of version 2: {message}") as caught:
        read_profile(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_row_twice_nan_and_files_that_are_no_profiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got a row twice"):
        profile(row(CONV, INT8), row(CONV, INT8))
    path = tmp_path / "a.json"
    path.write_bytes(profile(row(CONV, INT8)).to_json().replace(b'"noise_floor": 0.01', b'"noise_floor": NaN'))
    with pytest.raises(ProfileError, match="noise_floor: Input should be a finite number"):
        read_profile(path)
    sound = profile(row(CONV, INT8)).to_json()
    for content in (b"", b"[]", b"\xff\xfe", sound[:300], b"[" * 10**6, sound.replace(b": 0.01", b": 1e999")):
        path.write_bytes(content)
        with pytest.raises(ProfileError, match="is not a profile of version 2"):
            read_profile(path)
    with pytest.raises(ProfileError, match=r"no profile at .*: make one with `hwcost profile"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(ProfileError, match=r"cannot read profile .*: Is a directory: give the path of a profile"):
        read_profile(tmp_path)


def test_a_field_given_twice_is_refused_whichever_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    sound = profile(row(CONV, INT8)).to_json()
    path.write_bytes(sound.replace(b'"noise_floor": 0.01', b'"noise_floor": 0.01, "noise_floor": 0.5'))
    with pytest.raises(ProfileError, match="every field is given once, got 'noise_floor' twice; restore the file"):
        read_profile(path)


def test_a_mark_of_byte_order_is_no_reason_to_refuse(tmp_path: Path) -> None:
    made = profile(row(CONV, INT8))
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + made.to_json())
    assert read_profile(tmp_path / "a.json") == made


def test_what_would_never_end_or_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProfileError, match=r"cannot read profile .*: Not a regular file"):
        read_profile(tmp_path / "pipe")
    with (tmp_path / "huge.json").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ProfileError, match=r"cannot read profile .*: File of 1099511627776 bytes, at most"):
        read_profile(tmp_path / "huge.json")
