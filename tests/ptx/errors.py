"""What the machine reports: every fault is a MachineError whose class says its kind."""

from __future__ import annotations


class MachineError(Exception):
    """A fault of the program, or something that the machine does not know.

    `where` is added by the machine: kernel, block, warp, lanes, the instruction with its line, the source line.
    """

    where: str = ""

    def __str__(self) -> str:
        said = super().__str__()
        return f"{said}\n{self.where}" if self.where else said


class ParseError(MachineError):
    """The text is not PTX as the parser knows it."""


class UnknownInstruction(MachineError):
    """An opcode, a modifier or a special register that the machine does not execute."""


class PoisonError(MachineError):
    """Something undefined decides a result, an address or a branch."""


class InFlightError(MachineError):
    """Something is touched while an asynchronous operation still reads or writes it."""


class MemoryFault(MachineError):
    """An address outside of every allocation, or not aligned."""


class BarrierError(MachineError):
    """A barrier that is used against its rules."""


class RaceError(MachineError):
    """Two accesses of shared memory, one of them a write, that nothing orders."""


class Divergence(MachineError):
    """Lanes that must execute an instruction together do not."""


class Deadlock(MachineError):
    """No warp can go on, and nothing asynchronous is left that could wake one."""


class LaunchError(MachineError):
    """A launch that no device would accept."""
