"""The bundled model: it is small enough to ship, and it knows held-out images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import pez_fast
from pez_fast.models.loading import BUNDLED

HELD_OUT = Path(__file__).parents[1] / "benchmarks" / "heldout"


@pytest.fixture(scope="module")
def emoji():
    return pez_fast.load_clip("emoji", device="cpu")


@pytest.fixture(scope="module")
def labels():
    return json.loads((HELD_OUT / "labels.json").read_text(encoding="utf-8"))


def test_it_is_small_and_says_where_it_comes_from():
    folder = BUNDLED["emoji"]
    assert (folder / "open_clip_model.safetensors").stat().st_size <= 20_000_000
    assert "SIL Open Font License" in (folder / "NOTICE").read_text(encoding="utf-8")
    assert len(list((folder / "images").glob("*.png"))) >= 6


def test_it_knows_held_out_images(emoji, labels):
    image = emoji.encode_images([HELD_OUT / label["file"] for label in labels])
    text = emoji.encode_texts([f"{label['name']} on a {label['colour']} background" for label in labels])
    correct = (image @ text.T).argmax(1) == torch.arange(len(labels))
    assert len(labels) == 200 and correct.float().mean() > 0.9


def test_only_tokens_seen_in_training_are_learned(emoji):
    seen = set(json.loads((BUNDLED["emoji"] / "tokens.json").read_text())["tokens_seen"])
    allowed = emoji.table().allowed.nonzero()[:, 0].tolist()
    assert 1000 < len(allowed) < len(seen) and set(allowed) < seen


def test_prompts_name_the_colour_and_do_not_depend_on_the_batch(emoji, labels):
    images = [Image.open(HELD_OUT / label["file"]) for label in labels[20:32]]
    results = pez_fast.invert_batch(images, emoji, steps=60, restarts=2)
    assert sum(label["colour"] in r.prompt.split() for label, r in zip(labels[20:32], results, strict=True)) >= 9
    for k in (0, 7):
        single = pez_fast.invert(images[k], emoji, steps=60, restarts=2)
        assert {**single.to_dict(), "seconds": 0} == {**results[k].to_dict(), "seconds": 0}
