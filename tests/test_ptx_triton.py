"""The Triton kernels as compiled for sm_90, executed on the PTX machine under several schedules each."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
from ptx_checks import TRITON, triton_recorded
from ptx_pool import Pool, assert_clean, submitted

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8):
    pytest.skip(f"Triton {triton.__version__} launches kernels in another way", allow_module_level=True)

SEEDS = range(5)
KERNELS = ("query", "scan_few", "scan_many", "decide", "splice_kernel", "splice_backward")


@pytest.fixture(scope="module")
def outcomes(request):
    """The runs of the tests that were chosen, in several processes; this one compiles the kernels before."""
    triton_recorded()
    with Pool() as pool:
        yield submitted(pool, request, "triton", SEEDS)


@pytest.mark.parametrize("name", TRITON)
def test_kernels(name, outcomes):
    assert_clean(outcomes[name], SEEDS)


def test_every_kernel_is_among_them():
    launches = [(launch.kernel, text) for case in triton_recorded().values() for text, launch in case.launches]
    scans = [text for kernel, text in launches if "scan" in kernel and "sm_90a" in text]
    assert all("wgmma.mma_async" in text and "cp.async.bulk.tensor" in text for text in scans) and scans
    assert [word for word in KERNELS if not any(word in kernel for kernel, _ in launches)] == []
