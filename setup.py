"""Builds the extensions pez_fast._C (C++) and pez_fast._C_cuda (CUDA) with ninja; all else stands in pyproject.toml.

PEZ_FAST_BUILD: "auto" (default) builds what this machine can build and says in one line what it cannot and why; "0" builds
nothing; "cpu" builds the C++ extension or fails; "cuda" both or fails. CUDA code is built for TORCH_CUDA_ARCH_LIST, by
default for what nvcc can build of 8.0;8.6;8.9;9.0a;10.0+PTX;12.0. No torch is needed: the extensions know addresses, not
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
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
CHOICES = ("auto", "0", "cpu", "cuda")
CXX_FLAGS = "-std=c++17 -O3 -DNDEBUG -fPIC -fvisibility=hidden -fno-math-errno -Wall -Wextra"
CUDA_FLAGS = "-std=c++17 -O3 -DNDEBUG -Xcompiler -fPIC,-fvisibility=hidden -Xptxas -v -Wno-deprecated-gpu-targets"
# Code for X.Y runs on X.Z with Z >= Y: 8.0 on 8.7, 10.0 on 10.3, 12.0 on 12.1. Code for 9.0a runs on 9.0 alone. Other
# cards from 9.0 on (11.0, and what comes later) compile the PTX; it is of 9.0 at least: from there on kernels do more.
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
PTX = ("10.0", "9.0")  # the first of them that nvcc can build; 10.0 costs nothing beside its code
OLDEST_NVCC = (12, 0)
FIRST_NVCC = {"10.0": "12.8", "12.0": "12.8"}  # where it is newer than the oldest
HOPPER_ONLY = "_sm90.cu"


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in CSRC.glob(pattern))


SOURCES = {
    "pez_fast._C": sources("module.cpp", "cpu/*.cpp", "cuda/simulate.cpp", "cuda/tensor_core.cpp"),
    "pez_fast._C_cuda": sources("cuda/module.cpp", "cuda/*.cu"),
}
HEADERS = sources("**/*.h", "**/*.cuh")


class CannotBuild(Exception):
    """Why: one line, and what a tool printed below it."""


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def first_line(*command: str) -> str:
    lines = output(*command).strip().splitlines()
    return lines[-1 if "nvcc" in command[0] else 0] if lines else ""


def release(version: str) -> tuple[int, int]:
    """(13, 0) from what `nvcc --version` prints."""
    match = re.search(r"release (\d+)\.(\d+)", version)
    if not match:
        raise CannotBuild(f"nvcc does not say its version: {version!r}")
    return int(match[1]), int(match[2])


def usable(version: str) -> str:
    """The version of nvcc in words, if it is new enough."""
    if release(version) < OLDEST_NVCC:
        raise CannotBuild("nvcc {}.{} is too old: {}.{} is needed".format(*release(version), *OLDEST_NVCC))
    return "nvcc {}.{}".format(*release(version))


def known(listed: str) -> set[str]:
    """{"8.0", "10.0", …} from what `nvcc --list-gpu-arch` prints."""
    return {f"{number[:-1]}.{number[-1]}" for number in re.findall(r"compute_(\d+)\b", listed)}


def architectures(nvcc: str, can: set[str], wanted: str | None) -> tuple[list[tuple[str, str]], str]:
    """[(number without the dot, "sm" for code or "compute" for PTX)], and a sentence on what is left out.

    `nvcc`: its name and version; `can`: what it can build; `wanted`: TORCH_CUDA_ARCH_LIST, all of which must be built."""
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
    """The lines in which ptxas says that it serialises wgmma: the code is right, and several times slower."""
    return [line.strip() for line in printed.splitlines() if re.search(r"\bC75\d\d\b", line)]


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
        target, folder = Path(self.get_ext_fullpath(ext.name)).absolute(), Path(self.build_temp).absolute() / ext.name
        cuda = ext.name.endswith("cuda")
        if sys.platform == "win32":
            raise CannotBuild("it is built by GCC or Clang, on Linux and macOS")
        compiler = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
        if not compiler:
            raise CannotBuild("there is no C++ compiler (c++, g++, clang++)")
        home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
        if cuda and not nvcc:
            raise CannotBuild("there is no nvcc, neither on the path nor in CUDA_HOME")
        try:
            import pybind11
            from ninja import BIN_DIR
            from ninja.ninja_syntax import Writer
        except ImportError as missing:
            raise CannotBuild(f"{missing.name} is not installed") from missing
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        about, chosen = first_line(nvcc if cuda else compiler.split()[0], "--version"), []
        if cuda:
            name = usable(output(nvcc, "--version"))
            can = known(output(nvcc, "--list-gpu-arch"))
            chosen, missing = architectures(name, can, os.environ.get("TORCH_CUDA_ARCH_LIST"))
            if missing:
                print(f"pez_fast: {missing}", file=sys.stderr)
        (folder / "build_info.h").write_text(
            f'#define PEZ_COMPILER "{about}"\n'
            f'#define PEZ_BUILD_DATE "{datetime.now(timezone.utc):%Y-%m-%d}"\n'
            f'#define PEZ_ARCHITECTURES "{" ".join(n + ("+PTX" if kind == "compute" else "") for n, kind in chosen)}"\n'
        )
        includes = f"-I{folder} -I{sysconfig.get_path('include')} -I{pybind11.get_include()} -I{CSRC}"
        hopper = [one for one in chosen if one[0] == "90a"]
        names = [s for s in ext.sources if hopper or not s.endswith(HOPPER_ONLY)]
        with (folder / "build.ninja").open("w") as file:
            ninja = Writer(file)
            ninja.rule(
                "cxx", f"{compiler} {CXX_FLAGS} {includes} -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc"
            )
            define = "-DPEZ_SM90A" if hopper else ""
            # What ptxas says stays beside the object, so that a build that finds it made reads it again.
            command = f"{nvcc} {CUDA_FLAGS} {define} {includes} $code -MMD -MF $out.d -c $in -o $out"
            kept = f"{command} > $out.log 2>&1 || {{ cat $out.log; exit 1; }}"
            ninja.rule("nvcc", kept, depfile="$out.d", deps="gcc")
            shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
            ninja.rule("link", f"{nvcc} -shared $in -o $out" if cuda else f"{compiler} {shared} $in -o $out")
            objects = []
            for name in names:
                code = code_flags(hopper if name.endswith(HOPPER_ONLY) else chosen)
                rule, variables = ("nvcc", {"code": code}) if cuda else ("cxx", None)
                objects += ninja.build(f"{Path(name).name}.o", rule, str(ROOT / name), variables=variables)
            ninja.build("objects", "phony", objects)
            ninja.build(str(target), "link", objects)
        self._ninja(Path(BIN_DIR) / "ninja", folder, "objects", f"{nvcc if cuda else compiler} failed")
        logs = [(folder / f"{one}.log").read_text() for one in objects if cuda]
        if lines := serialised("\n".join(logs)):
            raise CannotBuild("\n  ".join(["ptxas serialises wgmma:", *lines]))
        self._ninja(Path(BIN_DIR) / "ninja", folder, str(target), "the linker failed")

    @staticmethod
    def _ninja(ninja: Path, folder: Path, goal: str, failure: str) -> None:
        done = subprocess.run([ninja, "-C", folder, goal], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            raise CannotBuild(failure)


def main() -> None:
    wanted = os.environ.get("PEZ_FAST_BUILD", "auto")
    if wanted not in CHOICES:
        sys.exit(f"PEZ_FAST_BUILD must be one of {', '.join(CHOICES)}; got {wanted!r}")
    names = {"0": [], "cpu": ["pez_fast._C"]}.get(wanted, list(SOURCES))
    extensions = [Extension(name, SOURCES[name], depends=HEADERS, optional=wanted == "auto") for name in names]
    setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})


if __name__ == "__main__":
    main()
