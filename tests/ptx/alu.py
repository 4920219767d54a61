"""The arithmetic instructions of PTX: for every mnemonic, a pure function of registers."""

from __future__ import annotations

from functools import cache

from . import bits, comparisons, conversions, floats, halves, integers
from .operation import Operation, Table

__all__ = ["Operation", "operation", "operations"]


@cache
def operations() -> Table:
    """All instructions, by their mnemonic."""
    table: Table = {}
    for part in (integers, bits, floats, halves, comparisons, conversions):
        table |= part.operations()
    return table


def operation(opcode: str) -> Operation | None:
    """The instruction of a mnemonic such as "setp.lt.and.f32", or None if it is not known."""
    return operations().get(opcode)
