"""Prompts as they are shown: token boundaries, emoji, and what is to be said of a result."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

import pez_fast
from pez_fast.models.familiar import Familiar
from pez_fast.models.loading import BUNDLED
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


def test_images_unlike_the_training_are_said_to_be(tiny_clip, images, monkeypatch):
    layer = next(name for name, module in tiny_clip.model.named_modules() if isinstance(module, torch.nn.Conv2d))
    pixels = torch.stack([tiny_clip.preprocess(image) for image in images[:3]])
    channels = tiny_clip.model.get_submodule(layer).out_channels
    own = Familiar(layer, torch.zeros(channels), torch.eye(channels), 0.0)
    near, far = sorted(own.distances(tiny_clip.model, pixels[:2]).tolist())
    assert near < far
    own.most = (near + far) / 2
    monkeypatch.setattr(tiny_clip, "familiar", own)
    options = {"prompt_len": 3, "steps": 2, "refine": 0}
    results = pez_fast.invert_batch([images[0], b"no image", images[1]], tiny_clip, **options)
    assert sorted(bool(result.note) for result in results) == [False, False, True] and results[1].error
    note = next(filter(None, (result.note for result in results)))
    assert "unlike those that the model was trained on" in note
    assert pez_fast.invert(images[:2], tiny_clip, **options).note == note


def test_an_open_file_is_read_once(emoji):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "PNG")
    file.seek(0)
    assert "unlike" in pez_fast.invert(file, emoji, prompt_len=3, steps=2, refine=0).note


def test_the_bundled_model_knows_its_own_kind(emoji):
    drawn = sorted((BUNDLED["emoji"] / "images").glob("*.png"))
    assert emoji.notes([emoji.preprocess(Image.open(file).convert("RGB")) for file in drawn]) == [""] * len(drawn)
    random = torch.Generator().manual_seed(0)
    strange = [torch.rand(3, 64, 64, generator=random) * 4 - 2 for _ in range(3)]
    assert all("may mean nothing" in note for note in emoji.notes(strange))


def test_what_is_kept_of_the_training_is_read_again(tmp_path):
    assert Familiar.load(None) is None and Familiar.load(tmp_path) is None
    kept = Familiar("visual.layer", torch.arange(3.0), torch.eye(3).T * 0.5, 1.25)
    kept.save(tmp_path)
    again = Familiar.load(tmp_path)
    assert again is not None and (again.layer, again.most) == ("visual.layer", 1.25)
    assert torch.equal(again.mean, kept.mean) and torch.equal(again.whiten, kept.whiten)


@pytest.fixture(scope="module")
def emoji():
    return pez_fast.load_clip("emoji", device="cpu")
