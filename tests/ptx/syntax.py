"""What the parser makes of PTX: modules, functions, instructions and their operands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

SIZES = {"pred": 0, "b8": 1, "s8": 1, "u8": 1, "b16": 2, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
SIZES |= {"b32": 4, "s32": 4, "u32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "s64": 8, "u64": 8, "f64": 8}


class Register(NamedTuple):
    name: str  # unique within the function


class Immediate(NamedTuple):
    """An integer, or the bits of a float of `size` bytes (0 for an integer)."""

    value: int
    size: int = 0


class Symbol(NamedTuple):
    """The address of a variable, a parameter or a function; also `_`."""

    name: str
    offset: int = 0


class Negated(NamedTuple):
    """A predicate operand with an exclamation mark."""

    register: Register


class Memory(NamedTuple):
    """[base + offset], or [base, {coordinates}] of a tensor map."""

    base: Register | Symbol | Immediate
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


class Vector(NamedTuple):
    parts: tuple[Operand, ...]


class Group(NamedTuple):
    """The arguments or results of a call, in parentheses."""

    parts: tuple[Operand, ...]


Operand = Register | Immediate | Symbol | Negated | Memory | Vector | Group


class Location(NamedTuple):
    """A line of a source file; `inlined` is the place that it was inlined into."""

    file: int
    line: int
    inlined: tuple[int, int] | None = None


@dataclass
class Instruction:
    opcode: str  # with all modifiers
    operands: tuple[Operand, ...]
    guard: Register | None = None
    negated: bool = False
    line: int = 0  # of the PTX text
    location: Location | None = None
    text: str = ""

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])


@dataclass
class Variable:
    """A variable or parameter: its state space, the type of its elements, its size and alignment in bytes."""

    name: str
    space: str
    type: str
    size: int
    align: int
    extern: bool = False
    pointer: bool = False  # a parameter that is said to be an address


@dataclass
class Function:
    name: str
    entry: bool
    parameters: list[Variable] = field(default_factory=list)
    results: list[Variable] = field(default_factory=list)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)  # such as {"maxntid": (128, 1, 1)}
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: dict[str, Variable] = field(default_factory=dict)
    body: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name -> index in the body


@dataclass
class Module:
    version: str = ""
    target: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)

    @property
    def architecture(self) -> int:
        """80, 90, …"""
        return int("".join(c for c in self.target.removeprefix("sm_") if c.isdigit()) or 0)
