"""Which tokens may be learned: a vocabulary, without what the user bans."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pez_fast.models.vocabulary import Vocabulary
from pez_fast.models.words import are_words
from pez_fast.table import TokenTable

_SHOWN = 5  # words that a sentence names


def embedding_table(
    embedding: nn.Embedding, vocabulary: Vocabulary, which: str | Sequence[str], banned: Sequence[str | int]
) -> TokenTable:
    """The tokens that may be learned, as what the embedding module puts out for them; see `EmbeddedModel.table`."""
    device = embedding.weight.device
    with torch.no_grad():
        ids = torch.arange(embedding.num_embeddings, device=device)
        weight = torch.cat([embedding(part) for part in ids.split(8192)])
    if torch.equal(weight, embedding.weight):
        weight = embedding.weight
    return TokenTable(weight, ~allowed(vocabulary, which, banned, len(weight)).to(device))


def allowed(vocabulary: Vocabulary, which: str | Sequence[str], banned: Sequence[str | int], size: int) -> Tensor:
    """(size,) bool: see `EmbeddedModel.table`; `which` is a name, or words in lower case."""
    if isinstance(banned, str):
        raise ValueError(f"banned must be a list of words and ids; got the text {banned!r}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[_members(vocabulary, which, size)] = True
    mask[[i for i in vocabulary.special if i < size]] = False
    for entry in banned:
        if isinstance(entry, int):
            if not 0 <= entry < size:
                raise ValueError(f"banned holds the id {entry}, which is not in the vocabulary of {size}")
            mask[entry] = False
        elif not entry.split():
            raise ValueError(f"banned holds an empty word: {entry!r}")
    _ban_words(mask, vocabulary, which, [w for e in banned if isinstance(e, str) for w in e.lower().split()])
    if not mask.any():
        raise ValueError(f"banned leaves no token of the {_called(which)} vocabulary")
    return mask


def _members(vocabulary: Vocabulary, which: str | Sequence[str], size: int) -> list[int]:
    """Returns the ids of a vocabulary."""
    if which == "full":
        return [i for i in vocabulary.all_ids() if i < size]
    ids = vocabulary.stable()
    if not isinstance(which, str):
        return _listed(vocabulary, ids, which)
    if which == "words":
        ids = [i for i, is_word in zip(ids, are_words(vocabulary.texts(ids)), strict=True) if is_word]
        if not ids:
            raise ValueError("vocabulary='words' leaves no token: none of this tokenizer's is an English word")
    return ids


def _listed(vocabulary: Vocabulary, ids: Sequence[int], words: Sequence[str]) -> list[int]:
    """Returns those ids whose text is one of the words, and warns of words that no token is.

    Raises:
        ValueError: there is none.
    """
    known = set(words)
    texts = [text.strip().lower() for text in vocabulary.texts(ids)]
    found = [i for i, text in zip(ids, texts, strict=True) if text in known]
    missing = sorted(known.difference(texts))
    named = ", ".join(map(repr, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
    if not found:
        raise ValueError(f"vocabulary leaves no token: none of its {len(words)} words is one to this model ({named})")
    if missing:
        warnings.warn(
            f"{len(missing)} of the {len(words)} words of vocabulary are no single token of this model and cannot be "
            f"learned: {named}",
            stacklevel=2,
        )
    return found


def _called(which: str | Sequence[str]) -> str:
    return which if isinstance(which, str) else "given"


def _ban_words(mask: Tensor, vocabulary: Vocabulary, which: str | Sequence[str], words: Sequence[str]) -> None:
    """Takes every token that holds one of the words out of the mask."""
    if not words:
        return
    kept = mask.nonzero()[:, 0].tolist()
    texts = [text.lower() for text in vocabulary.texts(kept)]
    for word in words:
        holding = [i for i, text in zip(kept, texts, strict=True) if word in text]
        if not holding:
            warnings.warn(
                f"banned holds {word!r}, which no token of the {_called(which)} vocabulary holds", stacklevel=2
            )
        mask[holding] = False
        if which == "full":  # pieces could make it up
            mask[vocabulary.encode(word)] = False
