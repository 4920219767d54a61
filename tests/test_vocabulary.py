"""Stable tokens, written out in any order and number and between fixed texts, are read again as themselves."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from functools import cache

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

import pez_fast
from pez_fast.models.allowed import allowed
from pez_fast.models.stable import in_any_company, joined
from pez_fast.models.vocabulary import Vocabulary
from pez_fast.models.words import english

MARKS = list(",.;:!?'-")
FIXED = ["the", "a", "of", "cat", "cats", "dog", "house", "do", "not", "n't", "don't", "it's", "we're", "red", "blue"]


@cache
def corpus() -> tuple[str, ...]:
    """A few hundred made-up words, some with capitals or accents, in sentences with marks; always the same."""
    draw = random.Random(5)
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"] + ["é", "ü"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(300)]
    words += [word.capitalize() for word in words[::7]] + [word + "s" for word in words[::3]] + FIXED * 4
    lines = []
    for _ in range(700):
        row = draw.choices(words, k=draw.randint(3, 9))
        lines.append(" ".join(word + (draw.choice(MARKS) if draw.random() < 0.2 else "") for word in row))
    return tuple(lines)


def frequent(words: list[str], count: int, longest: int = 8) -> dict[str, int]:
    """All letters of the words and their most frequent pieces, with how often each occurs.

    The trainers of Unigram and WordPiece give other pieces each time, since they add numbers up in any order.
    """
    found = Counter(
        word[start:end]
        for word in words
        for start in range(len(word))
        for end in range(start + 1, min(start + longest, len(word)) + 1)
    )
    pieces = sorted(found, key=lambda piece: (len(piece) > 1, -found[piece] * len(piece) ** 2, piece))
    return {piece: found[piece] for piece in pieces[:count]}


def trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def framed(tokenizer: Tokenizer, first: str, last: str) -> Tokenizer:
    """With special tokens round every text; `first` may be empty."""
    special = [(name, tokenizer.token_to_id(name)) for name in (first, last) if name]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(name for name in (first, "$A", last) if name), special_tokens=special
    )
    return tokenizer


def fast(tokenizer: Tokenizer, **more):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **more)


def wordpiece(lowercase=True, **more):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    split = [splitter.pre_tokenize_str(normalizer.normalize_str(line)) for line in (*corpus(), " ".join(FIXED * 9))]
    words = [word for line in split for word, _ in line]
    marked = frequent([f"^{word}" for word in words], 1500)
    begins = [piece[1:] for piece in marked if piece[0] == "^" and len(piece) > 1]
    letters = sorted({letter for word in words for letter in word})
    ends = [f"##{piece}" for piece in frequent([word[1:] for word in words], 200)]
    vocab = {piece: k for k, piece in enumerate(dict.fromkeys([*special, *letters, *ends, *begins]))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(special)
    tokenizer.decoder = decoders.WordPiece(cleanup=more.get("clean_up_tokenization_spaces", False))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return fast(framed(tokenizer, "[CLS]", "[SEP]"), **names, **more)


def unigram(first="<s>"):
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [f"▁{word}" for line in corpus() for word in [*line.split(), *FIXED]]
    pieces = frequent(words, 700)
    scores = [(piece, math.log(count / sum(pieces.values()))) for piece, count in pieces.items()]
    tokenizer = Tokenizer(models.Unigram([*((name, 0.0) for name in special), *scores], unk_id=3))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return fast(framed(tokenizer, first, "</s>"), **names)


def byte_level(strip_accents=False):
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    if strip_accents:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return fast(framed(trained(tokenizer, trainer), "<s>", "</s>"), **names)


def gemma(spanning=()):
    """Spaces are written as ▁ and words are not read apart; `spanning`: pairs of tokens that are one token more."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*|[^▁]+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=["▁"], show_progress=False)
    trained(tokenizer, trainer).pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    state = json.loads(tokenizer.to_str())
    for pair in spanning:
        state["model"]["vocab"]["".join(pair)] = len(state["model"]["vocab"])
        state["model"]["merges"].append(list(pair))
    names = {"bos_token": "<bos>", "pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return fast(framed(Tokenizer.from_str(json.dumps(state)), "<bos>", "<eos>"), **names)


OVER_SPACES = [("▁of", "▁the"), ("▁a", "▁red"), ("▁cat", "▁"), ("s", "▁not")]


class Cleaned:
    """As open_clip wraps a tokenizer from transformers: white space at the ends of a text is taken away."""

    def __init__(self, tokenizer):
        self.tokenizer, self.context_length = tokenizer, 48

    def clean_fn(self, text):
        return " ".join(text.split()).strip()

    def __call__(self, texts):
        whole = [self.clean_fn(text) for text in texts]
        return self.tokenizer(
            whole, return_tensors="pt", padding="max_length", max_length=48, truncation=True
        ).input_ids


def with_added_words():
    tokenizer = unigram()
    tokenizer.add_tokens(
        [AddedToken("covid", normalized=False), AddedToken("blue house"), AddedToken("x", rstrip=True)]
    )
    return tokenizer


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
