"""What a task returns."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any


def finite_or_none(value: Any) -> Any:
    """Returns the value with None in place of every NaN and infinity in it, which JSON cannot hold."""
    if isinstance(value, dict):
        return {k: finite_or_none(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite_or_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class Candidate:
    """One of the best prompts of a target.

    Attributes:
        prompt, ids, ids_score, text_score, restart, tokens: as in `PromptResult`.
    """

    prompt: str
    ids: list[int]
    ids_score: float
    text_score: float
    restart: int
    tokens: list[str] = field(default_factory=list, repr=False)


@dataclass
class PromptResult:
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
    error: str | None = None
    soft_prompt: Any = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict of plain values."""
        values = dataclasses.asdict(dataclasses.replace(self, soft_prompt=None))
        del values["soft_prompt"]
        return values

    def to_json(self, indent: int | None = None) -> str:
        """Returns the result as JSON; NaN (the scores of a result with an error) becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)

    def __str__(self) -> str:
        """Returns the prompt, or the error if there is one."""
        return self.error or self.prompt


@dataclass
class ClassifierResult(PromptResult):
    """A prompt learned for a classification by a language model.

    `ids_score` and `text_score` order prompts: the accuracy on the held-out examples, and between equal ones the loss.

    Attributes:
        accuracy, loss: of the prompt as text on the held-out examples that chose it; the loss holds the fluency term.
        perplexity: of the prompt, by the model; None for an encoder-decoder.
        fluency: λ, the share of the fluency term.
        template, verbalizer: the template, and the word of each label.
        examples, held_out: how many examples the prompt was learned from, and how many chose it.
        curve: (step, accuracy, loss) of the prompts that were scored on the held-out examples on the way.
    """

    accuracy: float = float("nan")
    loss: float = float("nan")
    perplexity: float | None = None
    fluency: float = 0.0
    template: str = ""
    verbalizer: dict[str, str] = field(default_factory=dict)
    examples: int = 0
    held_out: int = 0
    curve: list[tuple[int, float, float]] = field(default_factory=list, repr=False)


@dataclass
class ClassifierScores:
    """How well a prompt serves a language model for a classification.

    Attributes:
        prompt, model: the prompt as text, and the model's name.
        accuracy, loss: the share of examples with the right label, and the mean cross-entropy of the right labels.
        perplexity: of the prompt, by the model; None for an encoder-decoder and for fewer than two tokens.
        labels: the labels, in the order of the table of confusion.
        confusion: for each true label how many examples got each label.
        predictions: the label that each example got.
        seconds: how long it took.
    """

    prompt: str
    model: str
    accuracy: float
    loss: float
    perplexity: float | None
    labels: list[str]
    confusion: list[list[int]]
    predictions: list[str] = field(repr=False)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the scores as a dict of plain values."""
        return dataclasses.asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """Returns the scores as JSON; NaN becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)


@dataclass
class DescriptionPart:
    """A phrase of a description.

    Attributes:
        category: the list that it is from.
        phrase: the phrase.
        score: the cosine of the phrase alone with the image.
        text_score: the cosine of the description up to this phrase, itself included.
    """

    category: str
    phrase: str
    score: float
    text_score: float = float("nan")


@dataclass
class Description:
    """A text of phrases from a bank that describes an image.

    Attributes:
        text: the phrases, with commas between.
        score: the cosine of the text, typed in, with the image.
        parts: the phrases, in their order.
        model: the model's name.
        note: "", or one sentence on what to keep in mind.
        error: None, or one sentence that says why there is no text.
    """

    text: str = ""
    score: float = float("nan")
    parts: list[DescriptionPart] = field(default_factory=list, repr=False)
    model: str = ""
    note: str = ""
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the description as a dict of plain values."""
        return dataclasses.asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """Returns the description as JSON; NaN becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)

    def __str__(self) -> str:
        """Returns the text, or the error if there is one."""
        return self.error or self.text
