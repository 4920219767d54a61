"""Prompts as they are shown: token boundaries, emoji, and what is to be said of a result."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

import pez_fast
from pez_fast.models.familiar import Familiar
from pez_fast.report import console, prompt_text
from pez_fast.report.chart import BACK
from pez_fast.report.tokens import pieces
from pez_fast.result import PromptResult


@pytest.mark.parametrize(
    ("prompt", "tokens", "expected"),
    [
        ("red apple", ["red", "apple"], [("red", 0), (" ", None), ("apple", 1)]),
        ("a redapple b", ["red", "apple"], [("a ", None), ("red", 0), ("apple", 1), (" b", None)]),
        ("red red apple", ["red", "apple"], [("red ", None), ("red", 0), (" ", None), ("apple", 1)]),
        ("red apple", ["red", "pear"], [("red apple", None)]),
        ("red", ["red", "\N{REPLACEMENT CHARACTER}"], [("red", None)]),
        ("red", [], [("red", None)]),
        ("red", [""], [("red", None)]),
    ],
)
def test_pieces_of_a_prompt(prompt, tokens, expected):
    assert pieces(prompt, tokens) == expected
    assert "".join(text for text, _ in pieces(prompt, tokens)) == prompt


@pytest.mark.parametrize("vocabulary", ["stable", "full"])
def test_the_learned_tokens_stand_in_the_prompt(tiny_clip, images, vocabulary):
    options = {"prompt_len": 5, "steps": 3, "refine": 0, "vocabulary": vocabulary, "prefix": "in the style of"}
    result = pez_fast.invert(images[0], tiny_clip, **options)
    assert len(result.tokens) == 5 and result.top[0].tokens == result.tokens
    if vocabulary == "stable":
        found = [text for text, number in pieces(result.prompt, result.tokens) if number is not None]
        assert found == result.tokens == result.prompt.removeprefix("in the style of ").split()


def test_lines_of_a_prompt_hold_all_of_it_and_fit():
    tokens = ["watercolor", "ish", "of", "a" * 90, "cat", "s", "\N{RED APPLE}"]
    prompt = "watercolorish of " + "a" * 90 + " cats \N{RED APPLE}"
    lines = prompt_text.prompt_lines(prompt, tokens, 19, 300)
    assert "".join(text for line in lines for _, text, _ in line) == prompt.replace(" ", "")
    assert len(lines) > 3 and all(x + prompt_text._width(text, 19) <= 300.5 for line in lines for x, text, _ in line)
    assert [shaded for _, text, shaded in lines[0][:3]] == [True, False, True]


def test_every_other_token_stands_on_a_shade():
    image = Image.new("RGB", (300, 40), BACK)
    line = prompt_text.prompt_lines("red apple pie", ["red", "apple", "pie"], 19, 290)[0]
    prompt_text.draw_line(image, (5, 5), line, 19)
    (red, *_), (apple, *_), (pie, *_) = line
    shade = tuple(bytes.fromhex(prompt_text.SHADE[1:]))
    over = [image.getpixel((5 + round(x) + 4, 5)) == shade for x in (red, apple, pie)]
    assert over == [True, False, True]


def test_an_emoji_is_a_picture_where_there_is_a_font_of_them(monkeypatch):
    if prompt_text.emoji_picture("\N{RED APPLE}", 20) is None:
        pytest.skip("no font of emoji here")
    assert prompt_text.emoji_picture("\N{RED APPLE}", 20).size == (20, 20)
    assert prompt_text.emoji_picture("apple", 20) is None and prompt_text.emoji_picture("", 20) is None
    monkeypatch.setattr(prompt_text, "EMOJI_FONTS", ())
    prompt_text.emoji_picture.cache_clear()
    assert prompt_text.emoji_picture("\N{RED APPLE}", 20) is None
    prompt_text.emoji_picture.cache_clear()


def test_a_terminal_shows_the_tokens_and_a_pipe_the_text_alone(monkeypatch, capsys):
    result = PromptResult("red apple", [1, 2], 0.5, 0.5, tokens=["red", "apple"], note="this is strange")
    console.show_one(result, False)
    shown = capsys.readouterr()
    assert shown.out == "red apple\n" and "note: this is strange" in shown.err
    terminal = io.StringIO()
    make = console.stdout

    def on_terminal():
        made = make()
        made.file, made._force_terminal, made._color_system = terminal, True, console_colours()
        return made

    def console_colours():
        from rich.console import ColorSystem

        return ColorSystem.EIGHT_BIT

    monkeypatch.setattr(console, "stdout", on_terminal)
    console.show_one(result, False)
    assert "\x1b[" in terminal.getvalue().split("red")[0] and "\x1b[" not in terminal.getvalue().split("apple")[1]


def test_images_far_from_the_training_are_said_to_be(tiny_clip, images, monkeypatch):
    features = tiny_clip.encode_images(images[:3])
    monkeypatch.setattr(tiny_clip, "familiar", Familiar(features[:1].half(), 0.999), raising=False)
    known, strange = pez_fast.invert_batch(images[:2], tiny_clip, prompt_len=3, steps=2, refine=0)
    assert known.note == "" and "unlike those that the model was trained on" in strange.note
    assert pez_fast.invert(images[:2], tiny_clip, prompt_len=3, steps=2, refine=0).note == strange.note
    assert Familiar(features, 0.9).nearest(features).allclose(torch.ones(3), atol=1e-5)


def test_what_a_folder_keeps_of_the_training_is_read(tmp_path):
    from safetensors.torch import save_file

    assert Familiar.load(None) is None and Familiar.load(tmp_path) is None
    save_file({"features": torch.eye(4).half(), "least": torch.tensor(0.7)}, tmp_path / "familiar.safetensors")
    kept = Familiar.load(tmp_path)
    assert kept is not None and round(kept.least, 6) == 0.7
    assert kept.notes(torch.eye(4)[:1])[0] == "" and "cosine 0.50" in kept.notes(torch.full((1, 4), 0.5))[0]
