"""The extras of pyproject.toml: each (but docs) belongs to a feature, and CI installs those that tests need."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text()
SECTION = TEXT.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
EXTRAS = {
    name: {re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in re.findall(r'"([^"]+)"', listed)}
    for name, listed in re.findall(r"^(\w+) = \[(.*)\]$", SECTION, re.MULTILINE)
}


def imported(*folders: str) -> set[str]:
    """Returns the top-level names that the files of these folders import."""
    found = set()
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.removeprefix("torch.utils.").partition(".")[0] for name in names}  # torch.utils.tensorboard
    return found


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"dev", "docs"}))
def test_an_extra_is_used(extra: str):
    assert EXTRAS[extra] and EXTRAS[extra] <= imported("pez_fast", "examples", "benchmarks")


def test_ci_installs_what_tests_need():
    (chosen,) = re.findall(r"-e '\.\[([\w,]+)\]'", (ROOT / ".ci" / "run").read_text())
    required = set(re.findall(r'^    "([\w-]+)', TEXT, re.MULTILINE)).union(
        *(EXTRAS[name] for name in chosen.split(","))
    )
    requested = {
        name.partition(".")[0]
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r'importorskip\("([\w.]+)"\)', path.read_text())
    }
    assert {"ray", "pyarrow"} <= requested
    assert requested - required - set(sys.stdlib_module_names) - {"pez_fast"} == set()
