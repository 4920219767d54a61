"""The command line: what goes to stdout and what to stderr."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pez_fast
from pez_fast.cli import app
from pez_fast.config import Progress
from pez_fast.report import console, sheet
from pez_fast.result import PromptResult


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images) -> Path:
    """A folder, made the current one, with a.png, b.png and a file that is no image."""
    monkeypatch.chdir(tmp_path)
    images[0].save("a.png")
    images[1].save("b.png")
    Path("broken.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tiny_clip, here: Path):
    """Every model that a command loads is the tiny one."""
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: tiny_clip)
    return tiny_clip


def run(*arguments: object, code: int = 0, charset: str = "utf-8"):
    """The command in this process; whatever it does, no traceback and no colours."""
    result = CliRunner(charset=charset).invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.stderr
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    return result


def complaint(*arguments: object, code: int = 2) -> str:
    """The sentence that the command ends with; it must be the last line, and nothing may be on stdout."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert last.startswith("pez-fast: error: ") and not any("error" in line for line in before)
    return last.removeprefix("pez-fast: error: ")


def test_help_and_version_import_no_model_library():
    heavy = "{'torch', 'open_clip', 'numpy', 'PIL'}"
    code = f"import sys, pez_fast.cli; assert not {heavy} & set(sys.modules); pez_fast.cli.main()"
    shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True).stdout.decode()
    assert all(command in shown for command in ("demo", "invert", "batch", "distill", "info"))
    assert run("--version").stdout == f"pez-fast {pez_fast.__version__}\n"
    assert "Usage: pez-fast" in run().stdout


@pytest.mark.parametrize("command", ["demo", "invert", "batch", "distill", "info"])
def test_every_command_has_help_with_the_name_of_the_program(command: str):
    assert f"Usage: pez-fast {command}" in run(command, "--help").stdout


def test_invert_prints_the_prompt_alone(tiny):
    result = run("invert", "a.png", "b.png", "--steps", 12, "--prompt-len", 4, "--seed", 3)
    expected = pez_fast.invert(["a.png", "b.png"], tiny, prompt_len=4, steps=12, seed=3)
    assert result.stdout == expected.prompt + "\n"
    lines = result.stderr.splitlines()
    assert lines[0].startswith("loading the model small (ViT-B-32 laion2b_s34b_b79k)")
    assert (
        lines[1].startswith("step 0/12  best ")
        and lines[-6].startswith("step 12/12  best ")
        and lines[-6].endswith('"')
    )
    assert [line.split()[1] for line in lines[-5:-1]] == ["8", "16", "24", "32"] and lines[-2].startswith(
        "refine 32  best "
    )
    assert lines[-1].startswith(f"text cosine {expected.text_score:.4f}")
    assert lines[-1].endswith(f"(cosines of {tiny.name}; those of another model cannot be compared)")


def test_the_lines_of_progress_are_a_tenth_apart(tiny):
    lines = run("invert", "a.png", "--steps", 60, "--prompt-len", 2).stderr.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step")] == [f"{k}/60" for k in range(0, 61, 6)]


def test_invert_as_json_is_the_result(tiny):
    arguments = ("invert", "a.png", "--steps", 2, "--prompt-len", 2, "--json")
    value, whole = (json.loads(run(*arguments, *more).stdout) for more in ((), ("--history",)))
    expected = pez_fast.invert("a.png", tiny, prompt_len=2, steps=2).to_dict() | {"seconds": 0}
    assert {**whole, "seconds": 0} == expected and len(expected.pop("history")) == 3
    assert {**value, "seconds": 0} == expected


def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch, tiny):
    seen: dict = {}

    def record(images, clip, **options):
        seen.update(options, images=len(images))
        return PromptResult(prompt="x")

    monkeypatch.setattr("pez_fast.tasks.invert", record)
    given = {
        "prompt_len": 5,
        "steps": 7,
        "seed": 9,
        "lr": 0.3,
        "weight_decay": 0.01,
        "restarts": 2,
        "prefix": "a",
        "suffix": "b",
        "init": "c",
        "patience": 6,
        "vocabulary": "full",
    }
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    run("invert", "a.png", "b.png", *flags, "--ban", "cat", "--ban", "dog", "--weight", 1, "--weight", -0.5)
    assert {name: seen[name] for name in given} == given
    assert (seen["images"], seen["banned"], seen["weights"]) == (2, ("cat", "dog"), [1.0, -0.5])


def test_model_and_weights_reach_load_clip(monkeypatch: pytest.MonkeyPatch, here: Path):
    seen = []

    def load(*arguments):
        seen.append(arguments)
        raise ValueError("stop")

    monkeypatch.setattr("pez_fast.models.load_clip", load)
    for flags in (
        [],
        ["--model", "emoji"],
        ["--model", "ViT-H-14"],
        ["--model", "RN50", "--pretrained", "openai", "--device", "cpu"],
    ):
        assert complaint("invert", "a.png", *flags) == "stop"
    assert seen == [
        ("small", None, None),
        ("emoji", None, None),
        ("ViT-H-14", "laion2b_s32b_b79k", None),
        ("RN50", "openai", torch.device("cpu")),
    ]


def test_each_goes_on_after_an_unreadable_image(tiny):
    arguments = ("invert", "--each", "a.png", "broken.png", "b.png", "--steps", 10, "--prompt-len", 2)
    result = run(*arguments, code=1)
    expected = pez_fast.invert_batch(["a.png", "b.png"], tiny, prompt_len=2, steps=10)
    table = result.stdout
    assert (
        all(prompt.prompt in table and f"{prompt.text_score:.3f}" in table for prompt in expected)
        and "damaged" in table
    )
    assert "step 10/10  best " in result.stderr and "for 2 images" in result.stderr
    rows = json.loads(run(*arguments, "--json", code=1).stdout)
    assert [row["image"] for row in rows] == ["a.png", "broken.png", "b.png"]
    assert [row["prompt"] for row in rows] == [expected[0].prompt, "", expected[1].prompt]
    assert rows[1]["text_score"] is None and "damaged" in rows[1]["error"]


def test_distill_takes_a_ratio_or_a_length(tiny):
    text = "a red bird over the blue sea"
    for flags, tokens in (([], 2), (["--ratio", 0.5], 4), (["--prompt-len", 3], 3)):
        value = json.loads(run("distill", text, *flags, "--steps", 2, "--json").stdout)
        assert len(value["ids"]) == tokens
    long = run("distill", "word " * 100, "--steps", 1, "--prompt-len", 1)
    assert "pez-fast: warning: the model reads the first 75 of the 100 tokens of the text" in long.stderr.splitlines()


def test_info():
    assert json.loads(run("info", "--json").stdout) == pez_fast.info()
    shown = run("info").stdout
    assert pez_fast.__version__ in shown and "usable" in shown and "triton" in shown


def test_sheet_overwrites_and_a_failed_check_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tiny):
    target, arguments = Path("sheet.png"), ("--steps", 3, "--prompt-len", 2, "--sheet", "sheet.png")
    for _ in range(2):
        result = run("invert", "--each", "a.png", "broken.png", *arguments, code=1)
        assert result.stderr.splitlines()[-1] == "sheet written to sheet.png"
    with Image.open(target) as image:
        assert image.format == "PNG" and image.width == sheet.WIDTH
    before = target.read_bytes()
    assert complaint("invert", "a.png", "--sheet", target, "--prompt-len", 99).startswith("prompt_len")
    assert complaint("invert", "a.png", "--sheet", "new.png", "--prompt-len", 99).startswith("prompt_len")
    assert target.read_bytes() == before and not Path("new.png").exists()
    for name in ("a.png", "b.png"):  # an input, and a file of the user's own
        before = Path(name).read_bytes()
        assert "a.png" in complaint("invert", "--each", "--sheet", name, "a.png") or name == "b.png"
        assert complaint("invert", "--each", "a.png", "--sheet", name).startswith("the ")
        assert Path(name).read_bytes() == before


def test_json_is_valid_in_any_encoding(tiny):
    arguments = ("invert", "a.png", "--steps", 1, "--prompt-len", 1, "--suffix", "café 😀", "--json")
    for charset in ("utf-8", "ascii", "latin-1"):
        assert json.loads(run(*arguments, charset=charset).stdout)["prompt"].endswith("café 😀")
    assert "caf\\xe9" in run(*arguments[:-1], charset="ascii").stdout


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture):
    console.show_one(PromptResult(history=[0.5, float("nan")], ids_score=float("-inf")), as_json=True, history=True)
    value = json.loads(capsys.readouterr().out)
    assert value["history"] == [0.5, None] and value["ids_score"] is None and value["text_score"] is None


def test_table_shows_brackets_and_controls_as_they_are(capsys: pytest.CaptureFixture):
    console.show_many(["[red].png"], [PromptResult(prompt=":heart: [bold]\x1b[0m", text_score=0.5)], as_json=False)
    out = capsys.readouterr().out
    assert "[red].png" in out and ":heart: [bold]\\x1b[0m" in out and "0.500" in out


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_live_display_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(console.watch(["a"], 10), console.PlainProgress)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "12"}.items():
        monkeypatch.setenv(name, value)
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    names = [f"image {k}" for k in range(9)]
    with console.watch(names, 300) as progress:
        assert isinstance(progress, console.LiveProgress) and progress.every == 3
        progress(Progress(42, 300, [f"prompt [{k}]" for k in range(9)], [0.1 * k for k in range(9)]))
    written = terminal.getvalue()
    assert "42/300" in written and "image 0" in written and "prompt [3]" in written and "0.300" in written
    assert "and 4 more" in written and "image 5" not in written  # it has to fit
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(console.watch(["a"], 10), console.PlainProgress)


def test_demo_on_the_bundled_model(here: Path):
    result = run("demo", "--steps", 3, "--out", "demo.png", "--json")
    rows = json.loads(result.stdout)
    assert rows and all(row["image"] and row["prompt"] and row["text_score"] > 0 for row in rows)
    assert result.stderr.splitlines()[-1] == "sheet written to demo.png"
    with Image.open("demo.png") as image:
        assert image.format == "PNG" and image.height > len(rows) * sheet.THUMB


def test_score_shows_every_image_with_every_prompt(here, tiny):
    rows = json.loads(run("score", "a.png", "b.png", "a red cat", "the sea", "--json").stdout)
    assert [(row["image"], row["prompt"]) for row in rows if row["image"] == "a.png"] in (
        [("a.png", "a red cat"), ("a.png", "the sea")],
        [("a.png", "the sea"), ("a.png", "a red cat")],
    )
    scores = pez_fast.score(["a.png", "b.png"], ["a red cat", "the sea"], tiny).tolist()
    told = {(row["image"], row["prompt"]): row["cosine"] for row in rows}
    assert told["b.png", "the sea"] == scores[1][1] == pez_fast.score(["b.png"], ["the sea"], tiny).item()
    for image in ("a.png", "b.png"):
        own = [row["cosine"] for row in rows if row["image"] == image]
        assert own == sorted(own, reverse=True) and len(own) == 2
    shown = run("score", "a.png", "a red cat").stdout
    assert "a red cat" in shown and f"{scores[0][0]:.3f}" in shown
    assert "score needs at least one image file and one prompt; got 1 and 0" in complaint("score", "a.png")
    assert "score needs at least one image file and one prompt; got 0 and 1" in complaint("score", "words")
    assert "image none.png does not exist" in complaint("score", "none.png", "words")


def test_python_m(here):
    done = subprocess.run([sys.executable, "-m", "pez_fast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pez-fast {pez_fast.__version__}\n"


def test_each_with_top_shows_as_many_for_each(tiny):
    arguments = ("invert", "--each", "a.png", "b.png", "--steps", 20, "--prompt-len", 2, "--top", 3, "--refine", 0)
    lines = run(*arguments).stdout.splitlines()
    tops = [r["top"] for r in json.loads(run(*arguments, "--json").stdout)]
    for top in tops:
        assert len(top) == 3 and all(any(c["prompt"] in line for line in lines) for c in top)
    assert sum(line.startswith(" a.png") for line in lines) == 1
