"""Where the command line ends early: wrong usage, errors and Ctrl-C, with their sentences and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import complaint, here, run, tiny  # noqa: F401

from pez_fast.config import Progress
from pez_fast.report import console

PEZ_FAST = (sys.executable, "-m", "pez_fast.cli")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--foo"], "No such option"),
        (["nothing"], "No such command 'nothing'"),
        (["invert"], "Missing argument 'IMAGE'"),
        (["invert", "a.png", "--steps", "many"], "Invalid value for '--steps'"),
        (["invert", "a.png", "--steps", "0"], "steps must be a positive integer; got 0"),
        (["invert", "a.png", "--lr", "nan"], "lr must be a finite number"),
        (
            ["invert", "a.png", "--vocabulary", "half"],
            "vocabulary must be one of stable, words, full, a list",
        ),
        (["invert", "a.png", "--device", "toaster"], "device must be a device of torch"),
        (["invert", "none.png"], "image none.png does not exist"),
        (["invert", "broken.png"], "image broken.png is in none of the formats"),
        (["invert", "a\n\x1b[31m.png"], "image a \\x1b[31m.png does not exist"),
        (
            ["invert", "a.png", "--weight", "1", "--weight", "2"],
            "--weight must be given once for each of the 1 images; got 2",
        ),
        (["invert", "a.png", "--weight", "1", "--each"], "--weight and --each exclude each other"),
        (["invert", "a.png", "--sheet", "no/such/folder.png"], "the sheet no/such/folder.png cannot be written"),
        (["invert", "a.png", "--sheet", "a.jpg"], "the sheet must be a .png file"),
        (["invert", "--each", "--sheet", "a.png", "a.png"], "the sheet a.png would be written over an image"),
        (["invert", "--each", "a.png", "--sheet", "b.png"], "the file b.png is no sheet of pez_fast"),
        (["batch", ".", "--out", "o", "--actors", "2"], "--actors has an effect only with --engine ray; got 2"),
        (["demo", "--out", "a.png"], "the file a.png is no sheet of pez_fast"),
        (["demo", "--out", "no/such/folder.png"], "the sheet no/such/folder.png cannot be written"),
        (["demo", "--steps", "-1"], "steps must be a positive integer; got -1"),
        (["distill", "a b", "--ratio", "0.5", "--prompt-len", "1"], "--ratio and --prompt-len exclude each other"),
    ],
)
@pytest.mark.usefixtures("here")
def test_wrong_usage_is_one_sentence_before_any_model_is_loaded(monkeypatch, arguments: list[str], sentence: str):
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: pytest.fail("loaded"))
    assert complaint(*arguments).startswith(sentence)


@pytest.mark.usefixtures("tiny")
def test_errors_of_the_library(monkeypatch: pytest.MonkeyPatch):
    assert complaint("invert", "a.png", "--prompt-len", 99).startswith("prompt_len must be at most 75")
    assert complaint("distill", " ").startswith("text must not be empty")

    def fail(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("pez_fast.tasks.distill", fail)
    assert complaint("distill", "a", code=1) == "RuntimeError: out of memory"


@pytest.mark.usefixtures("tiny")
def test_interrupted_search_still_gives_its_best(monkeypatch: pytest.MonkeyPatch):
    def interrupt(self, state: Progress) -> None:
        if state.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(console.PlainProgress, "__call__", interrupt)
    result = run("invert", "a.png", "--steps", 50, "--prompt-len", 2, "--json", code=130)
    value = json.loads(result.stdout)
    assert (value["stop_reason"], value["steps"]) == ("interrupt", 4) and value["prompt"]
    assert result.stderr.splitlines()[-1] == "pez-fast: interrupted after 4 of 50 steps; this is the best so far"


@pytest.mark.usefixtures("here")
def test_interrupt_elsewhere_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pez_fast.models.load_clip", interrupt)
    assert complaint("invert", "a.png", code=130) == "interrupted"


@pytest.mark.usefixtures("here")
def test_ctrl_c_in_a_locale_without_unicode(tiny_clip_dir: Path):
    arguments = ["invert", "--each", "a.png", "--model", str(tiny_clip_dir), "--steps", "100000", "--suffix", "café ♥"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [*PEZ_FAST, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        encoding="ascii",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    said = ""
    while "step 0/" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    shown, rest = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in rest
    assert rest.splitlines()[-1].endswith("of 100000 steps; this is the best so far")
    assert "caf" in shown and "a.png" in shown and "\x1b" not in shown
