"""What classification by a language model returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from pez_fast.result.plain import Plain
from pez_fast.result.prompt import PromptResult


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
class ClassifierScores(Plain):
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
