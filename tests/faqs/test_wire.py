"""The wire message: exact round trips, refusal of everything else with one reason, and a size near the entropy."""

import base64
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from faqs import wire
from faqs.errors import FaqsError, WireError
from faqs.wire import (
    CODE_LIMIT,
    ExactTensor,
    Limits,
    QuantisedTensor,
    WireMessage,
    decode,
    dequantise,
    encode,
    quantise,
    step_for,
)

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)  # fmt: skip
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=5), st.lists(st.lists(SCALARS, max_size=3), max_size=3))
HEADERS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), VALUES, max_size=6)
STEPS = st.floats(2.0**-100, 2.0**100, width=32)
CODES = st.one_of(
    hnp.arrays(np.int8, st.integers(0, 40), elements=st.integers(-2, 2)),
    hnp.arrays(np.int8, st.integers(0, 40), elements=st.integers(-CODE_LIMIT, CODE_LIMIT)),
)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
EXACT = st.builds(ExactTensor, hnp.arrays(np.float32, st.integers(0, 40), elements=FINITE))
TENSORS = st.one_of(
    st.dictionaries(st.text(max_size=6), st.builds(QuantisedTensor, CODES, STEPS), max_size=5),
    st.dictionaries(st.text(max_size=6), EXACT, max_size=5),
)
MESSAGES = st.builds(WireMessage, HEADERS, TENSORS)


CODED = QuantisedTensor(np.zeros(1, np.int8), 1.0)
VERSION_1 = (
    "RkFRUwE6AAkAAADACjeZIDWpAQB7Imtlcm5lbCI6WzMsNV0sIm5hbWUiOiJncsO2w59lciIs"
    "InJvdW5kIjoxfQAAAAAAAABAPyAEIQAAJaTXACADGQAAAPn433djfg=="
)


def lengths_of(message: WireMessage) -> dict[str, int]:
    return {name: tensor.size for name, tensor in message.tensors.items()}


def a_message(seed: int = 0) -> WireMessage:
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, size in {"stem": 144, "block1.expand": 1728, "block1.project": 1729, "head": 10, "skipped": 0}.items():
        values = generator.laplace(size=size, scale=1e-3).astype(np.float32)
        step = step_for(values, 1.0)
        tensors[name] = QuantisedTensor(quantise(values, step), step)
    return WireMessage({"round": 3, "kernel": [3, 5, 5], "loss": 0.25, "name": "größer", "done": False}, tensors)


def resealed(body: bytes) -> bytes:
    """A blob with a checksum that fits, so that the checks behind the checksum are reached."""
    return body + struct.pack("<I", zlib.crc32(body))


@given(MESSAGES)
def test_a_message_round_trips_exactly_and_encodes_to_the_same_bytes(message: WireMessage) -> None:
    blob = encode(message)
    back = decode(blob, lengths=lengths_of(message))
    assert back == message
    assert repr(back.header) == repr({key: message.header[key] for key in sorted(message.header)})
    assert encode(back) == blob == encode(WireMessage(message.header, dict(reversed(message.tensors.items()))))
    assert wire.read_header(blob) == message.header


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_else_is_raised(noise: bytes) -> None:
    for blob in (noise, wire.MAGIC + noise, *(resealed(wire.MAGIC + bytes([v]) + noise) for v in wire.VERSIONS)):
        with pytest.raises(WireError):
            decode(blob, lengths={"w": 7})


@given(st.data())
def test_every_truncation_and_bit_flip_is_refused(data: st.DataObject) -> None:
    message = a_message()
    blob = encode(message)
    cut = data.draw(st.integers(0, len(blob) - 1))
    position = data.draw(st.integers(0, 8 * len(blob) - 1))
    flipped = bytearray(blob)
    flipped[position // 8] ^= 1 << position % 8
    for damaged in (blob[:cut], bytes(flipped), blob + b"\0"):
        with pytest.raises(WireError):
            decode(damaged, lengths=lengths_of(message))


@settings(max_examples=300)
@given(st.data())
def test_damage_under_a_fitting_checksum_raises_nothing_but_wire_error(data: st.DataObject) -> None:
    message = a_message()
    body = bytearray(encode(message)[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(5, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        back = decode(resealed(bytes(body)), lengths=lengths_of(message))
    except WireError as error:
        assert "\n" not in str(error)
    else:  # a different message, but a legal one
        assert lengths_of(back) == lengths_of(message)
        assert all(tensor.codes.min(initial=0) >= -CODE_LIMIT for tensor in back.tensors.values())


def test_the_same_message_gives_the_same_bytes_in_another_process() -> None:
    script = "import test_wire, faqs.wire, sys; sys.stdout.buffer.write(faqs.wire.encode(test_wire.a_message()))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(__file__).rpartition("/")[0]},
        capture_output=True,
        check=True,
    )
    assert run.stdout == encode(a_message())


def frame(data: bytes, **options: bool) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def blob_of(head: bytes, triples: bytes, large: bytes = b"", layout: dict[str, int] | None = None) -> bytes:
    """A blob of these uncompressed sections, with a prefix and a checksum that fit."""
    sections = [frame(section, write_content_size=True) if section else b"" for section in (head, triples, large)]
    fingerprint = wire._fingerprint({"w": 4} if layout is None else layout)
    prefix = struct.pack("<4sBHII", b"FAQS", 1, len(sections[0]), len(sections[1]), fingerprint)
    return resealed(prefix + b"".join(sections))


def floats_blob(
    values: bytes, rest: bytes = b"", layout: dict[str, int] | None = None, head: bytes = b'{"a":1}\0'
) -> bytes:
    """A blob of exact values with a prefix and a checksum that fit."""
    packed, fingerprint = frame(head, write_content_size=True), wire._fingerprint(layout or {"w": 4})
    return resealed(struct.pack("<4sBHII", b"FAQS", 2, len(packed), len(values), fingerprint) + packed + values + rest)


def steps_of(*steps: float) -> bytes:
    return np.array(steps, "<f4").view(np.uint8).reshape(-1, 4).T.tobytes()


HEAD = b'{"a":1}\0' + steps_of(0.5)


def test_exact_values_made_by_hand_from_the_format_are_read() -> None:
    values = np.array([0.5, -1.5, 1e-30, 3e38], "<f4")
    message = decode(floats_blob(values.tobytes()), lengths={"w": 4})
    assert message == WireMessage({"a": 1}, {"w": ExactTensor(values)})
    assert message.tensors["w"].dequantise().tolist() == values.tolist()


def test_a_blob_made_by_hand_from_the_format_is_read() -> None:
    message = decode(blob_of(HEAD, bytes([0 + 6 * 1 + 36 * 2, 5]), bytes([1])), lengths={"w": 4})
    assert message.header == {"a": 1}
    assert message.tensors["w"].codes.tolist() == [0, 1, -1, -3]
    assert message.tensors["w"].dequantise().tolist() == [0.0, 0.5, -0.5, -1.5]


def test_a_version_1_blob_written_long_ago_is_read_for_ever() -> None:
    old = base64.b64decode(VERSION_1)
    message = decode(old, lengths={"b": 10, "a": 1})
    assert message.header == {"kernel": [3, 5], "name": "größer", "round": 1}
    assert message.tensors["a"] == QuantisedTensor(np.array([1], np.int8), 2.0)
    assert message.tensors["b"] == QuantisedTensor(np.array([0, 1, -1, 2, -2, 3, -127, 127, 0, 0], np.int8), 0.5)


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"GIF89a" + bytes(30), "starts with FAQS"),
        (b"FAQS", "has a prefix"),
        (resealed(b"FAQS\x03" + bytes(20)), "speaks versions 1 and 2 of the message, got 3"),
        (floats_blob(bytes(12)), "4 exact values take 16 bytes, got 12"),
        (floats_blob(bytes(16), b"x"), "4 exact values take 16 bytes, got 17"),
        (floats_blob(np.array([0, 0, np.nan, 0], "<f4").tobytes()), "only finite values can be sent, got 1 NaN"),
        (floats_blob(bytes(16), layout={"w": 5}), "names or lengths differ"),
        (floats_blob(bytes(16), head=HEAD), "names or lengths differ"),
        (encode(a_message())[:-1] + b"?", "checksum"),
        (resealed(struct.pack("<4sBHII", b"FAQS", 1, 9, 9, 0)), "sections take 18 bytes by the prefix, got 0"),
        (blob_of(b"[1]\0" + steps_of(1), bytes(2)), "JSON object, got a list"),
        (blob_of(b"{\0" + steps_of(1), bytes(2)), "not JSON"),
        (blob_of(b"[" * 50_000 + b"\0" + steps_of(1), bytes(2)), "not JSON (RecursionError)"),
        (blob_of(b'{"a":NaN}\0' + steps_of(1), bytes(2)), "finite numbers"),
        (blob_of(b'{"a":1e999}\0' + steps_of(1), bytes(2)), "finite numbers"),
        (blob_of(b'{"a":%s}\0' % (b"9" * 5000) + steps_of(1), bytes(2)), "not JSON (ValueError)"),
        (blob_of(b'{"a":99999999999999999999}\0' + steps_of(1), bytes(2)), "64-bit integers"),
        (blob_of(b'{"a":[[[[[1]]]]]}\0' + steps_of(1), bytes(2)), "lists 4 deep"),
        (blob_of(b'{"a":{"b":1}}\0' + steps_of(1), bytes(2)), "got dict in 'a'"),
        (blob_of(b'{"a":1,"a":1}\0' + steps_of(1), bytes(2)), "no repeated names"),
        (blob_of(b'{"a": 1}\0' + steps_of(1), bytes(2)), "another spelling"),
        (blob_of(b'{"\xff":1}\0' + steps_of(1), bytes(2)), "not JSON (UnicodeDecodeError)"),
        (blob_of(b'{"a":"\\ud800"}\0' + steps_of(1), bytes(2)), "lone surrogate"),
        (blob_of(b'{"a":1}\0' + steps_of(1)[:3], bytes(2)), "3 bytes of steps"),
        (blob_of(b'{"a":1}\0' + steps_of(1, 1), bytes(2)), "expected to hold 1 tensors of 4 coordinates"),
        (blob_of(b'{"a":1}\0', bytes(2)), "expected to hold 1 tensors of 4 coordinates"),
        (blob_of(b'{"a":1}\0' + steps_of(0.0), bytes(2)), "steps are positive and finite"),
        (blob_of(b'{"a":1}\0' + steps_of(-1.0), bytes(2)), "steps are positive and finite"),
        (blob_of(b'{"a":1}\0' + steps_of(float("nan")), bytes(2)), "steps are positive and finite"),
        (blob_of(b'{"a":1}\0' + steps_of(float("inf")), bytes(2)), "steps are positive and finite"),
        (blob_of(b'{"a":1}\0' + steps_of(3e38), bytes(2)), "a step is at most 1.34e+36, got 3e+38"),
        (blob_of(HEAD, bytes(2), layout={"v": 4}), "names or lengths differ"),
        (blob_of(HEAD, bytes(2), layout={"w": 5}), "names or lengths differ"),
        (blob_of(HEAD, b""), "4 codes take 2 packed bytes, got 0"),
        (blob_of(HEAD, bytes(1)), "4 codes take 2 packed bytes, got 1"),
        (blob_of(HEAD, bytes(3)), "codes section unpacks to 1..2 bytes"),
        (blob_of(HEAD, bytes([0, 216])), "a packed byte is below 216, got 216"),
        (blob_of(HEAD, bytes([0, 6])), "padding after the last code is zero"),
        (blob_of(HEAD, bytes([0, 5])), "1 large codes were announced, got 0"),
        (blob_of(HEAD, bytes([0, 5]), bytes(2)), "large codes section unpacks to 1..1 bytes"),
        (blob_of(HEAD, bytes([0, 0]), bytes(1)), "large codes section unpacks to 1..0 bytes"),
        (blob_of(HEAD, bytes([0, 5]), bytes([250])), "codes lie within +-127, got one of magnitude 128"),
        (resealed(blob_of(HEAD, b"")[:-4] + b"no frame"), "4 codes take 2 packed bytes, got 0"),
        (resealed(blob_of(HEAD, bytes([0, 5]))[:-4] + b"no frame"), "large codes section is one zstandard frame"),
        (resealed(encode(WireMessage({}))[:-4] + b"x"), "names or lengths differ"),
    ],
)  # fmt: skip
def test_each_way_of_being_wrong_is_refused_with_its_reason(blob: bytes, text: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(blob, lengths={"w": 4})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FaqsError) and isinstance(caught.value, ValueError)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    zeros = bytes(1 << 27)
    for options in ({"write_content_size": True}, {"write_content_size": False}):
        bomb = frame(zeros, **options)
        assert len(bomb) < 1 << 14
        prefix = struct.pack("<4sBHII", b"FAQS", 1, len(bomb), 0, 0)
        with pytest.raises(WireError, match="announces another size"):
            wire.read_header(resealed(prefix + bomb))


def test_limits_hold_for_the_blob_the_header_the_tensors_and_the_step() -> None:
    message = a_message()
    blob, lengths = encode(message), lengths_of(message)
    for limits, text in [
        (Limits(blob_bytes=100), f"a message is at most 100 bytes, got {len(blob)}"),
        (Limits(header_bytes=5), "at most 5 bytes of header and 4096 steps"),
        (Limits(header_bytes=5, tensors=3), "head section unpacks to 1..18 bytes"),
        (Limits(tensors=3), "3 steps"),
        (Limits(step=1e-6), "a step is at most 1e-06, got 1"),
    ]:
        with pytest.raises(WireError) as caught:
            decode(blob, lengths=lengths, limits=limits)
        assert text in str(caught.value)
    assert decode(blob, lengths=lengths, limits=Limits(len(blob), tensors=5, step=1.0)) == message


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: QuantisedTensor(np.zeros((2, 2), np.int8), 1.0), "flat int8 array, got int8 of shape (2, 2)"),
        (lambda: QuantisedTensor(np.zeros(2, np.int16), 1.0), "flat int8 array, got int16"),
        (lambda: QuantisedTensor(np.full(2, -128, np.int8), 1.0), "within +-127, got -128"),
        (lambda: QuantisedTensor(np.zeros(2, np.int8), 0.1), "got 0.1; take it from step_for"),
        (lambda: QuantisedTensor(np.zeros(2, np.int8), float("nan")), "positive finite float32"),
        (lambda: ExactTensor(np.zeros((2, 2), np.float32)), "flat float32 array, got float32 of shape (2, 2)"),
        (lambda: ExactTensor(np.zeros(2)), "flat float32 array, got float64"),
        (lambda: ExactTensor(np.full(2, np.inf, np.float32)), "got 2 NaN or infinite of 2"),
        (
            lambda: WireMessage({}, {"a": ExactTensor(np.zeros(1, np.float32)), "b": CODED}),
            "all quantised or all exact",
        ),
        (lambda: WireMessage({"a": float("inf")}), "got float in 'a'; convert it first"),
        (lambda: WireMessage({"a": (1, 2)}), "got tuple in 'a'"),  # type: ignore[dict-item]
        (lambda: WireMessage({"": 1}), "non-empty strings, got ''"),
        (lambda: quantise(np.array([1, np.nan], np.float32), 1.0), "got 1 NaN or infinite of 2; training diverged"),
        (lambda: step_for(np.array([np.inf], np.float32), 1.0), "only finite values can be sent"),
        (lambda: step_for(np.ones(3, np.float32), 0.0), "a relative step is a positive number"),
        (lambda: encode(WireMessage({"a": "\ud800"})), "lone surrogate"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_the_sender(wrong: Callable[[], object], text: str) -> None:
    with pytest.raises(WireError) as caught:
        wrong()
    assert text in str(caught.value)


FLOATS = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@given(FLOATS, st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]))
def test_quantising_any_finite_tensor_errs_by_at_most_two_thirds_of_a_step_and_never_by_more_than_the_value(
    values: np.ndarray, relative: float
) -> None:
    step = step_for(values, relative)
    tensor = QuantisedTensor(quantise(values, step), step)  # the constructor accepts every such step
    error = np.abs(values.astype(np.float64) - tensor.dequantise())
    magnitude = np.abs(values.astype(np.float64))
    assert np.all(np.isfinite(tensor.dequantise()))
    assert np.all(error <= np.maximum(2 / 3 * step * (1 + 1e-5), magnitude - CODE_LIMIT * step))
    assert np.all(error <= magnitude * (1 + 1e-6))
    assert np.array_equal(quantise(-values, step), -tensor.codes)


def test_the_step_is_relative_to_the_rms_and_all_zero_tensors_have_one_too() -> None:
    values = np.array([3.0, -4.0, 0.0, 0.0], np.float32)
    assert step_for(values, 1.0) == 2.5
    assert step_for(values, 2.0) == 5.0
    assert step_for(np.zeros(5, np.float32), 1.0) == step_for(np.zeros(0, np.float32), 1.0) == 1.0
    assert step_for(np.array([np.finfo(np.float32).max], np.float32), 3.0) <= wire.STEP_LIMIT
    assert step_for(np.array([1e-45], np.float32), 1.0) == float(np.finfo(np.float32).tiny)


def test_dead_zone_reconstruction_and_clipping_are_those_of_the_format() -> None:
    values = np.array([0.0, 0.66, 0.67, 1.66, 1.67, -0.66, -0.67, 500.0, -500.0], np.float32)
    codes = quantise(values, 1.0)
    assert codes.tolist() == [0, 0, 1, 1, 2, 0, -1, 127, -127]
    assert dequantise(codes.reshape(3, 3), 0.5)[0].tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("relative", [0.5, 1.0, 1.5])
def test_error_feedback_delivers_everything_in_the_long_run(relative: float) -> None:
    """With the residual carried over, what arrived over many rounds is what was meant, to within a few steps."""
    generator = np.random.default_rng(5)
    residual, wanted, arrived = np.zeros(2000, np.float32), np.zeros(2000), np.zeros(2000)
    for _ in range(60):
        delta = generator.laplace(size=2000).astype(np.float32)
        wanted += delta
        residual = residual + delta
        step = step_for(residual, relative)
        sent = dequantise(quantise(residual, step), step)
        residual = residual - sent
        arrived += sent
    assert np.allclose(wanted - arrived, residual, atol=1e-3)
    assert np.sqrt(np.mean(residual**2)) < 1.5 * relative


@pytest.mark.parametrize("relative", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kind", ["laplace", "normal"])
def test_a_large_message_is_within_5_percent_of_the_entropy_of_its_codes(kind: str, relative: float) -> None:
    generator = np.random.default_rng(2)
    tensors, bits = {}, 0.0
    for index, size in enumerate([144, 1728, 300, 1728, 24, 24, 13824, 7200, 27648]):
        values = (getattr(generator, kind)(size=size) * 10.0 ** -generator.integers(1, 4)).astype(np.float32)
        step = step_for(values, relative)
        tensors[f"t{index}"] = QuantisedTensor(quantise(values, step), step)
    codes = np.concatenate([tensor.codes for tensor in tensors.values()])
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    bits = float(-(shares * np.log2(shares)).sum() * codes.size)
    assert len(encode(WireMessage({"round": 1}, tensors))) * 8 < 1.05 * bits


def test_a_message_of_nothing_but_a_header_costs_a_few_tens_of_bytes() -> None:
    assert len(encode(WireMessage({}))) < 40
    zero = WireMessage({}, {"w": QuantisedTensor(np.zeros(100_000, np.int8), 1.0)})
    assert len(encode(zero)) < 70
