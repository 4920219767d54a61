"""Faults that are planted into the project's kernels, one at a time, to see whether the PTX machine reports them.

A fault edits the PTX of one kernel, or its launch, of a small search or splice. ptx_faults_sm90.py, ptx_faults_cuda.py
and ptx_faults_triton.py list them; test_ptx_faults.py runs them.

What the machine cannot see, so that no fault of this kind is listed:
- Weak memory order. Every ordinary access is performed at once, for all to see. A missing membar, a fence of too narrow
  a scope, a relaxed instead of a release, and fence.mbarrier_init left out change nothing.
- Races in global memory. Blocks that write the same address are not compared; a wrong result shows it, if one does.
- Races between lanes of one warp that no __syncwarp orders: lanes are ordered by the warp that they belong to.
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import kernel_runs
import recorded_triton
import torch
from kernel_runs import Case, Edit, Ran
from ptx.errors import MachineError
from ptx.launches import Launch
from ptx.tensor_map import BYTES, MAGIC, TensorMap
from torch import Tensor

SEEDS = 5  # the first four have the four styles of the schedule


@dataclass(frozen=True)
class Fault:
    """`expected` holds names of errors, or "results": wrong results, or some that were never written."""

    name: str
    says: str
    on: str  # one of RUNS
    kernel: str  # a part of its name
    expected: set[str]
    edit: Edit | None = None
    launch: Callable[[Launch], Launch] | None = None

    def __str__(self) -> str:
        return f"{self.on}: {self.name}"


@dataclass(frozen=True)
class Report:
    kind: str  # as in Fault.expected
    message: str
    seed: int


# Edits


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


# Runs


@dataclass(frozen=True)
class Run:
    case: Case
    result: str
    expected: Tensor

    def wrong(self, ran: Ran) -> str | None:
        """In words what is wrong with the results, or None."""
        try:
            result = ran[self.result]
        except RuntimeError as problem:
            return str(problem)
        different = (result != self.expected) & ~(result.isnan() & self.expected.isnan())
        return f"{int(different.sum())} of {different.numel()} elements of {self.result} differ" * bool(different.any())


def alone(text: str, kernel: str) -> str:
    """The PTX of one kernel: the others are blank lines, so that lines keep their numbers."""

    def cut(match: re.Match) -> str:
        return match[0] if match[1] == kernel else "\n" * match[0].count("\n")

    return re.sub(r"^(?:\.\w+\s+)*\.entry\s+([\w$]+)\s*\(.*?^\}", cut, text, flags=re.MULTILINE | re.DOTALL)


def shortened(case: Case) -> Case:
    return replace(case, launches=[(alone(text, launch.kernel), launch) for text, launch in case.launches])


def behind_query(run: Run) -> Run:
    """Without the kernel that rounds the queries: memory is as it leaves it."""
    case = run.case
    memory = case.only("query").run(0).memory
    kept = [replace(one, data=memory.find(one.address).data[: one.size].copy()) for one in case.memory]
    written = [one if memory.find(one.address).state.all() else new for one, new in zip(case.memory, kept, strict=True)]
    return replace(run, case=replace(case.only("scan", "few", "decide"), memory=written))


def drawn(n: int, tokens: int, d: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g), torch.randn(tokens, d, generator=g)


def tied(n: int, tokens: int, d: int) -> tuple[Tensor, Tensor]:
    """Each query has two nearest tokens of one tile, whose cosines are equal."""
    x, weight = drawn(n, tokens, d)
    for i in range(n):
        weight[8 * i + 64] = weight[8 * i + 1] = 2 * x[i]
    return x, weight


def oracle(x: Tensor, weight: Tensor) -> Tensor:
    """The lowest id of the largest cosines in float64."""
    x, weight = (t.double() / t.double().norm(dim=1, keepdim=True) for t in (x, weight))
    cosines = x @ weight.T
    return (cosines >= cosines.amax(1, keepdim=True) - 1e-12).int().argmax(1)


def search(n: int, tokens: int, d: int, card: kernel_runs.Card = kernel_runs.HOPPER, draw=drawn) -> Run:
    x, weight = draw(n, tokens, d)
    return Run(shortened(kernel_runs.cuda_search(x, weight, card=card)), "found", oracle(x, weight))


TEMPLATE, HARD = torch.randn(3, 6, 200), torch.randn(2, 3, 200)
SLOTS, OWNER, STRANGE_OWNER = torch.tensor([1, 3, 4]), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])


def splice() -> Run:
    """One owner does not exist; its slots are NaN."""
    expected = TEMPLATE.clone()
    expected[:2, SLOTS] = HARD[OWNER[:2]]
    expected[2, SLOTS] = torch.nan
    return Run(shortened(kernel_runs.cuda_splice(TEMPLATE, HARD, SLOTS, STRANGE_OWNER)), "out", expected)


def summed() -> Tensor:
    return torch.stack([TEMPLATE[0, SLOTS], TEMPLATE[1, SLOTS] + TEMPLATE[2, SLOTS]])


def splice_backward() -> Run:
    return Run(shortened(kernel_runs.cuda_splice_backward(TEMPLATE, SLOTS, OWNER, 2)), "total", summed())


PERSISTENT = {"block_n": 128, "block_v": 128, "warps": 4, "stages": 3, "descriptor": True, "persistent": True}
ONE_PROCESSOR = replace(recorded_triton.HOPPER, multiprocessors=1)


@cache
def triton_runs() -> dict[str, Run]:
    """All searches of Triton's kernels, recorded by one child process."""
    few, many = drawn(5, 300, 320), drawn(129, 100, 64)
    requests = {
        "triton few": recorded_triton.Search(*few),
        "triton many": recorded_triton.Search(*many, scan=PERSISTENT, card=ONE_PROCESSOR),
        "triton splice backward": recorded_triton.SpliceBackward(TEMPLATE, SLOTS, OWNER, 2),
    }
    cases = kernel_runs.triton_cases(list(requests.values()))
    expected = [("found", oracle(*few)), ("found", oracle(*many)), ("total", summed())]
    return {name: Run(case, *one) for name, case, one in zip(requests, cases, expected, strict=True)}


SMALL = kernel_runs.Card((8, 9), 1, 99 << 10)  # one block reads all tiles, through four stages
ONE_CLUSTER = kernel_runs.Card((9, 0), 2, 227 << 10)
RUNS: dict[str, Callable[[], Run]] = {
    "sm90": lambda: behind_query(search(33, 300, 64)),
    "sm90 whole": partial(search, 33, 300, 64),
    "sm90 ring": lambda: behind_query(search(33, 300, 320)),  # a stage is used twice
    "sm90 two items": lambda: behind_query(search(33, 600, 256, ONE_CLUSTER)),
    "few": partial(search, 5, 300, 64),
    "few ring": lambda: behind_query(search(5, 300, 320, SMALL)),
    "sm80": lambda: behind_query(search(33, 100, 256, kernel_runs.AMPERE)),
    "ties": partial(search, 5, 300, 64, draw=tied),
    "splice": splice,
    "splice backward": splice_backward,
    **{name: lambda name=name: triton_runs()[name] for name in ("triton few", "triton many", "triton splice backward")},
}


@cache
def run_of(name: str) -> Run:
    return RUNS[name]()


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


def report(fault: Fault, seeds: int = SEEDS) -> Report | None:
    """What is reported first, or None."""
    case, run = plant(fault), run_of(fault.on)
    for seed in range(seeds):
        try:
            ran = case.run(seed)
        except MachineError as problem:
            return Report(type(problem).__name__, str(problem), seed)
        if wrong := run.wrong(ran):
            return Report("results", wrong, seed)
    return None
