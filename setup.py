"""Builds the extensions pez_fast._C (C++) and pez_fast._C_cuda (CUDA) with ninja; all else stands in pyproject.toml.

PEZ_FAST_BUILD: "auto" (default) builds what this machine can build and says in one line what it cannot and why; "0" builds
nothing; "cpu" builds the C++ extension or fails; "cuda" both or fails. CUDA code is built for TORCH_CUDA_ARCH_LIST, by default
8.0;8.6;9.0a and PTX for what comes after. No torch is needed: the extensions know addresses, not tensors.
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
ARCHITECTURES = "8.0;8.6;9.0a;9.0+PTX"
HOPPER_ONLY = "scan_sm90.cu"


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in CSRC.glob(pattern))


SOURCES = {
    "pez_fast._C": sources("module.cpp", "cpu/*.cpp", "cuda/simulate.cpp"),
    "pez_fast._C_cuda": sources("cuda/module.cpp", "cuda/*.cu"),
}
HEADERS = sources("**/*.h", "**/*.cuh")
wanted = os.environ.get("PEZ_FAST_BUILD", "auto")
if wanted not in CHOICES:
    sys.exit(f"PEZ_FAST_BUILD must be one of {', '.join(CHOICES)}; got {wanted!r}")


class CannotBuild(Exception):
    """Why, in one line."""


def first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1 if "nvcc" in command[0] else 0] if done.stdout else ""


def architectures() -> list[tuple[str, bool]]:
    """(number without the dot, whether PTX is added) for each."""
    listed = re.split(r"[;\s]+", (os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES).strip())
    found = [re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", one) for one in listed]
    for one, match in zip(listed, found, strict=True):
        if not match or int(match[1]) < 8:
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST must list numbers from 8.0 on; got {one!r}")
    return [(m[1] + m[2], bool(m[3])) for m in found if m]


def code_flags(chosen: list[tuple[str, bool]]) -> str:
    flags = []
    for number, ptx in chosen:
        codes = [f"compute_{number}"] if ptx else [f"sm_{number}"]
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return " ".join(flags)


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
        chosen = architectures() if cuda else []
        (folder / "build_info.h").write_text(
            f'#define PEZ_COMPILER "{first_line(nvcc, "--version") if cuda and nvcc else first_line(compiler.split()[0], "--version")}"\n'
            f'#define PEZ_BUILD_DATE "{datetime.now(timezone.utc):%Y-%m-%d}"\n'
            f'#define PEZ_ARCHITECTURES "{" ".join(n + ("+PTX" if ptx else "") for n, ptx in chosen)}"\n'
        )
        includes = f"-I{folder} -I{sysconfig.get_path('include')} -I{pybind11.get_include()} -I{CSRC}"
        hopper = [a for a in chosen if a[0] == "90a"]
        names = [s for s in ext.sources if hopper or not s.endswith(HOPPER_ONLY)]
        with (folder / "build.ninja").open("w") as file:
            ninja = Writer(file)
            ninja.rule("cxx", f"{compiler} {CXX_FLAGS} {includes} -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
            define = "-DPEZ_SM90A" if hopper else ""
            ninja.rule("nvcc", f"{nvcc} {CUDA_FLAGS} {define} {includes} $code -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
            shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
            ninja.rule("link", f"{nvcc} -shared $in -o $out" if cuda else f"{compiler} {shared} $in -o $out")
            objects = []
            for name in names:
                code = code_flags(hopper if name.endswith(HOPPER_ONLY) else chosen)
                rule, variables = ("nvcc", {"code": code}) if cuda else ("cxx", None)
                objects += ninja.build(f"{Path(name).name}.o", rule, str(ROOT / name), variables=variables)
            ninja.build(str(target), "link", objects)
        done = subprocess.run([Path(BIN_DIR) / "ninja", "-C", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            raise CannotBuild(f"{nvcc if cuda else compiler} failed")


names = {"0": [], "cpu": ["pez_fast._C"]}.get(wanted, list(SOURCES))
extensions = [Extension(name, SOURCES[name], depends=HEADERS, optional=wanted == "auto") for name in names]
setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})
