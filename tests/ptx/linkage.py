"""What a kernel reaches in its module: the functions that it calls, the variables that they name, where these lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .errors import UnknownInstruction
from .syntax import Function, Group, Instruction, Memory, Module, Operand, Symbol, Variable, Vector


def aligned(at: int, align: int) -> int:
    return -(-at // align) * align


def placed(variables: list[Variable], start: int = 0) -> tuple[dict[str, int], int]:
    """Where each variable lies, one behind another, and the end."""
    places, at = {}, start
    for one in variables:
        at = aligned(at, one.align or 1)
        places[one.name] = at
        at += one.size
    return places, at


def callee(module: Module, call: Instruction) -> Function:
    names = [o.name for o in call.operands if isinstance(o, Symbol) and o.name in module.functions]
    if len(names) != 1:
        raise UnknownInstruction(f"line {call.line}: it calls no function that is known: {call.text}")
    return module.functions[names[0]]


def reachable(module: Module, kernel: Function) -> list[Function]:
    """The kernel and the functions that it calls, directly or not."""
    found = [kernel]
    for function in found:
        for one in function.body:
            if one.base == "call" and (called := callee(module, one)) not in found:
                found.append(called)
    return found


def variables(module: Module, functions: list[Function]) -> list[Variable]:
    """The functions' own variables, behind those of the module that they name. A kernel has no place for others."""
    named = {name for function in functions for one in function.body for name in _names(one.operands)}
    common = [one for name, one in module.variables.items() if name in named]
    return [*common, *(one for function in functions for one in function.variables.values())]


def _names(operands: Iterable[Operand]) -> Iterator[str]:
    for one in operands:
        if isinstance(one, Symbol):
            yield one.name
        elif isinstance(one, Memory):
            yield from _names([one.base])
        elif isinstance(one, (Vector, Group)):
            yield from _names(one.parts)
