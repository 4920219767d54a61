"""`vocabulary=` as a list of words, or a file of them."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
from inputs import refused

import pez_fast
from pez_fast.config import SearchConfig, listed_words

WORDS = ["Red", "cat", "dog  sea", "green", "tree", "cat"]
KNOWN = {"red", "cat", "dog", "sea", "green", "tree"}
QUICK = {"prompt_len": 4, "steps": 8, "refine": 3}


def test_names_lists_and_files_are_one_thing(tmp_path: Path):
    (tmp_path / "words.txt").write_text("Red\r\ncat\n\ndog  sea\tgreen tree\n", encoding="utf-8-sig")
    expected = tuple(sorted(KNOWN))
    for given in (WORDS, tuple(WORDS), set(WORDS), tmp_path / "words.txt", str(tmp_path / "words.txt"), expected):
        assert SearchConfig(vocabulary=given).vocabulary == expected
    assert SearchConfig(vocabulary="words").vocabulary == "words" == listed_words("words")


@pytest.mark.parametrize("method", ["invert", "invert_batch", "distill"])
def test_only_the_listed_words_are_learned(tiny_clip, images, method):
    given = {"invert": images[0], "invert_batch": images[:2], "distill": "a text about something else"}[method]
    found = getattr(pez_fast, method)(given, tiny_clip, vocabulary=WORDS, restarts=2, top_k=3, **QUICK)
    for result in found if isinstance(found, list) else [found]:
        assert len(result.ids) == 4
        for candidate in result.top:
            assert set(candidate.prompt.split()) <= KNOWN and set(candidate.tokens) <= KNOWN


def test_the_table_holds_the_stable_tokens_of_the_words(tiny_clip):
    table = tiny_clip.table(WORDS)
    ids = table.allowed.nonzero()[:, 0].tolist()
    assert [tiny_clip.vocabulary.decode([i]) for i in ids].sort() == sorted(KNOWN).sort()
    assert len(ids) == 6 and set(ids) <= set(tiny_clip.vocabulary.stable())
    assert tiny_clip.table([w.upper() for w in reversed(WORDS)]) is table
    assert tiny_clip.table(["red", "cat"]) is not table and tiny_clip.table().allowed.sum() > 6
    assert tiny_clip.table(WORDS, ["cat"]).allowed.sum() == 5


def test_words_without_a_token_are_named(tiny_clip):
    strange = [f"qqxz{letter}" for letter in "abcdefg"]
    with pytest.warns(UserWarning) as told:
        assert tiny_clip.table(["red", *strange]).allowed.sum() == 1
    assert str(told[0].message) == (
        "7 of the 8 words of vocabulary are no single token of this model and cannot be learned: "
        "'qqxza', 'qqxzb', 'qqxzc', 'qqxzd', 'qqxze', …"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_clip.table(["sky", "red"])


def test_what_cannot_be_used_is_one_sentence(tiny_clip, images, tmp_path: Path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    cannot = "a list of words or a file of them; .* cannot be read: "
    for given, sentence in (
        (tmp_path / "missing.txt", cannot + "No such file"),
        (tmp_path, cannot + "Is a directory"),
        (tmp_path / "binary.txt", cannot + "it is no text in UTF-8"),
        (str(tmp_path / "empty.txt"), r"vocabulary must hold at least one word; got '.*empty.txt'"),
        ([], r"vocabulary must hold at least one word; got \[\]"),
        ([" "], r"vocabulary must hold at least one word; got \[' '\]"),
        ([1, 2], r"a list of words or a file of them; got \[1, 2\]"),
        (iter(WORDS), r"a list of words or a file of them; got <list_iterator"),
        (b"red", r"a list of words or a file of them; got b'red'"),
        (None, "a list of words or a file of them; got None"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            pez_fast.invert(images[0], tiny_clip, vocabulary=given, **QUICK)
        assert "\n" not in str(caught.value)
    sentence = "vocabulary leaves no token: none of its 2 words is one to this model ('qqxz', 'zzqqx')"
    with refused(ValueError, re.escape(sentence)):
        pez_fast.invert(images[0], tiny_clip, vocabulary=["zzqqx", "qqxz"], **QUICK)
    with refused(ValueError, "banned leaves no token of the given vocabulary"):
        tiny_clip.table(["red"], ["red"])


def test_a_language_model_learns_from_the_words():
    lm = pez_fast.load_lm("reviews", "cpu")
    words = ["good", "Movie", "bad", "great"]
    rows = [{"text": "a good film", "label": 1}, {"text": "a dull film", "label": 0}] * 4
    result = pez_fast.learn_classifier(
        rows, lm, "{text} {prompt} {label}", {"0": "bad", "1": "good"}, prompt_len=3, steps=3, vocabulary=words
    )
    assert len(result.ids) == 3 and {token.lower() for token in result.tokens} <= {w.lower() for w in words}


def test_a_data_set_is_continued_with_the_same_words_alone(tiny_clip, images, tmp_path: Path):
    pytest.importorskip("pyarrow")
    from pez_fast.dataset import invert_dataset

    (tmp_path / "pictures").mkdir()
    images[0].save(tmp_path / "pictures" / "a.png")
    words = tmp_path / "words.txt"
    words.write_text("red cat dog")
    learn = {"source": tmp_path / "pictures", "out": tmp_path / "out", "model": tiny_clip, **QUICK}
    assert invert_dataset(**learn, vocabulary=words).finished == 1
    words.rename(tmp_path / "renamed.txt")
    assert invert_dataset(**learn, vocabulary=tmp_path / "renamed.txt").finished == 1
    assert invert_dataset(**learn, vocabulary=["dog", "CAT", "red"]).finished == 1
    stored = json.loads((tmp_path / "out" / "_manifest.json").read_text())["configuration"]["vocabulary"]
    assert re.fullmatch(r"3 words with the digest \w{16}", stored)
    (tmp_path / "renamed.txt").write_text("red cat tree")
    with pytest.raises(ValueError, match=r"another configuration: vocabulary '3 words with .* there, '3 words with"):
        invert_dataset(**learn, vocabulary=tmp_path / "renamed.txt")
