"""Instructions of an Arm core as words of a trace and as text that the simulator of a core reads.

llvm-mca takes assembly. Some of it would be priced wrongly, so that is written in other words: a load or store that
also moves its address (as a load and an addition, else the address is late by the latency of memory), a call (as a
jump, else it takes a hundred cycles), an atomic change of memory, which older models lack (as a load and a store), and
what no model knows (as nothing).
"""

import re
import struct
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from hwcost.errors import MeasurementError

NOTHING: Final = "nop"
_AFTER: Final = re.compile(r"(?P<what>\S+ .*)\[(?P<base>x\d+|sp)\], (?P<by>#-?\d+|x\d+)")
_BEFORE: Final = re.compile(r"(?P<what>\S+ .*)\[(?P<base>x\d+|sp), (?P<by>#-?\d+)\]!")
_ATOMIC: Final = re.compile(
    r"(?:ldadd|ldclr|ldset|ldeor|swp|cas)[abhl]* (?P<one>[wx]\w+), (?P<other>[wx]\w+), \[(?P<base>x\d+|sp)\]"
)
_CALLS: Final = {"bl": "b", "blr": "br"}
_ATTRIBUTES: Final = "+v8.2a,+dotprod,+fullfp16,+crypto,+lse"
_WIDENING: Final = frozenset(
    f"{sign}{name}{half}" for sign in "su" for name in ("mlal", "mull", "adalp") for half in ("", "2")
)
PRODUCTS: Final = _WIDENING | {"fmla", "sdot", "udot", "usdot", "smmla", "ummla", "usmmla", "mla"}
"""Instructions that multiply vectors or add up their products: which of them run says which kernel it is."""
_LEAST_SHARE: Final = 0.1


def disassemble(words: Iterable[int], llvm_mc: str = "llvm-mc") -> dict[int, str]:
    """The text of each instruction; what is none that is known becomes `NOTHING`. Raises `MeasurementError`."""
    wanted = list(dict.fromkeys(words))
    found = dict.fromkeys(wanted, NOTHING)
    source = "\n".join(" ".join(f"{byte:#04x}" for byte in struct.pack("<I", word)) for word in wanted)
    command = (llvm_mc, "--disassemble", "-triple=aarch64", f"-mattr={_ATTRIBUTES}")
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    bad = {int(line) for line in re.findall(r"<stdin>:(\d+):\d+: warning: invalid instruction", done.stderr)}
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    texts = [line for line in lines if not line.startswith(".")]
    good = [word for place, word in enumerate(wanted, 1) if place not in bad]
    if len(good) != len(texts):
        raise MeasurementError(
            f"llvm-mc reads one instruction a line, got {len(texts)} for {len(good)}: use another version of llvm"
        )
    found.update(zip(good, texts, strict=True))
    return found


def simulated(text: str, slow_calls: bool = False) -> tuple[str, ...]:
    """An instruction as the simulator is to see it, in one piece or in two."""
    name, _, rest = text.partition(" ")
    if name in _CALLS and not slow_calls:
        return (f"{_CALLS[name]} {rest}",)
    if match := _AFTER.fullmatch(text):
        return f"{match['what']}[{match['base']}]", _moved(match["base"], match["by"])
    if match := _BEFORE.fullmatch(text):
        return _moved(match["base"], match["by"]), f"{match['what']}[{match['base']}]"
    if match := _ATOMIC.fullmatch(text):
        return f"ldr {match['other']}, [{match['base']}]", f"str {match['one']}, [{match['base']}]"
    return (text,)


def vector_name(text: str) -> str:
    """The name of an instruction on vectors, empty for any other."""
    name, _, operands = text.partition(" ")
    return name if operands.startswith("v") else ""


def _moved(base: str, by: str) -> str:
    return f"sub {base}, {base}, #{by[2:]}" if by.startswith("#-") else f"add {base}, {base}, {by}"


def kernel_path(counts: Mapping[str, int]) -> str:
    """Which instructions multiply and add up in a kernel, by how often each is executed, the commonest first."""
    products = Counter({name: count for name, count in counts.items() if name in PRODUCTS})
    most = max(products.values(), default=0)
    return "+".join(name for name, count in products.most_common() if count >= _LEAST_SHARE * most)
