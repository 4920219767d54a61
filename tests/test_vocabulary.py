"""Stable tokens, written out in any order and number and between fixed texts, are read again as themselves."""

from __future__ import annotations

import random
from functools import cache

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from vocabularies import OVER_SPACES, Cleaned, byte_level, fast, gemma, unigram, with_added_words, wordpiece

import pez_fast
from pez_fast.models.allowed import allowed
from pez_fast.models.stable import in_any_company, joined
from pez_fast.models.vocabulary import Vocabulary
from pez_fast.models.words import english

FAMILIES = {
    "wordpiece": wordpiece,
    "wordpiece, cased": lambda: wordpiece(lowercase=False),
    "wordpiece, decoded without spaces before marks": lambda: wordpiece(clean_up_tokenization_spaces=True),
    "unigram": unigram,
    "unigram without a first token": lambda: unigram(""),
    "byte level": byte_level,
    "byte level without accents": lambda: byte_level(strip_accents=True),
    "gemma": gemma,
    "tokens over spaces": lambda: gemma(OVER_SPACES),
    "added words": with_added_words,
    "byte level, cleaned": lambda: Cleaned(byte_level()),
    "wordpiece, cleaned": lambda: Cleaned(wordpiece()),
}
LEADS = {"byte level": " ", "byte level without accents": " ", "gemma": " ", "tokens over spaces": " "}


@cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary(FAMILIES[name]())


@pytest.mark.parametrize("name", FAMILIES)
def test_stable_tokens_come_back_in_any_order_and_number(name):
    words = vocabulary(name)
    stable, mark = words.stable(), words.encode(words.lead) if words.lead.strip() else []
    assert len(stable) > 60 and stable == sorted(set(stable)) and not words.special & set(stable)
    assert words.lead == LEADS.get(name, ", " if name == "byte level, cleaned" else "")
    draw = random.Random(name)
    for _ in range(400):
        ids = draw.choices(stable, k=draw.randint(1, 30))
        assert words.encode(words.decode(ids)) == mark + ids, words.decode(ids)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", ""), ("a red", ""), ("", "house"), (" The cat,", "!"), ("don't", "'s it"), ("é", "ü")]
)
def test_stable_tokens_come_back_between_fixed_texts(name, prefix, suffix):
    words = vocabulary(name)
    before, probe, behind = words.around(prefix, suffix)
    # A token that reaches over a space, as "blue house", may join a learned word to a fixed one.
    free = [i for i in words.stable() if words.encode(words.framed([i], prefix, suffix)) == before + [i] + behind]
    assert len(words.stable()) - len(free) <= len(words._spanning())
    draw = random.Random(name)
    for _ in range(60):
        ids = draw.choices(free, k=draw.randint(1, 12))
        assert words.encode(words.framed(ids, prefix, suffix)) == before + ids + behind
    whole = words.framed([probe], prefix, suffix)
    assert prefix.strip() in whole and suffix.strip() in whole and "  " not in whole


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.endswith("cleaned")])
def test_a_template_is_what_the_tokenizer_makes_of_the_text(name):
    words = vocabulary(name)
    for prefix, suffix in (("", ""), ("a red", "house")):
        template = words.template(3, prefix, suffix)
        ids = random.Random(0).choices(words.stable(), k=3)
        template.ids[template.slots] = template.ids.new_tensor(ids)
        assert template.ids.tolist() == words.tokenizer([words.framed(ids, prefix, suffix)])[0].tolist()


def test_the_choice_of_stable_tokens_is_always_the_same():
    for name in ("wordpiece", "tokens over spaces"):
        assert Vocabulary(vocabulary(name).tokenizer).stable() == vocabulary(name).stable()


def test_pieces_of_words_are_not_stable():
    for name, piece in (("wordpiece", "##s"), ("unigram", "s"), ("byte level", "s"), ("gemma", "s")):
        words = vocabulary(name)
        assert words._inner.convert_tokens_to_ids(piece) not in words.stable()
    whole = {name: set(map(str.strip, vocabulary(name).texts(vocabulary(name).stable()))) for name in FAMILIES}
    for name in ("wordpiece", "unigram", "byte level", "gemma"):
        assert {"the", "cat", "of", "not"} <= whole[name]
    assert "Bo" not in whole["wordpiece"] and any(word[0].isupper() for word in whole["wordpiece, cased"])


def test_tokens_over_spaces_are_looked_for():
    assert vocabulary("tokens over spaces")._spanning() == ["of the", "a red", "cat ", "s not"]
    words = vocabulary("tokens over spaces")
    whole = {text.strip() for text in words.texts(words.stable())}
    assert len({"of", "the"} & whole) == len({"a", "red"} & whole) == 1
    assert vocabulary("gemma")._spanning() == [] and vocabulary("added words")._spanning() == ["blue house"]


def test_words_that_a_token_joins_are_kept_apart():
    words = dict(enumerate("of the them loaf cat a".split()))
    assert joined(words, []) == set() == joined(words, ["of dog"])
    assert joined(words, ["of the"]) == {0}  # fewer end in "of" than begin with "the"
    assert joined(words, ["f the"]) == {1, 2} and joined(words, ["cat "]) == {4} and joined(words, ["f a"]) == {5}
    assert joined(words, ["of the", "f the"]) == {0, 3}  # what is out already is not asked about again


def test_culprits_are_found_among_many():
    """A token that swallows whatever follows it, and one that half of the others do not bear behind them."""

    def bears(a, b):
        return a != 41 and not (b == 7 and a % 2)

    def survive(rows):
        return [all(map(bears, row, row[1:])) for row in rows]

    assert in_any_company(range(100), survive) == [i for i in range(100) if i not in (7, 41)]
    assert in_any_company([], survive) == []


def test_a_tokenizer_without_whole_words_says_so():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words = Vocabulary(fast(tokenizer, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="no token of this tokenizer is read again as it was written"):
        allowed(words, "stable", (), 3)
    assert allowed(words, "full", (), 3).tolist() == [False, True, True]


def test_the_words_are_whole_english_words_of_the_stable_tokens(tiny_clip):
    words, stable = (tiny_clip.table(which).allowed for which in ("words", "stable"))
    assert 15_000 < words.sum() < stable.sum() and not (words & ~stable).any()
    texts, others = (
        {text.strip() for text in tiny_clip.vocabulary.texts(mask.nonzero()[:, 0].tolist())} for mask in (words, stable)
    )
    assert {"apple", "colour", "watercolor", "i", "a", "picasso", "kangaroo"} < texts
    assert not {"ning", "ter", "fying", "quered", "tically", "ders", "ing", "th", "!", "5", "b"} & texts
    assert {"quered", "ter", "!"} < others


def test_a_tokenizer_without_english_words_says_so():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "xq": 1, "zzv": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = Vocabulary(fast(tokenizer, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="vocabulary='words' leaves no token"):
        allowed(words, "words", (), 3)
    assert allowed(words, "stable", (), 3).tolist() == [False, True, True]


def test_prompts_of_words_hold_words_alone(tiny_clip, images):
    known = english()
    for result in pez_fast.invert_batch(images[:2], tiny_clip, prompt_len=6, steps=10, refine=3, vocabulary="words"):
        assert len(result.prompt.split()) == 6 and set(result.prompt.split()) <= known
