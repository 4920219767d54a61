"""Reads SASS as cuobjdump prints it: loops, fences in them, the cost of an epilogue, and loads that wait for loads.

Everything is derived from the graph of basic blocks that a kernel's branches form. Subroutines (reached by CALL alone)
are followed for chains of loads only. A chain goes through registers and predicates, not through shared memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from math import inf
from typing import NamedTuple

LINE = re.compile(r"\s+/\*([0-9a-f]{4,6})\*/\s+(?:@(!?U?P\w) )?\s*([A-Z][\w.]*)\s*([^;]*?)\s*;")
PLAIN = re.compile(r"U?(P[\dT]|R(\d+|Z))")
REGISTER = re.compile(r"(?<![\w.])(U?R)(\d+)(\.64)?(?!\w)")
PREDICATE = re.compile(r"(?<![\w.])(U?P\d)(?!\w)")
PRODUCTS = re.compile(r"[HIQ]G?MMA$")
MAIN = re.compile(r"[HIQ]G?MMA$|UTMALDG$|UBLKCP$")
DEVICE_WIDE = re.compile(r"MEMBAR(?!.*\.CTA)|CCTL.*\.IVALL|(CGA)?ERRBAR|FENCE(?!.*\.S$)")  # .S: of shared memory
LOADS = {"LDG", "LD"}  # from global memory, as STORES go there
STORES = {"STG", "ST", "RED", "REDG", "ATOM", "ATOMG", "UTMASTG"}
TABLES = {"BRX", "BRXU", "JMX", "JMXU"}  # jumps through a table
ENDS = {"BRA", "EXIT", "RET", "KILL", *TABLES}

# The operands that are written (p: predicates, r: registers), by how the name of an instruction begins.
JUMPS = "BAR|BRA|BRX|CALL|JMX|NANOSLEEP|RET|WARPSYNC"
WRITTEN = {JUMPS: "", "FCHK": "p", "U?[A-Z]+SETP|U?PLOP3": "pp", "VOTE": "p|r", "LD": "p?r*"}


@dataclass
class Instruction:
    address: int
    guard: str  # "", "P0", "!UP1", …
    opcode: str  # with its modifiers
    operands: str

    def __post_init__(self) -> None:
        self.base, *self.modifiers = self.opcode.split(".")

    @property
    def idle(self) -> bool:
        """It takes an issue slot and does nothing."""
        return self.base == "NOP" or self.guard == "!PT"

    @cached_property
    def target(self) -> int | None:
        """The address that a branch or a call goes to."""
        found = re.findall(r"\b0x[0-9a-f]+", self.operands) if self.base in ("BRA", "CALL") else []
        return int(found[-1], 16) if found else None

    @property
    def leaves(self) -> bool:
        """Whether control may go elsewhere. The compiler leaves a loop by a call over the next instruction."""
        return self.base in ENDS or (self.base == "CALL" and self.target in (self.address + 16, self.address + 32))

    @cached_property
    def moved(self) -> tuple[list[str], list[str]]:
        """The registers and predicates that are written, and those that are read, the guard's included."""
        operands = self.operands.split(", ")
        result, sources = spans(self.base, *self.modifiers)
        kinds = "".join("-" if not PLAIN.fullmatch(o) else "p" if "P" in o else "r" for o in operands)
        form = next((form for start, form in WRITTEN.items() if re.match(start, self.base)), "p*r?p*")
        count = len(re.match(f"(?:{form})?", kinds)[0])
        writes = [r for one in operands[:count] for r in named(one, result)]
        reads = [r for n, one in enumerate(operands[count:]) for r in named(one, sources[min(n, len(sources) - 1)])]
        return writes, reads + named(self.guard, 1)


def named(operand: str, count: int) -> list[str]:
    """The registers of an operand: of a plain register `count` from it on; of an address those that it names."""
    found = PREDICATE.findall(operand)
    for kind, first, pair in REGISTER.findall(operand):
        more = 4 if operand.startswith("gdesc") else 2 if pair else 1 if "[" in operand else count
        found += [f"{kind}{int(first) + n}" for n in range(more)]
    return found


@cache
def spans(base: str, *modifiers: str) -> tuple[int, tuple[int, ...]]:
    """The most registers of the result, and the registers of each source; the last number holds for the rest."""
    if PRODUCTS.match(base):
        result = int(modifiers[0].split("x")[1]) // 2 if "G" in base else 4
        return result, (4, result) if "G" in base else (4, 2, 4)
    wide = next((n for m, n in (("64", 2), ("128", 4), ("256", 4)) if m in modifiers), 1)  # of 256 bits two are named
    double, long = 1 + ("F64" in modifiers), 1 + ("S64" in modifiers or "U64" in modifiers)
    types = [m for m in modifiers if m in ("F16", "BF16", "F32", "F64")]  # .F64.F32 makes an F64 of an F32
    if "WIDE" in modifiers:
        return 2, (1, 1, 2)
    known = {
        **dict.fromkeys(("DADD", "DFMA", "DMNMX", "DMUL", "DSETP", "FADD2", "FFMA2", "FMUL2"), (2, (2,))),
        **{"FRND": (double, (double,)), "I2F": (double, (long,)), "F2I": (long, (double,))},
        "F2F": (1 + (types[:1] == ["F64"]), (1 + (types[-1:] == ["F64"]),)),
        "LDSM": (4 if "4" in modifiers else 2 if "2" in modifiers else 1, (1,)),
        "CS2R": (1 if "32" in modifiers else 2, (1,)),
    }
    return known.get(base, (wide, (wide,)))


class Block(NamedTuple):
    instructions: list[Instruction]
    after: list[int]
    before: list[int]

    @property
    def last(self) -> Instruction:
        return self.instructions[-1]


class Loop(NamedTuple):
    blocks: set[int]
    head: int


@dataclass
class Function:
    name: str
    arch: str
    instructions: list[Instruction]

    @cached_property
    def numbers(self) -> dict[int, int]:
        """The numbers of the blocks, by the address at which each begins."""
        code = self.instructions
        starts = {0, *(one.target for one in code), *(one.address + 16 for one in code if one.leaves)}
        return {at: n for n, at in enumerate(one.address for one in code if one.address in starts)}

    @cached_property
    def blocks(self) -> list[Block]:
        made: list[Block] = []
        for one in self.instructions:
            if one.address in self.numbers:
                made.append(Block([], [], []))
            made[-1].instructions.append(one)
        for n, block in enumerate(made):
            last = block.last
            if last.leaves and last.target in self.numbers:
                block.after.append(self.numbers[last.target])
            stays = last.base not in ENDS or last.guard not in ("", "PT") or "," in last.operands
            block.after.extend([n + 1] if stays and n + 1 < len(made) else [])
        known = {0, *map(self.called, self.instructions), *(n for block in made for n in block.after)}
        for block in made:  # the targets of a jump table are not printed: every block that nothing else leads to
            block.after.extend(n for n in range(len(made)) if block.last.base in TABLES and n not in known)
        for n, block in enumerate(made):
            for other in block.after:
                made[other].before.append(n)
        return made

    def order(self, entry: int = 0) -> dict[int, int]:
        """The position of each reachable block, behind all that lead to it except the ends of its own loops."""
        seen, done, stack = set(), [], [(entry, False)]
        while stack:
            block, left = stack.pop()
            if left:
                done.append(block)
            elif block not in seen:
                seen.add(block)
                stack += [(block, True), *((other, False) for other in self.blocks[block].after)]
        return {block: n for n, block in enumerate(reversed(done))}

    def earlier(self, block: int, place: dict[int, int]) -> list[int]:
        """The blocks before it, without the ends of its own loops."""
        return [b for b in self.blocks[block].before if place.get(b, len(place)) < place[block]]

    def called(self, one: Instruction) -> int | None:
        """The block at which a subroutine begins."""
        return self.numbers.get(one.target) if one.base == "CALL" and not one.leaves else None

    def within(self, loop: Loop) -> Iterator[Instruction]:
        return (one for block in sorted(loop.blocks) for one in self.blocks[block].instructions)


def functions(lines: Iterable[str]) -> Iterator[Function]:
    """From the lines that `cuobjdump --dump-sass` prints."""
    arch, current = "", Function("", "", [])
    for line in lines:
        if match := LINE.match(line):
            current.instructions.append(Instruction(int(match[1], 16), match[2] or "", match[3], match[4]))
        elif match := re.match(r"\s*(?:arch = |code for )(sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            if current.instructions:
                yield current
            current = Function(match[1], arch, [])
    if current.instructions:
        yield current


def loops(kernel: Function) -> list[Loop]:
    """Innermost first. A backward branch makes a loop only if the loop is entered at its head alone; a branch back from
    code that was placed behind the rest makes none.
    """
    place = kernel.order()
    passed, before = {0: 1}, {}  # for each block, the blocks that every path to it passes, as bits
    while passed != before:
        before = dict(passed)
        for block in list(place)[1:]:
            ways = [passed[b] for b in kernel.blocks[block].before if b in passed]
            passed[block] = reduce(int.__and__, ways) | 1 << block
    found: dict[int, set[int]] = {}
    backward = [(end, head) for end in place for head in kernel.blocks[end].after if passed[end] >> head & 1]
    for end, head in backward:
        inside, more = found.setdefault(head, {head}), [end]
        while more:
            if (block := more.pop()) not in inside:
                inside.add(block)
                more += [b for b in kernel.blocks[block].before if b in place]
    return sorted((Loop(inside, head) for head, inside in found.items()), key=lambda loop: len(loop.blocks))


def main_loops(kernel: Function, wanted: re.Pattern[str] = MAIN) -> list[Loop]:
    """The innermost loops around products and bulk copies. A loop that only waits for a barrier does not count, nor
    does one that takes the lanes of a warp one after the other (it ends in BRA.U.ANY).
    """
    blocks, holding = kernel.blocks, []
    for loop in loops(kernel):
        turns = all(blocks[b].last.opcode == "BRA.U.ANY" for b in loop.blocks if loop.head in blocks[b].after)
        holding += [loop] if not turns and any(wanted.match(i.base) for i in kernel.within(loop)) else []
    return [one for one in holding if not any(other.blocks < one.blocks for other in holding)]


def fences_in_main_loops(kernel: Function) -> list[str]:
    """The fences that wait for the whole device, or invalidate the level-1 cache."""
    inside = {i.address: i for loop in main_loops(kernel) for i in kernel.within(loop)}
    return [f"{i.opcode} at {i.address:#x}" for i in inside.values() if DEVICE_WIDE.match(i.opcode) and not i.idle]


def epilogue_instructions(kernel: Function) -> int | None:
    """The instructions executed once per tile behind the loop over K; None if there are no products.

    They lie on the cheapest path that stores a result, from the exit of that loop to the end of the loop around it, or
    of the kernel. A loop on that path counts once.
    """
    inner = max(main_loops(kernel, PRODUCTS), key=lambda loop: len(loop.blocks), default=None)
    if inner is None:
        return None
    around = next((loop for loop in loops(kernel) if loop.blocks > inner.blocks), None)
    best = {block: (0, inf) for block in inner.blocks}  # cost at a block's end, before and after a store
    ends = []
    for n in (place := kernel.order()):
        block, ways = kernel.blocks[n], [best[b] for b in kernel.earlier(n, place) if b in best]
        if not ways or n in inner.blocks or (around and (n not in around.blocks or n == around.head)):
            continue
        cost = sum(not i.idle for i in block.instructions)
        before, after = (min(costs) + cost for costs in zip(*ways, strict=True))
        best[n] = (inf, min(before, after)) if any(i.base in STORES for i in block.instructions) else (before, after)
        if around.head in block.after if around else block.last.base == "EXIT":
            ends.append(best[n])
    least = [min(costs) for costs in zip(*ends, strict=True)]
    return next((int(cost) for cost in least[::-1] if cost < inf), None)


def instructions_per_score(kernel: Function, scores: int) -> float | None:
    """`scores`: the number that a thread holds."""
    count = epilogue_instructions(kernel)
    return None if count is None else count / scores
