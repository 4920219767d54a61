"""Tests setup.py: for which cards it builds code, which nvcc it takes, and that serialised wgmma ends the build."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

if any(importlib.util.find_spec(name) is None for name in ("setuptools", "ninja", "pybind11")):
    pytest.skip("needs setuptools, ninja and pybind11", allow_module_level=True)

ROOT = Path(__file__).parents[1]
specification = importlib.util.spec_from_file_location("pez_fast_setup", ROOT / "setup.py")
build = importlib.util.module_from_spec(specification)
specification.loader.exec_module(build)

NEW = {"7.5", "8.0", "8.6", "8.7", "8.8", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"}  # nvcc 13.0
OLD = {"5.0", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0"}  # nvcc 12.4


def codes(nvcc: str, can: set[str], wanted: str | None = None) -> str:
    return " ".join(f"{kind}_{number}" for number, kind in build.architectures(nvcc, can, wanted)[0])


def test_by_default():
    chosen, missing = build.architectures("nvcc 13.0", NEW, None)
    assert (
        " ".join(f"{kind}_{number}" for number, kind in chosen) == "sm_80 sm_86 sm_89 sm_90a sm_100 sm_120 compute_100"
    )
    assert missing == ""
    assert build.architectures("nvcc 13.0", NEW, " ") == (chosen, "")


def test_what_nvcc_cannot_build_is_left_out_and_said():
    chosen, missing = build.architectures("nvcc 12.4", OLD, None)
    assert " ".join(f"{kind}_{number}" for number, kind in chosen) == "sm_80 sm_86 sm_89 sm_90a compute_90"
    left_out = "10.0 (from 12.8 on) and 12.0 (from 12.8 on)"
    assert missing == f"nvcc 12.4 cannot build {left_out}: there is no code for these but PTX"
    with pytest.raises(build.CannotBuild, match="nvcc 9 cannot build 8.0 and 8.6"):
        build.architectures("nvcc 9", {"7.0"}, None)


@pytest.mark.parametrize("can", [NEW, OLD])
@pytest.mark.parametrize("card", ["8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1", "13.0"])
def test_every_card_has_code(card, can):
    """Code of X.Y fits X.Z with Z >= Y; code of 9.0a fits 9.0; PTX fits newer cards. From 9.0 on no older code fits."""
    major, minor = map(int, card.split("."))
    fits = []
    for number, kind in build.architectures("nvcc", can, None)[0]:
        made = int(number.rstrip("a")[:-1]), int(number.rstrip("a")[-1])
        runs = made == (major, minor) if number.endswith("a") else made[0] == major and made[1] <= minor
        fits += [made] if (made <= (major, minor) if kind == "compute" else runs) else []
    assert fits and (major < 9 or min(fits) >= (9, 0))


def test_a_list_without_wgmma_is_said():
    assert build.architectures("nvcc 13.0", NEW, "8.0;9.0")[1].endswith(
        "an H100 or H200 will run the kernels that every card can run"
    )
    assert build.architectures("nvcc 13.0", NEW, "9.0;9.0a")[1] == build.architectures("nvcc 13.0", NEW, "8.0")[1] == ""


def test_a_list_is_built_as_it_is():
    assert codes("nvcc 13.0", NEW, "8.0;9.0a 12.0+PTX") == "sm_80 sm_90a sm_120 compute_120"
    refusal = r"nvcc 12.4 cannot build 10.0, which TORCH_CUDA_ARCH_LIST names; it can build 5.0, .*, 9.0$"
    with pytest.raises(build.CannotBuild, match=refusal):
        build.architectures("nvcc 12.4", OLD, "8.0;10.0")


@pytest.mark.parametrize("one", ["7.5", "Hopper", "90", "9.0b"])
def test_a_list_that_is_none(one):
    with pytest.raises(build.CannotBuild, match=f"TORCH_CUDA_ARCH_LIST must list numbers from 8.0 on; got '{one}'"):
        build.architectures("nvcc 13.0", NEW, f"8.0;{one}")


def test_flags():
    flags = "-gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_90,code=compute_90"
    assert build.code_flags([("90a", "sm"), ("90", "compute")]) == flags


def test_known():
    assert build.known("compute_75\ncompute_80\ncompute_100\ncompute_121\n") == {"7.5", "8.0", "10.0", "12.1"}


@pytest.mark.parametrize(("number", "usable"), [("11.8", False), ("12.0", True), ("12.4", True), ("13.0", True)])
def test_version_of_nvcc(number, usable):
    version = f"nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {number}, V{number}.89\nBuild 1"
    if usable:
        assert build.usable(version) == f"nvcc {number}"
    else:
        with pytest.raises(build.CannotBuild, match="^nvcc 11.8 is too old: 12.0 is needed$"):
            build.usable(version)
    with pytest.raises(build.CannotBuild, match="does not say its version"):
        build.usable("")


def test_serialised():
    lines = [
        "ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to …",
        "ptxas warning : (C7519) Potential Performance Loss: …",
        "ptxas C7510 : Potential Performance Loss: wgmma.mma_async instructions are serialized due to …",
    ]
    harmless = [
        "ptxas info    : 0 bytes gmem",
        "ptxas info    : Compiling entry function '_Z5C7514v' for 'sm_90a'",
        "ptxas info    : Used 7514 registers",
    ]
    assert build.serialised("\n".join([harmless[0], *lines, *harmless])) == lines
    assert build.serialised("\n".join(harmless)) == []


# The kernel reads an accumulator between two products.
PLANTED = """
#include <cstdint>
__device__ __forceinline__ void multiply(float (&c)[4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "l"(a), "l"(b));
}
__global__ void planted(float* out, uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  float c[4] = {};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  multiply(c, a, b);
  READ
  multiply(c, a + 2, b + 2);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  out[threadIdx.x + 128] = c[0] + c[1] + c[2] + c[3];
#endif
}
"""


def built(folder: Path, name: str, source: str) -> Path:
    """Builds a module of one source, whose name says that it is for 9.0a alone; returns where the module lies."""
    from setuptools import Extension
    from setuptools.dist import Distribution

    (folder / f"{name}_sm90.cu").write_text(source)
    command = build.NinjaBuild(Distribution())
    command.build_lib, command.build_temp, command.inplace = str(folder / "lib"), str(folder / "temp"), False
    command.finalize_options()
    extension = Extension(f"{name}_cuda", [str(folder / f"{name}_sm90.cu")])
    command.extensions = [extension]
    command.build_extension(extension)
    return Path(command.get_ext_fullpath(extension.name))


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_serialised_wgmma_ends_the_build(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a")  # setup.py builds the source for the second alone
    good = built(tmp_path, "good", PLANTED.replace("READ", ""))
    assert good.is_file()
    for _ in range(2):  # the second time the object is there already
        with pytest.raises(
            SystemExit, match=r"(?s)cannot build bad_cuda: ptxas serialises wgmma:.*\(C75\d\d\).*'_Z7planted"
        ):
            built(tmp_path, "bad", PLANTED.replace("READ", "out[threadIdx.x] = c[0];"))
        assert not good.with_name(good.name.replace("good", "bad")).exists()


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_an_error_ends_the_build_and_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    with pytest.raises(SystemExit, match="cannot build wrong_cuda: .*nvcc failed"):
        built(tmp_path, "wrong", "int main( {")
    assert "error" in capsys.readouterr().err


def test_a_wrong_choice(monkeypatch):
    monkeypatch.setitem(os.environ, "PEZ_FAST_BUILD", "gpu")
    with pytest.raises(SystemExit, match="PEZ_FAST_BUILD must be one of auto, 0, cpu, cuda; got 'gpu'"):
        build.main()
