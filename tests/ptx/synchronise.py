"""Barriers of a block and of a cluster, fences, dependent launches, register budgets."""

from __future__ import annotations

from .errors import BarrierError, UnknownInstruction
from .program import Program, Step, negated_source
from .syntax import Function, Instruction
from .warp import TOGETHER, WAIT, WAIT_BEHIND


class BlockBarrier:
    """A barrier of bar.sync; all warps of the block that have not ended take part."""

    def __init__(self) -> None:
        self.generation = 0
        self.arrived: dict[int, tuple[str, int]] = {}  # warp -> (which instruction, its predicate's lanes)
        self.results: dict[str, bool] = {}
        self.clock: dict = {}

    def arrive(self, block, warp, how: str, lanes: tuple[int, int]) -> int:
        """A warp arrives; lanes: those with a true predicate, those that take part."""
        if warp.index in self.arrived:
            raise BarrierError(f"warp {warp.index} arrives twice at a barrier that the others have not reached")
        for other, (kind, _) in self.arrived.items():
            if kind != how:
                raise BarrierError(f"warp {warp.index} is at {how}, warp {other} at {kind} of the same barrier")
        self.arrived[warp.index] = (how, lanes)
        generation = self.generation
        block.races.release(warp, self)
        self.complete(block)
        return generation

    def complete(self, block) -> None:
        """Lets all go on if none is missing."""
        if self.arrived and all(w.done or w.index in self.arrived for w in block.warps):
            true = [true for _, (true, _) in self.arrived.values()]
            parts = [part for _, (_, part) in self.arrived.values()]
            self.results = {
                "or": any(true),
                "and": all(t == p for t, p in zip(true, parts, strict=True)),
                "popc": sum(t.bit_count() for t in true),
            }
            self.arrived = {}
            self.generation += 1
            block.races.pass_on(self)


def bar_sync(program: Program, function: Function, one: Instruction) -> list[Step]:
    """bar.sync and barrier.sync.aligned, for all threads of the block."""
    if one.opcode not in ("bar.sync", "barrier.sync.aligned", "bar.cta.sync", "barrier.cta.sync.aligned"):
        raise UnknownInstruction(f"{one.opcode} is not known")
    number = program.source(function, one.operands[0], "b32")
    count = program.source(function, one.operands[1], "b32") if len(one.operands) > 1 else None

    def run(w):
        if not w.wanted(w.live):
            return TOGETHER
        which = int(w.defined(number, "the barrier")[0])
        if count is not None and int(w.defined(count, "the barrier's count")[0]) != w.block.threads:
            raise UnknownInstruction("a barrier for a part of the block")
        barrier = w.block.barrier(which)
        generation = barrier.arrive(w.block, w, "bar.sync", (0, 0))
        return waits(w, barrier, generation, which)

    return [run]


def waits(w, barrier: BlockBarrier, generation: int, which: int) -> int | None:
    if barrier.generation != generation:
        w.block.races.acquire(w, barrier)
        return None

    def over() -> bool:
        if barrier.generation == generation:
            return False
        w.block.races.acquire(w, barrier)
        return True

    w.group.waiting = over
    w.group.reason = f"waits at barrier {which}"
    return WAIT_BEHIND


def bar_red(program: Program, function: Function, one: Instruction) -> list[Step]:
    """bar.red.or.pred p, barrier, {count,} predicate: the second step writes the result."""
    words = [word for word in one.modifiers if word not in ("red", "aligned", "cta")]
    operation = words[0]
    kind = {"or": "pred", "and": "pred", "popc": "b32"}.get(operation)
    if kind is None or words[1:] not in (["pred"], ["u32"]):
        raise UnknownInstruction(f"{one.opcode} is not known")
    to, number = program.target(function, one.operands[0]), program.source(function, one.operands[1], "b32")
    source, negated = negated_source(program, function, one.operands[-1])
    if len(one.operands) != 3:
        raise UnknownInstruction(f"{one.opcode} for a part of the block")

    def arrive(w):
        if not w.wanted(w.live):
            return TOGETHER
        which = int(w.defined(number, "the barrier")[0])
        value = w.defined(source, "the predicate of a barrier")
        true = (~value if negated else value) & w.mask
        barrier = w.block.barrier(which)
        return waits(w, barrier, barrier.arrive(w.block, w, one.opcode, (true, w.mask)), which)

    def result(w):
        import numpy as np

        found = w.block.barrier(int(w.registers[number][0])).results[operation]
        w.set(to, (0xFFFFFFFF if found else 0) if kind == "pred" else np.full(32, found, np.uint32))

    return [arrive, result]


def cluster_barrier(program: Program, function: Function, one: Instruction) -> list[Step]:
    """barrier.cluster.arrive and barrier.cluster.wait: an arrival of every warp of the cluster, then a wait."""
    unknown = set(one.modifiers) - {"cluster", "arrive", "wait", "release", "acquire", "relaxed", "aligned"}
    if unknown or one.modifiers[0] != "cluster":
        raise UnknownInstruction(f"{one.opcode} is not known")
    arrives, together = "arrive" in one.modifiers, "aligned" in one.modifiers

    def arrive(w):
        if not w.wanted(w.live):
            return TOGETHER
        w.block.cluster.arrive(w)

    def wait(w):
        if not w.wanted(w.live):
            return TOGETHER
        cluster, turn = w.block.cluster, w.barrier_turns
        if cluster.waits(w):
            w.group.waiting = lambda: cluster.generation >= turn
            w.group.reason = "waits at the barrier of the cluster"
            return WAIT
        w.block.races.acquire(w, cluster)
        return None

    if not together:
        raise UnknownInstruction(f"{one.opcode} is not known")
    return [arrive if arrives else wait]


def fence(program: Program, function: Function, one: Instruction) -> list[Step]:
    """Fences of ordinary memory change nothing here, where all see every access at once."""
    words = one.opcode
    if words in ("fence.proxy.async", "fence.proxy.async.shared::cta"):
        return [lambda w: w.block.shared.fence(w.index + 1)]
    order = {"membar", "fence", "cta", "gl", "sys", "gpu", "cluster", "acq_rel", "sc", "release", "acquire"}
    if set(words.split(".")) - order - {"mbarrier_init"}:
        raise UnknownInstruction(f"{words} is not known")
    return [lambda w: None]


def griddepcontrol(program: Program, function: Function, one: Instruction) -> list[Step]:
    """Launches that overlap: wait until the kernels before have ended; allow the next one to begin."""

    def wait(w):
        grid = w.block.grid
        if not grid.may_read():
            w.group.waiting = grid.may_read
            w.group.reason = "waits for the kernel before it"
            return WAIT
        return None

    def launch(w):
        w.block.launched_dependents = True

    steps = {"wait": wait, "launch_dependents": launch}
    if one.modifiers[0] not in steps:
        raise UnknownInstruction(f"{one.opcode} is not known")
    return [steps[one.modifiers[0]]]


def setmaxnreg(program: Program, function: Function, one: Instruction) -> list[Step]:
    """setmaxnreg.inc waits until the block has the registers; the block begins with an equal share for each warp."""
    more = one.modifiers[0] == "inc"
    count = one.operands[0].value
    if one.modifiers[1:] != ("sync", "aligned", "u32") or count % 8 or not 24 <= count <= 256:
        raise UnknownInstruction(f"{one.opcode} {count} is not known")

    def run(w):
        if not w.wanted(0xFFFFFFFF):
            return TOGETHER
        budget = w.block.budget
        if not budget.change(w.index, count, more):
            w.group.waiting = lambda: budget.can(w.index, count)
            w.group.reason = f"waits for {count} registers for each thread"
            return WAIT
        return None

    return [run]


def nothing(program: Program, function: Function, one: Instruction) -> list[Step]:
    return [lambda w: None]


HANDLERS = {
    "bar.sync": bar_sync,
    "bar.cta.sync": bar_sync,
    "barrier.sync": bar_sync,
    "barrier.cta.sync": bar_sync,
    "bar.red": bar_red,
    "barrier.red": bar_red,
    "barrier.cluster": cluster_barrier,
    "membar": fence,
    "fence": fence,
    "griddepcontrol": griddepcontrol,
    "setmaxnreg": setmaxnreg,
    "nanosleep": nothing,
    "prefetch": nothing,
}
