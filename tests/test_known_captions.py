"""The benchmarks of known captions and of styles: what they count, and that they write what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import known_captions  # noqa: E402
import style_transfer  # noqa: E402

import pez_fast  # noqa: E402


@pytest.mark.parametrize(
    ("found", "known", "count"),
    [
        ([], [1], 0),
        ([1, 2, 3], [3, 2, 1], 3),
        ([1, 1, 1], [1, 2, 1], 2),
        ([1, 2], [1, 1, 2, 2], 2),
        (["a", "red"], ["a", "red", "a"], 2),
    ],
)
def test_a_thing_counts_as_often_as_it_stands_in_both(found, known, count):
    assert known_captions.overlap(found, known) == count


def test_words_are_runs_of_letters_and_digits():
    assert known_captions.words("Snow - capped mountain emoji , gray") == known_captions.words(
        "snow-capped mountain emoji, gray"
    )
    assert known_captions.words("st. vincent & 2 b's_x") == ["st", "vincent", "2", "b", "s", "x"]


def test_a_row_counts_what_prompts_recovered():
    clip = pez_fast.load_clip("emoji", device="cpu")
    known = known_captions.Known.of(clip, ["a rocket on blue", "red pizza, green"])
    assert [len(ids) for ids in known.ids] == [4, 4]  # the comma is a token
    row = known.row("x", ["blue on rocket a", "green green pizza ,"], 5, 2, 3.0, 4.0)
    assert row["tokens_recovered"] == 7 / 8 and row["words_recovered"] == 6 / 7
    assert row["all_words"] == 0.5 and row["exact"] == 0
    assert (row["cpu_seconds_per_caption"], row["wall_seconds_per_caption"], row["steps"], row["refine"]) == (
        1.5,
        2.0,
        5,
        2,
    )
    same = known.row("x", ["a rocket on blue", "red pizza , green"], 0, 0, 0.0, 0.0)
    assert same["exact"] == same["all_words"] == same["words_recovered"] == 1
    assert same["median_cosine"] == pytest.approx(1, abs=1e-5)


def test_captions_are_different_sentences_and_always_the_same():
    drawn = known_captions.captions(100)
    assert drawn == known_captions.captions(100) != known_captions.captions(100, seed=1)
    assert len(set(drawn)) == 100 and known_captions.captions(2) == drawn[:2]
    assert all(
        any(colour in text.split() for colour in known_captions.COLOUR_NAMES)
        for text in (t.replace(",", " ") for t in drawn)
    )


def test_known_captions_writes_a_valid_file(tmp_path):
    out, threads = tmp_path / "known.json", torch.get_num_threads()
    known_captions.main(["--captions", "2", "--steps", "4", "--refine", "2", "--longer", "1", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    names = [row["name"] for row in results["rows"]]
    assert len(names) == len(set(names)) == 6 and names[0] == "pez_fast" and "plain port" in names
    for row in results["rows"]:
        assert len(row["prompts"]) == row["captions"] and row["steps"] >= 1 and row["cpu_seconds_per_caption"] > 0
        assert all(0 <= row[key] <= 1 for key in ("tokens_recovered", "words_recovered", "all_words", "exact"))
    assert results["budget_cpu_seconds_per_caption"] == results["rows"][0]["cpu_seconds_per_caption"]
    assert len(results["captions"]) == 2 and torch.get_num_threads() == threads


def test_style_transfer_writes_a_valid_file(tmp_path):
    out = tmp_path / "style.json"
    style_transfer.main(["--examples", "2", "--pictures", "2", "--tokens", "1", "--steps", "2", "--out", str(out)])
    (row,) = json.loads(out.read_text())["results"]["rows"]
    assert row["tokens"] == 1 and len(row["prompts"]) == 2 and -1 <= row["unseen_new_prompt"] <= 1
