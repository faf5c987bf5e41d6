"""How long weights are waited for: what measured streams say of caches, of memory and of what others bring."""

import numpy as np
import pytest
from pydantic import ValidationError

from hwcost.ops import FLOAT, Conv, Elementwise, Gemm, Precision
from hwcost.profiles import Use, WeightStream
from hwcost.waits import USES, Wait, Waits, use, waits_of

MEBIBYTE = 1024**2
CURVE = tuple(
    Wait(bytes=size * MEBIBYTE, s_per_byte=s_per_byte)
    for size, s_per_byte in ((1, 0.0), (4, 2e-11), (32, 2e-11), (64, 7e-11), (128, 8e-11))
)
WAITS = Waits(of=dict.fromkeys(USES, CURVE))
"""Of a second cache of 1 MiB and a last one of 32 that is nobody else's."""
SIZES = (0.25, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0)


def streams(brought_per_s: float, passes: int = 1, noise: float = 0.0, seed: int = 0) -> list[WeightStream]:
    """Those of a last cache that loses all between 8 and 32 MiB, while others bring so many bytes in a second."""
    rng = np.random.default_rng(seed)
    made = []
    kinds: tuple[tuple[Use, float, float], ...] = (("once", 2e-11, 3e-11), ("again", 2.6e-10, 5e-11))
    for name, nearest_s, memory_s in kinds:
        for size in SIZES:
            own, byte_s = size * MEBIBYTE, nearest_s
            for _ in range(200):  # what others bring in the time that it then takes
                lost = np.interp(np.log2((own + brought_per_s * own * byte_s) / MEBIBYTE), (3, 5), (0, 1))
                byte_s += 0.1 * (nearest_s + memory_s * lost - byte_s)
            seconds = byte_s * np.exp(rng.normal(0, noise, passes))
            made.append(WeightStream(use=name, bytes=int(own), s_per_byte=tuple(seconds.tolist())))
    return made


def seconds_of(waits: Waits, name: Use) -> list[float]:
    return [wait.s_per_byte for wait in waits.of[name]]


def test_waits_are_what_a_byte_takes_longer_than_from_the_nearest_cache_and_never_fall() -> None:
    measured = [
        (2.0, 1.2e-10, 1.3e-10),
        (0.5, 1.03e-10, 1.05e-10),
        (1.0, 1e-10, 1e-10),
        (64.0, 1.8e-10, 1.6e-10),
        (8.0, 1.2e-10, 1.2e-10),
    ]
    waits = waits_of([WeightStream(bytes=int(size * MEBIBYTE), s_per_byte=seconds) for size, *seconds in measured])
    others = [
        wait.bytes / MEBIBYTE - size for wait, (size, *_) in zip(waits.of["again"], sorted(measured), strict=True)
    ]
    runs = [0.5 * 1.04e-10, 1e-10, 2 * 1.25e-10, 8 * 1.2e-10, 64 * 1.7e-10]
    assert others == pytest.approx([run / 8 / 7e-11 for run in runs])  # an eighth of what memory delivers meanwhile
    assert seconds_of(waits, "again") == pytest.approx([0, 0, 2e-11, 2e-11, 7e-11], abs=1e-15)
    assert waits.of["once"] == waits.of["again"] and waits_of([]) == Waits()


@pytest.mark.parametrize("brought_per_s", [0.0, 2e9, 6e9, 12e9, 20e9])
def test_what_others_bring_is_told_by_a_slow_and_a_fast_stream(brought_per_s: float) -> None:
    found = waits_of(streams(brought_per_s))
    assert found.brought_per_s == pytest.approx(brought_per_s, rel=0.15, abs=1e9)
    noisy = waits_of(streams(brought_per_s, passes=4, noise=0.01))
    assert noisy.brought_per_s == pytest.approx(brought_per_s, rel=0.5, abs=1e9)


def test_a_short_run_keeps_weights_that_a_long_one_loses_to_others() -> None:
    waits = waits_of(streams(15e9))
    conv = Conv.square(512, 512, 4, 1)  # 1 MiB of weights
    short_s, long_s = (waits.network_s([(conv, FLOAT, 3, seconds / 3)])[0].sum() for seconds in (2e-4, 5e-3))
    assert short_s == pytest.approx(0, abs=3 * MEBIBYTE * 3e-12)
    assert long_s == pytest.approx(3 * MEBIBYTE * 5e-11, rel=0.1)


def test_memory_that_no_stream_tells_from_a_cache_brings_nothing_to_wait_for() -> None:
    flat = [WeightStream(use=name, bytes=2**20 * size, s_per_byte=(1e-10,)) for name in USES for size in (1, 2, 4)]
    found = waits_of(flat)
    assert found.brought_per_s == 0 and seconds_of(found, "once") == seconds_of(found, "again") == [0, 0, 0]
    (only,) = waits_of([WeightStream(bytes=2**20, s_per_byte=(1e-10,))]).of["once"]
    assert only == Wait(bytes=2**20, s_per_byte=0)
    apart = [WeightStream(use="once", bytes=2**20, s_per_byte=(1e-10,)), *streams(0.0)[len(SIZES) :]]
    assert waits_of(apart).brought_per_s == pytest.approx(1 / 8 / 5e-11, rel=0.02)  # one stream does not tell it


def test_each_use_waits_as_its_own_stream_did() -> None:
    found = waits_of(streams(6e9))
    assert seconds_of(found, "once")[-1] == pytest.approx(3e-11, rel=1e-3)
    assert seconds_of(found, "again")[-1] == pytest.approx(5e-11, rel=1e-3)
    gemm, many = Gemm(1, 4096, 4095), Gemm(9, 4096, 4095)
    assert (use(gemm), use(many)) == ("once", "again") and use(Conv.square(8, 8, 8, 1)) == "again"
    waits_s, kernels_s = found.network_s([(gemm, FLOAT, 3, 0.01), (many, FLOAT, 6, 0.01)])
    assert waits_s.tolist() == pytest.approx([3 * 64 * MEBIBYTE * 3e-11, 6 * 64 * MEBIBYTE * 5e-11], rel=0.01)
    assert kernels_s == pytest.approx(9 * 5e-11, rel=0.01)
    assert found.row_s(gemm, FLOAT, 0.01) == pytest.approx(64 * MEBIBYTE * 3e-11, rel=0.01)


def test_a_network_waits_for_its_weights_the_longer_the_more_it_goes_through() -> None:
    gemm = Gemm(1, 1024, 255)  # 1 MiB of weights and biases
    rates_s = [
        WAITS.network_s([(gemm, FLOAT, count, 0.0)])[0].sum() / (count * MEBIBYTE)
        for count in (1, 2, 4, 16, 45, 64, 500)
    ]
    assert rates_s[0] == pytest.approx(0, abs=1e-13) and rates_s[2:4] == pytest.approx([2e-11, 2e-11], rel=0.01)
    assert rates_s[1] == pytest.approx(1e-11, rel=0.02) and rates_s[4] == pytest.approx(4.5e-11, rel=0.05)
    assert rates_s[5:] == pytest.approx([7e-11, 8e-11], rel=0.01)
    for waits_s, kernels_s in (Waits().network_s([(gemm, FLOAT, 9, 0.0)]), WAITS.network_s([])):
        assert waits_s.tolist() == [0, 0] and kernels_s == 0


def test_a_row_waited_for_the_weights_of_all_its_copies() -> None:
    gemm = Gemm(1, 1024, 255)
    assert WAITS.row_s(Gemm(1, 512, 240), FLOAT, 3e-4) == 0  # one copy
    assert WAITS.row_s(gemm, FLOAT, 5e-5) == pytest.approx(2e-11 * MEBIBYTE, rel=0.02)  # no more than 4 MiB
    assert WAITS.row_s(Gemm(1, 8192, 2048), FLOAT, 5e-4) == pytest.approx(64 * 7e-11 * MEBIBYTE, rel=0.02)
    assert WAITS.row_s(Elementwise("add", (1, 64, 64, 64)), FLOAT, 5e-5) == 0
    assert Waits().row_s(gemm, FLOAT, 5e-5) == 0


def test_weights_are_counted_as_wide_as_they_are() -> None:
    conv = Conv.square(448, 448, 4, 3)  # 7 MiB in float
    in_float, _ = WAITS.network_s([(conv, FLOAT, 40, 0.0)])
    in_int8, _ = WAITS.network_s([(conv, Precision(8, 8, "u8s8"), 160, 0.0)])
    assert in_float.sum() == pytest.approx(40 * (4 * conv.weights + 4 * 448) * 8e-11)
    assert in_int8.sum() == pytest.approx(160 * (conv.weights + 8 * 448) * 8e-11)


def test_a_slower_device_waits_longer_for_memory_and_its_neighbours_are_slower_too() -> None:
    slower = Waits(of=WAITS.of, brought_per_s=6e9).slower(3.0)
    assert seconds_of(slower, "once") == pytest.approx([3 * wait.s_per_byte for wait in CURVE])
    assert slower.brought_per_s == pytest.approx(2e9)


def test_waits_of_one_use_alone_are_refused() -> None:
    for of in ({"once": CURVE}, {"once": CURVE, "again": ()}):
        with pytest.raises(ValidationError, match="once and again, or none"):
            Waits.model_validate({"of": of})
