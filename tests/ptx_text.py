"""Small kernels written as PTX text, executed on the PTX machine under every style of schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from ptx.errors import MachineError
from ptx.launches import Launch
from ptx.machine import Machine
from ptx.memory import AddressSpace, Storage
from ptx.parse import parse
from ptx.program import Program
from ptx.schedule import STYLES, Schedule
from ptx.tensor_map import TensorMap

Wrong = Callable[[list[np.ndarray]], bool]
SCHEDULES = [(seed, style) for style in STYLES for seed in range(5)]
HERE = "// here"  # marks the line that a fault must name
REGISTERS = """
    .reg .pred %p<16>;
    .reg .b16 %h<32>;
    .reg .b32 %r<64>;
    .reg .f32 %f<260>;
    .reg .b64 %d<32>;
    .reg .b32 %tid, %lane, %warp, %block;
    .reg .b64 %mine, %offset;
"""
FIRST = """
    mov.u32 %tid, %tid.x;
    mov.u32 %lane, %laneid;
    shr.u32 %warp, %tid, 5;
    mov.u32 %block, %ctaid.x;
"""


class Fresh(NamedTuple):
    """An array that no one has written: its bytes are poison."""

    shape: tuple[int, ...]
    dtype: Any = np.uint32


def kernel(body: str, target: str = "sm_90a", shared: str = "", before: str = "", rules: str = "", **kinds: str) -> str:
    """The PTX of a kernel `main` with parameters such as out="u64". Each is in a register of its name.

    Registers that it may use: %p, %h (16 bits), %r, %f, %d (64 bits) with a number; %tid, %lane, %warp, %block hold
    their values. %mine is the address of the thread's element of 4 bytes in the parameter `out`.
    """
    parameters = ", ".join(f".param .{kind} {name}" for name, kind in kinds.items())
    loads = "".join(
        f"    .reg .{'b64' if kind == 'u64' else 'b32'} %{name};\n    ld.param.{kind} %{name}, [{name}];\n"
        for name, kind in kinds.items()
        if "[" not in name and kind in ("u64", "u32")
    )
    if "out" in kinds:
        loads += "    mov.u32 %r63, %ntid.x;\n    mad.lo.s32 %r63, %block, %r63, %tid;\n"
        loads += "    mul.wide.u32 %offset, %r63, 4;\n    add.s64 %mine, %out, %offset;\n"
    head = f".version 8.8\n.target {target}\n.address_size 64\n{shared}\n{before}"
    return f"{head}\n.visible .entry main({parameters}) {rules}\n{{{REGISTERS}{FIRST}{loads}{body}\n    ret;\n}}\n"


@cache
def program(text: str, name: str = "main") -> Program:
    return Program(parse(text), name)


def address(argument: int) -> int:
    """Where the array of this argument lies."""
    return 0x1_0000_0000 * (argument + 1)


def placed(memory: AddressSpace, arguments: Sequence[Any]) -> list[bytes]:
    """Puts arrays into memory; returns the bytes of all arguments."""
    given = []
    for i, one in enumerate(arguments):
        if isinstance(one, TensorMap):
            given.append(one.to_bytes())
        elif isinstance(one, np.ndarray | Fresh) and one.shape != ():
            size = int(np.prod(one.shape)) * np.dtype(one.dtype).itemsize
            data = None if isinstance(one, Fresh) else np.ascontiguousarray(one)
            if all(storage.base != address(i) for storage in memory.storages):
                memory.add(Storage(f"argument {i}", address(i), size, data is None, data))
            given.append(address(i).to_bytes(8, "little"))
        else:
            given.append(one if isinstance(one, bytes) else one.tobytes())
    return given


class Shape(NamedTuple):
    """How a kernel is launched."""

    grid: int = 1
    block: int | tuple[int, int, int] = 32
    shared: int = 0
    cluster: tuple[int, int, int] | None = None
    overlaps: bool = False


ONE_WARP = Shape()


def execute(
    text: str | Sequence[str],
    arguments: Sequence[Any],
    shape: Shape = ONE_WARP,
    seed: int = 0,
    style: str | None = None,
    most: int = 1_000_000,
) -> list[np.ndarray]:
    """Runs kernels `main` (texts; one stream) with the same arguments: arrays, Fresh, numpy scalars, tensor maps.

    Returns all arrays after the run.
    """
    memory = AddressSpace()
    given = placed(memory, arguments)
    block = shape.block if isinstance(shape.block, tuple) else (shape.block, 1, 1)
    launch = Launch("main", (shape.grid, 1, 1), block, shape.shared, shape.overlaps, shape.cluster, 0, given)
    texts = [text] if isinstance(text, str) else text
    Machine(memory, Schedule(seed, style), most=most).run([(program(one), launch) for one in texts])
    return [
        memory.find(address(i))
        .data[: int(np.prod(one.shape)) * np.dtype(one.dtype).itemsize]
        .copy()
        .view(one.dtype)
        .reshape(one.shape)
        for i, one in enumerate(arguments)
        if isinstance(one, np.ndarray | Fresh) and one.shape != ()
    ]


def always(
    text: str | Sequence[str], arguments: Sequence[Any], expected: Any, shape: Shape = ONE_WARP, result: int = 0
) -> None:
    """Every schedule gives the expected values of the array `result`."""
    for seed, style in SCHEDULES:
        found = execute(text, arguments, shape, seed, style)[result]
        np.testing.assert_array_equal(found, expected, f"seed {seed}, {style}")


def fails(
    kind: type[MachineError] | tuple[type[MachineError], ...],
    text: str | Sequence[str],
    arguments: Sequence[Any],
    shape: Shape = ONE_WARP,
    says: str = "",
    schedules: Iterable[tuple[int, str]] = tuple(SCHEDULES),
) -> None:
    """Every schedule reports a fault of this class, or of one of these, and names one of the lines marked with HERE."""
    whole = text if isinstance(text, str) else "\n".join(text)
    lines = [i for i, line in enumerate(whole.splitlines(), 1) if HERE in line]
    for seed, style in schedules:
        with pytest.raises(kind, match=says or None) as caught:
            execute(text, arguments, shape, seed, style)
        said = str(caught.value)
        assert type(caught.value) in (kind if isinstance(kind, tuple) else (kind,)), said
        assert not lines or any(f"line {line}:" in said for line in lines), f"lines {lines} are not named: {said}"


def sometimes(
    kind: type[MachineError], text: str, arguments: Sequence[Any], shape: Shape = ONE_WARP, wrong: Wrong | None = None
) -> int:
    """In how many of the schedules a fault of this class is reported, or the results are wrong."""
    count = 0
    for seed, style in SCHEDULES:
        try:
            found = execute(text, arguments, shape, seed, style)
            count += wrong is not None and bool(wrong(found))
        except kind:
            count += 1
    return count
