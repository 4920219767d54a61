"""Tokens that hold in company: what two words side by side may turn into, found from the vocabulary and by trial."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

_GROUP = 64  # tokens in a row that is tried
_ROUNDS = 3  # random orders of all tokens, one after the other, in which none may fail
_PROBES = 16  # tokens beside which suspects are tried
_LAST = chr(0x10FFFF)

Survive = Callable[[Sequence[Sequence[int]]], list[bool]]  # of rows of tokens: which of them are read as themselves


def joined(words: dict[int, str], spanning: Sequence[str]) -> set[int]:
    """Returns the tokens to leave out so that no two others are read as one over the space between.

    Args:
        words: the texts of tokens, each one word.
        spanning: the texts of the tokens that reach over a space, as "of the" or "of ".

    Such a token begins as a word ends and goes on as the next one begins; the rarer of both is left out.
    """
    by_start = sorted((word, i) for i, word in words.items())
    by_end = sorted((word[::-1], i) for i, word in words.items())
    out: set[int] = set()
    for text in spanning:
        end, rest = text.split(" ", 1)
        before = _beginning_with(by_end, end[::-1]) - out
        behind = _beginning_with(by_start, rest.split(" ", 1)[0]) - out
        if before and behind:
            out |= before if len(before) < len(behind) else behind
    return out


def in_any_company(ids: Sequence[int], survive: Survive) -> list[int]:
    """Those of ids that survive in random rows of one another; the same for the same ids, in the order of ids."""
    order = random.Random(0)
    kept, clean = list(ids), 0
    while kept and clean < _ROUNDS:
        shuffled = list(kept)
        order.shuffle(shuffled)
        rows = [shuffled[k : k + _GROUP] for k in range(0, len(shuffled), _GROUP)]
        probes = kept[:: -(-len(kept) // _PROBES)]
        culprits = set().union(
            *(_culprits(row, probes, survive) for row, ok in zip(rows, survive(rows), strict=True) if not ok)
        )
        kept = [i for i in kept if i not in culprits]
        clean = 0 if culprits else clean + 1
    return kept


def _beginning_with(ordered: list[tuple[str, int]], start: str) -> set[int]:
    first, last = bisect_left(ordered, (start, -1)), bisect_right(ordered, (start + _LAST, -1))
    return {i for _, i in ordered[first:last]}


def _culprits(row: Sequence[int], probes: Sequence[int], survive: Survive) -> set[int]:
    """What to take out of a row for the rest to survive."""
    row, out = list(row), set[int]()
    while row and not survive([row])[0]:
        ends = survive([row[:end] for end in range(1, len(row) + 1)])
        end = ends.index(False) + 1
        starts = survive([row[start:end] for start in range(end)])
        suspects = row[max(start for start, ok in enumerate(starts) if not ok) : end]
        failures = {
            i: survive([pair for p in probes for pair in ([i, p], [p, i])]).count(False)
            for i in dict.fromkeys(suspects)
        }
        worst = max(reversed(failures), key=failures.__getitem__)  # the last of equals
        out.add(worst)
        row = [i for i in row if i != worst]
    return out
