"""Faults that are planted into the project's kernels, one at a time, to see whether the PTX machine reports them.

A fault edits the PTX of one kernel, or its launch, of a small search or splice. ptx_faults_sm90.py, ptx_faults_cuda.py
and ptx_faults_triton.py list them; test_ptx_faults.py runs them. The edits suit the PTX of nvcc 13.0 and of Triton 3.8.
With other versions they are skipped.

What the machine cannot see, so that no fault of this kind is listed:
- Weak memory order. Every ordinary access is performed at once, for all to see. A missing membar, a fence of too narrow
  a scope, a relaxed instead of a release, and fence.mbarrier_init left out change nothing.
- A fence.proxy.async between ordinary loads and a bulk copy to the same bytes: only stores want one here.
- Races in global memory between clusters, or with a read that another read hides. A wrong result may show them.
- Races between lanes of one warp that no __syncwarp orders: a schedule that lets the right lanes go first may show one,
  but nothing looks for them. Without its first barrier, splice is such a case as long as a warp holds all slots.
- Faults that need another shape: what only some sizes, types or cards reach is not executed with the others.
- What stands behind the PTX: faults of ptxas, its register allocation (a spill, products that it serialises), SASS.
- What the driver refuses or does beyond the checks of launches and tensor maps, such as an invalid context.
- Speed: bank conflicts, uncoalesced loads, too few stages, a block that does not fit beside another one.
- Equal answers: an error bound that is too wide, or a key that is lost and that the decision does not miss.
- Exact timing: a schedule is drawn from a seed, and a fault that only another schedule shows needs more seeds. Races in
  shared memory are found whatever the schedule is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from kernel_runs import Case, Edit
from ptx.errors import MachineError
from ptx.launches import Launch
from ptx.tensor_map import BYTES, MAGIC, TensorMap
from ptx_fault_runs import run_of

SEEDS = 5  # the first four have the four styles of the schedule


@dataclass(frozen=True)
class Fault:
    """`expected` holds names of errors, or "results": wrong results, or some that were never written."""

    name: str
    says: str
    on: str  # one of ptx_fault_runs.RUNS
    kernel: str  # a part of its name
    expected: set[str]
    edit: Edit | None = None
    launch: Callable[[Launch], Launch] | None = None
    seen_in: str = ""  # the kernel that an error names, if not the one with the fault

    def __str__(self) -> str:
        return f"{self.on}: {self.name}"


@dataclass(frozen=True)
class Report:
    kind: str  # as in Fault.expected
    message: str
    seed: int


def put(pattern: str, replacement: str, *which: int) -> Edit:
    """Replaces the matches of these numbers, or all of them; there must be enough of them."""

    def edit(text: str) -> str:
        matches = list(re.finditer(pattern, text, re.MULTILINE))
        if not matches or any(not -len(matches) <= i < len(matches) for i in which):
            raise ValueError(f"{pattern!r} matches {len(matches)} times, but {which or 'one'} is wanted")
        chosen = {i % len(matches) for i in which} or set(range(len(matches)))
        for i in sorted(chosen, reverse=True):
            text = text[: matches[i].start()] + matches[i].expand(replacement) + text[matches[i].end() :]
        return text

    return edit


def drop(pattern: str, *which: int) -> Edit:
    """Takes instructions away: what matches up to the semicolon, and a guard in front of it."""
    return put(rf"(?:@!?%\w+\s+)?(?:{pattern})[^;]*;", "", *which)


def both(*edits: Edit) -> Edit:
    def edit(text: str) -> str:
        for one in edits:
            text = one(text)
        return text

    return edit


def with_map(number: int, **changes: object) -> Callable[[Launch], Launch]:
    """Changes fields of the tensor map that is argument `number` among the tensor maps."""

    def change(launch: Launch) -> Launch:
        arguments = list(launch.arguments)
        places = [i for i, one in enumerate(arguments) if len(one) == BYTES and one.startswith(MAGIC)]
        tensor_map = TensorMap.from_bytes(arguments[places[number]])
        arguments[places[number]] = replace(tensor_map, **changes).to_bytes()
        return replace(launch, arguments=arguments)

    return change


def with_shared(bytes_less: int) -> Callable[[Launch], Launch]:
    return lambda launch: replace(launch, shared_bytes=launch.shared_bytes - bytes_less)


def plant(fault: Fault) -> Case:
    """The case with the fault; a ValueError if it changes nothing."""
    case = run_of(fault.on).case
    if not any(fault.kernel in launch.kernel for _, launch in case.launches):
        raise ValueError(f"{fault.on} launches no kernel {fault.kernel}")
    if fault.edit is not None:
        entry = re.compile(rf"\.entry\s+\w*{fault.kernel}\w*")
        case = case.edited(lambda text: fault.edit(text) if entry.search(text) else text)
    if fault.launch is not None:
        launches = [(t, fault.launch(one) if fault.kernel in one.kernel else one) for t, one in case.launches]
        case = replace(case, launches=launches)
    return case


def report(fault: Fault, seeds: Iterable[int] = range(SEEDS)) -> Report | None:
    """What is reported first, or None."""
    case, run = plant(fault), run_of(fault.on)
    for seed in seeds:
        try:
            ran = case.run(seed)
        except MachineError as problem:
            return Report(type(problem).__name__, str(problem), seed)
        if wrong := run.wrong(ran):
            return Report("results", wrong, seed)
    return None


def instructions(fault: Fault, message: str) -> list[str]:
    """The instructions that a message names, where the PTX with the fault has them at the lines that it gives."""

    def close(text: str) -> str:
        return re.split(r"[\[{]", "".join(text.split()))[0][:20]

    kernel = fault.seen_in or fault.kernel
    texts = [text.splitlines() for text, launch in plant(fault).launches if kernel in launch.kernel]
    named = [(int(line), close(text)) for line, text in re.findall(r"line (\d+): (.*)", message)]
    return [text for line, text in named if any(text == close(lines[line - 1]) for lines in texts)]
