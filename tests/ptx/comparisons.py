"""Comparisons, selections and moves."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from .floats import flushing
from .halves import HALVES
from .masks import FULL, to_bools, to_mask
from .operation import FLOATS, SIGNED, UNSIGNED, UNTYPED, Operation, Table

ORDERED = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
EQUAL = {"eq": np.equal, "ne": np.not_equal}
OF_UNSIGNED = {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
BOOLEAN = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def compare(function: Callable, view: Callable | None = None) -> Callable:
    """The mask of function(a, b). view: applied to both sources first."""
    if view is None:
        return lambda a, b: to_mask(function(a, b))
    return lambda a, b: to_mask(function(view(a), view(b)))


def complement(comparison: Callable) -> Callable:
    """The opposite of a comparison."""
    return lambda a, b: FULL ^ comparison(a, b)


def viewing(number: type) -> Callable:
    """The numbers in a register."""
    return lambda a: a.view(number)


def _numbers(x, y):
    return (x == x) & (y == y)


def _differ(x, y):
    return (x < y) | (x > y)


def of_floats(view: Callable) -> dict[str, Callable]:
    """All comparisons of floats: false for a NaN, or true for it if the name ends in u."""
    table = {name: compare(function, view) for name, function in (ORDERED | {"eq": np.equal}).items()}
    opposite = {"ltu": np.greater_equal, "leu": np.greater, "gtu": np.less_equal, "geu": np.less, "equ": _differ}
    table |= {name: complement(compare(function, view)) for name, function in opposite.items()}
    table |= {"ne": compare(_differ, view), "neu": compare(np.not_equal, view)}
    return table | {"num": compare(_numbers, view), "nan": complement(compare(_numbers, view))}


def _combined(functions: dict[str, Callable], name: str, kind: str) -> Table:
    """The comparisons of one type, alone and combined with a predicate."""
    table: Table = {}
    for key, function in functions.items():
        table[f"setp.{key}.{name}"] = Operation(function, (kind, kind), "pred")
        for boolean, combine in BOOLEAN.items():
            table[f"setp.{key}.{boolean}.{name}"] = Operation(_then(function, combine), (kind, kind, "pred"), "pred")
    return table


def _then(function: Callable, combine: Callable) -> Callable:
    return lambda a, b, p: combine(function(a, b), p)


def _comparisons() -> Table:
    table: Table = {}
    for name, of in UNTYPED.items():
        table |= _combined({key: compare(f) for key, f in EQUAL.items()}, name, of.kind)
    for name, of in UNSIGNED.items():
        functions = EQUAL | ORDERED | OF_UNSIGNED
        table |= _combined({key: compare(f) for key, f in functions.items()}, name, of.kind)
    for name, of in SIGNED.items():
        functions = {key: compare(f) for key, f in EQUAL.items()}
        functions |= {key: compare(f, viewing(of.number)) for key, f in ORDERED.items()}
        table |= _combined(functions, name, of.kind)
    for name, of in FLOATS.items():
        table |= _combined(of_floats(viewing(of.number)), name, of.kind)
    flushed = {key: flushing(f, result=False) for key, f in of_floats(viewing(np.float32)).items()}
    table |= _combined(flushed, "ftz.f32", "b32")
    for name, half in HALVES.items():
        table |= _combined(of_floats(half.widen), name, "b16")
    return table


def select(a, b, p: int):
    """selp: a in the lanes of the mask, b elsewhere."""
    return np.where(to_bools(p), a, b)


def _copy(a):
    return a.copy()


def operations() -> Table:
    """All instructions of this file."""
    table = _comparisons()
    for name, of in (UNTYPED | UNSIGNED | SIGNED | FLOATS).items():
        table[f"selp.{name}"] = Operation(select, (of.kind, of.kind, "pred"), of.kind)
        table[f"mov.{name}"] = Operation(_copy, (of.kind,), of.kind)
    table["mov.pred"] = Operation(lambda p: p, ("pred",), "pred")
    return table
