"""Whether two models read a text as the same tokens."""

from __future__ import annotations

from typing import Any

_TEXTS = ("", "a photograph of a boat", "Café, 3 DOGS & it's naïve…", "日本 🙂 <b> _x_  two  spaces")


def why_not_shared(model: Any, other: Any) -> str | None:
    """Returns why two models do not have the same tokens, or None: the same ids for the same words, in every text.

    The padding and the context may differ, since each model reads a text in its own way.
    """
    sizes = [each.embedding.num_embeddings for each in (model, other)]
    if sizes[0] != sizes[1]:
        return f"one has {sizes[0]} tokens and the other {sizes[1]}"
    first, second = model.vocabulary, other.vocabulary
    if first.special != second.special:
        return f"their special tokens are {sorted(first.special)[:4]} and {sorted(second.special)[:4]}"
    ids = first.all_ids()
    if ids != second.all_ids():
        return "their tokens have other ids"
    if first.tokenizer is second.tokenizer:
        return None
    for i, text, there in zip(ids, first.texts(ids), second.texts(ids), strict=True):
        if text != there:
            return f"token {i} is {text!r} and {there!r}"
    for text in _TEXTS:
        if first.encode(text) != second.encode(text):
            return f"they cut {text!r} differently"
    return None
