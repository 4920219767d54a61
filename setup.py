"""Builds the extensions pez_fast._C (C++) and pez_fast._C_cuda (CUDA) with ninja; pyproject.toml holds everything else.

PEZ_FAST_BUILD says what is built. "auto" (the default) builds what this machine can build; for each extension that it
cannot build, it prints one line with the reason. "0" builds nothing. "cpu" builds the C++ extension or fails. "cuda"
builds both extensions or fails. TORCH_CUDA_ARCH_LIST says for which cards CUDA code is built; by default nvcc builds
what it can of 8.0;8.6;8.9;9.0a;10.0+PTX;12.0. The build needs no torch, because the extensions take addresses and not
tensors.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
CHOICES = ("auto", "0", "cpu", "cuda")
CXX_FLAGS = "-std=c++17 -O3 -DNDEBUG -fPIC -fvisibility=hidden -fno-math-errno -Wall -Wextra"
CUDA_FLAGS = "-std=c++17 -O3 -DNDEBUG -Xcompiler -fPIC,-fvisibility=hidden -Xptxas -v -Wno-deprecated-gpu-targets"
# Code for X.Y runs on X.Z with Z >= Y: 8.0 on 8.7, 10.0 on 10.3, 12.0 on 12.1. Code for 9.0a runs on 9.0 alone. Every
# other card from 9.0 on (11.0 and later ones) compiles the PTX. The PTX is of 9.0 at least, because the kernels do more
# from 9.0 on.
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
PTX = ("10.0", "9.0")  # setup.py takes the first that nvcc can build; PTX of 10.0 costs nothing beside its code
OLDEST_NVCC = (12, 0)
FIRST_NVCC = {"10.0": "12.8", "12.0": "12.8"}  # architectures that need a newer nvcc than OLDEST_NVCC
HOPPER_ONLY = "_sm90.cu"


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in CSRC.glob(pattern))


SOURCES = {
    "pez_fast._C": sources("module.cpp", "cpu/*.cpp", "cuda/simulate.cpp", "cuda/tensor_core.cpp"),
    "pez_fast._C_cuda": sources("cuda/module.cpp", "cuda/*.cu"),
}
HEADERS = sources("**/*.h", "**/*.cuh")


class CannotBuild(Exception):
    """Says why in one line; the lines below it are what a tool printed."""


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def first_line(*command: str) -> str:
    lines = output(*command).strip().splitlines()
    return lines[-1 if "nvcc" in command[0] else 0] if lines else ""


def release(version: str) -> tuple[int, int]:
    """Reads (13, 0) from what `nvcc --version` prints."""
    match = re.search(r"release (\d+)\.(\d+)", version)
    if not match:
        raise CannotBuild(f"nvcc does not say its version: {version!r}")
    return int(match[1]), int(match[2])


def usable(version: str) -> str:
    """Returns the version of nvcc in words; an nvcc that is too old raises CannotBuild."""
    if release(version) < OLDEST_NVCC:
        raise CannotBuild("nvcc {}.{} is too old: {}.{} is needed".format(*release(version), *OLDEST_NVCC))
    return "nvcc {}.{}".format(*release(version))


def known(listed: str) -> set[str]:
    """Reads {"8.0", "10.0", …} from what `nvcc --list-gpu-arch` prints."""
    return {f"{number[:-1]}.{number[-1]}" for number in re.findall(r"compute_(\d+)\b", listed)}


def architectures(nvcc: str, can: set[str], wanted: str | None) -> tuple[list[tuple[str, str]], str]:
    """Returns [(number without the dot, "sm" for code or "compute" for PTX)] and a sentence on what is left out.

    `nvcc` is its name and version, `can` is what it can build. `wanted` is TORCH_CUDA_ARCH_LIST; nvcc must be able to
    build all of it."""
    if not (wanted or "").strip():
        out = [one for one in ARCHITECTURES if one.rstrip("a") not in can]
        ptx = next((one for one in PTX if one in can), None)
        chosen = [(one, "sm") for one in ARCHITECTURES if one not in out] + ([(ptx, "compute")] if ptx else [])
        names = " and ".join(f"{one} (from {FIRST_NVCC[one]} on)" if one in FIRST_NVCC else one for one in out)
        missing = f"{nvcc} cannot build {names}: there is no code for these but PTX" if out else ""
        if not chosen:
            raise CannotBuild(missing)
        return [(number.replace(".", ""), kind) for number, kind in chosen], missing
    explicit = []
    for one in re.split(r"[;\s]+", wanted.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", one)
        if not match or int(match[1]) < 8:
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST must list numbers from 8.0 on; got {one!r}")
        if f"{match[1]}.{match[2]}" not in can:
            able = ", ".join(sorted(can, key=float))
            raise CannotBuild(f"{nvcc} cannot build {one}, which TORCH_CUDA_ARCH_LIST names; it can build {able}")
        explicit += [(match[1] + match[2] + match[3], kind) for kind in ("sm", "compute")[: 2 if match[4] else 1]]
    numbers = {number for number, _ in explicit}
    slower = "TORCH_CUDA_ARCH_LIST names 9.0 and not 9.0a: an H100 or H200 will run the kernels that every card can run"
    return explicit, slower if "90" in numbers and "90a" not in numbers else ""


def code_flags(chosen: list[tuple[str, str]]) -> str:
    return " ".join(f"-gencode=arch=compute_{number},code={kind}_{number}" for number, kind in chosen)


def serialised(printed: str) -> list[str]:
    """Returns the lines in which ptxas says that it serialises wgmma: the code is right but several times slower."""
    return [line.strip() for line in printed.splitlines() if re.search(r"\bC75\d\d\b", line)]


def find_compiler() -> str:
    compiler = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    if not compiler:
        raise CannotBuild("there is no C++ compiler (c++, g++, clang++)")
    return compiler


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if not nvcc:
        raise CannotBuild("there is no nvcc, neither on the path nor in CUDA_HOME")
    return nvcc


def require_packages() -> None:
    for name in ("pybind11", "ninja"):
        try:
            import_module(name)
        except ImportError as missing:
            raise CannotBuild(f"{missing.name} is not installed") from missing


def chosen_architectures(nvcc: str) -> list[tuple[str, str]]:
    """Returns what this nvcc builds, as `architectures` does; prints the sentence on what is left out."""
    name = usable(output(nvcc, "--version"))
    can = known(output(nvcc, "--list-gpu-arch"))
    chosen, missing = architectures(name, can, os.environ.get("TORCH_CUDA_ARCH_LIST"))
    if missing:
        print(f"pez_fast: {missing}", file=sys.stderr)
    return chosen


def write_build_info(folder: Path, version: str, chosen: list[tuple[str, str]]) -> None:
    """Writes build_info.h: the version of the compiler, the date and the architectures."""
    names = " ".join(number + ("+PTX" if kind == "compute" else "") for number, kind in chosen)
    (folder / "build_info.h").write_text(
        f'#define PEZ_COMPILER "{version}"\n'
        f'#define PEZ_BUILD_DATE "{datetime.now(timezone.utc):%Y-%m-%d}"\n'
        f'#define PEZ_ARCHITECTURES "{names}"\n'
    )


def include_flags(folder: Path) -> str:
    import pybind11

    return f"-I{folder} -I{sysconfig.get_path('include')} -I{pybind11.get_include()} -I{CSRC}"


def write_cxx_file(folder: Path, target: Path, files: list[str], compiler: str) -> list[str]:
    """Writes build.ninja for a C++ extension, and returns the names of its objects."""
    from ninja.ninja_syntax import Writer

    compile_one = f"{compiler} {CXX_FLAGS} {include_flags(folder)} -MMD -MF $out.d -c $in -o $out"
    shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    with (folder / "build.ninja").open("w") as written:
        ninja = Writer(written)
        ninja.rule("cxx", compile_one, depfile="$out.d", deps="gcc")
        ninja.rule("link", f"{compiler} {shared} $in -o $out")
        objects = []
        for name in files:
            objects += ninja.build(f"{Path(name).name}.o", "cxx", str(ROOT / name))
        write_goals(ninja, target, objects)
    return objects


def write_cuda_file(
    folder: Path, target: Path, files: list[str], nvcc: str, chosen: list[tuple[str, str]]
) -> list[str]:
    """Writes build.ninja for a CUDA extension, and returns the names of its objects.

    A source whose name ends in HOPPER_ONLY is built for 9.0a alone; without 9.0a it is left out."""
    from ninja.ninja_syntax import Writer

    hopper = [one for one in chosen if one[0] == "90a"]
    define = "-DPEZ_SM90A" if hopper else ""
    command = f"{nvcc} {CUDA_FLAGS} {define} {include_flags(folder)} $code -MMD -MF $out.d -c $in -o $out"
    # What ptxas prints stays beside the object. A later build, which finds the object made, reads it again.
    kept = f"{command} > $out.log 2>&1 || {{ cat $out.log; exit 1; }}"
    with (folder / "build.ninja").open("w") as written:
        ninja = Writer(written)
        ninja.rule("nvcc", kept, depfile="$out.d", deps="gcc")
        ninja.rule("link", f"{nvcc} -shared $in -o $out")
        objects = []
        for name in (file for file in files if hopper or not file.endswith(HOPPER_ONLY)):
            code = code_flags(hopper if name.endswith(HOPPER_ONLY) else chosen)
            objects += ninja.build(f"{Path(name).name}.o", "nvcc", str(ROOT / name), variables={"code": code})
        write_goals(ninja, target, objects)
    return objects


def write_goals(ninja: Any, target: Path, objects: list[str]) -> None:
    """Writes the two goals of a build: "objects" compiles, `target` links."""
    ninja.build("objects", "phony", objects)
    ninja.build(str(target), "link", objects)


def run_ninja(folder: Path, goal: str, failure: str) -> None:
    from ninja import BIN_DIR

    command = [Path(BIN_DIR) / "ninja", "-C", folder, goal]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise CannotBuild(failure)


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except CannotBuild as reason:
            if not ext.optional:
                sys.exit(f"pez_fast: cannot build {ext.name}: {reason}")
            impl = "cuda" if ext.name.endswith("cuda") else "cpu"
            print(f"pez_fast: installed without {ext.name}, so impl={impl!r} is not usable: {reason}", file=sys.stderr)

    def _build(self, ext: Extension) -> None:
        if sys.platform == "win32":
            raise CannotBuild("it is built by GCC or Clang, on Linux and macOS")
        target, folder = Path(self.get_ext_fullpath(ext.name)).absolute(), Path(self.build_temp).absolute() / ext.name
        compiler = find_compiler()  # nvcc needs it too
        if ext.name.endswith("cuda"):
            self._build_cuda(ext, find_nvcc(), folder, target)
        else:
            self._build_cxx(ext, compiler, folder, target)

    def _build_cxx(self, ext: Extension, compiler: str, folder: Path, target: Path) -> None:
        require_packages()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_build_info(folder, first_line(compiler.split()[0], "--version"), [])
        write_cxx_file(folder, target, ext.sources, compiler)
        run_ninja(folder, "objects", f"{compiler} failed")
        run_ninja(folder, str(target), "the linker failed")

    def _build_cuda(self, ext: Extension, nvcc: str, folder: Path, target: Path) -> None:
        require_packages()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        chosen = chosen_architectures(nvcc)
        write_build_info(folder, first_line(nvcc, "--version"), chosen)
        objects = write_cuda_file(folder, target, ext.sources, nvcc, chosen)
        run_ninja(folder, "objects", f"{nvcc} failed")
        if lines := serialised("\n".join((folder / f"{one}.log").read_text() for one in objects)):
            raise CannotBuild("\n  ".join(["ptxas serialises wgmma:", *lines]))
        run_ninja(folder, str(target), "the linker failed")


def main() -> None:
    wanted = os.environ.get("PEZ_FAST_BUILD", "auto")
    if wanted not in CHOICES:
        sys.exit(f"PEZ_FAST_BUILD must be one of {', '.join(CHOICES)}; got {wanted!r}")
    names = {"0": [], "cpu": ["pez_fast._C"]}.get(wanted, list(SOURCES))
    extensions = [Extension(name, SOURCES[name], depends=HEADERS, optional=wanted == "auto") for name in names]
    setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})


if __name__ == "__main__":
    main()
