"""The sheet of a prompt for a classification."""

from __future__ import annotations

import pytest
from PIL import Image

from pez_fast.report import chart, classify_sheet, sheet
from pez_fast.report.classify_console import Transferred
from pez_fast.report.classify_sheet import draw_classifier_sheet, write_classifier_sheet
from pez_fast.result import ClassifierResult, ClassifierScores

CURVE = [(0, 0.5, 0.7), (10, 0.75, 0.6), (20, 0.7, 0.65)]
RESULT = ClassifierResult(
    prompt=" an honest review", tokens=["an", "honest", "review"], ids=[1, 2, 3], accuracy=0.75, loss=0.6, curve=CURVE
)


def scores(confusion: list[list[int]], labels: list[str] | None = None) -> ClassifierScores:
    size = sum(map(sum, confusion))
    right = sum(row[k] for k, row in enumerate(confusion)) / size
    names = labels or [f"label {k}" for k in range(len(confusion))]
    return ClassifierScores("p", "m", right, 0.5, 12.0, names, confusion, ["x"] * size)


BEFORE, AFTER = scores([[0, 187], [0, 213]]), scores([[180, 7], [3, 210]])


def texts(monkeypatch: pytest.MonkeyPatch, *arguments, **given) -> list[tuple[str, int]]:
    """Returns what a sheet writes, with its size."""
    written: list[tuple[str, int]] = []
    inner = chart.write

    def write(pen, at, text, size, *rest):
        written.append((text, size))
        inner(pen, at, text, size, *rest)

    monkeypatch.setattr(classify_sheet, "write", write)
    monkeypatch.setattr(chart, "write", write)
    draw_classifier_sheet(*arguments, **given)
    return written


def is_clear_of_the_margins(image: Image.Image) -> bool:
    right = image.crop((sheet.WIDTH - sheet.MARGIN + 4, 0, sheet.WIDTH, image.height))
    below = image.crop((0, image.height - 20, sheet.WIDTH, image.height))
    return all(part.getcolors() == [(part.width * part.height, (255, 255, 255))] for part in (right, below))


def test_the_numbers_stand_on_the_sheet(monkeypatch: pytest.MonkeyPatch):
    transferred = [Transferred("other", BEFORE, AFTER), Transferred("third", error="no memory")]
    written = [text for text, _ in texts(monkeypatch, RESULT, BEFORE, AFTER, transferred)]
    for text in ("187", "180", "210", "other", "third", "no scores", "0.532", "0.975", "0.750", "label 1"):
        assert text in written, text
    assert written.count("0.975") == 3  # the figure, and a bar for each of two models
    assert "test examples with the template alone" in written and "held-out accuracy" in written
    held = [text for text, _ in texts(monkeypatch, RESULT, BEFORE, AFTER, rows="held-out")]
    assert "held-out examples with the prompt" in held and not any(text.startswith("test") for text in held)


def test_accuracies_end_at_one_and_losses_fall(monkeypatch: pytest.MonkeyPatch):
    drawn: list[chart.Axes] = []
    inner = chart.draw_chart
    monkeypatch.setattr(chart, "draw_chart", lambda result, axes: drawn.append(axes) or inner(result, axes))
    full = ClassifierResult(prompt="a", curve=[(0, 0.5, 0.9), (10, 1.0, 0.1)])
    draw_classifier_sheet(full)
    accuracy, loss = drawn
    assert accuracy.high == pytest.approx(1.0) and accuracy.best is max
    assert loss.best is min and loss.high >= 0.9 and loss.low <= 0.1 and loss.steps == 10


def test_odd_sheets_fit():
    long = ClassifierResult(
        prompt="one " * 300 + "x" * 300 + " café 😀", curve=CURVE, template="{prompt}" + "y" * 999, model="m" * 99
    )
    many = [Transferred("a-name-that-is-long/" * 6, BEFORE, AFTER) for _ in range(60)]
    tables = {
        "ten": scores([[3000 + k if k == j else 7 for k in range(10)] for j in range(10)], ["politics " * 4] * 10),
        "fifty": scores([[k for k in range(50)] for _ in range(50)]),
        "two": AFTER,
        "none": None,
    }
    heights = {}
    for name, found in tables.items():
        image = draw_classifier_sheet(long, found, found, many if name == "two" else [], "test")
        assert image.width == sheet.WIDTH and is_clear_of_the_margins(image), name
        heights[name] = image.height
    assert heights["fifty"] > heights["none"] and heights["two"] > 40 * classify_sheet.BAR_ROW
    assert draw_classifier_sheet(long, AFTER, AFTER, many + many).height == heights["two"]  # the rest is left out
    endless = ClassifierResult(prompt="word " * 3000)
    assert draw_classifier_sheet(endless).height < 60 * classify_sheet.PROMPT_ROW
    assert is_clear_of_the_margins(draw_classifier_sheet(ClassifierResult(error="it failed", perplexity=None)))


@pytest.mark.parametrize(
    ("count", "number", "shown", "size"), [(2, 187, "187", 15), (10, 3302, "3302", 9), (10, 99999, "100k", 9)]
)
def test_the_numbers_of_a_table_have_one_size_that_fits(count: int, number: int, shown: str, size: int):
    width = min(classify_sheet.CELL[0], (chart.WIDTH - classify_sheet.NAMES) // count)
    written, found = classify_sheet._numbers([[number] + [3] * (count - 1)] * count, width, min(width, 46))
    assert written[0][:2] == [shown, "3"] and found == size
    assert chart.length(shown, size) <= width - 4
    assert classify_sheet._numbers([[12] * 50] * 50, 6, 6)[1] == 0


def test_names_are_cut_to_their_room():
    assert classify_sheet._short("short", 13, 94) == "short"
    cut = classify_sheet._short("politics and society", 13, 94)
    assert cut.endswith("...") and chart.length(cut, 13) <= 94


def test_a_cell_is_shaded_by_its_share_of_its_row():
    table = classify_sheet._confusion(scores([[10, 0], [5, 5]]))
    width, height = classify_sheet.CELL
    colours = [
        [table.getpixel((classify_sheet.NAMES + width * j + 4, 22 + height * i + 4)) for j in (0, 1)] for i in (0, 1)
    ]
    assert colours[0][0] == classify_sheet.HIT and colours[0][1] == (243, 245, 247)
    assert colours[1][0][0] > colours[1][0][2] and colours[1][1][2] > colours[1][1][0]  # red for errors, blue for hits


def test_a_sheet_is_known_again(tmp_path, images):
    file = tmp_path / "s.png"
    write_classifier_sheet(file, RESULT, BEFORE, AFTER, [], "test")
    sheet.check_writable(file)
    images[0].save(file)
    with pytest.raises(ValueError, match="is no sheet of pez_fast"):
        sheet.check_writable(file)
