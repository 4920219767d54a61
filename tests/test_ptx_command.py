"""The command line of the PTX machine: what it prints, and its exit codes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ptx.__main__ import main

ROOT = Path(__file__).parents[1]
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")

# Every block reverses 64 floats by way of shared memory.
REVERSE = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry _Z7reversePKfPf(.param .u64 from, .param .u64 to)
{
  .reg .f32 %f<3>;
  .reg .b32 %r<9>;
  .reg .b64 %rd<7>;
  .shared .align 4 .b8 buffer[256];
  ld.param.u64 %rd1, [from];
  ld.param.u64 %rd2, [to];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %ctaid.x;
  mad.lo.s32 %r3, %r2, 64, %r1;
  mul.wide.u32 %rd3, %r3, 4;
  add.s64 %rd4, %rd1, %rd3;
  add.s64 %rd5, %rd2, %rd3;
  ld.global.f32 %f1, [%rd4];
  mov.u32 %r4, buffer;
  shl.b32 %r5, %r1, 2;
  add.s32 %r6, %r4, %r5;
  st.shared.f32 [%r6], %f1;
  bar.sync 0;
  sub.s32 %r7, %r4, %r5;
  ld.shared.f32 %f2, [%r7+252];
  st.global.f32 [%rd5], %f2;
  ret;
}
"""
ARRAYS = ["--arg", "f32[128]=arange", "--arg", "out:f32[128]"]
SIZES = ["--block", "64", "--seeds", "8"]


@pytest.fixture
def reverse(tmp_path):
    """Writes REVERSE with some text replaced; returns the name of the file."""

    def written(*changes: tuple[str, str]) -> str:
        text = REVERSE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "reverse.ptx"
        file.write_text(text)
        return str(file)

    return written


def test_a_right_kernel(reverse, capsys):
    assert main([reverse(), *ARRAYS, *SIZES]) == 0
    printed = capsys.readouterr().out
    assert "8 seeds: no fault (styles even, late, starving, eager" in printed
    assert "argument 1, out:f32[128]: 63, 62, 61, 60, 59, 58, 57, 56, …" in printed
    assert "all seeds gave the same bits" in printed and "argument 0" not in printed


def test_equal_faults_are_printed_once(reverse, capsys):
    assert main([reverse(("  bar.sync 0;\n", "")), *ARRAYS, *SIZES]) == 1
    printed = capsys.readouterr().out
    assert "fault 1: PoisonError with seeds " in printed
    assert "it stores something undefined in argument 1, out:f32[128]" in printed
    assert ", line 25: st.global.f32 [%rd5], %f2;" in printed and "at reverse block " in printed
    assert "the last undefined value that this warp loaded is from shared memory of block " in printed
    assert "at line 24: ld.shared.f32 %f2, [%r7+252];" in printed
    assert printed.count("stores something undefined") == 1


def test_a_race(reverse, capsys):
    zero = "  st.shared.f32 [%r6], 0f00000000;\n  bar.sync 0;\n"
    assert main([reverse(("  bar.sync 0;\n", ""), ("  st.shared", f"{zero}  st.shared")), *ARRAYS, *SIZES]) == 1
    printed = capsys.readouterr().out
    assert "RaceError" in printed and "nothing orders this" in printed


def test_one_seed_again(reverse, capsys):
    assert main([reverse(("+252", "+256")), *ARRAYS, "--block", "64", "--seed", "5", "--style", "late"]) == 1
    printed = capsys.readouterr().out
    assert "fault 1: MemoryFault with seed 5 (style late)" in printed
    assert "4 bytes at 0x500 are not in shared memory of block" in printed and "seed 5: a fault" in printed


def test_a_deadlock_says_who_waits_where(reverse, capsys):
    half = "  setp.lt.u32 %p1, %r1, 32;\n  @%p1 bar.sync 1;\n"
    changes = ("  bar.sync 0;\n", f"{half}  bar.sync 0;\n"), ("  .reg .f32", "  .reg .pred %p<2>;\n  .reg .f32")
    assert main([reverse(*changes), *ARRAYS, *SIZES, "--grid", "1"]) == 1
    printed = capsys.readouterr().out
    assert "fault 1: Deadlock with seeds 0-7" in printed
    assert "reverse block 0 warp 0, line 25: @%p1 bar.sync 1;" in printed
    assert "reverse block 0 warp 1, line 26: bar.sync 0;" in printed


def test_no_end(reverse, capsys):
    assert main([reverse(("  ret;", "again:\n  bra again;")), *ARRAYS, *SIZES, "--limit", "5000"]) == 1
    assert "no end after 5" in capsys.readouterr().out


def test_results_that_differ_between_seeds(reverse, capsys):
    """Blocks that write one place: the last one wins. And what was never written is said."""
    arrays = ["--arg", "f32[64]=normal", "--arg", "out:f32[100]"]
    changes = (
        ("mad.lo.s32 %r3, %r2, 64, %r1", "mov.u32 %r3, %r1"),
        ("  st.global", "  cvt.rn.f32.u32 %f2, %r2;\n  st.global"),
    )
    assert main([reverse(*changes), *arrays, "--block", "64"]) == 0
    printed = capsys.readouterr().out
    assert (
        re.search("the seeds gave [2-4] different results:", printed) and "not all seeds gave the same bits" in printed
    )
    assert re.search("element (0|32) is 0 with seed", printed) and re.search("element (0|32) is 1 with seed", printed)
    assert "36 of 100 elements (? above) were never written" in printed


def test_list(reverse, capsys):
    assert main([reverse(), "--list"]) == 0
    printed = capsys.readouterr().out
    assert "reverse" in printed and "256 bytes of static shared memory" in printed
    if shutil.which("c++filt"):
        assert "parameter 0, .u64, 8 bytes: --arg f32[1024]=normal\n" in printed
        assert "parameter 1, .u64, 8 bytes: --arg out:f32[1024]\n" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no --arg is given, but the kernel has 2 parameters"),
        (["--arg", "f32[128]=0"], "1 --arg are given for 2 parameters"),
        (
            ["--arg", "f32[128]=0", "--arg", "i32=5"],
            "--arg i32=5 (argument 1) has 4 bytes, but the parameter .u64 has 8",
        ),
        (["--kernel", "other", *ARRAYS], "--kernel is other, and no kernel of"),
        (["--grid", "0", *ARRAYS], "--grid: '0' must be"),
        (["--seeds", "no", *ARRAYS], "--seeds: 'no' is no whole number from 1 on"),
        (["--shared", "-1", *ARRAYS], "--shared: '-1' is no whole number"),
        (["--style", "odd", *ARRAYS], "--style: invalid choice: 'odd'"),
        (["--arch", "hopper", *ARRAYS], "--arch: 'hopper' must look like"),
        (["--block", "2048", *ARRAYS], "--grid 2 --block 2048 --shared 0 cannot be launched: a grid of"),
        (["--shared", "999999", *ARRAYS], "1000255 bytes of shared memory; a block has 232448 at most"),
        (["--cluster", "3", *ARRAYS], "is no multiple of the cluster, (3, 1, 1)"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_usage(reverse, capsys, options, said):
    assert main([reverse(), *options]) == 2
    caught = capsys.readouterr()
    assert caught.out == "" and caught.err.startswith("tests.ptx: ") and said in caught.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("bar.sync 0", "bar.fly 0"), "whose kernel the machine cannot execute: bar.fly"),
        (("bar.sync 0;", "bra nowhere;"), "there is no label"),
        (("bar.sync 0;", "bar.sync 0"), "whose PTX cannot be understood: line 24"),
        (("sm_90a", "sm_75"), "which is for sm_75; the machine knows sm_80 and later"),
        ((".visible .entry", ".visible .func"), "which has no kernel"),
    ],
)
def test_files_that_cannot_be_run(reverse, capsys, change, said):
    assert main([reverse(change), *ARRAYS]) == 2
    assert said in capsys.readouterr().err


def test_files_that_are_not_there(tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path / "none.ptx")]) == 2
    assert "none.ptx, which cannot be read: No such file" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "its name must end in .cu or .ptx" in capsys.readouterr().err
    (tmp_path / "one.cu").write_text("")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert main([str(tmp_path / "one.cu")]) == 2
    assert "there is no nvcc" in capsys.readouterr().err


WRONG = """__global__ void one(int* out) { out[threadIdx.x + 1] = 1; }
__global__ void two(int* out) { out[threadIdx.x] = N; }
"""


@needs_nvcc
def test_as_a_module(tmp_path):
    """A .cu file from the repository's root: exit codes, the line of the source, and no traceback."""
    file = tmp_path / "wrong.cu"
    file.write_text(WRONG)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def started(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.ptx", str(file), *options],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    array = ["--flags=-DN=7", "--arg", "out:i32[128]", "--seeds", "2"]
    code, printed = started("--kernel", "one", *array)
    assert code == 1 and "wrong.cu:1: __global__ void one(int* out)" in printed and "is in no allocation" in printed
    code, printed = started("--kernel", "two", *array)
    assert code == 0 and "out:i32[128]: 7, 7, 7" in printed
    code, printed = started("--flags=-DN=7")
    assert code == 2 and "several kernels; choose one by --kernel: one, two" in printed
    code, printed = started()
    assert code == 2 and "which nvcc does not compile" in printed and '"N" is undefined' in printed


def test_the_readme_names_every_file():
    folder = ROOT / "tests" / "ptx"
    named = re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text())
    assert sorted(set(named)) == sorted(file.name for file in folder.glob("*.py") if file.name != "__init__.py")
    assert len(named) == len(set(named))
