"""Prompts that a search finds on the bundled model, and prompts that differ from them in a few words."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import NamedTuple

import emoji_images
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from train_emoji_clip import SIZE, Data, normalised

import pez_fast
from pez_fast.methods import GCGMethod, PEZMethod
from pez_fast.models import ClipEncoder
from pez_fast.objectives import Similarity

SMALL_WORDS = frozenset("a and at for in of on the with &".split())
NEUTRAL = "background emoji on a with picture the icon symbol and".split()
GCG_STEPS = 8
SOT, EOT = 49406, 49407


class Found(NamedTuple):
    """A prompt that a search found, and the number of the scene that it was found for."""

    scene: int
    ids: list[int]


def read(files: list[Path]) -> Tensor:
    """Returns normalised images (N, 3, SIZE, SIZE) of files of that size."""
    pixels = [np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files]
    return normalised(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))


@torch.no_grad()
def last_maps(model: open_clip.CLIP, pixels: Tensor) -> Tensor:
    """Returns what enters the last layer of the image tower, (N, C, H, W)."""
    tower = model.visual
    return tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(pixels)))))


class Bank:
    """Scenes with the features of their images, and the tokens of their names and colours."""

    def __init__(self, data: Data, model: open_clip.CLIP, size: int, rng: random.Random) -> None:
        self.data, self.rng = data, rng
        count = len(data.names)
        self.scenes = [emoji_images.random_scene(rng, count, pair=k % 4 == 3) for k in range(size)]
        self.maps = torch.cat([self._maps(model, self.scenes[k : k + 64]) for k in range(0, size, 64)])
        self.single = [k for k, scene in enumerate(self.scenes) if len(scene.glyphs) == 1]
        encode = data.tokenizer.encode
        self.names = [[encode(w) for w in name.split()] for name in data.names]
        self.neutral = [encode(word) for word in NEUTRAL]
        self.colours = [encode(colour) for colour in emoji_images.COLOUR_NAMES]

    def _maps(self, model: open_clip.CLIP, scenes: list[emoji_images.Scene]) -> Tensor:
        return last_maps(model, self.pixels(scenes)).half()

    def pixels(self, scenes: list[emoji_images.Scene]) -> Tensor:
        """Returns normalised images (N, 3, SIZE, SIZE) of scenes."""
        return normalised(emoji_images.compose(scenes, self.data.glyphs, SIZE, self.rng.choice([1, 2, 2, 4])))

    def features(self, model: open_clip.CLIP, scenes: list[int]) -> Tensor:
        """Returns unit features (N, D) of the images of some scenes."""
        return F.normalize(model.visual.attnpool(self.maps[scenes].float()), dim=-1)

    def own(self, scene: int) -> set[int]:
        """Returns the tokens of a scene's name, small words left out."""
        glyph = self.scenes[scene].glyphs[0]
        words = zip(self.data.names[glyph].split(), self.names[glyph], strict=True)
        return {i for word, ids in words if word not in SMALL_WORDS for i in ids}


def family(found: Found, bank: Bank, rng: random.Random) -> tuple[list[list[int]], float]:
    """Returns five prompts, and the share of the last one's tokens that belong to the image.

    They are the prompt as it was found, and with colour, name, another's name and colour, name and colour put in."""
    scene = bank.scenes[found.scene]
    colour = bank.colours[scene.colour]
    other = rng.randrange(len(bank.names))
    name, wrong = (_some_words(bank.names[glyph], rng) for glyph in (scene.glyphs[0], other))
    base = [i for i in found.ids if i not in colour]
    words = [*name, colour]
    more = rng.randrange(len(found.ids))
    while sum(map(len, words)) < more:
        words.append(rng.choice([*name, colour, rng.choice(bank.neutral)]))
    members = [
        found.ids,
        _put_in(found.ids, [colour], rng),
        _put_in(base, name, rng),
        _put_in(found.ids, [*wrong, colour], rng),
        _put_in(found.ids, words, rng),
    ]
    return members, min(1.0, sum(map(len, words)) / len(members[-1]))


def _some_words(words: list[list[int]], rng: random.Random) -> list[list[int]]:
    """Returns all words of a name, in one piece, or some of them."""
    if rng.random() < 0.4:
        return [[i for word in words for i in word]]
    return rng.sample(words, rng.randint(1, min(3, len(words))))


def _put_in(ids: list[int], words: list[list[int]], rng: random.Random) -> list[int]:
    """Returns the ids with words in place of as many tokens, at random places; each word stays in one piece."""
    kept = list(ids)
    for _ in range(min(sum(map(len, words)), len(kept))):
        kept.pop(rng.randrange(len(kept)))
    parts: list[list[int]] = [[i] for i in kept]
    for word in words:
        parts.insert(rng.randrange(len(parts) + 1), word)
    return [i for part in parts for i in part]


def contexts(prompts: list[list[int]]) -> Tensor:
    """Returns ids (N, longest + 2) between start and end of text, padded with zeros."""
    length = max(map(len, prompts)) + 2
    return torch.tensor([[SOT, *p, EOT] + [0] * (length - 2 - len(p)) for p in prompts])


def encode(model: open_clip.CLIP, ids: Tensor) -> Tensor:
    """Computes unit features (N, D) of contexts ids (N, L)."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)]
    return F.normalize(x @ model.text_projection, dim=-1)


def attack(
    model: open_clip.CLIP, bank: Bank, known: list[int], count: int, rng: random.Random
) -> tuple[list[Found], float, float]:
    """Returns prompts that a search finds now for scenes of one thing, the share that name it, and the mean cosine."""
    clip = ClipEncoder(copy.deepcopy(model), bank.data.tokenizer, None, known_ids=known)
    scenes = rng.sample(bank.single, count)
    length, steps = rng.choice([6, 8, 16, 16, 16]), rng.choice([20, 40, 60])
    results = pez_fast.search(
        Similarity(bank.features(model, scenes).detach()),
        clip,
        prompt_len=length,
        stages=[(PEZMethod(), steps), (GCGMethod(search_width=16), GCG_STEPS)],
        seed=rng.randrange(1 << 30),
        batch_size=count,
    )
    found = [Found(scene, list(result.ids)) for scene, result in zip(scenes, results, strict=True)]
    named = sum(bool(bank.own(f.scene) & set(f.ids)) for f in found) / count
    cosine = sum(result.text_score for result in results) / count
    return [_without_name(f, bank, known, rng) for f in found], named, cosine


def _without_name(found: Found, bank: Bank, known: list[int], rng: random.Random) -> Found:
    own = bank.own(found.scene)
    return found._replace(ids=[rng.choice(known) if i in own else i for i in found.ids])
