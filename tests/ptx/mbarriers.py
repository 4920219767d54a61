"""The instructions of mbarriers."""

from __future__ import annotations

import numpy as np

from .errors import BarrierError, UnknownInstruction
from .loads import address_slot, addresses_of
from .masks import to_bools
from .program import CTA_SHIFT, SHARED_WINDOW, Program, Step
from .shared import Mbarrier, SharedMemory
from .syntax import Function, Immediate, Instruction, Symbol
from .warp import WAIT

SCOPES = {"release", "acquire", "relaxed", "cta", "cluster"}
SPACES = {"shared", "shared::cta", "shared::cluster"}
BYTES = np.arange(8)  # of an mbarrier


def barrier_place(w, address: int) -> tuple[SharedMemory, int]:
    """The shared memory that an address (shared::cta or shared::cluster) lies in, and the address within it."""
    rank, inside = address >> CTA_SHIFT, address & ((1 << CTA_SHIFT) - 1)
    return w.block.cluster_shared(rank), inside


def barrier_at(w, address: int, what: str) -> Mbarrier:
    """The mbarrier at an address; its init must come before."""
    shared, inside = barrier_place(w, address)
    if not shared.alive:
        raise BarrierError(f"{what}: {shared} belongs to a block that has ended")
    barrier = shared.barrier(inside, what)
    w.block.races.seen(w, shared, inside - shared.base + BYTES, False)
    if shared is not w.block.shared:
        w.block.races.visits(w, shared)
    return barrier


def lanes_and_addresses(w, base: int, offset: int, generic: bool = False) -> list[tuple[int, int]]:
    addresses = addresses_of(w, base, offset)
    if generic:
        addresses = addresses - SHARED_WINDOW
    return [(int(lane), int(addresses[lane])) for lane in np.flatnonzero(to_bools(w.mask))]


def checked(one: Instruction, *more: str) -> None:
    unknown = set(one.modifiers) - SCOPES - SPACES - {"b64", *more}
    if unknown:
        raise UnknownInstruction(f"{one.opcode}: .{unknown.pop()} is not known")


def init(program: Program, function: Function, one: Instruction) -> list[Step]:
    checked(one, "init")
    memory, generic = address_slot(program, function, one.operands[0]), not SPACES & set(one.modifiers)
    count = program.source(function, one.operands[1], "b32")

    def run(w):
        counts = w.defined(count, "the count of an mbarrier")
        for lane, address in lanes_and_addresses(w, *memory, generic):
            w.block.shared.add_barrier(address, int(counts[lane]))
            w.block.races.seen(w, w.block.shared, address - w.block.shared.base + BYTES, True)

    return [run]


def inval(program: Program, function: Function, one: Instruction) -> list[Step]:
    checked(one, "inval")
    memory, generic = address_slot(program, function, one.operands[0]), not SPACES & set(one.modifiers)

    def run(w):
        for _, address in lanes_and_addresses(w, *memory, generic):
            w.block.shared.drop_barrier(address)
            w.block.races.seen(w, w.block.shared, address - w.block.shared.base + BYTES, True)

    return [run]


def arrive(program: Program, function: Function, one: Instruction) -> list[Step]:
    """mbarrier.arrive{.expect_tx} and mbarrier.expect_tx. A state is here the number of the phase."""
    checked(one, "arrive", "expect_tx")
    operands, to = list(one.operands), None
    arrives, expects = "arrive" in one.modifiers, "expect_tx" in one.modifiers
    if arrives:
        first = operands.pop(0)
        if first != Symbol("_"):
            to = program.target(function, first)
    if to is not None and "shared::cluster" in one.modifiers:
        raise UnknownInstruction(f"{one.opcode} that returns a state")
    memory = address_slot(program, function, operands[0])
    amount = program.source(function, operands[1] if len(operands) > 1 else Immediate(1), "b32")
    generic = not SPACES & set(one.modifiers)
    releases = arrives and "relaxed" not in one.modifiers

    def run(w):
        amounts = w.defined(amount, "the amount of an mbarrier's operation")
        states = np.zeros(32, np.uint64)
        for lane, address in lanes_and_addresses(w, *memory, generic):
            barrier = barrier_at(w, address, one.opcode)
            states[lane] = barrier.phase
            if releases:
                w.block.races.release(w, barrier)
            if not arrives:
                barrier.expect(int(amounts[lane]))
            elif expects:
                barrier.arrive_expecting(int(amounts[lane]))
            else:
                barrier.arrive(int(amounts[lane]))
        if to is not None:
            w.set(to, states)

    return [run]


def wait(program: Program, function: Function, one: Instruction) -> list[Step]:
    """mbarrier.try_wait and test_wait, by parity or by state: whether the phase has ended. Only try_wait waits."""
    checked(one, "try_wait", "test_wait", "parity")
    patient, by_parity = "try_wait" in one.modifiers, "parity" in one.modifiers
    if len(one.operands) not in ((3, 4) if patient else (3,)):
        raise UnknownInstruction(f"{one.opcode} is not known")
    to = program.target(function, one.operands[0])
    memory = address_slot(program, function, one.operands[1])
    phase = program.source(function, one.operands[2], "b32" if by_parity else "b64")
    generic, acquires = not SPACES & set(one.modifiers), "relaxed" not in one.modifiers

    def over(barrier: Mbarrier, wanted: int) -> bool:
        return barrier.ended(wanted) if by_parity else barrier.beyond(wanted)

    def run(w):
        phases = w.defined(phase, "the parity" if by_parity else "the state")
        places = lanes_and_addresses(w, *memory, generic)
        barriers = {address: barrier_at(w, address, one.opcode) for address in {address for _, address in places}}
        asked = [(lane, barriers[address], int(phases[lane])) for lane, address in places]
        ended = [(lane, barrier) for lane, barrier, wanted in asked if over(barrier, wanted)]
        expired, w.group.expired, w.group.limited = w.group.expired, False, False
        if not ended and patient and not expired and not w.block.schedule.gives_up():
            pairs = {(barrier, wanted) for _, barrier, wanted in asked}
            w.group.waiting = lambda: any(over(barrier, wanted) for barrier, wanted in pairs)
            w.group.limited = True
            name = "parity" if by_parity else "state"
            w.group.reason = lambda: f"waits at {asked[0][1]} for {name} {asked[0][2]}"
            return WAIT
        if acquires:
            for barrier in {barrier for _, barrier in ended}:
                w.block.races.acquire(w, barrier)
        w.set(to, sum(1 << lane for lane, _ in ended))
        return None

    return [run]


def mbarrier(program: Program, function: Function, one: Instruction) -> list[Step]:
    kinds = {"init": init, "inval": inval, "arrive": arrive, "expect_tx": arrive, "try_wait": wait, "test_wait": wait}
    if one.modifiers[0] not in kinds:
        raise UnknownInstruction(f"{one.opcode} is not known")
    return kinds[one.modifiers[0]](program, function, one)


HANDLERS = {"mbarrier": mbarrier}
