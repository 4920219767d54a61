"""The chart of a search as an image: the score at each step and the best so far, with axes and lettering."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from PIL import Image, ImageDraw, ImageFont

from pez_fast.result import PromptResult

INK, GRAY, FAINT, LINE, SOFT, BACK, RAISED = "#17202c", "#667180", "#dfe3e8", "#1f5fd0", "#a9c5f5", "#ffffff", "#1a8f5a"
WIDTH, HEIGHT = 380, 132
LEFT, RIGHT, TOP, BOTTOM = 42, WIDTH - 12, 6, HEIGHT - 22  # the curves are drawn between these
REFINE_WIDTH = 24  # from the end of a curve to the score after refining, which is not part of it
RISE = 0.004  # a smaller difference may come from the dtype of the search, in which the curve was computed
FINE = 4  # curves are drawn at so many times their size and averaged down
SWATCHES = (("best so far", LINE, 22, 3), ("each step", SOFT, 22, 2), ("refined", RAISED, 9, 9))


@dataclass(frozen=True)
class Axes:
    """What all charts of a sheet share: `gap` between score ticks, `refined` whether refining raised a score.

    `best` is max for scores, and min for losses.
    """

    low: float
    high: float
    gap: float
    ticks: tuple[float, ...]
    steps: int
    step_ticks: tuple[int, ...]
    refined: bool
    best: Callable[[float, float], float] = max

    def place(self, step: float, score: float) -> tuple[float, float]:
        """Where a point of a curve is in the chart."""
        part = (min(max(score, self.low), self.high) - self.low) / (self.high - self.low)
        width = RIGHT - LEFT - REFINE_WIDTH * self.refined
        return LEFT + width * step / self.steps, BOTTOM - (BOTTOM - TOP) * part


def axes_of(
    histories: Sequence[Sequence[float]],
    refined: Sequence[float | None] = (),
    best: Callable[[float, float], float] = max,
) -> Axes:
    """Axes that hold the best scores of all curves, and those after refining."""
    risen = [score for score in refined if score is not None]
    found = [score for history in histories for score in accumulate(filter(math.isfinite, history), best)] + risen
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if high > 0:
        low = max(low, 0.0)  # random words can begin below; that short part is left out
    gap = nice(max(high - low, 0.02) / 4)
    ticks = tuple(k * gap for k in range(math.floor(low / gap), math.ceil(high / gap + 1e-9) + 1))
    steps = max(1, 1, *(len(history) - 1 for history in histories))
    step_ticks = tuple(range(0, steps + 1, max(1, round(nice(steps / 4)))))
    return Axes(ticks[0], ticks[-1], gap, ticks, steps, step_ticks, bool(risen), best)


def nice(gap: float) -> float:
    """The first of 1, 2, 2.5, 5, 10, ... times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(gap))
    return next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= gap * 0.999)


def refined_score(result: PromptResult) -> float | None:
    """The score after refining, where it is above all of the curve."""
    score = result.ids_score if math.isfinite(result.ids_score) else result.text_score
    return score if score > max(filter(math.isfinite, result.history), default=math.inf) + RISE else None


def draw_chart(result: PromptResult, axes: Axes) -> Image.Image:
    """The chart of one prompt; steps and seconds are said at the end of its curve."""
    fine = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), BACK)
    _curves(ImageDraw.Draw(fine), result, axes)
    image = fine.reduce(FINE)
    pen = ImageDraw.Draw(image)
    decimals = next(n for n in range(1, 9) if abs(round(axes.gap, n) - axes.gap) < 1e-9)
    for tick in axes.ticks:
        write(pen, (LEFT - 8, round(axes.place(0, tick)[1])), f"{tick + 0.0:.{decimals}f}", 12, GRAY, "rm")
    last = max(0, len(result.history) - 1)
    label = f"{last} steps" + (f", {_time(result.seconds)}" if result.seconds else "")
    end = axes.place(last, 0)[0] + 12 + (REFINE_WIDTH if refined_score(result) is not None else 0)
    end = max(end, LEFT + 16 + length(label, 12))
    write(pen, (end, BOTTOM + 7), label, 12, GRAY, "ra")
    for step in {*axes.step_ticks, last}:
        x, half = round(axes.place(step, 0)[0]), length(f"{step}", 12) / 2 + 8
        pen.line([(x, BOTTOM), (x, BOTTOM + 4)], GRAY)
        if not end - length(label, 12) - half <= x <= end + half:
            write(pen, (x, BOTTOM + 7), f"{step}", 12, GRAY, "ma")
    return image


def _curves(pen: ImageDraw.ImageDraw, result: PromptResult, axes: Axes) -> None:
    """Lines at the ticks of the score, the two curves, and the dot at their end or after refining."""
    for tick in axes.ticks:
        line = round(axes.place(0, tick)[1]) * FINE
        pen.rectangle((LEFT * FINE, line, (RIGHT + 1) * FINE - 1, line + FINE - 1), FAINT if tick > axes.low else GRAY)
    steps = [step for step, score in enumerate(result.history) if math.isfinite(score)]
    scores = [result.history[step] for step in steps]
    path: list[tuple[float, float]] = []
    for curve, colour, thick in ((scores, SOFT, 1.2), (list(accumulate(scores, axes.best)), LINE, 2.2)):
        path = [((x + 0.5) * FINE, (y + 0.5) * FINE) for x, y in map(axes.place, steps, curve)]
        if len(path) > 1:
            pen.line(path, colour, round(thick * FINE), joint="curve")
    score = refined_score(result)
    if score is not None:
        (x, y), above = path[-1], (axes.place(0, score)[1] + 0.5) * FINE
        for part in (0.25, 0.5, 0.75, 1.0):
            path.append((x + part * REFINE_WIDTH * FINE, y + part * (above - y)))
            pen.circle(path[-1], FINE, RAISED)
    if path:
        pen.circle(path[-1], 4 * FINE, LINE if score is None else RAISED)


def draw_legend(image: Image.Image, right: int, y: int, refined: bool) -> None:
    """What the colours of the charts mean, up to the pixel `right`."""
    for label, colour, width, height in reversed(SWATCHES if refined else SWATCHES[:2]):
        write(ImageDraw.Draw(image), (right, y), label, 14, GRAY, "ra")
        right -= round(length(label, 14)) + 8 + width
        swatch = Image.new("RGB", (width * FINE, height * FINE), BACK)
        ImageDraw.Draw(swatch).rounded_rectangle((0, 0, width * FINE - 1, height * FINE - 1), height * FINE / 2, colour)
        image.paste(swatch.reduce(FINE), (right, y + 9 - height // 2))
        right -= 18


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36000 else f"{seconds / 3600:.0f} h"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _drawable(character: str) -> str:
    """The character, or where the font lacks it: the name of a symbol, the escape of anything else."""
    glyph, missing = (bytes(_font(24).getmask(text)) for text in (character, "\uffff"))
    if character == " " or (character.isprintable() and glyph != missing):
        return character
    if unicodedata.category(character).startswith("S"):
        return f"[{unicodedata.name(character, hex(ord(character))).lower()}]"
    return character.encode("unicode_escape").decode()


def plain(text: str) -> str:
    """The text in characters that `write` can draw."""
    return "".join(map(_drawable, text))


def _advance(word: str, size: int) -> float:
    return _font(size).getlength(word) + round(0.3 * size)  # the font's own space is too narrow


def length(text: str, size: int) -> float:
    """In pixels, of a plain text."""
    return sum(_advance(word, size) for word in text.split(" ")) - _advance("", size)


def write(pen: ImageDraw.ImageDraw, at: tuple, text: str, size: int, colour: str = INK, anchor: str = "la") -> None:
    """Write one line; anchors are those of Pillow."""
    text = plain(text)
    x = at[0] - length(text, size) * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
    for word in text.split(" "):
        pen.text((round(x), at[1]), word, fill=colour, font=_font(size), anchor="l" + anchor[1])
        x += _advance(word, size)
