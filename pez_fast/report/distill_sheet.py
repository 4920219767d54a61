"""An image of a study of distillation: the cosine over the ratio of tokens as a curve, and the prompts below it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from pez_fast.report import chart
from pez_fast.report.chart import BACK, FAINT, FINE, GRAY, INK, LINE, SOFT, write
from pez_fast.report.prompt_text import draw_line, prompt_lines
from pez_fast.report.sheet import BAD, MARGIN, WIDTH, save_sheet, wrap
from pez_fast.result import Distilled

INNER = WIDTH - 2 * MARGIN
PLOT, AXIS, LOWER = 300, 52, 48  # the height of the curve, and the room for lettering left of it and below it
MOST = 40  # texts with their prompts on a sheet
COLUMN = 190  # the width of ratio, tokens and cosine before a prompt
SIZE, ROW = 17, 25
TEXT_SIZE, TEXT_ROW = 18, 26


def write_study(path: Path, rows: Sequence[Distilled]) -> bool:
    """Draws a study into a PNG file that `check_writable` let through; draws nothing (False) without a prompt."""
    learned = any(not row.result.error for row in rows)
    if learned:
        save_sheet(path, draw_study(rows))
    return learned


def draw_study(rows: Sequence[Distilled]) -> Image.Image:
    """Returns the image of a study."""
    texts = list(dict.fromkeys(row.text for row in rows))
    parts = [_part(text, [row for row in rows if row.text == text]) for text in texts[:MOST]]
    top = MARGIN + 80
    more = len(texts) - MOST
    height = top + PLOT + LOWER + 24 + sum(part.height for part in parts) + MARGIN + 24 * (more > 0)
    image = Image.new("RGB", (WIDTH, height), BACK)
    pen = ImageDraw.Draw(image)
    first = next(row.result for row in rows if not row.result.error)
    what = "1 text" if len(texts) == 1 else f"{len(texts)} texts, and their mean"
    write(pen, (MARGIN, MARGIN - 8), "Shorter prompts that mean the same to the model", 32)
    write(pen, (MARGIN, MARGIN + 38), f"{what}, model {first.model}, seed {first.seed}, {first.steps} steps", 16, GRAY)
    image.paste(_curve(rows, texts), (MARGIN, top))
    y = top + PLOT + LOWER + 24
    for part in parts:
        image.paste(part, (MARGIN, y))
        y += part.height
    if more > 0:
        write(pen, (MARGIN, y + 4), f"and {more} more", 15, GRAY)
    write(pen, (MARGIN, image.height - 30), "Cosines of different models cannot be compared.", 13, GRAY)
    return image


def _curve(rows: Sequence[Distilled], texts: Sequence[str]) -> Image.Image:
    """Returns the cosine over the ratio: a line for each text, and for several texts their mean."""
    learned = [row for row in rows if not row.result.error]
    curves = [[(row.ratio, row.result.text_score) for row in learned if row.text == text] for text in texts]
    ratios = sorted({row.ratio for row in learned})
    means = [(r, statistics.mean(row.result.text_score for row in learned if row.ratio == r)) for r in ratios]
    axes = chart.axes_of([[row.result.text_score] for row in learned])

    def place(ratio: float, score: float) -> tuple[float, float]:
        part = (min(max(score, axes.low), axes.high) - axes.low) / (axes.high - axes.low)
        return AXIS + (INNER - AXIS - 30) * ratio / max(1.0, ratios[-1]), 10 + (PLOT - 10) * (1 - part)

    fine = Image.new("RGB", (INNER * FINE, (PLOT + LOWER) * FINE), BACK)
    pen = ImageDraw.Draw(fine)
    for tick in axes.ticks:
        y = round(place(0, tick)[1]) * FINE
        pen.rectangle((AXIS * FINE, y, INNER * FINE - 1, y + FINE - 1), GRAY if tick == axes.low else FAINT)
    for curve in curves if len(texts) > 1 else []:
        _line(pen, [place(*point) for point in sorted(curve)], SOFT, 1.4, 3)
    _line(pen, [place(*point) for point in means], LINE, 2.6, 5)
    image = fine.reduce(FINE)
    pen = ImageDraw.Draw(image)
    for tick in axes.ticks:
        write(pen, (AXIS - 10, round(place(0, tick)[1])), f"{tick + 0.0:.3g}", 13, GRAY, "rm")
    for ratio, score in means:
        x, y = map(round, place(ratio, score))
        pen.line([(x, PLOT), (x, PLOT + 4)], GRAY)
        write(pen, (x, PLOT + 8), f"{ratio:g}", 13, GRAY, "ma")
        write(pen, (x + 9, y + 7), f"{score:.3f}", 14, LINE)
    write(pen, (AXIS + (INNER - AXIS) / 2, PLOT + 28), "tokens of the prompt / tokens of the text", 14, GRAY, "ma")
    write(pen, (AXIS + 8, 10), "cosine of the prompt with the text", 14, GRAY)
    return image


def _line(
    pen: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str, thick: float, radius: int
) -> None:
    """Draws a line through points, and a dot at each."""
    fine = [(x * FINE, y * FINE) for x, y in points]
    if len(fine) > 1:
        pen.line(fine, colour, round(thick * FINE), joint="curve")
    for point in fine:
        pen.circle(point, radius * FINE, colour)


def _part(text: str, rows: Sequence[Distilled]) -> Image.Image:
    """Returns a text with its prompts: for each the ratio, the tokens, the cosine and the prompt."""
    title = wrap(text, TEXT_SIZE, INNER)
    shown = [
        prompt_lines(row.result.error or row.result.prompt, row.result.tokens, SIZE, INNER - COLUMN) for row in rows
    ]
    height = 14 + TEXT_ROW * len(title) + 26 + sum(ROW * len(lines) + 6 for lines in shown) + 16
    image = Image.new("RGB", (INNER, height), BACK)
    pen = ImageDraw.Draw(image)
    pen.line([(0, 0), (INNER, 0)], FAINT)
    for k, line in enumerate(title):
        write(pen, (0, 12 + TEXT_ROW * k), line, TEXT_SIZE)
    y = 14 + TEXT_ROW * len(title)
    for right, name in ((40, "ratio"), (100, "tokens"), (164, "cosine")):
        write(pen, (right, y + 4), name, 13, GRAY, "ra")
    write(pen, (COLUMN, y + 4), f"the text has {rows[0].text_tokens} tokens", 13, GRAY)
    y += 26
    for row, prompt in zip(rows, shown, strict=True):
        write(pen, (40, y + 2), f"{row.ratio:g}", 15, GRAY, "ra")
        if not row.result.error:
            write(pen, (100, y + 2), f"{len(row.result.ids)}", 15, GRAY, "ra")
            write(pen, (164, y + 2), f"{row.result.text_score:.3f}", 15, INK, "ra")
        for runs in prompt:
            draw_line(image, (COLUMN, y), runs, SIZE, BAD if row.result.error else INK)
            y += ROW
        y += 6
    return image
