"""What a task returns."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any


def finite_or_none(value: Any) -> Any:
    """The value with every number in it that JSON does not have, NaN or an infinity, as None."""
    if isinstance(value, dict):
        return {k: finite_or_none(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite_or_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class Candidate:
    """One of the best prompts of a target; the attributes are those of `PromptResult`."""

    prompt: str
    ids: list[int]
    ids_score: float
    text_score: float
    restart: int


@dataclass
class PromptResult:
    """A learned prompt.

    Attributes:
        prompt: the text, with the fixed texts before and behind the learned part.
        ids: the learned tokens.
        ids_score: weighted mean cosine of the optimised ids with the targets.
        text_score: the same of `prompt` typed in again and tokenised afresh: what a user gets.
        steps: updates made.
        history: score of the prompt at every step of the first stage, the one after the last update included, in the dtype
            of the search.
        seed, restart: where the search began.
        model: name of the model.
        seconds: from the beginning of the call until this prompt was there; prompts share batches.
        stop_reason: why it ended: "steps", "patience", "callback" or "interrupt".
        top: the best different prompts, best first (this one is the first), as many as `top_k` asked for and the search met.
        error: one sentence where there is no prompt because the target could not be read.
    """

    prompt: str = ""
    ids: list[int] = field(default_factory=list)
    ids_score: float = float("nan")
    text_score: float = float("nan")
    steps: int = 0
    history: list[float] = field(default_factory=list)
    seed: int = 0
    restart: int = 0
    model: str = ""
    seconds: float = 0.0
    stop_reason: str = ""
    top: list[Candidate] = field(default_factory=list)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """JSON; what is not a number (the scores of an error) becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)

    def __str__(self) -> str:
        return self.error or self.prompt
