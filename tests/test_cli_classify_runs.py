"""`pez-fast classify`: Ctrl-C, evaluation, transfer, sweeps, progress, and `pez-fast demo --language`."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_cli import _Terminal, run
from test_cli_classify import FEW, LEARN, OWN, here, lm  # noqa: F401

import pez_fast
from pez_fast.cli import classify_work
from pez_fast.config import Progress
from pez_fast.dataset.classifiers import read_classifiers
from pez_fast.objectives.labels import joined_score
from pez_fast.report import console
from pez_fast.report.classify_console import Accuracies, mean_and_deviation

SWEEP = ("classify", "sweep", "reviews", *FEW, "--out", "runs", "--prompt-lens", "2,3", "--fluencies", "0,0.5")


@pytest.mark.usefixtures("here")
def test_ctrl_c_gives_the_best_so_far(monkeypatch: pytest.MonkeyPatch):
    def interrupt(self, state: Progress) -> None:
        if state.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(console.PlainProgress, "__call__", interrupt)
    arguments = ("classify", "learn", "reviews", "--limit", 40, "--steps", 50, "--prompt-len", 2, "--sheet", "s.png")
    result = run(*arguments, "--json", code=130)
    value = json.loads(result.stdout)
    assert (value["result"]["stop_reason"], value["result"]["steps"]) == ("interrupt", 4)
    assert value["result"]["prompt"] and value["test"] is None and Path("s.png").exists()
    assert result.stderr.splitlines()[-1] == "pez-fast: interrupted after 4 of 50 steps; this is the best so far"
    assert run(*arguments, code=130).stdout == value["result"]["prompt"] + "\n"


@pytest.mark.usefixtures("here")
def test_ctrl_c_while_scoring_keeps_the_prompt(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(classify_work, "transfer", interrupt)
    result = run(*LEARN, "--transfer", "other", "--json", code=130)
    value = json.loads(result.stdout)
    assert value["result"]["stop_reason"] == "steps" and value["test"] and value["transfer"] == []
    assert any("some of its scores are missing" in line for line in result.stderr.splitlines())


@pytest.mark.usefixtures("here")
def test_evaluate_shows_numbers_and_the_table_of_confusion(lm):  # noqa: F811
    arguments = ("classify", "evaluate", *OWN, "--model", "reviews", "--prompt", "honest review")
    shown = run(*arguments).stdout
    expected = pez_fast.evaluate_classifier(
        "honest review", lm, "own.csv", OWN[2], "0=negative,1=positive", label="mark"
    )
    assert f"{expected.accuracy:.4f}" in shown and f"{expected.loss:.4f}" in shown
    assert f"{expected.perplexity:.1f}" in shown
    for label, row in zip("01", expected.confusion, strict=True):
        assert any(line.split() == [label, *map(str, row)] for line in shown.splitlines())
    value = json.loads(run(*arguments, "--json").stdout)
    assert value | {"seconds": 0} == expected.to_dict() | {"seconds": 0}
    alone = json.loads(run("classify", "evaluate", "reviews", "--limit", 8, "--json").stdout)
    assert alone["prompt"] == "" and alone["perplexity"] is None and len(alone["predictions"]) == 8
    test = list(csv.DictReader(Path(pez_fast.__file__).parent.joinpath("assets/reviews/reviews_test.csv").open()))
    assert [sum(r["label"] == k for r in test[:8]) for k in alone["labels"]] == [sum(r) for r in alone["confusion"]]


@pytest.mark.usefixtures("here")
def test_predictions_are_written_over_predictions_alone():
    arguments = ("classify", "evaluate", *OWN, "--model", "reviews", "--predictions", "p.csv", "--json")
    for _ in range(2):
        result = run(*arguments)
        assert result.stderr.splitlines()[-1] == "16 predictions written to p.csv"
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["text", "mark", "predicted"] and rows[2]["text"] == "the film was dull"
    assert [row["predicted"] for row in rows] == json.loads(result.stdout)["predictions"]


@pytest.mark.usefixtures("here")
def test_transfer_takes_prompts_from_what_learn_and_sweep_print(lm):  # noqa: F811
    Path("learned.json").write_text(run(*LEARN, "--top", 2, "--json").stdout)
    top = [each["prompt"] for each in json.loads(Path("learned.json").read_text())["result"]["top"]]
    arguments = ("classify", "transfer", "reviews", "--limit", 20, "--model", "other", "--model", "reviews")
    shown = run(*arguments, "--prompt", "", "--prompt", "a b", "--from", "learned.json").stdout
    expected = pez_fast.transfer(["", "a b", *top], [lm, lm], "reviews", limit=20)
    for prompt, scores in zip(["(template alone)", "a b", *top], expected, strict=False):
        assert any(prompt in line and f"{scores.accuracy:.4f}" in line for line in shown.splitlines())
    values = json.loads(run(*arguments, "--prompt", "a b", "--from", "learned.json", "--json").stdout)
    assert [v["prompt"] for v in values] == ["a b", *(p.strip() for p in top)] * 2 and "predictions" not in values[0]
    Path("swept.json").write_text(run(*SWEEP, "--json").stdout)
    runs = [result.prompt.strip() for result in read_classifiers("runs")]
    found = json.loads(run(*arguments[:-2], "--from", "swept.json", "--json").stdout)
    assert {v["prompt"] for v in found} == set(runs)
    file = sorted(Path("runs").glob("run-*.json"))[0]
    (value,) = json.loads(run(*arguments[:-2], "--from", file, "--json").stdout)
    assert value["prompt"] == runs[0]


@pytest.mark.usefixtures("here")
def test_a_sweep_is_kept_and_continued(monkeypatch: pytest.MonkeyPatch, lm):  # noqa: F811
    arguments = (*SWEEP, "--seeds", "0-1", "--shots", "2,all")
    calls: list[int] = []

    def interrupt(self, state: Progress) -> None:
        calls.append(len(state.scores))
        if len(calls) > 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(console.PlainProgress, "__call__", interrupt)
        result = run(*arguments, code=130)
    assert result.stderr.splitlines()[-1] == "pez-fast: interrupted; the same command continues"
    kept = len(list(Path("runs").glob("run-*.json")))
    assert 0 < kept < 16 and calls[0] == 4
    value = json.loads(run(*arguments, "--json").stdout)
    assert len(value["results"]) == 16 and len(value["groups"]) == 8
    assert [(g["prompt_len"], g["shots"], g["fluency"], g["count"]) for g in value["groups"]] == [
        (length, shots, fluency, 2) for length in (2, 3) for shots in (2, None) for fluency in (0.0, 0.5)
    ]
    two = [r["accuracy"] for r in value["results"][:2]]
    assert value["groups"][0]["accuracy"] == pytest.approx(sum(two) / 2)
    options = {"prompt_len": 3, "steps": 3, "seed": 1, "limit": 40, "fluency": 0.5}
    assert value["results"][-1]["prompt"] == pez_fast.learn_classifier("reviews", lm, **options).prompt
    monkeypatch.setattr("pez_fast.dataset.classifiers._learn", lambda *_: pytest.fail("learned again"))
    shown = run(*arguments).stdout
    line = next(line for line in shown.splitlines() if line.split()[:3] == ["3", "all", "0.5"])
    assert f"{value['groups'][-1]['accuracy']:.4f} ± " in line and line.split()[-1] == "2"
    other = run(*arguments, "--minibatch", 5, code=2).stderr
    assert other.splitlines()[-1].startswith("pez-fast: error: ")


def test_means_and_deviations():
    assert mean_and_deviation([]) == (None, None) and mean_and_deviation([2.0]) == (2.0, None)
    assert mean_and_deviation([1.0, 3.0, float("nan")]) == (2.0, pytest.approx(2**0.5))


def test_progress_shows_accuracies(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    import torch

    scores = joined_score(torch.tensor([1.0, 0.5]), torch.tensor([0.3, 2.0]), 4).tolist()
    state = Progress(1, 300, ["a", "b", ""], [*scores, float("nan")])
    seen: list[Progress] = []
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", _Terminal())
        with console.watch(["one", "two", "three"], 300, console.CLASSIFIERS) as progress:
            shown = Accuracies(progress, 4)
            assert shown.every == 3
            shown(state)
        written = sys.stderr.getvalue()
    assert "accuracy" in written and "cosine" not in written and "image" not in written
    assert "1.000" in written and "0.500" in written
    plain = console.PlainProgress(["one", "two", "three"], 300, console.CLASSIFIERS)
    Accuracies(plain, 4)(state)
    plain._next = 0
    plain(Progress(1, 300, ["", ""], [float("nan")] * 2))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 1/300  best 0.50 to 1.00 for 2 prompts", "step 1/300  best nothing yet for 0 prompts"]
    progress = type("Taker", (), {"every": 1, "__call__": lambda self, state: seen.append(state)})()
    Accuracies(progress, 4)(state)
    assert seen[0].scores[:2] == [1.0, 0.5] and seen[0].prompts == state.prompts


@pytest.mark.usefixtures("here")
def test_a_record_has_accuracies():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    value = json.loads(run(*LEARN, "--tensorboard", "log", "--json").stdout)
    record = EventAccumulator("log")
    record.Reload()
    assert record.Tags()["scalars"] == ["accuracy"]
    assert record.Scalars("accuracy")[0].value == pytest.approx(value["result"]["curve"][0][1])


@pytest.mark.usefixtures("here")
def test_the_demo_of_language():
    result = run("demo", "--language", "--steps", 2, "--out", "demo.png", "--json")
    value = json.loads(result.stdout)
    assert value["result"]["model"] == "reviews" and value["result"]["steps"] == 2 and value["result"]["prompt"]
    assert sum(map(sum, value["test"]["prompt"]["confusion"])) == 400
    assert any(line.startswith("test accuracy ") for line in result.stderr.splitlines())
    assert "sheet written to demo.png" in result.stderr.splitlines()
    with Image.open("demo.png") as image:
        assert image.format == "PNG"
    assert run("demo", "--language", "--steps", -1, code=2).stderr.startswith("pez-fast: error: steps must be")
