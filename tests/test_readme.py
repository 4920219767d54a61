"""Every block of README and of the pages in docs/ runs as it stands.

Stand-ins replace what a test cannot do: a tiny model with random weights takes the place of every model that would be
downloaded (its name and tag are checked as ever), a few steps that of every search, a mock that of Ray. Commands that
install something, run the tests or build the site are not run; `checked` says what is asked of each.
"""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pez_fast.cli import app
from pez_fast.compat import optimize
from pez_fast.labelled import PRESETS
from pez_fast.models import hf_loading, loading
from pez_fast.models.language import model as lms
from pez_fast.prompt_search import running

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
STEPS = 3  # the most of a stage of a search here; the default's refinement is left out
RECORD = """command_not_found_handle() { printf '%s\\0' "$@" >&3; printf '\\n\\0' >&3; }
exec 3> "$1"; PATH=/nowhere; set -e
"""
EXTRAS = re.search(r"^\[project.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.M | re.S)


def blocks(path: Path) -> list[tuple[str, str]]:
    """Returns the language and the text of each block of a page."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def commands(block: str, folder: Path) -> list[list[str]]:
    """Returns the commands of a shell block as a shell sees them, in `folder`, with patterns and redirections done."""
    script, record = folder.parent / "block.sh", folder.parent / "record"
    script.write_text(RECORD + block, encoding="utf-8")
    done = subprocess.run(["bash", script, record], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [list(filter(None, line.split("\0"))) for line in record.read_text().split("\n\0")[:-1]]


def checked(command: list[str]) -> None:
    """Fails for a command that this machine would not know; runs the commands of pez-fast."""
    name, *arguments = command
    if name == "pez-fast" and "ray" not in arguments:
        piped = Path("photo.jpg").read_bytes() if "-" in arguments else None
        done = CliRunner().invoke(app, arguments, input=piped)
        assert done.exit_code == 0, f"{shlex.join(command)}: {done.output}{done.exception!r}"
    elif name == "pez-fast":  # on a cluster: only its options are read
        with get_command(app).commands[arguments[0]].make_context(arguments[0], arguments[1:]):
            pass
    elif name == "pip":
        assert arguments[0] == "install"
        for extra in re.findall(r"\[(.*)\]", shlex.join(arguments)):
            assert all(re.search(f"^{one} = ", EXTRAS[1], re.M) for one in extra.split(",")), extra
    elif name == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert command in (["python3", "-m", "venv", ".venv"], ["pytest"]), shlex.join(command)


def cut(config):
    stages = STAGES(config) if config.stages else STAGES(config)[:1]
    return [replace(stage, num_steps=min(stage.num_steps, STEPS)) for stage in stages]


STAGES = running._stages


@pytest.fixture
def folder(tmp_path, tiny_clip_dir, images, monkeypatch):
    """Returns a folder with images to work in; no model is downloaded and no search is long."""
    import open_clip

    here = tmp_path / "here"
    (here / "images").mkdir(parents=True)
    (here / "benchmarks").symlink_to(ROOT / "benchmarks")  # its pictures, as in a checkout
    (here / ".venv" / "bin").mkdir(parents=True)
    (here / ".venv" / "bin" / "activate").touch()
    for k, name in enumerate(["image.png", "another.png", "photo.jpg", "images/a.png", "images/b.png"]):
        images[k].save(here / name)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip_dir}")  # one for all: what it has seen, it finds faster
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenizer)
    write_reviews(here, monkeypatch)
    create = open_clip.create_model

    def created(name, pretrained=None, **more):
        return create(name if name.startswith("local-dir:") else f"local-dir:{tiny_clip_dir}", **more)

    def created_with_transforms(name, pretrained, **more):
        assert open_clip.get_pretrained_cfg(name, pretrained), f"open_clip knows no {name} with {pretrained}"
        return both(f"local-dir:{tiny_clip_dir}", **more)

    both, config = open_clip.create_model_and_transforms, optimize._config
    monkeypatch.setattr(open_clip, "create_model", created)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", created_with_transforms)
    monkeypatch.setattr(optimize, "_config", lambda args: Namespace(**{**vars(config(args)), "iter": STEPS}))
    monkeypatch.setattr(loading, "can_be_reached", lambda: True, raising=False)
    monkeypatch.setattr(running, "_stages", cut)
    monkeypatch.setitem(sys.modules, "ray", MagicMock())
    monkeypatch.chdir(here)
    return here


def write_reviews(here, monkeypatch):
    """Writes two tables of texts, and lets every language model be the small one that ships."""
    for name in ("reviews", "test"):
        rows = PRESETS["reviews"].read("train" if name == "reviews" else "test", limit=60)
        with (here / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            table.writerows([row["text"], int(row["label"] == "positive")] for row in rows)
    bundled = lms.BUNDLED_LM["reviews"]
    names = ["reviews", "gpt2-large", "gpt2", "opt-model/"]
    monkeypatch.setattr(lms, "BUNDLED_LM", dict.fromkeys(names, bundled))


@pytest.fixture
def sentence_encoder(tmp_path, monkeypatch):
    """Lets every text model of sentence-transformers come from a folder."""
    library = pytest.importorskip("sentence_transformers")
    from sentences import MODELS, save

    encoder = save(tmp_path, *MODELS["bert, mean"])
    load = library.SentenceTransformer
    monkeypatch.setattr(library, "SentenceTransformer", lambda name, **more: load(encoder, **more))


@pytest.fixture
def my_clip(folder, monkeypatch):
    """Writes a model of transformers, which takes the place of all those of the hub."""
    from towers import save

    save(folder / "my-clip", "clip")
    monkeypatch.setattr(hf_loading, "source_of", lambda name: "my-clip")


@pytest.fixture
def diffusion_pipelines(tmp_path, monkeypatch):
    """Lets every pipeline of diffusers be a tiny one with random weights."""
    diffusers = pytest.importorskip("diffusers")
    from pipelines import build

    load = diffusers.DiffusionPipeline.from_pretrained
    for kind in ("sd15", "sdxl"):
        build(kind).save_pretrained(tmp_path / kind)

    def loaded(name, **more):
        return load(tmp_path / ("sdxl" if "xl" in name else "sd15"), **more)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", loaded)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_block_runs(path, folder, request, capsys):
    if "load_pipeline(" in path.read_text(encoding="utf-8"):
        request.getfixturevalue("diffusion_pipelines")
    if "load_sentence_encoder(" in path.read_text(encoding="utf-8"):
        request.getfixturevalue("sentence_encoder")
    if "my-clip" in path.read_text(encoding="utf-8"):
        request.getfixturevalue("my_clip")
    names: dict = {}
    for language, block in blocks(path):
        if language == "python":
            exec(compile(block, str(path), "exec"), names)
        elif language == "sh":
            for command in commands(block, folder):
                checked(command)
        else:
            assert language == "text", f"{path.name} has a block in {language or 'no language'}"
    if path == README:
        assert names["result"].prompt in capsys.readouterr().out
        assert len(names["results"]) == 2 and names["style"].prompt.startswith("in the style of ")
        assert 0 < len(names["short"].ids) < 6
        assert names["soft"].grad is None and names["ids"].shape == (4, 16)


def test_blocks_are_fenced():
    """An indented block would be missed by the test above."""
    for path in PAGES:
        text = BLOCK.sub("", path.read_text(encoding="utf-8"))
        assert not re.search(r"^(?![-*\d]).*\n\n {4}\S", text, re.M), path.name
        assert "```" not in text, f"{path.name} has a block that is not closed"


def test_a_block_that_does_not_run_is_seen(folder):
    for command in (["pez-fast", "invert", "missing.png"], ["pez-fast", "models!"], ["pip", "install", ".[nope]"]):
        with pytest.raises(AssertionError):
            checked(command)
    assert commands("pez-fast info # so\npez-fast score *.png 'a b' > out\n", folder) == [
        ["pez-fast", "info"],
        ["pez-fast", "score", "another.png", "image.png", "a b"],
    ]


def test_every_file_the_readme_shows_exists():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert links and all((README.parent / link).exists() for link in links)
    assert len(text.splitlines()) <= 150
