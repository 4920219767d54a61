"""An image of what a pipeline made: for each prompt the original images, the text and the generated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image, ImageDraw

from pez_fast.report.chart import BACK, FAINT, GRAY, INK, write
from pez_fast.report.prompt_text import draw_line, prompt_lines
from pez_fast.report.sheet import BAD, GAP, MARGIN, MOST, THUMB, WIDTH, save_sheet, thumbnail, wrap

COLUMNS, BETWEEN = 4, 8  # generated images in a line of a row, and the pixels between them
MADE = COLUMNS * (THUMB + BETWEEN) - BETWEEN
TEXT = WIDTH - 2 * MARGIN - THUMB - MADE - 2 * GAP


@dataclass(frozen=True)
class MadeRow:
    """A prompt, the images that it was learned from (there may be none), and what was made of it.

    Attributes:
        generated: from `generate`.
    """

    originals: Sequence[Image.Image]
    generated: Any

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        second = self.generated.prompt_2
        return [self.generated.prompt, *([second] if second is not None else [])]

    @property
    def told(self) -> list[str]:
        """What stands below the prompts."""
        made = self.generated
        lines = ["fed as a soft prompt"] if made.soft else []
        for name, values in (("similarity", made.similarity), ("referee", made.referee_similarity)):
            lines += [f"{name} {mean(values):.3f}"] if values else []
        seeds = f"{made.seeds[0]} to {made.seeds[-1]}" if len(made.seeds) > 1 else f"{made.seeds[0]}"
        return [*lines, f"seed {seeds}"]


def write_generated(
    path: Path, generated: Sequence[Any], originals: Sequence[Sequence[Image.Image]], subtitle: str = ""
) -> None:
    """Draws a sheet of generated images into a PNG file.

    Args:
        path: a .png file; see `check_writable`.
        generated: from `generate`, one for each prompt.
        originals: for each prompt the images that it was learned from; there may be none.
        subtitle: stands below the title.
    """
    rows = [MadeRow(images, made) for images, made in zip(originals, generated, strict=True)]
    save_sheet(path, draw_generated(rows, subtitle))


def draw_generated(rows: Sequence[MadeRow], subtitle: str = "") -> Image.Image:
    """The sheet of up to `MOST` rows; how many more there are is said below them."""
    shown, more = rows[:MOST], len(rows) - MOST
    texts = [[line for text in row.texts for line in prompt_lines(text, [], 19, TEXT)] for row in shown]
    notes = [wrap(row.generated.note, 14, TEXT) if row.generated.note else [] for row in shown]
    heights = []
    for row, lines, note in zip(shown, texts, notes, strict=True):
        deep = -(-len(row.generated.images) // COLUMNS) * (THUMB + BETWEEN) - BETWEEN
        heights.append(max(THUMB, deep, 14 + 27 * len(lines) + 20 * len(row.told) + 19 * len(note)) + GAP)
    y = MARGIN + 118
    image = Image.new("RGB", (WIDTH, y + sum(heights) + MARGIN + (20 if more > 0 else 0)), BACK)
    pen = ImageDraw.Draw(image)
    x_text, x_made = MARGIN + THUMB + GAP, WIDTH - MARGIN - MADE
    write(pen, (MARGIN, MARGIN - 8), "Images from learned prompts", 32)
    write(pen, (MARGIN, MARGIN + 38), subtitle, 16, GRAY)
    for x, label in ((MARGIN, "original"), (x_text, "prompt"), (x_made, "generated")):
        write(pen, (x, y - 30), label, 15, GRAY)
    for row, lines, note, height in zip(shown, texts, notes, heights, strict=True):
        pen.line([(MARGIN, y), (WIDTH - MARGIN, y)], FAINT)
        inner = y + GAP // 2
        image.paste(thumbnail(row.originals), (MARGIN, inner))
        for k, line in enumerate(lines):
            draw_line(image, (x_text, inner + 27 * k), line, 19, INK)
        below = inner + 8 + 27 * len(lines)
        for k, text in enumerate(row.told):
            write(pen, (x_text, below + 20 * k), text, 15, GRAY)
        for k, text in enumerate(note):
            write(pen, (x_text, below + 20 * len(row.told) + 19 * k), text, 14, BAD)
        for k, made in enumerate(row.generated.images):
            place = (x_made + k % COLUMNS * (THUMB + BETWEEN), inner + k // COLUMNS * (THUMB + BETWEEN))
            image.paste(thumbnail([made]), place)
        y += height
    if more > 0:
        write(pen, (MARGIN, y + 8), f"and {more} more", 15, GRAY)
    if any(row.generated.similarity or row.generated.referee_similarity for row in shown):
        said = "Similarities are mean cosines of images; those of different models cannot be compared."
        write(pen, (MARGIN, image.height - 30), said, 13, GRAY)
    return image
