"""The scores of labels behind texts in a template, for many prompts at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pez_fast.labelled import Template
from pez_fast.models.language.model import LanguageModel
from pez_fast.models.language.runner import Runner
from pez_fast.models.language.texts import Texts, label_ids

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """A text that a model reads around a prompt.

    Attributes:
        before, after: the ids before the prompt and behind it.
        at: the places whose logits are looked at, counted from the first id of `after`; -1 is the prompt's last token.
    """

    before: list[int]
    after: list[int]
    at: range


class Labeller:
    """Gives the scores of labels behind texts.

    Args:
        lm: the language model.
        template: where prompt, text and label stand.
        words: the word of each class; a single one is scored by its own log-probability.
        rows: rows that the labels' tokens are checked in.
        calibrate: whether a label's score is taken relative to the one that it has behind an empty text (contextual
            calibration, Zhao et al. 2021).
    """

    def __init__(
        self, lm: LanguageModel, template: Template, words: Sequence[str], rows: Sequence[Row], calibrate: bool = False
    ) -> None:
        self.lm, self.template, self.calibrate = lm, template, calibrate
        self.labels = label_ids(lm, template, rows, words)
        self.longest = max(map(len, self.labels))
        self.empty: Row = dict.fromkeys(template.columns, "")
        # Where every label is one token, no other token's logit has a part in the comparison of labels.
        compared = self.longest == 1 and len(self.labels) > 1
        self._rows = torch.tensor([ids[0] for ids in self.labels], device=lm.device) if compared else None
        self._tails = [ids[:-1] for ids in self.labels] if self.longest > 1 else [[]]

    def with_empty(self, rows: Sequence[Row]) -> list[Row]:
        """Returns the rows, with an empty one behind them where scores are calibrated."""
        return [*rows, self.empty] if self.calibrate else [*rows]

    def scores(self, runner: Runner, prompts: Tensor, texts: Texts, examples: Sequence[int]) -> Tensor:
        """Returns the scores of the labels (R, B, C), float32 or wider; their differences are those of log p.

        Args:
            runner: the model in the dtype of the prompts.
            prompts: (R, L, d) embeddings of learned tokens; L may be 0.
            texts: the examples around the prompts; where scores are calibrated, the last one is the empty text.
            examples: the numbers of the B examples.
        """
        if prompts.dtype == torch.float64 and prompts.device.type == "cpu" and len(prompts) > 1:
            # A CPU's float64 products round by how threads share the rows.
            return torch.cat([self.scores(runner, prompt[None], texts, examples) for prompt in prompts])
        chosen = [*examples, len(texts.after) - 1] if self.calibrate else [*examples]
        read = self._decode if self.lm.is_encoder_decoder else self._go_on
        found = self._label_scores(read(runner, prompts, texts, chosen))
        if not self.calibrate:
            return found
        found = found.log_softmax(-1)
        return found[:, :-1] - found[:, -1:]

    def _go_on(self, runner: Runner, prompts: Tensor, texts: Texts, chosen: Sequence[int]) -> Tensor:
        """Returns a causal model's logits (R, B · T, k, C) behind the texts, for each of T labels' own tokens."""
        readings = [
            Reading(texts.before[k], texts.after[k] + tail, range(start, start + self.longest))
            for k in chosen
            for start in [len(texts.after[k]) - 1]
            for tail in self._tails  # each label looks at as many places, of which it uses its own
        ]
        shared = texts.shared
        if shared is None or not len(shared) + prompts.shape[1] or not all(r.after for r in readings):
            return self._whole(runner, prompts, readings)
        if min(r.at.start for r in readings) < 0 or not runner.caches:
            return self._whole(runner, prompts, readings)
        cache = runner.beginning(_spread(runner, prompts, [Reading(shared, [], range(0))])[:, 0])
        found: dict[int, Tensor] = {}
        for members, length in runner.groups([len(r.after) for r in readings], len(prompts)):
            ids = _table([readings[k].after for k in members], length, prompts.device)
            at = _places([readings[k].at for k in members], length, prompts.device)
            logits = runner.going_on(cache, len(prompts), ids, at, self._rows)
            found.update(zip(members, logits.unbind(1), strict=True))
        return torch.stack([found[k] for k in range(len(readings))], 1)

    def _whole(self, runner: Runner, prompts: Tensor, readings: Sequence[Reading]) -> Tensor:
        """Returns the logits (R, N, k, C) of texts that are read whole, since they do not all begin alike."""
        found: dict[int, Tensor] = {}
        sizes = [len(r.before) + prompts.shape[1] + len(r.after) for r in readings]
        for members, length in runner.groups(sizes, len(prompts)):
            group = [readings[k] for k in members]
            starts = [len(r.before) + prompts.shape[1] for r in group]
            at = [range(s + r.at.start, s + r.at.stop) for s, r in zip(starts, group, strict=True)]
            places = _places(at, length, prompts.device).repeat(len(prompts), 1)
            logits = runner.whole(_spread(runner, prompts, group, length).flatten(0, 1), places, self._rows)
            found.update(zip(members, logits.view(len(prompts), len(group), *logits.shape[1:]).unbind(1), strict=True))
        return torch.stack([found[k] for k in range(len(readings))], 1)

    def _decode(self, runner: Runner, prompts: Tensor, texts: Texts, chosen: Sequence[int]) -> Tensor:
        """Returns an encoder-decoder's logits (R, B · T, k, C) where its decoder reads the T labels' own tokens."""
        start = self.lm.model.config.decoder_start_token_id
        decoder = _table([[start, *tail] for tail in self._tails], self.longest, prompts.device)
        readings = [Reading(texts.before[k], texts.after[k], range(0)) for k in chosen]
        sizes = [len(r.before) + prompts.shape[1] + len(r.after) for r in readings]
        found: dict[int, Tensor] = {}
        for members, length in runner.groups(sizes, len(prompts) * len(decoder)):
            embeds = _spread(runner, prompts, [readings[k] for k in members], length).flatten(0, 1)
            lengths = torch.tensor([sizes[k] for k in members], device=prompts.device).repeat(len(prompts))
            logits = runner.decoded(embeds, lengths, decoder, self._rows)
            parts = logits.view(len(prompts), len(members), *logits.shape[1:])
            found.update(zip(members, parts.unbind(1), strict=True))
        return torch.stack([found[k] for k in range(len(readings))], 1).flatten(1, 2)

    def _label_scores(self, logits: Tensor) -> Tensor:
        """Turns logits at the labels' places, (R, B · T, k, C), into scores (R, B, C)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self._rows is not None:
            return logits[:, :, 0]
        count = len(self.labels)
        logp = logits.log_softmax(-1)
        logp = logp.view(len(logp), -1, count, *logp.shape[2:])
        return torch.stack(
            [logp[:, :, k, range(len(ids)), ids].sum(-1) for k, ids in enumerate(self.labels)],
            -1,
        )


def _spread(runner: Runner, prompts: Tensor, readings: Sequence[Reading], length: int = 0) -> Tensor:
    """Returns each reading around each prompt, as embeddings (R, G, T, d); what pads them on the right is looked at by
    nothing."""
    count = prompts.shape[1]
    length = length or max(len(r.before) + count + len(r.after) for r in readings)
    ids = _table([[*r.before, *[0] * count, *r.after] for r in readings], length, prompts.device)
    whole = runner.embedding(ids).detach().to(prompts.dtype).expand(len(prompts), -1, -1, -1).clone()
    slots = torch.tensor([[len(r.before)] for r in readings]) + torch.arange(count)
    whole[:, torch.arange(len(readings))[:, None], slots] = prompts[:, None].expand(-1, len(readings), -1, -1)
    return whole


def _table(texts: Sequence[Sequence[int]], length: int, device: torch.device) -> Tensor:
    """Returns ids (G, length) int64, padded on the right with an id that has no part in anything."""
    return torch.tensor([[*ids, *[0] * (length - len(ids))] for ids in texts], dtype=torch.int64, device=device)


def _places(places: Sequence[range], length: int, device: torch.device) -> Tensor:
    """Returns places (G, k) int64; a label that is shorter than others does not use its last ones."""
    return torch.tensor([[min(k, length - 1) for k in p] for p in places], dtype=torch.int64, device=device)
