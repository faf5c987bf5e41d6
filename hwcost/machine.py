"""Which machine this is, and whether it is quiet enough to be timed.

Everything is read from the operating system's own files, so that this module runs where nothing heavy is installed; a
fact that a system does not tell stays `unknown` instead of being guessed.
"""

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

from hwcost.profiles import Machine

_CPUINFO: Final = Path("/proc/cpuinfo")
_DEVICE_TREE_MODEL: Final = Path("/proc/device-tree/model")
_CPU0: Final = Path("/sys/devices/system/cpu/cpu0")

_X86_FEATURES: Final = ("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl")
_X86_DOT_FEATURES: Final = ("avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")
_ARM_FEATURES: Final = ("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "fphp", "sve", "sve2", "sme")
_FEATURES: Final = frozenset((*_X86_FEATURES, *_X86_DOT_FEATURES, *_ARM_FEATURES))
"""The instruction-set features that choose between the runtime's kernels."""

_ARM_PARTS: Final = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}
_THROTTLE_BITS: Final = {
    0: "under-voltage now",
    1: "clock capped now",
    2: "throttled now",
    3: "soft temperature limit now",
    16: "under-voltage since boot",
    17: "clock capped since boot",
    18: "throttled since boot",
    19: "soft temperature limit since boot",
}
_NOT_A_NAME: Final = re.compile(r"\([^)]*\)|@.*|\b(cpu|processor|with|graphics|radeon|\d+-core|[\d.]+ghz)\b")


def _text(path: Path) -> str:
    """Contents of a system file, stripped; empty where the system does not have it."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _cpuinfo() -> dict[str, str]:
    """First value of every key of /proc/cpuinfo."""
    facts: dict[str, str] = {}
    for line in _text(_CPUINFO).splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts


def _cpu_name(facts: dict[str, str]) -> str:
    board = _text(_DEVICE_TREE_MODEL) or facts.get("Model", "")
    core = facts.get("model name") or _ARM_PARTS.get(facts.get("CPU part", ""), "")
    names = [name for name in (board, core) if name]
    return ", ".join(names) or platform.processor() or platform.machine() or "unknown"


def _cache_bytes() -> dict[str, int]:
    sizes: dict[str, int] = {}
    for index in sorted((_CPU0 / "cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_text(index / "type"), "")
        match = re.fullmatch(r"(\d+)([KMG]?)", _text(index / "size"))
        if match:
            sizes[f"L{_text(index / 'level')}{kind}"] = int(match[1]) * 1024 ** " KMG".index(match[2] or " ")
    return sizes


def _governor() -> str:
    return _text(_CPU0 / "cpufreq" / "scaling_governor") or "unknown"


def _affinity() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def _runtime_version() -> str:
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return "unknown"


def detect_machine(threads: int = 1) -> Machine:
    """This machine, as a profile records it, with `threads` threads per run."""
    facts = _cpuinfo()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return Machine(
        cpu=_cpu_name(facts),
        architecture=platform.machine() or "unknown",
        features=tuple(sorted(flags & _FEATURES)),
        cores=os.cpu_count() or 1,
        cache_bytes=_cache_bytes(),
        governor=_governor(),
        threads=threads,
        affinity=_affinity(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=_runtime_version(),
    )


def throttle_warnings(report: str) -> tuple[str, ...]:
    """What `vcgencmd get_throttled` says (`throttled=0x50005`), in words; nothing for a text it never prints."""
    match = re.search(r"throttled=(0x[0-9a-fA-F]+)", report)
    flags = int(match[1], 16) if match else 0
    return tuple(f"the board reports {words}" for bit, words in _THROTTLE_BITS.items() if flags >> bit & 1)


def quietness() -> tuple[str, ...]:
    """Reasons to distrust timings taken now, one sentence each; call it before measuring, which is a load itself."""
    warnings: list[str] = []
    cores, governor = os.cpu_count() or 1, _governor()
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > cores / 2:
        load = os.getloadavg()[0]
        warnings.append(f"the machine is busy: load average {load:.1f} on {cores} cores, a quiet one is below half")
    if governor not in ("performance", "unknown"):
        warnings.append(f"the clock may vary: CPU governor is {governor}, `performance` repeats best")
    if shutil.which("vcgencmd"):
        try:
            answer = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.SubprocessError) as error:
            warnings.append(f"the board's throttle state is not known: vcgencmd failed ({error})")
        else:
            warnings.extend(throttle_warnings(answer.stdout))
    return tuple(warnings)


def host_device_name() -> str:
    """A legal device name for this machine, the same at every call: from the CPU and its cores, `host-amd-epyc-2c`."""
    return device_name(_cpu_name(_cpuinfo()), os.cpu_count() or 1)


def device_name(cpu: str, cores: int) -> str:
    """`("Intel(R) Xeon(R) CPU @ 2.20GHz", 4)` -> `host-intel-xeon-4c`; at most 64 characters of [a-z0-9._-]."""
    words = re.sub(r"[^a-z0-9.]+", "-", _NOT_A_NAME.sub(" ", cpu.lower())).strip("-.")
    return f"host-{words[:48].strip('-.') or 'unknown'}-{cores}c"
