"""Tokenizers of several families, built here from a corpus of made-up words; the same in every run."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

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
