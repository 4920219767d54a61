"""A referee: a second model that never sees the search and scores the prompts that come out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from pez_fast.config import SearchConfig
from pez_fast.result import PromptResult

ChooseBy = Literal["model", "referee"]


def check_referee(referee: object, model: object, *needed: str) -> None:
    """Checks that a referee, if there is one, is another model and can encode what the task needs.

    Args:
        needed: the referee's methods that the task calls.

    Raises:
        TypeError: the referee lacks one; the message names it.
        ValueError: the referee is the model itself.
    """
    if referee is None:
        return
    missing = [name for name in needed if not hasattr(referee, name)]
    if missing:
        raise TypeError(f"referee must come from load_clip, or have {', '.join(missing)}; got {type(referee).__name__}")
    name = getattr(referee, "name", "custom")
    if referee is model or (name != "custom" and name == getattr(model, "name", None)):
        raise ValueError(f"referee must be another model than the one that learns; both are {name!r}")


def check_choice(choose_by: object, referee: object, config: SearchConfig) -> None:
    """Checks who chooses among the best prompts.

    Raises:
        ValueError: `choose_by` has no such value, or asks for a referee's choice without a referee or without a choice.
    """
    if choose_by not in get_args(ChooseBy):
        raise ValueError(f"choose_by must be one of {', '.join(get_args(ChooseBy))}; got {choose_by!r}")
    if choose_by == "referee" and referee is None:
        raise ValueError("choose_by='referee' needs a referee; got None")
    if choose_by == "referee" and config.top_k < 2:
        raise ValueError(f"choose_by='referee' needs a top_k of at least 2, to choose from; got {config.top_k}")


def add_referee(results: Sequence[PromptResult], targets: Tensor, referee: Any, choose_by: ChooseBy = "model") -> None:
    """Adds a referee's scores to results, and lets it choose among each one's best prompts if it should.

    Args:
        results: N results; those with an error stay as they are.
        targets: (N, D), for each result the weighted mean of the referee's own unit features of its target.
        referee: a model with `encode_texts`.
        choose_by: "referee" makes the prompt with the referee's highest score the result's own.
    """
    learned = [(k, candidate) for k, result in enumerate(results) if not result.error for candidate in result.top]
    if not learned:
        return
    features = referee.encode_texts([candidate.prompt for _, candidate in learned])
    scores = (features * targets[[k for k, _ in learned]]).sum(-1).tolist()
    for (_, candidate), score in zip(learned, scores, strict=True):
        candidate.referee_score = score
    for result in results:
        if result.error or not result.top:
            continue
        if choose_by == "referee":
            _choose(result)
        result.referee, result.referee_score = getattr(referee, "name", "custom"), result.top[0].referee_score


def _choose(result: PromptResult) -> None:
    """Makes the candidate with the referee's highest score the result's own; the first of equal ones."""
    best = max(
        result.top, key=lambda candidate: -math.inf if candidate.referee_score is None else candidate.referee_score
    )
    result.top = [best, *(candidate for candidate in result.top if candidate is not best)]
    for name in ("prompt", "ids", "ids_score", "text_score", "restart", "tokens"):
        setattr(result, name, getattr(best, name))
