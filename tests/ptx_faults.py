"""Faults that are planted into the project's kernels, one at a time, to see whether the PTX machine reports them.

A fault edits the PTX of one kernel, or its launch, of a small search or splice. ptx_faults_sm90.py, ptx_faults_cuda.py
and ptx_faults_triton.py list them; test_ptx_faults.py runs them.

What the machine cannot see, so that no fault of this kind is listed:
- Weak memory order. Every ordinary access is performed at once, for all to see. A missing membar, a fence of too narrow
  a scope, a relaxed instead of a release, and fence.mbarrier_init left out change nothing.
- Races in global memory. Blocks that write the same address are not compared; a wrong result shows it, if one does.
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
    expected: dict[str, Tensor]  # of each result

    def wrong(self, ran: Ran) -> str | None:
        """In words what is wrong with the results, or None. Numbers may differ by a few units of float32."""
        for name, expected in self.expected.items():
            try:
                result = ran[name]
            except RuntimeError as problem:
                return str(problem)
            if result.is_floating_point():
                right = torch.isclose(result.double(), expected.double(), rtol=1e-6, atol=1e-6, equal_nan=True)
            else:
                right = result == expected
            if not right.all():
                return f"{int((~right).sum())} of {right.numel()} elements of {name} are wrong"
        return None


def alone(text: str, kernel: str) -> str:
    """The PTX of one kernel: the others are blank lines, so that lines keep their numbers."""

    def cut(match: re.Match) -> str:
        return match[0] if match[1] == kernel else "\n" * match[0].count("\n")

    return re.sub(r"^(?:\.\w+\s+)*\.entry\s+([\w$]+)\s*\(.*?^\}", cut, text, flags=re.MULTILINE | re.DOTALL)


def shortened(case: Case) -> Case:
    return replace(case, launches=[(alone(text, launch.kernel), launch) for text, launch in case.launches])


def behind(run: Run, *kernels: str) -> Run:
    """Without these first kernels: memory is as they leave it."""
    first = run.case.only(*kernels)
    memory = first.run(0).memory
    kept = []
    for one in run.case.memory:
        storage = memory.find(one.address)
        kept.append(one if storage.state.all() else replace(one, data=storage.data[: one.size].copy()))
    return replace(run, case=replace(run.case, launches=run.case.launches[len(first.launches) :], memory=kept))


def scan_alone(run: Run) -> Run:
    """Only errors of the scan are looked for: the decision about many rows takes long."""
    run = behind(run, "query")
    return Run(run.case.only("scan"), {})


def drawn(n: int, tokens: int, d: int) -> tuple[Tensor, Tensor]:
    """The first query's nearest token is the last one, beside rows that only pad the table."""
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(n, d, generator=g), torch.randn(tokens, d, generator=g)
    x[0] = 3 * weight[-1]
    return x, weight


def tied(n: int, tokens: int, d: int) -> tuple[Tensor, Tensor]:
    """Each query has two nearest tokens of one tile, whose cosines are equal."""
    x, weight = drawn(n, tokens, d)
    for i in range(n):
        weight[8 * i + 64] = weight[8 * i + 1] = 2 * x[i]
    return x, weight


def nearest(x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The largest cosines in float64, and the lowest ids that have them."""
    x, weight = (t.double() / t.double().norm(dim=1, keepdim=True) for t in (x, weight))
    cosines = x @ weight.T
    best = cosines.amax(1)
    return {"found": (cosines >= best[:, None] - 1e-12).int().argmax(1), "similarity": best}


def search(
    n: int, tokens: int, d: int, card: kernel_runs.Card = kernel_runs.HOPPER, draw=drawn, without: tuple[str, ...] = ()
) -> Run:
    x, weight = draw(n, tokens, d)
    run = Run(shortened(kernel_runs.cuda_search(x, weight, card=card)), nearest(x, weight))
    return behind(run, *without) if without else run


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


TEMPLATE, HARD = normal(3, 6, 200), normal(2, 3, 200)
SLOTS, OWNER, STRANGE_OWNER = torch.tensor([1, 3, 4]), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])


def splice() -> Run:
    """One owner does not exist; its slots are NaN."""
    expected = TEMPLATE.clone()
    expected[:2, SLOTS] = HARD[OWNER[:2]]
    expected[2, SLOTS] = torch.nan
    return Run(shortened(kernel_runs.cuda_splice(TEMPLATE, HARD, SLOTS, STRANGE_OWNER)), {"out": expected})


def splice_long() -> Run:
    """More slots than a warp has lanes."""
    template, hard, slots = normal(1, 36, 4), normal(1, 34, 4), torch.arange(34)
    expected = torch.cat([hard, template[:, 34:]], 1)
    case = kernel_runs.cuda_splice(template, hard, slots, torch.tensor([0]))
    return Run(shortened(case), {"out": expected})


def summed() -> dict[str, Tensor]:
    return {"total": torch.stack([TEMPLATE[0, SLOTS], TEMPLATE[1, SLOTS] + TEMPLATE[2, SLOTS]])}


def splice_backward() -> Run:
    return Run(shortened(kernel_runs.cuda_splice_backward(TEMPLATE, SLOTS, OWNER, 2)), summed())


# Eight warps are two warp groups: one that waits for its own products does not wait for those of the other one.
TWO_GROUPS = {"block_n": 16, "block_v": 128, "warps": 8, "stages": 4, "descriptor": True}
PERSISTENT = {"block_n": 128, "block_v": 128, "warps": 4, "stages": 3, "descriptor": True, "persistent": True}
ONE_PROCESSOR = replace(recorded_triton.HOPPER, multiprocessors=1)


@cache
def triton_runs() -> dict[str, Run]:
    """All searches of Triton's kernels, recorded by one child process."""
    few, many = drawn(5, 300, 320), drawn(129, 100, 64)
    requests = {
        "triton few": recorded_triton.Search(*few, scan=TWO_GROUPS),
        "triton many": recorded_triton.Search(*many, scan=PERSISTENT, card=ONE_PROCESSOR),
        "triton splice backward": recorded_triton.SpliceBackward(TEMPLATE, SLOTS, OWNER, 2),
    }
    cases = kernel_runs.triton_cases(list(requests.values()))
    expected = [nearest(*few), nearest(*many), summed()]
    runs = {name: Run(case, one) for name, case, one in zip(requests, cases, expected, strict=True)}
    runs["triton few"] = behind(runs["triton few"], "query")
    runs["triton many"] = scan_alone(runs["triton many"])
    return runs


SMALL = kernel_runs.Card((8, 9), 1, 99 << 10)  # one block reads all tiles, through four stages
ONE_CLUSTER = kernel_runs.Card((9, 0), 2, 227 << 10)
QUERY, SCAN = ("query",), ("query", "scan", "few")
RUNS: dict[str, Callable[[], Run]] = {
    "sm90": partial(search, 33, 300, 64, without=QUERY),
    "sm90 whole": partial(search, 33, 300, 64),
    "sm90 ring": partial(search, 33, 300, 320, without=QUERY),  # a stage is used twice
    "sm90 pairs": lambda: scan_alone(search(129, 100, 64)),  # the blocks of a cluster share tokens, not rows
    "sm90 two items": partial(search, 33, 600, 256, ONE_CLUSTER, without=QUERY),
    "few": partial(search, 5, 300, 64),
    "few ring": partial(search, 5, 300, 320, SMALL, without=QUERY),
    "sm80": partial(search, 33, 100, 64, kernel_runs.AMPERE, without=QUERY),
    "sm80 ring": partial(search, 33, 100, 256, kernel_runs.AMPERE, without=QUERY),
    "decide": partial(search, 1, 300, 64, without=SCAN),
    "ties": partial(search, 2, 300, 64, draw=tied, without=SCAN),
    "splice": splice,
    "splice long": splice_long,
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
