"""The machine code of the CUDA extension on each chip: registers, stack, shared memory, instructions. Needs no GPU.

    PEZ_FAST_BUILD=cuda pip install -e . && python benchmarks/cuda_report.py --json benchmarks/results/cuda_build.json

Exits with 1 if a kernel is missing, spills, multiplies without tensor cores, does not copy asynchronously, has a fence
of the whole device in a main loop, takes more shared memory than a card has, or has more instructions or loads than
EXPECTED.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import sass
import sass_loads
import triton
from provenance import write
from tables import aligned

COUNTED = re.compile(r"HGMMA|HMMA|UTMALDG|LDGSTS|LDSM")


class Expected(NamedTuple):
    """What the machine code of a kernel must be."""

    needs: tuple[str, ...] = ()
    spills: bool = True  # whether it may spill
    scores: int = 0  # scores of a tile that a thread holds
    instructions: float = 0  # the most instructions for each score
    chain: int | None = None  # the most loads that depend on one another


EXPECTED = {
    "nearest_query": Expected(spills=False),
    "nearest_few": Expected(("HMMA", "LDGSTS"), spills=False),
    "nearest_scan_sm80": Expected(("HMMA", "LDGSTS"), spills=False, scores=64, instructions=3.5),
    "nearest_scan_sm90": Expected(("HGMMA", "UTMALDG"), spills=False, scores=128, instructions=3.0),
    "nearest_decide": Expected(chain=4),
    "nearest_decide d": Expected(),  # any types and strides
    "splice": Expected(),
    "splice_backward": Expected(),
}
KIB = 1 << 10
CARDS = {  # compute capability: shared memory that a block may ask for
    (8, 0): 163 * KIB,
    (8, 6): 99 * KIB,
    (8, 7): 163 * KIB,
    (8, 9): 99 * KIB,
    (9, 0): 227 * KIB,
    (10, 0): 227 * KIB,
    (10, 3): 227 * KIB,
    (11, 0): 227 * KIB,
    (12, 0): 99 * KIB,
    (12, 1): 99 * KIB,
}
WIDTHS = (64, 512, 768, 1024, 1280, 2048, 4096, 8192)
Plans = Callable[[int, int], list[tuple[str, int]]]


@dataclass
class Kernel:
    name: str
    arch: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: dict[str, int] = field(default_factory=dict)
    spills: int = 0
    fences: list[str] = field(default_factory=list)
    epilogue: int | None = None
    chain: int = 0
    rounds: int = 0
    loads: dict[int, int] = field(default_factory=dict)

    @property
    def expected(self) -> Expected:
        return EXPECTED.get(self.name) or EXPECTED.get(self.name.split()[0]) or Expected()

    @property
    def per_score(self) -> float | None:
        """Instructions of the epilogue for each score."""
        scores = self.expected.scores
        return None if self.epilogue is None or not scores else round(self.epilogue / scores, 2)

    @property
    def capability(self) -> tuple[int, int]:
        number = re.sub(r"\D", "", self.arch)
        return int(number[:-1]), int(number[-1])

    def runs(self, card: tuple[int, int]) -> bool:
        """Whether a card runs this code, or its PTX compiled. Code for one chip (sm_90a) runs nowhere else."""
        return self.capability == card if self.arch.endswith("a") else self.capability <= card

    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        expected, wrong = self.expected, [f"has a fence in a main loop: {fence}" for fence in self.fences]
        if not expected.spills and (self.stack_bytes or self.spills):
            wrong.append(f"spills: {self.stack_bytes} bytes of stack, {self.spills} instructions")
        wrong += [f"holds no {name}" for name in expected.needs if not self.instructions.get(name)]
        if expected.scores and self.per_score is None:
            wrong.append("has no epilogue that could be found")
        elif expected.scores and self.per_score > expected.instructions:
            wrong.append(f"takes {self.per_score} instructions for a score; {expected.instructions} are expected")
        if expected.chain is not None and self.chain > expected.chain:
            wrong.append(f"has a chain of {self.chain} dependent loads; {expected.chain} are expected")
        return wrong


def shared_faults(kernels: list[Kernel], plans: Plans) -> list[str]:
    """Where static and dynamic shared memory of a launch exceed what a card gives to a block."""
    wrong = []
    for card, limit in CARDS.items():
        on = "{}.{}".format(*card)
        for width in WIDTHS:
            for name, dynamic in plans(limit, width):
                named = [k for k in kernels if f"{k.name} ".startswith(f"{name} ")]
                if not named:
                    wrong.append(f"{name} is planned for {on} and does not exist")
                    continue
                runs = [k for k in named if k.runs(card)]
                static = max((k.shared_bytes for k in runs), default=0)
                if runs and static + dynamic > limit:
                    sizes = f"{static} + {dynamic} bytes of shared memory of {limit}"
                    wrong.append(f"{name} at width {width} on {on} takes {sizes}")
    return list(dict.fromkeys(wrong))


def all_faults(kernels: list[Kernel], plans: Plans | None) -> list[str]:
    faults = [f"{k.name} on {k.arch} {fault}" for k in kernels for fault in k.faults()]
    present = {name for k in kernels for name in (k.name, k.name.split()[0])}
    faults += [f"there is no {name}" for name in EXPECTED if name not in present]
    if plans is None:
        return [*faults, "the extension does not say how much shared memory its launches take: it has no plans()"]
    return faults + shared_faults(kernels, plans)


def tool(name: str, *options: str) -> Iterable[str]:
    """The lines that a tool of Triton's package prints."""
    command = [getattr(triton.knobs.nvidia, name).path, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def readable(mangled: str) -> str:
    """_ZN3pez…nearest_few_kernelILi16ELi4EE… -> nearest_few 16 4; a template's types become their letters or names."""
    match = re.search(r"\d+((?:nearest|splice)\w*?)_kernel(?:I(.*?)E(?:Ev|v))?", mangled)
    if not match:
        return mangled
    found = re.findall(r"L[ib](\d+)E|NS_\d+(\w+?)E|(__half|__nv_bfloat16|[fd])|(S\d*_)", match[2] or "")
    words: list[str] = []
    for number, name, kind, again in found:  # S_, S1_, … repeat an earlier type
        words.append(number or name or kind or (words[-1] if words else again))
    return " ".join([match[1], *words])


def read(usage: Iterable[str], code: Iterable[str]) -> list[Kernel]:
    """Read what cuobjdump prints with --dump-resource-usage and with --dump-sass."""
    found: dict[tuple[str, str], Kernel] = {}
    arch = name = ""
    for line in usage:
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\w+):", line):
            name = match[1]
        elif "REG:" in line:
            numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            stack = numbers["STACK"] + numbers["LOCAL"]
            kernel = Kernel(readable(name), arch, numbers["REG"], stack, numbers["SHARED"])
            if kernel.capability >= (9, 0):  # cuobjdump counts a KiB of the driver's there; the limits do not
                kernel.shared_bytes = max(0, kernel.shared_bytes - KIB)
            found[arch, name] = kernel
    for function in sass.functions(code):
        if not (kernel := found.get((function.arch, function.name))):
            continue
        counts = Counter(one.base for one in function.instructions if COUNTED.fullmatch(one.base))
        kernel.instructions, kernel.spills = dict(sorted(counts.items())), sass_loads.spills(function)
        kernel.fences, kernel.loads = sass.fences_in_main_loops(function), sass_loads.loads_by_width(function)
        kernel.epilogue = sass.epilogue_instructions(function) if kernel.expected.scores else None
        kernel.chain, kernel.rounds = sass_loads.load_chain_and_rounds(function)
    return sorted(found.values(), key=lambda k: (k.name, k.arch))


def table(kernels: list[Kernel]) -> str:
    header = "kernel,arch,registers,stack,static shared,spills,fences,for a score,chain,rounds,loads,instructions"
    rows = [
        [
            k.name,
            k.arch,
            k.registers,
            k.stack_bytes,
            k.shared_bytes,
            k.spills,
            len(k.fences),
            "" if k.per_score is None else k.per_score,
            k.chain,
            k.rounds,
            " ".join(f"{count}x{bits}" for bits, count in k.loads.items()),
            " ".join(f"{name} {count}" for name, count in k.instructions.items()),
        ]
        for k in kernels
    ]
    return aligned([header.split(","), *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    spec = find_spec("pez_fast._C_cuda")
    if spec is None or spec.origin is None:
        print("the CUDA extension was not built; PEZ_FAST_BUILD=cuda pip install . says why", file=sys.stderr)
        return 1
    from pez_fast import _C_cuda

    usage, code = (tool("cuobjdump", option, spec.origin) for option in ("--dump-resource-usage", "--dump-sass"))
    kernels = read(usage, code)
    print(table(kernels))
    faults = all_faults(kernels, getattr(_C_cuda, "plans", None))
    for fault in faults:
        print(fault, file=sys.stderr)
    if args.json:
        write(args.json, {"build": _C_cuda.build_info(), "kernels": [asdict(k) for k in kernels]})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
