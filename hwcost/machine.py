"""Which machine this is, or another one, and whether it is quiet enough to be timed.

An agent tells what the operating system's own files say there (`hwcost.agent.system_facts`), in this process or on
another machine; here it is understood. So nothing heavy is loaded, and a fact that a system does not tell stays
`unknown` instead of being guessed.
"""

import re
import time
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from hwcost.agent import system_facts
from hwcost.profiles import Machine

_CPUINFO: Final = "/proc/cpuinfo"
_DEVICE_TREE_MODEL: Final = "/proc/device-tree/model"
_THERMAL: Final = "/sys/class/thermal/thermal_zone0/temp"
_CPU0: Final = "/sys/devices/system/cpu/cpu0"

_COOLING_S: Final = 10.0
_MOST_COOLING_S: Final = 900.0
HOT_CELSIUS: Final = 80.0
"""From here on a Raspberry Pi lowers its clock."""

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


_Text = Annotated[str, Field(max_length=2**18)]


class Facts(BaseModel):
    """What a system tells of itself, in its own words: texts by the path of their file, answers of a board's firmware
    by the question."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    system: _Text
    architecture: _Text
    processor: _Text
    python: _Text
    onnxruntime: _Text
    cores: int = Field(ge=1, le=2**16)
    affinity: tuple[int, ...] = ()
    load: NonNegativeFloat | None = None
    texts: dict[_Text, _Text] = Field(default={}, max_length=64)
    board: dict[_Text, _Text] = Field(default={}, max_length=16)

    @property
    def cpuinfo(self) -> dict[str, str]:
        """First value of every key of /proc/cpuinfo."""
        found: dict[str, str] = {}
        for line in self.texts.get(_CPUINFO, "").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
        return found

    @property
    def model(self) -> str:
        """Which board this is, by its firmware; empty where there is no device tree."""
        return self.texts.get(_DEVICE_TREE_MODEL, "")

    @property
    def core(self) -> str:
        """The processor's name, or its design's; empty where it is not known."""
        cpuinfo = self.cpuinfo
        return cpuinfo.get("model name") or _ARM_PARTS.get(cpuinfo.get("CPU part", ""), "")

    @property
    def flags(self) -> frozenset[str]:
        """All instruction-set features that the system names."""
        cpuinfo = self.cpuinfo
        return frozenset((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())

    @property
    def cpu(self) -> str:
        names = [name for name in (self.model or self.cpuinfo.get("Model", ""), self.core) if name]
        return ", ".join(names) or self.processor or self.architecture or "unknown"

    @property
    def cache_bytes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for path in sorted(self.texts):
            folder, _, name = path.rpartition("/")
            match = re.fullmatch(r"(\d+)([KMG]?)", self.texts[path]) if name == "size" else None
            if match and folder.startswith(f"{_CPU0}/cache/"):
                kind = {"Data": "d", "Instruction": "i"}.get(self.texts.get(f"{folder}/type", ""), "")
                level = self.texts.get(f"{folder}/level", "")
                sizes[f"L{level}{kind}"] = int(match[1]) * 1024 ** " KMG".index(match[2] or " ")
        return sizes

    @property
    def governor(self) -> str:
        return self.texts.get(f"{_CPU0}/cpufreq/scaling_governor", "") or "unknown"

    @property
    def celsius(self) -> float | None:
        """The processor's temperature, None where no sensor is known."""
        if match := re.search(r"temp=(-?[\d.]+)", self.board.get("measure_temp", "")):
            return float(match[1])
        text = self.texts.get(_THERMAL, "")
        return int(text) / 1000 if re.fullmatch(r"-?\d{4,6}", text) else None

    @property
    def hot(self) -> str:
        """Why this is no time for timings, in words: too hot, or slowed down for its heat; else empty."""
        celsius, flags = self.celsius, _throttle_flags(self.board.get("get_throttled", ""))
        if celsius is not None and celsius >= HOT_CELSIUS:
            return f"it is at {celsius:.0f} degrees"
        return "it is throttled" if flags >> 2 & 1 else ""


def facts_here() -> Facts:
    """Those of this machine, now."""
    return Facts.model_validate(system_facts())


def detect_machine(threads: int = 1, facts: Facts | None = None) -> Machine:
    """This machine, or the one that tells these facts, as a profile records it, with `threads` threads per run."""
    facts = facts or facts_here()
    return Machine(
        cpu=facts.cpu,
        architecture=facts.architecture or "unknown",
        features=tuple(sorted(facts.flags & _FEATURES)),
        cores=facts.cores,
        cache_bytes=facts.cache_bytes,
        governor=facts.governor,
        threads=threads,
        affinity=facts.affinity,
        system=facts.system,
        python=facts.python,
        onnxruntime=facts.onnxruntime,
    )


def _throttle_flags(report: str) -> int:
    match = re.search(r"throttled=(0x[0-9a-fA-F]+)", report)
    return int(match[1], 16) if match else 0


def throttle_warnings(report: str) -> tuple[str, ...]:
    """What `vcgencmd get_throttled` says (`throttled=0x50005`), in words; nothing for a text it never prints."""
    flags = _throttle_flags(report)
    return tuple(f"the board reports {words}" for bit, words in _THROTTLE_BITS.items() if flags >> bit & 1)


def quietness(facts: Facts | None = None) -> tuple[str, ...]:
    """Reasons to distrust timings taken now, one sentence each; call it before measuring, which is a load itself."""
    facts = facts or facts_here()
    warnings: list[str] = []
    if facts.load is not None and facts.load > facts.cores / 2:
        warnings.append(
            f"the machine is busy: load average {facts.load:.1f} on {facts.cores} cores, a quiet one is below half"
        )
    if facts.governor not in ("performance", "unknown"):
        warnings.append(f"the clock may vary: CPU governor is {facts.governor}, `performance` repeats best")
    if facts.celsius is not None and facts.celsius >= HOT_CELSIUS:
        warnings.append(f"the processor is at {facts.celsius:.0f} degrees, where clocks are lowered")
    report = facts.board.get("get_throttled", "")
    if report and "throttled=" not in report:
        warnings.append(f"the board's throttle state is not known: {report}")
    return (*warnings, *throttle_warnings(report))


def cool_down(
    read: Callable[[], Facts], say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> Facts:
    """Wait, for a quarter of an hour at most, until a machine is cool enough to be timed, saying so; its facts then."""
    facts, waited_s = read(), 0.0
    while facts.hot:
        if waited_s >= _MOST_COOLING_S:
            say(f"{facts.hot} after {waited_s / 60:.0f} minutes of rest: measuring goes on, give the board a fan")
            return facts
        if not waited_s:
            say(f"waiting for {facts.cpu} to cool down: {facts.hot}")
        sleep(_COOLING_S)
        waited_s += _COOLING_S
        facts = read()
    if waited_s:
        say(f"cool enough after {waited_s:.0f} s, measuring goes on")
    return facts


def host_device_name(facts: Facts | None = None) -> str:
    """A legal device name for this machine, or the one of these facts, the same at every call: from the CPU and its
    cores, `host-amd-epyc-2c`."""
    facts = facts or facts_here()
    return device_name(facts.cpu, facts.cores)


def device_name(cpu: str, cores: int) -> str:
    """`("Intel(R) Xeon(R) CPU @ 2.20GHz", 4)` -> `host-intel-xeon-4c`; at most 64 characters of [a-z0-9._-]."""
    words = re.sub(r"[^a-z0-9.]+", "-", _NOT_A_NAME.sub(" ", cpu.lower())).strip("-.")
    return f"host-{words[:48].strip('-.') or 'unknown'}-{cores}c"
