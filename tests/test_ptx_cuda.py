"""The CUDA kernels, executed instruction by instruction on the PTX machine, under several schedules each."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from kernel_runs import Case, Ran, cuda_search, cuda_splice, cuda_splice_backward
from ptx_cases import SCANS, SEARCHES, SPLICES, Inputs, assert_as_the_oracle
from recorded_cuda import missing
from scanned_keys import cuda_keys

if why := missing():
    pytest.skip(why, allow_module_level=True)

SEEDS = range(5)
KERNELS = {
    "nearest_query",
    "nearest_few",
    "nearest_scan_sm80",
    "nearest_scan_sm90",
    "nearest_decide",
}


@cache
def recorded(name: str) -> tuple[Inputs, Case]:
    inputs = (SEARCHES | SCANS)[name]()
    return inputs, cuda_search(inputs.x, inputs.weight, inputs.ids, inputs.card)


def check_keys(inputs: Inputs, ran: Ran) -> None:
    """The keys of the scan, to the bit: as the host adds."""
    expected = cuda_keys(ran["query"], ran["unit"], len(inputs.x), inputs.card.capability)
    assert torch.equal(ran["keys"].view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SEARCHES)
def test_search(name, seed):
    inputs, case = recorded(name)
    ran = case.run(seed)
    assert_as_the_oracle(name, ran)
    assert set(inputs.states) <= set(ran["state"].tolist())
    check_keys(inputs, ran)


@pytest.mark.parametrize("name", SCANS)
def test_scan(name):
    """Many rows: the queries once, then the scan alone, under every schedule."""
    inputs, case = recorded(name)
    rounded = case.only("query").run(0)
    scan = case.only("scan").behind(rounded)
    for seed in SEEDS:
        check_keys(inputs, scan.run(seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SPLICES)
def test_splice(name, seed):
    given = SPLICES[name]()
    ran = cuda_splice(given.template, given.hard, given.slots, given.owner).run(seed)
    assert torch.equal(ran["out"], given.expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SPLICES)
def test_splice_backward(name, seed):
    given = SPLICES[name]()
    case = cuda_splice_backward(given.template, given.slots, given.owner, len(given.hard))
    assert torch.equal(case.run(seed)["total"], given.expected_backward)


def test_an_owner_that_does_not_exist():
    """No host code has checked it; the rows are not a number, and nothing else is read or written."""
    given = SPLICES["float32"]()
    given.owner[1] = 2
    out = cuda_splice(given.template, given.hard, given.slots, given.owner).run(0)["out"]
    assert out[1, given.slots].isnan().all() and not out[0].isnan().any()


def test_every_kernel_runs():
    ran = {kernel for name in SEARCHES for kernel in recorded(name)[1].kernels}
    assert {one for one in KERNELS if any(one in kernel for kernel in ran)} == KERNELS
    decisions = {kernel for kernel in ran if "decide" in kernel}
    assert len({kernel.partition("decide_kernel")[2] for kernel in decisions}) == 4  # float, Half, BFloat16, any
