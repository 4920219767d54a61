"""The PTX machine reports faults that are planted into the project's kernels, and reports nothing without one."""

from __future__ import annotations

import pytest
import torch
from ptx_faults import RUNS, Fault, report, run_of
from recorded_cuda import missing

import ptx_faults_sm90

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"cannot build the launchers: {missing()}")

@pytest.mark.parametrize("fault", ptx_faults_sm90.FAULTS, ids=str)
def test_a_fault_is_reported(fault: Fault) -> None:
    found = report(fault)
    assert found is not None, fault.says
    assert found.kind in fault.expected, found.message
