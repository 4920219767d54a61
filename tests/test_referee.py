"""A second model that scores prompts, and chooses among them if it is asked to."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pez_fast
from pez_fast.cli import app
from pez_fast.report.sheet import Row, draw_sheet

QUICK = {"prompt_len": 3, "steps": 8, "refine": 2, "top_k": 3}


class Opposed:
    """A planted referee, which prefers what the model likes least: its features of texts are turned round."""

    name = "opposed"

    def __init__(self, clip):
        self.clip, self.preprocess = clip, clip.preprocess
        self.encode_images, self.encode_pixels = clip.encode_images, clip.encode_pixels

    def encode_texts(self, texts):
        return -self.clip.encode_texts(texts)


@pytest.fixture
def opposed(tiny_clip):
    return Opposed(tiny_clip)


@pytest.fixture(scope="session")
def second_clip(tmp_path_factory, tiny_clip_dir):
    """Returns a referee with other weights and a preprocessing of its own: it reads images at half the size."""
    import open_clip

    folder = tmp_path_factory.mktemp("second-clip")
    config = json.loads((tiny_clip_dir / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= {"image_size": 16}
    config["preprocess_cfg"] |= {"size": 16}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    from safetensors.torch import save_file

    state = open_clip.CLIP(**config["model_cfg"]).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    return pez_fast.load_clip(folder, device="cpu")


def test_a_referee_scores_and_does_not_touch_the_search(tiny_clip, second_clip, images):
    alone = pez_fast.invert(images[0], tiny_clip, **QUICK)
    judged = pez_fast.invert(images[0], tiny_clip, referee=second_clip, **QUICK)
    assert [c.ids for c in judged.top] == [c.ids for c in alone.top] and judged.text_score == alone.text_score
    assert alone.referee == "" and alone.referee_score is None and alone.top[0].referee_score is None
    target = second_clip.encode_images(images[:1])
    for candidate in judged.top:
        expected = float(second_clip.encode_texts([candidate.prompt]) @ target.T)
        assert candidate.referee_score == pytest.approx(expected, abs=1e-6)
    assert judged.referee == second_clip.name and judged.referee_score == judged.top[0].referee_score
    assert json.loads(judged.to_json())["top"][1]["referee_score"] == judged.top[1].referee_score


def test_the_referee_sees_the_image_in_its_own_way(tiny_clip, second_clip, images):
    """It prepares the original image itself, also where that is an open file, which can be read once."""
    data = io.BytesIO()
    images[2].save(data, "PNG")
    expected = pez_fast.invert(images[2], tiny_clip, referee=second_clip, **QUICK)
    for source in (data, [data]):
        data.seek(0)
        assert pez_fast.invert(source, tiny_clip, referee=second_clip, **QUICK).referee_score == expected.referee_score


def test_weights_count_for_the_referee(tiny_clip, second_clip, images):
    result = pez_fast.invert(images[:2], tiny_clip, referee=second_clip, weights=[3, -1], **QUICK)
    cosines = second_clip.encode_texts([result.prompt]) @ second_clip.encode_images(images[:2]).T
    assert result.referee_score == pytest.approx(float(0.75 * cosines[0, 0] - 0.25 * cosines[0, 1]), abs=1e-6)


def test_a_batch_gives_what_each_image_gives_alone(tiny_clip, second_clip, images):
    given = [images[0], "missing.png", images[1]]
    found = pez_fast.invert_batch(given, tiny_clip, referee=second_clip, choose_by="referee", **QUICK)
    assert found[1].error and found[1].referee_score is None
    for image, result in ((images[0], found[0]), (images[1], found[2])):
        alone = pez_fast.invert(image, tiny_clip, referee=second_clip, choose_by="referee", **QUICK)
        assert (alone.prompt, alone.referee_score) == (result.prompt, pytest.approx(result.referee_score, abs=1e-6))


def test_the_referee_chooses_if_it_is_asked(tiny_clip, opposed, images):
    kept = pez_fast.invert(images[0], tiny_clip, referee=opposed, **QUICK)
    assert len(kept.top) == 3 and kept.text_score == max(c.text_score for c in kept.top)
    chosen = pez_fast.invert(images[0], tiny_clip, referee=opposed, choose_by="referee", **QUICK)
    worst = kept.top[-1]
    assert (chosen.prompt, chosen.ids, chosen.text_score) == (worst.prompt, worst.ids, worst.text_score)
    assert chosen.tokens == worst.tokens and chosen.ids_score == worst.ids_score
    assert [c.prompt for c in chosen.top] == [worst.prompt, *(c.prompt for c in kept.top[:-1])]
    assert chosen.referee_score == max(c.referee_score for c in chosen.top)


def test_a_shorter_text_has_a_referee_too(tiny_clip, second_clip):
    text = "a small red house beside a long green river"
    alone = pez_fast.distill(text, tiny_clip, **QUICK)
    judged = pez_fast.distill(text, tiny_clip, referee=second_clip, **QUICK)
    expected = float(second_clip.encode_texts([judged.prompt]) @ second_clip.encode_texts([text]).T)
    assert judged.ids == alone.ids and judged.referee_score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"choose_by": "referee"}, ValueError, "choose_by='referee' needs a referee; got None"),
        ({"choose_by": "me"}, ValueError, "choose_by must be one of model, referee; got 'me'"),
        ({"referee": "emoji"}, TypeError, "referee must come from load_clip, or have encode_"),
    ],
)
def test_bad_input_is_one_sentence(tiny_clip, images, more, error, message):
    for call in (
        lambda: pez_fast.invert(images[0], tiny_clip, **QUICK, **more),
        lambda: pez_fast.invert_batch(images[:1], tiny_clip, **QUICK, **more),
        lambda: pez_fast.distill("some words", tiny_clip, **QUICK, **more),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_referee_must_be_another_model_and_have_a_choice(tiny_clip, second_clip, images):
    with pytest.raises(ValueError, match="referee must be another model than the one that learns"):
        pez_fast.invert(images[0], tiny_clip, referee=tiny_clip)
    with pytest.raises(ValueError, match="needs a top_k of at least 2, to choose from; got 1"):
        pez_fast.invert(images[0], tiny_clip, referee=second_clip, choose_by="referee")
    texts_only = type("Texts", (), {"encode_texts": None})()
    with pytest.raises(TypeError, match="or have encode_images; got Texts"):
        pez_fast.invert(images[0], tiny_clip, referee=texts_only)


@pytest.fixture
def shell(monkeypatch, tmp_path, tiny_clip, second_clip, images):
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        images[k].save(f"{k}.png")
    loaded = {"first": tiny_clip, "second": second_clip}
    monkeypatch.setattr("pez_fast.models.load_clip", lambda name, *_: loaded[name])

    def run(*arguments):
        return CliRunner().invoke(app, ["invert", *map(str, arguments), "--model", "first", "--prompt-len", "3"])

    return run


def test_the_command_shows_the_referee(shell, second_clip):
    quick = ("--steps", 4, "--refine", 0)
    one = shell("0.png", "--referee", "second", *quick, "--sheet", "sheet.png", "--top", 2)
    assert one.exit_code == 0 and "referee's cosines " in one.stderr and second_clip.name in one.stderr
    assert Image.open("sheet.png").size[0] == 1200
    many = shell("0.png", "1.png", "--each", "--referee", "second", *quick)
    assert many.exit_code == 0 and "referee" in many.stdout and "the referee is " in many.stderr
    values = json.loads(
        shell("0.png", "--referee", "second", "--top", 2, "--choose-by", "referee", *quick, "--json").stdout
    )
    assert values["referee"] == second_clip.name
    assert values["referee_score"] == max(c["referee_score"] for c in values["top"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--referee", "first"), "--referee must be another model than --model; both are first"),
        (("--choose-by", "referee"), "--choose-by referee needs --referee MODEL and a --top of at least 2"),
        (("--referee", "second", "--choose-by", "referee"), "a --top of at least 2"),
    ],
)
def test_the_command_says_what_is_wrong(shell, arguments, message):
    done = shell("0.png", *arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_sheet_shows_the_referee(tiny_clip, opposed, images):
    judged = pez_fast.invert(images[0], tiny_clip, referee=opposed, **QUICK)
    with_score = draw_sheet([Row("a", [images[0]], judged)], "t", "s")
    judged.referee_score = None
    assert with_score.tobytes() != draw_sheet([Row("a", [images[0]], judged)], "t", "s").tobytes()
