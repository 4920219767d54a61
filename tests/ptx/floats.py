"""Arithmetic of f32 and f64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .operation import FLOATS, Operation, Table, Type
from .rounding import fma32, fma64

SIGN32 = np.uint32(0x80000000)
EXPONENT32 = np.uint32(0x7F800000)


def canonical(values, of: Type):
    """The registers of floats, where a NaN has all bits but the sign set."""
    total = values.dot(values) if values.ndim else values  # it is NaN if one of the values is
    if total == total:
        return values.view(of.register)
    return np.where(np.isnan(values), of.register(2 ** (of.width - 1) - 1), values.view(of.register))


def flush(bits):
    """Registers of f32, where a subnormal becomes a zero of its sign."""
    return np.where(bits & EXPONENT32, bits, bits & SIGN32)


def flushing(function: Callable, result: bool = True) -> Callable:
    """The function of registers of f32 with its subnormal sources, and its result, flushed."""
    if result:
        return lambda *sources: flush(function(*[flush(source) for source in sources]))
    return lambda *sources: function(*[flush(source) for source in sources])


def saturating(function: Callable) -> Callable:
    """The function of registers of f32 with its result clamped to [0, 1]; a NaN becomes 0."""
    zero, one = np.float32(0), np.float32(1)

    def saturated(*sources):
        x = function(*sources).view(np.float32)
        return np.where(x > zero, np.minimum(x, one), zero).view(np.uint32)

    return saturated


def arithmetic(function: Callable, of: Type) -> Callable:
    """The function of floats as one of registers."""
    number = of.number
    return lambda *sources: canonical(function(*[source.view(number) for source in sources]), of)


def binary(function: Callable, of: Type) -> Callable:
    """The same for two sources, in less time."""
    number = of.number
    return lambda a, b: canonical(function(a.view(number), b.view(number)), of)


def select_extreme(function: Callable, largest: bool, of: Type) -> Callable:
    """max and min. function: of numpy, which says what becomes of a NaN. -0 is less than +0."""
    number = of.number

    def extreme(a, b):
        x, y = a.view(number), b.view(number)
        result = function(x, y)
        if np.count_nonzero(result) != np.size(result):
            ties = (a & b if largest else a | b).view(number)
            result = np.where(x == y, ties, result)
        return canonical(result, of)

    return extreme


def absolute(of: Type) -> Callable:
    """abs, of NaNs too."""
    mask = of.register(2 ** (of.width - 1) - 1)
    return lambda a: a & mask


def negated(of: Type) -> Callable:
    """neg, of NaNs too."""
    mask = of.register(2 ** (of.width - 1))
    return lambda a: a ^ mask


def copy_sign(of: Type) -> Callable:
    """copysign: b with the sign of a."""
    mask = of.register(2 ** (of.width - 1))
    return lambda a, b: (a & mask) | (b & ~mask)


def _rounded(name: str, of: Type) -> Table:
    """The functions that round, to nearest."""
    two, three = (of.kind,) * 2, (of.kind,) * 3
    functions = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    single = of.number is np.float32
    fused = Operation(arithmetic(fma32 if single else fma64, of), three, of.kind)
    table = {f"fma.rn.{name}": fused}
    if not single:
        table["mad.rn.f64"] = fused
    for key, function in functions.items():
        operation = Operation(binary(function, of), two, of.kind)
        table |= {f"{key}.{name}": operation, f"{key}.rn.{name}": operation}
    table[f"div.rn.{name}"] = Operation(binary(np.divide, of), two, of.kind)
    one = of.number(1)
    table[f"rcp.rn.{name}"] = Operation(arithmetic(lambda x: one / x, of), (of.kind,), of.kind)
    table[f"sqrt.rn.{name}"] = Operation(arithmetic(np.sqrt, of), (of.kind,), of.kind)
    return table


def _exact(name: str, of: Type) -> Table:
    """The functions that select or change a sign."""
    one, two = (of.kind,), (of.kind,) * 2
    table = {
        f"abs.{name}": Operation(absolute(of), one, of.kind),
        f"neg.{name}": Operation(negated(of), one, of.kind),
        f"copysign.{name}": Operation(copy_sign(of), two, of.kind),
        f"max.{name}": Operation(select_extreme(np.fmax, True, of), two, of.kind),
        f"min.{name}": Operation(select_extreme(np.fmin, False, of), two, of.kind),
    }
    if of.number is np.float32:
        table["max.NaN.f32"] = Operation(select_extreme(np.maximum, True, of), two, of.kind)
        table["min.NaN.f32"] = Operation(select_extreme(np.minimum, False, of), two, of.kind)
    return table


def _variants(table: Table) -> Table:
    """The instructions of f32 in the table that flush or saturate."""
    variants: Table = {}
    for opcode, (function, sources, result) in table.items():
        stem = opcode.removesuffix(".f32")
        name, *modes = stem.split(".")
        if name == "copysign":
            continue
        ftz = f"{name}.ftz.NaN.f32" if "NaN" in modes else f"{stem}.ftz.f32"
        variants[ftz] = Operation(flushing(function), sources, result)
        if name in ("add", "sub", "mul", "fma"):
            variants[f"{stem}.sat.f32"] = Operation(saturating(function), sources, result)
            variants[f"{stem}.ftz.sat.f32"] = Operation(saturating(flushing(function)), sources, result)
    return variants


def operations() -> Table:
    """All instructions of this file."""
    table: Table = {}
    for name, of in FLOATS.items():
        table |= _rounded(name, of) | _exact(name, of)
    return table | _variants({opcode: operation for opcode, operation in table.items() if opcode.endswith(".f32")})
