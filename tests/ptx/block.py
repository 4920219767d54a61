"""Blocks and clusters while they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .block_barriers import BlockBarrier
from .errors import BarrierError, InFlightError, MemoryFault, UnknownInstruction
from .memory import UNFENCED, Storage
from .products import rule_of
from .races import Races, Trace
from .shared import SharedMemory
from .warp import FULL, Warp

if TYPE_CHECKING:
    from .grid import Grid
    from .machine import Machine

LANES = np.arange(32, dtype=np.uint32)
REGISTERS = 65536  # of a multiprocessor


class RegisterBudget:
    """Registers of a block's threads: an equal share for each at the beginning, then as setmaxnreg says."""

    def __init__(self, threads: int, blocks: int, limit: int | None) -> None:
        share = limit or min(255, REGISTERS // (threads * blocks)) // 8 * 8
        self.share, self.free = share, 0
        self.held: dict[int, int] = {}

    def can(self, warp: int, count: int) -> bool:
        return (count - self.held.get(warp, self.share)) * 32 <= self.free

    def change(self, warp: int, count: int, more: bool) -> bool:
        held = self.held.get(warp, self.share)
        if more != (count > held) and count != held:
            raise BarrierError(f"setmaxnreg goes from {held} registers to {count}, which is the wrong direction")
        if not self.can(warp, count):
            return False
        self.free -= (count - held) * 32
        self.held[warp] = count
        return True


class Block:
    def __init__(self, grid: Grid, cluster: Cluster, rank: int, index: tuple[int, int, int]) -> None:
        self.grid, self.cluster, self.rank, self.index = grid, cluster, rank, index
        self.program, self.parameters = grid.program, grid.parameters
        self.device: Machine = grid.machine
        self.memory, self.schedule = self.device.memory, self.device.schedule
        self.rule = rule_of(grid.architecture)
        program = self.program
        reserved = program.static_end - program.static_shared
        end = max(program.dynamic_start + grid.launch.shared_bytes, program.static_end)
        self.shared = SharedMemory(f"shared memory of block {self.name}", reserved, end - reserved)
        self.shared.trace = Trace(len(self.shared.data))
        self.shared.cluster = cluster
        x, y, z = grid.launch.block
        self.threads = x * y * z
        self.barriers: dict[int, BlockBarrier] = {}
        self.logs: dict[int, list] = {}  # of each warp group: what its warps multiplied
        self.launched_dependents = False
        directives = program.kernel.directives
        self.budget = RegisterBudget(
            self.threads, directives.get("minnctapersm", (1,))[0], directives.get("maxnreg", (None,))[0]
        )
        self.warps = [self.warp(i) for i in range(-(-self.threads // 32))]

    @property
    def name(self) -> str:
        return ", ".join(str(i) for i in self.index[: 3 if any(self.index[1:]) else 1])

    @property
    def races(self) -> Races:
        return self.cluster.races

    def warp(self, i: int) -> Warp:
        program = self.program
        left = self.threads - 32 * i
        registers, poison = list(program.registers), list(program.poison)
        for name, slot in program.special.items():
            registers[slot] = self.special(name, i)
        warp = Warp(self, i, FULL if left >= 32 else (1 << left) - 1, registers, poison)
        warp.rank = self.rank * -(-self.threads // 32) + i
        return warp

    def special(self, name: str, warp: int) -> np.ndarray:
        """The value of a special register in the lanes of a warp."""
        word, _, part = name.removeprefix("%").partition(".")
        launch, cluster = self.grid.launch, self.grid.cluster_shape
        threads = LANES + np.uint32(32 * warp)
        x, y, _ = launch.block
        vectors = {
            "tid": (threads % x, threads // x % y, threads // (x * y)),
            "ntid": launch.block,
            "ctaid": self.index,
            "nctaid": launch.grid,
            "clusterid": tuple(i // c for i, c in zip(self.index, cluster, strict=True)),
            "nclusterid": tuple(g // c for g, c in zip(launch.grid, cluster, strict=True)),
            "cluster_ctaid": tuple(i % c for i, c in zip(self.index, cluster, strict=True)),
            "cluster_nctaid": cluster,
        }
        scalars = {
            "laneid": LANES,
            "warpid": warp,
            "nwarpid": len(range(0, self.threads, 32)),
            "cluster_ctarank": self.rank,
            "cluster_nctarank": len(self.cluster.ranks),
            "lanemask_eq": 1 << LANES,
            "lanemask_gt": FULL - ((2 << LANES.astype(np.uint64)) - 1),
            "lanemask_ge": FULL - ((1 << LANES) - 1),
            "lanemask_lt": (1 << LANES) - 1,
            "lanemask_le": (2 << LANES.astype(np.uint64)) - 1,
            "dynamic_smem_size": launch.shared_bytes,
        }
        if word in vectors and part in ("x", "y", "z"):
            value: Any = vectors[word]["xyz".index(part)]
        elif word in scalars and not part:
            value = scalars[word]
        else:
            raise UnknownInstruction(f"the special register {name} is not known")
        return np.broadcast_to(np.asarray(value).astype(np.uint32), 32)

    def barrier(self, number: int) -> BlockBarrier:
        if not 0 <= number < 16:
            raise BarrierError(f"barrier {number}; a block has 0 to 15")
        return self.barriers.setdefault(number, BlockBarrier())

    def cluster_shared(self, high: int) -> SharedMemory:
        """The shared memory that the high bits of a shared::cluster address mean; 0 is this block's own."""
        if not 0 <= high <= len(self.cluster.ranks):
            raise MemoryFault(f"the cluster has no block of rank {high - 1}")
        return self.shared if high == 0 else self.cluster.blocks[high - 1].shared

    def loads(self, w: Warp, parts: list, size: int, strong: bool = False) -> None:
        """A warp loads `size` bytes at each address of the parts; for the search for races."""
        for storage, some, inside in parts:
            if isinstance(storage, SharedMemory):
                if not storage.alive:
                    raise MemoryFault(f"it reads {storage}, whose block has ended")
                at = (inside if some is None else inside[some]).astype(np.int64) - storage.base
                if strong:
                    self.races.flag(w, storage, at, False)
                self.races.seen(w, storage, at[:, None] + np.arange(size), False, strong)
            elif storage.writable and storage is not w.memory and not strong:
                at = (inside if some is None else inside[some]).astype(np.int64) - storage.base
                self.races.seen_global(w, storage, at[:, None] + np.arange(size), False)

    def stores(
        self, w: Warp, storage: Storage, addresses: np.ndarray, values: np.ndarray, strong: bool = False
    ) -> None:
        """A warp stores values (k, size) uint8. What changes nothing races with nobody."""
        shared = isinstance(storage, SharedMemory)
        if shared and not storage.alive:
            raise MemoryFault(f"it writes {storage}, whose block has ended")
        offsets = storage.places(addresses, values.shape[1])[:, None] + np.arange(values.shape[1])
        if strong or storage is w.memory:
            if shared:
                self.races.seen(w, storage, offsets, True, True)
            return
        same = (storage.data[offsets] == values) & (storage.state[offsets] & ~np.uint8(UNFENCED) == 0)
        changed = offsets[~same]
        if len(changed):
            (self.races.seen if shared else self.races.seen_global)(w, storage, changed, True)

    def same_in_group(self, w: Warp, number: int, what: tuple) -> None:
        """The warps of a warp group execute the same products in the same order."""
        log = self.logs.setdefault(w.index // 4, [])
        if number == len(log):
            log.append(what)
        elif log[number] != what:
            raise BarrierError(f"the warps of a warp group multiply different things: {log[number][0]} and {what[0]}")

    def same_count(self) -> None:
        """All four warps of a warp group have executed its products."""
        for number, log in self.logs.items():
            group = self.warps[4 * number : 4 * number + 4]
            counts = [w.products.count if w.products else 0 for w in group]
            if counts != [len(log)] * 4:
                raise BarrierError(f"the warps of a warp group have executed {counts} products, not the same ones")

    @property
    def done(self) -> bool:
        return all(w.done for w in self.warps)

    def ended(self, w: Warp) -> None:
        """A warp has ended; the last one ends the block."""
        if w.products is not None and w.products.pending:
            raise InFlightError("the warp ends while its wgmma are under way")
        if w.copies is not None and w.copies.pending:
            raise InFlightError("the warp ends while its cp.async are under way")
        for barrier in self.barriers.values():
            barrier.complete(self)
        self.cluster.complete()
        if self.done:
            if any(d.shared is self.shared for d in self.device.deliveries):
                raise InFlightError(f"block {self.name} ends while a bulk copy to its shared memory is under way")
            self.races.ordered_behind_visits(self, self.shared)
            self.shared.alive = False
            self.same_count()


class Cluster:
    def __init__(self, grid: Grid, indices: list[tuple[int, int, int]]) -> None:
        self.grid, self.ranks = grid, range(len(indices))
        warps = -(-int(np.prod(grid.launch.block)) // 32)
        names = [f"warp {w} of block {i[0]}" for i in indices for w in range(warps)]
        grid.machine.clusters += 1
        self.races = Races(warps * len(indices), names, grid.machine.clusters)
        self.blocks = [Block(grid, self, rank, index) for rank, index in enumerate(indices)]
        self.generation = 0
        self.arrived: set[int] = set()

    def arrive(self, w: Warp) -> None:
        if w.barrier_turns > self.generation:
            raise BarrierError("a warp arrives twice at the barrier of the cluster without a wait")
        self.races.release(w, self)
        w.barrier_turns += 1
        self.arrived.add(w.rank)
        self.complete()

    def complete(self) -> None:
        warps = [w for block in self.blocks for w in block.warps]
        if self.arrived and all(w.done or w.rank in self.arrived for w in warps):
            self.arrived = set()
            self.generation += 1
            self.races.pass_on(self)

    def waits(self, w: Warp) -> bool:
        if w.barrier_turns == 0:
            raise BarrierError("a warp waits at the barrier of the cluster and has not arrived")
        return self.generation < w.barrier_turns

    @property
    def done(self) -> bool:
        return all(block.done for block in self.blocks)


class Parameters(Storage):
    """The parameters of a launch."""

    def __init__(self, size: int, arguments: list[tuple[int, bytes]]) -> None:
        super().__init__("the parameters", 0, size, poisoned=False)
        self.writable = False
        for at, value in arguments:
            self.data[at : at + len(value)] = np.frombuffer(value, np.uint8)
