"""Builds the launchers of csrc/cuda against the stand-in for the CUDA runtime in tests/cuda_runtime, and their PTX.

What nvcc made is kept under build/, file by file, by a hash of all that it depends on; a copy of csrc with one other
source compiles that one again. Processes that build at once wait for one another."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "recorded_cuda"
RUNTIME = ROOT / "tests" / "cuda_runtime"
ARCHITECTURES = ("80", "90")
BUILD_INFO = '#define PEZ_COMPILER "nvcc"\n#define PEZ_BUILD_DATE "none"\n#define PEZ_ARCHITECTURES "80 90a"\n'
PLACE = "/place-of-csrc"  # stands in cached PTX for the folder of the sources


@cache
def setup() -> ModuleType:
    """Returns setup.py as a module: its flags are those of the real build."""
    specification = importlib.util.spec_from_file_location("pez_fast_setup_of_recording", ROOT / "setup.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def missing() -> str | None:
    """Returns why this machine cannot build, or None."""
    for name in ("setuptools", "ninja", "pybind11"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    if not shutil.which("nm"):
        return "there is no nm"
    try:
        setup().find_compiler()
        setup().usable(setup().output(setup().find_nvcc(), "--version"))
    except setup().CannotBuild as reason:
        return str(reason)
    return None


class Built:
    """The extension of one state of csrc. `csrc` is the folder, `library` the extension, `folders` those of objects."""

    def __init__(self, csrc: Path, library: Path, folders: dict[str, Path]) -> None:
        self.csrc, self.library, self._folders = csrc, library, folders

    def ptx(self, architecture: str) -> dict[str, str]:
        """architecture "80" or "90" -> {stem of the source: PTX} of every source with kernels.

        Sources for sm_90a alone are among those of "90" only."""
        if architecture not in ARCHITECTURES:
            raise ValueError(f"the architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        texts = {}
        for stem, folder in self._folders.items():
            file = folder / f"{architecture}.ptx"
            text = file.read_text().replace(PLACE, str(self.csrc)) if file.exists() else ""
            if ".entry" in text:
                texts[stem] = text
        return texts

    @cached_property
    def module(self) -> ModuleType:
        """The module _C_cuda of this build, under a name of its own."""
        return load(self.library)


@cache
def load(library: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"recorded_{library.parent.name}._C_cuda", library)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def build(csrc: Path = ROOT / "csrc") -> Built:
    """Builds the launchers of `csrc`, which may be a changed copy of the repository's."""
    csrc = Path(csrc).resolve()
    sources = sorted((csrc / "cuda").glob("*.cu")) + [csrc / "cuda" / "module.cpp"] + sorted(RUNTIME.glob("*.cpp"))
    headers = contents(csrc, "**/*.h", "**/*.cuh")
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda source: compiled(source, csrc, headers), sources))
    objects = [folder / "object.o" for folder in folders]
    linked = kept(digest("link", *(folder.name for folder in folders)), lambda folder: link(folder, objects))
    kernels = {source.stem: folder for source, folder in zip(sources, folders, strict=True) if source.suffix == ".cu"}
    return Built(csrc, linked / "_C_cuda.so", kernels)


def contents(folder: Path, *patterns: str) -> bytes:
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return b"".join(f"\n{file.relative_to(folder)}\n".encode() + file.read_bytes() for file in files)


def digest(*parts: str | bytes) -> str:
    made = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "little") + data)
    return made.hexdigest()[:32]


@cache
def versions() -> str:
    python = f"{sysconfig.get_config_var('SOABI')} {importlib.util.find_spec('pybind11').origin}"
    compilers = ((setup().find_nvcc(), "--version"), (setup().find_compiler().split()[0], "--version"))
    return "\n".join([python, *(setup().output(*command) for command in compilers)])


def compiled(source: Path, csrc: Path, headers: bytes) -> Path:
    """Returns a folder with object.o, and with 80.ptx and 90.ptx as far as the source is built for these."""
    own = source.parent == RUNTIME
    beside = contents(RUNTIME, "*.h") if own else headers
    flags = flags_of(source)
    key = digest(versions(), BUILD_INFO, " ".join(flags), source.name, source.read_bytes(), beside)
    return kept(key, lambda folder: compile_one(folder, source, csrc, flags))


def flags_of(source: Path) -> list[str]:
    """The flags of setup.py. The code of the host need not be fast, and that of the device stays PTX."""
    flags = setup().CUDA_FLAGS.replace("-O3", "-O1" if source.suffix == ".cu" else "-O0").split()
    if source.suffix != ".cu":
        return [*flags, "-DPEZ_SM90A"]
    chosen = (
        [("90a", "compute")] if source.name.endswith(setup().HOPPER_ONLY) else [("80", "compute"), ("90", "compute")]
    )
    return [*flags, "-DPEZ_SM90A", "-lineinfo", *setup().code_flags(chosen).split()]


def compile_one(folder: Path, source: Path, csrc: Path, flags: list[str]) -> None:
    (folder / "build_info.h").write_text(BUILD_INFO)
    between = folder / "between"
    between.mkdir()
    includes = setup().include_flags(folder).replace(f"-I{setup().CSRC}", f"-I{csrc}").split()
    keep = ["--keep", "--keep-dir", str(between)] if source.suffix == ".cu" else []
    run([setup().find_nvcc(), *flags, *includes, *keep, "-c", str(source), "-o", str(folder / "object.o")])
    for file in between.glob("*.ptx"):
        text = file.read_text()
        architecture = re.search(r"^\.target\s+sm_(\d+)", text, re.MULTILINE)[1]
        (folder / f"{architecture}.ptx").write_text(text.replace(str(csrc), PLACE))
    shutil.rmtree(between)


def link(folder: Path, objects: list[Path]) -> None:
    library = folder / "_C_cuda.so"
    run([setup().find_nvcc(), "-shared", "-cudart", "none", *map(str, objects), "-o", str(library)])
    undefined = setup().output("nm", "-D", "--undefined-only", str(library)).split()
    if lacking := sorted(name for name in undefined if re.match(r"(__)?cuda|cu[A-Z]", name)):
        raise RuntimeError(f"tests/cuda_runtime lacks {', '.join(lacking)}")


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def kept(key: str, make: Callable[[Path], None]) -> Path:
    """Returns the folder of a key; `make` fills it if it is not there. Another process that makes it is waited for."""
    folder, locks = CACHE / key, CACHE / "locks"
    if folder.exists():
        return folder
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / key).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as made:
                filled = Path(made) / "filled"
                filled.mkdir()
                make(filled)
                filled.rename(folder)
    return folder
