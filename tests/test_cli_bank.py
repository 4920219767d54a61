"""`pez-fast describe`, `pez-fast invert --bank`, and a file of words as --vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import complaint, here, run, tiny  # noqa: F401

import pez_fast

SEARCH = ("--steps", 4, "--refine", 1, "--prompt-len", 4)


@pytest.fixture
def bank(here: Path) -> Path:  # noqa: F811
    (here / "bank").mkdir()
    (here / "bank" / "subjects.txt").write_text("a red cat\na dog\nthe sea\n")
    (here / "bank" / "flavors.txt").write_text("blue\na hat\nsoft light\n")
    return here / "bank"


def test_describe_prints_the_text_alone(tiny, bank):  # noqa: F811
    result = run("describe", "a.png", "--bank", "bank", "--cache", "kept")
    expected = pez_fast.describe("a.png", tiny, bank, cache=False)
    assert result.stdout == expected.text + "\n"
    lines = result.stderr.splitlines()
    assert lines[-1].startswith(f"text cosine {expected.score:.4f} (cosines of ")
    assert f"subjects: {expected.parts[0].phrase} (alone " in result.stderr and "6 of 6 phrases" in lines
    assert len(list(Path("kept").rglob("*.phrases"))) == 2


def test_describe_several_images(tiny, bank):  # noqa: F811
    shown = run("describe", "a.png", "broken.png", "b.png", "--bank", "bank", code=1)
    assert "phrases" in shown.stdout and "broken.png" in shown.stdout and "none of" in shown.stdout
    values = json.loads(run("describe", "a.png", "b.png", "--bank", "bank", "--json").stdout)
    expected = pez_fast.describe(["a.png", "b.png"], tiny, bank)
    assert values == [{"image": n, **d.to_dict()} for n, d in zip(["a.png", "b.png"], expected, strict=True)]


def test_invert_with_a_bank(tiny, bank):  # noqa: F811
    learned = pez_fast.invert_with_bank("a.png", tiny, bank, "hold", prompt_len=4, steps=4, refine=1)
    shown = run("invert", "a.png", "--bank", "bank", "--bank-use", "hold", *SEARCH)
    assert shown.stdout == learned.prompt + "\n"
    many = run("invert", "a.png", "broken.png", "b.png", "--each", "--bank", "bank", "--json", *SEARCH, code=1)
    begun = pez_fast.invert_with_bank(["a.png", "b.png"], tiny, bank, prompt_len=4, steps=4, refine=1)
    found = json.loads(many.stdout)
    assert [each["prompt"] for each in found] == [begun[0].prompt, "", begun[1].prompt]


def test_a_file_of_words(tiny, here):  # noqa: F811
    Path("words.txt").write_text("red cat\nsea qqxzq")
    shown = run("invert", "a.png", "--vocabulary", "words.txt", *SEARCH)
    assert set(shown.stdout.split()) <= {"red", "cat", "sea"}
    assert "warning: 1 of the 4 words of vocabulary are no single token of this model" in shown.stderr
    assert "|FILE]" in run("invert", "--help").stdout


def test_wrong_use_is_one_sentence(tiny, bank):  # noqa: F811
    assert complaint("describe", "a.png", "--bank", "nowhere").startswith("bank must be a folder, or emoji or general;")
    assert complaint("describe", "a.png", "--max-flavors", -1) == (
        "--max-flavors must be an integer, not negative; got -1"
    )
    assert complaint("describe", "missing.png", "--bank", "bank") == "image missing.png does not exist or is no file"
    assert complaint("invert", "a.png", "b.png", "--bank", "bank").startswith("--bank finds phrases for each image")
    assert complaint("invert", "a.png", "--bank", "bank", "--init", "a cat").startswith("init and use='init' exclude")
    assert "list of words or a file of them; 'none.txt' cannot be read" in complaint(
        "invert", "a.png", "--vocabulary", "none.txt"
    )
