"""The instructions of mbarriers."""

from __future__ import annotations

import numpy as np

from .errors import BarrierError, UnknownInstruction
from .loads import address_slot, addresses_of
from .masks import to_bools
from .program import CTA_SHIFT, Program, Step
from .shared import Mbarrier, SharedMemory
from .syntax import Function, Immediate, Instruction, Register, Symbol
from .warp import WAIT

SCOPES = {"release", "acquire", "relaxed", "cta", "cluster"}
SPACES = {"shared", "shared::cta", "shared::cluster"}


def barrier_place(w, address: int) -> tuple[SharedMemory, int]:
    """The shared memory that an address (shared::cta or shared::cluster) lies in, and the address within it."""
    rank, inside = address >> CTA_SHIFT, address & ((1 << CTA_SHIFT) - 1)
    return w.block.cluster_shared(rank), inside


def barrier_at(w, address: int, what: str) -> Mbarrier:
    shared, inside = barrier_place(w, address)
    if not shared.alive:
        raise BarrierError(f"{what}: {shared} belongs to a block that has ended")
    barrier = shared.barrier(inside, what)
    w.block.races.ordered_behind_init(w, barrier)
    if shared is not w.block.shared:
        w.block.races.visits(w, shared)
    return barrier


def lanes_and_addresses(w, base: int, offset: int) -> list[tuple[int, int]]:
    addresses = addresses_of(w, base, offset)
    return [(int(lane), int(addresses[lane])) for lane in np.flatnonzero(to_bools(w.mask))]


def checked(one: Instruction, *more: str) -> None:
    unknown = set(one.modifiers) - SCOPES - SPACES - {"b64", *more}
    if unknown:
        raise UnknownInstruction(f"{one.opcode}: .{unknown.pop()} is not known")


def init(program: Program, function: Function, one: Instruction) -> list[Step]:
    checked(one, "init")
    memory = address_slot(program, function, one.operands[0])
    count = program.source(function, one.operands[1], "b32")

    def run(w):
        counts = w.defined(count, "the count of an mbarrier")
        for lane, address in lanes_and_addresses(w, *memory):
            w.block.races.initialised(w, w.block.shared.add_barrier(address, int(counts[lane])))

    return [run]


def inval(program: Program, function: Function, one: Instruction) -> list[Step]:
    checked(one, "inval")
    memory = address_slot(program, function, one.operands[0])

    def run(w):
        for _, address in lanes_and_addresses(w, *memory):
            w.block.shared.drop_barrier(address)

    return [run]


def arrive(program: Program, function: Function, one: Instruction) -> list[Step]:
    """mbarrier.arrive{.expect_tx} and mbarrier.expect_tx; the state that arrive returns must not be wanted."""
    checked(one, "arrive", "expect_tx")
    operands = list(one.operands)
    arrives, expects = "arrive" in one.modifiers, "expect_tx" in one.modifiers
    if arrives:
        if not (isinstance(operands[0], Symbol) and operands[0].name == "_"):
            raise UnknownInstruction(f"{one.opcode} that returns a state")
        operands = operands[1:]
    memory = address_slot(program, function, operands[0])
    amount = program.source(function, operands[1] if len(operands) > 1 else Immediate(1), "b32")

    def run(w):
        amounts = w.defined(amount, "the amount of an mbarrier's operation")
        for lane, address in lanes_and_addresses(w, *memory):
            barrier = barrier_at(w, address, one.opcode)
            w.block.races.release(w, barrier)
            if not arrives:
                barrier.expect(int(amounts[lane]))
            elif expects:
                barrier.arrive_expecting(int(amounts[lane]))
            else:
                barrier.arrive(int(amounts[lane]))

    return [run]


def wait(program: Program, function: Function, one: Instruction) -> list[Step]:
    """mbarrier.try_wait.parity and test_wait.parity: whether the phase of that parity has ended."""
    checked(one, "try_wait", "test_wait", "parity")
    if "parity" not in one.modifiers or len(one.operands) not in (3, 4):
        raise UnknownInstruction(f"{one.opcode} is not known")
    to = program.target(function, one.operands[0])
    memory = address_slot(program, function, one.operands[1])
    if not isinstance(one.operands[2], Register | Immediate):
        raise UnknownInstruction(f"{one.opcode} with a state")
    parity = program.source(function, one.operands[2], "b32")

    def run(w):
        parities = w.defined(parity, "the parity")
        waits = [
            (lane, barrier_at(w, address, one.opcode), int(parities[lane]))
            for lane, address in lanes_and_addresses(w, *memory)
        ]
        ended = [(lane, barrier) for lane, barrier, wanted in waits if barrier.ended(wanted)]
        if not ended and not w.block.schedule.gives_up():
            pairs = [(barrier, wanted) for _, barrier, wanted in waits]
            w.group.waiting = lambda: any(barrier.ended(wanted) for barrier, wanted in pairs)
            w.group.reason = lambda: f"waits at {pairs[0][0]} for parity {pairs[0][1]}"
            return WAIT
        for _, barrier in ended:
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
