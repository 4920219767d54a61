"""A program: the code of one kernel as Python functions, with every register, constant and parameter in a slot.

A step is a function of a warp. It returns None (go on behind it), the number of another step, or WAIT and the like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import LaunchError, MachineError, UnknownInstruction
from .linkage import aligned, placed, reachable, variables
from .names import quoted
from .syntax import (
    SIZES,
    Function,
    Immediate,
    Instruction,
    Module,
    Negated,
    Operand,
    Register,
    Symbol,
)
from .warp import FULL

Step = Callable[[Any], "int | None"]
KINDS = {0: "pred", 1: "b16", 2: "b16", 4: "b32", 8: "b64"}  # of a register, by the size of its type
DTYPES = {"b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
SHARED_WINDOW = 0x7F00_0000_0000_0000  # generic addresses from here on are shared memory
PARAMETER_WINDOW = 0x7E00_0000_0000_0000
LOCAL_WINDOW = 0x7D00_0000_0000_0000
CTA_SHIFT = 24  # a shared::cluster address holds one more than the block's rank above these bits
RESERVED_SHARED = 1024  # the system's, in front of a block's shared memory from sm_90 on
SPECIAL_VECTORS = {"tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid"}
SPECIAL = {"laneid", "warpid", "nwarpid", "cluster_ctarank", "cluster_nctarank", "dynamic_smem_size"}
SPECIAL |= {f"lanemask_{word}" for word in ("eq", "lt", "le", "gt", "ge")}
GARBAGE = {kind: np.full(32, 0xA5A5A5A5A5A5A5A5 & np.iinfo(dtype).max, dtype) for kind, dtype in DTYPES.items()}


def kind_of(type_name: str) -> str:
    return KINDS[SIZES[type_name]]


class Program:
    """The kernel `name` of a module, and the functions that it calls."""

    def __init__(self, module: Module, name: str) -> None:
        if name not in module.functions or not module.functions[name].entry:
            raise LaunchError(f"the module has no kernel {name}")
        self.module, self.kernel = module, module.functions[name]
        self.code: list[Step] = []
        self.instructions: list[Instruction] = []  # of each step
        self.registers: list[Any] = []  # what a warp's registers hold at the beginning
        self.poison: list[int] = []
        self.slots: dict[tuple, int] = {}
        self.entry = 0
        self.starts: dict[str, int] = {}
        self.special: dict[str, int] = {}  # %tid.x -> slot
        functions = reachable(module, self.kernel)
        named = variables(module, functions)
        self.parameters, self.parameter_bytes = placed(self.kernel.parameters)
        reserved = RESERVED_SHARED if module.architecture >= 90 else 0
        shared = [v for v in named if v.space == "shared"]
        self.shared, self.static_end = placed([v for v in shared if not v.extern], reserved)
        self.static_shared = self.static_end - reserved
        self.local, self.local_bytes = placed([v for v in named if v.space == "local"])
        dynamic = [v for v in shared if v.extern]
        self.dynamic_start = aligned(self.static_end, max((v.align for v in dynamic), default=16))
        self.shared |= {v.name: self.dynamic_start for v in dynamic}
        self.asynchronous = any(
            one.opcode.startswith(("wgmma", "cp.async.bulk"))
            for function in module.functions.values()
            for one in function.body
        )
        for function in functions:
            self.add(function)
        self.link()

    # Slots

    def slot(self, key: tuple, value: Any, poison: int) -> int:
        if key not in self.slots:
            self.slots[key] = len(self.registers)
            self.registers.append(value)
            self.poison.append(poison)
        return self.slots[key]

    def register(self, function: Function, name: str) -> int:
        if name.startswith("%") and name not in function.registers:
            return self.special_register(name)
        kind = kind_of(function.registers[name])
        return self.slot((function.name, name), GARBAGE.get(kind, 0x5A5A5A5A), FULL)

    def special_register(self, name: str) -> int:
        word, _, part = name.removeprefix("%").partition(".")
        if word not in (SPECIAL_VECTORS if part in ("x", "y", "z") else SPECIAL) or (part and word in SPECIAL):
            raise UnknownInstruction(f"the special register {name} is not known")
        if name not in self.special:
            self.special[name] = self.slot((name,), None, 0)
        return self.special[name]

    def constant(self, value: int, kind: str) -> int:
        if kind == "pred":
            return self.slot(("constant", "pred", bool(value)), FULL if value else 0, 0)
        dtype = DTYPES[kind]
        bits = value & int(np.iinfo(dtype).max)
        return self.slot(("constant", kind, bits), np.full(32, bits, dtype), 0)

    def parameter_slot(self, variable: str, offset: int, kind: str) -> int:
        """A part of a call's parameter, which every lane has."""
        return self.slot(("parameter", variable, offset, kind), GARBAGE[kind], FULL)

    def address(self, name: str) -> int:
        """The address of a variable in its own state space."""
        for places in (self.parameters, self.shared, self.local):
            if name in places:
                return places[name]
        raise UnknownInstruction(f"{name} is no variable that is known")

    def source(self, function: Function, operand: Operand, kind: str) -> int:
        """The slot of an operand that is read."""
        if isinstance(operand, Register):
            return self.register(function, operand.name)
        if isinstance(operand, Immediate):
            value = operand.value
            if operand.size == 8 and kind == "b32":  # a float64 literal for a float32
                value = int(np.array(value, np.uint64).view(np.float64).astype(np.float32).view(np.uint32))
            return self.constant(value, kind)
        if isinstance(operand, Symbol):
            return self.constant(self.address(operand.name) + operand.offset, kind)
        raise UnknownInstruction(f"{operand} cannot be read here")

    def target(self, function: Function, operand: Operand) -> int:
        """The slot of an operand that is written; `_` takes what nobody reads."""
        if isinstance(operand, Register) and operand.name in function.registers:
            return self.register(function, operand.name)
        if isinstance(operand, Symbol) and operand.name == "_":
            return self.slot(("sink",), GARBAGE["b64"], FULL)
        raise UnknownInstruction(f"{operand} cannot be written")

    # Code

    def add(self, function: Function) -> None:
        from .decode import decode

        self.starts[function.name] = len(self.code)
        places = []
        for one in function.body:
            places.append(len(self.code))
            try:
                steps = decode(self, function, one)
            except (KeyError, ValueError, TypeError, IndexError, NotImplementedError) as problem:
                raise UnknownInstruction(
                    f"line {one.line}: {one.text[:300]} cannot be decoded: {problem!r}"
                ) from problem
            except MachineError as problem:
                problem.where = problem.where or f"line {one.line}: {one.text[:300]}"
                raise
            self.code += steps
            self.instructions += [one] * len(steps)
        places.append(len(self.code))
        self.code.append(fell_off)
        self.instructions.append(function.body[-1])
        for label, at in function.labels.items():
            self.starts[f"{function.name}:{label}"] = places[at]

    def link(self) -> None:
        """Branches and calls know their targets by name until all code is there."""
        self.entry = self.starts[self.kernel.name]
        for step, one in zip(self.code, self.instructions, strict=True):
            if (link := getattr(step, "link", None)) is not None:
                try:
                    link(self.starts)
                except KeyError as missing:
                    raise UnknownInstruction(f"line {one.line}: {one.text}: there is no label {missing}") from None

    def line(self, pc: int) -> int:
        return self.instructions[pc].line

    def source_line(self, pc: int) -> str:
        """`scan_sm90.cu:137: x = y;`, with the place that it was inlined into."""
        location = self.instructions[pc].location
        if location is None:
            return ""
        files = self.module.files
        said = quoted(files.get(location.file, "?"), location.line)
        if location.inlined:
            said += f"\n    inlined at {quoted(files.get(location.inlined[0], '?'), location.inlined[1])}"
        return said

    @property
    def cluster(self) -> tuple[int, ...]:
        return self.kernel.directives.get("reqnctapercluster", (1, 1, 1))


def fell_off(warp: Any) -> int:
    raise UnknownInstruction("the code ends here without ret")


def negated_source(program: Program, function: Function, operand: Operand) -> tuple[int, bool]:
    """The slot of a predicate operand, and whether it is negated."""
    if isinstance(operand, Negated):
        return program.register(function, operand.register.name), True
    return program.source(function, operand, "pred"), False
