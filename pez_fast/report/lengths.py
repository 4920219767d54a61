"""What a study of lengths shows: a table on the console, and a folder's CSV, JSON and plot."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw
from rich import box
from rich.table import Table

from pez_fast.report.chart import BACK, FAINT, FINE, GRAY, INK, LINE, RAISED, SOFT, length, nice, write
from pez_fast.report.output import put_table, stdout
from pez_fast.report.sheet import save_sheet, wrap
from pez_fast.result import LengthRow, LengthStudy, Spread

WIDTH, HEIGHT, MARGIN = 1000, 540, 40
LEFTS, PANEL = (100, 580), 360  # where the two panels begin, and their width
TOP, BOTTOM = 170, 400
BANDS = {LINE: SOFT, RAISED: "#b5dfca"}
COLUMNS = ("tokens", "images", "model", "quartiles", "referee", "quartiles", "change", "rises")
NAMES = (
    "prompt_len pictures prompts model_mean model_low model_high referee_mean referee_low referee_high "
    "referee_change referee_rises"
).split()


def show_lengths(study: LengthStudy) -> None:
    """Prints the table of a study on stdout."""
    console, table = stdout(), Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=console.width >= 80)
    for row in study.table():
        change = "-" if row.referee_change is None else f"{row.referee_change:+.3f}"
        rises = "-" if row.referee_rises is None else f"{row.referee_rises:.0%}"
        table.add_row(str(row.prompt_len), str(row.pictures), *_shown(row.model), *_shown(row.referee), change, rises)
    put_table(console, table)


def _shown(spread: Spread) -> tuple[str, str]:
    return f"{spread.mean:.3f}", f"{spread.low:.2f}, {spread.high:.2f}"


def told(study: LengthStudy) -> str:
    """Returns what a study says, in one sentence."""
    rows = study.table()
    if not rows:
        return "no prompt is finished"
    best, last = study.best_length(), rows[-1]
    if best == last.prompt_len:
        return f"the referee's mean is highest at {best} tokens, the longest here: no over-fitting is seen"
    at = next(row for row in rows if row.prompt_len == best)
    model, referee = last.model.mean - at.model.mean, last.referee.mean - at.referee.mean
    meaning = "longer prompts fit the model alone" if model > 0 else "no over-fitting, since both fall"
    return (
        f"the referee's mean is highest at {best} tokens; from there to {last.prompt_len} the model's changes by "
        f"{model:+.3f} and the referee's by {referee:+.3f}: {meaning}"
    )


def write_lengths(folder: Path, study: LengthStudy) -> list[Path]:
    """Writes a study into a folder as lengths.csv, lengths.json and lengths.png, and returns these paths."""
    paths = [folder / f"lengths.{suffix}" for suffix in ("csv", "json", "png")]
    with paths[0].open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(NAMES)
        table.writerows(_values(row) for row in study.table())
    paths[1].write_text(study.to_json(indent=1) + "\n", encoding="utf-8")
    if not study.table():
        return paths[:2]
    save_sheet(paths[2], draw_lengths(study))
    return paths


def _values(row: LengthRow) -> list[object]:
    """Returns the values of a row, in the order of `NAMES`."""
    spreads = [value for s in (row.model, row.referee) for value in (s.mean, s.low, s.high)]
    return [row.prompt_len, row.pictures, row.prompts, *spreads, row.referee_change, row.referee_rises]


def draw_lengths(study: LengthStudy) -> Image.Image:
    """Returns the plot of a study: both cosines over the lengths, with the quartiles over the pictures."""
    rows = study.table()
    fine = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), BACK)
    panels = [
        (LEFTS[0], "by the model that learned the prompts", study.model, LINE, [row.model for row in rows]),
        (LEFTS[1], "by the referee", study.referee, RAISED, [row.referee for row in rows]),
    ]
    best, lengths = study.best_length(), [row.prompt_len for row in rows]
    for left, _, _, colour, spreads in panels:
        _draw_panel(ImageDraw.Draw(fine), left, lengths, spreads, colour, best)
    image = fine.reduce(FINE)
    pen = ImageDraw.Draw(image)
    write(pen, (MARGIN, 24), "Cosine of the text over the length of the prompt", 26)
    pictures, prompts = max((row.pictures for row in rows), default=0), sum(row.prompts for row in rows)
    write(pen, (MARGIN, 62), f"{pictures} pictures, {prompts} prompts; band: the middle half of the pictures", 15, GRAY)
    for left, title, name, colour, spreads in panels:
        write(pen, (left, TOP - 62), title, 17, colour)
        write(pen, (left, TOP - 38), wrap(name, 13, PANEL)[0], 13, GRAY)
        _write_axes(pen, left, lengths, spreads)
    for k, line in enumerate(wrap(f"{told(study).capitalize()}.", 15, WIDTH - 2 * MARGIN)):
        write(pen, (MARGIN, BOTTOM + 56 + 20 * k), line, 15, INK)
    write(
        pen, (MARGIN, BOTTOM + 104), "Dashed: the referee's best length. The two scales cannot be compared.", 13, GRAY
    )
    return image


def _x(left: int, lengths: list[int], k: int) -> float:
    """Returns where a length stands, by its logarithm."""
    first, last = math.log(lengths[0]), math.log(lengths[-1])
    return left + PANEL * ((math.log(lengths[k]) - first) / (last - first) if last > first else 0.5)


def _ticks(spreads: list[Spread]) -> tuple[float, ...]:
    """Returns values that hold all spreads, negative ones too."""
    low = min(min(spread.low, spread.mean) for spread in spreads)
    high = max(max(spread.high, spread.mean) for spread in spreads)
    gap = nice(max(high - low, 0.02) / 4)
    return tuple(k * gap for k in range(math.floor(low / gap), math.ceil(high / gap + 1e-9) + 1))


def _y(value: float, ticks: tuple[float, ...]) -> float:
    return BOTTOM - (BOTTOM - TOP) * (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])


def _draw_panel(
    pen: ImageDraw.ImageDraw, left: int, lengths: list[int], spreads: list[Spread], colour: str, best: int | None
) -> None:
    """Draws the lines, the band and the curve of one panel, at `FINE` times its size."""
    ticks = _ticks(spreads)
    places = [_x(left, lengths, k) * FINE for k in range(len(lengths))]

    def points(values: list[float]) -> list[tuple[float, float]]:
        return [(x, _y(value, ticks) * FINE) for x, value in zip(places, values, strict=True)]

    low, high = points([s.low for s in spreads]), points([s.high for s in spreads])
    if len(places) > 1:
        pen.polygon([*low, *reversed(high)], BANDS[colour])
    for tick in ticks:
        y = _y(tick, ticks) * FINE
        pen.line([(left * FINE, y), ((left + PANEL) * FINE, y)], GRAY if tick == ticks[0] else FAINT, FINE)
    if best is not None:
        x = places[lengths.index(best)]
        for y in range(TOP, BOTTOM, 12):
            pen.line([(x, y * FINE), (x, (y + 6) * FINE)], INK, FINE)
    curve = points([s.mean for s in spreads])
    if len(curve) > 1:
        pen.line(curve, colour, round(2.2 * FINE), joint="curve")
    else:
        pen.line([low[0], high[0]], BANDS[colour], 3 * FINE)
    for point in curve:
        pen.circle(point, 4 * FINE, colour)


def _write_axes(pen: ImageDraw.ImageDraw, left: int, lengths: list[int], spreads: list[Spread]) -> None:
    """Writes the values at the ticks of one panel."""
    ticks = _ticks(spreads)
    for tick in ticks:
        write(pen, (left - 10, round(_y(tick, ticks))), f"{tick:.3g}", 13, GRAY, "rm")
    end = -math.inf
    for k, tokens in enumerate(lengths):
        x, half = _x(left, lengths, k), length(str(tokens), 13) / 2
        if x - half > end:
            write(pen, (round(x), BOTTOM + 8), str(tokens), 13, GRAY, "ma")
            end = x + half + 6
    write(pen, (left + PANEL // 2, BOTTOM + 28), "learned tokens", 13, GRAY, "ma")
