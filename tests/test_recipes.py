"""Studies of distillation, and styles applied to new subjects: from Python, on the command line, and as pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image
from test_cli import complaint, here, run, tiny  # noqa: F401

import pez_fast
from pez_fast.report import distill_sheet, sheet, style_sheet
from pez_fast.result import Distilled, PromptResult, StyledPrompt

TEXTS = ["a small red bird over the wide blue sea", "a cat with a green hat on a wooden table"]
QUICK = {"steps": 6, "refine": 2, "seed": 3}


def test_a_study_is_its_separate_distillations(tiny_clip):
    ratios = (0.7, 0.3, 0.12)
    rows = pez_fast.distill_study(TEXTS, tiny_clip, ratios, **QUICK)
    assert [(row.text, row.ratio) for row in rows] == [(text, ratio) for text in TEXTS for ratio in ratios]
    for row in rows:
        alone = pez_fast.distill(row.text, tiny_clip, row.ratio, **QUICK)
        assert row.text_tokens == len(tiny_clip.vocabulary.encode(row.text))
        assert (row.result.ids, row.result.history) == (alone.ids, alone.history)
        assert row.result.text_score == alone.text_score and row.result.seed == 3


def test_the_defaults_of_a_study(tiny_clip):
    rows = pez_fast.distill_study(TEXTS[1], tiny_clip, steps=1, refine=0)
    assert [row.ratio for row in rows] == [0.7, 0.5, 0.3, 0.1]
    assert [len(row.result.ids) for row in rows] == [7, 5, 3, 1]
    twice = pez_fast.distill_study([TEXTS[1]] * 2, tiny_clip, [0.3, 0.31, 0.3], steps=1, refine=0)
    assert [row.ratio for row in twice] == [0.3, 0.31] * 2 and len({tuple(row.result.ids) for row in twice}) == 1


def test_a_study_learns_ratios_of_one_length_once(tiny_clip, monkeypatch):
    learned, search = [], pez_fast.tasks.ratios.search

    def counted(objective, model, **options):
        learned.append((len(objective), options["prompt_len"]))
        return search(objective, model, **options)

    monkeypatch.setattr("pez_fast.tasks.ratios.search", counted)
    pez_fast.distill_study(TEXTS, tiny_clip, [0.3, 0.32, 0.5], steps=1, refine=0)
    assert learned == [(2, 3), (1, 4), (1, 5)]


def test_the_callback_of_a_study_sees_all_rows(tiny_clip):
    seen = []
    rows = pez_fast.distill_study(TEXTS, tiny_clip, [0.5, 0.3], steps=4, refine=2, callback=seen.append, every=1)
    assert all(len(state.prompts) == len(rows) == 4 and state.steps == 4 for state in seen)
    assert [math.isnan(score) for score in seen[0].scores] == [True, False, True, False]  # short prompts first
    places = [(state.step, state.refined) for state in seen]
    assert places == sorted(places) and places[-1] == (4, 2) and places[0][0] < 4
    assert seen[-1].prompts == [row.result.prompt for row in rows]


def test_a_callback_ends_a_study(tiny_clip):
    rows = pez_fast.distill_study(TEXTS[0], tiny_clip, [0.5, 0.3], steps=4, refine=0, callback=lambda _: True, every=1)
    assert rows[1].result.prompt and rows[1].result.stop_reason == "callback"
    assert "before this target was begun" in rows[0].result.error and rows[0].result.stop_reason == "callback"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([],), "texts must hold at least one text; got an empty list"),
        ((["a cat", " "],), "texts must not be empty; got ' '"),
        ((TEXTS, []), "ratios must hold at least one ratio; got an empty list"),
        ((TEXTS, [0.5, 0]), "ratios must be above 0 and at most 1; got 0"),
        ((TEXTS, [1.5]), "ratios must be above 0 and at most 1; got 1.5"),
        ((TEXTS, [float("nan")]), "ratios must be above 0 and at most 1; got nan"),
        ((TEXTS, ["0.5"]), "ratios must be above 0 and at most 1; got '0.5'"),
        (([TEXTS[0], "a cat"], [0.7, 0.1]), "text 'a cat' has 2 tokens, of which the ratio 0.1 leaves none"),
    ],
)
def test_bad_input_of_a_study(tiny_clip, arguments, sentence):
    texts, *ratios = arguments
    with pytest.raises(ValueError) as caught:
        pez_fast.distill_study(texts, tiny_clip, *ratios, steps=1)
    assert str(caught.value) == sentence


def test_wrong_types_and_options_of_a_study(tiny_clip):
    for given, error, sentence in (
        ({"texts": 3}, TypeError, "texts must be a text or a list of texts; got 3"),
        ({"texts": ["a cat", 3]}, TypeError, "texts must hold texts alone; got 3"),
        ({"texts": "a cat", "ratios": 0.5}, TypeError, "ratios must be a list of numbers; got 0.5"),
        ({"texts": TEXTS, "prompt_len": 4}, ValueError, "prompt_len follows from the ratios"),
        ({"texts": TEXTS, "speed": 4}, TypeError, "'speed' is not an option"),
        ({"texts": TEXTS, "prefix": "word " * 80}, ValueError, "prefix and suffix must leave room"),
        (
            {"texts": "cat " * 40, "ratios": [0.1, 1], "suffix": "word " * 50},
            ValueError,
            "prompt_len must be at most 25",
        ),
    ):
        with pytest.raises(error, match=sentence):
            pez_fast.distill_study(model=tiny_clip, **given)
    with pytest.warns(UserWarning, match="the first 75 of the 100 tokens of a text"):
        pez_fast.distill_study("cat " * 100, tiny_clip, [0.03], steps=1, refine=0)


def test_a_style_is_put_together_with_subjects_in_the_better_order(tiny_clip, images):
    subjects = ["a rocket", "two 猫"]
    found = pez_fast.apply_style(PromptResult(prompt="in the style of blue ink"), subjects, tiny_clip, images[:3])
    assert [each.subject for each in found] == subjects
    for each, subject in zip(found, subjects, strict=True):
        orders = [f"{subject} in the style of blue ink", f"in the style of blue ink {subject}"]
        assert sorted([each.prompt, each.other_prompt]) == sorted(orders) and each.score >= each.other_score
        expected = pez_fast.score(images[:3], [each.prompt, each.other_prompt, subject], tiny_clip)
        assert each.scores == expected[:, 0].tolist()
        means = expected.mean(0).tolist()
        assert [each.score, each.other_score, each.subject_score] == pytest.approx(means, abs=1e-6)
    assert pez_fast.apply_style("in the style of blue ink", "a rocket", tiny_clip, images[:3]) == found[:1]


def test_bad_input_of_a_style(tiny_clip, images):
    for style, subjects, shown, error, sentence in (
        (3, ["a"], images, TypeError, "style must be a result of invert or a text; got int"),
        (" ", ["a"], images, ValueError, "style must not be empty; got ' '"),
        (PromptResult(error="no image"), ["a"], images, ValueError, "style has no prompt: no image"),
        ("ink", [], images, ValueError, "subjects must hold at least one text; got an empty list"),
        ("ink", ["a", ""], images, ValueError, "subjects must not be empty; got ''"),
        ("ink", ["a"], [], ValueError, "images must hold at least one; got an empty list"),
        ("ink", ["a"], images[0], TypeError, "images must be a list"),
    ):
        with pytest.raises(error, match=sentence):
            pez_fast.apply_style(style, subjects, tiny_clip, shown)
    with pytest.warns(UserWarning, match="the first 75 of the 82 tokens of a styled prompt"):
        pez_fast.apply_style("ink " * 80, "a cat", tiny_clip, images[:1])


def test_the_command_of_a_study(tiny):  # noqa: F811
    command = ("distill", *TEXTS, "--study", "--ratio", 0.5, "--ratio", 0.3, "--steps", 4, "--refine", 2)
    rows = json.loads(run(*command, "--json").stdout)
    expected = pez_fast.distill_study(TEXTS, tiny, [0.5, 0.3], steps=4, refine=2)
    assert [row["result"]["prompt"] for row in rows] == [row.result.prompt for row in expected]
    assert [row["ratio"] for row in rows] == [0.5, 0.3] * 2 and "history" not in rows[0]["result"]
    result = run(*command, "--sheet", "study.png")
    assert "0.5" in result.stdout and f"{expected[0].result.text_score:.3f}" in result.stdout
    assert " prompts\n" in result.stderr and result.stderr.splitlines()[-1] == "sheet written to study.png"
    with Image.open("study.png") as drawn:
        assert drawn.width == sheet.WIDTH and drawn.info["Software"] == sheet.SOFTWARE


def test_the_command_of_a_style(tiny):  # noqa: F811
    command = ("style", "a.png", "b.png", "--subject", "a rocket", "--steps", 4, "--refine", 1, "--prompt-len", 2)
    found = json.loads(run(*command, "--json").stdout)
    style = pez_fast.invert(["a.png", "b.png"], tiny, prompt_len=2, steps=4, refine=1)
    (styled,) = pez_fast.apply_style(style, "a rocket", tiny, ["a.png", "b.png"])
    assert found["style"]["prompt"] == style.prompt and found["prompts"] == [styled.to_dict()]
    result = run(*command, "--sheet", "style.png")
    assert styled.prompt in " ".join(result.stdout.split()) and f"{styled.subject_score:.3f}" in result.stdout
    with Image.open("style.png") as drawn:
        assert drawn.width == sheet.WIDTH


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill", "a", "b"], "TEXT is given 2 times, which only --study takes; a text of several words"),
        (["distill", "a b", "--ratio", "0.5", "--ratio", "0.3"], "--ratio is given 2 times, which only --study takes"),
        (["distill", "a b", "--sheet", "a.png"], "--sheet has an effect only with --study"),
        (["distill", "a b", "--study", "--prompt-len", "3"], "--study and --prompt-len exclude each other"),
        (["distill", "a b", "--study", "--sheet", "a.png"], "the file a.png is no sheet of pez_fast"),
        (["style", "a.png"], "Missing option '--subject'"),
        (["style", "a.png", "--subject", " "], "--subject must not be empty; got ' '"),
        (["style", "a.png", "--subject", "x", "--sheet", "a.png"], "the sheet a.png would be written over an image"),
        (["style", "broken.png", "--subject", "x"], "image broken.png is in none of the formats"),
    ],
)
@pytest.mark.usefixtures("here")
def test_wrong_usage_is_one_sentence(monkeypatch, arguments: list[str], sentence: str):
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: pytest.fail("loaded"))
    assert complaint(*arguments).startswith(sentence)


@pytest.mark.usefixtures("tiny")
def test_sentences_of_the_library_reach_the_command():
    assert complaint("distill", "a red cat", "--study").startswith("text 'a red cat' has 3 tokens, of which")
    assert complaint("distill", "a cat", "--study", "--ratio", 2).startswith("ratios must be above 0")


def test_an_interrupted_study_shows_what_it_has(tiny, monkeypatch):  # noqa: F811
    learned, search = [], pez_fast.tasks.ratios.search

    def interrupted(objective, model, **options):
        found = search(objective, model, **options)
        learned.extend(found)
        found[0].stop_reason = "interrupt"
        return found

    monkeypatch.setattr("pez_fast.tasks.ratios.search", interrupted)
    result = run("distill", TEXTS[0], "--study", "--steps", 2, "--refine", 0, "--sheet", "s.png", code=130)
    assert len(learned) == 1 and learned[0].prompt in result.stdout and "interrupted after" in result.stderr
    assert Path("s.png").is_file() and "not begun" not in result.stderr


def result_of(prompt: str, score: float) -> PromptResult:
    return PromptResult(prompt, [1, 2], score, score, 9, [score], 0, model="m", tokens=prompt.split())


def test_pictures_hold_long_texts_strange_characters_and_single_rows(images):
    long, strange = "word " * 120, "x" * 400 + " 猫 \n é"
    for rows in (
        [Distilled("a", 1, 1.0, result_of("b", 1.0))],
        [Distilled(long, 120, 0.5, result_of(strange, -0.2)), Distilled(long, 120, 0.1, PromptResult(error="none"))],
        [Distilled(f"text {k}", 9, 0.5, result_of("b", 0.5)) for k in range(distill_sheet.MOST + 3)],
    ):
        assert distill_sheet.draw_study(rows).width == sheet.WIDTH
    styled = StyledPrompt("a", strange, 0.4, [0.4], long, -0.3, -0.1)
    for count, prompts in ((1, [styled]), (8, [styled] * (style_sheet.MOST + 2)), (30, [])):
        drawn = style_sheet.draw_style((images * 4)[:count], result_of(long, 0.3), prompts)
        assert drawn.width == sheet.WIDTH


def test_nothing_is_drawn_without_a_prompt(tmp_path):
    failed = PromptResult(error="none")
    assert not distill_sheet.write_study(tmp_path / "a.png", [Distilled("a", 1, 1.0, failed)])
    assert not style_sheet.write_style(tmp_path / "a.png", [], failed, [])
    assert not list(tmp_path.iterdir())
