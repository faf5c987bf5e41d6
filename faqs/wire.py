"""The one message of the federation: a small header and named tensors of quantised codes, as a single blob of bytes.

A blob holds no tensor names, shapes or bitmaps: both sides derive from the decisions which coordinates are active and
in which order, so a message carries codes, one step per tensor, and a fingerprint of the names and lengths assumed.

Quantiser. Uniform steps with a dead zone of 4/3 step: a code k stands for magnitudes in [k - 1/3, k + 2/3) steps and is
read back as k steps. At the rates this is for (1.2 to 1.8 bits a coordinate, steps of 1.0 to 1.5 rms) that lowers the
squared error at equal entropy by 10 to 20 % against plain rounding on Laplace, Gauss and Student-t deltas. It needs no
offset at reconstruction either: k is within 1 to 2 % of what reading back each interval's mean would give. A code never
makes an error larger than the value it stands for, so error feedback (the caller keeps wanted - dequantised) contracts.

Packing. Three codes to a byte in base 6, codes beyond +-2 finished in a second stream, then zstandard on each stream.
zstandard codes bytes, and never with less than one bit: above 10,000 codes, bytes of one code each take 2 to 28 % more
than the entropy, triples 1 to 7 %. Level 16 makes messages as small as level 19 (within 0.3 %) in a fifth of the time;
levels up to 12 are faster still, and 1 to 11 % larger. All tensors share one stream: streams of their own, each with
its symbol table, make messages 5 to 25 % larger.

Exact values. A message may instead hold float32 values as they are, for what must not be quantised and as the baseline
that quantising is compared with; its version says so.

Everything that arrives is checked before it is used, and whatever is wrong with it is a `WireError` that says what.
"""

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from faqs.errors import WireError

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | None"
Header: TypeAlias = dict[str, JsonValue]

# History of the blob:
# 1  prefix; head (canonical JSON, a zero byte, float32 steps by byte plane); base-6 triples; large codes; CRC32.
# 2  prefix; head (canonical JSON, a zero byte); float32 values, little-endian, not compressed; CRC32.
CODES, FLOATS = VERSIONS = (1, 2)
"""The two versions are two kinds of message."""
MAGIC = b"FAQS"
CODE_LIMIT = 127
"""Codes lie in -CODE_LIMIT..CODE_LIMIT; what a clipped code leaves out is the caller's to carry to the next round."""
STEP_LIMIT = float(np.finfo(np.float32).max) / (2 * CODE_LIMIT)
"""The largest step: no code times its step overflows float32."""

_ROUNDING = np.float32(1 / 3)
_MOST_ERROR = 0.5
"""Of the power of what is sent, where its codes are read by a step that gives back what the dead zone took."""
_STEP_FLOOR = float(np.finfo(np.float32).tiny)
_LIST_DEPTH = 4
_BASE, _PER_BYTE = 6, 3
_ESCAPE = _BASE - 1
_PLACES = np.array([_BASE**place for place in range(_PER_BYTE)], dtype=np.uint8)

_PREFIX = struct.Struct("<4sBHII")  # magic, version, compressed bytes of head and of triples, layout fingerprint
_CHECKSUM = struct.Struct("<I")
_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
_COMPRESSION = zstandard.ZstdCompressionParameters.from_level(
    16, format=_FORMAT, write_content_size=True, write_checksum=False, write_dict_id=False
)


@dataclass(frozen=True, eq=False)
class QuantisedTensor:
    """A flat tensor as codes [n] (int8, within +-CODE_LIMIT) times one `step` (positive, a float32 value)."""

    codes: NDArray[np.int8]
    step: float

    def __post_init__(self) -> None:
        if self.codes.dtype != np.int8 or self.codes.ndim != 1:
            shape = f"{self.codes.dtype} of shape {self.codes.shape}"
            raise WireError(f"codes are a flat int8 array, got {shape}; flatten and quantise the tensor first")
        if self.codes.size and int(self.codes.min()) < -CODE_LIMIT:
            raise WireError(
                f"codes lie within +-{CODE_LIMIT}, got {int(self.codes.min())}; clip them, as quantise does"
            )
        if not 0 < self.step <= STEP_LIMIT or float(np.float32(self.step)) != self.step:
            rule = f"a step is a positive finite float32 of at most {STEP_LIMIT:.3g}"
            raise WireError(f"{rule}, got {self.step!r}; take it from step_for")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantisedTensor):
            return NotImplemented
        return self.step == other.step and np.array_equal(self.codes, other.codes)

    __hash__ = None  # type: ignore[assignment]

    @property
    def size(self) -> int:
        return self.codes.size

    def dequantise(self) -> NDArray[np.float32]:
        """The values [n] that the codes stand for."""
        return dequantise(self.codes, self.step)


@dataclass(frozen=True, eq=False)
class ExactTensor:
    """A flat tensor as its `values` [n], float32 and finite."""

    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.ndim != 1:
            shape = f"{self.values.dtype} of shape {self.values.shape}"
            raise WireError(f"exact values are a flat float32 array, got {shape}; flatten and convert the tensor first")
        _check_finite(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExactTensor) and self.values.tobytes() == other.values.tobytes()

    __hash__ = None  # type: ignore[assignment]

    @property
    def size(self) -> int:
        return self.values.size

    def dequantise(self) -> NDArray[np.float32]:
        """The values [n] themselves."""
        return self.values


Tensor: TypeAlias = QuantisedTensor | ExactTensor


@dataclass(frozen=True)
class WireMessage:
    """`header` (names to JSON scalars and lists of them) and `tensors` by name, in any order of the names: quantised
    ones or exact ones.

    Raises `WireError` where the header is not plain finite JSON, or where both kinds of tensors are there.
    """

    header: Header
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len({type(tensor) for tensor in self.tensors.values()}) > 1:
            raise WireError("a message's tensors are all quantised or all exact, got both; send two messages")
        for name, value in self.header.items():
            if not isinstance(name, str) or not name:
                raise WireError(f"a header's names are non-empty strings, got {name!r}; rename it")
            _check_value(name, value, _LIST_DEPTH)


@dataclass(frozen=True)
class Limits:
    """What a receiver is ready to take: whole blob, header as JSON, tensors, and the largest step (all inclusive)."""

    blob_bytes: int = 1 << 24
    header_bytes: int = 1 << 16
    tensors: int = 1 << 12
    step: float = STEP_LIMIT


_DEFAULT_LIMITS = Limits()


def step_for(values: NDArray[np.float32], relative_step: float) -> float:
    """The step of a tensor: `relative_step` times the root mean square of `values`, to 8 significant bits.

    So rounded (0.2 % at most) a step's two low bytes are zero and cost nothing on the wire. All-zero or empty
    values get the step 1.0: every code is zero then. Raises `WireError` for NaN and infinity.
    """
    if not (math.isfinite(relative_step) and relative_step > 0):
        raise WireError(f"a relative step is a positive number, such as 1.0 (times the rms), got {relative_step!r}")
    _check_finite(values)
    rms = math.sqrt(float(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
    if rms == 0.0:
        return 1.0
    return _short(relative_step * rms)


def reconstruction_step(values: NDArray[np.float32], codes: NDArray[np.int8], step: float) -> float:
    """The step by which `codes`, made of `values` with `step`, are read, to 8 significant bits.

    A dead zone makes small values zero and none larger, so what arrives is a share of what was sent, and the rest comes
    a few rounds late. The step <v, v> / <c, v> makes up for that: what arrives is all of v, and noise. But where errors
    are fed back, they may not grow on the way, so the step is smaller where the error's power would be more than
    `_MOST_ERROR` of v's (a contraction, as error feedback needs: arXiv 1901.09847), and never below that of the least
    error, <c, v> / <c, c>.
    """
    v, c = values.astype(np.float64), codes.astype(np.float64)
    sent, told, power = (float(np.vdot(one, other)) for one, other in ((v, v), (c, v), (c, c)))
    if told <= 0:
        return step
    room = math.sqrt(max(told * told - power * sent * (1 - _MOST_ERROR), 0.0))
    return _short(min(sent / told, (told + room) / power))


def _short(step: float) -> float:
    """A step of 8 significant bits, within what a message may hold."""
    mantissa, exponent = math.frexp(step)
    return min(
        max(math.ldexp(round(mantissa * 256) / 256, exponent), _STEP_FLOOR), 2.0 ** math.floor(math.log2(STEP_LIMIT))
    )


def quantise(values: NDArray[np.float32], step: float) -> NDArray[np.int8]:
    """Codes, in the shape of `values`: sign(v) floor(|v| / step + 1/3), clipped to +-CODE_LIMIT.

    Raises `WireError` for NaN and infinity.
    """
    _check_finite(values)
    with np.errstate(over="ignore"):
        magnitudes = np.floor(np.abs(values) / np.float32(step) + _ROUNDING)
    return (np.sign(values) * np.minimum(magnitudes, CODE_LIMIT)).astype(np.int8)


def dequantise(codes: NDArray[np.int8], step: float) -> NDArray[np.float32]:
    """The values that `codes` stand for, in their shape: code times step, float32."""
    return codes.astype(np.float32) * np.float32(step)


def encode(message: WireMessage) -> bytes:
    """The blob of a message; the same message always gives the same bytes (for one version of zstandard)."""
    tensors = [message.tensors[name] for name in sorted(message.tensors)]
    coded = [tensor for tensor in tensors if isinstance(tensor, QuantisedTensor)]
    exact = [tensor.values for tensor in tensors if isinstance(tensor, ExactTensor)]
    steps = np.array([tensor.step for tensor in coded], dtype="<f4")
    head = _compress(_canonical(message.header) + b"\0" + steps.view(np.uint8).reshape(-1, 4).T.tobytes())
    if len(head) > 0xFFFF:
        raise WireError(f"header and steps take 65535 bytes at most, got {len(head)}; send fewer or shorter values")
    if exact:
        version, symbols, large = FLOATS, np.concatenate(exact).astype("<f4").tobytes(), b""
    else:
        triples, rest = _pack(np.concatenate([tensor.codes for tensor in coded]) if coded else np.zeros(0, np.int8))
        version, symbols, large = CODES, _compress(triples), _compress(rest)
    layout = _fingerprint({name: tensor.size for name, tensor in message.tensors.items()})
    blob = _PREFIX.pack(MAGIC, version, len(head), len(symbols), layout) + head + symbols + large
    return blob + _CHECKSUM.pack(zlib.crc32(blob))


def read_header(blob: bytes, limits: Limits = _DEFAULT_LIMITS) -> Header:
    """The header alone, checked, for a receiver that has to read the decisions before it knows the lengths."""
    header, _ = _read_head(_open(blob, limits).head, limits)
    return header


def decode(blob: bytes, *, lengths: Mapping[str, int], limits: Limits = _DEFAULT_LIMITS) -> WireMessage:
    """The message of a blob, whose tensors must be exactly those of `lengths` (name to number of coordinates).

    Raises `WireError`, and nothing else, for any bytes that are not such a message.
    """
    parts = _open(blob, limits)
    header, steps = _read_head(parts.head, limits)
    exact, total = parts.version == FLOATS, sum(lengths.values())
    if parts.layout != _fingerprint(lengths) or steps.size != (0 if exact else len(lengths)):
        rule = f"this message was expected to hold {len(lengths)} tensors of {total} coordinates"
        raise WireError(f"{rule}, its names or lengths differ; derive them from the decisions the sender used")
    largest = float(steps.max(initial=0.0))
    if largest > limits.step:
        raise WireError(f"a step is at most {limits.step:.3g}, got {largest:.3g}; the sender's update has diverged")
    values, codes = (_floats(parts, total), None) if exact else (None, _unpack(parts, total))
    tensors: dict[str, Tensor] = {}
    start = 0
    for place, name in enumerate(sorted(lengths)):
        here = slice(start, start + lengths[name])
        if values is not None:
            tensors[name] = ExactTensor(values[here])
        elif codes is not None:
            tensors[name] = QuantisedTensor(codes[here], float(steps[place]))
        start += lengths[name]
    return WireMessage(header, tensors)


@dataclass(frozen=True)
class _Parts:
    """A blob cut along its prefix: its version, three sections and the layout fingerprint."""

    version: int
    head: bytes
    symbols: bytes
    large: bytes
    layout: int


def _open(blob: bytes, limits: Limits) -> _Parts:
    if len(blob) > limits.blob_bytes:
        raise WireError(f"a message is at most {limits.blob_bytes} bytes, got {len(blob)}")
    if len(blob) < _PREFIX.size + _CHECKSUM.size or not blob.startswith(MAGIC):
        raise WireError(
            f"a message starts with {MAGIC.decode()} and has a prefix, got {len(blob)} bytes of another kind"
        )
    _, version, head_size, symbols_size, layout = _PREFIX.unpack_from(blob)
    if version not in VERSIONS:
        spoken = " and ".join(map(str, VERSIONS))
        raise WireError(f"this side speaks versions {spoken} of the message, got {version}; update the older side")
    body, end = blob[_PREFIX.size : -_CHECKSUM.size], head_size + symbols_size
    if zlib.crc32(blob[: -_CHECKSUM.size]) != _CHECKSUM.unpack(blob[-_CHECKSUM.size :])[0]:
        raise WireError(f"the checksum of the {len(blob)} bytes does not match; the message was damaged or cut short")
    if end > len(body):
        raise WireError(f"the sections take {end} bytes by the prefix, got {len(body)}")
    return _Parts(version, body[:head_size], body[head_size:end], body[end:], layout)


def _read_head(section: bytes, limits: Limits) -> tuple[Header, NDArray[np.float32]]:
    """Header and steps [tensors] of the first section."""
    text, _, planes = _decompress(section, limits.header_bytes + 1 + 4 * limits.tensors, "head").partition(b"\0")
    if len(text) > limits.header_bytes or len(planes) > 4 * limits.tensors or len(planes) % 4:
        most = f"{limits.header_bytes} bytes of header and {limits.tensors} steps"
        raise WireError(f"the head has at most {most}, got {len(text)} bytes and {len(planes)} bytes of steps")
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the header is canonical JSON, got text that is not JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise WireError(f"the header is a JSON object, got a {type(header).__name__}")
    if _canonical(WireMessage(header).header) != text:
        raise WireError("the header is canonical JSON (sorted, compact, no repeated names), got another spelling")
    steps = np.frombuffer(planes, np.uint8).reshape(4, -1).T.copy().view("<f4").reshape(-1)
    if not bool(np.all(np.isfinite(steps) & (steps > 0))):
        raise WireError("steps are positive and finite, got zero, negative, NaN or infinity")
    return header, steps.astype(np.float32)


def _pack(codes: NDArray[np.int8]) -> tuple[bytes, bytes]:
    """Codes as base-6 triples, and what the large ones exceed the escape by, one byte each."""
    wide = codes.astype(np.int16)
    zigzag = np.where(wide > 0, 2 * wide - 1, -2 * wide)  # 0, +1, -1, +2, -2 -> 0, 1, 2, 3, 4
    digits = np.zeros(-(-codes.size // _PER_BYTE) * _PER_BYTE, np.uint8)
    digits[: codes.size] = np.minimum(zigzag, _ESCAPE)
    triples = (digits.reshape(-1, _PER_BYTE) * _PLACES).sum(axis=1, dtype=np.uint8)
    return triples.tobytes(), (zigzag[zigzag >= _ESCAPE] - _ESCAPE).astype(np.uint8).tobytes()


def _unpack(parts: _Parts, count: int) -> NDArray[np.int8]:
    """The codes [count] of the two last sections."""
    size = -(-count // _PER_BYTE)
    triples = np.frombuffer(_decompress(parts.symbols, size, "codes"), np.uint8)
    if triples.size != size:
        raise WireError(f"{count} codes take {size} packed bytes, got {triples.size}")
    if triples.size and int(triples.max()) >= _BASE**_PER_BYTE:
        raise WireError(f"a packed byte is below {_BASE**_PER_BYTE}, got {int(triples.max())}")
    digits = (triples[:, None] // _PLACES % _BASE).reshape(-1)
    if digits[count:].any():
        raise WireError("the padding after the last code is zero, got something else")
    zigzag = digits[:count].astype(np.int16)
    escaped = zigzag == _ESCAPE
    expected = int(np.count_nonzero(escaped))
    large = np.frombuffer(_decompress(parts.large, expected, "large codes"), np.uint8)
    if large.size != expected:
        raise WireError(f"{expected} large codes were announced, got {large.size}")
    zigzag[escaped] += large
    if count and int(zigzag.max()) > 2 * CODE_LIMIT:
        raise WireError(f"codes lie within +-{CODE_LIMIT}, got one of magnitude {(int(zigzag.max()) + 1) // 2}")
    return np.where(zigzag % 2 == 1, (zigzag + 1) // 2, -(zigzag // 2)).astype(np.int8)


def _floats(parts: _Parts, count: int) -> NDArray[np.float32]:
    """The values [count] of a message of exact tensors."""
    if len(parts.symbols) != 4 * count or parts.large:
        got = len(parts.symbols) + len(parts.large)
        raise WireError(f"{count} exact values take {4 * count} bytes, got {got}")
    return np.frombuffer(parts.symbols, "<f4").astype(np.float32)


def _compress(data: bytes) -> bytes:
    """One zstandard frame; nothing for nothing."""
    return zstandard.ZstdCompressor(compression_params=_COMPRESSION).compress(data) if data else b""


def _decompress(section: bytes, most: int, what: str) -> bytes:
    """The data of the one frame that fills `section`, which must say its size: 1 to `most` bytes."""
    if not section:
        return b""
    try:
        size = zstandard.get_frame_parameters(section, format=_FORMAT).content_size
        if not 0 < size <= most:  # checked first, for it decides the allocation; an absent size reads as 2**64 - 1
            raise WireError(f"the {what} section unpacks to 1..{most} bytes, got a frame that announces another size")
        unpacker = zstandard.ZstdDecompressor(format=_FORMAT)
        return unpacker.decompress(section, max_output_size=most, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"the {what} section is one zstandard frame, got bytes that are not ({error})") from None


def _fingerprint(lengths: Mapping[str, int]) -> int:
    return zlib.crc32(json.dumps(sorted(lengths.items()), separators=(",", ":")).encode())


def _canonical(header: Header) -> bytes:
    try:
        return json.dumps(header, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode(
            "utf-8"
        )
    except UnicodeEncodeError:
        raise WireError("a header's text is valid Unicode, got a lone surrogate; decode the text properly") from None


def _check_value(name: str, value: JsonValue, depth: int) -> None:
    if isinstance(value, list) and depth:
        for item in value:
            _check_value(name, item, depth - 1)
        return
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return
    if isinstance(value, float) and math.isfinite(value):
        return
    rule = f"a header holds text, 64-bit integers, finite numbers, booleans, null and lists {_LIST_DEPTH} deep at most"
    raise WireError(f"{rule}, got {type(value).__name__} in {name!r}; convert it first")


def _check_finite(values: NDArray[np.float32]) -> None:
    if not bool(np.isfinite(values).all()):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise WireError(
            f"only finite values can be sent, got {bad} NaN or infinite of {values.size}; training diverged"
        )
