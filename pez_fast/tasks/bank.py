"""Banks of phrases: text files with one phrase a line, in the layout that CLIP Interrogator has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pez_fast.tasks.checks import room_of
from pez_fast.tasks.phrase_cache import PhraseCache

BANKS = Path(__file__).parents[1] / "assets" / "bank"
FLAVORS = "flavors"
_FIRST = ("subjects", "mediums", "artists", "trendings", "movements")  # the order in a text; others follow by name
_PART = 1024  # phrases that are encoded and kept together
_SHOWN = 60  # characters of a phrase in a sentence
Counted = Callable[[str, int, int], object]


class PhraseBank:
    """Phrases by category, and their features by model.

    Args:
        categories: lists of phrases by category, in the order that they have in a text. The category "flavors" stands
            last: any number of its phrases is chained, and one of each other category is taken.
        name: what errors call the bank.

    Raises:
        ValueError: there is no category, or one without a phrase.
    """

    def __init__(self, categories: Mapping[str, Sequence[str]], name: str = "given") -> None:
        if not categories:
            raise ValueError(f"bank {name} holds no category")
        self.name = name
        self.categories = {category: _checked(category, phrases) for category, phrases in categories.items()}
        if FLAVORS in self.categories:
            self.categories[FLAVORS] = self.categories.pop(FLAVORS)
        self._features: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()

    def features(
        self, model: Any, cache: str | os.PathLike | bool | None = None, progress: Counted | None = None
    ) -> dict[str, Tensor]:
        """Returns unit features (N, D) of the phrases of each category, in their order.

        They are encoded once: this object keeps them, and so does a folder on the disk, by the model's fingerprint and
        the phrases themselves. A model without a fingerprint has them in memory alone.

        Args:
            model: from `load_clip`.
            cache: that folder; see `PhraseCache`. False for none.
            progress: as for `describe`.

        Raises:
            ValueError: a phrase does not fit into the model's context.
        """
        if model not in self._features:
            kept = PhraseCache(model, cache)
            done, total = 0, sum(map(len, self.categories.values()))
            found: dict[str, Tensor] = {}
            for category, phrases in self.categories.items():
                parts = []
                for start in range(0, len(phrases), _PART):
                    part = phrases[start : start + _PART]
                    parts.append(kept.get(part, lambda part=part, name=category: _encoded(model, name, part)))  # type: ignore[misc]
                    done += len(part)
                    if progress is not None:
                        progress("phrases", done, total)
                found[category] = torch.cat(parts)
            self._features[model] = found
        return self._features[model]

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(phrases)} {category}" for category, phrases in self.categories.items())
        return f"PhraseBank({self.name}: {counts})"


def load_bank(source: Any = None, model_name: str = "") -> PhraseBank:
    """Reads a bank of phrases.

    Args:
        source: a folder, each of whose .txt files is a category with one phrase a line; the name of a bank that comes
            with the package ("general", "emoji"); lists of phrases by category; or a `PhraseBank`, which is returned.
            Default: "emoji" for the bundled model of that name, else "general".
        model_name: the name of the model that the bank is for.

    Raises:
        ValueError: there is no such folder, it holds no .txt file, or a file is no text or holds no phrase.
        TypeError: `source` is none of these.
    """
    if isinstance(source, PhraseBank):
        return source
    if isinstance(source, Mapping):
        return PhraseBank(source)
    if source is None:
        source = "emoji" if model_name == "emoji" else "general"
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"bank must be a folder, a name or lists of phrases by category; got {type(source).__name__}")
    own = sorted(path.name for path in BANKS.iterdir() if path.is_dir()) if BANKS.is_dir() else []
    folder = BANKS / source if isinstance(source, str) and source in own else Path(source)
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.name[0] != "."]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        names = " or ".join(own)
        raise ValueError(f"bank must be a folder, or {names}; {str(source)!r} cannot be read: {reason}") from None
    if not files:
        raise ValueError(f"bank {folder} holds no .txt file; each of them is a category with one phrase a line")
    return PhraseBank({path.stem.lower(): _lines(path) for path in sorted(files, key=_place)}, str(source))


def _place(path: Path) -> tuple[int, str]:
    name = path.stem.lower()
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _lines(path: Path) -> list[str]:
    """Returns the lines of a text file."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ValueError(f"bank file {path} cannot be read: {reason}") from None
    if "\0" in text:
        raise ValueError(f"bank file {path} cannot be read: it is no text in UTF-8")
    if not text.strip():
        raise ValueError(f"bank file {path} holds no phrase")
    return text.splitlines()


def _checked(category: str, phrases: Iterable[Any]) -> list[str]:
    """Returns the phrases of a category with single spaces, each once."""
    if isinstance(phrases, (str, bytes)) or not isinstance(phrases, Iterable):
        raise ValueError(f"bank must hold a list of phrases as {category}; got {phrases!r}")
    phrases = list(phrases)
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise ValueError(f"bank must hold phrases as {category}; got {phrase!r}")
    kept = dict.fromkeys(text for phrase in phrases if (text := " ".join(phrase.split())))
    if not kept:
        raise ValueError(f"bank must hold at least one phrase as {category}; got none")
    return list(kept)


def _encoded(model: Any, category: str, phrases: Sequence[str]) -> Tensor:
    """Returns the features (N, D) of phrases, all of which must fit into the context."""
    room = room_of(model)
    for phrase in phrases:
        if len(phrase.encode()) > room and (tokens := len(model.vocabulary.encode(phrase))) > room:
            shown = phrase if len(phrase) <= _SHOWN else f"{phrase[:_SHOWN]}…"
            raise ValueError(
                f"the phrase {shown!r} of {category} has {tokens} tokens; the model's context takes {room}"
            )
    return model.encode_texts(phrases)
