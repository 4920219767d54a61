"""cp.async: copies from global to shared memory that a thread waits for by groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import PoisonError, UnknownInstruction
from .loads import CACHING, address_slot, addresses_of
from .masks import to_bools
from .memory import Storage
from .program import Program, Step
from .shared import SharedMemory
from .syntax import Function, Immediate, Instruction

NOT_COMMITTED = np.iinfo(np.int64).max


@dataclass(eq=False)
class Copy:
    """One instruction's copies: those of some lanes, each of `size` bytes."""

    lanes: np.ndarray  # (k,) which lanes
    to: np.ndarray  # (k, size) offsets in the block's shared memory
    source: Storage | None  # None: zeros arrive
    from_: np.ndarray  # (k, size) offsets in the source
    group: np.ndarray  # (k,) of each lane; NOT_COMMITTED before commit_group
    landed: np.ndarray  # (k,) whether it has arrived

    @classmethod
    def of(cls, lanes: np.ndarray, to: np.ndarray, source: Storage | None, from_: np.ndarray) -> Copy:
        """A copy that begins."""
        return cls(lanes, to, source, from_, np.full(len(lanes), NOT_COMMITTED), np.zeros(len(lanes), bool))

    def keep(self, left: np.ndarray) -> None:
        self.lanes, self.to, self.from_ = self.lanes[left], self.to[left], self.from_[left]
        self.group, self.landed = self.group[left], self.landed[left]


class Copies:
    """The copies of a warp that are under way. Each lane counts its own groups."""

    def __init__(self, w) -> None:
        self.shared: SharedMemory = w.block.shared
        self.publish = lambda offsets: w.block.races.publish(w, self.shared, offsets)
        self.committed = np.zeros(32, np.int64)
        self.pending: list[Copy] = []

    def begin(self, copy: Copy) -> None:
        self.shared.claim(copy.to)
        self.pending.append(copy)

    def commit(self, mask: int) -> None:
        lanes = to_bools(mask)
        for copy in self.pending:
            mine = lanes[copy.lanes] & (copy.group == NOT_COMMITTED)
            copy.group[mine] = self.committed[copy.lanes[mine]]
        self.committed[lanes] += 1

    def wait(self, mask: int, left: int, uncommitted_too: bool = False) -> None:
        """Completes what the lanes must have: all but their `left` latest groups."""
        lanes = to_bools(mask)
        for copy in self.pending:
            due = lanes[copy.lanes] & ((copy.group < self.committed[copy.lanes] - left) | uncommitted_too)
            if due.any():
                self.land(copy, due)
                self.publish(copy.to[due])
                copy.keep(~due)
        self.pending = [copy for copy in self.pending if len(copy.lanes)]

    def land(self, copy: Copy, due: np.ndarray) -> None:
        """The copies of some lanes arrive."""
        due = due & ~copy.landed
        if due.any():
            copy.landed |= due
            arrives = np.uint8(0) if copy.source is None else copy.source.data[copy.from_[due]]
            self.shared.arrive(copy.to[due], arrives)

    def complete_some(self, schedule) -> None:
        """Some copies arrive early."""
        if self.pending:
            copy = schedule.choice(self.pending)
            self.land(copy, np.array([schedule.chance(0.5) for _ in copy.lanes], bool))


def copies_of(w) -> Copies:
    if w.copies is None:
        w.copies = Copies(w)
    return w.copies


def begin(program: Program, function: Function, one: Instruction) -> list[Step]:
    """cp.async.ca.shared.global [to], [from], size {, source size}"""
    words = set(one.modifiers) - {"async", "ca", "cg", "shared", "shared::cta", "global"} - CACHING
    if words or len(one.operands) not in (3, 4):
        raise UnknownInstruction(f"{one.opcode} is not known")
    to, from_ = (address_slot(program, function, memory) for memory in one.operands[:2])
    size = one.operands[2].value
    given = one.operands[3] if len(one.operands) == 4 else Immediate(size)
    source_size = program.source(function, given, "b32")
    if size not in (4, 8, 16) or ("cg" in one.modifiers and size != 16):
        raise UnknownInstruction(f"a copy of {size} bytes")
    bytes_ = np.arange(size)

    def run(w):
        into, source = addresses_of(w, *to), addresses_of(w, *from_)
        lengths = w.defined(source_size, "the size of a copy")
        lanes = np.flatnonzero(to_bools(w.mask))
        if not np.isin(lengths[lanes], (0, size)).all():
            raise UnknownInstruction("a copy of a part, filled up with zeros")
        shared = w.block.shared
        places = shared.places(into[lanes], size)[:, None] + bytes_
        w.block.races.overwrites(w, shared, places)
        empty = lengths[lanes] == 0
        if empty.any():  # zeros arrive, and the source is not looked at
            copies_of(w).begin(Copy.of(lanes[empty], places[empty], None, places[empty]))
            lanes, places = lanes[~empty], places[~empty]
        for storage, some in w.block.memory.parts(source[lanes]) if len(lanes) else ():
            some = slice(None) if some is None else some
            from_bytes = storage.places(source[lanes][some], size)[:, None] + bytes_
            if storage.state[from_bytes].any():
                raise PoisonError(f"it copies from {storage}, which was not written there")
            copies_of(w).begin(Copy.of(lanes[some].copy(), places[some], storage, from_bytes))

    return [run]


def commit(program: Program, function: Function, one: Instruction) -> list[Step]:
    return [lambda w: copies_of(w).commit(w.mask)]


def wait_group(program: Program, function: Function, one: Instruction) -> list[Step]:
    left = one.operands[0].value
    return [lambda w: copies_of(w).wait(w.mask, left)]


def wait_all(program: Program, function: Function, one: Instruction) -> list[Step]:
    return [lambda w: copies_of(w).wait(w.mask, 0, True)]


def unknown(program: Program, function: Function, one: Instruction) -> list[Step]:
    raise UnknownInstruction(f"{one.opcode} is not known")


HANDLERS = {
    "cp.async": begin,
    "cp.async.commit_group": commit,
    "cp.async.wait_group": wait_group,
    "cp.async.wait_all": wait_all,
    "cp.async.mbarrier": unknown,
    "cp": unknown,
}
