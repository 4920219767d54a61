"""Bulk tensor copies (TMA): boxes of a tensor into the shared memory of one block or of several."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .errors import BarrierError, MemoryFault, PoisonError, UnknownInstruction
from .layouts import swizzle
from .loads import address_slot, addresses_of, places
from .masks import to_bools
from .mbarriers import barrier_place
from .program import CTA_SHIFT, Program, Step
from .shared import SharedMemory
from .syntax import Function, Instruction, Memory
from .tensor_map import TensorMap

PIECES = 4  # a box arrives in so many parts at most


@dataclass(eq=False)
class Delivery:
    """A box on its way to one block."""

    shared: SharedMemory
    offsets: np.ndarray  # (rows, bytes of a row) in the shared memory
    values: np.ndarray  # the same shape, uint8
    barrier: int  # address of the mbarrier in that block
    where: str  # the instruction, for messages
    next_row: int = 0
    rows_at_once: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows_at_once = max(1, -(-len(self.values) // PIECES))

    def complete(self) -> bool:
        """The next part arrives; returns whether the last one has."""
        if not self.shared.alive:
            raise BarrierError(f"a bulk copy arrives in {self.shared}, whose block has ended; it began at {self.where}")
        rows = slice(self.next_row, self.next_row + self.rows_at_once)
        self.shared.arrive(self.offsets[rows], self.values[rows])
        barrier = self.shared.barrier(self.barrier, f"a bulk copy completes, which began at {self.where}")
        self.shared.delivered(self.offsets[rows], barrier)
        self.next_row += self.rows_at_once
        barrier.expect(-self.values[rows].size)
        return self.next_row >= len(self.values)


def box_of(w, tensor: TensorMap, at: list[int]) -> np.ndarray:
    """The bytes of the box from the coordinates `at` on: (rows, bytes of a row); zeros outside of the tensor."""
    size = tensor.element_bytes
    if tensor.interleave or tensor.fill_nan or set(tensor.element_strides) != {1}:
        raise UnknownInstruction("a tensor map with an interleave, with element strides or filling with NaN")
    inner, outer = tensor.box[0], [int(n) for n in tensor.box[1:]]
    out = np.zeros((int(np.prod(outer, dtype=int)), inner * size), np.uint8)
    first, last = max(at[0], 0), min(at[0] + inner, tensor.sizes[0])
    for row in range(len(out)):
        address, left, inside = tensor.address + first * size, row, first < last
        for dimension, extent in enumerate(outer):
            place = at[dimension + 1] + left % extent
            left //= extent
            inside &= 0 <= place < tensor.sizes[dimension + 1]
            address += place * tensor.strides[dimension]
        if not inside:
            continue
        storage = w.block.memory.find(address)
        begin, count = address - storage.base, (last - first) * size
        if begin + count > storage.size:
            raise MemoryFault(f"a bulk copy reads {count} bytes from {address:#x} on, beyond {storage}")
        if storage.state[begin : begin + count].any():
            raise PoisonError(f"a bulk copy reads {storage}, which was not written there")
        out[row, (first - at[0]) * size : (last - at[0]) * size] = storage.data[begin : begin + count]
    return out


def places_of(tensor: TensorMap, to: int, shape: tuple[int, ...]) -> np.ndarray:
    """The shared-memory address of each byte of a box of `shape` (rows, bytes of a row) that begins at `to`."""
    if to % 128:
        raise MemoryFault(f"a bulk copy to {to:#x}, which is no multiple of 128")
    linear = to + np.arange(shape[0] * shape[1]).reshape(shape)
    return swizzle(tensor.swizzle, linear)


def tensor_map(w, address: int) -> TensorMap:
    """The tensor map at a generic address."""
    ((storage, _, inside),) = places(w, "", np.array([address]))
    begin = int(inside[0]) - storage.base
    if address % 64:
        raise MemoryFault(f"a tensor map at {address:#x}, which is no multiple of 64")
    try:
        return TensorMap.from_bytes(storage.data[begin : begin + 128].tobytes())
    except ValueError as problem:
        raise MemoryFault(f"there is no tensor map at {address:#x} in {storage}: {problem}") from None


def bulk_tensor(program: Program, function: Function, one: Instruction) -> list[Step]:
    words = list(one.modifiers)
    rank = int(words[3][:-1]) if len(words) > 3 and words[3][:-1].isdigit() else 0
    known = {"async", "bulk", "tensor", f"{rank}d", "tile", "shared::cluster", "shared::cta", "global"}
    known |= {"mbarrier::complete_tx::bytes", "multicast::cluster", "L2::cache_hint"}
    source_first = "global" in words and words.index("global") < min(
        words.index(word) for word in words if word.startswith("shared")
    )
    if set(words) - known or not 1 <= rank <= 5 or source_first:
        raise UnknownInstruction(f"{one.opcode} is not known")
    to, source, barrier, *rest = one.operands
    multicast = "multicast::cluster" in words
    into, signal = address_slot(program, function, to), address_slot(program, function, barrier)
    if not isinstance(source, Memory) or len(source.coordinates) != rank:
        raise UnknownInstruction(f"{one.opcode} without {rank} coordinates")
    map_at = address_slot(program, function, source)
    coordinates = [program.source(function, c, "b32") for c in source.coordinates]
    blocks = program.source(function, rest[0], "b16") if multicast else None

    def run(w):
        targets, signals, maps = (addresses_of(w, *slot) for slot in (into, signal, map_at))
        at = [w.defined(slot, "a coordinate of a bulk copy").view(np.int32) for slot in coordinates]
        to_blocks = w.defined(blocks, "the blocks of a multicast") if multicast else None
        for lane in np.flatnonzero(to_bools(w.mask)):
            tensor = tensor_map(w, int(maps[lane]))
            if len(tensor.sizes) != rank:
                raise MemoryFault(f"a copy of rank {rank} by a tensor map of rank {len(tensor.sizes)}")
            values = box_of(w, tensor, [int(c[lane]) for c in at])
            ranks = [r for r in range(16) if int(to_blocks[lane]) >> r & 1] if multicast else None
            deliver(w, tensor, int(targets[lane]), int(signals[lane]), ranks, values, one)

    return [run]


def deliver(w, tensor: TensorMap, target: int, signal: int, ranks: list[int] | None, values, one: Instruction) -> None:
    """Begins the copy of a box to one place, or to the same place in the blocks `ranks`."""
    inside = (1 << CTA_SHIFT) - 1
    if ranks is None:
        deliveries = [(barrier_place(w, target)[0], barrier_place(w, signal)[0])]
    else:
        deliveries = [(w.block.cluster_shared(r + 1), w.block.cluster_shared(r + 1)) for r in ranks]
    for shared, signalled in deliveries:
        if shared is not signalled:
            raise BarrierError("a bulk copy to one block signals an mbarrier of another")
        if not shared.alive:
            raise BarrierError(f"a bulk copy to {shared}, whose block has ended")
        shared.barrier(signal & inside, one.opcode)
        w.block.races.ordered_behind_writes(w, shared, (signal & inside) - shared.base + np.arange(8))
        addresses = places_of(tensor, target & inside, values.shape)
        if int(addresses.min()) < shared.base or int(addresses.max()) >= shared.end:
            raise MemoryFault(f"a bulk copy of {values.size} bytes to {target & inside:#x} does not fit into {shared}")
        offsets = addresses - shared.base
        w.block.races.overwrites(w, shared, offsets)
        shared.fenced(offsets)
        shared.claim(offsets)
        w.block.device.deliveries.append(Delivery(shared, offsets, values, signal & inside, f"line {one.line}"))


HANDLERS = {"cp.async.bulk.tensor": bulk_tensor}
