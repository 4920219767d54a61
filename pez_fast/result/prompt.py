"""A learned prompt."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pez_fast.result.plain import Plain


@dataclass
class Candidate:
    """One of the best prompts of a target.

    Attributes:
        prompt, ids, ids_score, text_score, restart, tokens, referee_score: as in `PromptResult`.
    """

    prompt: str
    ids: list[int]
    ids_score: float
    text_score: float
    restart: int
    tokens: list[str] = field(default_factory=list, repr=False)
    referee_score: float | None = None


@dataclass
class PromptResult(Plain):
    """A learned prompt.

    Attributes:
        prompt: the text, with the prefix before and the suffix after the learned part.
        ids: the learned tokens.
        ids_score: the score of `ids`; for a task, their weighted mean cosine with the targets.
        text_score: the score of `prompt`, typed in and tokenised again: what a user gets.
        steps: updates made in the first stage.
        history: the prompt's score at every step of the first stage, the one after the last update included; the search
            computes them in its own dtype.
        seed, restart: where the search began.
        model: the model's name.
        seconds: from the beginning of the call to this result; the prompts of a batch share this time.
        stop_reason: why the search ended: "steps", "patience", "callback" or "interrupt".
        note: "", or one sentence on what to keep in mind, such as that the model does not know images of this kind.
        tokens: the text of each learned token alone, without spaces around it.
        top: the best different prompts, this one first, then by falling `text_score`: `top_k` of them, or fewer if the
            search met fewer.
        referee, referee_score: the name of the second model that the task was given, and its score of `prompt`; "" and
            None without one.
        error: None, or one sentence that says why there is no prompt.
        soft_prompt: (L, d) tensor where the first stage's method keeps soft prompts (`SoftPromptMethod`), else None;
            no part of the JSON.
    """

    prompt: str = ""
    ids: list[int] = field(default_factory=list)
    ids_score: float = float("nan")
    text_score: float = float("nan")
    steps: int = 0
    history: list[float] = field(default_factory=list, repr=False)
    seed: int = 0
    restart: int = 0
    model: str = ""
    seconds: float = 0.0
    stop_reason: str = ""
    note: str = ""
    tokens: list[str] = field(default_factory=list, repr=False)
    top: list[Candidate] = field(default_factory=list, repr=False)
    referee: str = ""
    referee_score: float | None = None
    error: str | None = None
    soft_prompt: Any = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict of plain values."""
        values = dataclasses.asdict(dataclasses.replace(self, soft_prompt=None))
        del values["soft_prompt"]
        return values

    def __str__(self) -> str:
        """Returns the prompt, or the error if there is one."""
        return self.error or self.prompt
