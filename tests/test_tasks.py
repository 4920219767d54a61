"""The tasks as a user calls them, on a tiny model with random weights."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import pez_fast
from pez_fast.images import load_image

QUICK = {"prompt_len": 4, "steps": 12, "refine": 0}


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """Returns a small file that claims more pixels than is safe."""
    data = io.BytesIO()
    Image.new("1", (1, 1)).save(data, "PNG")
    raw = bytearray(data.getvalue())
    raw[16:24] = (20000).to_bytes(4, "big") * 2
    raw[29:33] = PngImagePlugin._crc32(bytes(raw[12:29])).to_bytes(4, "big")
    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    path.write_bytes(raw)
    return path


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory, bomb):
    """Returns sources that cannot be read, each with a part of its sentence."""
    folder = tmp_path_factory.mktemp("bad")
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(data, "PNG")
    (folder / "truncated.png").write_bytes(data.getvalue()[:3000])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    return [
        (folder / "truncated.png", "truncated.png cannot be read: "),
        (folder / "text.png", "text.png is in none of the formats"),
        (folder / "empty.png", "empty.png is in none of the formats"),
        (folder / "missing.png", "missing.png does not exist"),
        (folder, "is a folder, not a file"),
        (bomb, "bomb.png has more than 89478485 pixels"),
        (b"\x89PNG garbage", "the given bytes is in none of the formats"),
        (np.full((4, 4, 3), 2.5), "must hold values from 0 to 1"),
        (3.5, "image must be a PIL image"),
    ]


def test_invert_returns_what_the_text_scores(tiny_clip, images):
    result = pez_fast.invert(images[0], tiny_clip, **QUICK, seed=3)
    target = tiny_clip.encode_images(images[:1])
    assert result.text_score == pytest.approx(
        float((tiny_clip.encode_texts([result.prompt]) @ target.T).item()), abs=1e-6
    )
    assert (
        result.ids_score == pytest.approx(max(result.history), abs=1e-6) == pytest.approx(result.text_score, abs=1e-5)
    )
    assert tiny_clip.vocabulary.encode(result.prompt) == result.ids and len(result.ids) == 4
    assert len(result.history) == 13 and result.steps == 12 and result.seed == 3 and result.stop_reason == "steps"
    assert result.model.startswith("local-dir:") and result.seconds > 0 and result.error is None


def test_seed_decides(tiny_clip, images):
    def ids(seed):
        return pez_fast.invert(images[0], tiny_clip, **QUICK, seed=seed).ids

    assert ids(1) == ids(1) != ids(2)


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_targets_result_is_the_same_alone_and_in_a_batch(tiny_clip, images, restarts):
    options = {"prompt_len": 6, "steps": 40, "restarts": restarts, "patience": 15, "every": 5}
    together = pez_fast.invert_batch(images[:5], tiny_clip, **options)
    backwards = pez_fast.invert_batch(images[4::-1], tiny_clip, **options)
    for k, result in enumerate(together):
        single = pez_fast.invert(images[k], tiny_clip, **options)
        for other in (single, backwards[4 - k]):
            assert {**result.to_dict(), "seconds": 0} == {**other.to_dict(), "seconds": 0}
    assert len({tuple(r.ids) for r in together}) == 5


def test_restarts_return_the_best_of_them(tiny_clip, images):
    one = pez_fast.invert(images[0], tiny_clip, **QUICK)
    many = pez_fast.invert(images[0], tiny_clip, **QUICK, restarts=5)
    assert many.text_score >= one.text_score and 0 <= many.restart < 5


def test_several_images_are_one_target(tiny_clip, images):
    result = pez_fast.invert(images[:3], tiny_clip, **QUICK)
    targets = tiny_clip.encode_images(images[:3])
    assert result.text_score == pytest.approx(
        float((tiny_clip.encode_texts([result.prompt]) @ targets.T).mean()), abs=1e-6
    )
    weighted = pez_fast.invert(images[:2], tiny_clip, **QUICK, weights=[1, -0.5])
    cosines = (tiny_clip.encode_texts([weighted.prompt]) @ targets[:2].T)[0]
    assert weighted.text_score == pytest.approx(float((cosines[0] - 0.5 * cosines[1]) / 1.5), abs=1e-6)


def test_prefix_suffix_init_and_banned(tiny_clip, images):
    result = pez_fast.invert(
        images[0], tiny_clip, **QUICK, prefix="a red", suffix="in the rain", init="bird dog", banned=["cat"]
    )
    assert result.prompt.startswith("a red ") and result.prompt.endswith(" in the rain")
    assert tiny_clip.vocabulary.encode(result.prompt)[2:6] == result.ids
    learned = tiny_clip.vocabulary.decode(result.ids)
    assert "cat" not in learned
    start = pez_fast.invert(images[0], tiny_clip, prompt_len=2, steps=1, lr=0.0, refine=0, init="cat dog")
    assert start.prompt == "cat dog"


def test_full_vocabulary_is_scored_by_its_text(tiny_clip, images):
    result = pez_fast.invert(images[0], tiny_clip, prompt_len=16, steps=3, vocabulary="full")
    target = tiny_clip.encode_images(images[:1])
    assert result.text_score == pytest.approx(float(tiny_clip.encode_texts([result.prompt]) @ target.T), abs=1e-6)
    assert abs(result.text_score - result.ids_score) > 1e-4  # random pieces join when they are typed in again


def test_distill(tiny_clip):
    text = "an oil painting of a small boat on the sea at night"
    result = pez_fast.distill(text, tiny_clip, ratio=0.3, steps=20)
    assert len(result.ids) == round(0.3 * len(tiny_clip.vocabulary.encode(text)))
    cosine = tiny_clip.encode_texts([result.prompt]) @ tiny_clip.encode_texts([text]).T
    assert result.text_score == pytest.approx(float(cosine), abs=1e-6)
    assert len(pez_fast.distill(text, tiny_clip, prompt_len=2, steps=2).ids) == 2
    with pytest.warns(UserWarning, match="reads the first 75 of the 80 tokens"):
        pez_fast.distill("cat " * 80, tiny_clip, ratio=0.1, steps=1)


def test_callback_gets_texts_and_scores(tiny_clip, images):
    seen = []
    results = pez_fast.invert_batch(images[:2], tiny_clip, **QUICK, callback=seen.append, every=5)
    assert [p.step for p in seen] == [0, 5, 10, 12] and seen[0].steps == 12
    assert seen[-1].prompts == [r.prompt for r in results]
    assert seen[-1].scores == pytest.approx([r.ids_score for r in results])


def test_bad_images_become_error_entries(tiny_clip, images, unreadable):
    sources = [images[0], *(source for source, _ in unreadable), images[1]]
    results = pez_fast.invert_batch(sources, tiny_clip, **QUICK)
    assert [r.error is None for r in results] == [True] + [False] * len(unreadable) + [True]
    for (_, sentence), result in zip(unreadable, results[1:-1], strict=True):
        assert (
            sentence in result.error
            and "\n" not in result.error
            and result.prompt == ""
            and str(result) == result.error
        )
        assert json.loads(result.to_json())["text_score"] is None
    assert results[-1].ids == pez_fast.invert(images[1], tiny_clip, **QUICK).ids
    assert all(r.error for r in pez_fast.invert_batch([b"", "missing.png"], tiny_clip, **QUICK))


def test_bad_images_raise_one_sentence(unreadable):
    for source, sentence in unreadable:
        with pytest.raises((ValueError, TypeError), match=".") as caught:
            load_image(source)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_images_of_every_mode_are_read(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        image = Image.new(mode, (9, 7))
        assert load_image(image).mode == "RGB"
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    clear.save(tmp_path / "clear.png")
    for source in (tmp_path / "clear.png", str(tmp_path / "clear.png"), (tmp_path / "clear.png").read_bytes()):
        assert load_image(source).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(np.zeros((5, 6), dtype=np.uint8)).size == (6, 5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt_len": 0}, "prompt_len must be a positive integer; got 0"),
        ({"prompt_len": 76}, "prompt_len must be at most 75"),
        ({"steps": 0}, "steps must be a positive integer; got 0"),
        ({"steps": 2.5}, "steps must be a positive integer; got 2.5"),
        ({"restarts": 0}, "restarts must be a positive integer; got 0"),
        ({"patience": -1}, "patience must be a positive integer; got -1"),
        ({"seed": -1}, "seed must be an integer"),
        ({"lr": float("nan")}, "lr must be a finite number, not negative; got nan"),
        ({"weight_decay": -1}, "weight_decay must be a finite number, not negative; got -1"),
        (
            {"vocabulary": "all"},
            "vocabulary must be one of stable, words, full, a list of words or a file of them; 'all' cannot be read",
        ),
        ({"init": "one two three four five"}, "init must be 1 to 4 tokens"),
        ({"banned": list(range(49408))}, "banned leaves no token"),
        ({"impl": "fast"}, "impl must be one of auto"),
        ({"learning_rate": 1}, "'learning_rate' is not an option; the options are prompt_len, "),
        ({"weights": [1, 2]}, "weights must be one for each of the 1 targets; got 2"),
    ],
)
def test_bad_options_are_one_sentence(tiny_clip, images, options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence) as caught:
        pez_fast.invert(images[0], tiny_clip, **{**QUICK, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: pez_fast.invert([], c), "images must hold at least one image"),
        (lambda c: pez_fast.invert_batch([], c), "images must hold at least one image"),
        (lambda c: pez_fast.invert_batch("a.png", c), "images must be a list"),
        (lambda c: pez_fast.invert("missing.png", c), "image missing.png does not exist"),
        (
            lambda c: pez_fast.invert("missing.png", c.model),
            "model must come from load_clip, or have table, bind, .*; got CLIP",
        ),
        (lambda c: pez_fast.distill(" ", c), "text must not be empty; got ' '"),
        (lambda c: pez_fast.distill("a cat", c, ratio=1.5), "ratio must be above 0 and at most 1; got 1.5"),
        (lambda c: pez_fast.distill("a cat", c, ratio=0.5, prompt_len=1), "ratio and prompt_len exclude each other"),
    ],
)
def test_bad_calls_are_one_sentence(tiny_clip, call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call(tiny_clip)


def test_float64_and_low_precision_models_run(tiny_clip64, tiny_clip_dir, images):
    half = pez_fast.load_clip(f"local-dir:{tiny_clip_dir}", device="cpu", dtype=torch.bfloat16)
    for clip in (tiny_clip64, half):
        result = pez_fast.invert(images[0], clip, **QUICK)
        assert result.prompt and -1 <= result.text_score <= 1
