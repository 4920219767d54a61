"""Shorter prompts for texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pez_fast.config import SearchOptions, config_from, takes_config
from pez_fast.objectives import Similarity, weighted_target
from pez_fast.prompt_search import search
from pez_fast.result import PromptResult
from pez_fast.tasks.checks import check_model, checked_texts, most_tokens, room_of
from pez_fast.tasks.referee import ChooseBy, add_referee, check_choice, check_referee

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
    referee: Any = None,
    choose_by: ChooseBy = "model",
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
        referee, choose_by: as for `invert`; the referee encodes texts.

    Returns:
        The best prompt that the search met. Ctrl-C returns the best prompt so far.

    Raises:
        ValueError: an option, a text, `ratio` or `prompt_len` cannot be used; the message names it.
        TypeError: an option does not exist, a text is no text, or the model lacks what the task needs.
    """
    check_model(model, "encode_texts", "context_length")
    check_referee(referee, model, "encode_texts")
    check_choice(choose_by, referee, config_from({**options}))
    texts = checked_texts("text", text)
    if ratio is not None and prompt_len is not None:
        raise ValueError(f"ratio and prompt_len exclude each other; got {ratio!r} and {prompt_len!r}")
    tokens, longest = most_tokens(texts, model), room_of(model)
    if prompt_len is None:
        prompt_len = max(1, round(checked_ratio("ratio", 0.3 if ratio is None else ratio) * tokens))
    if tokens > longest:
        prompt_len = min(prompt_len, longest)
    target = weighted_target(model.encode_texts(texts), weights)
    result = search(Similarity(target[None]), model, **{**options, "prompt_len": prompt_len})[0]
    if referee is not None:
        add_referee([result], weighted_target(referee.encode_texts(texts), weights)[None], referee, choose_by)
    return result


def checked_ratio(name: str, ratio: float) -> float:
    """Returns a ratio of tokens.

    Raises:
        ValueError: it is no number above 0 and at most 1; the message names it.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1; got {ratio!r}")
    return ratio
