"""Builds the site of the documentation: `pip install -e '.[docs]' && python docs/build.py`, offline, into `site/`.

A page stands in one place. Those that GitHub shows at the root or in a folder (`ELSEWHERE`) are pages of the site too;
plots and results that a page links are copied beside the pages; the help of a command is asked from the command, and
tables that README holds are taken from there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {  # pages of the site that are kept elsewhere in the repository
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "design.md": "DESIGN.md",
    "examples.md": "examples/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "ptx-machine.md": "tests/ptx/README.md",
}
HELP = "<!-- the help of every command -->"
TABLE = re.compile(r"<!-- table of README.md: (.+) -->")
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def sources() -> dict[str, Path]:
    """Returns the file of every page of the site."""
    own = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
    return {name: ROOT / path for name, path in ELSEWHERE.items()} | own


def command_names(group: Any, before: str = "") -> list[str]:
    """Returns the commands of a group, each followed by those of its own."""
    found = []
    for name, command in getattr(group, "commands", {}).items():
        found += [before + name, *command_names(command, f"{before}{name} ")]
    return found


def help_texts() -> str:
    """Returns a section for each command of `pez-fast` with what its `--help` prints."""
    from pez_fast.cli import app

    runner, parts = CliRunner(), []
    environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    for name in ["", *command_names(get_command(app))]:
        shown = runner.invoke(app, [*name.split(), "--help"], prog_name="pez-fast", env=environment)
        if shown.exit_code:
            raise ValueError(f"pez-fast {name} --help ended with {shown.exit_code}")
        text = re.sub(r"\x1b\[[0-9;]*m", "", shown.output).strip("\n")
        text = "\n".join(line.rstrip() for line in text.splitlines())
        parts.append(f"### `pez-fast {name}".rstrip() + f"`\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def table_of_readme(section: str) -> str:
    """Returns the first table in a section of README."""
    found = re.search(
        rf"^## {re.escape(section)}\n(?:(?!## ).*\n)*?((?:\|.*\n)+)", (ROOT / "README.md").read_text("utf-8"), re.M
    )
    if found is None:
        raise ValueError(f"README has no table in a section {section!r}")
    return found[1].strip()


def page(name: str, path: Path, out: Path) -> str:
    """Returns the text of a page for the site; copies the files that it links, which are no pages, to `out`/files."""
    pages = {source: page_name for page_name, source in sources().items()}
    here = Path(name).parent

    def moved(link: re.Match, source: Path) -> str:
        target = Path(os.path.normpath(source.parent / link[2]))
        if not target.exists():
            raise ValueError(f"{source.relative_to(ROOT)} links {link[2]}, which does not exist")
        if target.is_dir():
            raise ValueError(f"{source.relative_to(ROOT)} links the folder {link[2]}; link a file")
        to = pages.get(target)
        if to is None:
            to = f"files/{target.relative_to(ROOT).as_posix()}"
            (out / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, out / to)
        return link[1] + Path(os.path.relpath(to, here)).as_posix()

    def with_links(text: str, source: Path) -> str:
        return LINK.sub(lambda link: moved(link, source), text)

    text = with_links(path.read_text(encoding="utf-8"), path)
    text = TABLE.sub(lambda mark: with_links(table_of_readme(mark[1]), ROOT / "README.md"), text)
    return text.replace(HELP, help_texts()) if HELP in text else text


def gather(out: Path) -> Path:
    """Writes all pages under `out` and returns the path of the site's configuration there."""
    for name, path in sources().items():
        (out / "pages" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / "pages" / name).write_text(page(name, path, out / "pages"), encoding="utf-8")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    handler = next(p["mkdocstrings"] for p in config["plugins"] if isinstance(p, dict))["handlers"]["python"]
    handler["paths"] = [str(ROOT)]
    (out / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return out / "mkdocs.yml"


def main() -> None:
    """Builds the site into a folder; any warning is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site; what it holds is removed")
    out = parser.parse_args().out.resolve()
    if out.exists() and any(out.iterdir()) and not (out / "mkdocs.yml").is_file():
        sys.exit(f"docs/build.py: {out} holds something else than a site")
    shutil.rmtree(out, ignore_errors=True)
    config = gather(out)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(config)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, end="")
    if done.returncode or "griffe:" in done.stdout + done.stderr:  # griffe's warnings alone do not end a strict build
        sys.exit("docs/build.py: the site has warnings")
    print(f"{out / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
