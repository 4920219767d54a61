"""What the tasks on pictures and texts return beside a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pez_fast.result.plain import Plain
from pez_fast.result.prompt import PromptResult


@dataclass
class Concatenation(Plain):
    """Several prompts joined into one.

    Attributes:
        prompt: the text.
        order: the numbers of the joined prompts, as they stand in the text one after the other.
        parts: for each given prompt what of it stands in the text; "" for one that was left out.
        cut: for each given prompt the words that were cut from it, so that the text fits into the context.
        scores: the cosine of the text with each target: the images, or without images the prompts that were joined.
        score: the mean of `scores`.
        tried: the orders that were tried and the mean of each, best first.
        tokens, limit: how many tokens the text has, and how many the model reads.
        model: the model's name.
        note: "", or one sentence on what was cut or left out.
        error: None, or one sentence that says why there is no prompt.
    """

    prompt: str = ""
    order: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    cut: list[list[str]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    score: float = float("nan")
    tried: list[tuple[list[int], float]] = field(default_factory=list, repr=False)
    tokens: int = 0
    limit: int = 0
    model: str = ""
    note: str = ""
    error: str | None = None

    def __str__(self) -> str:
        """Returns the prompt, or the error if there is one."""
        return self.error or self.prompt


@dataclass
class Mix(Plain):
    """Two ways to one prompt for several images: their prompts joined, and a prompt learned for all of them.

    Attributes:
        each: the prompt of each image; `error` is set for an image that cannot be read.
        joined: these prompts as one text; its numbers are those of `each`.
        shared: the prompt that was learned for all images that could be read. It has as many learned tokens as one of
            `each`.
        images: the numbers of the images that could be read; all scores here stand in their order.
        each_scores: for each prompt of `each` its cosine with each of these images; empty where it has an error.
        shared_scores: the cosine of `shared` with each of these images.
    """

    each: list[PromptResult]
    joined: Concatenation
    shared: PromptResult
    images: list[int]
    each_scores: list[list[float]]
    shared_scores: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict of plain values."""
        prompts = {"each": [result.to_dict() for result in self.each], "shared": self.shared.to_dict()}
        own = {name: getattr(self, name) for name in ("images", "each_scores", "shared_scores")}
        return {**prompts, "joined": self.joined.to_dict(), **own}


@dataclass
class Distilled(Plain):
    """A text shortened to a share of its tokens, as one row of a study.

    Attributes:
        text, text_tokens: the text, and how many tokens it has.
        ratio: the share that was asked for.
        result: the shorter prompt.
    """

    text: str
    text_tokens: int
    ratio: float
    result: PromptResult

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as plain values."""
        return {**vars(self), "result": self.result.to_dict()}


@dataclass
class StyledPrompt(Plain):
    """A style applied to a new subject: the better of the two orders of the subject and the style.

    Attributes:
        subject: the new subject.
        prompt: the subject and the style in the order that scores better.
        score: the mean cosine of `prompt` with the style's pictures.
        scores: the cosine of `prompt` with each picture.
        other_prompt, other_score: the other order, and its mean cosine.
        subject_score: the mean cosine of the subject alone, without the style.
    """

    subject: str
    prompt: str
    score: float
    scores: list[float]
    other_prompt: str
    other_score: float
    subject_score: float


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
class Description(Plain):
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

    def __str__(self) -> str:
        """Returns the text, or the error if there is one."""
        return self.error or self.text
