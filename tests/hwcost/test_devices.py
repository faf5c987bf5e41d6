"""Device classes: facts with sources, a plain refusal of the unknown, and no machine taken for another."""

import pytest

from hwcost.devices import class_of, known_devices, load_device, runs_here
from hwcost.errors import UnknownDeviceError
from hwcost.estimate import estimate_profile
from hwcost.machine import Facts, detect_machine
from hwcost.ops import Conv

ARM_CPUINFO = "processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
A72 = ("fp asimd evtstrm crc32 cpuid", "0xd08")
A76 = ("fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp", "0xd0b")
N1 = (f"{A76[0]} ssbs", "0xd0c")


def facts(architecture: str, cpuinfo: str, model: str = "") -> Facts:
    texts = {"/proc/cpuinfo": cpuinfo, **({"/proc/device-tree/model": model} if model else {})}
    return Facts(
        system="Linux 6.6",
        architecture=architecture,
        processor="",
        python="3.11",
        onnxruntime="1",
        cores=4,
        texts=texts,
    )


def arm(core: tuple[str, str], model: str = "") -> Facts:
    return facts("aarch64", ARM_CPUINFO.format(features=core[0], part=core[1]), model)


def x86(flags: str) -> Facts:
    return facts("x86_64", f"processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: {flags}\n")


def test_what_ships() -> None:
    assert set(known_devices()) >= {"rpi4", "rpi5", "neoverse-n1", "x86-avx2", "x86-avx512-vnni"}
    pi = load_device("rpi4")
    assert pi.estimate is not None
    assert (pi.cpu, pi.cores, pi.estimate.int8_form) == ("Cortex-A72", 4, "s8s8")


@pytest.mark.parametrize("name", known_devices())
def test_every_fact_of_a_device_says_where_it_comes_from(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    told = ("cpu", "cores", "clock_hz", "features", "cache_bytes", "memory_bytes_per_s", "peak_macs_per_cycle")
    assert not [fact for fact in told if not device.sources.get(fact)]
    assert set(device.features) & {"asimd", "avx2"}
    assert 0.1e9 < device.clock_hz < 10e9 and 1e9 < device.memory_bytes_per_s < 1e12
    assert device.peak_macs_per_cycle["float"] < device.peak_macs_per_cycle["int8"]
    sizes = [device.cache_bytes[level] for level in ("L1d", "L2", "L3") if level in device.cache_bytes]
    assert len(sizes) > 1 and sizes == sorted(sizes)


@pytest.mark.parametrize("name", known_devices())
def test_a_device_has_all_that_an_estimate_needs_or_is_not_estimated(name: str) -> None:
    device = load_device(name)
    if device.estimate is None:
        with pytest.raises(UnknownDeviceError, match=rf"none for {name}: measure one, .* with --ssh USER@HOST"):
            estimate_profile(device, [Conv.square(8, 8, 6, 3)])
        return
    for number_format, figures in device.estimate.macs_per_cycle.items():
        assert set(figures) == {"pointwise", "dense", "depthwise", "gemm"}
        assert max(figures.values()) <= device.peak_macs_per_cycle[number_format]
    for fact in ("macs_per_cycle", "calibration", "int8_form"):
        assert device.sources[fact]


def test_unknown_device_lists_what_there_is_and_how_to_measure_this_machine() -> None:
    with pytest.raises(UnknownDeviceError) as caught:
        load_device("rpi9")
    assert isinstance(caught.value, LookupError)
    text = str(caught.value)
    assert text.startswith("a device is one of host, ") and "rpi4" in text and "got 'rpi9'" in text
    assert "`--device host` measures the machine it runs on" in text and "with --ssh any name will do" in text


def test_a_name_is_no_path() -> None:
    with pytest.raises(UnknownDeviceError):
        load_device("../devices/rpi4")


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (arm(A72, "Raspberry Pi 4 Model B Rev 1.4"), "rpi4"),
        (arm(A72, "Raspberry Pi 400 Rev 1.0"), "rpi4"),
        (arm(A72, "Raspberry Pi Compute Module 4 Rev 1.0"), "rpi4"),
        (arm(A76, "Raspberry Pi 5 Model B Rev 1.0"), "rpi5"),
        (arm(A76, "Raspberry Pi Compute Module 5 Rev 1.0"), "rpi5"),
        (arm(A72, "Raspberry Pi 3 Model B Plus Rev 1.3"), ""),
        (arm(A72, "\ufffd\ufffd"), ""),
        (arm(A72), ""),
        (arm(N1), "neoverse-n1"),
        (x86("fpu sse4_1 avx avx2 fma f16c"), "x86-avx2"),
        (x86("fpu sse4_1 avx avx2 fma avx_vnni"), ""),
        (x86("fpu sse4_1 avx avx2 fma avx512f avx512bw"), ""),
        (x86("fpu sse4_1 avx avx2 fma avx512f avx512bw avx512vl avx512_vnni"), "x86-avx512-vnni"),
        (x86("fpu sse4_1"), ""),
        (facts("riscv64", ""), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_machine_is_of_one_class_by_its_boards_model_else_by_its_processor(told: Facts, name: str) -> None:
    assert class_of(told) == name
    assert [one for one in known_devices() if runs_here(load_device(one), told)] == ([name] if name else [])


def test_a_board_is_described_by_its_own_words() -> None:
    machine = detect_machine(4, arm(A72, "Raspberry Pi 4 Model B Rev 1.4"))
    assert (machine.cpu, machine.architecture) == ("Raspberry Pi 4 Model B Rev 1.4, Cortex-A72", "aarch64")
    assert (machine.features, machine.cores, machine.threads) == (("asimd",), 4, 4)
