"""From a file, .cu or .ptx, to the module that the machine executes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import MachineError
from .names import demangled, readable
from .parse import parse
from .report import UsageError
from .syntax import Function, Module


def module_of(file: str, architecture: str, flags: str = "") -> Module:
    """The module of a file. Raises UsageError where it cannot be read, compiled or parsed."""
    path = Path(file)
    if path.suffix not in (".cu", ".ptx"):
        raise UsageError(f"FILE is {file}, but its name must end in .cu or .ptx")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"FILE is {file}, which cannot be read: {getattr(problem, 'strerror', problem)}") from None
    text = compiled(path, architecture, flags) if path.suffix == ".cu" else text
    try:
        return parse(text)
    except MachineError as problem:
        raise UsageError(f"FILE is {file}, whose PTX cannot be understood: {problem}") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as problem:
        raise UsageError(f"FILE is {file}, whose PTX cannot be understood: {problem!r}") from None


def compiled(path: Path, architecture: str, flags: str) -> str:
    """The PTX of a .cu file, with lines of the source."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if not nvcc:
        raise UsageError(
            f"FILE is {path}, but there is no nvcc, neither on the path nor in CUDA_HOME; give a .ptx file"
        )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.ptx"
        options = ["-ptx", "-lineinfo", f"-arch=compute_{architecture}", "-std=c++17", *shlex.split(flags)]
        done = subprocess.run(
            [nvcc, *options, str(path.resolve()), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode or not made.exists():
            raise UsageError(f"FILE is {path}, which nvcc does not compile:\n{(done.stdout + done.stderr).strip()}")
        return made.read_text()


def kernels(module: Module) -> list[Function]:
    return [function for function in module.functions.values() if function.entry]


def chosen(module: Module, file: str, name: str | None) -> Function:
    """The kernel of a name: the whole name, mangled or not, or a part that only one has."""
    found = kernels(module)
    names = ", ".join(readable(one.name) for one in found)
    if not found:
        raise UsageError(f"FILE is {file}, which has no kernel")
    if name is None:
        if len(found) > 1:
            raise UsageError(f"FILE is {file}, which has several kernels; choose one by --kernel: {names}")
        return found[0]
    exact = [one for one in found if name in (one.name, readable(one.name), demangled(one.name))]
    matching = exact or [one for one in found if name in readable(one.name)]
    if len(matching) != 1:
        how = "no kernel" if not matching else "more than one kernel"
        raise UsageError(f"--kernel is {name}, and {how} of {file} has this name: {names}")
    return matching[0]
