"""The presets --fast and --best, and results that stdout or a disk does not take."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_cli import complaint, here, run, tiny  # noqa: F401

from pez_fast.cli.options import BEST, FAST
from pez_fast.config import SearchConfig
from pez_fast.report import tensorboard
from pez_fast.result import PromptResult

DEFAULTS = {name: getattr(SearchConfig, name) for name in ("steps", "restarts", "refine")}


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ([], {}),
        (["--fast"], FAST),
        (["--best"], BEST),
        (["--best", "--refine", "32"], BEST | {"refine": 32}),  # given, though it is the default
        (["--fast", "--steps", "3000", "--restarts", "2"], {"restarts": 2}),
    ],
)
@pytest.mark.parametrize("command", [["invert", "a.png"], ["distill", "a b"]])
@pytest.mark.usefixtures("tiny")
def test_a_preset_fills_what_is_not_given(monkeypatch: pytest.MonkeyPatch, command, flags, changed):
    seen: dict = {}

    def record(*_, **options):
        seen.update(options)
        return PromptResult(prompt="x")

    monkeypatch.setattr(f"pez_fast.tasks.{command[0]}", record)
    run(*command, *flags)
    assert {name: seen[name] for name in DEFAULTS} == DEFAULTS | changed


@pytest.mark.usefixtures("here")
def test_both_presets_exclude_each_other():
    for command in (["invert", "a.png"], ["distill", "a"], ["batch", ".", "--out", "o"]):
        assert complaint(*command, "--fast", "--best") == "--fast and --best exclude each other"
        assert "--fast" in run(command[0], "--help").stdout
    for command in (["invert", "a.png"], ["distill", "a"], ["demo"]):
        assert complaint(*command, "--history") == "--history has an effect only with --json"


@pytest.mark.parametrize("form", ["--json", ""])
def test_results_that_stdout_does_not_take_are_on_stderr(form: str, tmp_path: Path):
    command = [sys.executable, "-m", "pez_fast", "models", "emoji", *form.split()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, check=False
        )
    *shown, last = done.stderr.splitlines()
    assert done.returncode == 1 and "emoji" in "".join(shown)
    assert not form or json.loads(shown[-1])[0]["name"] == "emoji"
    assert last == (
        "pez-fast: error: stdout cannot be written: No space left on device; what it did not take stands above"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, check=False
    )
    os.close(writer)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "error" not in done.stderr.lower()


@pytest.mark.usefixtures("tiny")
def test_a_sheet_that_the_disk_does_not_take_loses_nothing(monkeypatch: pytest.MonkeyPatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("invert", "a.png", "--steps", 1, "--prompt-len", 1, "--sheet", "s.png", code=1)
    assert result.stdout.strip()
    assert result.stderr.splitlines()[-1] == (
        "pez-fast: error: the sheet s.png could not be written: No space left on device; the prompts are printed all "
        "the same, and the same command with --sheet elsewhere draws it"
    )


@pytest.mark.usefixtures("tiny")
def test_a_record_that_the_disk_does_not_take_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorboard")

    class Full:
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def __getattr__(self, name: str):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboard, "_summary_writer", lambda: Full)
    arguments = ("invert", "a.png", "--steps", 20, "--prompt-len", 1)
    result = run(*arguments, "--tensorboard", "runs")
    assert result.stdout == run(*arguments).stdout
    said = [line for line in result.stderr.splitlines() if "runs" in line]
    assert said == [
        "pez-fast: warning: the record in runs ends here: No space left on device; the search goes on without it"
    ]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--sheet", "loop.png"], "the sheet loop.png cannot be written: "),
        (["--sheet", "x" * 300 + ".png"], "the sheet "),
        (["--sheet", "pipe.png"], "the sheet pipe.png cannot be written: it is no ordinary file"),
        (["--sheet", "folder.png"], "the sheet folder.png cannot be written: Is a directory"),
        (["--sheet", "a.png/s.png"], "the sheet a.png/s.png cannot be written: Not a directory"),
        (["--tensorboard", "a.png"], "the folder a.png cannot be written: it is a file"),
        (["--tensorboard", "a.png/runs"], "the folder a.png/runs cannot be written: Not a directory"),
        (["--tensorboard", "x" * 300], "the folder "),
        (["--tensorboard", "loop.png"], "the folder loop.png cannot be written: "),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_outputs_that_cannot_be_are_refused_before_the_model_is_loaded(monkeypatch, flags, sentence):
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: pytest.fail("loaded"))
    Path("loop.png").symlink_to("loop.png")
    Path("folder.png").mkdir()
    os.mkfifo("pipe.png")
    told = complaint("invert", "a.png", *flags)
    assert told.startswith(sentence) and " cannot be written: " in told and "Error" not in told
    if flags[0] == "--sheet":
        assert complaint("demo", "--out", flags[1]) == told
