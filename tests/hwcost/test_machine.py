"""Facts about the machine: legal names, relevant features, and warnings in words."""

import os
import re
import subprocess
import sys

import pytest

from hwcost.machine import detect_machine, device_name, host_device_name, quietness, throttle_warnings

_LEGAL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def test_this_machine_is_described_and_its_fingerprint_repeats() -> None:
    machine = detect_machine(threads=2)
    assert machine.threads == 2
    assert machine.cores >= 1
    assert machine.onnxruntime != "unknown"
    assert list(machine.features) == sorted(machine.features)
    assert all(size > 0 for size in machine.cache_bytes.values())
    assert machine.fingerprint == detect_machine(threads=2).fingerprint != detect_machine(threads=1).fingerprint


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("AMD EPYC", "host-amd-epyc-4c"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "host-intel-xeon-4c"),
        ("AMD Ryzen 7 5800X 8-Core Processor", "host-amd-ryzen-7-5800x-4c"),
        ("Raspberry Pi 4 Model B Rev 1.4, Cortex-A72", "host-raspberry-pi-4-model-b-rev-1.4-cortex-a72-4c"),
        ("", "host-unknown-4c"),
        ("日本 " + "x" * 300, f"host-{'x' * 48}-4c"),
    ],
)
def test_device_names_are_readable_and_legal(cpu: str, name: str) -> None:
    assert device_name(cpu, 4) == name
    assert _LEGAL.fullmatch(name)


def test_the_host_has_one_legal_name() -> None:
    assert _LEGAL.fullmatch(host_device_name())
    assert host_device_name() == host_device_name()


def test_a_busy_machine_is_reported_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 1.0, 1.0))
    assert any(warning.startswith("the machine is busy: load average 99.0 on") for warning in quietness())
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert not any("busy" in warning for warning in quietness())


def test_throttle_flags_are_said_in_words() -> None:
    assert throttle_warnings("throttled=0x0\n") == ()
    assert throttle_warnings("error=1") == ()
    assert throttle_warnings("throttled=0x50005") == (
        "the board reports under-voltage now",
        "the board reports throttled now",
        "the board reports under-voltage since boot",
        "the board reports throttled since boot",
    )


def test_describing_the_machine_loads_nothing_heavy() -> None:
    code = (
        "import sys; from hwcost.machine import detect_machine; detect_machine();"
        "assert not {'onnxruntime', 'onnx', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
