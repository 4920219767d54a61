"""An image of what was learned: for each target its thumbnail, the prompt, the cosine and the way to it."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pez_fast.result import PromptResult

INK, GRAY, FAINT, LINE, SOFT, BACK, RAISED = "#17202c", "#667180", "#dfe3e8", "#1f5fd0", "#a9c5f5", "#ffffff", "#1a8f5a"
WIDTH, MARGIN, GAP = 1200, 48, 32
THUMB = 132
CHART = 380  # the width of a chart with its labels
SCORE = 96
TEXT = WIDTH - 2 * MARGIN - THUMB - CHART - SCORE - 3 * GAP
REFINE_WIDTH = 24  # from the end of a curve to the score after refining, which is not part of it
RISE = 0.004  # less may be the dtype of the search, in which curves are
FINE = 4  # curves are drawn at so many times the size and averaged down
MOST = 200  # rows of a sheet


@dataclass(frozen=True)
class Row:
    """One learned prompt and the images that it was learned from."""

    name: str
    images: Sequence[Image.Image]
    result: PromptResult


@dataclass(frozen=True)
class _Axes:
    """What all charts of a sheet share: the range of scores with its ticks, that of steps, and whether a score rose behind them."""

    low: float
    high: float
    gap: float
    ticks: tuple[float, ...]
    steps: int
    step_ticks: tuple[int, ...]
    refined: bool


def check_writable(path: Path) -> None:
    """Raise ValueError, before anything is searched, if a sheet could not be written there."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"the sheet must be a .png file; got {str(path)!r}")
    new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ValueError(f"the sheet {path} cannot be written: {error.strerror}") from None
    if new:
        path.unlink()


def write_sheet(
    path: Path, names: Sequence[str], images: Sequence[Sequence[Image.Image]], results: Sequence[PromptResult]
) -> bool:
    """Draw a sheet of results into a PNG file, over one that may be there; nothing (False) where nothing was learned."""
    learned = [result for result in results if not result.error]
    if learned:
        steps, first = max(result.steps for result in learned), learned[0]
        subtitle = f"model {first.model}, seed {first.seed}, {steps} steps, {first.seconds:.1f} s"
        rows = [Row(*row) for row in zip(names, images, results, strict=True)]
        draw_sheet(rows, "Prompts learned from images", subtitle).save(path, format="PNG")
    return bool(learned)


def draw_sheet(rows: Sequence[Row], title: str, subtitle: str) -> Image.Image:
    """The sheet of up to `MOST` rows; how many more there are is said below them."""
    shown = rows[:MOST]
    texts = [_wrap(row.result.error or row.result.prompt, 19, TEXT) for row in shown]
    heights = [max(THUMB, 44 + 27 * len(lines)) + GAP for lines in texts]
    top = MARGIN + 118
    image = Image.new("RGB", (WIDTH, top + sum(heights) + MARGIN + (20 if len(rows) > MOST else 0)), BACK)
    pen = ImageDraw.Draw(image)
    x_text, x_score, x_chart = MARGIN + THUMB + GAP, WIDTH - MARGIN - CHART - GAP - SCORE, WIDTH - MARGIN - CHART
    _write(pen, (MARGIN, MARGIN - 8), title, 32)
    _write(pen, (MARGIN, MARGIN + 38), subtitle, 16, GRAY)
    y = top - 30
    for x, label in ((MARGIN, "target"), (x_text, "learned prompt"), (x_chart, "cosine")):
        _write(pen, (x, y), label, 15, GRAY)
    _write(pen, (x_score + SCORE, y), "text cosine", 15, GRAY, "ra")
    axes = _axes([row.result.history for row in shown], [_refined(row.result) for row in shown])
    _legend(image, pen, WIDTH - MARGIN, y, axes.refined)
    y = top
    for row, lines, height in zip(shown, texts, heights, strict=True):
        pen.line([(MARGIN, y), (WIDTH - MARGIN, y)], FAINT)
        inner = y + GAP // 2
        image.paste(_thumbnail(row.images), (MARGIN, inner))
        _write(pen, (x_text, inner + 2), _fit(row.name, 15, TEXT), 15, GRAY)
        for k, line in enumerate(lines):
            _write(pen, (x_text, inner + 32 + 27 * k), line, 19, "#b3261e" if row.result.error else INK)
        if not row.result.error:
            _write(pen, (x_score + SCORE, inner + 26), f"{row.result.text_score:.3f}", 26, INK, "ra")
            _chart(image, pen, x_chart, inner, row.result, axes)
        y += height
    if len(rows) > MOST:
        _write(pen, (MARGIN, y + 8), f"and {len(rows) - MOST} more", 15, GRAY)
    return image


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _drawable(character: str) -> str:
    """The character, or where the font lacks it: the name of a symbol, the escape of anything else."""

    def pixels(text: str) -> bytes:
        return bytes(_font(24).getmask(text))

    if character == " " or (character.isprintable() and pixels(character) != pixels("\uffff")):
        return character
    if unicodedata.category(character).startswith("S"):
        return f"[{unicodedata.name(character, hex(ord(character))).lower()}]"
    return character.encode("unicode_escape").decode()


def _plain(text: str) -> str:
    return "".join(map(_drawable, text))


def _space(size: int) -> int:
    return round(0.3 * size)  # that of the font is too narrow at these sizes


def _length(text: str, size: int) -> float:
    words = text.split(" ")
    return sum(_font(size).getlength(word) for word in words) + _space(size) * (len(words) - 1)


def _wrap(text: str, size: int, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is longer is broken."""
    lines = [""]
    for word in _plain(text).split():
        if lines[-1] and _length(f"{lines[-1]} {word}", size) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while _length(lines[-1], size) > width:
            part = _longest(lines[-1], size, width)
            lines[-1:] = [lines[-1][:part], lines[-1][part:]]
    return lines


def _fit(text: str, size: int, width: int) -> str:
    text = _plain(text)
    if _length(text, size) <= width:
        return text
    return text[: _longest(text, size, width - _length("...", size))].rstrip() + "..."


def _longest(text: str, size: int, width: float) -> int:
    """How many characters fit, at least one."""
    return max(1, bisect_right(range(len(text)), width, key=lambda k: _length(text[: k + 1], size)))


def _write(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str = INK, anchor: str = "la"
) -> None:
    """Anchors as in Pillow, for one line."""
    text = _plain(text)
    x = at[0] - _length(text, size) * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
    for word in text.split(" "):
        pen.text((round(x), at[1]), word, fill=colour, font=_font(size), anchor="l" + anchor[1])
        x += _font(size).getlength(word) + _space(size)


def _thumbnail(images: Sequence[Image.Image]) -> Image.Image:
    """The images as a square of squares, with rounded corners."""
    square = Image.new("RGB", (THUMB, THUMB), BACK)
    if not images:
        return Image.new("RGB", (THUMB, THUMB), "#f3f5f7")
    side = min(4, math.ceil(math.sqrt(len(images))))
    cell = (THUMB - 4 * (side - 1)) // side
    mask = Image.new("L", (cell * FINE, cell * FINE))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, cell * FINE - 1, cell * FINE - 1), 8 * FINE / side, 255)
    mask = mask.resize((cell, cell), Image.Resampling.BOX)
    for k, image in enumerate(images[: side * side]):
        edge = min(image.size)
        left, upper = (image.width - edge) // 2, (image.height - edge) // 2
        small = image.convert("RGB").resize(
            (cell, cell), Image.Resampling.LANCZOS, (left, upper, left + edge, upper + edge)
        )
        square.paste(small, (k % side * (cell + 4), k // side * (cell + 4)), mask)
    return square


def _refined(result: PromptResult) -> float | None:
    """The score after refining, where it is above all of the curve."""
    score = result.ids_score if math.isfinite(result.ids_score) else result.text_score
    return score if score > max(filter(math.isfinite, result.history), default=math.inf) + RISE else None


def _axes(histories: Sequence[Sequence[float]], refined: Sequence[float | None] = ()) -> _Axes:
    risen = [score for score in refined if score is not None]
    best = [score for history in histories for score in accumulate(filter(math.isfinite, history), max)] + risen
    low, high = (min(best), max(best)) if best else (0.0, 1.0)
    if high > 0:
        low = max(low, 0.0)  # random words can begin below; that short part is left out
    gap = _nice(max(high - low, 0.02) / 4)
    first, last = math.floor(low / gap), math.ceil(high / gap + 1e-9)
    steps = max(1, *(len(history) - 1 for history in histories), 1)
    every = max(1, round(_nice(steps / 4)))
    ticks = tuple(k * gap for k in range(first, last + 1))
    return _Axes(ticks[0], ticks[-1], gap, ticks, steps, tuple(range(0, steps + 1, every)), bool(risen))


def _nice(gap: float) -> float:
    """The first of 1, 2, 2.5, 5, 10, ... times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(gap))
    return next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= gap * 0.999)


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36000 else f"{seconds / 3600:.0f} h"


def _chart(
    image: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, result: PromptResult, axes: _Axes
) -> None:
    """The curves of one prompt with their axes, as high as a thumbnail; steps and seconds are said at their end."""
    x0, x1, y0, y1 = left + 40, left + CHART - 12, top + 6, top + THUMB - 22
    width = x1 - x0 - (REFINE_WIDTH if axes.refined else 0)

    def place(step: float, score: float) -> tuple[float, float]:
        part = (min(max(score, axes.low), axes.high) - axes.low) / (axes.high - axes.low)
        return x0 + width * step / axes.steps, y1 - (y1 - y0) * part

    decimals = next(n for n in range(1, 9) if abs(round(axes.gap, n) - axes.gap) < 1e-9)
    for k, tick in enumerate(axes.ticks):
        y = round(place(0, tick)[1])
        pen.line([(x0, y), (x1, y)], FAINT if k else GRAY)
        _write(pen, (x0 - 8, y), f"{tick + 0.0:.{decimals}f}", 12, GRAY, "rm")
    points = [(step, score) for step, score in enumerate(result.history) if math.isfinite(score)]
    best = list(zip((step for step, _ in points), accumulate((score for _, score in points), max), strict=True))
    refined = _refined(result)
    last = len(result.history) - 1 if points else axes.steps
    label = f"{last} steps" + (f", {_time(result.seconds)}" if result.seconds else "")
    end = max(
        round(place(last, 0)[0]) + (REFINE_WIDTH if refined is not None else 0) + 12,
        x0 + 16 + round(_length(label, 12)),
    )
    _write(pen, (end, y1 + 7), label, 12, GRAY, "ra")
    for step in {*axes.step_ticks, last}:
        x, half = round(place(step, 0)[0]), _length(f"{step}", 12) / 2 + 8
        pen.line([(x, y1), (x, y1 + 4)], GRAY)
        if x + half < end - _length(label, 12) or x - half > end:
            _write(pen, (x, y1 + 7), f"{step}", 12, GRAY, "ma")
    left, top, right, bottom = x0 - 6, y0 - 6, x1 + 6, y1 + 6  # with room for the dot at the end
    fine = image.crop((left, top, right, bottom)).resize(
        ((right - left) * FINE, (bottom - top) * FINE), Image.Resampling.NEAREST
    )
    brush = ImageDraw.Draw(fine)
    for curve, colour, thick in ((points, SOFT, 1.2), (best, LINE, 2.2)):
        path = [((x + 0.5 - left) * FINE, (y + 0.5 - top) * FINE) for x, y in (place(*point) for point in curve)]
        if len(path) > 1:
            brush.line(path, colour, round(thick * FINE), joint="curve")
    if best:
        across, up = path[-1]
        if refined is not None:
            above = (place(0, refined)[1] + 0.5 - top) * FINE
            for part in (0.25, 0.5, 0.75):
                brush.circle((across + part * REFINE_WIDTH * FINE, up + part * (above - up)), FINE, RAISED)
            across, up = across + REFINE_WIDTH * FINE, above
        brush.circle((across, up), 4 * FINE, LINE if refined is None else RAISED)
    image.paste(fine.resize((right - left, bottom - top), Image.Resampling.BOX), (left, top))


def _legend(image: Image.Image, pen: ImageDraw.ImageDraw, right: int, y: int, refined: bool) -> None:
    if refined:
        _write(pen, (right, y + 1), "refined", 14, GRAY, "ra")
        right -= round(_length("refined", 14)) + 12
        dot = Image.new("L", (9 * FINE, 9 * FINE))
        ImageDraw.Draw(dot).circle((4.5 * FINE, 4.5 * FINE), 4 * FINE, 255)
        image.paste(RAISED, (right - 4, y + 6), dot.resize((9, 9), Image.Resampling.BOX))
        right -= 30
    for label, colour, width in (("each step", SOFT, 2), ("best so far", LINE, 3)):
        _write(pen, (right, y + 1), label, 14, GRAY, "ra")
        right -= round(_length(label, 14)) + 8
        pen.line([(right - 22, y + 10), (right, y + 10)], colour, width)
        right -= 40
