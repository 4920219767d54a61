"""The house stands: floors, quiet import, short files, and an honest account of the implementations."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from inputs import DEVICES, refused

import pez_fast
from pez_fast import TokenTable, info, nearest_token, ops

ROOT = Path(__file__).parents[1]
FLOORS = {
    "version": 0,
    "_shared": 0,
    "_torch": 0,
    "_cpu": 0,
    "_triton": 0,
    "_cuda": 0,
    "_C": 0,
    "_C_cuda": 0,
    "reference": 1,
    "config": 2,
    "ops": 2,
    "table": 2,
    "functional": 2,
    "information": 2,
    "optimizer": 3,
    "encoders": 3,
    "objectives": 3,
    "images": 3,
    "engine": 4,
    "learner": 4,
    "memory": 4,
    "result": 4,
    "tasks": 4,
    "cli": 5,
    "compat": 5,
    "dataset": 5,
    "ray": 5,
    "live": 5,
    "sheet": 5,
    "tensorboard": 5,
    "__main__": 5,
}
# On one floor, who may import whom. Within a folder everybody may.
NEIGHBOURS = {
    ("_torch", "_shared"),
    ("_cpu", "_shared"),
    ("_cpu", "_C"),
    ("_triton", "_shared"),
    ("_cuda", "_shared"),
    ("_cuda", "_C_cuda"),
    ("_cuda", "_C"),
    ("functional", "ops"),
    ("functional", "table"),
    ("information", "ops"),
    ("table", "ops"),
    ("encoders", "images"),
    ("engine", "memory"),
    ("learner", "engine"),
    ("learner", "memory"),
    ("learner", "result"),
    ("tasks", "learner"),
    ("tasks", "result"),
    ("cli", "tensorboard"),
    ("tensorboard", "live"),
    *(
        (face, other)
        for face in ("cli", "__main__", "dataset", "ray")
        for other in ("cli", "compat", "dataset", "live", "ray", "sheet")
    ),
}
CONSTANTS = {"__version__"}  # what any module may take from the package itself
THIRD_PARTY = {0: {"torch", "triton"}, 1: {"torch"}, 2: {"torch"}}  # higher floors are bound by the quiet import alone
MOST_LINES = 350
SOURCE = set(".py .pyi .c .cc .cpp .cu .cuh .h .hpp .html .css .js .sh .toml .md".split())


def modules() -> dict[str, Path]:
    """The package's modules by name, less the package's own: {"encoders.clip": …, "_triton.nearest": …}."""
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
    """What a module imports, anywhere in it: modules of this package, and top-level names of others."""
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
    """What is wrong with the imports of one module, in words."""
    folder, wrong = name.split(".")[0], []
    if folder not in FLOORS:
        return [f"{name} is on no floor"]
    own, others = imports(name, source, package=MODULES.get(name, Path()).name == "__init__.py")
    for target in sorted(own):
        neighbour = target.split(".")[0]
        if neighbour == folder:
            continue
        if not target:
            wrong += [] if FLOORS[folder] == 5 else [f"{name} imports pez_fast as a whole"]
        elif neighbour not in FLOORS:
            wrong.append(f"{name} imports {target}, which is on no floor")
        elif neighbour == "reference":
            wrong.append(f"{name} imports the oracle")
        elif FLOORS[neighbour] == FLOORS[folder] and (folder, neighbour) not in NEIGHBOURS:
            wrong.append(f"{name} imports {target} on its own floor")
        elif FLOORS[neighbour] > FLOORS[folder]:
            wrong.append(f"{name} reaches up to {target}")
    allowed = THIRD_PARTY.get(FLOORS[folder])
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
        ("table", "from pez_fast.functional import project", "table imports functional on its own floor"),
        ("table", "from pez_fast import project", "table imports functional on its own floor"),
        ("engine", "from pez_fast import reference", "engine imports the oracle"),
        ("_torch.nearest", "from pez_fast._triton import nearest", "_torch.nearest imports _triton on its own floor"),
        ("_torch.nearest", "from ..table import TokenTable", "_torch.nearest reaches up to table"),
        ("_triton.nearest", "import_module('pez_fast._C')", "_triton.nearest imports _C on its own floor"),
        ("functional", "import numpy", "functional imports numpy"),
        ("objectives", "import pez_fast", "objectives imports pez_fast as a whole"),
        ("newcomer", "", "newcomer is on no floor"),
        ("tasks", "from benchmarks import plot", "tasks imports what is no part of the package"),
    ],
)
def test_floors_can_be_violated(name, source, complaint):
    assert violations(name, source) == [complaint]


def test_the_documented_floors_are_the_tested_ones():
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
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
    assert order.index("engine") > order.index("optimizer") > order.index("functional") > order.index("ops")


def test_every_folder_of_modules_is_installed():
    listed = re.search(r"^packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    installed = set(re.findall(r'"pez_fast\.?([^"]*)"', listed[1]))
    assert installed == {
        ".".join(name.split(".")[:-1]) if path.name != "__init__.py" else name for name, path in MODULES.items()
    } | {""}


def test_the_package_itself_imports_next_to_nothing():
    """But its version: its names are found when they are asked for; type checkers see them under TYPE_CHECKING."""
    tree = ast.parse((ROOT / "pez_fast" / "__init__.py").read_text())
    run = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    lines = [ast.unparse(node) for node in run if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [line for line in lines if "pez_fast" in line] == ["from pez_fast.version import __version__"]
    assert {home.split(".")[0] for home in pez_fast._HOME.values()} <= FLOORS.keys()


def test_only_tests_and_benchmarks_know_the_oracle():
    for folder in ("csrc", "examples", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "reference" not in imports("_", path.read_text())[0], path


def test_implementations_live_on_the_lowest_floor():
    for implementation in ops.IMPLEMENTATIONS.values():
        assert FLOORS[implementation.package.removeprefix("pez_fast.")] == 0


def test_short_files():
    folders = [ROOT / folder for folder in ("pez_fast", "kernels", "csrc", "examples", "benchmarks")]
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in SOURCE and path.is_file() and "build" not in path.parts
    }
    assert "pez_fast/ops.py" in lines
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


QUIET = """
import sys
before = set(sys.modules)
import pez_fast
{then}
loaded = {{name.split(".")[0] for name in set(sys.modules) - before}}
heavy = loaded & {{"open_clip", "transformers", "typer", "triton", "matplotlib", "datasets", "torchvision"}}
assert not heavy, heavy
assert "torch" not in sys.modules or not sys.modules["torch"].cuda.is_initialized()
assert "torch._inductor" not in sys.modules
"""
THEN = {
    "import": "",
    "dir": "assert {'TokenTable', 'invert', '__version__'} <= set(dir(pez_fast))",
    "names": "pez_fast.nearest_token, pez_fast.project, pez_fast.splice, pez_fast.TokenTable, pez_fast.PEZ, pez_fast.info('cpu')",
}


@pytest.mark.parametrize("then", THEN)
def test_quiet_import(then, tmp_path):
    """In a fresh process, somewhere else: prints nothing, loads no model library, touches no GPU."""
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


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_info(device):
    about = info(device)
    assert about["implementations"].keys() == ops.IMPLEMENTATIONS.keys() == {"torch", "cpu", "triton", "cuda"}
    assert about["implementations"]["torch"] is True
    for usable in about["implementations"].values():
        assert usable is True or (isinstance(usable, str) and usable and "\n" not in usable)
    assert about["auto"].keys() == {"nearest", "splice"}
    assert all(about["implementations"][name] is True for name in about["auto"].values())
    assert about["pez_fast"] == pez_fast.__version__ and about["torch"] == torch.__version__


@pytest.mark.parametrize("name", ["numpy", "", "Torch", None, 3, ["torch"]])
def test_choose_refuses_the_unknown(name):
    with refused(ValueError, "impl must be one of auto, torch, cpu, triton, cuda; got "):
        ops.choose(name, torch.device("cpu"))


def test_auto_is_what_the_environment_names(monkeypatch):
    monkeypatch.setenv("PEZ_FAST_IMPL", "torch")
    assert info("cpu")["auto"] == {"nearest": "torch", "splice": "torch"}
    monkeypatch.setenv("PEZ_FAST_IMPL", "cuda")
    with refused(RuntimeError, "impl='cuda' cannot run here: "):
        nearest_token(torch.ones(3), TokenTable(torch.eye(3)))
    monkeypatch.setenv("PEZ_FAST_IMPL", "auto")
    assert ops.choose("auto", torch.device("cpu")) in ("cpu", "torch")


def test_what_auto_passes_over_says_why(monkeypatch):
    passed = ops.Implementation("pez_fast._torch", lambda device: None, lambda device: "not yet run on hardware")
    monkeypatch.setattr(ops, "IMPLEMENTATIONS", {"young": passed, **ops.IMPLEMENTATIONS})
    about = info("cpu")
    assert about["implementations"]["young"] is True and "young" not in about["auto"].values()
    assert about["passed_over"]["young"] == "not yet run on hardware"
    assert ops.choose("young", torch.device("cpu")) == "young"


@pytest.fixture
def broken(monkeypatch):
    implementation = ops.Implementation("pez_fast._nowhere", lambda device: f"no luck on {device}")
    monkeypatch.setitem(ops.IMPLEMENTATIONS, "broken", implementation)


def test_choose_refuses_the_unusable(broken):
    with refused(RuntimeError, "impl='broken' cannot run here: no luck on cpu"):
        ops.choose("broken", torch.device("cpu"))
    with refused(RuntimeError, "impl='broken' cannot run here: no luck on cpu"):
        nearest_token(torch.ones(3), TokenTable(torch.eye(3)), impl="broken")
    assert info("cpu")["implementations"]["broken"] == "no luck on cpu"
    assert "broken" not in info("cpu")["auto"].values()


def test_what_is_unusable_here_says_so():
    for name, usable in info("cpu")["implementations"].items():
        if usable is True:
            assert ops.choose(name, torch.device("cpu")) == name
        else:
            with refused(RuntimeError, f"impl={name!r} cannot run here: "):
                ops.choose(name, torch.device("cpu"))


def test_no_silent_fallback(monkeypatch):
    """An implementation that says it can run and then cannot is an error, not a reason to take another."""
    taken = info("cpu")["auto"]["nearest"]
    monkeypatch.setitem(ops.IMPLEMENTATIONS, "cpu", ops.Implementation("pez_fast._nowhere", lambda device: None))
    for impl in ("cpu", "auto") if taken == "cpu" else ("cpu",):
        with pytest.raises(ModuleNotFoundError, match="pez_fast._nowhere"):
            nearest_token(torch.ones(3), TokenTable(torch.eye(3)), impl=impl)
