"""Examples as a language model reads them: a template with its prompt left open, and the tokens of the labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pez_fast.labelled import Template
from pez_fast.labelled.template import separator
from pez_fast.models.language.model import LanguageModel

Row = Mapping[str, Any]
_PROBED = 64  # rows in which the labels' tokens are looked at


@dataclass(frozen=True)
class Texts:
    """Examples in a template around one prompt, as tokens.

    Attributes:
        before, after: for each example the ids before the prompt, and those from there to the label.
    """

    before: list[list[int]]
    after: list[list[int]]

    @property
    def shared(self) -> list[int] | None:
        """What stands before the prompt, if it is the same in all examples; else None."""
        return self.before[0] if all(ids == self.before[0] for ids in self.before) else None

    @property
    def longest(self) -> int:
        """The most tokens of an example, without its prompt."""
        return max(len(b) + len(a) for b, a in zip(self.before, self.after, strict=True))


def written(lm: LanguageModel, template: Template, ids: Sequence[int]) -> str:
    """Returns the text of learned tokens as it is put in place of {prompt}."""
    text = lm.vocabulary.framed(ids, "", "")
    return text if template.text.startswith("{prompt}") else text.strip()


def as_within(lm: LanguageModel, template: Template, prompt: str) -> str:
    """Returns a prompt's text alone, to be read as where it stands in the template: with the space before it."""
    return prompt if template.text.startswith("{prompt}") or prompt[:1].isspace() else lm.vocabulary.lead + prompt


def open_texts(lm: LanguageModel, template: Template, rows: Sequence[Row], prompt_len: int) -> Texts:
    """Returns the examples with prompt_len tokens left open.

    Raises:
        ValueError: in some example the tokenizer does not read learned tokens as themselves.
    """
    stable = lm.vocabulary.stable()
    probe = lm.vocabulary.around("", "")[1]
    other = next((i for i in stable if i != probe), probe)
    first, second = (
        lm.tokenize([template.render(written(lm, template, [i] * prompt_len), row) for row in rows])
        for i in (probe, other)
    )
    before, after = [], []
    for number, (one, two) in enumerate(zip(first, second, strict=True)):
        slots = [k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
        whole = len(slots) == prompt_len and slots[-1] - slots[0] == prompt_len - 1
        if len(one) != len(two) or not whole or any(one[k] != probe or two[k] != other for k in slots):
            raise ValueError(
                f"template {template.text!r} changes the tokens of a prompt; a space around {{prompt}} helps; "
                f"row {number + 1} is {template.render('{prompt}', rows[number])!r}"
            )
        before.append(one[: slots[0]])
        after.append(one[slots[-1] + 1 :])
    return Texts(before, after)


def closed_texts(lm: LanguageModel, template: Template, rows: Sequence[Row], prompt: str) -> Texts:
    """Returns the examples with the prompt typed in, tokenised afresh; `before` holds the prompt's tokens too."""
    whole = lm.tokenize([template.render(prompt, row) for row in rows])
    if not all(whole):
        raise ValueError(f"template {template.text!r} leaves no text to read: row {whole.index([]) + 1} is empty")
    before = template.before_prompt(rows[0])
    start = lm.tokenize([before + separator(before, prompt) + prompt])[0]
    start = start[: len(start) - len(lm.tail)]
    length = 0
    for column in zip(start, *whole, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    length = min(length, min(map(len, whole)) - 1)  # the last token of a text is always run with its example
    return Texts([ids[:length] for ids in whole], [ids[length:] for ids in whole])


def label_ids(lm: LanguageModel, template: Template, rows: Sequence[Row], words: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each label as the model is to go on with them.

    Raises:
        ValueError: two labels are read alike, or a label changes the tokens before it.
    """
    if lm.is_encoder_decoder:
        found = [lm.vocabulary.encode(template.label_lead + word) for word in words]
    else:
        found = _continued(lm, template, rows, words)
    for k, ids in enumerate(found):
        if not ids:
            raise ValueError(f"verbalizer's word {words[k]!r} has no token")
        same = next((j for j in range(k) if found[j] == ids), None)
        if same is not None:
            raise ValueError(f"verbalizer's words {words[same]!r} and {words[k]!r} are read as the same tokens")
    return found


def _continued(lm: LanguageModel, template: Template, rows: Sequence[Row], words: Sequence[str]) -> list[list[int]]:
    probed = rows[:: -(-len(rows) // _PROBED)]
    bare = lm.tokenize([template.render("", row) for row in probed])
    found: list[list[int]] = []
    for word in words:
        read = lm.tokenize([template.render("", row, word) for row in probed])
        ids = read[0][len(bare[0]) :]
        for row, one, start in zip(probed, read, bare, strict=True):
            if one[: len(start)] != start or one[len(start) :] != ids:
                raise ValueError(
                    f"verbalizer's word {word!r} joins the text before it into other tokens: "
                    f"{template.render('', row, word)[-60:]!r}; a space before {{label}} keeps them apart"
                )
        found.append(ids)
    return found


def fitted(lm: LanguageModel, template: Template, rows: Sequence[Row], room: int) -> list[Row]:
    """Returns the rows with the ends of long texts cut, so that each takes at most `room` tokens without its prompt.

    Raises:
        ValueError: the template alone takes more.
    """
    cut, found = 0, []
    for row, length in zip(rows, _lengths(lm, template, rows), strict=True):
        if length > room:
            row, cut = _shortened(lm, template, row, room), cut + 1
        found.append(row)
    if cut:
        warnings.warn(
            f"{cut} of {len(rows)} texts are longer than the model's context; their ends are cut", stacklevel=2
        )
    return found


def _lengths(lm: LanguageModel, template: Template, rows: Sequence[Row]) -> list[int]:
    """Returns the tokens of each row without its prompt: behind a prompt a text's first word may take more of them."""
    probe = written(lm, template, [lm.vocabulary.around("", "")[1]])
    alone, beside = (lm.tokenize([template.render(prompt, row) for row in rows]) for prompt in ("", probe))
    return [max(len(a), len(b) - 1) for a, b in zip(alone, beside, strict=True)]


def _shortened(lm: LanguageModel, template: Template, row: Row, room: int) -> Row:
    """Returns the row with its longest column cut until it fits."""
    row = dict(row)
    columns = {name: lm.vocabulary.encode(str(row[name])) for name in template.columns}
    while (length := _lengths(lm, template, [row])[0]) > room:
        name = max(columns, key=lambda n: len(columns[n]), default="")
        if not name or not columns[name]:
            raise ValueError(f"template {template.text!r} takes {length} tokens, and {room} are free beside the prompt")
        # What is cut within a character is read as more tokens, so that only these ones are sure to become fewer.
        columns[name] = columns[name][: max(0, len(columns[name]) - (length - room))]
        row[name] = lm.vocabulary.decode(columns[name]).strip()
    return row
