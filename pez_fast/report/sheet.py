"""An image of what was learned: for each target its thumbnail, the prompt, the cosine and the way to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from pez_fast.report import chart
from pez_fast.report.chart import BACK, FAINT, FINE, GRAY, INK, length, plain, write
from pez_fast.report.output import check_file
from pez_fast.report.prompt_text import draw_line, prompt_lines
from pez_fast.result import PromptResult

WIDTH, MARGIN, GAP = 1200, 48, 32
THUMB = chart.HEIGHT
SCORE = 96
TEXT = WIDTH - 2 * MARGIN - THUMB - chart.WIDTH - SCORE - 3 * GAP
BAD = "#b3261e"  # errors and notes
MOST = 200  # rows of a sheet
SOFTWARE = "pez_fast sheet"  # how a sheet is known again


@dataclass(frozen=True)
class Row:
    """One learned prompt and the images that it was learned from."""

    name: str
    images: Sequence[Image.Image]
    result: PromptResult


def check_writable(path: Path, inputs: Sequence[str | Path] = ()) -> None:
    """Raise ValueError, before anything is searched, if a sheet could not be written there, or must not.

    A sheet is written over another sheet, but over no other file, and never over one of `inputs`.
    """
    check_file(path, "sheet", ".png", inputs, "an image", _is_sheet)


def write_sheet(
    path: Path, names: Sequence[str], images: Sequence[Sequence[Image.Image]], results: Sequence[PromptResult]
) -> bool:
    """Draws a sheet of results into a PNG file; draws nothing (False) without a prompt."""
    learned = [result for result in results if not result.error]
    if learned:
        steps, first = max(result.steps for result in learned), learned[0]
        subtitle = f"model {first.model}, seed {first.seed}, {steps} steps, {first.seconds:.1f} s"
        rows = [Row(*row) for row in zip(names, images, results, strict=True)]
        save_sheet(path, draw_sheet(rows, "Prompts learned from images", subtitle))
    return bool(learned)


def save_sheet(path: Path, drawn: Image.Image) -> None:
    """Writes a sheet into a PNG file that `check_writable` knows again."""
    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    try:
        drawn.save(path, format="PNG", pnginfo=mark)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"the sheet {path} could not be written: {reason}; the prompts are printed all the same, and the same "
            "command with --sheet elsewhere draws it"
        ) from None


def _is_sheet(path: Path) -> bool:
    """Whether a file is a sheet that `write_sheet` wrote, or is empty."""
    if not path.stat().st_size:
        return True
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def draw_sheet(rows: Sequence[Row], title: str, subtitle: str) -> Image.Image:
    """The sheet of up to `MOST` rows; how many more there are is said below them."""
    shown, more = rows[:MOST], len(rows) - MOST
    texts = [prompt_lines(row.result.error or row.result.prompt, row.result.tokens, 19, TEXT) for row in shown]
    notes = [wrap(row.result.note, 14, TEXT) if row.result.note else [] for row in shown]
    heights = [
        max(THUMB, 44 + 27 * len(lines) + 19 * len(note)) + GAP for lines, note in zip(texts, notes, strict=True)
    ]
    y = MARGIN + 118
    image = Image.new("RGB", (WIDTH, y + sum(heights) + MARGIN + (20 if more > 0 else 0)), BACK)
    pen = ImageDraw.Draw(image)
    x_text, x_chart = MARGIN + THUMB + GAP, WIDTH - MARGIN - chart.WIDTH
    x_score = x_chart - GAP
    write(pen, (MARGIN, MARGIN - 8), title, 32)
    write(pen, (MARGIN, MARGIN + 38), subtitle, 16, GRAY)
    for x, label in ((MARGIN, "target"), (x_text, "learned prompt"), (x_chart, "cosine")):
        write(pen, (x, y - 30), label, 15, GRAY)
    write(pen, (x_score, y - 30), "text cosine", 15, GRAY, "ra")
    axes = chart.axes_of([row.result.history for row in shown], [chart.refined_score(row.result) for row in shown])
    chart.draw_legend(image, WIDTH - MARGIN, y - 29, axes.refined)
    for row, lines, note, height in zip(shown, texts, notes, heights, strict=True):
        pen.line([(MARGIN, y), (WIDTH - MARGIN, y)], FAINT)
        inner = y + GAP // 2
        image.paste(thumbnail(row.images), (MARGIN, inner))
        name, *rest = wrap(row.name, 15, TEXT - 16)
        write(pen, (x_text, inner + 2), name + ("..." if rest else ""), 15, GRAY)
        for k, line in enumerate(lines):
            draw_line(image, (x_text, inner + 32 + 27 * k), line, 19, BAD if row.result.error else INK)
        for k, text in enumerate(note):
            write(pen, (x_text, inner + 36 + 27 * len(lines) + 19 * k), text, 14, BAD)
        if not row.result.error:
            write(pen, (x_score, inner + 26), f"{row.result.text_score:.3f}", 26, INK, "ra")
            image.paste(chart.draw_chart(row.result, axes), (x_chart, inner))
        y += height
    if more > 0:
        write(pen, (MARGIN, y + 8), f"and {more} more", 15, GRAY)
    write(pen, (MARGIN, image.height - 30), "Cosines of different models cannot be compared.", 13, GRAY)
    return image


def wrap(text: str, size: int, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is longer is broken."""
    lines = [""]
    for word in plain(text).split():
        if lines[-1] and length(f"{lines[-1]} {word}", size) > width:
            lines.append("")
        lines[-1] += " " if lines[-1] else ""
        for character in word:
            if length(lines[-1] + character, size) > width:
                lines.append("")
            lines[-1] += character
    return lines


def thumbnail(images: Sequence[Image.Image]) -> Image.Image:
    """The images as a square of squares, with rounded corners."""
    square = Image.new("RGB", (THUMB, THUMB), BACK if images else "#f3f5f7")
    side = max(1, min(4, math.ceil(math.sqrt(len(images)))))
    cell = (THUMB - 4 * (side - 1)) // side
    mask = Image.new("L", (cell * FINE, cell * FINE))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, cell * FINE - 1, cell * FINE - 1), 8 * FINE / side, 255)
    for k, image in enumerate(images[: side * side]):
        small = ImageOps.fit(image.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS)
        square.paste(small, (k % side * (cell + 4), k // side * (cell + 4)), mask.reduce(FINE))
    return square
