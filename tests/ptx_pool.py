"""Checks of kernels on the PTX machine in several processes, so that all cores work."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """One run of a check: what was launched, how many instructions the warps executed, and the fault, if any."""

    implementation: str  # "cuda" or "triton"
    check: str
    seed: int
    kernels: tuple[str, ...]
    executed: int
    fault: str


def run(implementation: str, check: str, seeds: Iterable[int]) -> list[Outcome]:
    """One check under these seeds; an error of any kind is a fault."""
    import torch

    torch.set_num_threads(1)
    from ptx_checks import CUDA, TRITON

    one, found = {"cuda": CUDA, "triton": TRITON}[implementation][check], []
    for seed in seeds:
        executed, fault = 0, ""
        try:
            executed = one(seed).executed
        except Exception as problem:
            fault = f"{type(problem).__name__}: {problem}"
        kernels = () if fault and "case" not in vars(one) else tuple(one.case.kernels)
        found.append(Outcome(implementation, check, seed, kernels, executed, fault or ""))
    return found


def submitted(pool: Pool, request: Any, implementation: str, seeds: Iterable[int]) -> dict[str, Future[list[Outcome]]]:
    """The checks that the chosen tests of the requesting module name, begun."""
    items = [item for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    return {i.callspec.params["name"]: pool.submit(implementation, i.callspec.params["name"], seeds) for i in items}


def assert_clean(outcomes: Future[list[Outcome]], seeds: Collection[int]) -> None:
    """No fault under any of the seeds, and something was executed under each."""
    found = outcomes.result()
    assert [f"seed {one.seed}: {one.fault}" for one in found if one.fault] == []
    assert [one.seed for one in found] == list(seeds) and all(one.executed > 0 for one in found)


class Pool:
    """Processes that run checks; `submit` returns at once."""

    def __init__(self, processes: int | None = None) -> None:
        os.environ["OMP_NUM_THREADS"], self.before = "1", os.environ.get("OMP_NUM_THREADS")
        processes = processes or len(os.sched_getaffinity(0))
        self.executor = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))

    def submit(self, implementation: str, check: str, seeds: Iterable[int]) -> Future[list[Outcome]]:
        return self.executor.submit(run, implementation, check, list(seeds))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *problem: object) -> None:
        self.executor.shutdown(cancel_futures=True)
        if self.before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = self.before
