"""Instructions whose members are named by a mask: waiting for them; bar.warp.sync, match, activemask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import Divergence, UnknownInstruction
from .masks import to_bools, to_mask
from .program import Program, Step
from .syntax import Function, Instruction, Vector
from .warp import FULL, TOGETHER


def by_members(slot: int, act: Callable) -> Step:
    """The step that calls act(w, members) once all members are here; lanes that name other members act apart."""

    known: list = [None, 0]  # the last register in which all lanes named the same members, and these

    def run(w):
        values, mask = w.defined(slot, "the mask of members"), w.mask
        if values is not known[0]:
            active = values[to_bools(mask)]
            wanted = int(active[0])
            if (values == wanted).all():
                known[:] = values, wanted
        else:
            active, wanted = values, known[1]
        if values is known[0] or (active == wanted).all():
            if not w.wanted(wanted):
                return TOGETHER
            act(w, wanted)
            return None
        groups = [(int(one), to_mask(values == one) & mask) for one in np.unique(active)]
        for wanted, lanes in groups:
            if wanted & mask & ~lanes:
                raise Divergence(f"lanes {lanes:#010x} name the members {wanted:#010x}, and some of those name others")
            if (wanted | lanes) & ~mask:
                w.mask = lanes
                w.wanted(wanted)
                w.mask = mask
                return TOGETHER
        for wanted, lanes in groups:
            w.mask = lanes
            if not w.wanted(wanted):
                raise Divergence(f"lanes {lanes:#010x} execute it and are not all of its members, {wanted:#010x}")
            act(w, wanted)
        w.mask = mask
        return None

    return run


def warp_barrier(program: Program, function: Function, one: Instruction) -> list[Step]:
    return [by_members(program.source(function, one.operands[0], "b32"), lambda w, wanted: None)]


def activemask(program: Program, function: Function, one: Instruction) -> list[Step]:
    to = program.target(function, one.operands[0])
    return [lambda w: w.set(to, np.full(32, w.mask, np.uint32))]


def match(program: Program, function: Function, one: Instruction) -> list[Step]:
    """match.any: the members that hold the same value; match.all: all members, or none if some value differs."""
    mode, sync, kind = one.modifiers
    if sync != "sync" or mode not in ("any", "all") or kind not in ("b32", "b64"):
        raise UnknownInstruction(f"{one.opcode} is not known")
    first = one.operands[0]
    to, equal = first.parts if isinstance(first, Vector) else (first, None)
    to = program.target(function, to)
    equal = None if equal is None else program.target(function, equal)
    source, members = program.source(function, one.operands[1], kind), program.source(function, one.operands[2], "b32")

    def act(w, wanted: int) -> None:
        values = w.defined(source, "what is compared")
        same = [to_mask(values == one) & wanted for one in values]
        if mode == "all":
            everywhere = all(same[lane] == wanted for lane in range(32) if wanted >> lane & 1)
            same = [wanted if everywhere else 0] * 32
            if equal is not None:
                w.set(equal, FULL if everywhere else 0)
        w.set(to, np.array(same, np.uint32))

    return [by_members(members, act)]


HANDLERS = {"bar.warp.sync": warp_barrier, "activemask": activemask, "match": match}
