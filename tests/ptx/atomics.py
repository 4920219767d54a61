"""atom and red: one lane after another, in an order that the schedule draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import PoisonError, UnknownInstruction
from .loads import CACHING, ORDER, SPACES, address_slot, addresses_of, places, store_part
from .program import DTYPES, Program, Step, kind_of
from .shared import SharedMemory
from .syntax import SIZES, Function, Instruction

OLD_AND_NEW: dict[str, Callable] = {
    "add": lambda old, b: old + b,
    "and": lambda old, b: old & b,
    "or": lambda old, b: old | b,
    "xor": lambda old, b: old ^ b,
    "exch": lambda old, b: b,
    "min": min,
    "max": max,
    "inc": lambda old, b: type(old)(0) if old >= b else old + type(old)(1),
    "dec": lambda old, b: b if old == 0 or old > b else old - type(old)(1),
}


def atomic(program: Program, function: Function, one: Instruction) -> list[Step]:
    returns = one.base == "atom"
    *words, type_name = one.modifiers
    space = next((word for word in words if word in SPACES), "")
    names = [word for word in words if word in OLD_AND_NEW or word == "cas"]
    rest = set(words) - ORDER - CACHING - {space} - set(names)
    if rest or len(names) != 1 or type_name in ("f16", "bf16", "f16x2", "bf16x2", "b128"):
        raise UnknownInstruction(f"{one.opcode} is not known")
    operands = one.operands[1:] if returns else one.operands
    base, offset = address_slot(program, function, operands[0])
    kind, width = kind_of(type_name), SIZES[type_name]
    sources = [program.source(function, operand, kind) for operand in operands[1:]]
    to = program.target(function, one.operands[0]) if returns else None
    view = {"s": f"i{width}", "f": f"f{width}"}.get(type_name[0], f"u{width}")
    change = OLD_AND_NEW.get(names[0])
    acquires, releases = ({half, "acq_rel"} & set(words) for half in ("acquire", "release"))

    def run(w):
        addresses = addresses_of(w, base, offset)
        values = [w.defined(at, "the operand of an atomic").view(view) for at in sources]
        old = np.zeros(32, DTYPES[kind])
        lanes = [i for i in range(32) if w.mask >> i & 1]
        w.block.schedule.shuffle(lanes)
        for lane in lanes:
            ((storage, _, inside),) = places(w, space, addresses[lane : lane + 1])
            (before,), poison = storage.load(inside, width, 1)
            if poison is not None and poison[0].any():
                raise PoisonError(f"an atomic reads {int(inside[0]):#x} in {storage}, which was never written")
            found = before.view(view)[0]
            if acquires and isinstance(storage, SharedMemory):
                w.block.races.flag(w, storage, inside - storage.base, False)
            if change is None:
                after = values[1][lane] if found == values[0][lane] else found
            else:
                after = change(found, values[0][lane])
            new = np.array([after], view).view(f"u{width}")
            if releases and isinstance(storage, SharedMemory):
                w.block.races.flag(w, storage, inside - storage.base, True)
            store_part(w, storage, None, inside, width, [new], [None], strong=True)
            old[lane] = before[0]
        if to is not None:
            w.set(to, old)

    return [run]


HANDLERS = {"atom": atomic, "red": atomic}
