"""The machine: it executes launches of a stream, one turn of one warp after another."""

from __future__ import annotations

import numpy as np

from .errors import Deadlock, MachineError
from .grid import Grid
from .launches import Launch
from .memory import AddressSpace
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
        warps = [
            w
            for grid in grids
            for cluster in grid.running
            for block in cluster.blocks
            for w in block.warps
            if w.live and w.ready()
        ]
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
                warp.block.ended(warp)
        except MachineError as problem:
            problem.where = problem.where or self.where(warp)
            raise
        except (KeyError, ValueError, TypeError, IndexError, NotImplementedError) as problem:
            raise MachineError(f"the machine cannot execute this: {problem!r}\n{self.where(warp)}") from problem
        if self.executed > self.most:
            raise Deadlock(f"no end after {self.executed} instructions\n{self.where(warp)}")
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
        lines = []
        for grid in grids:
            for cluster in grid.running:
                for block in cluster.blocks:
                    for w in block.warps:
                        for group in (w.group, *w.others):
                            if w.live and group.mask:
                                lines.append(f"  {group.reason or 'waits for other lanes'}: {self.place(w, group)}")
        raise Deadlock("no warp can go on, and nothing asynchronous is left\n" + "\n".join(lines[:40]))

    def where(self, w: Warp) -> str:
        return f"  at {self.place(w, w.group)}"

    @staticmethod
    def place(w: Warp, group) -> str:
        """Where lanes are: kernel, block, warp, lanes, line of the PTX, instruction, line of the source."""
        program = w.block.program
        pc = group.at if group.waiting is not None else group.pc
        one, source = program.instructions[pc], program.source_line(pc)
        text = one.text if len(one.text) < 160 else one.text[:120] + " …"
        place = f"line {one.line}: {text}" + (f"\n    {source}" if source else "")
        lanes = "" if group.mask == 0xFFFFFFFF else f" lanes {group.mask:#010x}"
        return f"{program.kernel.name[:100]} block {w.block.name} warp {w.index}{lanes}, {place}"
