"""What the tasks of classification share: examples with their template and verbalizer, from files, rows or presets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from pez_fast.labelled import PRESETS, LabelConfig, Preset, Template, Verbalizer, few_shot, read_examples, split_rows
from pez_fast.models.language.labeller import Labeller
from pez_fast.models.language.model import LanguageModel
from pez_fast.models.language.task import Examples, LabelTask, label_scores
from pez_fast.models.language.texts import as_within, closed_texts, fitted, open_texts
from pez_fast.result import ClassifierResult, ClassifierScores

MOST_HELD_OUT = 500  # rows that are held out by default


@dataclass(frozen=True)
class Labelled:
    """Examples with all that a classification needs.

    Attributes:
        rows: the examples.
        classes: the number of each one's class.
        template: where prompt, text and label stand.
        verbalizer: the word of each label.
    """

    rows: Sequence[Mapping[str, Any]]
    classes: Sequence[int]
    template: Template
    verbalizer: Verbalizer


def labelled(examples: Any, config: LabelConfig, test: bool = False) -> Labelled:
    """Returns examples, read and checked.

    Args:
        examples: the name of a preset, or what `read_examples` takes.
        config: the template, the verbalizer, the column of the labels, the split and the limit.
        test: whether a preset's rows are those to test on.

    Raises:
        ValueError: something is missing, or does not fit the rows; the sentence names it.
    """
    preset = PRESETS.get(examples) if isinstance(examples, str) else None
    rows = _read(preset or examples, config.split, config.limit, test)
    label = config.label or (preset.label if preset else "label")
    text = config.template if config.template is not None else preset.template if preset else None
    if text is None:
        raise ValueError('template must be given, such as "{prompt}{text} It was {label}"')
    parsed, verbalizer = Template.parse(text), config.verbalizer
    parsed.check(rows)
    if isinstance(verbalizer, Verbalizer):
        words = verbalizer
    elif verbalizer is not None:
        words = Verbalizer(verbalizer)
    else:
        words = preset.verbalizer(rows) if preset else Verbalizer.from_rows(rows, label)
    return Labelled(rows, words.classes(rows, label), parsed, words)


def _read(source: Any, split: str | None, limit: int | None, test: bool) -> list[dict[str, Any]]:
    if isinstance(source, Preset):
        return source.read(split or (source.test if test else source.train), limit)
    try:
        return read_examples(source, limit, split)
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("source", "examples", 1)) from None


def label_task(data: Labelled, config: LabelConfig, fluency: bool) -> LabelTask:
    """Returns the task of learning from examples, of which some are held out to choose the prompt.

    Args:
        data: the examples.
        config: how many are held out, and the settings of the task.
        fluency: whether prompts get their own cross-entropy too.
    """
    numbers, shots, held_out = range(len(data.rows)), config.shots, config.held_out
    names = [str(name) for name in data.verbalizer.labels]
    labels = [names[k] for k in data.classes]
    missing = [name for name in names if name not in set(labels)]
    if missing:
        raise ValueError(f"examples must hold every label; none has {missing[0]!r}")
    if held_out is None and shots is not None:
        chosen = set(few_shot(numbers, labels, shots, config.split_seed, known=names))
        parts: Any = ([k for k in numbers if k not in chosen], sorted(chosen))
    else:
        held_out = min(MOST_HELD_OUT, max(len(names), len(data.rows) // 5)) if held_out is None else held_out
        parts = split_rows(numbers, labels, held_out, config.split_seed)
    if not parts[1]:
        raise ValueError(f"held_out must leave rows that choose the prompt; got {held_out!r}")
    if shots is not None:
        few_shot(parts[0], [labels[k] for k in parts[0]], shots, 0, known=names)
    train, held = (Examples([data.rows[k] for k in part], [data.classes[k] for k in part]) for part in parts)
    return LabelTask(
        data.template,
        data.verbalizer.words,
        train,
        held,
        config.minibatch,
        shots,
        config.held_out_every,
        config.calibrate,
        fluency,
    )


def scores_of(
    prompt: str, lm: LanguageModel, data: Labelled, calibrate: bool = False, labeller: Labeller | None = None
) -> ClassifierScores:
    """Returns how well a prompt, as text, serves on examples."""
    started = time.monotonic()
    labeller = labeller or Labeller(lm, data.template, data.verbalizer.words, data.rows, calibrate)
    count = len(lm.tokenize([prompt])[0]) if prompt else 0
    least = len(lm.tokenize([data.template.render("", labeller.empty)])[0]) + labeller.longest
    if count + least > lm.room:
        raise ValueError(
            f"prompt takes {count} tokens; the context of {lm.name} has room for {lm.room}, and the template takes "
            f"{least} of them: {prompt[:60]!r}"
        )
    rows = fitted(lm, data.template, data.rows, lm.room - labeller.longest - count)
    texts = closed_texts(lm, data.template, labeller.with_empty(rows), prompt)
    scores = label_scores(labeller, texts, range(len(rows)))
    classes = torch.tensor(data.classes, device=scores.device)
    found = scores.argmax(-1)
    size = len(data.verbalizer)
    confusion = torch.bincount(classes * size + found, minlength=size * size).view(size, size)
    names = [str(name) for name in data.verbalizer.labels]
    perplexity = (
        lm.perplexity([as_within(lm, data.template, prompt)])[0] if prompt and not lm.is_encoder_decoder else None
    )
    return ClassifierScores(
        prompt,
        lm.name,
        float((found == classes).double().mean()),
        float(F.cross_entropy(scores, classes)),
        perplexity if perplexity == perplexity else None,
        names,
        confusion.tolist(),
        [names[k] for k in found.tolist()],
        time.monotonic() - started,
    )


def soft_accuracy(result: ClassifierResult, lm: LanguageModel, data: Labelled, calibrate: bool = False) -> float:
    """Returns the accuracy of a result's soft prompt, without projection, on examples."""
    if result.soft_prompt is None:
        raise ValueError("result holds no soft prompt")
    labeller = Labeller(lm, data.template, data.verbalizer.words, data.rows, calibrate)
    rows = fitted(lm, data.template, data.rows, lm.room - labeller.longest - len(result.ids))
    texts = open_texts(lm, data.template, labeller.with_empty(rows), len(result.ids))
    soft = result.soft_prompt.to(lm.device, lm.dtype)[None]
    with torch.no_grad():
        found = labeller.scores(lm.runner(), soft, texts, range(len(data.rows)))[0].argmax(-1)
    return float((found == torch.tensor(data.classes, device=lm.device)).double().mean())
