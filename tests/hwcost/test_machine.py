"""Facts about the machine: legal names, relevant features, and warnings in words."""

import os
import re
import subprocess
import sys

import pytest

from hwcost.machine import (
    Facts,
    cool_down,
    detect_machine,
    device_name,
    host_device_name,
    quietness,
    throttle_warnings,
)

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


CPU0 = "/sys/devices/system/cpu/cpu0"
PI = Facts(
    system="Linux 6.6.31",
    architecture="aarch64",
    processor="",
    python="3.11.2",
    onnxruntime="1.20.1",
    cores=4,
    load=0.1,
    texts={
        "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4",
        f"{CPU0}/cpufreq/scaling_governor": "ondemand",
        f"{CPU0}/cache/index0/level": "1",
        f"{CPU0}/cache/index0/type": "Data",
        f"{CPU0}/cache/index0/size": "32K",
        f"{CPU0}/cache/index2/level": "2",
        f"{CPU0}/cache/index2/type": "Unified",
        f"{CPU0}/cache/index2/size": "1M",
    },
    board={"get_throttled": "throttled=0x0", "measure_temp": "temp=48.2'C"},
)


def pi(temperature: str, throttled: str = "0x0") -> Facts:
    board = {"get_throttled": f"throttled={throttled}", "measure_temp": f"temp={temperature}'C"}
    return PI.model_copy(update={"board": board})


def test_a_board_tells_its_caches_governor_and_temperature() -> None:
    machine = detect_machine(1, PI)
    assert machine.cache_bytes == {"L1d": 32768, "L2": 1048576}
    assert (machine.governor, PI.celsius, PI.hot) == ("ondemand", 48.2, "")
    assert quietness(PI) == ("the clock may vary: CPU governor is ondemand, `performance` repeats best",)
    sensor = {"board": {}, "texts": {"/sys/class/thermal/thermal_zone0/temp": "81500"}}
    assert PI.model_copy(update=sensor).hot == "it is at 82 degrees"
    failed = PI.model_copy(update={"board": {"get_throttled": "vcgencmd failed (no device)"}})
    assert "the board's throttle state is not known: vcgencmd failed (no device)" in quietness(failed)


def test_a_hot_board_is_waited_for_and_it_says_so() -> None:
    told = iter([pi("84.0"), pi("80.0", "0x4"), pi("78.0", "0x4"), pi("75.0", "0x40000")])
    said: list[str] = []
    slept: list[float] = []
    facts = cool_down(lambda: next(told), said.append, slept.append)
    assert facts.celsius == 75.0 and slept == [10.0] * 3
    assert said == [
        "waiting for Raspberry Pi 4 Model B Rev 1.4 to cool down: it is at 84 degrees",
        "cool enough after 30 s, measuring goes on",
    ]


def test_a_board_that_stays_hot_is_measured_in_the_end() -> None:
    said: list[str] = []
    slept: list[float] = []
    assert cool_down(lambda: pi("85.0"), said.append, slept.append).hot
    assert sum(slept) == 900
    assert said[-1] == "it is at 85 degrees after 15 minutes of rest: measuring goes on, give the board a fan"


def test_a_cool_machine_is_not_waited_for() -> None:
    def never(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    cool = PI.model_copy(update={"board": {}})
    assert cool_down(lambda: cool, lambda text: never(0), never) == cool
