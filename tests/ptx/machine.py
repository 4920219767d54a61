"""The machine: it executes launches of a stream, one turn of one warp after another."""

from __future__ import annotations

import re

import numpy as np

from .errors import Deadlock, MachineError, PoisonError
from .grid import Grid
from .launches import Launch
from .memory import AddressSpace
from .names import lanes, ranges, readable
from .program import Program
from .schedule import Schedule
from .warp import Warp

MOST_INSTRUCTIONS = 200_000_000
LONGEST_DELAY = 300_000  # instructions that may pass before a bulk copy arrives, where warps do not wait but poll
MOST_EXPIRED = 20  # so often may all warps be stuck in waits that give up, without an arrival; then it is a deadlock


class Machine:
    """A device with `memory`; `schedule` decides what the rules leave open."""

    def __init__(
        self,
        memory: AddressSpace,
        schedule: Schedule,
        shared_bytes: int = 227 << 10,
        most: int = MOST_INSTRUCTIONS,
    ) -> None:
        self.memory, self.schedule, self.shared_bytes, self.most = memory, schedule, shared_bytes, most
        self.deliveries: list = []  # bulk copies that are under way
        self.executed = 0
        self.delivered_at = 0  # instructions executed when something was last delivered
        self.expired = 0  # how often waits have given up because nothing else was left
        self.clusters = 0  # that have begun

    def run(self, launches: list[tuple[Program, Launch]]) -> None:
        """Executes launches of one stream in order; one that overlaps may begin before the one before has ended."""
        with np.errstate(all="ignore"):
            waiting, grids = list(launches), []
            while waiting or grids:
                while waiting and self.may_begin(waiting[0][1], grids):
                    program, launch = waiting.pop(0)
                    grids.append(Grid(self, program, launch, grids[-1] if grids else None))
                self.turn(grids)
                while grids and grids[0].done and (len(grids) > 1 or not waiting or not waiting[0][1].overlaps):
                    grids.pop(0)
                    if grids:
                        grids[0].before = None

    @staticmethod
    def may_begin(launch: Launch, grids: list[Grid]) -> bool:
        if not grids:
            return True
        return launch.overlaps and grids[-1].lets_next_begin() or all(grid.done for grid in grids)

    def turn(self, grids: list[Grid]) -> None:
        """One warp runs for a while, or something asynchronous completes."""
        for grid in grids:
            grid.start()
        warps = [w for grid in grids for w in grid.warps if w.ready()]
        if not warps:
            if self.deliveries:
                self.deliver()
            elif not all(grid.done for grid in grids) and not self.expire(grids):
                self.stuck(grids)
            return
        warp = self.schedule.pick(warps)
        try:
            self.executed += warp.run(self.schedule.budget(), self.schedule.group)
            if warp.done:
                warp.block.grid.ended(warp)
        except MachineError as problem:
            problem.where = problem.where or self.where(warp, problem)
            raise
        except (KeyError, ValueError, TypeError, IndexError, NotImplementedError) as problem:
            raise MachineError(
                f"the machine cannot execute this: {problem!r}\n  at {self.place(warp, warp.group)}"
            ) from problem
        if self.executed > self.most:
            raise Deadlock(f"no end after {self.executed} instructions\n  at {self.place(warp, warp.group)}")
        overdue = self.executed - self.delivered_at > LONGEST_DELAY
        if self.schedule.completes_early() or overdue:
            if self.deliveries:
                self.deliver()
            if warp.copies is not None:
                warp.copies.complete_some(self.schedule)

    def expire(self, grids: list[Grid]) -> bool:
        """Waits that last for a limited time give up, since no warp can go on; false if there are none."""
        waiting = [
            group
            for grid in grids
            for cluster in grid.running
            for block in cluster.blocks
            for w in block.warps
            for group in (w.group, *w.others)
            if w.live and group.mask and group.waiting is not None and group.limited
        ]
        self.expired += 1
        for group in waiting:
            group.waiting, group.limited, group.expired = None, False, True
        return bool(waiting) and self.expired <= MOST_EXPIRED

    def deliver(self) -> None:
        self.delivered_at = self.executed
        one = self.schedule.choice(self.deliveries)
        if one.complete():
            self.deliveries.remove(one)

    def stuck(self, grids: list[Grid]) -> None:
        """Says of each place where lanes wait which lanes these are."""
        warps = [w for grid in grids for cluster in grid.running for block in cluster.blocks for w in block.warps]
        waiting: dict[tuple[str, str], dict[str, list[int]]] = {}
        for w in warps:
            for group in (w.group, *w.others):
                if w.live and group.mask:
                    pc = group.pc if group.waiting is None else group.at
                    reason = group.reason() if callable(group.reason) else group.reason
                    key = reason or "waits for other lanes", self.instruction(w.block.program, pc)
                    block = f"{readable(w.block.program.kernel.name)} block {w.block.name}{some(group.mask & w.live)}"
                    waiting.setdefault(key, {}).setdefault(block, []).append(w.index)
        lines = []
        for (reason, instruction), blocks in waiting.items():
            who = [f"{block} warp{'s' if len(them) > 1 else ''} {ranges(them)}" for block, them in blocks.items()]
            more = f" and {len(who) - 4} more blocks" if len(who) > 4 else ""
            lines.append(f"  {reason}: {'; '.join(who[:4])}{more}, {instruction}")
        raise Deadlock("no warp can go on, and nothing asynchronous is left\n" + "\n".join(lines[:40]))

    def where(self, w: Warp, problem: MachineError) -> str:
        said = f"  at {self.place(w, w.group)}"
        if isinstance(problem, PoisonError) and w.undefined is not None:
            pc, storage = w.undefined
            said += f"\n  the last undefined value that this warp loaded is from {storage}\n"
            said += f"  at {self.instruction(w.block.program, pc)}"
        return said

    @classmethod
    def place(cls, w: Warp, group) -> str:
        """Where lanes are: kernel, block, warp, lanes, line of the PTX, instruction, line of the source."""
        program = w.block.program
        who = f"{readable(program.kernel.name)} block {w.block.name} warp {w.index}{some(group.mask)}"
        return f"{who}, {cls.instruction(program, group.at if group.waiting is not None else group.pc)}"

    @staticmethod
    def instruction(program: Program, pc: int) -> str:
        """`line 40: bar.sync 0;` and the line of the source, with names that people can read."""
        one, source = program.instructions[pc], program.source_line(pc)
        text = one.text.replace(f"{program.kernel.name}_param_", "param_")
        text = re.sub(r"\b_Z\w+", lambda name: readable(name[0]), text)
        text = text if len(text) < 160 else f"{text[:120]} …"
        return f"line {one.line}: {text}" + (f"\n    {source}" if source else "")


def some(mask: int) -> str:
    return "" if mask == 0xFFFFFFFF else f" {lanes(mask)}"
