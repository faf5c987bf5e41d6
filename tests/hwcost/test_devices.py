"""Device classes: facts with sources, a plain refusal of the unknown, and no machine taken for another."""

from pathlib import Path

import pytest

from hwcost.devices import known_devices, load_device, runs_here
from hwcost.errors import UnknownDeviceError


def test_the_pi_4_ships() -> None:
    assert "rpi4" in known_devices()
    pi = load_device("rpi4")
    assert (pi.cpu, pi.cores, pi.int8_form) == ("Cortex-A72", 4, "s8s8")


@pytest.mark.parametrize("name", known_devices())
def test_every_device_has_the_facts_that_an_estimate_needs_and_says_where_they_come_from(name: str) -> None:
    device = load_device(name)
    for figures in device.macs_per_cycle.values():
        assert set(figures) == {"pointwise", "dense", "depthwise", "gemm"}
    for number_format, figures in device.macs_per_cycle.items():
        assert max(figures.values()) <= device.peak_macs_per_cycle[number_format]
    for fact in ("cpu", "memory_bytes_per_s", "macs_per_cycle", "calibration", "int8_form"):
        assert device.sources[fact]


def test_unknown_device_lists_what_there_is_and_how_to_measure_this_machine() -> None:
    with pytest.raises(UnknownDeviceError) as caught:
        load_device("rpi9")
    assert isinstance(caught.value, LookupError)
    text = str(caught.value)
    assert text.startswith("a device is one of host, ") and "rpi4" in text and "got 'rpi9'" in text
    assert "`--device host` measures the machine it runs on" in text


def test_a_name_is_no_path() -> None:
    with pytest.raises(UnknownDeviceError):
        load_device("../devices/rpi4")


@pytest.mark.parametrize(
    ("model", "here"),
    [
        (b"Raspberry Pi 4 Model B Rev 1.4\0", True),
        (b"Raspberry Pi 400 Rev 1.0\0", True),
        (b"Raspberry Pi Compute Module 4 Rev 1.0\0", True),
        (b"Raspberry Pi 3 Model B Plus Rev 1.3\0", False),
        (b"Raspberry Pi 5 Model B Rev 1.0\0", False),
        (b"\xff\xfe", False),
    ],
)
def test_a_board_is_recognised_by_the_model_that_its_firmware_states(tmp_path: Path, model: bytes, here: bool) -> None:
    path = tmp_path / "model"
    path.write_bytes(model)
    assert runs_here(load_device("rpi4"), path) is here


def test_a_machine_without_a_device_tree_is_no_board(tmp_path: Path) -> None:
    assert not runs_here(load_device("rpi4"), tmp_path / "none")
