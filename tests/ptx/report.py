"""Runs something with many seeds, collects the faults, and prints them: shared by the command lines."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .errors import MachineError, UnknownInstruction
from .names import ranges
from .schedule import STYLES

CLEAN, FAULTY, USAGE = 0, 1, 2  # exit codes
MOST_FAULTS = 10  # that are printed


class UsageError(Exception):
    """What a command was given is not right: one sentence."""


class WrongResult(MachineError):
    """A run without a fault whose result is not the right one."""


class CommandLine(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage in front; the exit code is USAGE."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))

    def add_seeds(self, limit: int = 2_000_000) -> None:
        self.add_argument("--seeds", type=positive, default=20, metavar="N", help="how many seeds, from 0 on (20)")
        self.add_argument("--seed", type=natural, metavar="N", help="this seed alone, to see a fault again")
        self.add_argument(
            "--limit",
            type=positive,
            default=limit,
            metavar="N",
            help=f"instructions of warps after which a run counts as endless ({limit})",
        )
        self.add_argument(
            "--style", choices=STYLES, help="the schedule; by default, each seed takes the next one of the four"
        )


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def guarded(name: str, command: Callable[[], int]) -> int:
    """The exit code of a command. What is wrong with its arguments is one sentence on the standard error."""
    try:
        return command()
    except UsageError as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as `| head`
        sys.stderr.close()
        return FAULTY


@dataclass
class Fault:
    kind: str
    text: str  # what was said with the first seed
    seeds: list[int] = field(default_factory=list)


@dataclass
class Report:
    """Of every seed either its result or a fault."""

    seeds: list[int]
    style: str | None
    faults: list[Fault] = field(default_factory=list)
    results: dict[int, Any] = field(default_factory=dict)
    seconds: float = 0

    @property
    def code(self) -> int:
        return FAULTY if self.faults else CLEAN

    def styles(self, seeds: Sequence[int]) -> str:
        """The styles that seeds have."""
        names = [self.style] if self.style else [s for i, s in enumerate(STYLES) if any(n % 4 == i for n in seeds)]
        return f"style{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def add(self, seed: int, problem: BaseException) -> None:
        """A fault of a seed; equal ones are one."""
        if isinstance(problem, MachineError):
            limit = ", a limit of the machine," if isinstance(problem, UnknownInstruction) else ""
            kind, text, key = type(problem).__name__ + limit, str(problem), alike(problem)
        else:
            kind = text = key = f"the machine itself failed with {type(problem).__name__}: {problem}"
        for fault, known in zip(self.faults, self.keys, strict=True):
            if known == key:
                fault.seeds.append(seed)
                return
        self.faults.append(Fault(kind, text, [seed]))
        self.keys.append(key)

    def __post_init__(self) -> None:
        self.keys: list[Any] = []


def alike(problem: MachineError) -> tuple:
    """Equal for faults that differ in block, warp, lanes or address only."""
    first = str(problem.args[0] if problem.args else "").partition("\n")[0]
    line = re.search(r"\bline (\d+)", problem.where)
    return type(problem), re.sub(r"0x[0-9a-f]+|\d+", "#", first), line and line[1]


def run(options: argparse.Namespace, once: Callable[[int], Any]) -> Report:
    """Calls `once` with each seed of the options; it returns a result or raises a MachineError."""
    seeds = [options.seed] if options.seed is not None else list(range(options.seeds))
    report, began = Report(seeds, options.style), time.perf_counter()
    for count, seed in enumerate(seeds):
        progress(f"seed {seed}, {count} of {len(seeds)} done, {len(report.faults)} faults")
        try:
            report.results[seed] = once(seed)
        except Exception as problem:  # a fault of the machine itself must not hide what the other seeds say
            report.add(seed, problem)
    progress("")
    report.seconds = time.perf_counter() - began
    return report


def progress(text: str) -> None:
    """One line that the next one replaces, for people only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def print_faults(report: Report) -> None:
    for number, fault in enumerate(report.faults[:MOST_FAULTS], 1):
        seeds = f"seed {fault.seeds[0]}" if len(fault.seeds) == 1 else f"seeds {ranges(fault.seeds)}"
        print(f"fault {number}: {fault.kind} with {seeds} ({report.styles(fault.seeds)})")
        print("\n".join(f"  {line}" for line in fault.text.splitlines()) + "\n")
    if len(report.faults) > MOST_FAULTS:
        print(f"and {len(report.faults) - MOST_FAULTS} more faults\n")


def print_summary(report: Report, executed: Sequence[int]) -> None:
    """executed: the instructions that the warps executed with each seed that ended."""
    count = len(report.seeds)
    which = f"{count} seeds" if count > 1 else f"seed {report.seeds[0]}"
    faulty = count - len(report.results)
    found = "no fault" if not faulty else f"a fault with {faulty} of them" if count > 1 else "a fault"
    most = f"; {max(executed):,} instructions of warps" if executed else ""
    print(f"{which}: {found} ({report.styles(report.seeds)}{most}; {report.seconds:.1f} s)")
