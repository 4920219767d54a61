"""Which tokens may be learned, and how they become text.

Random ids, written out and read again, are mostly other ids: two pieces of words join, a control character is cleaned
away. The "stable" tokens are those that come back as themselves, alone and between others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pez_fast.models.text_tower import Template
from pez_fast.table import TokenTable

_GROUP = 64  # tokens written out at once while looking for unstable ones
_STABLE: dict[tuple, list[int]] = {}


class Vocabulary:
    """The tokens of an open_clip tokenizer: its own `SimpleTokenizer`, or one from transformers."""

    def __init__(self, tokenizer: Any, known_ids: Sequence[int] | None = None) -> None:
        self.tokenizer, self.known_ids = tokenizer, known_ids
        self._inner = getattr(tokenizer, "tokenizer", None)
        self._stable: list[int] | None = None
        self.special = set(tokenizer.all_special_ids if self._inner is None else self._inner.all_special_ids)
        self.size = int(tokenizer.vocab_size) if self._inner is None else len(self._inner)

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        if self._inner is None:
            return self.tokenizer.encode(text)
        clean = getattr(self.tokenizer, "clean_fn", lambda t: t)
        return list(self._inner(clean(text), add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without white space at the ends."""
        return str((self._inner or self.tokenizer).decode(list(ids))).strip()

    def framed(self, ids: Sequence[int], prefix: str, suffix: str) -> str:
        """The text of ids between two fixed texts."""
        return " ".join(part for part in (prefix.strip(), self.decode(ids), suffix.strip()) if part)

    def allowed(self, vocabulary: str, banned: Sequence[str | int], size: int) -> Tensor:
        """(size,) bool: see `ClipEncoder.table`."""
        if vocabulary not in ("stable", "full"):
            raise ValueError(f"vocabulary must be 'stable' or 'full'; got {vocabulary!r}")
        if isinstance(banned, str):
            raise ValueError(f"banned must be a list of words and ids; got the text {banned!r}")
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[list(range(min(self.size, size))) if vocabulary == "full" else self.stable()] = True
        allowed[[i for i in self.special if i < size]] = False
        texts: list[str] | None = None
        for entry in banned:
            if isinstance(entry, int):
                if not 0 <= entry < size:
                    raise ValueError(f"banned holds the id {entry}, which is not in the vocabulary of {size}")
                allowed[entry] = False
                continue
            words = entry.lower().split()
            if not words:
                raise ValueError(f"banned holds an empty word: {entry!r}")
            texts = texts or [self.decode([i]).lower() if a else "" for i, a in enumerate(allowed.tolist())]
            for word in words:
                allowed &= torch.tensor([word not in text for text in texts])
                if vocabulary == "full":  # pieces could make it up
                    allowed[self.encode(word)] = False
        if not allowed.any():
            raise ValueError(f"banned leaves no token of the {vocabulary} vocabulary")
        return allowed

    def stable(self) -> list[int]:
        """The ids that survive decode and encode, ascending."""
        if self._stable is None:
            self._stable = self._find_stable()
        return self._stable

    def _find_stable(self) -> list[int]:
        stock = self._inner is None and self.known_ids is None  # open_clip's own vocabulary, the same in every model
        key = (type(self.tokenizer), self.size, self.tokenizer.clean_fn) if stock else None
        if key not in _STABLE:
            candidates = [
                i
                for i in (range(self.size) if self.known_ids is None else sorted(self.known_ids))
                if i not in self.special
            ]
            if self._inner is None:  # a piece that does not end a word joins the next one
                candidates = [i for i in candidates if self.tokenizer.decoder[i].endswith("</w>")]
            alone = _keep(candidates, self._survives)
            probe = next((ids for ids in (self.encode("the"), self.encode("a")) if len(ids) == 1), alone[:1])
            between = _keep(alone, lambda group: self._survives([t for i in group for t in (i, i, *probe)]))
            found = [i for i in between if self._survives([i])]
            if key is None:
                return found
            _STABLE[key] = found
        return _STABLE[key]

    def _survives(self, ids: list[int]) -> bool:
        return self.encode(self.decode(ids)) == ids

    def template(self, prompt_len: int, prefix: str = "", suffix: str = "") -> Template:
        """The context with prompt_len slots between prefix and suffix.

        Raises:
            ValueError: prompt_len is no positive integer, or all of it does not fit into the context.
        """
        if not isinstance(prompt_len, int) or isinstance(prompt_len, bool) or prompt_len < 1:
            raise ValueError(f"prompt_len must be a positive integer; got {prompt_len!r}")
        before, after = self.encode(prefix), self.encode(suffix)
        probe = self.encode("the")
        framed = self.tokenizer(["the"])[0].tolist()
        at = next(k for k in range(len(framed)) if framed[k : k + len(probe)] == probe)
        padding = framed[-1]
        tail = framed[at + len(probe) :]
        while tail and tail[-1] == padding:
            tail.pop()
        if not tail and len(framed) == at + len(probe) + 1:
            tail = [padding]
        used = at + len(before) + prompt_len + len(after) + len(tail)
        context = int(self.tokenizer.context_length)
        if used > context:
            fixed = used - prompt_len
            places = f"the context has {context} places and {fixed} are taken"
            raise ValueError(f"prompt_len must be at most {context - fixed}: {places}; got {prompt_len}")
        start = at + len(before)
        filler = probe[0]  # stands for the learned tokens where the tower looks at ids: neither end nor padding
        ids = framed[:at] + before + [filler] * prompt_len + after + tail
        return Template(torch.tensor(ids + [padding] * (context - used)), torch.arange(start, start + prompt_len), used)


def embedding_table(
    embedding: nn.Embedding, vocabulary: Vocabulary, which: str, banned: Sequence[str | int]
) -> TokenTable:
    """The tokens that may be learned, as what the embedding module puts out for them; see `ClipEncoder.table`."""
    device = embedding.weight.device
    with torch.no_grad():
        ids = torch.arange(embedding.num_embeddings, device=device)
        weight = torch.cat([embedding(part) for part in ids.split(8192)])
    if torch.equal(weight, embedding.weight):
        weight = embedding.weight
    return TokenTable(weight, ~vocabulary.allowed(which, banned, len(weight)).to(device))


def _keep(ids: list[int], survives: Callable[[list[int]], bool]) -> list[int]:
    """Those that survive, tried in groups that are halved until the culprits stand alone."""
    kept = []
    stack = [ids[k : k + _GROUP] for k in range(0, len(ids), _GROUP)][::-1]
    while stack:
        group = stack.pop()
        if survives(group):
            kept += group
        elif len(group) > 1:
            middle = len(group) // 2
            stack += [group[middle:], group[:middle]]
    return kept
