"""Barriers of a block: bar.sync, bar.arrive, bar.red. A warp arrives as a whole."""

from __future__ import annotations

import numpy as np

from .errors import BarrierError, UnknownInstruction
from .program import Program, Step, negated_source
from .syntax import Function, Instruction
from .warp import FULL, TOGETHER, WAIT_BEHIND


class BlockBarrier:
    """One of a block's 16 barriers. All warps that have not ended take part, or as many as `count` threads make."""

    def __init__(self) -> None:
        self.generation = 0
        self.count: int | None = None  # of the generation that is under way
        self.arrived: dict[int, tuple[str, tuple[int, int]]] = {}  # warp -> which instruction, its predicate's lanes
        self.results: dict[int, dict[str, int]] = {}  # of each generation

    def arrive(self, block, warp, how: str, lanes: tuple[int, int], count: int | None = None) -> int:
        """A warp arrives; lanes: those with a true predicate, those that take part. Returns the generation."""
        if warp.index in self.arrived:
            raise BarrierError(f"warp {warp.index} arrives twice at a barrier that the others have not reached")
        for other, (kind, _) in self.arrived.items():
            if kind != how:
                raise BarrierError(f"warp {warp.index} is at {how}, warp {other} at {kind} of the same barrier")
            if count != self.count:
                ours, theirs = (f"{n or block.threads} threads" for n in (count, self.count))
                raise BarrierError(f"warp {warp.index} expects {ours} at a barrier, warp {other} expects {theirs}")
        self.arrived[warp.index], self.count = (how, lanes), count
        generation = self.generation
        block.races.release(warp, self)
        self.complete(block)
        return generation

    def full(self, block) -> bool:
        if self.count is not None:
            return 32 * len(self.arrived) >= self.count
        return all(w.done or w.index in self.arrived for w in block.warps)

    def complete(self, block) -> None:
        """Lets all go on if none is missing."""
        if self.arrived and self.full(block):
            true = [true for _, (true, _) in self.arrived.values()]
            parts = [part for _, (_, part) in self.arrived.values()]
            self.results[self.generation] = {
                "or": any(true),
                "and": all(t == p for t, p in zip(true, parts, strict=True)),
                "popc": sum(t.bit_count() for t in true),
            }
            self.arrived = {}
            self.generation += 1
            block.races.pass_on(self)


def waits(w, barrier: BlockBarrier, generation: int, which: int) -> int | None:
    if barrier.generation != generation:
        w.block.races.acquire(w, barrier)
        return None

    def over() -> bool:
        if barrier.generation == generation:
            return False
        w.block.races.acquire(w, barrier)
        return True

    w.group.waiting = over
    w.group.reason = f"waits at barrier {which}"
    return WAIT_BEHIND


def counted(w, slot: int | None) -> int | None:
    """How many threads an instruction says that take part; None: all of the block."""
    if slot is None:
        return None
    count = int(lane_value(w, slot, "the barrier's count"))
    if count <= 0 or count % 32 or count > -(-w.block.threads // 32) * 32:
        raise BarrierError(f"a barrier of {count} threads, in a block of {w.block.threads}")
    return None if count == w.block.threads else count


def lane_value(w, slot: int, what: str) -> int:
    """What a register holds in the first active lane."""
    return w.defined(slot, what)[(w.mask & -w.mask).bit_length() - 1]


def bar_sync(program: Program, function: Function, one: Instruction) -> list[Step]:
    """bar.sync and bar.arrive, also as barrier.….aligned."""
    words = [word for word in one.modifiers if word != "cta"]
    if words not in ([["sync"], ["arrive"]] if one.base == "bar" else [["sync", "aligned"], ["arrive", "aligned"]]):
        raise UnknownInstruction(f"{one.opcode} is not known")
    number, *rest = (program.source(function, operand, "b32") for operand in one.operands)
    count, stays = (rest[0] if rest else None), words[0] == "sync"
    if len(rest) > 1 or (not stays and not rest):
        raise UnknownInstruction(f"{one.opcode} with {len(one.operands)} operands")

    def run(w):
        if not w.wanted(w.live):
            return TOGETHER
        which = int(lane_value(w, number, "the barrier"))
        barrier = w.block.barrier(which)
        generation = barrier.arrive(w.block, w, "bar.sync", (0, 0), counted(w, count))
        return waits(w, barrier, generation, which) if stays else None

    return [run]


def bar_red(program: Program, function: Function, one: Instruction) -> list[Step]:
    """bar.red.or.pred p, barrier, {count,} predicate: the second step writes the result."""
    words = [word for word in one.modifiers if word not in ("red", "aligned", "cta")]
    operation = words[0]
    kind = {"or": "pred", "and": "pred", "popc": "b32"}.get(operation)
    aligned = one.base == "bar" or "aligned" in one.modifiers
    if (
        not aligned
        or kind is None
        or words[1:] != [{"pred": "pred", "b32": "u32"}[kind]]
        or len(one.operands) not in (3, 4)
    ):
        raise UnknownInstruction(f"{one.opcode} is not known")
    to = program.target(function, one.operands[0])
    number, *rest = (program.source(function, operand, "b32") for operand in one.operands[1:-1])
    count = rest[0] if rest else None
    source, negated = negated_source(program, function, one.operands[-1])

    def arrive(w):
        if not w.wanted(w.live):
            return TOGETHER
        which = int(lane_value(w, number, "the barrier"))
        value = w.defined(source, "the predicate of a barrier")
        true = (~value if negated else value) & w.mask
        barrier = w.block.barrier(which)
        generation = barrier.arrive(w.block, w, one.opcode, (true, w.mask), counted(w, count))
        w.red = barrier, generation
        return waits(w, barrier, generation, which)

    def result(w):
        barrier, generation = w.red
        found = barrier.results[generation][operation]
        w.set(to, (FULL if found else 0) if kind == "pred" else np.full(32, found, np.uint32))

    return [arrive, result]


HANDLERS = {
    "bar.sync": bar_sync,
    "bar.arrive": bar_sync,
    "bar.cta.sync": bar_sync,
    "bar.cta.arrive": bar_sync,
    "barrier.sync": bar_sync,
    "barrier.arrive": bar_sync,
    "barrier.cta.sync": bar_sync,
    "barrier.cta.arrive": bar_sync,
    "bar.red": bar_red,
    "bar.cta.red": bar_red,
    "barrier.red": bar_red,
    "barrier.cta.red": bar_red,
}
