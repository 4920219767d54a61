"""Where the learned tokens of a prompt begin and end."""

from __future__ import annotations

from collections.abc import Sequence


def pieces(prompt: str, tokens: Sequence[str]) -> list[tuple[str, int | None]]:
    """Returns the prompt in pieces, with the number of the token that each piece is, or None for what is between them.

    The texts of the pieces, put together, are the prompt. Tokens whose texts do not stand in the prompt one after the
    other (parts of a character, which the tokenizer joins) leave the prompt in one piece.
    """
    if not tokens or not all(tokens):
        return [(prompt, None)]
    start = prompt.find(tokens[0])
    while start >= 0:
        found = _from(prompt, tokens, start)
        if found:
            return found
        start = prompt.find(tokens[0], start + 1)
    return [(prompt, None)]


def _from(prompt: str, tokens: Sequence[str], start: int) -> list[tuple[str, int | None]]:
    """Returns the pieces if the first token begins at `start`; nothing if not all tokens follow."""
    found: list[tuple[str, int | None]] = [(prompt[:start], None)] if start else []
    at = start
    for k, token in enumerate(tokens):
        space = len(prompt) - at - len(prompt[at:].lstrip())
        if not prompt.startswith(token, at + space):
            return []
        if space:
            found.append((prompt[at : at + space], None))
        found.append((token, k))
        at += space + len(token)
    return [*found, (prompt[at:], None)] if at < len(prompt) else found
