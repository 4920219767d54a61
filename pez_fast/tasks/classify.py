"""Prompts for classification by language models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pez_fast.config import SearchConfig, config_from, takes_config
from pez_fast.labelled import LEARNING, LabelConfig, LabelOptions, split_options
from pez_fast.models.language.model import LanguageModel
from pez_fast.models.language.task import LabelModel
from pez_fast.objectives import LabelLoss, split_score
from pez_fast.prompt_search import search
from pez_fast.result import ClassifierResult, ClassifierScores, PromptResult
from pez_fast.tasks.labelled_task import Labelled, label_task, labelled, scores_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_config(also=LabelConfig, defaults=LEARNING)
def learn_classifier(examples: Any, lm: LanguageModel, **options: Unpack[LabelOptions]) -> ClassifierResult:
    """Learns a prompt that makes a language model put the right label behind a text.

    The loss is that of Wen et al. 2023, section 5: (1 - fluency) times the cross-entropy of the labels' words, plus
    fluency times the prompt's own cross-entropy. Each step draws a minibatch; the prompt that is returned is the one
    with the best accuracy, as text, on examples that were held out.

        learn_classifier("reviews.csv", load_lm("gpt2-large"), "{prompt}{text} It was {label}", "0=negative,1=positive")

    Args:
        examples: a CSV, TSV, JSONL, JSON or Parquet file, a list of dicts, a data set of the library datasets,
            "hf:owner/name", or the name of a preset: sst2, agnews, amazon, reviews, headlines.
        lm: from `load_lm`, or a `LanguageModel`.

    Returns:
        A `ClassifierResult`. Ctrl-C returns the best prompt so far.

    Raises:
        ValueError, TypeError: an argument or an option cannot be used; the message names it.
    """
    check_lm(lm)
    own, given = split_options({**options})
    config = checked_config(given, own)
    data = labelled(examples, own)
    model = LabelModel(lm, label_task(data, own, own.fluency > 0))
    (result,) = search(LabelLoss([own.fluency]), model, **given)
    return classifier_result(result, model, data, own.fluency, not config.terms)


def checked_config(given: dict[str, Any], own: LabelConfig) -> SearchConfig:
    """Returns the options of the search.

    Raises:
        ValueError: one cannot be used, alone or beside the options of the classification.
    """
    config = config_from(given)
    if config.patience is not None and config.patience < own.held_out_every:
        raise ValueError(
            f"patience must be at least held_out_every, since between two scores no prompt can improve; got "
            f"{config.patience} and {own.held_out_every}"
        )
    return config


def classifier_result(
    result: PromptResult, model: LabelModel, data: Labelled, fluency: float, with_curve: bool = True
) -> ClassifierResult:
    """Returns a search's result with what a classification adds."""
    task = model.task
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(PromptResult)}
    size = len(task.held_out.rows)
    words = {str(k): word for k, word in zip(data.verbalizer.labels, task.words, strict=True)}
    shown: dict[str, Any] = {"fluency": fluency, "template": task.template.text, "verbalizer": words}
    learned_from = len(task.train.rows) if task.shots is None else task.shots * len(task.words)
    shown |= {"examples": learned_from, "held_out": size}
    if result.error:
        return ClassifierResult(**values, **shown)
    held = Labelled(task.held_out.rows, task.held_out.classes, data.template, data.verbalizer)
    scores = scores_of(result.prompt, model.lm, held, task.calibrate, model.labeller)
    loss = scores.loss
    if fluency:
        loss = (1 - fluency) * loss + fluency * math.log(scores.perplexity or math.nan)
    scored = [(step, score) for step, score in enumerate(result.history) if score == score]
    curve = [(step, *split_score(score, size)) for step, score in scored] if with_curve else []
    return ClassifierResult(
        **values, **shown, accuracy=scores.accuracy, loss=loss, perplexity=scores.perplexity, curve=curve
    )


def evaluate_classifier(
    prompt: str,
    lm: LanguageModel,
    examples: Any,
    template: str | None = None,
    verbalizer: Any = None,
    *,
    label: str | None = None,
    calibrate: bool = False,
    split: str | None = None,
    limit: int | None = None,
) -> ClassifierScores:
    """Returns how well a prompt, as text, serves a language model on examples.

    Args:
        prompt: the text that stands for {prompt}; "" for the template alone.
        lm, template, verbalizer, label, calibrate, split, limit: as for `learn_classifier`.
        examples: as for `learn_classifier`; of a preset, the rows to test on.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it.
    """
    check_lm(lm)
    check_prompt(prompt)
    config = LabelConfig(template, verbalizer, label, split, limit, calibrate=calibrate)
    return scores_of(prompt, lm, labelled(examples, config, test=True), calibrate)


def transfer(
    prompts: str | PromptResult | Sequence[str | PromptResult],
    lms: LanguageModel | Sequence[LanguageModel],
    examples: Any,
    template: str | None = None,
    verbalizer: Any = None,
    *,
    label: str | None = None,
    calibrate: bool = False,
    split: str | None = None,
    limit: int | None = None,
) -> list[ClassifierScores]:
    """Returns how well prompts serve language models that they were not learned for, as text.

    Args:
        prompts: a prompt or several, each a text or a result; a result with several in `top` stands for all of them.
        lms: a language model or several, of any architecture and tokenizer.
        examples: as for `evaluate_classifier`.
        template, verbalizer, label, calibrate, split, limit: as for `learn_classifier`.

    Returns:
        The scores of each prompt for each model, model by model. Spaces at a prompt's ends are taken off, since what
        stands there is another tokenizer's.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it.
    """
    models = list(lms) if isinstance(lms, Sequence) else [lms]
    texts = _texts(prompts)
    if not models:
        raise ValueError("lms must hold at least one language model; got an empty list")
    for lm in models:
        check_lm(lm)
    config = LabelConfig(template, verbalizer, label, split, limit, calibrate=calibrate)
    data = labelled(examples, config, test=True)
    return [scores_of(text.strip(), lm, data, calibrate) for lm in models for text in texts]


def _texts(prompts: Any) -> list[str]:
    """Returns the texts of prompts and results."""
    found: list[str] = []
    for prompt in [prompts] if isinstance(prompts, str) or not isinstance(prompts, Sequence) else prompts:
        if isinstance(prompt, PromptResult):
            if prompt.error:
                raise ValueError(f"prompts must hold results with a prompt; got one with the error {prompt.error!r}")
            found += [candidate.prompt for candidate in prompt.top] or [prompt.prompt]
        else:
            check_prompt(prompt)
            found.append(prompt)
    if not found:
        raise ValueError("prompts must hold at least one prompt; got an empty list")
    return found


def check_lm(lm: object) -> None:
    """Raises TypeError if `lm` is no language model."""
    if not isinstance(lm, LanguageModel):
        raise TypeError(f"lm must come from load_lm, or be a LanguageModel; got {type(lm).__name__}")


def check_prompt(prompt: object) -> None:
    """Raises ValueError if a prompt is no text."""
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be a text; got {prompt!r}")
