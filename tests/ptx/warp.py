"""A warp: 32 lanes with registers, the poison of each register, and groups of lanes that are at different places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import Divergence, InFlightError, MemoryFault, PoisonError
from .masks import to_bools
from .memory import Storage
from .names import lanes

if TYPE_CHECKING:
    from .block import Block

FULL = 0xFFFFFFFF
WRITTEN_LATER = 1 << 32  # beside the poison of a register: an asynchronous product writes it
# What an instruction returns beside the number of the next one, or None for the one behind it.
WAIT, WAIT_BEHIND, TOGETHER, MOVED = -1, -2, -3, -4


class Group:
    """Lanes of a warp at one place. `stack` holds the calls that they are in."""

    __slots__ = ("at", "expired", "limited", "mask", "pc", "reason", "stack", "together", "waiting")

    def __init__(self, pc: int, mask: int, stack: tuple[int, ...] = ()) -> None:
        self.pc, self.mask, self.stack = pc, mask, stack
        self.at = pc  # the instruction that it waits at
        self.waiting: Callable[[], bool] | None = None  # it goes on when this is true
        self.reason: str | Callable[[], str] = ""  # of the waiting, in words
        self.together = False  # it is at an instruction that wants other lanes too
        self.limited = self.expired = False  # its waiting may give up; has given up


class Warp:
    """`registers[i]` is an array (32,) or, of a predicate, a mask; arrays are never changed in place.

    `poison[i]` is the mask of the lanes that do not hold a defined value.
    """

    def __init__(self, block: Block, index: int, live: int, registers: list[Any], poison: list[int]) -> None:
        self.block, self.index, self.live = block, index, live
        self.registers, self.poison = registers, poison
        self.group = Group(block.program.entry, live)
        self.others: list[Group] = []
        self.mask = live
        self.copies = None  # of cp.async, made when the first one begins
        self.products = None  # of wgmma
        self.barrier_turns = 0
        self.memory: Storage | None = None  # local
        self.red: tuple | None = None  # barrier and generation of a bar.red that is not through
        self.undefined = None  # where it last loaded something undefined, and from what storage; for messages

    # Memory

    def local(self, addresses: np.ndarray) -> tuple[Storage, None, np.ndarray]:
        """The local memory of all lanes as one storage, and where in it the addresses of the active lanes lie."""
        size = self.block.program.local_bytes
        if (addresses < 0).any() or (addresses >= size).any():
            raise MemoryFault(f"an address is outside of a thread's {size} bytes of local memory")
        stride = -(-size // 16) * 16
        if self.memory is None:
            self.memory = Storage("local memory", 0, 32 * stride)
            self.memory.keeps_poison = True
        return self.memory, None, addresses + np.flatnonzero(to_bools(self.mask)) * stride

    # Registers

    def set(self, at: int, value: Any, poison: int = 0) -> None:
        """Writes the active lanes of a register."""
        mask = self.mask
        if mask == FULL:
            self.registers[at], self.poison[at] = value, poison
            return
        before, undefined, others = self.registers[at], self.poison[at], FULL & ~mask
        if undefined > FULL:
            raise InFlightError("it writes a register that an asynchronous product still writes")
        self.poison[at] = (poison & mask) | (undefined & others)
        if undefined & others == others:
            self.registers[at] = value  # nothing that is defined is lost
        elif isinstance(before, int):
            self.registers[at] = (value & mask) | (before & ~mask)
        else:
            self.registers[at] = np.where(to_bools(mask), value, before)

    def defined(self, at: int, what: str) -> Any:
        """A register whose active lanes must not be poison."""
        poison = self.poison[at]
        if poison & self.mask or poison > FULL:
            self.complain(poison, what)
        return self.registers[at]

    def complain(self, poison: int, what: str) -> None:
        if poison > FULL:
            raise InFlightError(f"{what} is a register that an asynchronous product still writes")
        raise PoisonError(f"{what} is undefined in {lanes(poison & self.mask)}")

    def check(self, poison: int) -> None:
        """Poison may be passed on, but a register that a product writes may not even be read."""
        if poison > FULL:
            raise InFlightError("it reads a register that an asynchronous product still writes")

    # Control flow

    @property
    def done(self) -> bool:
        return self.live == 0

    def leave(self, mask: int) -> int:
        """The lanes end."""
        self.live &= ~mask
        self.group.mask &= ~mask
        if self.group.mask:
            self.group.pc += 1
        for one in self.others:
            one.together = False  # it may wait for no one else
        return MOVED

    def branch(self, taken: int, target: int) -> int | None:
        """Lanes `taken` of the current group go to `target`, the others to the next instruction."""
        group = self.group
        if taken == group.mask:
            return target
        if taken == 0:
            return None
        self.others.append(Group(target, taken, group.stack))
        group.mask &= ~taken
        group.pc += 1
        return MOVED

    def settle(self) -> None:
        """Groups at the same place become one; empty ones vanish."""
        places: dict[tuple[tuple[int, ...], int], Group] = {}
        for one in [self.group, *self.others]:
            if not one.mask:
                continue
            place = (one.stack, one.pc)
            if place in places and one.waiting is None and places[place].waiting is None:
                places[place].mask |= one.mask
                places[place].together = False
            else:
                places[place if place not in places else (one.stack, one.pc, id(one))] = one
        groups = list(places.values())
        self.group, self.others = (groups[0], groups[1:]) if groups else (self.group, [])

    def ready(self) -> bool:
        """Whether a group can go on."""
        for one in (self.group, *self.others):
            if one.waiting is not None and one.waiting():
                one.waiting = None
            if one.mask and one.waiting is None and not one.together:
                return True
        return False

    def choose(self, choose: Callable[[list[Group]], Group]) -> bool:
        """Makes a group that can go on the current one."""
        able = []
        for one in (self.group, *self.others):
            if one.waiting is not None and one.waiting():
                one.waiting = None
            if one.mask and one.waiting is None and not one.together:
                able.append(one)
        if not able:
            return False
        chosen = able[0] if len(able) == 1 else choose(able)
        if chosen is not self.group:
            self.others.remove(chosen)
            self.others.append(self.group)
            self.group = chosen
        return True

    def run(self, budget: int, choose: Callable[[list[Group]], Group]) -> int:
        """Executes at most `budget` instructions; returns how many."""
        code, done = self.block.program.code, 0
        while done < budget and self.live:
            if self.others or not self.group.mask:
                self.settle()
            if not self.choose(choose):
                break
            group = self.group
            pc, self.mask, limit = group.pc, group.mask, self.meeting(group)
            while done < budget:
                done += 1
                after = code[pc](self)
                if after is None:
                    pc += 1
                elif after >= 0:
                    group.pc = pc = after
                    if self.others:  # it may meet others there
                        break
                else:
                    self.stop(group, pc, after)
                    break
                group.pc = pc
                if pc >= limit:
                    break
        return done

    def meeting(self, group: Group) -> int:
        """How far a group may go before it can meet another one, if it goes straight on."""
        if not self.others:
            return len(self.block.program.code)
        ahead = min((one.pc for one in self.others if one.stack == group.stack), default=group.pc)
        return ahead if group.pc < ahead else group.pc

    def stop(self, group: Group, pc: int, why: int) -> None:
        group.at = pc
        if why == WAIT_BEHIND:
            group.pc = pc + 1
        elif why == TOGETHER:
            group.together = True
            self.gather(pc)

    def gather(self, pc: int) -> None:
        """A group waits for others of the warp; complains if none of them can ever come."""
        groups = [one for one in (self.group, *self.others) if one.mask]
        if all(one.together for one in groups):
            places = ", ".join(f"{lanes(one.mask)} at line {self.block.program.line(one.pc)}" for one in groups)
            raise Divergence(f"lanes must execute this together, and the others do not come: {places}")

    def wanted(self, members: int) -> bool:
        """Whether all members are here, for instructions that lanes of a warp execute together."""
        if self.mask == members:
            return True
        if members & ~self.live:
            raise Divergence(f"the instruction wants {lanes(members & ~self.live)}, which have ended")
        if self.mask & ~members:
            raise Divergence(f"not among its members: {lanes(self.mask & ~members)}")
        return False
