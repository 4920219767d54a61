"""benchmarks/cuda_report.py: each check with a fault that it must find."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import cuda_report
from cuda_report import CARDS, KIB, Kernel

FEW = Kernel("nearest_few 16 4", "sm_80", 64, 0, 1024, {"HMMA": 8, "LDGSTS": 16})
SCAN80 = Kernel("nearest_scan_sm80", "sm_80", 148, 0, 0, {"HMMA": 64, "LDGSTS": 24}, epilogue=212)
SCAN90 = Kernel("nearest_scan_sm90", "sm_90a", 168, 0, 64, {"HGMMA": 4, "UTMALDG": 6}, epilogue=338)
QUERY = Kernel("nearest_query 1", "sm_80", 40, 0, 0)
DECIDE = Kernel("nearest_decide f", "sm_80", 96, 224, 736, spills=134, chain=4)
GENERAL = Kernel("nearest_decide d", "sm_80", 96, 256, 736, chain=11)
SPLICES = [Kernel("splice f", "sm_80", 32, 0, 8), Kernel("splice_backward f f", "sm_80", 30, 24, 0)]
GOOD = [FEW, SCAN80, SCAN90, QUERY, DECIDE, GENERAL, *SPLICES]
FENCE = "MEMBAR.ALL.GPU at 0x1000"


def plans(limit: int, width: int) -> list[tuple[str, int]]:
    hopper = [("nearest_scan_sm90", 193 * KIB)] if limit == 227 * KIB else []
    return [("nearest_few 16 4", 96 * KIB), ("nearest_scan_sm80", 96 * KIB), *hopper]


def report(monkeypatch, kernels=GOOD, plans=plans) -> int:
    """The exit status of the script for an extension of these kernels."""
    extension = type(sys)("pez_fast._C_cuda")
    extension.__spec__ = type("Spec", (), {"origin": "made up"})
    extension.build_info = dict
    if plans:
        extension.plans = plans
    monkeypatch.setitem(sys.modules, "pez_fast._C_cuda", extension)
    monkeypatch.setattr("pez_fast._C_cuda", extension, raising=False)
    monkeypatch.setattr(cuda_report, "tool", lambda *options: [])
    monkeypatch.setattr(cuda_report, "read", lambda usage, code: kernels)
    return cuda_report.main([])


def test_nothing_wrong(monkeypatch, capsys):
    assert report(monkeypatch) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and all(kernel.name in printed.out for kernel in GOOD)
    assert "2.64" in printed.out and "3.31" in printed.out  # instructions for a score


@pytest.mark.parametrize(
    ("good", "change", "fault"),
    [
        (SCAN90, {"fences": [FENCE]}, f"nearest_scan_sm90 on sm_90a has a fence in a main loop: {FENCE}"),
        (
            SCAN90,
            {"epilogue": 385},
            "nearest_scan_sm90 on sm_90a takes 3.01 instructions for a score; 3.0 are expected",
        ),
        (SCAN80, {"epilogue": 225}, "nearest_scan_sm80 on sm_80 takes 3.52 instructions for a score; 3.5 are expected"),
        (SCAN80, {"epilogue": None}, "nearest_scan_sm80 on sm_80 has no epilogue that could be found"),
        (SCAN80, {"stack_bytes": 8}, "nearest_scan_sm80 on sm_80 spills: 8 bytes of stack, 0 instructions"),
        (FEW, {"spills": 2}, "nearest_few 16 4 on sm_80 spills: 0 bytes of stack, 2 instructions"),
        (QUERY, {"spills": 1}, "nearest_query 1 on sm_80 spills: 0 bytes of stack, 1 instructions"),
        (FEW, {"instructions": {"LDGSTS": 16}}, "nearest_few 16 4 on sm_80 holds no HMMA"),
        (SCAN90, {"instructions": {"HGMMA": 4}}, "nearest_scan_sm90 on sm_90a holds no UTMALDG"),
        (DECIDE, {"chain": 5}, "nearest_decide f on sm_80 has a chain of 5 dependent loads; 4 are expected"),
    ],
)
def test_fault_of_a_kernel(good, change, fault, monkeypatch, capsys):
    kernels = [replace(kernel, **change) if kernel is good else kernel for kernel in GOOD]
    assert report(monkeypatch, kernels) == 1
    assert capsys.readouterr().err.splitlines() == [fault]


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in cuda_report.EXPECTED}))
def test_missing(name, monkeypatch, capsys):
    assert report(monkeypatch, [kernel for kernel in GOOD if kernel.name.split()[0] != name]) == 1
    assert f"there is no {name}\n" in capsys.readouterr().err


def test_too_much_shared_memory(monkeypatch, capsys):
    """98304 bytes of stages and 4096 static ones: no card with 99 KiB can launch that."""
    kernels = [replace(kernel, shared_bytes=4096) if kernel is SCAN80 else kernel for kernel in GOOD]
    assert report(monkeypatch, kernels) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "nearest_scan_sm80 at width 1024 on 8.6 takes 4096 + 98304 bytes of shared memory of 101376" in lines
    assert {line.split(" on ")[1].split()[0] for line in lines} == {"8.6", "8.9", "12.0", "12.1"}
    assert {int(line.split()[3]) for line in lines} == set(cuda_report.WIDTHS)


def test_shared_memory_of_what_runs_on_no_other_card(monkeypatch, capsys):
    assert report(monkeypatch, plans=lambda limit, width: [("nearest_scan_sm90", 193 * KIB)]) == 0
    assert report(monkeypatch, plans=lambda limit, width: [("nearest_scan_sm90", 227 * KIB)]) == 1
    assert all(" on 9.0 takes 64 + " in line for line in capsys.readouterr().err.splitlines())


def test_every_card_is_asked_about(monkeypatch):
    asked = set()
    assert report(monkeypatch, plans=lambda limit, width: asked.add((limit, width)) or []) == 0
    assert asked == {(limit, width) for limit in CARDS.values() for width in cuda_report.WIDTHS}


def test_a_plan_for_no_kernel(monkeypatch, capsys):
    """Its name begins like that of a kernel, but is none."""
    assert report(monkeypatch, plans=lambda limit, width: [("nearest_few 1", 0)]) == 1
    assert "nearest_few 1 is planned for 8.0 and does not exist" in capsys.readouterr().err


def test_no_plans(monkeypatch, capsys):
    assert report(monkeypatch, plans=None) == 1
    assert "it has no plans()" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN3pez12_GLOBAL__N_118nearest_few_kernelILi16ELi4EEEvNS_7QueriesE", "nearest_few 16 4"),
        ("_ZN3pez12_GLOBAL__N_120nearest_query_kernelILb1EEEvNS_6MatrixEiiPtPNS_7RoundedE", "nearest_query 1"),
        ("_ZN3pez12_GLOBAL__N_121nearest_decide_kernelINS_4HalfEEEvNS_6SearchENS_6AnswerE", "nearest_decide Half"),
        ("_ZN3pez12_GLOBAL__N_121nearest_decide_kernelIfEEvNS_6SearchENS_6AnswerE", "nearest_decide f"),
        (
            "_ZN3pez12_GLOBAL__N_122splice_backward_kernelI13__nv_bfloat16fEEvNS_7SplicedE",
            "splice_backward __nv_bfloat16 f",
        ),
        ("_ZN3pez12_GLOBAL__N_113splice_kernelI6__halfS1_EEvNS_7SplicedEPT_", "splice __half __half"),
        ("_ZN3pez12_GLOBAL__N_124nearest_scan_sm80_kernelEPKtS2_llliiPi", "nearest_scan_sm80"),
        ("other", "other"),
    ],
)
def test_readable(mangled, name):
    assert cuda_report.readable(mangled) == name


def test_read():
    """From sm_90 on a KiB belongs to the driver, not to the kernel."""
    usage = """arch = sm_80
 Function 5splice_kernel:
  REG:10 STACK:8 SHARED:5120 LOCAL:4 CONSTANT[0]:3
arch = sm_90a
 Function 5splice_kernel:
  REG:11 STACK:0 SHARED:5120 LOCAL:0
 Function bare:
  REG:1 STACK:0 SHARED:0 LOCAL:0"""
    code = """arch = sm_80
  Function : 5splice_kernel
        /*0000*/   LDG.E.64 R2, [R4.64] ;  /* 0x0 */
        /*0010*/   STL [R1], R2 ;  /* 0x0 */
        /*0020*/   LDSM.16.M88.4 R8, [R68] ;  /* 0x0 */
        /*0030*/   EXIT ;  /* 0x0 */"""
    bare, old, new = cuda_report.read(usage.splitlines(), code.splitlines())
    assert (old.registers, old.stack_bytes) == (10, 12)
    assert [kernel.shared_bytes for kernel in (old, new, bare)] == [5120, 4096, 0]
    assert (old.instructions, old.spills, old.chain, old.rounds, old.loads) == ({"LDSM": 1}, 1, 1, 1, {64: 1})


def test_no_scan_reads_more_rows_than_there_are():
    """Without a plan for few rows the scan for many takes them: whole tiles of 128, or of 32 where there is a plan."""
    if find_spec("pez_fast._C_cuda") is None:
        pytest.skip("the CUDA extension was not built")
    from pez_fast import _C_cuda

    for limit in set(cuda_report.CARDS.values()):
        for width in cuda_report.WIDTHS:
            planned = {
                int(name.split()[1]) for name, _ in _C_cuda.plans(limit, width) if name.startswith("nearest_few")
            }
            for n in (1, 16, 17, 32, 33, 128, 129, 257):
                rows, few = _C_cuda.padded_rows(n), next((r for r in (16, 32) if n <= r), None)
                assert rows >= n and rows % (few if few in planned else 128) == 0
