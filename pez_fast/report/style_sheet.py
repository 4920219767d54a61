"""An image of a style: the pictures that share it, the learned prompt, and the prompts of new subjects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from pez_fast.report.chart import BACK, FAINT, GRAY, INK, LINE, SOFT, write
from pez_fast.report.prompt_text import draw_line, prompt_lines
from pez_fast.report.sheet import GAP, MARGIN, THUMB, WIDTH, save_sheet, thumbnail, wrap
from pez_fast.result import PromptResult, StyledPrompt

INNER = WIDTH - 2 * MARGIN
PICTURES = 7  # in a row; where there are more, the last square holds the rest
MOST = 60  # new prompts on a sheet
BARS = 360  # the width of the bars of a cosine of 1 and its figure
BAR, FIGURE = 290, 60
TEXT = INNER - BARS - GAP
STEP = (INNER - PICTURES * THUMB) // (PICTURES - 1) + THUMB


def write_style(
    path: Path, images: Sequence[Image.Image], style: PromptResult, prompts: Sequence[StyledPrompt]
) -> bool:
    """Draws a style into a PNG file that `check_writable` let through; draws nothing (False) without a prompt."""
    if not style.error:
        save_sheet(path, draw_style(images, style, prompts))
    return not style.error


def draw_style(images: Sequence[Image.Image], style: PromptResult, prompts: Sequence[StyledPrompt]) -> Image.Image:
    """Returns the image of a style.

    Args:
        images: the pictures that share the style.
        style: from `invert`.
        prompts: from `apply_style`.
    """
    learned = prompt_lines(style.prompt, style.tokens, 24, INNER - 120)
    parts = [_part(prompt) for prompt in prompts[:MOST]]
    more = len(prompts) - MOST
    pictures = MARGIN + 78
    text = pictures + THUMB + 20
    table = text + 30 + 34 * len(learned) + 62
    height = table + sum(part.height for part in parts) + MARGIN + 24 * (more > 0)
    image = Image.new("RGB", (WIDTH, height), BACK)
    pen = ImageDraw.Draw(image)
    write(pen, (MARGIN, MARGIN - 8), "A style applied to new subjects", 32)
    facts = f"{len(images)} pictures, model {style.model}, seed {style.seed}, {style.steps} steps"
    write(pen, (MARGIN, MARGIN + 38), facts, 16, GRAY)
    shown = [[picture] for picture in images]
    if len(shown) > PICTURES:
        shown[PICTURES - 1 :] = [list(images[PICTURES - 1 :])]
    for k, group in enumerate(shown):
        image.paste(thumbnail(group), (MARGIN + STEP * k, pictures))
    write(pen, (MARGIN, text), "what they share, as a prompt", 15, GRAY)
    write(pen, (WIDTH - MARGIN, text), "text cosine", 15, GRAY, "ra")
    write(pen, (WIDTH - MARGIN, text + 28), f"{style.text_score:.3f}", 26, INK, "ra")
    for k, line in enumerate(learned):
        draw_line(image, (MARGIN, text + 28 + 34 * k), line, 24)
    write(pen, (MARGIN, table - 28), "new prompts, and in gray the other order", 15, GRAY)
    _legend(pen, table - 28)
    for part in parts:
        image.paste(part, (MARGIN, table))
        table += part.height
    if more > 0:
        write(pen, (MARGIN, table + 4), f"and {more} more", 15, GRAY)
    write(pen, (MARGIN, image.height - 30), "Cosines of different models cannot be compared.", 13, GRAY)
    return image


def _legend(pen: ImageDraw.ImageDraw, y: int) -> None:
    """Writes what the bars are."""
    x = WIDTH - MARGIN - BARS
    write(pen, (x, y), "cosine:", 14, GRAY)
    for name, colour, at in (("new prompt", LINE, x + 64), ("subject alone", SOFT, x + 190)):
        pen.rounded_rectangle((at, y + 4, at + 15, y + 13), 3, colour)
        write(pen, (at + 22, y), name, 14, GRAY)


def _part(prompt: StyledPrompt) -> Image.Image:
    """Returns a new prompt, and its cosine with the style's pictures beside that of its subject alone."""
    lines = [row for text in wrap(prompt.prompt, 19, TEXT) for row in prompt_lines(text, [], 19, TEXT)]
    other = wrap(f"{prompt.other_score:.3f}  {prompt.other_prompt}", 14, TEXT)
    height = max(64, 12 + 27 * len(lines) + 20 * len(other) + 14)
    image = Image.new("RGB", (INNER, height), BACK)
    pen = ImageDraw.Draw(image)
    pen.line([(0, 0), (INNER, 0)], FAINT)
    for k, line in enumerate(lines):
        draw_line(image, (0, 12 + 27 * k), line, 19)
    for k, text in enumerate(other):
        write(pen, (0, 12 + 27 * len(lines) + 20 * k), text, 14, GRAY)
    left = INNER - BARS
    for score, colour, y, size in ((prompt.score, LINE, 14, 16), (prompt.subject_score, SOFT, 38, 14)):
        wide = round(BAR * min(max(score, 0.0), 1.0))
        pen.rounded_rectangle((left, y, left + max(3, wide), y + 15), 4, colour)
        write(pen, (left + max(3, wide) + 10, y + 8), f"{score:.3f}", size, INK if colour == LINE else GRAY, "lm")
    return image
