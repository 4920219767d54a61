"""Draws labelled images from an emoji font: glyphs, backgrounds, captions.

The bundled model "emoji" was trained on these images. Every emoji has one background colour that it never gets in
training (`held_out_colour`), so that an image of it on that colour is new to the model.

The module needs Debian's `fonts-noto-color-emoji` and the pip package `emoji`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the font's bitmaps have this size alone
GLYPH = 128  # a glyph's square has so many pixels a side
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "turquoise": (64, 210, 200),
    "blue": (40, 90, 210),
    "purple": (120, 50, 160),
    "pink": (250, 160, 195),
    "brown": (115, 70, 35),
    "black": (15, 15, 15),
    "gray": (130, 130, 130),
    "white": (245, 245, 245),
}
COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Glyph:
    name: str
    rgba: np.ndarray  # (GLYPH, GLYPH, 4) uint8


def load_glyphs(font: Path = FONT) -> list[Glyph]:
    """Returns all emoji that the font draws as one glyph, sorted by code point; it omits skin-tone variants."""
    import emoji
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    width = face.getlength("\N{GRINNING FACE}")
    glyphs, seen = [], set()
    for symbol in sorted(emoji.EMOJI_DATA):
        entry = emoji.EMOJI_DATA[symbol]
        if entry["status"] != emoji.STATUS["fully_qualified"] or any(0x1F3FB <= ord(c) <= 0x1F3FF for c in symbol):
            continue
        if face.getlength(symbol) > width:  # the font draws several glyphs: it has no image for this emoji
            continue
        canvas = Image.new("RGBA", (GLYPH + 16, GLYPH + 16), (0, 0, 0, 0))
        ImageDraw.Draw(canvas).text((4, 4), symbol, font=face, embedded_color=True)
        box = canvas.getbbox()
        if box is None:
            continue
        drawn = canvas.crop(box)
        scale = GLYPH / max(drawn.size)
        drawn = drawn.resize((max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))), Image.LANCZOS)
        square = Image.new("RGBA", (GLYPH, GLYPH), (0, 0, 0, 0))
        square.paste(drawn, ((GLYPH - drawn.width) // 2, (GLYPH - drawn.height) // 2))
        pixels = np.asarray(square)
        if pixels.tobytes() in seen:
            continue
        seen.add(pixels.tobytes())
        glyphs.append(Glyph(_readable(entry["en"]), pixels))
    return glyphs


def _readable(alias: str) -> str:
    return alias.strip(":").replace("_", " ").replace("’", "'").replace("“", "").replace("”", "").lower()


def held_out_colour(glyph: int) -> int:
    """Returns the background colour that this emoji never has in training."""
    return (5 * glyph + 3) % len(COLOUR_NAMES)


@dataclass
class Scene:
    """Says what one image shows: one or two glyphs, each at (x, y, size) in fractions of the side."""

    glyphs: list[int]
    places: list[tuple[float, float, float]]
    colour: int
    jitter: tuple[float, float, float]


def random_scene(rng: random.Random, n_glyphs: int, pair: bool = False, colour: int | None = None) -> Scene:
    """Draws a scene to train on; `colour`, if given, is the number of its background colour."""
    jitter = tuple(rng.uniform(-18, 18) for _ in range(3))
    if pair:
        sizes = [rng.uniform(0.38, 0.5) for _ in range(2)]
        along = [rng.uniform(s / 2, 0.5 - s / 2) + 0.5 * k for k, s in enumerate(sizes)]
        across = [rng.uniform(s / 2, 1 - s / 2) for s in sizes]
        order = rng.random() < 0.7  # the two stand side by side, or one above the other
        places = [(a, b, s) if order else (b, a, s) for a, b, s in zip(along, across, sizes, strict=True)]
        chosen = [rng.randrange(n_glyphs) for _ in range(2)]
    else:
        size = rng.uniform(0.5, 0.95)
        places = [(rng.uniform(size / 2, 1 - size / 2), rng.uniform(size / 2, 1 - size / 2), size)]
        chosen = [rng.randrange(n_glyphs)]
    if colour is None:
        excluded = {held_out_colour(g) for g in chosen}
        colour = rng.choice([c for c in range(len(COLOUR_NAMES)) if c not in excluded])
    return Scene(chosen, places, colour, jitter)  # type: ignore[arg-type]


def held_out_scenes(n: int, n_glyphs: int, seed: int) -> list[Scene]:
    """Returns n scenes of one emoji each, all different, each on the colour that it never had in training."""
    rng = random.Random(f"held out {seed}")
    scenes = []
    for glyph in rng.sample(range(n_glyphs), n):
        scene = random_scene(rng, n_glyphs, colour=held_out_colour(glyph))
        scene.glyphs = [glyph]
        scenes.append(scene)
    return scenes


def stack_glyphs(glyphs: list[Glyph]) -> torch.Tensor:
    """Returns pixels (G, 4, GLYPH, GLYPH) in uint8, colour premultiplied by alpha."""
    pixels = torch.from_numpy(np.stack([g.rgba for g in glyphs])).permute(0, 3, 1, 2).float()
    pixels[:, :3] *= pixels[:, 3:] / 255
    return pixels.round().to(torch.uint8)


def compose(scenes: list[Scene], glyphs: torch.Tensor, size: int, oversample: int = 2) -> torch.Tensor:
    """Returns images (B, 3, size, size), float32 in [0, 1]; draws at `oversample` times the size and averages."""
    side = oversample * size
    rgb = torch.tensor(
        [[c + j for c, j in zip(COLOURS[COLOUR_NAMES[s.colour]], s.jitter, strict=True)] for s in scenes]
    )
    canvas = (rgb.clamp(0, 255) / 255).view(-1, 3, 1, 1).expand(-1, 3, side, side).clone()
    for layer in range(max(len(s.glyphs) for s in scenes)):
        rows = [b for b, s in enumerate(scenes) if len(s.glyphs) > layer]
        picked = glyphs[[scenes[b].glyphs[layer] for b in rows]].float() / 255
        if side * 0.7 < GLYPH:  # a coarser copy avoids aliasing where the glyph shrinks
            picked = F.avg_pool2d(picked, 2)
        x, y, s = torch.tensor([scenes[b].places[layer] for b in rows]).unbind(1)
        theta = torch.zeros(len(rows), 2, 3)
        theta[:, 0, 0], theta[:, 0, 2] = 1 / s, (1 - 2 * x) / s
        theta[:, 1, 1], theta[:, 1, 2] = 1 / s, (1 - 2 * y) / s
        grid = F.affine_grid(theta, [len(rows), 4, side, side], align_corners=False)
        drawn = F.grid_sample(picked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        canvas[rows] = canvas[rows] * (1 - drawn[:, 3:]) + drawn[:, :3]
    return F.avg_pool2d(canvas, oversample).clamp(0, 1)


# The captions say "picture" because those that the bundled model learned from did.
SINGLE = (
    "{a} on a {c} background",
    "{c} background with {a}",
    "a picture of {a} on {c}",
    "{a}, {c} background",
    "{c} {a}",
    "an emoji of {a} on {c}",
    "{a} emoji, {c}",
    "the {a} symbol on a {c} background",
    "{a} {c}",
    "a {a} icon in front of {c}",
)
PAIR = (
    "{a} and {b} on a {c} background",
    "{c} background with {a} and {b}",
    "a picture of {a} next to {b} on {c}",
    "{a} {b} {c}",
    "two emoji, {a} and {b}, {c} background",
    "{a} with {b}, {c}",
)


def caption(scene: Scene, names: list[str], rng: random.Random, long: bool = False) -> str:
    """Draws a caption of a scene: a sentence, or a bag of its words (shuffled, thinned, repeated)."""
    a, b = names[scene.glyphs[0]], names[scene.glyphs[-1]]
    colour = COLOUR_NAMES[scene.colour]
    kind = rng.random()
    if kind < 0.55 and not long:
        return rng.choice(PAIR if len(scene.glyphs) > 1 else SINGLE).format(a=a, b=b, c=colour)
    if kind < 0.62 and not long:
        return f"{a} and {b}" if len(scene.glyphs) > 1 else a
    words = (f"{a} {b}" if len(scene.glyphs) > 1 else a).split()
    bag = [w for w in words if rng.random() < 0.85] or words[:]
    if rng.random() < 0.9:
        bag.append(colour)
    if rng.random() < 0.3:
        bag += rng.sample(["background", "emoji", "on", "a", "with", "picture", "the", "icon", "symbol", "and"], 2)
    extra = rng.randrange(20, 50) if long else rng.choice([0, 0, 1, 2, 4, 8, 12])
    bag += rng.choices(bag, k=extra)
    rng.shuffle(bag)
    return " ".join(bag)


def wrong_caption(scene: Scene, names: list[str], words: list[str], rng: random.Random) -> str:
    """Draws a caption that does not fit: noise, the right colour among noise, or the right emoji on another colour."""
    kind = rng.random()
    noise = rng.choices(words, k=rng.randrange(3, 16))
    if kind < 0.4:
        return " ".join(noise)
    if kind < 0.7:
        noise += [COLOUR_NAMES[scene.colour]] * rng.randrange(1, 3)
        rng.shuffle(noise)
        return " ".join(noise)
    other = Scene(
        scene.glyphs, scene.places, (scene.colour + rng.randrange(1, len(COLOUR_NAMES))) % len(COLOUR_NAMES), (0, 0, 0)
    )
    return caption(other, names, rng)
