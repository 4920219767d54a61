"""Small searches and splices of the project's kernels, into which ptx_faults.py plants faults."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import cards
import kernel_runs
import recorded_triton
import torch
from kernel_runs import Case, Ran
from torch import Tensor


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
    case = run.case.behind(first.run(0))
    return replace(run, case=replace(case, launches=case.launches[len(first.launches) :]))


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
    n: int, tokens: int, d: int, card: cards.Card = cards.HOPPER, draw=drawn, without: tuple[str, ...] = ()
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
ONE_PROCESSOR = replace(cards.HOPPER, multiprocessors=1)


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


SMALL = cards.Card((8, 9), 1, 99 << 10)  # one block reads all tiles, through four stages
ONE_CLUSTER = cards.Card((9, 0), 2, 227 << 10)
QUERY, SCAN = ("query",), ("query", "scan", "few")
RUNS: dict[str, Callable[[], Run]] = {
    "sm90": partial(search, 33, 300, 64, without=QUERY),
    "sm90 whole": partial(search, 33, 300, 64),
    "sm90 ring": partial(search, 33, 300, 320, without=QUERY),  # a stage is used twice
    "sm90 pairs": lambda: scan_alone(search(129, 100, 64)),  # the blocks of a cluster share tokens, not rows
    "sm90 two items": partial(search, 33, 600, 256, ONE_CLUSTER, without=QUERY),
    "few": partial(search, 5, 300, 64),
    "few ring": partial(search, 5, 300, 320, SMALL, without=QUERY),
    "sm80": partial(search, 33, 100, 64, cards.AMPERE, without=QUERY),
    "sm80 ring": partial(search, 33, 100, 256, cards.AMPERE, without=QUERY),
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
