"""The PTX machine reports faults that are planted into the project's kernels, and reports nothing without one."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import ptx_faults_cuda
import ptx_faults_sm90
import ptx_faults_triton
import pytest
from ptx_fault_runs import RUNS, run_of
from ptx_faults import Fault, drop, instructions, plant, put, report
from recorded_cuda import missing
from recorded_cuda_build import versions

FAULTS = [*ptx_faults_sm90.FAULTS, *ptx_faults_cuda.FAULTS, *ptx_faults_triton.FAULTS]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
needs_nvcc = pytest.mark.skipif(missing() is not None, reason=f"cannot build the launchers: {missing()}")
OTHER = "the edits suit the PTX of nvcc 13.0 and Triton 3.8"


def other_compiler(run: str) -> bool:
    """Whether the PTX of this run comes from another version than the faults were written for."""
    if run.startswith("triton"):
        return find_spec("triton") is not None and not version("triton").startswith("3.8.")
    return missing() is None and "release 13.0" not in versions()


def needs(run: str) -> pytest.MarkDecorator:
    return needs_triton if run.startswith("triton") else needs_nvcc


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in RUNS])
def test_nothing_is_reported_without_a_fault(name: str) -> None:
    run = run_of(name)
    assert run.wrong(run.case.run(seed=1)) is None


@pytest.mark.parametrize("fault", [pytest.param(one, marks=needs(one.on), id=str(one)) for one in FAULTS])
def test_a_fault_is_reported(fault: Fault) -> None:
    if other_compiler(fault.on):
        pytest.skip(OTHER)
    found = report(fault)
    assert found is not None, fault.says
    assert found.kind in fault.expected, found.message
    if found.kind != "results":
        assert instructions(fault, found.message), found.message
        assert (fault.seen_in or fault.kernel) in found.message


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["no first cluster barrier", "no last cluster barrier", "release to itself"])
@needs_nvcc
def test_what_nothing_orders_is_reported_whatever_the_schedule_is(name: str, seed: int) -> None:
    if other_compiler("sm90"):
        pytest.skip(OTHER)
    (fault,) = [one for one in ptx_faults_sm90.FAULTS if one.name == name]
    found = report(fault, [seed])
    assert found is not None and found.kind in fault.expected


@pytest.mark.parametrize("fault", ptx_faults_cuda.HARMLESS, ids=str)
@needs_nvcc
def test_an_edit_that_does_no_harm_is_not_reported(fault: Fault) -> None:
    if other_compiler(fault.on):
        pytest.skip(OTHER)
    assert report(fault, range(2)) is None


def test_faults_are_many_and_differ() -> None:
    names = [(one.on, one.kernel, one.name) for one in FAULTS]
    assert len(set(names)) == len(names) >= 80
    assert all(one.expected for one in FAULTS)


def test_an_edit_must_change_something() -> None:
    assert drop("bar", 1)("@%p1 bar.sync 0; bar.sync 1;\n") == "@%p1 bar.sync 0; \n"
    assert drop("bar", 0)("@%p1 bar.sync 0; bar.sync 1;\n") == " bar.sync 1;\n"
    assert put("a(.)", r"\1")("abac") == "bc"
    with pytest.raises(ValueError, match="matches 1 times"):
        put("b", "", 1)("abac")
    with pytest.raises(ValueError, match="matches 0 times"):
        drop("mbarrier")("bar.sync 0;")


@needs_nvcc
def test_a_fault_names_a_kernel_of_its_run() -> None:
    with pytest.raises(ValueError, match="launches no kernel"):
        plant(Fault("", "", "splice", "nearest_scan_sm90_kernel", set(), drop("bar")))
