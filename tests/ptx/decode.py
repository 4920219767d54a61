"""From an instruction to its step: which part of the machine executes it."""

from __future__ import annotations

import numpy as np

from . import (
    alu,
    atomics,
    block_barriers,
    bulk,
    control,
    copies,
    loads,
    mbarriers,
    members,
    synchronise,
    warpwide,
    wgmma,
)
from .errors import UnknownInstruction
from .masks import to_bools
from .program import Program, Step, negated_source
from .syntax import Function, Immediate, Instruction, Negated, Symbol, Vector
from .warp import FULL

HANDLERS = {
    **control.HANDLERS,
    **loads.HANDLERS,
    **atomics.HANDLERS,
    **copies.HANDLERS,
    **bulk.HANDLERS,
    **block_barriers.HANDLERS,
    **synchronise.HANDLERS,
    **mbarriers.HANDLERS,
    **warpwide.HANDLERS,
    **members.HANDLERS,
    **wgmma.HANDLERS,
}


def decode(program: Program, function: Function, one: Instruction) -> list[Step]:
    """The steps of an instruction: one, but two for a call."""
    handler = None
    parts = one.opcode.split(".")
    for count in range(len(parts), 0, -1):
        handler = HANDLERS.get(".".join(parts[:count]))
        if handler:
            break
    steps = handler(program, function, one) if handler else [arithmetic(program, function, one)]
    if one.guard is None or one.base in ("bra", "ret", "exit"):
        return steps
    guard = program.register(function, one.guard.name)
    return [guarded(step, guard, one.negated) for step in steps]


def guarded(step: Step, guard: int, negated: bool) -> Step:
    """The step for the lanes whose guard holds."""

    def run(w):
        mask = w.mask
        if w.poison[guard] & mask:
            w.complain(w.poison[guard], "the guard")
        chosen = (~w.registers[guard] if negated else w.registers[guard]) & mask
        if not chosen:
            return None
        w.mask = chosen
        after = step(w)
        w.mask = mask
        return after

    if hasattr(step, "link"):
        raise UnknownInstruction("a guarded call is not known")
    return run


def arithmetic(program: Program, function: Function, one: Instruction) -> Step:
    if one.base == "mov":
        if isinstance(one.operands[1], Vector):
            return pack(program, function, one)
        if isinstance(one.operands[0], Vector):
            return unpack(program, function, one)
    operation = alu.operation(one.opcode)
    if operation is None:
        raise UnknownInstruction(f"{one.opcode} is not known")
    if one.base == "lop3":
        return logic(program, function, one, operation.function)
    if len(operation.sources) != len(one.operands) - 1:
        raise UnknownInstruction(f"{one.opcode} with {len(one.operands)} operands is not known")
    to = program.target(function, one.operands[0])
    sources, negations = [], []
    for operand, kind in zip(one.operands[1:], operation.sources, strict=True):
        slot, negated = negated_source(program, function, operand) if kind == "pred" else (None, False)
        sources.append(slot if slot is not None else program.source(function, operand, kind))
        negations.append(negated)
        if isinstance(operand, Negated) and kind != "pred":
            raise UnknownInstruction(f"{operand} cannot be negated")
    if one.base == "selp" and not any(negations):
        return select(to, *sources)
    if any(negations):
        return with_negations(operation.function, to, sources, negations)
    if one.base == "mov" and operation.sources == (operation.result,):
        return one_source(lambda a: a, to, *sources)  # arrays are never changed in place
    make = {1: one_source, 2: two_sources, 3: three_sources}.get(len(sources))
    return make(operation.function, to, *sources) if make else many_sources(operation.function, to, sources)


def logic(program: Program, function: Function, one: Instruction, f) -> Step:
    """lop3, whose last operand is a table and must be a literal."""
    *registers, table = one.operands
    if not isinstance(table, Immediate) or len(registers) != 4:
        raise UnknownInstruction(f"{one.opcode} without a literal table")
    to, *sources = registers
    a, b, c = (program.source(function, operand, "b32") for operand in sources)
    lookup = np.uint32(table.value & 0xFF)
    return three_sources(lambda x, y, z: f(x, y, z, lookup), program.target(function, to), a, b, c)


def one_source(f, to: int, a: int) -> Step:
    def run(w):
        p = w.poison[a]
        if p > FULL:
            w.check(p)
        value = f(w.registers[a])
        if w.mask == FULL:
            w.registers[to], w.poison[to] = value, p
        else:
            w.set(to, value, p)

    return run


def two_sources(f, to: int, a: int, b: int) -> Step:
    def run(w):
        registers, poison = w.registers, w.poison
        p = poison[a] | poison[b]
        if p > FULL:
            w.check(p)
        value = f(registers[a], registers[b])
        if w.mask == FULL:
            registers[to], poison[to] = value, p
        else:
            w.set(to, value, p)

    return run


def three_sources(f, to: int, a: int, b: int, c: int) -> Step:
    def run(w):
        registers, poison = w.registers, w.poison
        p = poison[a] | poison[b] | poison[c]
        if p > FULL:
            w.check(p)
        value = f(registers[a], registers[b], registers[c])
        if w.mask == FULL:
            registers[to], poison[to] = value, p
        else:
            w.set(to, value, p)

    return run


def many_sources(f, to: int, sources: list[int]) -> Step:
    def run(w):
        p = 0
        for one in sources:
            p |= w.poison[one]
        w.check(p)
        w.set(to, f(*(w.registers[one] for one in sources)), p)

    return run


def with_negations(f, to: int, sources: list[int], negations: list[bool]) -> Step:
    def run(w):
        p, values = 0, []
        for one, negated in zip(sources, negations, strict=True):
            p |= w.poison[one]
            values.append(~w.registers[one] & FULL if negated else w.registers[one])
        w.check(p)
        w.set(to, f(*values), p)

    return run


def select(to: int, a: int, b: int, chooser: int) -> Step:
    """selp: what is not chosen may be poison."""

    def run(w):
        registers, poison = w.registers, w.poison
        mask = registers[chooser]
        pa, pb = poison[a], poison[b]
        if pa > FULL or pb > FULL:
            w.check(pa | pb)
        p = (pa & mask) | (pb & ~mask) | poison[chooser]
        x, y = registers[a], registers[b]
        if mask == FULL:
            value = x
        elif mask == 0:
            value = y
        else:
            value = np.where(to_bools(mask), x, y)
        if w.mask == FULL:
            registers[to], poison[to] = value, p
        else:
            w.set(to, value, p)

    return run


def packing(one: Instruction, parts: tuple) -> tuple[int, int, type, np.unsignedinteger]:
    """Of mov with a vector: bits of the whole register and of a part, the whole's dtype, and a part's mask in it."""
    whole = int(one.modifiers[0][1:])
    bits, dtype = whole // len(parts), {16: np.uint16, 32: np.uint32, 64: np.uint64}[whole]
    return whole, bits, dtype, dtype((1 << bits) - 1)


def pack(program: Program, function: Function, one: Instruction) -> Step:
    """mov.b64 %rd, {%r1, %r2}: the first part is the lowest."""
    parts = one.operands[1].parts
    _, bits, dtype, low = packing(one, parts)
    kind = {8: "b16", 16: "b16", 32: "b32"}[bits]
    sources = [program.source(function, part, kind) for part in parts]
    to = program.target(function, one.operands[0])

    def run(w):
        value, p = None, 0
        for i, at in enumerate(sources):
            p |= w.poison[at]
            piece = (w.registers[at].astype(dtype) & low) << dtype(i * bits)
            value = piece if value is None else value | piece
        w.check(p)
        w.set(to, value, p)

    return run


def unpack(program: Program, function: Function, one: Instruction) -> Step:
    """mov.b64 {%r1, %r2}, %rd"""
    parts = one.operands[0].parts
    whole, bits, dtype, low = packing(one, parts)
    source = program.source(function, one.operands[1], f"b{whole}")
    targets = [None if part == Symbol("_") else program.target(function, part) for part in parts]
    narrow = {8: np.uint16, 16: np.uint16, 32: np.uint32}[bits]

    def run(w):
        p, value = w.poison[source], w.registers[source]
        w.check(p)
        for i, to in enumerate(targets):
            if to is not None:
                w.set(to, ((value >> dtype(i * bits)) & low).astype(narrow), p)

    return run
