"""wgmma: products of a warp group that run beside it. Each of its four warps has 16 of the 64 rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from . import layouts, products
from .errors import BarrierError, InFlightError, UnknownInstruction
from .program import Program, Step
from .syntax import Function, Immediate, Instruction, Vector
from .warp import TOGETHER, WAIT, WRITTEN_LATER

ALL = 0xFFFFFFFF


@dataclass(frozen=True)
class Shape:
    """m64 by n by k of a product, and how its operands lie."""

    n: int
    k: int
    transposed_a: bool
    transposed_b: bool
    sign_a: int
    sign_b: int


@dataclass(eq=False)
class Product:
    """One wgmma of one warp that has not been computed."""

    shape: Shape
    accumulators: tuple[int, ...]
    fragment: list[np.ndarray] | None  # of A in registers
    fragment_slots: tuple[int, ...]
    a: np.ndarray | None  # offsets of A's 16-byte chunks in shared memory, of this warp's 16 rows
    b: np.ndarray
    stamps: tuple[np.ndarray, ...]  # when these chunks were last written
    add: bool
    where: str


@dataclass(eq=False)
class Batch:
    """The products of one warp that commit_group made a group of."""

    products: list[Product]
    computed: bool = False


@dataclass
class Products:
    """The products of a warp that are under way, by groups."""

    open: list[Product] = field(default_factory=list)
    groups: list[Batch] = field(default_factory=list)  # those that the warp has not waited for
    ended: int = 0  # how many groups it has waited for
    fenced: list = field(default_factory=list)  # the registers at the last wgmma.fence
    sums: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)  # accumulators (16, n) that are in flight
    count: int = 0

    @property
    def pending(self) -> bool:
        return bool(self.open or self.groups)

    @property
    def under_way(self) -> list[Product]:
        return [product for batch in self.groups for product in batch.products] + self.open


def products_of(w) -> Products:
    if w.products is None:
        w.products = Products()
    return w.products


def fence(program: Program, function: Function, one: Instruction) -> list[Step]:
    def run(w):
        if not w.wanted(ALL):
            return TOGETHER
        products_of(w).fenced = list(w.registers)
        return None

    return [run]


def commit(program: Program, function: Function, one: Instruction) -> list[Step]:
    def run(w):
        if not w.wanted(ALL):
            return TOGETHER
        state = products_of(w)
        state.groups.append(Batch(state.open))
        state.open = []
        return None

    return [run]


def wait(program: Program, function: Function, one: Instruction) -> list[Step]:
    left = one.operands[0].value

    def run(w):
        if not w.wanted(ALL):
            return TOGETHER
        state = products_of(w)
        due = max(0, len(state.groups) - left)
        if not due:
            return None
        all_of_them, mates = state.ended + due, w.block.warps[w.index // 4 * 4 :][:4]
        if not committed(mates, all_of_them):
            w.group.waiting = lambda: committed(mates, all_of_them)
            w.group.reason = "waits for products that other warps of the warp group have not begun"
            return WAIT
        for mate in mates:
            complete(mate, all_of_them, mates[0].rank)
        del state.groups[:due]
        state.ended = all_of_them
        w.block.races.knows_products(w, mates[0].rank, all_of_them)
        settle(w, state)
        return None

    return [run]


def committed(warps: list, count: int) -> bool:
    """Whether these warps have committed so many groups: a group is one of all warps of a warp group."""
    states = [products_of(w) for w in warps]
    return all(state.ended + len(state.groups) >= count for state in states)


def complete(w, count: int, leader: int) -> None:
    """Computes the first `count` groups of a warp. It still has to wait itself before it may use the results."""
    state = products_of(w)
    for number, batch in enumerate(state.groups[: max(0, count - state.ended)], state.ended + 1):
        if not batch.computed:
            batch.computed = True
            for product in batch.products:
                compute(w, state, product, leader, number)


def settle(w, state: Products) -> None:
    """Accumulators that no product writes any more go to their registers."""
    busy = {p.accumulators for p in state.under_way}
    for slots in [slots for slots in state.sums if slots not in busy]:
        total = state.sums.pop(slots)
        rows, columns = layouts.wgmma_d(2 * len(slots))
        values = np.ascontiguousarray(total[rows, columns].T).view(np.uint32)
        for slot, value in zip(slots, values, strict=True):
            if not w.poison[slot] & WRITTEN_LATER:
                raise InFlightError("a register was written while an asynchronous product still wrote it")
            w.registers[slot], w.poison[slot] = value, 0
            state.fenced[slot] = value


def compute(w, state: Products, product: Product, leader: int, number: int) -> None:
    """The product itself, as late as the rules allow: its operands must not have changed since it began."""
    shared, shape = w.block.shared, product.shape
    for name, chunks, stamps in zip("AB", (product.a, product.b), product.stamps, strict=True):
        if chunks is None:
            continue
        if not np.array_equal(shared.stamps[chunks // 16], stamps):
            raise InFlightError(
                f"shared memory was overwritten while {product.where} still read it as its matrix {name}"
            )
        shared.readable(chunks, 16, product.where)
        w.block.races.products_read(w, shared, chunks[..., None] + np.arange(16), leader, number)
    if product.a is None:
        for slot, value in zip(product.fragment_slots, product.fragment, strict=True):
            if w.registers[slot] is not value:
                raise InFlightError(f"a register was written while {product.where} still read it as its matrix A")
        rows, columns = layouts.wgmma_a()
        a = np.empty((16, shape.k), np.float16)
        halves = np.stack(product.fragment, 1).view(np.uint16).view(np.float16)
        a[rows, columns] = halves
    else:
        a = matrix(shared, product.a, shape.transposed_a)
    b = matrix(shared, product.b, shape.transposed_b)
    if shape.sign_a * shape.sign_b < 0:
        a = -a
    before = state.sums[product.accumulators] if product.add else None
    state.sums[product.accumulators] = products.multiply_add(a, b, before, w.block.rule)


def matrix(shared, chunks: np.ndarray, transposed: bool) -> np.ndarray:
    """The elements at chunks (rows, k bytes / 16) of shared memory: (rows, k) float16."""
    words = shared.data[: len(shared.data) // 16 * 16].reshape(-1, 16)[chunks // 16]
    if transposed:
        return np.ascontiguousarray(words.reshape(len(chunks), -1).view(np.float16).T)
    return words.reshape(len(chunks), -1).view(np.float16)


def mma_async(program: Program, function: Function, one: Instruction) -> list[Step]:
    match = re.fullmatch(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.f16\.f16", one.opcode)
    if not match:
        raise UnknownInstruction(f"{one.opcode} is not known")
    n = int(match[1])
    accumulators, a, b, *rest = one.operands
    slots = tuple(program.target(function, part) for part in accumulators.parts)
    in_registers = isinstance(a, Vector)
    fragment = tuple(program.source(function, part, "b32") for part in a.parts) if in_registers else ()
    a_slot = None if in_registers else program.source(function, a, "b64")
    b_slot = program.source(function, b, "b64")
    add_slot = program.source(function, rest[0], "pred")
    numbers = [operand.value for operand in rest[1:] if isinstance(operand, Immediate)]
    if len(slots) != n // 2 or len(numbers) != len(rest) - 1 or len(rest) != (4 if in_registers else 5):
        raise UnknownInstruction(f"{one.opcode} with other operands than are known")
    sign_a, sign_b = numbers[:2]
    transposed_a, transposed_b = (False, bool(numbers[2])) if in_registers else (bool(numbers[2]), bool(numbers[3]))
    shape = Shape(n, 16, transposed_a, transposed_b, sign_a, sign_b)
    where = f"the wgmma of line {one.line}"

    def run(w):
        if not w.wanted(ALL):
            return TOGETHER
        add = w.defined(add_slot, "whether a product adds")
        descriptors = [
            None if slot is None else int(same(w, w.defined(slot, "a descriptor"), "the descriptors"))
            for slot in (a_slot, b_slot)
        ]
        begin(w, shape, slots, fragment, descriptors, bool(add & 1), where)
        return None

    return [run]


def same(w, values: np.ndarray, what: str) -> int:
    if (values != values[0]).any():
        raise BarrierError(f"{what} of the lanes differ")
    return values[0]


def begin(w, shape: Shape, slots, fragment, descriptors: list[int | None], add: bool, where: str) -> None:
    """Checks what must hold when a product begins, and notes it."""
    state, shared = products_of(w), w.block.shared
    w.block.same_in_group(w, state.count, (where, tuple(descriptors), add))
    state.count += 1
    chunks: list[np.ndarray | None] = [None, None]
    row = w.index % 4 * 16
    for i, rows in ((0, 64), (1, shape.n)):
        if descriptors[i] is None:
            continue
        decoded = layouts.decode_descriptor(descriptors[i])
        transposed = (shape.transposed_a, shape.transposed_b)[i]
        addresses = layouts.operand_addresses(decoded, rows, 2 * shape.k, transposed)
        if i == 0:  # this warp's rows
            addresses = addresses[:, row // 8 : row // 8 + 2] if transposed else addresses[row : row + 16]
        offsets = addresses - shared.base
        if offsets.min() < 0 or offsets.max() + 16 > shared.size:
            raise InFlightError(f"{where} reads outside of {shared}")
        shared.readable(offsets, 16, where)
        chunks[i] = offsets
    for slot in (*fragment, *(slots if add and slots not in state.sums else ())):
        if w.poison[slot] & ALL:
            w.complain(w.poison[slot] & ALL, "an operand of a product")
    busy = {slot for p in state.under_way for slot in p.accumulators}
    if slots not in state.sums and busy & set(slots):
        raise InFlightError(f"{where} writes accumulators that another product of another shape still writes")
    if not state.fenced or any(state.fenced[s] is not w.registers[s] for s in (*slots, *fragment)):
        raise InFlightError(f"no wgmma.fence stands between what wrote the registers of {where} and it")
    if slots not in state.sums:
        rows, columns = layouts.wgmma_d(shape.n)
        total = np.zeros((16, shape.n), np.float32)
        if add:
            total[rows, columns] = np.stack([w.registers[s] for s in slots], 1).view(np.float32)
        state.sums[slots] = total
    for slot in slots:
        w.poison[slot] = WRITTEN_LATER
    stamps = tuple(None if c is None else shared.stamps[c // 16].copy() for c in chunks)
    values = [w.registers[s] for s in fragment] if fragment else None
    state.open.append(Product(shape, slots, values, fragment, chunks[0], chunks[1], stamps, add, where))


HANDLERS = {
    "wgmma.fence.sync.aligned": fence,
    "wgmma.commit_group.sync.aligned": commit,
    "wgmma.wait_group.sync.aligned": wait,
    "wgmma.mma_async": mma_async,
}
