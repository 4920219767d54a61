"""The study of prompt lengths: what it learns, keeps and shows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from test_referee import second_clip  # noqa: F401
from typer.testing import CliRunner

import pez_fast
from pez_fast.cli import app
from pez_fast.dataset import lengths as module
from pez_fast.report.lengths import _ticks, draw_lengths, told, write_lengths
from pez_fast.result import LengthRun, LengthStudy, Spread

QUICK = {"steps": 5, "refine": 1}
LENGTHS, SEEDS = [1, 3], [0, 4]


@pytest.fixture
def study(tiny_clip, second_clip, images):  # noqa: F811
    def run(out=None, pictures=images[:2], lengths=LENGTHS, seeds=SEEDS, **more):
        return pez_fast.study_lengths(pictures, tiny_clip, second_clip, lengths, seeds, out=out, **{**QUICK, **more})

    return run


def test_each_prompt_is_that_of_invert(study, tiny_clip, second_clip, images):  # noqa: F811
    found = study()
    assert [(r.prompt_len, r.seed, r.image) for r in found.runs] == [
        (n, seed, f"image {k}") for n in LENGTHS for seed in SEEDS for k in range(2)
    ]
    assert not found.interrupted and found.referee == second_clip.name
    for run in found.runs[3::2]:
        alone = pez_fast.invert(
            images[int(run.image[-1])], tiny_clip, run.prompt_len, seed=run.seed, referee=second_clip, **QUICK
        )
        assert (run.prompt, run.ids) == (alone.prompt, alone.ids)
        assert run.text_score == pytest.approx(alone.text_score, abs=1e-6)
        assert run.referee_score == pytest.approx(alone.referee_score, abs=1e-6)


def test_an_interrupted_study_goes_on_and_learns_nothing_twice(study, tmp_path, monkeypatch):
    whole = study().to_json()
    wanted, learn = [], module.learn_runs

    def counted(search, targets, count, keep):
        wanted.append((search.config.prompt_len, count))
        return learn(search, targets, count, keep)

    monkeypatch.setattr(module, "learn_runs", counted)
    calls = []
    first = study(tmp_path, callback=lambda state: calls.append(state) or len(calls) > 6, every=1, batch_size=2)
    assert first.interrupted and 0 < len(first.runs) < 8
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run-*.json")}
    assert len(kept) == len(first.runs)
    wanted.clear()
    again = study(tmp_path)
    assert sum(count for _, count in wanted) == 8 - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [r.ids for r in again.runs] == [r["ids"] for r in json.loads(whole)["runs"]]
    for one, other in zip(again.table(), json.loads(whole)["table"], strict=True):
        assert one.model.mean == pytest.approx(other["model"]["mean"], abs=1e-6)
        assert one.referee.low == pytest.approx(other["referee"]["low"], abs=1e-6)
    wanted.clear()
    assert study(tmp_path).to_json() == again.to_json() and wanted == []


def test_a_study_can_grow(study, tmp_path, images):
    study(tmp_path, lengths=[1], seeds=[0])
    grown = study(tmp_path, pictures=images[:3], lengths=[2, 1], seeds=[0])
    assert [(r.prompt_len, r.image) for r in grown.runs] == [(n, f"image {k}") for n in (2, 1) for k in range(3)]
    assert len(list(tmp_path.glob("run-*.json"))) == 6
    with pytest.raises(ValueError, match="holds results of another configuration: steps 5 there, 6 here"):
        study(tmp_path, steps=6)


def made(scores):
    """Returns a study with these pairs of cosines, (model, referee), for each length and picture."""
    runs = [
        LengthRun(f"{k}.png", str(k), n, 0, "a prompt", [1], *pair)
        for n, pairs in scores.items()
        for k, pair in enumerate(pairs)
    ]
    return LengthStudy("one", "two", runs)


OVER = made({8: [(0.9, 0.2), (0.8, 0.3)], 2: [(0.5, 0.4), (0.4, 0.5)], 1: [(0.3, 0.3), (0.2, 0.2)]})


def test_the_table_says_where_prompts_over_fit():
    rows = OVER.table()
    assert [row.prompt_len for row in rows] == [1, 2, 8] and OVER.best_length() == 2
    assert rows[0].referee_change is None and rows[1].referee_change == pytest.approx(0.2)
    assert (rows[2].referee_rises, rows[2].referee_change) == (0, pytest.approx(-0.2))
    assert (rows[1].model.mean, rows[1].model.low, rows[1].model.high) == pytest.approx((0.45, 0.425, 0.475))
    assert told(OVER) == (
        "the referee's mean is highest at 2 tokens; from there to 8 the model's changes by +0.400 and the referee's by "
        "-0.200: longer prompts fit the model alone"
    )
    assert told(made({1: [(0.3, 0.3)], 2: [(0.2, 0.2)]})).endswith("-0.100: no over-fitting, since both fall")
    rising = made({1: [(0.3, 0.3)], 2: [(0.4, 0.4)]})
    assert told(rising).endswith("at 2 tokens, the longest here: no over-fitting is seen")
    empty = LengthStudy("one", "two", [LengthRun("a", "b", 1, 0, error="no")])
    assert empty.table() == [] and empty.best_length() is None and told(empty) == "no prompt is finished"


def test_seeds_of_a_picture_count_once():
    runs = [LengthRun("a", "a", 1, s, "p", [1], v, v) for s, v in ((0, 0.1), (1, 0.3))]
    (row,) = LengthStudy("one", "two", [*runs, LengthRun("b", "b", 1, 0, "p", [1], 0.8, 0.8)]).table()
    assert (row.pictures, row.prompts) == (2, 3) and row.model.mean == pytest.approx(0.5)


def test_files_and_plot(tmp_path):
    paths = write_lengths(tmp_path, OVER)
    rows = list(csv.DictReader(paths[0].open()))
    assert [row["prompt_len"] for row in rows] == ["1", "2", "8"] and float(rows[1]["referee_mean"]) == 0.45
    assert json.loads(paths[1].read_text())["best_length"] == 2
    plot = Image.open(paths[2]).convert("RGB")
    colours = {colour for _, colour in plot.getcolors(1 << 24)}
    assert {(0x1F, 0x5F, 0xD0), (0x1A, 0x8F, 0x5A)} <= colours
    assert draw_lengths(made({4: [(0.3, 0.3)]})).size == plot.size  # one length, one picture


def test_the_plot_shows_negative_cosines():
    below, above = (draw_lengths(made({1: [(0.1, low)], 2: [(0.2, 0.3)]})) for low in (-0.3, -0.001))
    assert below.tobytes() != above.tobytes() and _ticks([Spread(0.0, -0.31, 0.2)])[0] <= -0.31


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lengths": [0, 2]}, "lengths must be positive integers; got 0"),
        ({"lengths": [2, 2]}, r"lengths must hold each value once; got \[2, 2\]"),
        ({"lengths": []}, "lengths must be a list of at least one value"),
        ({"lengths": [1, 90]}, "90"),
        ({"seeds": [1, 1]}, "seeds must hold each value once"),
        ({"seeds": [-1]}, "seeds must be integers, not negative; got -1"),
        ({"pictures": []}, "images must hold at least one image"),
    ],
)
def test_bad_input_is_one_sentence(study, more, message):
    with pytest.raises(ValueError, match=message):
        study(**more)


def test_pictures_and_referee_are_checked(study, tiny_clip, images):
    with pytest.raises(ValueError, match="images must hold each picture once; image 1 is the same as image 0"):
        study(pictures=[images[0], images[0].copy()])
    with pytest.raises(TypeError, match="referee must come from load_clip, or have encode_images"):
        pez_fast.study_lengths(images, tiny_clip, object())
    with pytest.raises(ValueError, match="referee must be a second model from load_clip; got None"):
        pez_fast.study_lengths(images, tiny_clip, None)
    with pytest.raises(TypeError, match="takes lengths in place of prompt_len"):
        study(prompt_len=3)


@pytest.fixture
def shell(monkeypatch, tmp_path, tiny_clip, second_clip, images):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        images[k].save(f"{k}.png")
    loaded = {"first": tiny_clip, "second": second_clip}

    def load(name, *_):
        if name not in loaded:
            raise ValueError(f"there is no model {name!r}")
        return loaded[name]

    monkeypatch.setattr("pez_fast.models.load_clip", load)

    def run(*arguments):
        given = ["study", "lengths", *arguments, "--model", "first", "--out", "found", "--steps", "3", "--refine", "0"]
        return CliRunner().invoke(app, given)

    return run


def test_the_command(shell):
    done = shell("0.png", "1.png", "--lengths", "1-2,4", "--seeds", "0-1", "--referee", "second")
    assert done.exit_code == 0, done.stderr
    assert "tokens" in done.stdout and "learning 4 prompts of 4 tokens" in done.stderr
    assert "the referee's mean is highest at" in done.stderr and Path("found/lengths.png").is_file()
    again = shell("0.png", "1.png", "--lengths", "1-2,4", "--seeds", "0-1", "--referee", "second", "--json")
    assert again.exit_code == 0 and "learning" not in again.stderr
    values = json.loads(again.stdout)
    assert len(values["runs"]) == 12 and values["runs"][0]["image"] == "0.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("0.png", "--referee", "first"), "--referee must be another model than --model"),
        (("0.png", "--referee", "none-such"), "there is no model 'none-such'"),
        (("0.png", "--referee", "second", "--lengths", "0,2"), "prompt_len must be a positive integer; got 0"),
        (("0.png", "--referee", "second", "--lengths", "two"), "--lengths must be values with commas between"),
        (("0.png", "0.png", "--referee", "second"), "images must hold each picture once; 0.png is the same as 0.png"),
        (("missing.png", "--referee", "second"), "missing.png does not exist"),
        (("0.png",), "Missing option '--referee'"),
    ],
)
def test_the_command_says_what_is_wrong(shell, arguments, message):
    done = shell(*arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
