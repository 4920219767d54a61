"""Descriptions of images by phrases from a bank, as CLIP Interrogator makes them (github.com/pharmapsychotic)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pez_fast.config import whole_number
from pez_fast.images import image_or_error, load_image
from pez_fast.result import Description, DescriptionPart, PromptResult
from pez_fast.tasks.bank import FLAVORS, Counted, PhraseBank, load_bank
from pez_fast.tasks.checks import check_model, room_of

SEPARATOR = ", "
MAX_FLAVORS, CANDIDATES = 8, 64
_ROWS = 8192  # phrases compared with an image at once
R = TypeVar("R", Description, PromptResult)


def describe(
    images: Any,
    model: Any,
    bank: Any = None,
    *,
    max_flavors: int = MAX_FLAVORS,
    candidates: int = CANDIDATES,
    cache: str | os.PathLike | bool | None = None,
    progress: Counted | None = None,
) -> Any:
    """Describes images by phrases: the best one of each category, and a chain of flavors.

    The best one alone stands in at first; then each category, the last one first, takes the one that gives the whole
    text the highest cosine. A flavor is added as long as one raises that cosine: each time the one that raises it most.
    The text must fit into the model's context; a phrase for which there is no room is left out.

    Args:
        images: what `load_image` takes, or a list of them.
        model: from `load_clip`.
        bank: what `load_bank` takes: a folder of .txt files, the name of a bank that comes with the package, lists of
            phrases by category, or a `PhraseBank`.
        max_flavors: the most flavors of a text; 0 for none.
        candidates: phrases of a category that are tried in a text: those that have the highest cosine alone.
        cache: the folder that keeps the features of phrases; default: PEZ_FAST_CACHE, or the folder pez_fast in the
            user's folder of caches. False for none.
        progress: called with what is counted ("phrases", "images"), how many are done, and how many there are.

    Returns:
        A `Description`, or for a list of images a list of them, each the same as alone. In a list, an image that cannot
        be read has `error` set and does not end the others.

    Raises:
        ValueError, TypeError: an image, the bank, a phrase or a number cannot be used; the message names it.
    """
    max_flavors = whole_number("max_flavors", max_flavors, 0, "an integer, not negative")
    candidates = whole_number("candidates", candidates, 1, "a positive integer")
    bank, is_list = checked_bank(bank, model), isinstance(images, (list, tuple))
    errors, features, notes = read_targets(images if is_list else [images], model, is_list)
    found: list[Description] = []
    if len(features):
        describer = Describer(model, bank, max_flavors, candidates, cache, progress)
        for row in features:
            found.append(describer(row))
            if progress is not None:
                progress("images", len(found), len(features))
    results = merged(errors, found, notes, lambda error: Description(model=model.name, error=error))
    return results if is_list else results[0]


def checked_bank(bank: Any, model: Any) -> PhraseBank:
    """Returns the bank, for a model that can encode its phrases."""
    check_model(model, "encode_pixels", "encode_texts", "preprocess", "context_length")
    return load_bank(bank, model.name)


def read_targets(images: Sequence[Any], model: Any, go_on: bool) -> tuple[list[str | None], Tensor, list[str]]:
    """Returns for each image None or why it cannot be read, and the features (N, D) and notes of those that can.

    Raises:
        ValueError: there is no image, or, unless `go_on`, one cannot be read.
    """
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    loaded = [
        image_or_error(image, model.preprocess) if go_on else model.preprocess(load_image(image)) for image in images
    ]
    pixels = [each for each in loaded if not isinstance(each, str)]
    features = model.encode_pixels(pixels) if pixels else torch.empty(0, 0)
    notes = model.notes(pixels) if pixels and hasattr(model, "notes") else [""] * len(pixels)
    return [each if isinstance(each, str) else None for each in loaded], features, notes


def merged(
    errors: Sequence[str | None], found: Sequence[R], notes: Sequence[str], failed: Callable[[str], R]
) -> list[R]:
    """Returns the results in the order of the images: those found, with their notes, and the failed ones."""
    rows = iter(zip(found, notes, strict=True))
    results = []
    for error in errors:
        if error is not None:
            results.append(failed(error))
            continue
        result, note = next(rows)
        result.note = note
        results.append(result)
    return results


class Describer:
    """Describes images that are given as features; arguments as for `describe`.

    Attributes:
        room: the most tokens of a text.
        banned: words in lower case, and ids; a phrase that holds one is left out.
    """

    def __init__(
        self,
        model: Any,
        bank: PhraseBank,
        max_flavors: int,
        candidates: int = CANDIDATES,
        cache: str | os.PathLike | bool | None = None,
        progress: Counted | None = None,
    ) -> None:
        self.model, self.bank, self.max_flavors, self.candidates = model, bank, max_flavors, candidates
        self.features = bank.features(model, cache, progress)
        self.room = room_of(model)
        self.banned: tuple[str | int, ...] = ()

    def __call__(self, target: Tensor) -> Description:
        """Returns the description of an image's features (D,)."""
        parts: list[DescriptionPart] = []
        ranked = {name: self._ranked(target, name) for name in self.bank.categories if name != FLAVORS}
        for phrases in ranked.values():
            parts += self._fitting(phrases, parts)[:1]
        for place in reversed(range(len(parts) if len(parts) > 1 else 0)):
            self._exchange(target, parts, place, ranked[parts[place].category][: self.candidates])
        scores = self._scores(target, [_text(parts[: k + 1]) for k in range(len(parts))])
        for part, score in zip(parts, scores, strict=True):
            part.text_score = score
        if FLAVORS in self.bank.categories and self.max_flavors:
            self._chain(target, parts)
        score = parts[-1].text_score if parts else float("nan")
        error = None if parts else "no phrase of the bank fits into the context"
        return Description(_text(parts), score, parts, self.model.name, error=error)

    def _exchange(
        self, target: Tensor, parts: list[DescriptionPart], place: int, phrases: Sequence[DescriptionPart]
    ) -> None:
        """Puts the phrase at one place that gives the whole text the highest cosine."""
        tried = [[*parts[:place], phrase, *parts[place + 1 :]] for phrase in (parts[place], *phrases)]
        tried = [each for each in tried if self._fits(each)]
        scores = self._scores(target, [_text(each) for each in tried])
        parts[place] = tried[max(range(len(tried)), key=scores.__getitem__)][place]  # the first of equals

    def _chain(self, target: Tensor, parts: list[DescriptionPart]) -> None:
        """Adds flavors to the parts as long as one raises the cosine of their text."""
        left = self._ranked(target, FLAVORS)[: self.candidates]
        for _ in range(self.max_flavors):
            left = self._fitting(left, parts, all_of_them=True)
            scores = self._scores(target, [_text([*parts, flavor]) for flavor in left])
            best = max(range(len(left)), key=scores.__getitem__, default=None)  # the first of equals
            if best is None or (parts and scores[best] <= parts[-1].text_score):
                return
            chosen = left.pop(best)
            chosen.text_score = scores[best]
            parts.append(chosen)

    def _ranked(self, target: Tensor, category: str) -> list[DescriptionPart]:
        """Returns the phrases of a category that hold nothing banned, the best first."""
        features, phrases = self.features[category], self.bank.categories[category]
        parts = (features[start : start + _ROWS] for start in range(0, len(features), _ROWS))
        cosines = torch.cat([(part * target).sum(-1) for part in parts])  # a row rounds alike in any number
        values, order = cosines.sort(descending=True, stable=True)
        most = len(order) if category != FLAVORS or self.banned else self.candidates
        ranked = zip(order[:most].tolist(), values[:most].tolist(), strict=True)
        return [DescriptionPart(category, phrases[k], v) for k, v in ranked if not self._is_banned(phrases[k])]

    def _is_banned(self, phrase: str) -> bool:
        ids = self.model.vocabulary.encode(phrase) if any(isinstance(entry, int) for entry in self.banned) else []
        return any(entry in ids if isinstance(entry, int) else entry in phrase.lower() for entry in self.banned)

    def _fitting(
        self, phrases: Sequence[DescriptionPart], parts: Sequence[DescriptionPart], all_of_them: bool = False
    ) -> list[DescriptionPart]:
        """Returns those phrases, or the first of them, that fit into the context behind the parts."""
        found = []
        for phrase in phrases:
            if self._fits([*parts, phrase]):
                found.append(phrase)
                if not all_of_them:
                    break
        return found

    def _fits(self, parts: Sequence[DescriptionPart]) -> bool:
        return len(self.model.vocabulary.encode(_text(parts))) <= self.room

    def _scores(self, target: Tensor, texts: Sequence[str]) -> list[float]:
        """Returns the cosine of each text with the target."""
        return (self.model.encode_texts(list(texts)) * target).sum(-1).tolist() if texts else []


def _text(parts: Sequence[DescriptionPart]) -> str:
    return SEPARATOR.join(part.phrase for part in parts)
