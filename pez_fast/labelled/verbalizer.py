"""Verbalizers: the word that stands for each label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

MOST_CLASSES = 50  # of a verbalizer that is made from rows: a column with more is hardly one of labels


class Verbalizer:
    """The labels of a classification and the word for each; a class is a position in both.

    Attributes:
        labels: the labels as they were given.
        words: their words, without white space at their ends.
    """

    labels: tuple[str | int, ...]
    words: tuple[str, ...]

    def __init__(self, words: Mapping[Any, str] | Sequence[str] | str) -> None:
        """Makes a verbalizer.

        Args:
            words: a dict of label and word, where a label is a text, whole number or bool; a list of words for the
                labels 0, 1, 2 and so on; or a text such as "0=negative,1=positive".

        Raises:
            ValueError: there are fewer than two classes, a word is empty, or a label or a word stands there twice.
        """
        if isinstance(words, str):
            pairs: list[tuple[Any, Any]] = _pairs(words)
        elif isinstance(words, Mapping):
            pairs = list(words.items())
        elif isinstance(words, Sequence):
            pairs = list(enumerate(words))
        else:
            raise TypeError(f"verbalizer must be a dict, a list of words or a text; got {type(words).__name__}")
        for label, word in pairs:
            if not _is_label(label):
                raise ValueError(f"verbalizer: a label must be a text, whole number or bool; got {label!r}")
            if not isinstance(word, str) or not word.strip():
                raise ValueError(
                    f"verbalizer: the word for label {label!r} must be a text, and not empty; got {word!r}"
                )
        self.labels = tuple(label for label, _ in pairs)
        self.words = tuple(word.strip() for _, word in pairs)
        if len(pairs) < 2:
            raise ValueError(f"verbalizer must have two classes or more; got {len(pairs)} ({words!r})")
        self._classes: dict[Any, int] = {}  # by label, and by its text
        for k, (label, word) in enumerate(zip(self.labels, self.words, strict=True)):
            if _key(label) in self._classes:
                raise ValueError(f"verbalizer has the label {_key(label)!r} twice")
            if word in self.words[:k]:
                other = self.labels[self.words.index(word)]
                raise ValueError(f"verbalizer has the word {word!r} for the labels {other!r} and {label!r}")
            self._classes[_key(label)] = k
        self._classes = {label: k for k, label in enumerate(self.labels)} | self._classes

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], column: str) -> Verbalizer:
        """Returns a verbalizer whose words are the labels of a column: each once, by size if all are whole numbers.

        Raises:
            ValueError: the column is missing, has fewer than two labels or more than 50, or an empty one.
        """
        labels: dict[str, Any] = {}
        for number, row in enumerate(rows, 1):
            value = _value(row, column, number)
            if not _is_label(value) or not _key(value):
                raise ValueError(
                    f"row {number} has {value!r} in the column {column!r}; "
                    "a label must be a text that is not empty, a whole number or a bool"
                )
            labels.setdefault(_key(value), value)
            if len(labels) > MOST_CLASSES:
                raise ValueError(
                    f"column {column!r} has more than {MOST_CLASSES} labels, such as {_key(value)!r}; "
                    "name the column of labels, or give a verbalizer"
                )
        if len(labels) < 2:
            raise ValueError(f"column {column!r} must have two labels or more; it has {_listed(labels) or 'none'}")
        whole = all(re.fullmatch(r"-?[0-9]{1,18}", key) for key in labels)
        return cls({labels[key]: key for key in sorted(labels, key=lambda key: (int(key) if whole else 0, key))})

    def index(self, value: Any, row: int | None = None) -> int:
        """Returns the class of a label's value: that of the equal label, or of the label with the same text.

        Args:
            value: what stands in a row, such as "0" from a .csv file where the label is 0.
            row: where the row stands in its list, from 0, for the message, which counts from 1.

        Raises:
            ValueError: no label is like it; the message names the value, the row and the labels.
        """
        try:
            found = self._classes.get(value)
        except TypeError:  # a list, which no dict can hold
            found = None
        if found is None:
            found = self._classes.get(_key(value))
        if found is None:
            where = "" if row is None else f"row {row + 1}: "
            raise ValueError(f"{where}label {value!r} is unknown; the labels are {_listed(self.labels)}")
        return found

    def classes(self, rows: Sequence[Mapping[str, Any]], column: str) -> list[int]:
        """Returns the class of each row by the label in a column.

        Raises:
            ValueError: a row lacks the column, or its label is unknown.
        """
        return [self.index(_value(row, column, k + 1), k) for k, row in enumerate(rows)]

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verbalizer) and (self.labels, self.words) == (other.labels, other.words)

    def __hash__(self) -> int:
        return hash((self.labels, self.words))

    def __repr__(self) -> str:
        return f"Verbalizer({dict(zip(self.labels, self.words, strict=True))!r})"


def _pairs(text: str) -> list[tuple[Any, Any]]:
    """Returns the labels and words of a text."""
    pairs = []
    for part in text.split(","):
        label, equals, word = part.partition("=")
        if not equals or not label.strip():
            raise ValueError(f"verbalizer {text!r} must be as '0=negative,1=positive'; {part!r} is no label=word")
        pairs.append((label.strip(), word))
    return pairs


def _is_label(value: Any) -> bool:
    return isinstance(value, (str, Integral))


def _key(value: Any) -> str:
    """Returns the text by which labels of different types are compared."""
    return str(value).strip()


def _value(row: Mapping[str, Any], column: str, number: int) -> Any:
    """Returns a row's value in the column of labels."""
    if column not in row:
        raise ValueError(f"row {number} has no column {column!r} of labels; its columns are {_listed(row) or 'none'}")
    return row[column]


def _listed(names: Any) -> str:
    """Returns names in quotes with commas between."""
    return ", ".join(map(repr, names))
