"""From a trace of executed instructions to cycles of a core.

A trace is a sequence of blocks. What a block costs depends on what ran just before it, as far back as an out-of-order
core looks: so each block is priced together with its context, the blocks before it that hold `CONTEXT` instructions.
Loops make few distinct ones of millions; each is simulated once, in the stretch of the trace where it first occurs, by
llvm-mca, and costs the cycles between the retirement of the block before and its own. Their sum is the trace's cycles.
Nothing is sampled, so nothing is uncertain but the model of the core itself.
"""

import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hwcost.emulation.instructions import NOTHING, disassemble, simulated, vector_name
from hwcost.errors import MeasurementError

CONTEXT: Final = 192
"""Instructions: half as many again as such a core holds in flight; twice as many change a sum by less than 0.3 %."""
_BASE: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse among 64-bit numbers
_INVERSE: Final = np.uint64(pow(int(_BASE), -1, 2**64))
_BATCH: Final = 50_000
"""Instructions simulated in one call."""
_RETIRED: Final = re.compile(rb'"CycleRetired": (\d+)')
_VIEWS: Final = (
    "-iterations=1",
    "-json",
    "-timeline",
    "-timeline-max-cycles=1000000000",
    "-resource-pressure=0",
    "-instruction-info=0",
)

Words = tuple[int, ...]
Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Trace:
    """The executed blocks, in order: `sequence` holds places in `blocks`, which are the distinct ones' instructions.

    `keys` tell each block with its context from any other, `starts` is the place in the sequence where that begins.
    """

    blocks: tuple[Words, ...]
    sequence: npt.NDArray[np.int64]
    keys: Numbers
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, blocks: Sequence[Words], executed: npt.NDArray[Any]) -> "Trace":
        """`executed` holds places in `blocks`, of which several may be equal."""
        distinct: dict[Words, int] = {}
        used, inverse = np.unique(executed, return_inverse=True)
        places = np.array([distinct.setdefault(blocks[one], len(distinct)) for one in used.tolist()], np.int64)
        sequence = places[inverse]
        found = tuple(distinct)
        lengths = np.array([len(words) for words in found], np.int64)
        before = np.concatenate(([0], np.cumsum(lengths[sequence])))  # instructions before each block
        starts = np.searchsorted(before, before[:-1] - CONTEXT, side="right") - 1
        starts = np.maximum(starts, 0)
        names = np.array([_digest(words) for words in found], np.uint64)
        with np.errstate(over="ignore"):
            powers, inverses = _powers(_BASE, len(sequence)), _powers(_INVERSE, len(sequence))
            sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(names[sequence] * powers, dtype=np.uint64)))
            keys = (sums[1:] - sums[starts]) * inverses[starts]
        return cls(found, sequence, keys, starts)

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """What the plugin wrote; raises `MeasurementError` where it is cut off."""
        numbers = np.fromfile(path, np.uint32)
        blocks: list[Words] = []
        place = 1
        try:
            while len(blocks) < int(numbers[0]):
                end = place + 1 + int(numbers[place])
                if end > len(numbers):
                    raise IndexError
                blocks.append(tuple(numbers[place + 1 : end].tolist()))
                place = end
            return cls.of(blocks, numbers[place:])
        except IndexError:
            raise MeasurementError(f"a trace is whole, {path.name} is cut off: free some space and try again") from None

    @property
    def instructions(self) -> int:
        return sum(self.words().values())

    def words(self) -> Counter[int]:
        """How often each instruction is executed."""
        counts: Counter[int] = Counter()
        for block, count in zip(self.blocks, np.bincount(self.sequence, minlength=len(self.blocks)), strict=True):
            for word in block:
                counts[word] += int(count)
        return counts

    def counts(self) -> dict[int, int]:
        """How often each key occurs."""
        keys, counts = np.unique(self.keys, return_counts=True)
        return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def _powers(base: np.uint64, count: int) -> Numbers:
    """base^0, base^1, ... modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _digest(words: Words) -> int:
    data = np.array(words, np.uint32).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass
class Core:
    """A core as llvm-mca models it: `cpu` by its name there, `dispatch` micro-operations a cycle.

    `slow_calls` leaves calls to llvm-mca, which lets each take a hundred cycles. Costs that were found are kept for the
    keys of later traces.
    """

    cpu: str
    dispatch: int
    attributes: str = ""
    llvm_mca: str = "llvm-mca"
    llvm_mc: str = "llvm-mc"
    slow_calls: bool = False
    _texts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _costs: dict[int, int] = field(default_factory=dict)

    def cycles(self, trace: Trace) -> int:
        """Of a whole trace."""
        counts = trace.counts()
        self._costs.update(self._simulated_costs(trace, counts.keys() - self._costs.keys()))
        return sum(count * self._costs[key] for key, count in counts.items())

    def cycles_between(self, few: Trace, many: Trace) -> int:
        """By how much one trace takes longer than another that shares most of it: only what they do not share is
        simulated."""
        net = Counter(many.counts())
        net.subtract(few.counts())
        wanted = {key for key, count in net.items() if count}
        for trace in (many, few):
            self._costs.update(self._simulated_costs(trace, wanted - self._costs.keys()))
        return sum(net[key] * self._costs[key] for key in wanted)

    def names_between(self, few: Trace, many: Trace) -> Counter[str]:
        """How often each kind of vector instruction is executed more in `many` than in `few`; empty: all others."""
        net = many.words()
        net.subtract(few.words())
        self._learn(net)
        names: Counter[str] = Counter()
        for word, count in net.items():
            names[self._names[word]] += count
        return names

    def _learn(self, words: Counter[int] | set[int]) -> None:
        for word, text in disassemble((word for word in words if word not in self._texts), self.llvm_mc).items():
            self._texts[word], self._names[word] = simulated(text, self.slow_calls), vector_name(text)

    def _simulated_costs(self, trace: Trace, wanted: set[int]) -> dict[int, int]:
        """The cost of each of these keys that occurs in the trace, where it first does."""
        keys, first = np.unique(trace.keys, return_index=True)
        asked = np.isin(keys, np.fromiter(wanted, np.uint64, len(wanted)))
        places = np.sort(first[asked]).tolist()
        stretches: list[tuple[int, list[int]]] = []
        for place in places:
            start = int(trace.starts[place])
            if stretches and start <= stretches[-1][1][-1] + 1:
                stretches[-1][1].append(place)
            else:
                stretches.append((start, [place]))
        costs: dict[int, int] = {}
        if not wanted:
            return costs
        batch: list[tuple[int, list[int], list[Words]]] = []
        size = 0
        for start, inside in stretches:
            blocks = [trace.blocks[one] for one in trace.sequence[start : inside[-1] + 1].tolist()]
            batch.append((start, inside, blocks))
            size += sum(map(len, blocks))
            if size >= _BATCH:
                costs.update(self._priced(trace, batch))
                batch, size = [], 0
        costs.update(self._priced(trace, batch))
        return costs

    def _priced(self, trace: Trace, batch: Sequence[tuple[int, list[int], list[Words]]]) -> dict[int, int]:
        costs: dict[int, int] = {}
        retired = self._retirements([blocks for _, _, blocks in batch]) if batch else []
        for (start, inside, _), ends in zip(batch, retired, strict=True):
            for place in inside:
                before = ends[place - start - 1] if place > start else 0
                costs[int(trace.keys[place])] = ends[place - start] - before
        return costs

    def _retirements(self, stretches: Sequence[list[Words]]) -> list[list[int]]:
        """In which cycle the last instruction of each block of each stretch retires; each begins with an idle core."""
        self._learn({word for blocks in stretches for block in blocks for word in block})
        lines: list[str] = []
        last: list[list[int]] = []
        total = 0
        for number, blocks in enumerate(stretches):
            lines.append(f"# LLVM-MCA-BEGIN {number}")
            last.append([])
            for block in blocks:
                for word in block:
                    pieces = self._texts[word]
                    lines.extend(pieces)
                    total += len(pieces)
                last[-1].append(total - 1)
            lines.append("# LLVM-MCA-END")
        retired = self._simulate("\n".join(lines))
        if len(retired) != total:
            raise MeasurementError(
                f"llvm-mca says of every instruction when it retires, got {len(retired)} of {total}: "
                "use another version of llvm"
            )
        return [[retired[place] for place in places] for places in last]

    def _simulate(self, source: str) -> list[int]:
        command = [self.llvm_mca, "-mtriple=aarch64", f"-mcpu={self.cpu}", f"-dispatch={self.dispatch}", *_VIEWS]
        if self.attributes:
            command.append(f"-mattr={self.attributes}")
        while True:
            done = subprocess.run(command, input=source.encode(), capture_output=True, check=False)
            if done.returncode == 0:
                return [int(cycle) for cycle in _RETIRED.findall(done.stdout)]
            refused = _refused_line(done.stderr.decode(errors="replace"))
            if refused is None or f"\n{refused}\n" not in f"\n{source}\n":
                reason = " ".join(done.stderr.decode(errors="replace").split())[:300]
                raise MeasurementError(
                    f"llvm-mca simulates what is executed, it refused: {reason}: use another version of llvm"
                )
            self._texts = {
                word: tuple(NOTHING if piece == refused else piece for piece in pieces)
                for word, pieces in self._texts.items()
            }
            source = "\n".join(NOTHING if line == refused else line for line in source.split("\n"))


def _refused_line(complaint: str) -> str | None:
    """The instruction that llvm-mca's complaint names, if it names one."""
    match = re.search(r"note: instruction: *([^\n]+)", complaint) or re.search(
        r"error: [^\n]*\n([^\n]+)\n *\^", complaint
    )
    return None if match is None else " ".join(match[1].split())
