"""Prompts in lines of a sheet: every other token on a shade, emoji as pictures where the system has a font of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pez_fast.report.chart import INK, length, plain, write
from pez_fast.report.tokens import pieces

SHADE = "#e8edf5"
EMOJI_FONTS = (  # (file, size): their pictures have one size each, but for Windows' outlines
    ("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", 109),
    ("/usr/share/fonts/noto/NotoColorEmoji.ttf", 109),
    ("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf", 109),
    ("/System/Library/Fonts/Apple Color Emoji.ttc", 160),
    ("C:/Windows/Fonts/seguiemj.ttf", 109),
)
Run = tuple[float, str, bool]  # where it begins in its line, the text, whether it is shaded


def prompt_lines(prompt: str, tokens: Sequence[str], size: int, width: int) -> list[list[Run]]:
    """Returns a prompt in lines of at most `width` pixels, broken at spaces; a word that is longer is broken."""
    lines: list[list[Run]] = [[]]
    x = 0.0
    for word in _words(pieces(prompt, tokens)):
        if lines[-1] and x + sum(_width(text, size) for text, _ in word) > width:
            lines.append([])
            x = 0.0
        for text, shaded in word:
            for part in _parts(text, size, width):
                if x and x + _width(part, size) > width:
                    lines.append([])
                    x = 0.0
                lines[-1].append((x, part, shaded))
                x += _width(part, size)
        x += length(" ", size)
    return lines


def draw_line(image: Image.Image, at: tuple[int, int], line: Sequence[Run], size: int, colour: str = INK) -> None:
    """Draws one line of a prompt at its upper left corner."""
    pen = ImageDraw.Draw(image)
    for x, text, shaded in line:
        left = at[0] + round(x)
        if shaded:
            pen.rounded_rectangle(
                (left - 3, at[1] - 1, left + round(_width(text, size)) + 2, at[1] + round(1.25 * size)), 4, SHADE
            )
    for x, text, _ in line:
        picture = emoji_picture(text, round(1.15 * size))
        if picture is None:
            write(pen, (at[0] + round(x), at[1]), text, size, colour)
        else:
            image.paste(picture, (at[0] + round(x), at[1] + 1), picture)


@lru_cache(maxsize=512)
def emoji_picture(text: str, size: int) -> Image.Image | None:
    """Returns an emoji as a square picture with transparency, or None if it is none or no font here has it."""
    if not text or not all(ord(c) > 0x2000 for c in text) or plain(text) == text:
        return None
    for file, font_size in EMOJI_FONTS:
        if Path(file).is_file():
            try:
                font = ImageFont.truetype(file, font_size)
                box = font.getbbox(text)
                canvas = Image.new("RGBA", (font_size * 2, font_size * 2), (0, 0, 0, 0))
                ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
            except OSError:  # a font of another kind
                continue
            if canvas.getbbox() is None or box[2] > 1.6 * font_size:  # not in the font, or several pictures
                return None
            return canvas.crop(canvas.getbbox()).resize((size, size), Image.Resampling.LANCZOS)
    return None


def _width(text: str, size: int) -> float:
    """Returns the width in pixels of what is drawn for a text."""
    return round(1.15 * size) if emoji_picture(text, round(1.15 * size)) else length(plain(text), size)


def _words(found: Sequence[tuple[str, int | None]]) -> list[list[tuple[str, bool]]]:
    """Returns the words between spaces, each in parts that are shaded or not."""
    words: list[list[tuple[str, bool]]] = [[]]
    for text, number in found:
        for k, part in enumerate(text.split(" ")):
            if k:
                words.append([])
            if part:
                words[-1].append((part, number is not None and number % 2 == 0))
    return [word for word in words if word]


def _parts(text: str, size: int, width: int) -> list[str]:
    """Returns the text in parts that are no wider than a line."""
    if _width(text, size) <= width:
        return [text]
    parts = [""]
    for character in plain(text):
        if length(parts[-1] + character, size) > width:
            parts.append("")
        parts[-1] += character
    return parts
