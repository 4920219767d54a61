"""The site of the documentation: its pages, its links, the API that it lists, and a build without a warning."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

import pez_fast
from pez_fast.cli import app

ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api"
BUILD = runpy.run_path(str(ROOT / "docs" / "build.py"))
LISTED_ELSEWHERE = {"compat", "__version__"}  # a page of its own; named in a sentence
# What the star import of compat gives beside the original's functions: other people's modules and one-line helpers.
NOT_OURS = {
    "Any",
    "BytesIO",
    "Image",
    "Mapping",
    "copy",
    "json",
    "mean",
    "np",
    "open_clip",
    "random",
    "requests",
    "torch",
}
NOT_OURS |= {"dot_score", "normalize_embeddings", "semantic_search"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """Returns the folder of the pages as the site's builder gets them."""
    out = tmp_path_factory.mktemp("site")
    BUILD["gather"](out)
    return out / "pages"


def listed(page: str) -> set[str]:
    """Returns the names that a page of the API documents, without the module's own."""
    module = "pez_fast" if page == "pez_fast" else f"pez_fast.{page}"
    found = re.findall(r"^::: (\S+)$", (API / f"{page}.md").read_text(encoding="utf-8"), re.M)
    assert found[0] == module and len(found) == len(set(found))
    return {name.removeprefix(f"{module}.") for name in found[1:]}


@pytest.mark.parametrize("page", ["pez_fast", "engine", "methods", "objectives", "models", "compat", "dataset"])
def test_the_api_pages_list_every_public_name(page):
    module = pez_fast if page == "pez_fast" else importlib.import_module(f"pez_fast.{page}")
    expected = set(module.__all__) - (
        LISTED_ELSEWHERE if page == "pez_fast" else NOT_OURS if page == "compat" else set()
    )
    assert expected <= listed(page), f"docs/api/{page}.md needs ::: lines for {sorted(expected - listed(page))}"


@pytest.mark.parametrize("path", sorted(API.glob("*.md")), ids=lambda path: path.stem)
def test_every_name_of_the_api_pages_exists(path):
    module = "pez_fast" if path.stem == "pez_fast" else f"pez_fast.{path.stem}"
    for name in listed(path.stem):
        *parts, last = name.split(".")
        assert hasattr(importlib.import_module(".".join([module, *parts])), last), name


def test_the_functions_of_ray_are_listed():
    tree = ast.parse((ROOT / "pez_fast" / "ray.py").read_text(encoding="utf-8"))
    public = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert {name for name in public if not name.startswith("_")} <= listed("ray")


def test_every_page_is_in_the_navigation(pages):
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", config, re.M)
    assert sorted(named) == sorted(path.relative_to(pages).as_posix() for path in pages.rglob("*.md"))


def test_the_links_of_every_page_lead_somewhere(pages):
    for path in pages.rglob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_what_stands_elsewhere_is_brought_to_the_site(pages):
    assert (pages / "files" / "benchmarks" / "results" / "quality_cpu.png").is_file()
    assert "| `cuda` |" in (pages / "implementations.md").read_text(encoding="utf-8")
    assert "| `emoji` |" in (pages / "which-model.md").read_text(encoding="utf-8")
    shown = (pages / "command-line.md").read_text(encoding="utf-8")
    for name, command in get_command(app).commands.items():
        assert f"### `pez-fast {name}`" in shown and all(
            p.opts[0] in shown for p in command.params if p.opts[0].startswith("--")
        )
    with pytest.raises(ValueError, match="README has no table in a section 'The tasks'"):
        BUILD["table_of_readme"]("The tasks")


def test_a_link_to_nothing_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text("[a](nowhere.md)")
    monkeypatch.setitem(BUILD["page"].__globals__, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="page.md links nowhere.md, which does not exist"):
        BUILD["page"]("page.md", path, tmp_path / "out")


def test_short_files():
    """The same limits as for all other files of the repository."""
    for path in [ROOT / "mkdocs.yml", ROOT / "README.md", *(ROOT / "docs").rglob("*.*")]:
        assert path.suffix not in (".py", ".md", ".yml") or len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.skipif(not find_spec("zensical"), reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, ROOT / "docs" / "build.py", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "out" / "site"
    assert "Learns one prompt for targets of any kind" in (site / "api" / "pez_fast.html").read_text(encoding="utf-8")
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"?((?:https?:)?//[^\" >]+)", path.read_text("utf-8")
        )
        assert not loaded, f"{path.name} loads {loaded[0]}"
    again = subprocess.run([*command[:-1], ROOT / "docs"], capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "holds something else than a site" in again.stderr
