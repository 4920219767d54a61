"""The CUDA kernels, executed instruction by instruction on the PTX machine, under several schedules each."""

from __future__ import annotations

import pytest
from kernel_runs import cuda_splice
from ptx_cases import SEARCHES, SPLICES
from ptx_checks import CUDA
from ptx_pool import Pool, assert_clean, submitted
from recorded_cuda import missing

if why := missing():
    pytest.skip(why, allow_module_level=True)

SEEDS = range(5)
KERNELS = ("nearest_query", "nearest_few", "nearest_scan_sm80", "nearest_scan_sm90", "nearest_decide")


@pytest.fixture(scope="module")
def outcomes(request):
    """The runs of the tests that were chosen, in several processes."""
    with Pool() as pool:
        yield submitted(pool, request, "cuda", SEEDS)


@pytest.mark.parametrize("name", CUDA)
def test_kernels(name, outcomes):
    assert_clean(outcomes[name], SEEDS)


def test_an_owner_that_does_not_exist():
    """No host code has checked it; its rows are not a number, and nothing else is read or written."""
    given = SPLICES["float32"]()
    given.owner[1] = 2
    out = cuda_splice(given.template, given.hard, given.slots, given.owner).run(0)["out"]
    assert out[1, given.slots].isnan().all() and not out[0].isnan().any()


def test_every_kernel_is_among_them():
    ran = {kernel for name in SEARCHES for kernel in CUDA[name].case.kernels}
    assert [one for one in KERNELS if not any(one in kernel for kernel in ran)] == []
    types = {kernel.partition("decide_kernel")[2] for kernel in ran if "decide" in kernel}
    assert len(types) == 4, "packed float32, float16, bfloat16, and any"
