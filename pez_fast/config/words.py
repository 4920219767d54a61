"""The words of a vocabulary that a user names."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

VOCABULARIES = ("stable", "words", "full")
Vocabulary = str | os.PathLike | Sequence[str]


def listed_words(vocabulary: Any) -> str | tuple[str, ...]:
    """Returns the name of a vocabulary, or the words of a list or a file in lower case, sorted, each once.

    Raises:
        ValueError: it is none of these, the file cannot be read as text, or there is no word.
    """
    if isinstance(vocabulary, str) and vocabulary in VOCABULARIES:
        return vocabulary
    wanted = f"vocabulary must be one of {', '.join(VOCABULARIES)}, a list of words or a file of them"
    texts = vocabulary
    if isinstance(vocabulary, (str, os.PathLike)):
        try:
            texts = [Path(vocabulary).read_text("utf-8-sig")]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise ValueError(f"{wanted}; {str(vocabulary)!r} cannot be read: {reason}") from None
    if isinstance(texts, bytes) or not isinstance(texts, Collection) or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{wanted}; got {vocabulary!r}")
    if not (words := {word for text in texts for word in text.lower().split()}):
        raise ValueError(f"vocabulary must hold at least one word; got {vocabulary!r}")
    return tuple(sorted(words))
