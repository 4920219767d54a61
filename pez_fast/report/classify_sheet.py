"""An image of a prompt learned for a classification: the way to it, what it changes, and how it serves other models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from pez_fast.report import chart
from pez_fast.report.chart import BACK, FAINT, GRAY, INK, LINE, length, plain, write
from pez_fast.report.classify_console import Transferred
from pez_fast.report.prompt_text import draw_line, prompt_lines
from pez_fast.report.sheet import BAD, GAP, MARGIN, WIDTH, save_sheet, wrap
from pez_fast.result import ClassifierResult, ClassifierScores, PromptResult

INNER = WIDTH - 2 * MARGIN
COLUMNS = (MARGIN, MARGIN + chart.WIDTH + GAP, MARGIN + 2 * (chart.WIDTH + GAP))
BARS = WIDTH - MARGIN - COLUMNS[2]  # the width of the last column
BAR, BAR_ROW = BARS - 66, 46  # the width of a bar of accuracy 1, and the height of a model's row
NAMES = 104  # the width of the labels beside a table of confusion
CELL, LEAST_CELL = (92, 46), 6  # the largest width and height of its cells, and the least
PROMPT_SIZE, PROMPT_ROW, MOST_LINES = 22, 32, 40
MOST_BARS = 40
HIT, MISS = (31, 95, 208), (179, 38, 30)  # full shades of the cells on the diagonal and off it


def write_classifier_sheet(
    path: Path,
    result: ClassifierResult,
    before: ClassifierScores | None,
    after: ClassifierScores | None,
    transferred: Sequence[Transferred],
    rows: str,
) -> None:
    """Draws a learned prompt into a PNG file.

    Args:
        path: a file that `check_writable` let through.
        result: from `learn_classifier`.
        before, after: the scores of the template alone and of the prompt, or None.
        transferred: how the prompt serves other models.
        rows: what examples these scores are of, such as "test".
    """
    save_sheet(path, draw_classifier_sheet(result, before, after, transferred, rows))


def draw_classifier_sheet(
    result: ClassifierResult,
    before: ClassifierScores | None = None,
    after: ClassifierScores | None = None,
    transferred: Sequence[Transferred] = (),
    rows: str = "test",
) -> Image.Image:
    """Returns the image of a learned prompt; as for `write_classifier_sheet`."""
    facts = wrap(_facts(result), 16, INNER) + wrap(f"template: {result.template}", 16, INNER)[:4]
    lines = prompt_lines(result.error or result.prompt, result.tokens, PROMPT_SIZE, INNER)
    cut = len(lines) > MOST_LINES
    lines = lines[:MOST_LINES]
    top = MARGIN + 46 + 23 * len(facts) + 16
    figures = top + 38 + PROMPT_ROW * len(lines) + 26 * cut + 14
    charts = figures + 100
    below = charts + chart.HEIGHT + GAP
    bars = [Transferred(result.model, before, after), *transferred][:MOST_BARS] if after is not None else []
    tables = [_confusion(scores) for scores in (before, after) if scores is not None]
    left = below + max((table.height + 36 for table in tables), default=-GAP)
    right = charts + BAR_ROW * len(bars) + 24
    image = Image.new("RGB", (WIDTH, max(left, right) + MARGIN), BACK)
    pen = ImageDraw.Draw(image)
    write(pen, (MARGIN, MARGIN - 8), "Prompt learned for a classification", 32)
    for k, fact in enumerate(facts):
        write(pen, (MARGIN, MARGIN + 38 + 23 * k), fact, 16, GRAY)
    pen.line([(MARGIN, top), (WIDTH - MARGIN, top)], FAINT)
    write(pen, (MARGIN, top + 10), "learned prompt", 15, GRAY)
    for k, line in enumerate(lines):
        draw_line(image, (MARGIN, top + 38 + PROMPT_ROW * k), line, PROMPT_SIZE, BAD if result.error else INK)
    if cut:
        write(pen, (MARGIN, top + 38 + PROMPT_ROW * len(lines)), "and more", 15, GRAY)
    _write_figures(pen, figures, result, before, after, rows)
    if result.curve:
        _draw_charts(image, charts, result)
    names = [name for name, scores in (("the template alone", before), ("the prompt", after)) if scores is not None]
    for x, name, table in zip(COLUMNS, names, tables, strict=False):
        write(pen, (x, below), f"{rows} examples with {name}", 15, GRAY)
        image.paste(table, (x, below + 30))
    if bars:
        _draw_bars(pen, charts, bars, rows)
    return image


def _facts(result: ClassifierResult) -> str:
    """Returns the line below the title."""
    shown = [
        f"model {result.model}",
        f"fluency {result.fluency:g}",
        f"seed {result.seed}",
        f"{len(result.ids)} tokens",
        f"learned from {result.examples} examples and chosen on {result.held_out}",
        f"{result.steps} steps",
        f"{result.seconds:.1f} s",
    ]
    return ", ".join(shown)


def _write_figures(
    pen: ImageDraw.ImageDraw, y: int, result: ClassifierResult, before: object, after: object, rows: str
) -> None:
    """Writes the numbers of a prompt beside one another."""
    numbers = (result.accuracy, 3), (result.loss, 3), (result.perplexity, 0)
    values = ["-" if value is None or value != value else f"{value:.{digits}f}" for value, digits in numbers]
    shown = list(zip(("held-out accuracy", "held-out loss", "perplexity"), values, strict=True))
    for name, scores in (("template alone", before), ("with the prompt", after)):
        if isinstance(scores, ClassifierScores) and rows == "test":
            shown.append((f"test accuracy, {name}", f"{scores.accuracy:.3f}"))
    for k, (name, value) in enumerate(shown):
        x = MARGIN + round(INNER * sum((0.17, 0.13, 0.15, 0.28, 0.27)[:k]))
        write(pen, (x, y), name, 15, GRAY)
        write(pen, (x, y + 20), value, 26)


def _draw_charts(image: Image.Image, y: int, result: ClassifierResult) -> None:
    """Draws accuracy and loss on the held-out examples over the steps."""
    pen = ImageDraw.Draw(image)
    size = max(step for step, *_ in result.curve) + 1
    for k, (name, best) in enumerate((("accuracy over the steps", max), ("loss", min))):
        history = [math.nan] * size
        for point in result.curve:
            history[point[0]] = point[1 + k]
        axes = chart.axes_of([history], best=best)
        if best is max:  # no accuracy is above 1
            ticks = tuple(tick for tick in axes.ticks if tick < 1.001)
            axes = replace(axes, ticks=ticks, high=ticks[-1])
        seconds = result.seconds if size == result.steps + 1 else 0.0
        curve = PromptResult(history=history, seconds=seconds)
        write(pen, (COLUMNS[k], y - 26), name, 15, GRAY)
        image.paste(chart.draw_chart(curve, axes), (COLUMNS[k], y))
    chart.draw_legend(image, COLUMNS[1] + chart.WIDTH, y - 25, False)


def _confusion(scores: ClassifierScores) -> Image.Image:
    """Returns the table of confusion: a row for each label, a column for each predicted label, shaded by its share."""
    count = len(scores.labels)
    width = max(LEAST_CELL, min(CELL[0], (chart.WIDTH - NAMES) // count))
    height = min(width, CELL[1])
    names = [_short(name, 13, NAMES - 10) for name in scores.labels] if height >= 14 else []
    longest = max((length(name, 13) for name in names), default=0.0)
    upright = longest > width - 6
    head = 0 if not names else round(longest) + 14 if upright else 22
    image = Image.new("RGB", (chart.WIDTH, head + height * count + 26), BACK)
    pen = ImageDraw.Draw(image)
    for k, name in enumerate(names):
        middle = NAMES + width * k + width // 2
        write(pen, (NAMES - 8, head + height * k + height // 2), name, 13, INK, "rm")
        if upright:
            image.paste(_upright(name, head), (middle - 9, 0))
        else:
            write(pen, (middle, head - 8), name, 13, INK, "ms")
    texts, size = _numbers(scores.confusion, width, height)
    for i, row in enumerate(scores.confusion):
        for j, number in enumerate(row):
            share, full = number / max(1, sum(row)), HIT if i == j else MISS
            colour = tuple(round(255 - share * (255 - part)) for part in full)
            x, y = NAMES + width * j, head + height * i
            pen.rectangle((x, y, x + width - 2, y + height - 2), colour if number else "#f3f5f7")
            if size:
                at = (x + width // 2 - 1, y + height // 2)
                write(pen, at, texts[i][j], size, BACK if share > 0.65 else INK, "mm")
    write(pen, (NAMES, head + height * count + 6), "columns: predicted, rows: true", 13, GRAY)
    return image


def _numbers(confusion: Sequence[Sequence[int]], width: int, height: int) -> tuple[list[list[str]], int]:
    """Returns how the numbers of a table are written, and their size; 0 where they do not fit into its cells."""
    exact = [[str(number) for number in row] for row in confusion]
    rounded = [[f"{number / 1000:.0f}k" if number >= 1000 else str(number) for number in row] for row in confusion]
    for texts in (exact, rounded):
        for size in (15, 13, 11, 9):
            if size + 3 <= height and max(length(text, size) for row in texts for text in row) <= width - 4:
                return texts, size
    return exact, 0


def _upright(text: str, room: int) -> Image.Image:
    """Returns a text that is read from below."""
    flat = Image.new("RGB", (room, 18), BACK)
    write(ImageDraw.Draw(flat), (6, 9), text, 13, INK, "lm")
    return flat.transpose(Image.Transpose.ROTATE_90)


def _draw_bars(pen: ImageDraw.ImageDraw, y: int, bars: Sequence[Transferred], rows: str) -> None:
    """Draws the accuracy of a prompt with each model, and a mark for the template alone."""
    x = COLUMNS[2]
    write(pen, (x, y - 26), f"{rows} accuracy by model", 15, GRAY)
    for k, bar in enumerate(bars):
        top = y + BAR_ROW * k
        write(pen, (x, top), _short(bar.model, 14, BARS), 14)
        if bar.prompt is None or bar.alone is None:
            write(pen, (x, top + 20), "no scores", 14, BAD)
            continue
        pen.rectangle((x, top + 21, x + BAR, top + 35), FAINT)
        pen.rectangle((x, top + 21, x + round(BAR * bar.prompt.accuracy), top + 35), LINE)
        mark = x + round(BAR * bar.alone.accuracy)
        pen.rectangle((mark - 2, top + 17, mark + 2, top + 39), BACK)
        pen.rectangle((mark - 1, top + 17, mark + 1, top + 39), INK)
        write(pen, (WIDTH - MARGIN, top + 28), f"{bar.prompt.accuracy:.3f}", 16, INK, "rm")
    end = y + BAR_ROW * len(bars) + 4
    pen.rectangle((x, end, x + 2, end + 14), INK)
    write(pen, (x + 10, end - 1), "template alone", 13, GRAY)


def _short(text: str, size: int, width: int) -> str:
    """Returns a text that is no wider than `width` pixels, its end cut off if need be."""
    text = plain(text)
    if length(text, size) <= width:
        return text
    while text and length(text + "...", size) > width:
        text = text[:-1]
    return text.rstrip() + "..."
