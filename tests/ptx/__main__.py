"""python -m tests.ptx FILE: runs a kernel on the PTX machine with many seeds and prints the faults; see README.md."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass

import numpy as np

from .arguments import HELP, Argument, ArgumentError, arguments, wanted
from .compiling import chosen, kernels, module_of
from .errors import LaunchError, MachineError
from .grid import Grid
from .launches import Launch
from .machine import Machine
from .memory import AddressSpace
from .names import demangled, ranges, readable
from .program import Program
from .report import CLEAN, CommandLine, Report, UsageError, guarded, natural, print_faults, print_summary, run
from .schedule import Schedule
from .syntax import Function, Module

SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 120: 99}  # KiB that a block may have, by architecture; 227 elsewhere
SHOWN = 8  # elements of an output


@dataclass(frozen=True)
class Outcome:
    """Of a seed: the bytes of every array, which of them are undefined, and the instructions executed."""

    data: list[np.ndarray]
    undefined: list[np.ndarray]
    executed: int


def sizes(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*){0,2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be one to three numbers from 1 on, such as 128 or 32x4")
    found = [int(one) for one in re.split("[x,]", text)]
    return tuple(found + [1] * (3 - len(found)))


def product(sizes: tuple[int, int, int]) -> str:
    """`2` for (2, 1, 1)."""
    return re.sub("(x1)+$", "", "x".join(map(str, sizes)))


def architecture(text: str) -> str:
    if not re.fullmatch(r"\d{2,3}[af]?", text):
        raise argparse.ArgumentTypeError(f"{text!r} must look like 80, 90 or 90a")
    return text


def command_line() -> CommandLine:
    line = CommandLine(
        "python -m tests.ptx",
        description="Runs a CUDA kernel without a GPU, under schedules that try to break it.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    line.add_argument("file", metavar="FILE", help="a .cu file, which nvcc compiles, or a .ptx file")
    line.add_argument("--list", action="store_true", help="print the kernels and what arguments they want")
    line.add_argument("--kernel", metavar="NAME", help="which kernel; needed where there are several")
    line.add_argument("--grid", type=sizes, default=(2, 1, 1), help="blocks, such as 4 or 4x2 (2)")
    line.add_argument("--block", type=sizes, default=(128, 1, 1), help="threads of a block, such as 256 or 32x4 (128)")
    line.add_argument("--cluster", type=sizes, help="blocks of a cluster, where the kernel itself does not say")
    line.add_argument("--shared", type=natural, default=0, metavar="BYTES", help="dynamic shared memory of a block (0)")
    line.add_argument("--arg", action="append", default=[], metavar="SPEC", help="an argument of the kernel; see below")
    line.add_argument("--arch", type=architecture, default="90a", help="what a .cu file is compiled for (90a)")
    line.add_argument("--flags", default="", help="more flags for nvcc, such as --flags='-I include -DN=4'")
    line.add_seeds()
    return line


def signature(kernel: Function) -> str:
    lines = [f"{demangled(kernel.name)}{'' if demangled(kernel.name) == kernel.name else f'  [{kernel.name}]'}"]
    for number, (one, suits) in enumerate(zip(kernel.parameters, wanted(kernel), strict=True)):
        lines.append(f"  parameter {number}, .{one.type}, {one.size} bytes: {suits}")
    return "\n".join(lines)


def print_kernels(module: Module) -> None:
    for kernel in kernels(module):
        print(signature(kernel))
        try:
            shared = Program(module, kernel.name).static_shared
        except MachineError as problem:
            print(f"  the machine cannot execute it: {problem}")
            continue
        directives = [f"{name} {'x'.join(map(str, value))}" for name, value in kernel.directives.items() if value]
        print(f"  {', '.join([f'{shared} bytes of static shared memory', *directives])}")


def fitting(kernel: Function, texts: list[str]) -> list[Argument]:
    """The arguments of the kernel; a UsageError if they do not suit its parameters."""
    if kernel.parameters and not texts:
        raise UsageError(
            f"no --arg is given, but the kernel has {len(kernel.parameters)} parameters:\n{signature(kernel)}"
        )
    try:
        made = arguments(texts)
    except ArgumentError as problem:
        raise UsageError(str(problem)) from None
    if len(made) != len(kernel.parameters):
        raise UsageError(f"{len(made)} --arg are given for {len(kernel.parameters)} parameters:\n{signature(kernel)}")
    for number, (one, parameter) in enumerate(zip(made, kernel.parameters, strict=True)):
        if len(one.value) != parameter.size:
            raise UsageError(
                f"--arg {one.text} (argument {number}) has {len(one.value)} bytes, but the parameter .{parameter.type} "
                f"has {parameter.size}: {wanted(kernel)[number]}"
            )
    return made


def machine_of(options: argparse.Namespace, module: Module, seed: int) -> Machine:
    shared = SHARED.get(module.architecture, 227) << 10
    machine = Machine(AddressSpace(), Schedule(seed, options.style), shared)
    machine.most = options.limit
    return machine


def run_once(machine: Machine, program: Program, launch: Launch, made: list[Argument]) -> Outcome:
    given = [(f"argument {number}, {one.text}", one.array) for number, one in enumerate(made) if one.array]
    arrays = [machine.memory.add(array.storage(name)) for name, array in given]
    machine.run([(program, launch)])
    return Outcome(
        [one.data[: one.size] for one in arrays], [one.state[: one.size] != 0 for one in arrays], machine.executed
    )


def print_outputs(made: list[Argument], report: Report) -> None:
    """The arrays that the kernel wrote or that were asked for, and whether every seed gave the same bits."""
    pointed = [(number, one) for number, one in enumerate(made) if one.array]
    for at, (number, one) in enumerate(pointed):
        outcomes = {seed: (r.data[at], r.undefined[at]) for seed, r in report.results.items()}
        before = one.array.storage("")
        data, undefined = next(iter(outcomes.values()))
        if not one.array.printed and (data == before.data[: before.size]).all():
            continue
        missing = undefined.reshape(-1, one.array.size // one.array.read(data).size).any(1)
        elements = one.array.read(data).reshape(-1)
        shown = ", ".join("?" if missing[i] else f"{elements[i]:g}" for i in range(min(SHOWN, len(elements))))
        print(f"argument {number}, {one.text}: {shown}{', …' if len(elements) > SHOWN else ''}")
        if missing.any():
            print(f"  {missing.sum()} of {len(missing)} elements (? above) were never written")
        print_difference(one, outcomes)


def print_difference(one: Argument, outcomes: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    groups: list[tuple[list[int], np.ndarray, np.ndarray]] = []  # of seeds with the same bits
    for seed, (data, undefined) in outcomes.items():
        for seeds, same, where in groups:
            if np.array_equal(data, same) and np.array_equal(undefined, where):
                seeds.append(seed)
                break
        else:
            groups.append(([seed], data, undefined))
    if len(groups) == 1:
        return
    print(f"  the seeds gave {len(groups)} different results:")
    width = one.array.size // one.array.read(groups[0][1]).size
    different = (groups[0][1] != groups[1][1]) | (groups[0][2] != groups[1][2])
    place = int(np.flatnonzero(different)[0]) // width
    for seeds, data, undefined in groups[:4]:
        lacking = undefined[place * width : (place + 1) * width].any()
        value = "never written" if lacking else f"{one.array.read(data).reshape(-1)[place]:.9g}"
        print(f"    element {place} is {value} with seed{'s' if len(seeds) > 1 else ''} {ranges(seeds)}")


def command(texts: list[str] | None = None) -> int:
    options = command_line().parse_args(texts)
    module = module_of(options.file, options.arch, options.flags)
    if module.architecture < 80:
        raise UsageError(
            f"FILE is {options.file}, which is for sm_{module.architecture}; the machine knows sm_80 and later"
        )
    if options.list:
        print_kernels(module)
        return CLEAN
    kernel = chosen(module, options.file, options.kernel)
    made = fitting(kernel, options.arg)
    launch = Launch(
        kernel.name, options.grid, options.block, options.shared, False, options.cluster, 0, [a.value for a in made]
    )
    try:
        program = Program(module, kernel.name)
        Grid(machine_of(options, module, 0), program, launch, None)
    except LaunchError as problem:
        sizes = f"--grid {product(options.grid)} --block {product(options.block)} --shared {options.shared}"
        raise UsageError(f"{sizes} cannot be launched: {problem}") from None
    except MachineError as problem:
        raise UsageError(f"FILE is {options.file}, whose kernel the machine cannot execute: {problem}") from None
    report = run(options, lambda seed: run_once(machine_of(options, module, seed), program, launch, made))
    shape = f"grid {product(options.grid)}, block {product(options.block)}"
    print(f"{readable(kernel.name)} of {options.file}, {shape}, {module.target}\n")
    print_faults(report)
    print_summary(report, [one.executed for one in report.results.values()])
    if report.results:
        print_outputs(made, report)
    if not report.faults and len(report.results) > 1:
        print("all seeds gave the same bits" if same_bits(report) else "not all seeds gave the same bits")
    return report.code


def same_bits(report: Report) -> bool:
    first, *others = ([d.tobytes() for d in r.data + r.undefined] for r in report.results.values())
    return all(one == first for one in others)


def main(texts: list[str] | None = None) -> int:
    return guarded("tests.ptx", lambda: command(texts))


if __name__ == "__main__":
    sys.exit(main())
