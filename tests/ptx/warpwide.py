"""Instructions of all lanes of a warp: shuffles, votes, reductions, matrices in fragments, mma."""

from __future__ import annotations

import re
from functools import reduce

import numpy as np

from . import layouts, products
from .errors import UnknownInstruction
from .loads import address_slot
from .masks import to_bools, to_mask
from .members import by_members
from .program import Program, Step, negated_source
from .syntax import Function, Instruction, Symbol, Vector
from .warp import FULL, TOGETHER

LANES = np.arange(32)
ALL = FULL


def shuffle_sources(mode: str, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From which lane each lane reads, and whether that is in its segment."""
    lanes, segment, clamp = LANES, (c >> 8) & 31, c & 31
    low = lanes & segment
    high = low | (clamp & ~segment)
    step = b & 31
    if mode == "up":
        source = lanes - step
        inside = source >= high
    else:
        source = {"down": lanes + step, "bfly": lanes ^ step, "idx": low | (step & ~segment)}[mode]
        inside = source <= high
    return np.where(inside, source, lanes), inside


def shfl(program: Program, function: Function, one: Instruction) -> list[Step]:
    sync, mode, kind = one.modifiers
    if sync != "sync" or kind != "b32" or mode not in ("up", "down", "bfly", "idx"):
        raise UnknownInstruction(f"{one.opcode} is not known")
    target = one.operands[0]
    to, valid = target.parts if isinstance(target, Vector) else (target, None)
    to = program.target(function, to)
    valid = None if valid is None else program.target(function, valid)
    value, lane, clamp, members = (program.source(function, o, "b32") for o in one.operands[1:])

    known: list = [None, None, ()]  # the last operands, and the lanes that they mean

    def act(w, wanted: int) -> None:
        b, c = (w.defined(slot, "an operand of shfl") for slot in (lane, clamp))
        if b is not known[0] or c is not known[1]:
            known[:] = b, c, shuffle_sources(mode, b.astype(np.int64), c.astype(np.int64))
        source, inside = known[2]
        undefined, poison = w.poison[value], 0
        w.check(undefined)
        if undefined or wanted != ALL:
            bad = to_bools((undefined | ~wanted) & ALL)
            poison = to_mask(bad[source])
        w.set(to, w.registers[value][source], poison)
        if valid is not None:
            w.set(valid, to_mask(inside))

    return [by_members(members, act)]


def vote(program: Program, function: Function, one: Instruction) -> list[Step]:
    sync, mode, kind = one.modifiers
    if sync != "sync" or (mode, kind) not in (("ballot", "b32"), ("any", "pred"), ("all", "pred"), ("uni", "pred")):
        raise UnknownInstruction(f"{one.opcode} is not known")
    to = program.target(function, one.operands[0])
    source, negated = negated_source(program, function, one.operands[1])
    members = program.source(function, one.operands[2], "b32")

    def act(w, wanted: int) -> None:
        value = w.defined(source, "what is voted on")
        true = (~value if negated else value) & wanted
        if mode == "ballot":
            w.set(to, np.full(32, true, np.uint32))
        else:
            result = {"any": true != 0, "all": true == wanted, "uni": true in (0, wanted)}[mode]
            w.set(to, ALL if result else 0)

    return [by_members(members, act)]


def redux(program: Program, function: Function, one: Instruction) -> list[Step]:
    sync, operation, kind = one.modifiers
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    if sync != "sync" or operation not in functions or kind not in ("s32", "u32", "b32"):
        raise UnknownInstruction(f"{one.opcode} is not known")
    dtype = np.int32 if kind == "s32" else np.uint32
    to = program.target(function, one.operands[0])
    source, members = (program.source(function, o, "b32") for o in one.operands[1:])

    def act(w, wanted: int) -> None:
        values = w.defined(source, "what is reduced")[to_bools(wanted)].view(dtype)
        result = reduce(functions[operation], values)
        w.set(to, np.full(32, result, dtype).view(np.uint32))

    return [by_members(members, act)]


def elect(program: Program, function: Function, one: Instruction) -> list[Step]:
    """elect.sync lane|p, members: one lane, the same for the same members."""
    lane, chosen = one.operands[0].parts
    lane = None if lane == Symbol("_") else program.target(function, lane)
    chosen = program.target(function, chosen)
    members = program.source(function, one.operands[1], "b32")

    def act(w, wanted: int) -> None:
        leader = w.block.schedule.leader(wanted)
        w.set(chosen, 1 << leader)
        if lane is not None:
            w.set(lane, np.full(32, leader, np.uint32))

    return [by_members(members, act)]


def spelled_matrix(one: Instruction) -> tuple[int, bool]:
    """How many 8 by 8 matrices an ldmatrix or stmatrix moves, and whether transposed."""
    match = re.fullmatch(r"(?:ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", one.opcode)
    if not match:
        raise UnknownInstruction(f"{one.opcode} is not known")
    return int(match[1]), match[2] is not None


def matrix_rows(w, memory: tuple[int, int], count: int) -> np.ndarray:
    """The addresses of the rows: (matrices, 8). Lanes 8 i to 8 i + 7 give those of matrix i."""
    addresses = w.registers[memory[0]].astype(np.int64) + memory[1]
    lanes = layouts.address_lanes(count)
    undefined = w.poison[memory[0]]
    if undefined > FULL or undefined & to_mask(np.isin(LANES, lanes)):
        w.complain(undefined, "the address")
    return addresses[lanes]


def ldmatrix(program: Program, function: Function, one: Instruction) -> list[Step]:
    count, transposed = spelled_matrix(one)
    targets = [program.target(function, part) for part in parts_of(one.operands[0])]
    memory = address_slot(program, function, one.operands[1])
    rows, columns = layouts.matrix_8x8(transposed=transposed)

    def run(w):
        if not w.wanted(ALL):
            return TOGETHER
        shared, at = w.block.shared, matrix_rows(w, memory, count)
        shared.places(at.reshape(-1), 16)
        w.block.loads(w, [(shared, None, at.reshape(-1))], 16)
        words, poison = shared.load(at.reshape(-1), 2, 8)
        elements = np.stack(words, -1).reshape(count, 8, 8)
        undefined = None if poison is None else np.stack(poison, -1).reshape(count, 8, 8)
        for i, to in enumerate(targets):
            pair = np.ascontiguousarray(elements[i][rows, columns])
            wrong = 0 if undefined is None else to_mask(undefined[i][rows, columns].any(-1))
            w.set(to, pair.view(np.uint32)[:, 0], wrong)
        return None

    return [run]


def stmatrix(program: Program, function: Function, one: Instruction) -> list[Step]:
    from .loads import store_part

    count, transposed = spelled_matrix(one)
    memory = address_slot(program, function, one.operands[0])
    sources = [program.source(function, part, "b32") for part in parts_of(one.operands[1])]
    rows, columns = layouts.matrix_8x8(transposed=transposed)

    def run(w):
        if not w.wanted(ALL):
            return TOGETHER
        shared, at = w.block.shared, matrix_rows(w, memory, count)
        shared.places(at.reshape(-1), 16)
        for i, slot in enumerate(sources):
            matrix, undefined = np.zeros((8, 8), np.uint16), np.zeros((8, 8), bool)
            w.check(w.poison[slot])
            matrix[rows, columns] = np.ascontiguousarray(w.registers[slot])[:, None].view(np.uint16)
            undefined[rows, columns] = to_bools(w.poison[slot] & ALL)[:, None]
            wrong = [column if column.any() else None for column in undefined.T]
            store_part(w, shared, None, at[i], 2, list(matrix.T.copy()), wrong)
        return None

    return [run]


def parts_of(operand) -> tuple:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def mma(program: Program, function: Function, one: Instruction) -> list[Step]:
    if one.opcode != "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32":
        raise UnknownInstruction(f"{one.opcode} is not known")
    targets = [program.target(function, part) for part in parts_of(one.operands[0])]
    a, b, c = ([program.source(function, part, "b32") for part in parts_of(o)] for o in one.operands[1:])
    (a_rows, a_columns), (b_rows, b_columns), (c_rows, c_columns) = layouts.mma_a(), layouts.mma_b(), layouts.mma_c()

    def run(w):
        if not w.wanted(ALL):
            return TOGETHER
        poison = 0
        for slot in (*a, *b, *c):
            poison |= w.poison[slot]
        w.check(poison)
        left, right = np.empty((16, 16), np.float16), np.empty((8, 16), np.float16)
        before = np.empty((16, 8), np.float32)
        left[a_rows, a_columns] = np.stack([w.registers[s] for s in a], 1).view(np.float16)
        right[b_columns, b_rows] = np.stack([w.registers[s] for s in b], 1).view(np.float16)
        before[c_rows, c_columns] = np.stack([w.registers[s] for s in c], 1).view(np.float32)
        result = products.multiply_add(left, right, before, w.block.rule)
        values = np.ascontiguousarray(result[c_rows, c_columns].T).view(np.uint32)
        for to, value in zip(targets, values, strict=True):
            w.set(to, value, ALL if poison else 0)
        return None

    return [run]


HANDLERS = {
    "shfl": shfl,
    "vote": vote,
    "redux": redux,
    "elect": elect,
    "ldmatrix": ldmatrix,
    "stmatrix": stmatrix,
    "mma": mma,
}
