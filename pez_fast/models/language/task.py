"""A language model with a task: labelled examples in a template, as a model that prompts are learned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pez_fast.engine import Outputs
from pez_fast.engine.memory import transformer_bytes
from pez_fast.labelled import Template, draws, few_shot
from pez_fast.models.language.labeller import Labeller
from pez_fast.models.language.model import LanguageModel
from pez_fast.models.language.texts import Texts, as_within, closed_texts, fitted, open_texts, written
from pez_fast.models.vocabulary import check_prompt_len
from pez_fast.table import TokenTable

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Examples:
    """Rows with the number of each one's class."""

    rows: Sequence[Row]
    classes: Sequence[int]


@dataclass(frozen=True)
class LabelTask:
    """What a prompt is learned for.

    Attributes:
        template: where prompt, text and label stand.
        words: the word of each class.
        train, held_out: the examples that give the gradient, and those that choose the prompt.
        minibatch: examples drawn at a step.
        shots: rows of each class that are learned from, chosen by the search's seed; None: all.
        held_out_every: steps between two scores on the held-out examples.
        calibrate: whether a label's score is taken relative to the one that it has behind an empty text.
        fluency: whether prompts get their own cross-entropy too.
    """

    template: Template
    words: Sequence[str]
    train: Examples
    held_out: Examples
    minibatch: int = 16
    shots: int | None = None
    held_out_every: int = 10
    calibrate: bool = False
    fluency: bool = False


class LabelModel:
    """A `PromptModel`: a language model that labels the examples of a task.

    Its outputs: "label_scores" (R, B, C), whose softmax over the classes gives the labels' probabilities, "classes"
    (R, B) int64, the true ones, and with `fluency` "prompt_nll" (R,), the mean cross-entropy of the prompt's tokens
    from the second on.

    Args:
        lm: from `load_lm`.
        task: the task.
    """

    def __init__(self, lm: LanguageModel, task: LabelTask) -> None:
        if task.fluency and lm.is_encoder_decoder:
            raise ValueError(
                f"fluency must be 0 for the encoder-decoder {lm.name}, which gives a prompt alone no probability"
            )
        self.lm, self.task, self.name, self.vocabulary = lm, task, lm.name, lm.vocabulary
        rows = [*task.train.rows, *task.held_out.rows]
        self.labeller = Labeller(lm, task.template, task.words, rows, task.calibrate)

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.dtype

    def table(self, vocabulary: str | Sequence[str] = "stable", banned: Sequence[str | int] = ()) -> TokenTable:
        """Returns the tokens that may be learned; see `EmbeddedModel.table`."""
        return self.lm.table(vocabulary, banned)

    def bind(
        self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None
    ) -> BoundLabels:
        """Returns the model with prompt_len tokens left open in every example.

        Raises:
            ValueError: prefix or suffix is given (the template has this place), or the prompt does not fit.
        """
        for name, text in (("prefix", prefix), ("suffix", suffix)):
            if text:
                raise ValueError(f"{name} has no place beside a template; write it into the template; got {text!r}")
        check_prompt_len(prompt_len)
        if self.task.fluency and prompt_len < 2:
            raise ValueError(
                f"prompt_len must be at least 2 for fluency, which begins at the second token; got {prompt_len}"
            )
        return BoundLabels(self, prompt_len, dtype or self.dtype)


class BoundLabels:
    """A `StochasticModel`: the task's model around learned tokens; `held_out` is the same model on held-out examples.

    Args:
        model: the task's model.
        prompt_len: the number of learned tokens.
        dtype: the dtype that the language model is run in.
    """

    stochastic = True

    def __init__(self, model: LabelModel, prompt_len: int, dtype: torch.dtype) -> None:
        self.model, self.lm, self.task, self.labeller = model, model.lm, model.task, model.labeller
        self.runner, self.prompt_len = self.lm.runner(dtype), prompt_len
        self.held_out_every = self.task.held_out_every
        self.train, self.train_texts = self._opened(self.task.train)
        self.chosen, self.chosen_texts = self._opened(self.task.held_out)
        self._subsets: dict[int, list[int]] = {}
        self.bytes_per_prompt = self._bytes()

    def __call__(self, embeds: Tensor, ids: Tensor, drawn: Tensor | None = None) -> Outputs:
        """Returns the outputs on the examples that each row's seed and step draw; rows that draw alike run together.

        Without draws, they are those on the held-out examples.
        """
        if drawn is None:
            return self.held_out(embeds, ids)
        embeds = embeds.to(self.runner.embedding.weight.dtype)
        groups: dict[tuple[int, int], list[int]] = {}
        for row, (seed, step) in enumerate(drawn.tolist()):
            groups.setdefault((seed, step), []).append(row)
        scores: dict[int, Tensor] = {}
        classes: dict[int, Tensor] = {}
        for (seed, step), rows in groups.items():
            examples = self._examples(seed, step)
            part = embeds if len(groups) == 1 else embeds[rows]
            found = self.labeller.scores(self.runner, part, self.train_texts, examples)
            scores.update(zip(rows, found, strict=True))
            classes.update(dict.fromkeys(rows, self._classes(self.train, examples)))
        outputs = {
            "label_scores": torch.stack([scores[row] for row in range(len(embeds))]),
            "classes": torch.stack([classes[row] for row in range(len(embeds))]),
        }
        return self._with_nll(outputs, embeds, ids)

    def held_out(self, embeds: Tensor, ids: Tensor) -> Outputs:
        """Returns the outputs on all held-out examples."""
        embeds = embeds.to(self.runner.embedding.weight.dtype)
        examples = range(len(self.chosen.rows))
        scores = self.labeller.scores(self.runner, embeds, self.chosen_texts, examples)
        classes = self._classes(self.chosen, examples).expand(len(embeds), -1)
        return self._with_nll({"label_scores": scores, "classes": classes}, embeds, ids)

    def text(self, ids: Sequence[int]) -> str:
        """Returns the prompt as it is written in place of {prompt}."""
        return written(self.lm, self.task.template, ids)

    @torch.no_grad()
    def from_text(self, texts: Sequence[str]) -> Outputs:
        """Returns the outputs of prompts on the held-out examples, tokenised afresh, by the model as it was loaded."""
        rows, count = self.labeller.with_empty(self.chosen.rows), len(self.chosen.rows)
        found, nll = [], []
        for text in texts:
            read = closed_texts(self.lm, self.task.template, rows, text)
            found.append(label_scores(self.labeller, read, range(count)))
            perplexity = (
                self.lm.perplexity([as_within(self.lm, self.task.template, text)])[0] if self.task.fluency else 1.0
            )
            perplexity = 1.0 if perplexity != perplexity else perplexity  # no second token has a cross-entropy
            nll.append(torch.tensor(perplexity, dtype=found[-1].dtype, device=self.lm.device).log())
        classes = self._classes(self.chosen, range(count)).expand(len(texts), -1)
        outputs = {"label_scores": torch.stack(found), "classes": classes}
        return outputs | ({"prompt_nll": torch.stack(nll)} if self.task.fluency else {})

    def _opened(self, examples: Examples) -> tuple[Examples, Texts]:
        """Returns the examples, cut where they are too long, and their tokens around the prompt."""
        template = self.task.template
        room = self.lm.room - self.prompt_len - self.labeller.longest
        least = len(self.lm.tokenize([template.render("", self.labeller.empty)])[0]) + self.labeller.longest
        if least >= self.lm.room:
            raise ValueError(
                f"template {template.text!r} must leave room for the prompt: it takes {least} tokens, and "
                f"the context of {self.lm.name} has room for {self.lm.room}"
            )
        if self.prompt_len + least > self.lm.room:
            raise ValueError(
                f"prompt_len must be at most {self.lm.room - least}: the context of {self.lm.name} has room for "
                f"{self.lm.room} tokens, of which the template takes {least}; got {self.prompt_len}"
            )
        rows = fitted(self.lm, template, examples.rows, room)
        return Examples(rows, examples.classes), open_texts(
            self.lm, template, self.labeller.with_empty(rows), self.prompt_len
        )

    def _examples(self, seed: int, step: int) -> list[int]:
        """Returns the numbers of the examples of a step."""
        numbers, task = range(len(self.train.rows)), self.task
        if task.shots is not None and seed not in self._subsets:
            self._subsets[seed] = few_shot(numbers, self.train.classes, task.shots, seed)
        subset = self._subsets.get(seed, numbers)
        return [subset[k] for k in draws(seed, step, task.minibatch, len(subset))]

    def _classes(self, examples: Examples, numbers: Sequence[int]) -> Tensor:
        return torch.tensor([examples.classes[k] for k in numbers], device=self.lm.device)

    def _with_nll(self, outputs: Outputs, embeds: Tensor, ids: Tensor) -> Outputs:
        """Adds the prompts' own cross-entropy if the task asks for it."""
        if not self.task.fluency:
            return outputs
        before = torch.tensor([self.lm.head], dtype=torch.int64, device=embeds.device)
        start = self.runner.embedding(before).detach().to(embeds.dtype).expand(len(embeds), -1, -1)
        return outputs | {"prompt_nll": self.runner.token_nll(torch.cat([start, embeds], 1), ids).mean(-1)}

    def _bytes(self) -> int:
        """Estimates the bytes that a prompt takes, forward and backward."""
        config, texts = self.lm.model.config.get_text_config(), self.train_texts
        blocks = getattr(config, "num_hidden_layers", 12) * (2 if self.lm.is_encoder_decoder else 1)
        longest = texts.longest + (self.prompt_len if texts.shared is None else 0)
        length = self.prompt_len + self.task.minibatch * longest
        width, size = self.lm.embedding.weight.shape[1], self.runner.embedding.weight.dtype.itemsize
        logits = self.prompt_len * len(self.lm.embedding.weight) * 8 if self.task.fluency else 0
        return transformer_bytes(blocks, length, width, size) + logits


@torch.no_grad()
def label_scores(labeller: Labeller, texts: Texts, examples: Sequence[int]) -> Tensor:
    """Returns the scores (B, C) of the labels behind texts without learned tokens, by the model as it was loaded.

    Args:
        texts: from `closed_texts`.
        examples: the numbers of the examples.
    """
    lm = labeller.lm
    none = torch.zeros(1, 0, lm.embedding.weight.shape[1], dtype=lm.dtype, device=lm.device)
    return labeller.scores(lm.runner(), none, texts, examples)[0]
