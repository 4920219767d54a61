"""Builds the extension pez_fast._C with ninja; all else stands in pyproject.toml.

PEZ_FAST_BUILD: "auto" (default) builds what this machine can build and says in one line what it cannot; "0" builds nothing;
"cpu" builds the C++ extension or fails. No torch is needed for building: the extension knows addresses, not tensors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from datetime import datetime, timezone
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cpp"))
HEADERS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h"))
CHOICES = ("auto", "0", "cpu")
FLAGS = "-std=c++17 -O3 -DNDEBUG -fPIC -fvisibility=hidden -fno-math-errno -Wall -Wextra"

wanted = os.environ.get("PEZ_FAST_BUILD", "auto")
if wanted not in CHOICES:
    sys.exit(f"PEZ_FAST_BUILD must be one of {', '.join(CHOICES)}; got {wanted!r}")


class CannotBuild(Exception):
    """Why, in one line."""


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(Path(self.get_ext_fullpath(ext.name)).absolute())
        except CannotBuild as reason:
            if wanted != "auto":
                sys.exit(f"pez_fast: cannot build the C++ extension: {reason}")
            print(f"pez_fast: installed without the C++ extension, so impl='cpu' is not usable: {reason}", file=sys.stderr)

    def _build(self, target: Path) -> None:
        if sys.platform == "win32":
            raise CannotBuild("it is built by GCC or Clang, on Linux and macOS")
        compiler = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
        if not compiler:
            raise CannotBuild("there is no C++ compiler (c++, g++, clang++)")
        try:
            import pybind11
            from ninja import BIN_DIR
            from ninja.ninja_syntax import Writer
        except ImportError as missing:
            raise CannotBuild(f"{missing.name} is not installed") from missing
        folder = Path(self.build_temp).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, check=False).stdout.partition("\n")[0]
        (folder / "build_info.h").write_text(
            f'#define PEZ_COMPILER "{version}"\n#define PEZ_BUILD_DATE "{datetime.now(timezone.utc):%Y-%m-%d}"\n'
        )
        includes = f"-I{folder} -I{sysconfig.get_path('include')} -I{pybind11.get_include()} -I{ROOT / 'csrc'}"
        shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
        with (folder / "build.ninja").open("w") as file:
            ninja = Writer(file)
            ninja.rule("compile", f"{compiler} {FLAGS} {includes} -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
            ninja.rule("link", f"{compiler} {shared} $in -o $out")
            objects = [ninja.build(f"{Path(s).stem}.o", "compile", str(ROOT / s))[0] for s in SOURCES]
            ninja.build(str(target), "link", objects)
        done = subprocess.run([Path(BIN_DIR) / "ninja", "-C", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            raise CannotBuild(f"{compiler} failed")


extensions = [Extension("pez_fast._C", SOURCES, depends=HEADERS, optional=wanted == "auto")] if wanted != "0" else []
setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})
