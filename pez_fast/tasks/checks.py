"""Checks of arguments that several tasks share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any


def check_model(model: object, *needed: str) -> None:
    """Checks that a model has the attributes that a task needs.

    Raises:
        TypeError: the model lacks one; the message names it. Or the task is on images, and the model takes texts alone.
    """
    missing = [name for name in ("table", "bind", *needed) if not hasattr(model, name)]
    if missing:
        raise TypeError(f"model must come from load_clip, or have {', '.join(missing)}; got {type(model).__name__}")
    refused = getattr(model, "text_only", "")
    if refused and {"encode_images", "encode_pixels"} & {*needed}:
        raise TypeError(refused)


def checked_texts(name: str, texts: Any, may_be_none: bool = False) -> list[str]:
    """Returns a text or several as a list.

    Raises:
        ValueError: one is empty, or there is none though there must be.
        TypeError: one is no text.
    """
    if not isinstance(texts, (str, Sequence)) or isinstance(texts, bytes):
        raise TypeError(f"{name} must be a text or a list of texts; got {texts!r}")
    found = [texts] if isinstance(texts, str) else list(texts)
    if not found and not may_be_none:
        raise ValueError(f"{name} must hold at least one text; got an empty list")
    for text in found:
        if not isinstance(text, str):
            raise TypeError(f"{name} must hold texts alone; got {text!r}")
        if not text.strip():
            raise ValueError(f"{name} must not be empty; got {text!r}")
    return found


def room_of(model: Any) -> int:
    """Returns how many tokens of a text the model's context takes."""
    return int(model.context_length) - 2


def most_tokens(texts: Sequence[str], model: Any, of: str = "the text", stacklevel: int = 4) -> int:
    """Returns the tokens of the longest text, and warns if the model does not read them all.

    Args:
        of: what the warning calls the text.
        stacklevel: as for `warnings.warn`, seen from here.
    """
    tokens, room = max(len(model.vocabulary.encode(text)) for text in texts), room_of(model)
    if tokens > room:
        warnings.warn(f"the model reads the first {room} of the {tokens} tokens of {of}", stacklevel=stacklevel)
    return tokens
