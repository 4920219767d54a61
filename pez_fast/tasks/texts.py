"""Shorter prompts for texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pez_fast.config import SearchOptions, takes_config
from pez_fast.objectives import Similarity, weighted_target
from pez_fast.prompt_search import search
from pez_fast.result import PromptResult
from pez_fast.tasks.checks import check_model

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_config
def distill(  # type: ignore[misc]  # prompt_len replaces the option of that name
    text: str | Sequence[str],
    model: Any,
    ratio: float | None = None,
    prompt_len: int | None = None,
    *,
    weights: Sequence[float] | None = None,
    **options: Unpack[SearchOptions],
) -> PromptResult:
    """Learns a shorter prompt that means the same to the model.

    Args:
        text: the prompt to shorten, or several texts; the learned prompt then means their weighted mean.
        model: from `load_clip` or `load_sentence_encoder`.
        ratio: tokens of the result divided by tokens of the longest text, in (0, 1]. Default: 0.3, unless prompt_len
            is given.
        prompt_len: the number of tokens, in place of a ratio.
        weights: one number for each text; a negative one pushes the prompt away from its text. Default: equal
            weights.

    Returns:
        The best prompt that the search met. Ctrl-C returns the best prompt so far.

    Raises:
        ValueError: an option, a text, `ratio` or `prompt_len` cannot be used; the message names it.
        TypeError: an option does not exist, or the model lacks what the task needs.
    """
    check_model(model, "encode_texts", "context_length")
    texts = checked_texts("text", [text] if isinstance(text, str) else text)
    if ratio is not None and prompt_len is not None:
        raise ValueError(f"ratio and prompt_len exclude each other; got {ratio!r} and {prompt_len!r}")
    tokens, longest = max(len(model.vocabulary.encode(item)) for item in texts), model.context_length - 2
    if prompt_len is None:
        prompt_len = max(1, round(checked_ratio("ratio", 0.3 if ratio is None else ratio) * tokens))
    if tokens > longest:
        warnings.warn(f"the model reads the first {longest} of the {tokens} tokens of the text", stacklevel=3)
        prompt_len = min(prompt_len, longest)
    target = weighted_target(model.encode_texts(texts), weights)
    return search(Similarity(target[None]), model, **{**options, "prompt_len": prompt_len})[0]


def checked_texts(name: str, texts: Sequence[str]) -> list[str]:
    """Returns the texts of the argument `name` as a list.

    Raises:
        ValueError: there is none, or one is empty or no text; the message names it.
        TypeError: it is no list.
    """
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a text or a list of texts; got {type(texts).__name__}")
    found = list(texts)
    if not found:
        raise ValueError(f"{name} must hold at least one text; got an empty list")
    for item in found:
        if not isinstance(item, str) or not item.strip():
            raise ValueError(f"{name} must not be empty; got {item!r}")
    return found


def checked_ratio(name: str, ratio: float) -> float:
    """Returns a ratio of tokens.

    Raises:
        ValueError: it is no number above 0 and at most 1; the message names it.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1; got {ratio!r}")
    return ratio
