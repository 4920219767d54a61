"""cvt: conversions between integers and floats of all widths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .floats import canonical, flush, flushing
from .halves import HALVES, narrow_f16, pack
from .operation import BYTES, FLOATS, INTEGERS, Operation, Table, Type
from .rounding import add, narrow

MODES = ("rn", "rz", "rm", "rp")
TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
WHOLE = INTEGERS | BYTES
NAMES = (*FLOATS, *HALVES)


def _kind(name: str) -> str:
    return "b16" if name in HALVES else FLOATS[name].kind


def _as_type(a, of: Type):
    """The value of a register of at least the type's width."""
    return a.view(of.number) if a.dtype.itemsize * 8 == of.width else a.astype(of.number)


def between_integers(source: Type, target: Type) -> Callable:
    """Truncation or extension, by the sign if the source is signed. A byte fills 16 bits by its own sign."""
    if target.width == 8:
        return lambda a: a.astype(target.number).astype(np.uint16)
    if source.width >= target.width:
        return lambda a: a.astype(target.register)
    return lambda a: _as_type(a, source).astype(target.number).view(target.register)


def clamping(source: Type, target: Type) -> Callable:
    """cvt.sat between integers: the nearest value that the target has."""
    limits, own = np.iinfo(target.number), np.iinfo(source.number)
    low, high = (source.number(max(own.min, min(own.max, limit))) for limit in (limits.min, limits.max))
    convert = between_integers(source, target)
    return lambda a: convert(np.clip(_as_type(a, source), low, high).astype(source.number).view(_unsigned(source)))


def _unsigned(of: Type) -> type:
    return np.uint8 if of.width == 8 else of.register


def _widened(name: str) -> Callable:
    """Registers of a float as float64."""
    if name in HALVES:
        return HALVES[name].widen
    number = FLOATS[name].number
    return lambda a: a.view(number).astype(np.float64)


def _narrowed(name: str, mode: str) -> Callable:
    """float64 as registers of a float, in a mode of rounding."""
    if name in HALVES:
        return lambda x: HALVES[name].narrow(x, mode)
    of = FLOATS[name]
    if of.number is np.float64:
        return lambda x: canonical(x, of)
    return lambda x: canonical(narrow(x, of.number, mode), of)


def from_integer(source: Type, name: str, mode: str) -> Callable:
    """An integer as a float."""
    if name in FLOATS and mode == "rn":
        number, register = FLOATS[name].number, FLOATS[name].register
        return lambda a: _as_type(a, source).astype(number).view(register)
    narrowed = _narrowed(name, mode)
    if source.width < 64:
        return lambda a: narrowed(_as_type(a, source).astype(np.float64))
    inner = mode if name == "f64" else "odd"
    shift, half = source.number(32), 2.0**32

    def convert(a):
        x = a.view(source.number)
        low = a.astype(np.uint32).astype(np.float64)
        return narrowed(add((x >> shift).astype(np.float64) * half, low, inner))

    return convert


def to_integer(name: str, target: Type, mode: str) -> Callable:
    """A float as an integer: rounded to an integral value, then clamped.

    A NaN becomes zero; if the source or the target has 64 bits, its highest bit alone is set.
    """
    widened, rounding = _widened(name), TO_INTEGRAL[mode]
    limits = np.iinfo(target.number)
    low, high = float(limits.min), float(limits.max + 1)
    wide = "f64" == name or target.width == 64
    of_nan = target.number(limits.min or 1 << (target.width - 1)) if wide else target.number(0)

    def convert(a):
        x = rounding(widened(a))
        inside = (x > low) & (x < high)
        whole = np.where(inside, x, 0.0).astype(target.number)
        whole = np.where(x >= high, target.number(limits.max), np.where(x <= low, target.number(limits.min), whole))
        whole = np.where(np.isnan(x), of_nan, whole)
        return whole if target.width > 8 else whole.astype(np.int16).view(np.uint16)

    return lambda a: convert(a).view(target.register)


def _integers() -> Table:
    table: Table = {}
    for target_name, target in WHOLE.items():
        for source_name, source in WHOLE.items():
            names = f"{target_name}.{source_name}"
            table[f"cvt.{names}"] = Operation(between_integers(source, target), (source.kind,), target.kind)
            table[f"cvt.sat.{names}"] = Operation(clamping(source, target), (source.kind,), target.kind)
    return table


def _integers_and_floats() -> Table:
    table: Table = {}
    for integer, of in WHOLE.items():
        for name in NAMES:
            kind = _kind(name)
            for mode in MODES:
                table[f"cvt.{mode}.{name}.{integer}"] = Operation(from_integer(of, name, mode), (of.kind,), kind)
            for mode in TO_INTEGRAL:
                function = to_integer(name, of, mode)
                table[f"cvt.{mode}.{integer}.{name}"] = Operation(function, (kind,), of.kind)
                if name == "f32":
                    flushed = Operation(flushing(function, result=False), (kind,), of.kind)
                    table[f"cvt.{mode}.ftz.{integer}.{name}"] = flushed
    return table


def _integral(name: str, mode: str) -> Callable:
    """A float rounded to an integral value."""
    widened, narrowed, rounding = _widened(name), _narrowed(name, "rn"), TO_INTEGRAL[mode]
    return lambda a: narrowed(rounding(widened(a)))


def widen(source: str, target: str) -> Callable:
    """A float as a wider one."""
    if source in HALVES and target == "f32":
        if source == "bf16":
            return lambda a: canonical((a.astype(np.uint32) << np.uint32(16)).view(np.float32), FLOATS["f32"])
        return lambda a: canonical(a.view(np.float16).astype(np.float32), FLOATS["f32"])
    widened, of = _widened(source), FLOATS[target]
    return lambda a: canonical(widened(a), of)


def narrowing(source: str, target: str, mode: str) -> Callable:
    """A float as a narrower one, or as one of another format of 16 bits."""
    if mode == "rn" and (source, target) == ("f64", "f32"):
        return lambda a: canonical(a.view(np.float64).astype(np.float32), FLOATS["f32"])
    if mode == "rn" and (source, target) == ("f32", "f16"):
        return lambda a: narrow_f16(a.view(np.float32))
    widened, narrowed = _widened(source), _narrowed(target, mode)
    return lambda a: narrowed(widened(a))


def packing(target: str, mode: str) -> Callable:
    """Two f32 as a pair of halves; the first is the upper one."""
    convert = narrowing("f32", target, mode)
    return lambda a, b: pack(convert(b), convert(a))


def _floats() -> Table:
    table: Table = {}
    for source, target in (("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("bf16", "f64"), ("f32", "f64")):
        up = Operation(widen(source, target), (_kind(source),), _kind(target))
        table[f"cvt.{target}.{source}"] = up
        for mode in MODES:
            down = Operation(narrowing(target, source, mode), (_kind(target),), _kind(source))
            table[f"cvt.{mode}.{source}.{target}"] = down
    table["cvt.ftz.f64.f32"] = Operation(flushing(widen("f32", "f64"), result=False), ("b32",), "b64")
    for mode in MODES:
        down = narrowing("f64", "f32", mode)
        table[f"cvt.{mode}.ftz.f32.f64"] = Operation(_flushed_result(down), ("b64",), "b32")
        for half in HALVES:
            table[f"cvt.{mode}.{half}x2.f32"] = Operation(packing(half, mode), ("b32", "b32"), "b32")
    for name in NAMES:
        for mode in TO_INTEGRAL:
            table[f"cvt.{mode}.{name}.{name}"] = Operation(_integral(name, mode), (_kind(name),), _kind(name))
    return table


def _flushed_result(function: Callable) -> Callable:
    return lambda a: flush(function(a))


def operations() -> Table:
    """All instructions of this file."""
    return _integers() | _integers_and_floats() | _floats()
