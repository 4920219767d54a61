"""What a task returns."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
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

    def to_json(self, indent: int | None = None) -> str:
        """Returns the result as JSON; NaN (the scores of a result with an error) becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)

    def __str__(self) -> str:
        """Returns the prompt, or the error if there is one."""
        return self.error or self.prompt


@dataclass
class Concatenation:
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

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict of plain values."""
        return dataclasses.asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """Returns the result as JSON; NaN becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)

    def __str__(self) -> str:
        """Returns the prompt, or the error if there is one."""
        return self.error or self.prompt


@dataclass
class Mix:
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

    def to_json(self, indent: int | None = None) -> str:
        """Returns the result as JSON; NaN becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)


@dataclass
class Distilled:
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
class StyledPrompt:
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

    def to_dict(self) -> dict[str, Any]:
        """Returns the prompt and its scores as plain values."""
        return dataclasses.asdict(self)


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
class LengthRun:
    """A prompt of a study of lengths.

    Attributes:
        image: the picture's name.
        picture: a digest of its pixels.
        prompt_len, seed: what distinguishes the run from the picture's others.
        prompt, ids, text_score, referee_score: as in `PromptResult`.
        error: None, or one sentence that says why there is no prompt.
    """

    image: str
    picture: str
    prompt_len: int
    seed: int
    prompt: str = ""
    ids: list[int] = field(default_factory=list, repr=False)
    text_score: float = float("nan")
    referee_score: float = float("nan")
    error: str | None = None


@dataclass
class Spread:
    """A score over pictures, each the mean of its seeds: the mean, and the quartiles."""

    mean: float
    low: float
    high: float


@dataclass
class LengthRow:
    """What a study found at one length.

    Attributes:
        prompt_len, pictures, prompts: the length, and how many pictures and prompts were learned.
        model, referee: the cosines by the model that learned the prompts and by the referee.
        referee_change: the mean change of the referee's cosine against the length before, over the pictures of both.
        referee_rises: the share of these pictures whose referee's cosine is higher than at the length before.
    """

    prompt_len: int
    pictures: int
    prompts: int
    model: Spread
    referee: Spread
    referee_change: float | None = None
    referee_rises: float | None = None


@dataclass
class LengthStudy:
    """Prompts of several lengths, scored by the model that learned them and by a referee.

    Attributes:
        model, referee: the models' names. Their cosines cannot be compared with one another.
        runs: the finished prompts, by length, seed and picture.
        interrupted: whether Ctrl-C or the callback ended the study; the same call continues it.
    """

    model: str
    referee: str
    runs: list[LengthRun] = field(repr=False)
    interrupted: bool = False

    def table(self) -> list[LengthRow]:
        """Returns a row for each length, by rising length."""
        rows: list[LengthRow] = []
        before: dict[str, float] = {}
        for length in sorted({run.prompt_len for run in self.runs if not run.error}):
            runs = [run for run in self.runs if run.prompt_len == length and not run.error]
            model = _by_picture(runs, lambda run: run.text_score)
            referee = _by_picture(runs, lambda run: run.referee_score)
            row = LengthRow(length, len(model), len(runs), _spread(model.values()), _spread(referee.values()))
            changes = [score - before[picture] for picture, score in referee.items() if picture in before]
            if changes:
                row.referee_change = statistics.fmean(changes)
                row.referee_rises = sum(change > 0 for change in changes) / len(changes)
            rows.append(row)
            before = referee
        return rows

    def best_length(self) -> int | None:
        """Returns the length with the referee's highest mean, the shortest of equal ones; None without a prompt.

        Longer prompts over-fit where the model's cosine goes on rising and the referee's does not.
        """
        rows = self.table()
        return max(rows, key=lambda row: row.referee.mean).prompt_len if rows else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the study as a dict of plain values."""
        rows = [dataclasses.asdict(row) for row in self.table()]
        runs = [dataclasses.asdict(run) for run in self.runs]
        names = {"model": self.model, "referee": self.referee, "interrupted": self.interrupted}
        return {**names, "best_length": self.best_length(), "table": rows, "runs": runs}

    def to_json(self, indent: int | None = None) -> str:
        """Returns the study as JSON; NaN becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)


def _by_picture(runs: Sequence[LengthRun], score: Callable[[LengthRun], float]) -> dict[str, float]:
    """Returns for each picture the mean score of its runs."""
    pictures = dict.fromkeys(run.picture for run in runs)
    return {picture: statistics.fmean(score(run) for run in runs if run.picture == picture) for picture in pictures}


def _spread(values: Iterable[float]) -> Spread:
    """Returns the mean and the quartiles."""
    values = list(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Spread(statistics.fmean(values), low, high)
