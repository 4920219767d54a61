"""The rules of the package hold: floors, quiet import, short files and functions."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pez_fast
from pez_fast import ops

ROOT = Path(__file__).parents[1]
FLOORS = {
    **dict.fromkeys(["version", "config", "result"], 0),
    **dict.fromkeys(["_shared", "_C", "_C_cuda"], 1),
    **dict.fromkeys(["_torch", "_cpu", "_triton", "_cuda"], 2),
    "reference": 3,
    "ops": 4,
    "table": 5,
    **dict.fromkeys(["functional", "information"], 6),
    **dict.fromkeys(["optimizer", "engine", "images", "labelled"], 7),
    **dict.fromkeys(["models", "objectives", "methods"], 8),
    "prompt_search": 9,
    **dict.fromkeys(["tasks", "report"], 10),
    **dict.fromkeys(["compat", "dataset"], 11),
    "ray": 12,
    "cli": 13,
    "__main__": 14,
}
FACES = 11  # from this floor on, users call the modules
# Pairs that may import one another on one floor: none. Within a folder, all modules may.
NEIGHBOURS: set[tuple[str, str]] = set()
CONSTANTS = {"__version__"}  # names that any module may import from the package itself
THIRD_PARTY = {0: set(), 1: {"torch"}, 2: {"torch", "triton"}, **dict.fromkeys([3, 4, 5, 6], {"torch"})}
ONLY_TORCH = {
    "engine",
    "methods",
    "objectives",
    "optimizer",
    "prompt_search",
}  # the quiet import alone limits the others
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 50
SOURCE = set(".py .pyi .c .cc .cpp .cu .cuh .h .hpp .html .css .js .sh .toml .md".split())


def modules() -> dict[str, Path]:
    """Returns the package's modules by name, such as {"models.clip": …, "_triton.nearest": …}."""
    found = {}
    for folder, prefix in ((ROOT / "pez_fast", ()), (ROOT / "kernels" / "triton", ("_triton",))):
        for path in sorted(folder.rglob("*.py")):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name:
                found[name] = path
    return found


MODULES = modules()


def imports(name: str, source: str, package: bool = False) -> tuple[set[str], set[str]]:
    """Returns what a module imports, anywhere in it: modules of this package, and top-level names of others."""
    own, others = set(), set()
    here = ["pez_fast", *name.split(".")][: None if package else -1]

    def add(target: str) -> None:
        top, _, rest = target.partition(".")
        if top != "pez_fast":
            others.add(top)
        else:
            own.add(rest)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            for alias in node.names:
                if base == "pez_fast" and alias.name in CONSTANTS:
                    continue
                add(f"{base}.{pez_fast._HOME.get(alias.name, alias.name)}" if base == "pez_fast" else base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            if node.args and isinstance(node.args[0], ast.Constant):
                add(str(node.args[0].value))
    return own, others


def violations(name: str, source: str) -> list[str]:
    """Returns what is wrong with the imports of a module, in words."""
    folder, wrong = name.split(".")[0], []
    if folder not in FLOORS:
        return [f"{name} is on no floor"]
    own, others = imports(name, source, package=MODULES.get(name, Path()).name == "__init__.py")
    for target in sorted(own):
        neighbour = target.split(".")[0]
        if neighbour == folder:
            continue
        if not target:
            wrong += [] if FLOORS[folder] >= FACES else [f"{name} imports pez_fast as a whole"]
        elif neighbour not in FLOORS:
            wrong.append(f"{name} imports {target}, which is on no floor")
        elif neighbour == "reference":
            wrong.append(f"{name} imports the oracle")
        elif FLOORS[neighbour] == FLOORS[folder] and (folder, neighbour) not in NEIGHBOURS:
            wrong.append(f"{name} imports {target} on its own floor")
        elif FLOORS[neighbour] > FLOORS[folder]:
            wrong.append(f"{name} reaches up to {target}")
    allowed = {"torch", "typing_extensions"} if folder in ONLY_TORCH else THIRD_PARTY.get(FLOORS[folder])
    foreign = {top for top in others if top not in sys.stdlib_module_names}
    if allowed is not None and foreign - allowed:
        wrong.append(f"{name} imports {', '.join(sorted(foreign - allowed))}")
    if foreign & {"tests", "benchmarks", "kernels", "examples"}:
        wrong.append(f"{name} imports what is no part of the package")
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_floors(name):
    assert violations(name, MODULES[name].read_text()) == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("ops", "from pez_fast import engine", "ops reaches up to engine"),
        ("ops", "def f():\n    import pez_fast.tasks", "ops reaches up to tasks"),
        ("table", "from pez_fast.functional import project", "table reaches up to functional"),
        ("table", "from pez_fast import project", "table reaches up to functional"),
        ("engine", "from pez_fast import reference", "engine imports the oracle"),
        ("engine.batch", "from pez_fast.methods import PEZMethod", "engine.batch reaches up to methods"),
        ("engine.batch", "from pez_fast.optimizer import PEZ", "engine.batch imports optimizer on its own floor"),
        ("methods.pez", "from pez_fast.models import load_clip", "methods.pez imports models on its own floor"),
        ("methods.pez", "import open_clip", "methods.pez imports open_clip"),
        ("_torch.nearest", "from pez_fast._triton import nearest", "_torch.nearest imports _triton on its own floor"),
        ("_torch.nearest", "from ..table import TokenTable", "_torch.nearest reaches up to table"),
        ("_shared.rows", "import_module('pez_fast._C')", "_shared.rows imports _C on its own floor"),
        ("functional", "import numpy", "functional imports numpy"),
        ("config", "import torch", "config imports torch"),
        ("objectives", "import pez_fast", "objectives imports pez_fast as a whole"),
        ("newcomer", "", "newcomer is on no floor"),
        ("tasks", "from benchmarks import plot", "tasks imports what is no part of the package"),
    ],
)
def test_floors_can_be_violated(name, source, complaint):
    assert violations(name, source) == [complaint]


def test_the_documented_floors_are_the_tested_ones():
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = [
        (name.removesuffix("/").removesuffix(".py"), int(floor))
        for floor, where in rows
        for name in re.findall(r"`([^`]+)`", where)
    ]
    outside = {"kernels/triton", "csrc"}
    assert {name: floor for name, floor in named if name not in outside} == FLOORS


def test_no_circles():
    graph = {
        name: {t for t in imports(name, p.read_text(), p.name == "__init__.py")[0] if t} for name, p in MODULES.items()
    }
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("methods") > order.index("optimizer") > order.index("functional") > order.index("ops")


def test_every_folder_of_modules_is_installed():
    listed = re.search(r"^packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    installed = set(re.findall(r'"pez_fast\.?([^"]*)"', listed[1]))
    assert installed == {
        ".".join(name.split(".")[:-1]) if path.name != "__init__.py" else name for name, path in MODULES.items()
    } | {""}


def test_the_package_itself_imports_next_to_nothing():
    """It imports only its version; its names load on first use, and type checkers see them under TYPE_CHECKING."""
    tree = ast.parse((ROOT / "pez_fast" / "__init__.py").read_text())
    run = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    lines = [ast.unparse(node) for node in run if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [line for line in lines if "pez_fast" in line] == ["from pez_fast.version import __version__"]
    assert {home.split(".")[0] for home in pez_fast._HOME.values()} <= FLOORS.keys()


def test_only_tests_and_benchmarks_know_the_oracle():
    for folder in ("csrc", "examples", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "reference" not in imports("_", path.read_text())[0], path


def test_implementations_live_on_one_floor():
    for implementation in ops.IMPLEMENTATIONS.values():
        assert FLOORS[implementation.package.removeprefix("pez_fast.")] == 2


FOLDERS = [ROOT / folder for folder in ("pez_fast", "kernels", "csrc", "examples", "benchmarks", "tests")]
FILES = [
    path
    for folder in FOLDERS
    for path in sorted(folder.rglob("*"))
    if path.suffix in SOURCE and path.is_file() and "build" not in path.parts
] + [ROOT / "setup.py"]


def test_short_files():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert "pez_fast/ops.py" in lines
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_short_functions():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())) if path.suffix == ".py" else ():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if node.end_lineno - node.lineno >= MOST_LINES_OF_A_FUNCTION:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = node.end_lineno - node.lineno + 1
    assert long == {}


QUIET = """
import sys
before = set(sys.modules)
import pez_fast
{then}
loaded = {{name.split(".")[0] for name in set(sys.modules) - before}}
others = {{"typer", "triton", "matplotlib", "datasets", "torchvision"}}
heavy = loaded & {{"open_clip", "transformers", "diffusers", *others}}
assert not heavy, heavy
assert "torch" not in sys.modules or not sys.modules["torch"].cuda.is_initialized()
assert "torch._inductor" not in sys.modules
"""
THEN = {
    "import": "",
    "dir": "assert {'TokenTable', 'invert', '__version__'} <= set(dir(pez_fast))",
    "names": "pez_fast.nearest_token, pez_fast.project, pez_fast.splice, pez_fast.TokenTable, pez_fast.PEZ; "
    "pez_fast.info('cpu')",
}


@pytest.mark.parametrize("then", THEN)
def test_quiet_import(then, tmp_path):
    """In a fresh process, in another folder, the import prints nothing, loads no model library and touches no GPU."""
    code = QUIET.format(then=THEN[then])
    env = {**os.environ, "PYTHONPATH": str(Path(pez_fast.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_public_names():
    for name in pez_fast.__all__:
        if name != "compat":  # has a test file of its own
            assert getattr(pez_fast, name) is not None
    with pytest.raises(AttributeError, match="module 'pez_fast' has no attribute 'nearest'"):
        pez_fast.nearest  # noqa: B018


def test_which_device_it_is_is_asked_in_one_place():
    """Above the kernels: `ops` knows which cards the GPU kernels support, `_shared.devices` all else."""
    asked = re.compile(r"\.is_cuda|torch\.cuda\.(?!CUDAGraph|graph\()|device(\.type)? *[!=]= *.cuda|[!=]= *.cuda")
    below = {"_torch", "_cpu", "_cuda", "_triton", "ops", "_shared.devices", "_shared.halves"}
    found = {
        name: lines
        for name, path in MODULES.items()
        if name not in below and name.split(".")[0] not in below
        if (lines := [line.strip() for line in path.read_text().splitlines() if asked.search(line)])
    }
    assert found == {"compat.utilities": ["torch.cuda.manual_seed_all(seed + 4)"]}  # as the original does
