"""A launch while it runs: its clusters start in any order, some of them at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .block import Cluster, Parameters
from .errors import LaunchError
from .launches import Launch
from .names import readable
from .program import Program
from .warp import Warp

if TYPE_CHECKING:
    from .machine import Machine


class Grid:
    def __init__(self, machine: Machine, program: Program, launch: Launch, before: Grid | None) -> None:
        self.machine, self.program, self.launch, self.before = machine, program, launch, before
        self.architecture = program.module.architecture
        self.cluster_shape = tuple(launch.cluster or program.cluster)
        self.check()
        offsets = list(program.parameters.values())
        self.parameters = Parameters(program.parameter_bytes, list(zip(offsets, launch.arguments, strict=True)))
        self.waiting = self.clusters_of()
        machine.schedule.shuffle(self.waiting)
        self.resident = machine.schedule.resident(len(self.waiting))
        self.running: list[Cluster] = []
        self.warps: list[Warp] = []  # that have not ended

    def check(self) -> None:
        """What a device would refuse."""
        launch, program = self.launch, self.program
        sizes = [v.size for v in program.kernel.parameters]
        given = [len(a) for a in launch.arguments]
        if sizes != given:
            raise LaunchError(f"{readable(launch.kernel)} has parameters of {sizes} bytes, the launch has {given}")
        threads = int(np.prod(launch.block))
        directives = program.kernel.directives
        most = int(np.prod(directives.get("maxntid", (1024,))))
        if not 1 <= threads <= most or any(g < 1 for g in launch.grid):
            raise LaunchError(f"a grid of {launch.grid} blocks of {launch.block} threads; the most are {most} threads")
        if "reqntid" in directives and threads != int(np.prod(directives["reqntid"])):
            raise LaunchError(f"{threads} threads, but the kernel requires {directives['reqntid']}")
        if any(g % c for g, c in zip(launch.grid, self.cluster_shape, strict=True)):
            raise LaunchError(f"a grid of {launch.grid} blocks is no multiple of the cluster, {self.cluster_shape}")
        if program.static_shared + launch.shared_bytes > self.machine.shared_bytes:
            wanted = program.static_shared + launch.shared_bytes
            raise LaunchError(f"{wanted} bytes of shared memory; a block has {self.machine.shared_bytes} at most")

    def clusters_of(self) -> list[list[tuple[int, int, int]]]:
        """The indices of the blocks of each cluster, by rank."""
        (gx, gy, gz), (cx, cy, cz) = self.launch.grid, self.cluster_shape
        return [
            [(x + i, y + j, z + k) for k in range(cz) for j in range(cy) for i in range(cx)]
            for z in range(0, gz, cz)
            for y in range(0, gy, cy)
            for x in range(0, gx, cx)
        ]

    def start(self) -> None:
        """Starts clusters while there is room."""
        while self.waiting and len(self.running) < self.resident:
            cluster = Cluster(self, self.waiting.pop())
            self.running.append(cluster)
            self.warps += [w for block in cluster.blocks for w in block.warps]

    def ended(self, warp: Warp) -> None:
        warp.block.ended(warp)
        self.warps.remove(warp)
        self.running = [cluster for cluster in self.running if not cluster.done]

    @property
    def done(self) -> bool:
        return not self.waiting and not self.running

    def may_read(self) -> bool:
        """Whether the kernel before has ended and its results are there."""
        return self.before is None or self.before.done

    def lets_next_begin(self) -> bool:
        """Whether every block has ended or allowed it."""
        return not self.waiting and all(
            block.done or block.launched_dependents for cluster in self.running for block in cluster.blocks
        )
