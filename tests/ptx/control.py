"""Branches, calls, returns."""

from __future__ import annotations

from .errors import UnknownInstruction
from .linkage import callee
from .program import Program, Step, kind_of
from .syntax import SIZES, Function, Group, Instruction, Memory, Register, Symbol, Vector
from .warp import MOVED
from .warp import Group as Lanes


def chosen_lanes(w, guard: int | None, negated: bool) -> int:
    """The lanes of the current group whose guard holds."""
    if guard is None:
        return w.mask
    if w.poison[guard] & w.mask:
        w.complain(w.poison[guard], "the guard of a branch")
    return (~w.registers[guard] if negated else w.registers[guard]) & w.mask


def guard_of(program: Program, function: Function, one: Instruction) -> int | None:
    return None if one.guard is None else program.register(function, one.guard.name)


def bra(program: Program, function: Function, one: Instruction) -> list[Step]:
    guard, negated, place = guard_of(program, function, one), one.negated, [0]
    (label,) = one.operands

    def run(w):
        return w.branch(chosen_lanes(w, guard, negated), place[0])

    def link(starts):
        place[0] = starts[f"{function.name}:{label.name}"]

    run.link = link
    return [run]


def ret(program: Program, function: Function, one: Instruction) -> list[Step]:
    """From a function back to its caller; from the kernel, or by exit, it ends the lanes."""
    guard, negated, ends = guard_of(program, function, one), one.negated, one.base == "exit"

    def run(w):
        taken = chosen_lanes(w, guard, negated)
        stack = w.group.stack
        if not taken:
            return None
        if ends or not stack:
            return w.leave(taken)
        if taken == w.group.mask:
            w.group.stack = stack[:-1]
            return stack[-1]
        w.others.append(Lanes(stack[-1], taken, stack[:-1]))
        w.group.mask &= ~taken
        w.group.pc += 1
        return MOVED

    return [run]


def call(program: Program, function: Function, one: Instruction) -> list[Step]:
    """Copies the arguments, goes to the function; a second step copies the results behind it."""
    called = callee(program.module, one)
    groups = [o for o in one.operands if isinstance(o, Group)]
    results = groups[0].parts if called.results else ()
    arguments = groups[-1].parts if called.parameters else ()
    if len(results) != len(called.results) or len(arguments) != len(called.parameters):
        raise UnknownInstruction(f"{called.name} has other parameters than the call")
    place = [0]
    mine, its = function.name, called.name
    there = [(f"{mine}/{a.name}", f"{its}/{b.name}") for a, b in zip(arguments, called.parameters, strict=True)]
    back = [(f"{its}/{b.name}", f"{mine}/{a.name}") for a, b in zip(results, called.results, strict=True)]
    moves: list[list[tuple[int, int]]] = [[], []]

    def go(w):
        if w.group.pc + 1 in w.group.stack:
            raise UnknownInstruction(f"{its} calls itself, which is not known")
        for from_, to in moves[0]:
            w.set(to, w.registers[from_], w.poison[from_])
        w.group.stack = (*w.group.stack, w.group.pc + 1)
        return place[0]

    def come(w):
        for from_, to in moves[1]:
            w.set(to, w.registers[from_], w.poison[from_])

    def link(starts):
        place[0] = starts[called.name]
        for pairs, found in zip((there, back), moves, strict=True):
            found += [
                (at, program.parameter_slot(to, key[2], key[3]))
                for from_, to in pairs
                for key, at in list(program.slots.items())
                if key[:2] == ("parameter", from_)
            ]

    go.link = link
    return [go, come]


def parameter_access(program: Program, function: Function, one: Instruction) -> list[Step] | None:
    """ld.param and st.param of a call's parameters, which are registers here; None for a kernel's parameters."""
    loads = one.base == "ld"
    registers, memory = (one.operands if loads else one.operands[::-1])[:2]
    if loads and function is program.kernel and isinstance(memory, Memory) and isinstance(memory.base, Register):
        return None
    if not isinstance(memory, Memory) or not isinstance(memory.base, Symbol):
        raise UnknownInstruction(f"{one.opcode} at an address that is no name")
    if memory.base.name in program.parameters and function is program.kernel:
        return None
    type_name = one.modifiers[-1]
    width, kind = SIZES[type_name], kind_of(type_name)
    if width == 1:
        raise UnknownInstruction("parameters of one byte are not known")
    parts = registers.parts if isinstance(registers, Vector) else (registers,)
    moves = []
    for i, part in enumerate(parts):
        inside = program.parameter_slot(f"{function.name}/{memory.base.name}", memory.offset + i * width, kind)
        if loads:
            moves.append((inside, program.target(function, part)))
        else:
            moves.append((program.source(function, part, kind), inside))

    def run(w):
        for from_, to in moves:
            w.set(to, w.registers[from_], w.poison[from_])

    return [run]


HANDLERS = {"bra": bra, "ret": ret, "exit": ret, "call": call}
