"""Barriers of a cluster, fences, dependent launches, register budgets."""

from __future__ import annotations

from .errors import UnknownInstruction
from .program import Program, Step
from .syntax import Function, Instruction
from .warp import TOGETHER, WAIT


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
    "barrier.cluster": cluster_barrier,
    "membar": fence,
    "fence": fence,
    "griddepcontrol": griddepcontrol,
    "setmaxnreg": setmaxnreg,
    "nanosleep": nothing,
    "prefetch": nothing,
}
