"""Templates: where the prompt, the columns of a row and the label stand in a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from string import Formatter
from typing import Any, NamedTuple

PROMPT, LABEL = "prompt", "label"


class Piece(NamedTuple):
    """A part of a template: fixed text, or the name of a column."""

    text: str
    is_column: bool


@dataclass(frozen=True)
class Template:
    """A text around a prompt, as `Template.parse` makes it.

    Attributes:
        text: the template as it was written.
        target: the name of the field that is scored, "label" or another.
        label_lead: the white space just before that field, usually one space. It is scored with the label, since a
            language model's words begin with their space. It is one space as well where the prompt touches the field.
        after_label: what stands after that field, as it was written. It is kept and has no part in what is scored.
    """

    text: str
    target: str
    label_lead: str
    after_label: str
    _before: tuple[Piece, ...] = field(repr=False)
    _after: tuple[Piece, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str, target: str = LABEL) -> Template:
        """Returns the template of a text such as "{prompt}{sentence} It was {label}".

        Args:
            text: `{prompt}` and after it `{label}`, each once, and any number of columns of the rows by their names in
                braces. `{{` and `}}` stand for braces. A column of the name prompt or label cannot be named.
            target: the name that stands in place of label, where a column's text is what shall follow.

        Raises:
            ValueError: the text is no such template; one sentence says why.
        """
        if not isinstance(text, str):
            raise TypeError(f"template must be a text; got {type(text).__name__}")
        if not target or target == PROMPT:
            raise ValueError(f"target must be the name of a column, and not {PROMPT!r}; got {target!r}")
        pieces = _pieces(text)
        for name in (PROMPT, target):
            if (count := pieces.count(Piece(name, True))) != 1:
                raise ValueError(f"template {text!r} must have {{{name}}} exactly once; it has it {count} times")
        here, there = pieces.index(Piece(PROMPT, True)), pieces.index(Piece(target, True))
        if there < here:
            raise ValueError(f"template {text!r} must have {{{PROMPT}}} before {{{target}}}")
        before, after, rest = pieces[:here], pieces[here + 1 : there], pieces[there + 1 :]
        lead = "" if after else " "
        if after and not after[-1].is_column:
            fixed = after[-1].text
            lead = fixed[len(fixed.rstrip()) :]  # which `after_prompt` leaves away
        return cls(text, target, lead, "".join(map(_written, rest)), tuple(before), tuple(after))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that stand before the label, each once, in their order."""
        names = (piece.text for piece in (*self._before, *self._after) if piece.is_column)
        return tuple(dict.fromkeys(names))

    @property
    def prompt_is_first(self) -> bool:
        """Whether what stands before the prompt is the same text for every row: fixed text or nothing."""
        return not any(piece.is_column for piece in self._before)

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuses rows that lack a column, or whose value there is no text, number or bool. An empty text is allowed.

        A target with another name than label is a column too.

        Raises:
            ValueError: the message names the template, the column, and the row, counted from 1.
        """
        columns = self.columns if self.target == LABEL else (*self.columns, self.target)
        for number, row in enumerate(rows, 1):
            for column in columns:
                self._value(row, column, f"row {number}")

    def before_prompt(self, row: Mapping[str, Any]) -> str:
        """Returns the text before the prompt, with the white space that stands at its end."""
        return self._filled(self._before, row)

    def after_prompt(self, row: Mapping[str, Any]) -> str:
        """Returns the text between the prompt and the label; it never ends in white space, which is `label_lead`."""
        return self._filled(self._after, row).rstrip()

    def render(self, prompt: str, row: Mapping[str, Any], label: str = "") -> str:
        """Returns the text that a model reads, with the prompt and, if it is given, the label.

        With `before` and `after` for what `before_prompt` and `after_prompt` return, this holds for every prompt but
        the empty one: `render(p, row) == before + separator(before, p) + p + separator(p, after) + after`. So the
        prompt is written as it is, and a space stands where it would touch another character. An empty prompt leaves
        what stands around it, with the white space of one side, or one space where there is none. For every label but
        the empty one, `render(p, row, label) == render(p, row) + label_lead + label`.
        """
        before, after = self.before_prompt(row), self.after_prompt(row)
        if prompt:
            whole = before + separator(before, prompt) + prompt + separator(prompt, after) + after
        else:
            whole = _without_prompt(before, after)
        return whole + self.label_lead + label if label else whole

    def _filled(self, pieces: Iterable[Piece], row: Mapping[str, Any]) -> str:
        return "".join(self._value(row, piece.text) if piece.is_column else piece.text for piece in pieces)

    def _value(self, row: Mapping[str, Any], column: str, name: str = "the row") -> str:
        """Returns a row's value in a column as text, without white space at its ends."""
        if column not in row:
            there = ", ".join(map(repr, row)) or "none"
            raise ValueError(f"template {self.text!r} needs the column {column!r}; {name} has the columns {there}")
        value = row[column]
        if not isinstance(value, (str, Number)) or value != value:
            raise ValueError(
                f"template {self.text!r} needs a text, number or bool in the column {column!r}; {name} has {value!r}"
            )
        text = str(value).strip()
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(
                f"template {self.text!r} needs text in the column {column!r}; "
                f"{name} has half a character (a surrogate): {text!r}"
            )
        return text


def separator(left: str, right: str) -> str:
    """Returns the space between two texts where two characters would touch that are no white space, else nothing."""
    return " " if left and right and not left[-1].isspace() and not right[0].isspace() else ""


def _without_prompt(before: str, after: str) -> str:
    """Joins the texts around an empty prompt, with the white space of the side that has more line breaks, or more."""
    left, right = before.rstrip(), after.lstrip()
    if not left or not right:
        return before + right if right else left
    gaps = before[len(left) :], after[: len(after) - len(right)]
    return left + (max(gaps, key=lambda gap: (gap.count("\n"), len(gap))) or " ") + right


def _pieces(text: str) -> list[Piece]:
    """Returns the parts of a template."""
    try:
        fields = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(
            f"template {text!r} has braces that do not fit ({error}); {{{{ and }}}} stand for braces"
        ) from None
    found: list[Piece] = []
    for literal, name, spec, conversion in fields:
        if literal:
            found.append(Piece(literal, False))
        if name is None:
            continue
        if not name or name.isdecimal():
            raise ValueError(f"template {text!r} must name its columns; {{{name}}} names none")
        if spec or conversion:
            raise ValueError(f"template {text!r} must have names alone in braces; {{{name}}} has a format")
        found.append(Piece(name, True))
    return found


def _written(piece: Piece) -> str:
    """Returns a part as it stands in a template."""
    return f"{{{piece.text}}}" if piece.is_column else piece.text.replace("{", "{{").replace("}", "}}")
