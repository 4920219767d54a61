"""benchmarks/sass.py on SASS written by hand with a fault in it, and on a kernel that nvcc has just compiled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import sass
import sass_loads


def kernel(text: str) -> sass.Function:
    """Each line is an instruction; a name and a colon before it make `name` stand for its address."""
    lines = [line.split("#")[0].strip() for line in text.strip().splitlines()]
    names = {line.split(":")[0]: 16 * n for n, line in enumerate(lines) if ":" in line}
    printed = ["\t\tFunction : made_up", "\tcode for sm_90a"]
    for n, line in enumerate(lines):
        words = line.split(":")[-1].split()
        for name, address in names.items():
            words = [f"{address:#x}" if word == name else word for word in words]
        printed += [f"        /*{16 * n:04x}*/   {' '.join(words)} ;   /* 0x000000000000794d */", "  /* 0x000fea */"]
    return next(sass.functions(["arch = sm_90a", *printed]))


def test_parsed():
    printed = """
arch = sm_90a
\t\tFunction : _Z3onev
        /*0000*/              @!P0 BRA 0x20 ;       /* 0x0000000000008947 */
                                                    /* 0x000fea0003800000 */
        /*0010*/                   ERRBAR;          /* 0x00000000000079ab */
        /*0020*/               @P1 LDG.E.128.CONSTANT R4, desc[UR8][R2.64+0x10] ;  /* 0x000 */
arch = sm_80
\t\tFunction : _Z3twov
        /*0000*/                   EXIT ;           /* 0x000000000000794d */
"""
    one, two = sass.functions(printed.splitlines())
    assert (one.name, one.arch, two.name, two.arch) == ("_Z3onev", "sm_90a", "_Z3twov", "sm_80")
    branch, bar, load = one.instructions
    assert (branch.address, branch.guard, branch.opcode, branch.target) == (0, "!P0", "BRA", 0x20)
    assert (bar.opcode, bar.operands, load.address) == ("ERRBAR", "", 0x20)
    assert load.moved == (["R4", "R5", "R6", "R7"], ["UR8", "R2", "R3", "P1"])


@pytest.mark.parametrize(
    ("instruction", "writes", "reads"),
    [
        ("IADD3 R8, P0, R4, UR5, RZ", "R8 P0", "R4 UR5"),
        ("IMAD.X R9, R4, 0x1, R7, P0", "R9", "R4 R7 P0"),
        ("IMAD.WIDE.U32 R4, P1, R27, c[0x0][0x1d8], R6", "R4 R5 P1", "R27 R6 R7"),
        ("ISETP.GE.AND P0, PT, R3, R4, !P2", "P0", "R3 R4 P2"),
        ("FCHK P0, R1, R2", "P0", "R1 R2"),
        ("VOTE.ANY R19, PT, P1", "R19", "P1"),
        ("SHFL.BFLY PT, R75, R41, 0x10, 0x1f", "R75", "R41"),
        ("DFMA R44, R46, -R50.reuse, |R52|", "R44 R45", "R46 R47 R50 R51 R52 R53"),
        ("F2F.F64.F32 R44, R39", "R44 R45", "R39"),
        ("F2F.F32.F64 R40, R16", "R40", "R16 R17"),
        ("I2F.F64.S64 R14, UR10", "R14 R15", "UR10 UR11"),
        ("LDG.E.64 R40, [R16.64]", "R40 R41", "R16 R17"),
        ("LDG.E.ENL2.256 R12, R8, desc[UR4][R2.64]", "R12 R13 R14 R15 R8 R9 R10 R11", "UR4 R2 R3"),
        ("LDS.U16 R3, [R4+UR6]", "R3", "R4 UR6"),
        ("STG.E.64 desc[UR4][R6.64], R2", "", "UR4 R6 R7 R2 R3"),
        ("LDGSTS.E.BYPASS.128 [R5+0x1000], [R10.64]", "", "R5 R10 R11"),
        ("LDSM.16.M88.4 R8, [R68]", "R8 R9 R10 R11", "R68"),
        ("HMMA.16816.F32 R20, R8.reuse, R36, R20", "R20 R21 R22 R23", "R8 R9 R10 R11 R36 R37 R20 R21 R22 R23"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR18], R5", "P0", "UR18 R5"),
        ("R2UR UR15, R2", "UR15", "R2"),
        ("BREV R2, R3", "R2", "R3"),
        ("BAR.SYNC R4, R5", "", "R4 R5"),
    ],
)
def test_registers(instruction, writes, reads):
    opcode, _, operands = instruction.partition(" ")
    assert sass.Instruction(0, "", opcode, operands).moved == (writes.split(), reads.split())


def test_accumulators_of_a_warp_group():
    writes, reads = sass.Instruction(0, "", "HGMMA.64x256x16.F32", "R24, gdesc[UR28], R24, UP0, gsb0").moved
    assert writes == [f"R{n}" for n in range(24, 152)]
    assert set(reads) == {"UR28", "UR29", "UR30", "UR31", "UP0", *writes}


# Two loops; the inner one multiplies and waits for a barrier. The code behind EXIT belongs to the inner one.
NESTED = """
    S2R R0, SR_TID.X
    outer: MOV R1, R0
    inner: SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR18], R5
    @!P0 BRA slow
    back: HGMMA.64x256x16.F32 R24, gdesc[UR28], R24, UP0
    turn: UTMALDG.2D [UR8], [UR6]
    @P2 BRA.U.ANY turn
    {fence}
    @P1 BRA inner
    NOP
    IADD3 R3, R3, 0x1, RZ
    @P4 BRA next
    STG.E [R6.64], R3
    next: MEMBAR.SC.GPU
    ISETP.NE.AND P3, PT, R3, RZ, PT
    @P3 BRA outer
    EXIT
    slow: SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR18], R5
    @!P0 BRA slow
    BRA back
"""


def nested(fence: str = "NOP") -> sass.Function:
    return kernel(NESTED.format(fence=fence))


def test_loops():
    made = nested()
    found = [sorted(i.address // 16 for i in made.within(loop)) for loop in sass.loops(made)]
    inner, outer = [*range(2, 9), 17, 18, 19], [*range(1, 16), 17, 18, 19]
    assert sorted(found, key=lambda one: (len(one), one)) == [[5, 6], [17, 18], inner, outer]
    (main,) = sass.main_loops(made)
    assert min(i.address for i in made.within(main)) == 2 * 16


HARMLESS = ["MEMBAR.ALL.CTA", "FENCE.VIEW.ASYNC.S", "@!PT MEMBAR.ALL.GPU", "CCTL.E.PF2 [R2]", "NOP"]
HARMFUL = ["@!P0 MEMBAR.ALL.GPU", "MEMBAR.SC.SYS", "@P0 CCTL.IVALL", "ERRBAR", "CGAERRBAR", "FENCE.VIEW.ASYNC.G"]


@pytest.mark.parametrize("harmless", HARMLESS)
def test_no_fence(harmless):
    assert sass.fences_in_main_loops(nested(harmless)) == []  # the fence of the outer loop is no fault


@pytest.mark.parametrize("fence", HARMFUL)
def test_fence(fence):
    assert sass.fences_in_main_loops(nested(fence)) == [f"{fence.split()[-1]} at 0x70"]


def test_a_fence_behind_the_kernel_is_in_the_loop_all_the_same():
    made = kernel(NESTED.format(fence="NOP").replace("slow: SYNCS", "slow: CCTL.IVALL\n    more: SYNCS"))
    assert sass.fences_in_main_loops(made) == ["CCTL.IVALL at 0x110"]


def test_epilogue_in_a_loop_over_tiles():
    """IADD3, branch, STG, MEMBAR, ISETP, branch; neither the NOP nor the shorter path past the store counts."""
    made = nested()
    assert sass.epilogue_instructions(made) == 6
    assert sass.instructions_per_score(made, 4) == 1.5


def test_epilogue_up_to_the_end():
    made = kernel("""
        loop: HMMA.16816.F32 R20, R8, R36, R20
        @P0 BRA loop
        FMNMX R1, R20, R21, !PT
        @P1 EXIT
        STG.E [R6.64], R1
        EXIT
    """)
    assert sass.epilogue_instructions(made) == 4


def test_the_way_of_most_tiles_counts():
    """Behind the loop over K there are two paths, and both store."""
    made = kernel("""
        loop: HMMA.16816.F32 R20, R8, R36, R20
        @P0 BRA loop
        @P1 BRA edge
        STG.E [R6.64], R1
        EXIT
        edge: MOV R1, R2
        MOV R2, R3
        STG.E [R6.64], R1
        EXIT
    """)
    assert sass.epilogue_instructions(made) == 3
    assert sass.epilogue_instructions(kernel("MOV R1, R2\n EXIT")) is None


def test_chain_and_rounds():
    made = kernel("""
        LDG.E.64 R2, [R4.64]
        LDG.E R8, [R6.64]
        IADD3 R10, P0, R2, 0x8, RZ
        IMAD.X R11, RZ, RZ, R3, P0
        LDG.E.128 R12, desc[UR4][R10.64]
        LDS R4, [R12]
        FADD R9, R8, R14
        LDG.E R20, [R4.64]
        STG.E [R6.64], R20
        EXIT
    """)
    assert sass_loads.longest_load_chain(made) == 3  # the load from shared memory waits for its address
    assert sass_loads.load_rounds(made) == 3
    assert sass_loads.loads_by_width(made) == {32: 2, 64: 1, 128: 1}


def test_shared_memory_is_not_looked_through():
    made = kernel("LDG.E R2, [R4.64]\n STS [R8], R2\n LDS R6, [R8]\n LDG.E R7, [R6]\n EXIT")
    assert sass_loads.longest_load_chain(made) == 1


def test_loads_in_flight_together_are_one_round():
    apart = "LDG.E R2, [R10.64]\n FADD R1, R1, R2\n LDG.E R3, [R12.64]\n FADD R1, R1, R3\n EXIT"
    together = "LDG.E R2, [R10.64]\n LDG.E R3, [R12.64]\n FADD R1, R1, R2\n FADD R1, R1, R3\n EXIT"
    assert [sass_loads.load_rounds(kernel(text)) for text in (apart, together)] == [2, 1]
    assert [sass_loads.longest_load_chain(kernel(text)) for text in (apart, together)] == [1, 1]


def test_each_loop_once():
    made = kernel("loop: LDG.E.64 R2, [R2.64]\n @P0 BRA loop\n EXIT")
    assert sass_loads.load_chain_and_rounds(made) == (1, 0)


def test_a_guard_is_waited_for():
    made = kernel("LDG.E R2, [R4.64]\n ISETP.NE.AND P0, PT, R2, RZ, PT\n @P0 LDG.E R3, [R6.64]\n EXIT")
    assert sass_loads.longest_load_chain(made) == 2


def test_under_one_guard_the_new_value_is_seen():
    """R2 is an address again where it is read; only under another guard it may still be the loaded value."""
    text = "LDG.E.64 R2, [R2.64]\n @P0 MOV R2, R8\n @P0 MOV R3, R9\n {} LDG.E R4, [R2.64]\n EXIT"
    assert [sass_loads.longest_load_chain(kernel(text.format(guard))) for guard in ("@P0", "@P1", "@!P0", "")] == [
        1,
        2,
        2,
        2,
    ]


def test_ways_that_exclude_one_another():
    made = kernel("""
        @P0 BRA other
        LDG.E.64 R2, [R2.64]
        BRA end
        other: LDG.E.64 R4, [R2.64]
        end: EXIT
    """)
    assert sass_loads.load_chain_and_rounds(made) == (1, 0)


def test_subroutines_are_followed_from_where_they_are_called():
    made = kernel("""
        LDG.E.64 R2, [R4.64]
        CALL.REL.NOINC sub
        LDG.E R7, [R6.64]
        EXIT
        sub: LDG.E R6, [R2.64]
        RET.REL.NODEC R20 0x0
    """)
    assert sass_loads.load_chain_and_rounds(made) == (3, 2)


def test_spills():
    assert sass_loads.spills(kernel("STL.64 [R1], R4\n LDL.LU R4, [R1]\n @!PT LDL R4, [R1]\n EXIT")) == 2


SOURCE = """
__global__ void follow(const long* next, long* out) {
  long at = next[threadIdx.x];
  at = next[at];
  at = next[at];
  out[threadIdx.x] = at;
}
__global__ void total(const float4* x, float* out, int n) {
  float sum = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 32) { const float4 v = x[i]; sum += v.x + v.y + v.z + v.w; __threadfence(); }
  out[threadIdx.x] = sum;
}
"""


@pytest.mark.skipif(not shutil.which("nvcc") or not find_spec("triton"), reason="needs nvcc and triton")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_what_nvcc_makes(arch, tmp_path):
    import triton

    (tmp_path / "made.cu").write_text(SOURCE)
    cubin = tmp_path / "made.cubin"
    subprocess.run(["nvcc", f"-arch={arch}", "-cubin", "-o", cubin, tmp_path / "made.cu"], check=True)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-sass", cubin]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    made = {("follow" if "follow" in f.name else "total"): f for f in sass.functions(printed.splitlines())}
    assert made["follow"].arch == arch
    assert sass_loads.load_chain_and_rounds(made["follow"]) == (3, 3) and sass_loads.loads_by_width(made["follow"]) == {
        64: 3
    }
    assert sass_loads.longest_load_chain(made["total"]) == 1 and sass_loads.loads_by_width(made["total"]) == {128: 1}
    (loop,) = sass.loops(made["total"])
    assert any(i.base == "MEMBAR" for i in made["total"].within(loop))
    assert sass.main_loops(made["total"]) == [] and sass_loads.spills(made["total"]) == 0
