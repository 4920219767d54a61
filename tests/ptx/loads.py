"""Loads, stores, atomics, and conversions between state spaces."""

from __future__ import annotations

import numpy as np

from .control import parameter_access
from .errors import MemoryFault, PoisonError, UnknownInstruction
from .masks import to_bools, to_mask
from .memory import POISON, UNFENCED, UNSEEN, Storage
from .program import CTA_SHIFT, DTYPES, LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, Program, Step, kind_of
from .shared import SharedMemory
from .syntax import SIZES, Function, Instruction, Memory, Register, Vector
from .warp import FULL

# What may stand in a load or store and changes nothing here: every access is performed at once, for all to see.
ORDER = {"weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "cta", "cluster", "gpu", "sys", "mmio"}
CACHING = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_last", "L1::evict_first", "L1::no_allocate"}
CACHING |= {"L1::evict_unchanged", "L1::evict_normal", "L2::64B", "L2::128B", "L2::256B", "L2::evict_first"}
SPACES = {"global", "shared", "shared::cta", "shared::cluster", "param", "const", "local"}
STRONG = {"volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"}


def spelled(one: Instruction) -> tuple[str, int, str]:
    """The state space ("" for generic), the number of elements and the type of an access."""
    space, count, *rest = "", 1, one.modifiers[-1]
    for word in one.modifiers[:-1]:
        if word in SPACES:
            space = word
        elif word in ("v2", "v4", "v8"):
            count = int(word[1:])
        elif word not in ORDER | CACHING:
            raise UnknownInstruction(f"{one.opcode}: .{word} is not known")
    return space, count, rest[0]


def address_slot(program: Program, function: Function, memory: Memory) -> tuple[int, int]:
    """The slot that holds the base of an address, and what is added to it."""
    kind = "b64"
    if isinstance(memory.base, Register):
        return program.register(function, memory.base.name), memory.offset
    return program.source(function, memory.base, kind), memory.offset


def addresses_of(w, base: int, offset: int) -> np.ndarray:
    """The address of each lane, int64."""
    poison = w.poison[base]
    if poison & w.mask or poison > FULL:
        w.complain(poison, "the address")
    return w.registers[base].astype(np.int64) + offset


def active(w, base: int, offset: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The addresses of the active lanes (k,) int64, and which lanes these are (bool; None: all)."""
    addresses = addresses_of(w, base, offset)
    if w.mask == FULL:
        return addresses, None
    lanes = to_bools(w.mask)
    return addresses[lanes], lanes


def places(w, space: str, addresses: np.ndarray) -> list[tuple[Storage, np.ndarray | None, np.ndarray]]:
    """The storages that addresses (k,) lie in, with the lanes (bool; None: all) and the addresses within the space."""
    block = w.block
    if space in ("shared", "shared::cta"):
        return [(block.shared, None, addresses)]
    if space == "global":
        return [(storage, lanes, addresses) for storage, lanes in block.memory.parts(addresses)]
    if space in ("param", "const"):
        return [(block.parameters, None, addresses)]
    if space == "local":
        return [(*w.local(addresses),)]
    if space == "shared::cluster":
        return [
            (block.cluster_shared(int(rank)), (addresses >> CTA_SHIFT) == rank, addresses & ((1 << CTA_SHIFT) - 1))
            for rank in np.unique(addresses >> CTA_SHIFT)
        ]
    high = int(addresses[0]) >> 56
    if (addresses >> 56 != high).any():
        raise MemoryFault("the lanes' generic addresses are in several state spaces")
    if high == SHARED_WINDOW >> 56:
        return places(w, "shared::cluster", addresses & ((1 << 32) - 1))
    if high == LOCAL_WINDOW >> 56:
        return places(w, "local", addresses - LOCAL_WINDOW)
    if high == PARAMETER_WINDOW >> 56:
        return [(block.parameters, None, addresses - PARAMETER_WINDOW)]
    return places(w, "global", addresses)


def widened(values: np.ndarray, type_name: str, kind: str) -> np.ndarray:
    """Loaded elements in registers of this kind: with their sign where the type has one."""
    dtype = DTYPES[kind]
    if type_name[0] == "s" and values.dtype.itemsize < dtype().itemsize:
        signed = values.view(f"i{values.dtype.itemsize}")
        return signed.astype(f"i{dtype().itemsize}").view(dtype)
    return values.astype(dtype, copy=False)


def spread(part: np.ndarray, lanes: np.ndarray, dtype) -> np.ndarray:
    whole = np.zeros(32, dtype)
    whole[lanes] = part
    return whole


def ld(program: Program, function: Function, one: Instruction) -> list[Step]:
    space, count, type_name = spelled(one)
    if space == "param" and (steps := parameter_access(program, function, one)) is not None:
        return steps
    targets, memory = one.operands
    base, offset = address_slot(program, function, memory)
    registers = targets.parts if isinstance(targets, Vector) else (targets,)
    width = SIZES[type_name]
    into = [
        (program.target(function, r), kind_of(function.registers[r.name]) if isinstance(r, Register) else "b64")
        for r in registers
    ]
    if len(into) != count:
        raise UnknownInstruction(f"{one.opcode} with {len(into)} registers")
    strong = bool(STRONG & set(one.modifiers))

    def run(w):
        addresses, lanes = active(w, base, offset)
        parts = places(w, space, addresses)
        storage, some, inside = parts[0]
        if len(parts) == 1:
            values, poison = storage.load(inside, width, count)
        else:
            values, poison = load_parts(parts, width, count, len(addresses))
        w.block.loads(w, parts, width * count, strong)
        for i, (to, kind) in enumerate(into):
            value, undefined = widened(values[i], type_name, kind), 0
            if poison is not None and poison[i].any():
                wrong = poison[i] if lanes is None else spread(poison[i], lanes, bool)
                undefined = to_mask(wrong)
                w.undefined = w.group.pc, storage
            w.set(to, value if lanes is None else spread(value, lanes, value.dtype), undefined)

    return [run]


def load_parts(parts, width: int, count: int, lanes: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A load whose lanes read from several storages."""
    values = [np.zeros(lanes, f"u{width}") for _ in range(count)]
    poison = [np.zeros(lanes, bool) for _ in range(count)]
    for storage, some, inside in parts:
        found, undefined = storage.load(inside[some], width, count)
        for i in range(count):
            values[i][some] = found[i]
            if undefined is not None:
                poison[i][some] = undefined[i]
    return values, poison


def st(program: Program, function: Function, one: Instruction) -> list[Step]:
    space, count, type_name = spelled(one)
    if space == "param":
        return parameter_access(program, function, one)
    memory, values = one.operands
    base, offset = address_slot(program, function, memory)
    operands = values.parts if isinstance(values, Vector) else (values,)
    width, kind = SIZES[type_name], kind_of(type_name)
    sources = [program.source(function, part, kind) for part in operands]
    if len(sources) != count:
        raise UnknownInstruction(f"{one.opcode} with {len(sources)} registers")
    strong = bool(STRONG & set(one.modifiers))
    dtype = np.dtype(f"u{width}")

    def run(w):
        addresses, lanes = active(w, base, offset)
        stored, undefined = [], []
        for at in sources:
            value, poison = w.registers[at], w.poison[at]
            if poison > FULL:
                w.complain(poison, "what is stored")
            value = value if lanes is None else value[lanes]
            stored.append(value.astype(dtype, copy=False))
            wrong = poison & w.mask
            undefined.append((to_bools(wrong) if lanes is None else to_bools(wrong)[lanes]) if wrong else None)
        parts = places(w, space, addresses)
        for storage, some, inside in parts:
            if strong and isinstance(storage, SharedMemory):
                w.block.races.flag(w, storage, (inside if some is None else inside[some]) - storage.base, True)
            store_part(w, storage, some, inside, width, stored, undefined, strong)

    return [run]


def store_part(
    w, storage: Storage, some, inside: np.ndarray, width: int, stored: list, undefined: list, strong: bool = False
) -> None:
    """Stores the lanes `some` (None: all) to one storage."""
    block = w.block
    shared = isinstance(storage, SharedMemory)
    if not storage.keeps_poison and any(
        one is not None and (one if some is None else one[some]).any() for one in undefined
    ):
        raise PoisonError(f"it stores something undefined in {storage}")
    good = UNSEEN[width] * UNFENCED if shared and block.program.asynchronous else 0
    at = inside if some is None else inside[some]
    states = []
    for one in undefined:
        wrong = None if one is None else (one if some is None else one[some])
        states.append(good if wrong is None else np.where(wrong, UNSEEN[width] * POISON, good).astype(f"u{width}"))
    values = [v if some is None else v[some] for v in stored]
    block.stores(w, storage, at, np.stack(values, 1).view(np.uint8), strong)
    storage.store(at, width, values, states)
    if shared and block.program.asynchronous:
        storage.written(at, width * len(stored), w.index + 1)


def cvta(program: Program, function: Function, one: Instruction) -> list[Step]:
    words = [word for word in one.modifiers if word not in ("u64", "u32")]
    back = words[0] == "to"
    space = words[-1]
    windows = {"shared": SHARED_WINDOW, "shared::cta": SHARED_WINDOW, "param": PARAMETER_WINDOW, "global": 0}
    windows["local"] = LOCAL_WINDOW
    window = windows[space]
    wide = one.modifiers[-1] == "u64"
    to, source = (
        program.target(function, one.operands[0]),
        program.source(function, one.operands[1], "b64" if wide else "b32"),
    )
    add = np.uint64(-window % (1 << 64) if back else window)

    def run(w):
        w.check(w.poison[source])
        w.set(to, w.registers[source] + add if window else w.registers[source], w.poison[source])

    if not wide:
        raise UnknownInstruction(f"{one.opcode} is not known")
    return [run]


def mapa(program: Program, function: Function, one: Instruction) -> list[Step]:
    """The address of the same place in another block of the cluster."""
    if one.opcode not in ("mapa.shared::cluster.u32",):
        raise UnknownInstruction(f"{one.opcode} is not known")
    to = program.target(function, one.operands[0])
    source, rank = (program.source(function, operand, "b32") for operand in one.operands[1:])
    inside = np.uint32((1 << CTA_SHIFT) - 1)

    def run(w):
        p = w.poison[source] | w.poison[rank]
        w.check(p)
        high = (w.registers[rank] + np.uint32(1)) << np.uint32(CTA_SHIFT)
        w.set(to, (w.registers[source] & inside) | high, p)

    return [run]


HANDLERS = {"ld": ld, "st": st, "cvta": cvta, "mapa": mapa}
