"""The sheet: images, prompts, scores and curves as a drawing."""

from __future__ import annotations

import pytest

from pez_fast.report import chart, sheet
from pez_fast.result import PromptResult


def test_sheet_of_odd_rows(images):
    results = [
        PromptResult(prompt="one " * 70 + "x" * 200, text_score=-0.5, history=[-0.3, -0.5], steps=1),
        PromptResult(prompt="café 😀", history=[float("nan")]),
        PromptResult(error="no image"),
    ]
    rows = [sheet.Row("name " * 50, images[:n], result) for n, result in zip((8, 1, 0), results, strict=True)]
    tall, usual = sheet.draw_sheet(rows, "title", "subtitle"), sheet.draw_sheet(rows[1:], "title", "subtitle")
    assert tall.width == usual.width == sheet.WIDTH and tall.height - usual.height > 2 * sheet.THUMB
    margin = usual.crop((sheet.WIDTH - sheet.MARGIN + 4, 0, sheet.WIDTH, usual.height))
    assert margin.getcolors() == [(margin.width * margin.height, (255, 255, 255))]
    many = sheet.draw_sheet(rows[2:] * (sheet.MOST + 5), "title", "subtitle")
    assert many.height < (sheet.MOST + 2) * (sheet.THUMB + sheet.GAP)


@pytest.mark.parametrize(
    ("histories", "low", "high", "steps"),
    [
        ([[-0.2, 0.5, 0.4], [0.1, 0.86]], 0.0, 0.86, 2),
        ([[0.21, 0.3]], 0.2, 0.3, 1),
        ([[-0.5, -0.3]], -0.5, -0.3, 1),
        ([[]], 0.0, 1.0, 1),
    ],
)
def test_axes_hold_the_best_scores(histories: list[list[float]], low: float, high: float, steps: int):
    axes = chart.axes_of(histories)
    assert axes.low == pytest.approx(low) and high <= axes.high + 1e-9 <= high + axes.gap + 2e-9
    assert axes.steps == steps and 3 <= len(axes.ticks) <= 7 and axes.step_ticks[0] == 0


def test_a_score_above_the_curve_is_drawn_behind_it(images):
    curve = [0.2, 0.6, 0.5]
    scores = [
        (0.8, 0.7, 0.8),
        (0.6, 0.9, None),
        (0.603, 0.6, None),
        (float("nan"), 0.7, 0.7),
        (0.5, 0.4, None),
        (float("nan"),) * 2 + (None,),
    ]
    for by_ids, by_text, shown in scores:
        assert chart.refined_score(PromptResult(ids_score=by_ids, text_score=by_text, history=curve)) == shown
    assert chart.refined_score(PromptResult(ids_score=0.5, history=[float("nan")])) is None
    assert chart.axes_of([curve], [None, 0.8]).high >= 0.8 and chart.axes_of([curve], [None, 0.8]).refined
    assert chart.axes_of([curve]).high < 0.8 and not chart.axes_of([curve], [None]).refined

    def pixels(result: PromptResult, colour: str) -> list[tuple[int, int]]:
        image, rgb = sheet.draw_sheet([sheet.Row("x", images[:1], result)], "", ""), tuple(bytes.fromhex(colour[1:]))
        below = sheet.MARGIN + 120  # the legend
        return [
            (x, y)
            for x in range(sheet.WIDTH // 2, sheet.WIDTH)
            for y in range(below, image.height)
            if image.getpixel((x, y)) == rgb
        ]

    ended, polished = (PromptResult(ids_score=score, history=curve, steps=2) for score in (0.6, 0.8))
    assert not pixels(ended, chart.RAISED) and max(pixels(ended, chart.LINE))[0] > sheet.WIDTH - sheet.MARGIN - 16
    dot, line = pixels(polished, chart.RAISED), pixels(polished, chart.LINE)
    assert min(x for x, _ in dot) > max(x for x, _ in line) and max(y for _, y in dot) < min(y for _, y in line)
    assert max(x for x, _ in dot) < sheet.WIDTH - sheet.MARGIN


@pytest.mark.parametrize(
    ("seconds", "label"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (599, "599 s"),
        (600, "10 min"),
        (35000, "583 min"),
        (36000, "10 h"),
    ],
)
def test_seconds_at_the_end_of_the_axis(monkeypatch: pytest.MonkeyPatch, images, seconds: float, label: str):
    written: list[str] = []
    monkeypatch.setattr(chart, "write", lambda pen, at, text, *_: written.append(text))
    result = PromptResult(history=[0.1 * k for k in range(8)], steps=7, seconds=seconds)
    sheet.draw_sheet([sheet.Row("x", images[:1], result)], "", "")
    assert f"7 steps, {label}" in written and "0" in written and "7" not in written
    sheet.draw_sheet([sheet.Row("x", images[:1], PromptResult(history=[0.1, 0.2, 0.3], steps=2))], "", "")
    assert "2 steps" in written


def test_wrapped_lines_fit_and_lose_nothing():
    text = "two words " * 20 + "y" * 300
    lines = sheet.wrap(text, 19, 300)
    assert all(chart.length(line, 19) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert chart.plain("café 😀 ok") == "caf\\xe9 [grinning face] ok"


def test_a_sheet_is_written_over_a_sheet_alone(images, tmp_path):
    photo, sheet_file = tmp_path / "photo.png", tmp_path / "sheet.png"
    images[0].save(photo)
    before = photo.read_bytes()
    for path, inputs, sentence in (
        (photo, [], "is no sheet of pez_fast, so it is left as it is"),
        (photo, [tmp_path / "x" / ".." / "photo.png"], "would be written over an image that it is made from"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sheet.check_writable(path, inputs)
    assert photo.read_bytes() == before
    result = PromptResult(prompt="a", ids=[1], ids_score=0.5, text_score=0.5, steps=1, history=[0.1, 0.5])
    for _ in range(2):
        sheet.check_writable(sheet_file, [photo])
        assert sheet.write_sheet(sheet_file, ["x"], [images[:1]], [result])
    with pytest.raises(ValueError, match="would be written over an image"):
        sheet.check_writable(sheet_file, [sheet_file])
