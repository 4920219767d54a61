"""Whole words of English, from a list that ships with the package (its NOTICE names the sources)."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "assets" / "words"


@cache
def english() -> frozenset[str]:
    """Returns 74,000 English words in lower case: no abbreviations, no pieces of words."""
    return frozenset(gzip.decompress((_FOLDER / "words.txt.gz").read_bytes()).decode("ascii").split())


def are_words(texts: Iterable[str]) -> list[bool]:
    """Returns for each text whether it is an English word; case and spaces around it do not matter."""
    known = english()
    return [text.strip().lower() in known for text in texts]
