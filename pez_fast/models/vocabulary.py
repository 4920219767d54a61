"""Which tokens may be learned, and how they become text.

Random ids, written out and read again, are mostly other ids: two pieces of words join, a control character is cleaned
away. The "stable" tokens are those that come back as themselves in any order and any number. A token is stable if it is
a whole word: its text, written after any other word and a space, is read as that token. Tokenizers read words apart
from one another, so what holds for each of two words holds for a row of them. There are two exceptions, which are
looked for: entries of the vocabulary that reach over a space, and other rules that rewrite neighbours (random rows of
tokens show them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pez_fast.models.stable import in_any_company, joined
from pez_fast.models.text_tower import Template

_TOGETHER = 8  # words tried at once while looking for whole ones
_SAMPLE = 4096  # tokens that decide on the lead
_LEADS = ("", " ", ", ")  # what may stand before the first word for it to be read as any other word
_STABLE: dict[tuple, list[int]] = {}


class Vocabulary:
    """The tokens of open_clip's own `SimpleTokenizer`, or of a tokenizer from transformers.

    Attributes:
        lead: what a text of learned tokens begins with. "" for most tokenizers; " " where a word's token carries the
            space before it; ", " where the model's cleaning takes that space away.
    """

    def __init__(self, tokenizer: Any, known_ids: Sequence[int] | None = None) -> None:
        self.tokenizer, self.known_ids = tokenizer, known_ids
        inner = getattr(tokenizer, "tokenizer", tokenizer)
        self._inner = inner if hasattr(inner, "convert_ids_to_tokens") else None
        self._clean = getattr(tokenizer, "clean_fn", str)
        self._stable: list[int] | None = None
        self._lead: str | None = "" if self._inner is None else None
        self._word_of: dict[int, str] = {}  # of the stable tokens
        self.special = set(tokenizer.all_special_ids if self._inner is None else self._inner.all_special_ids)
        if self._inner is not None:
            added = getattr(self._inner, "added_tokens_decoder", {})
            self.special |= {i for i, token in added.items() if getattr(token, "special", False)}
        self.size = int(tokenizer.vocab_size) if self._inner is None else len(self._inner)

    @property
    def lead(self) -> str:
        if self._lead is None:
            ids = self._candidates()
            words = self._words(ids[:: -(-len(ids) // _SAMPLE)] if ids else ids)
            self._lead = max(_LEADS, key=lambda lead: len(self._whole(words, lead)))  # the first of equals
        return self._lead

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        return self._encode_all([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids. A space at its beginning belongs to the first token."""
        before, text = self._written(ids)
        return before + text

    def framed(self, ids: Sequence[int], prefix: str, suffix: str) -> str:
        """The text of ids between two fixed texts."""
        before, text = self._written(ids)
        whole = " ".join(part for part in (prefix.strip(), text, suffix.strip()) if part)
        return whole if prefix.strip() else before + whole

    def all_ids(self) -> list[int]:
        """Returns all ids that have a token, ascending; the numbers of some tokenizers have holes."""
        return sorted(set(self._inner.get_vocab().values())) if self._inner is not None else list(range(self.size))

    def stable(self) -> list[int]:
        """The ids that survive decode and encode in any order and number, ascending.

        Raises:
            ValueError: there is none.
        """
        if not self._found():
            raise ValueError("no token of this tokenizer is read again as it was written; vocabulary='full' takes all")
        return self._found()

    def _found(self) -> list[int]:
        if self._stable is None:
            stock = (
                self._inner is None and self.known_ids is None
            )  # open_clip's own vocabulary, the same in every model
            key = (type(self.tokenizer), self.size, self.tokenizer.clean_fn) if stock else None
            found = _STABLE[key] if key in _STABLE else self._find_stable()
            if key is not None:
                _STABLE[key] = found
            self._stable = found
        return self._stable

    def around(self, prefix: str, suffix: str) -> tuple[list[int], int, list[int]]:
        """The ids of two fixed texts as they are read before and behind learned tokens, and between them the id of one.

        Raises:
            ValueError: beside these texts a token is not read as itself.
        """
        probe = self._probe()
        left = self.encode(self.framed([probe], prefix, ""))
        whole = self.encode(self.framed([probe], prefix, suffix))
        if not left or left[-1] != probe or whole[: len(left)] != left:
            raise ValueError(f"prefix={prefix!r} and suffix={suffix!r} change the tokens that stand between them")
        return left[:-1], probe, whole[len(left) :]

    def template(self, prompt_len: int, prefix: str = "", suffix: str = "") -> Template:
        """The context of open_clip's tokenizer with prompt_len slots between prefix and suffix.

        Raises:
            ValueError: prompt_len is no positive integer, or all of it does not fit into the context.
        """
        check_prompt_len(prompt_len)
        before, filler, after = self.around(
            prefix, suffix
        )  # filler: neither end nor padding, where the tower looks at ids
        alone = [*self._mark(self.lead), filler]
        framed = self.tokenizer([self.framed([filler], "", "")])[0].tolist()
        at = next(k for k in range(len(framed)) if framed[k : k + len(alone)] == alone)
        padding = framed[-1]
        tail = framed[at + len(alone) :]
        while tail and tail[-1] == padding:
            tail.pop()
        if not tail and len(framed) == at + len(alone) + 1:
            tail = [padding]
        used = at + len(before) + prompt_len + len(after) + len(tail)
        context = int(self.tokenizer.context_length)
        check_room(prompt_len, used, context)
        start = at + len(before)
        ids = framed[:at] + before + [filler] * prompt_len + after + tail
        return Template(torch.tensor(ids + [padding] * (context - used)), torch.arange(start, start + prompt_len), used)

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        if self._inner is None:
            return [self.tokenizer.encode(text) for text in texts]
        found: list[list[int]] = []
        for start in range(0, len(texts), 8192):
            part = [self._clean(text) for text in texts[start : start + 8192]]
            found += self._inner(part, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each of ids alone."""
        if self._inner is None:
            return [self.tokenizer.decode([i]) for i in ids]
        return self._inner.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)

    def _written(self, ids: Sequence[int]) -> tuple[str, str]:
        """What stands before the text of ids where nothing else does, and that text without white space at the ends."""
        if self._inner is None:
            return "", str(self.tokenizer.decode(list(ids))).strip()
        if self._stable is None or (self._stable and not self._word_of):
            self._word_of = self._words(self._found())
        if all(i in self._word_of for i in ids):
            return self.lead, " ".join(self._word_of[i] for i in ids)
        text = self._inner.decode(list(ids), clean_up_tokenization_spaces=False)
        return text[: len(text) - len(text.lstrip())] if self.lead else "", text.strip()

    def _candidates(self) -> list[int]:
        ids = range(self.size) if self.known_ids is None else sorted(self.known_ids)
        return [i for i in ids if i not in self.special]

    def _words(self, ids: Sequence[int]) -> dict[int, str]:
        """The texts of those tokens that are one word, without the space before it."""
        if self._inner is None:  # a piece that does not end a word joins the next one
            ids = [i for i in ids if self.tokenizer.decoder[i].endswith("</w>")]
        return {i: text.strip() for i, text in zip(ids, self.texts(ids), strict=True) if len(text.split()) == 1}

    def _whole(self, words: dict[int, str], lead: str, together: int = _TOGETHER) -> list[int]:
        """Returns those that are read as themselves as the first word and after a word; so many are tried together."""
        mark, ids = self._mark(lead), list(words)
        groups = [ids[k : k + together] for k in range(0, len(ids), together)]
        read = self._encode_all([lead + " ".join(f"{words[i]} {words[i]}" for i in group) for group in groups])
        found: list[int] = []
        again: dict[int, str] = {}
        for group, got in zip(groups, read, strict=True):
            if got == mark + [i for i in group for _ in range(2)]:
                found += group
            else:
                again.update((i, words[i]) for i in group)
        return found + self._whole(again, lead, 1) if together > 1 and again else found

    def _mark(self, lead: str) -> list[int]:
        """The ids of a lead that is more than a space."""
        return self.encode(lead) if lead.strip() else []

    def _probe(self) -> int:
        """A token that is read as itself; "the" where it is one."""
        whole = None if self._inner is None else set(self.stable())
        for word in ("the", "a"):
            ids = self.encode(self.lead + word)
            if ids and (whole is None or ids[-1] in whole):
                return ids[-1]
        return self.stable()[0]

    def _find_stable(self) -> list[int]:
        words = self._words(self._candidates())
        whole = set(self._whole(words, self.lead))
        words = {i: word for i, word in words.items() if i in whole}
        mark = self._mark(self.lead)

        def survive(rows: Sequence[Sequence[int]]) -> list[bool]:
            read = self._encode_all([self.lead + " ".join(words[i] for i in row) for row in rows])
            return [ids == [*mark, *row] for row, ids in zip(rows, read, strict=True)]

        for i in joined(words, self._spanning()):
            del words[i]
        return sorted(in_any_company(list(words), survive))

    def _spanning(self) -> list[str]:
        """Returns the texts of tokens that reach over a space; none if the tokenizer reads words apart."""
        if self._inner is None:  # open_clip's reads each word alone
            return []
        ids = self._candidates()
        texts = {i: text.lstrip() for i, text in zip(ids, self.texts(ids), strict=True) if " " in text.lstrip()}
        tried = [start + text + end for text in texts.values() for start in ("", " ", "x") for end in ("", "x")]
        come_up = texts.keys() & {i for read in self._encode_all(tried) for i in read}
        return list(texts.values()) if come_up else []


def check_prompt_len(prompt_len: int) -> None:
    """Raises: ValueError: prompt_len is no positive integer."""
    if not isinstance(prompt_len, int) or isinstance(prompt_len, bool) or prompt_len < 1:
        raise ValueError(f"prompt_len must be a positive integer; got {prompt_len!r}")


def check_room(prompt_len: int, used: int, context: int) -> None:
    """Raises: ValueError: the `used` places of a template, its slots included, are more than the context has."""
    if used > context:
        fixed = used - prompt_len
        if fixed >= context:
            raise ValueError(
                f"prefix and suffix must leave room for the prompt: with the special tokens they take {fixed} of the "
                f"context's {context} places"
            )
        places = f"the context has {context} places and {fixed} are taken"
        raise ValueError(f"prompt_len must be at most {context - fixed}: {places}; got {prompt_len}")
