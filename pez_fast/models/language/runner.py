"""How a language model is run over many prompts and many texts: what stands first is read once, and little is padded.

The results of a prompt do not depend on the other prompts of a call, to the bit: all products have a number of rows
that rounds alike, and how texts are grouped depends on their own lengths alone.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pez_fast._shared.devices import call_cost, tokens_at_once
from pez_fast._shared.linear import frozen_products, linear
from pez_fast._shared.rows import MIN_ROWS, ROW_MULTIPLE, pad_rows

_READING = 16  # tokens that a CPU reads in the time in which it reads all weights once
_MAX_BLOCKS = 128  # into which the texts are cut, by length, before groups are chosen
_MIN_READ = 4  # from so many tokens on, attention to others rounds alike for any number of texts
_FEW_LABELS = 8  # up to so many label rows are multiplied by sums, which round alike in any number


class Head(nn.Module):
    """Stands in place of a model's head: logits at chosen places alone, and of chosen rows of the table alone.

    Attributes:
        at: (N, k) int64, the places; None: all.
        rows: (C,) int64, the rows of the table; None: all.
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        self._own = [head]  # in a list, so that it is no part of this module
        self.at: Tensor | None = None
        self.rows: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns logits (N, k, C) of hidden states (N, S, d)."""
        head = self._own[0]
        if self.at is not None:
            hidden = hidden.gather(1, self.at[:, :, None].expand(-1, -1, hidden.shape[-1]))
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        if not isinstance(head, nn.Linear) or weight is None:
            logits = head(hidden)
            return logits if self.rows is None else logits[..., self.rows]
        if self.rows is not None:
            weight, bias = weight[self.rows], None if bias is None else bias[self.rows]
            if len(weight) <= _FEW_LABELS:
                product = (hidden[..., None, :] * weight).sum(-1)
                return product if bias is None else product + bias
        flat = pad_rows(hidden.reshape(-1, hidden.shape[-1]), MIN_ROWS)
        return linear(flat, weight, bias)[: hidden[..., 0].numel()].view(*hidden.shape[:-1], -1)


class Runner:
    """Runs a frozen language model.

    Args:
        model: a causal model or an encoder-decoder of transformers. It is not changed: the runner works on a shallow
            copy with another head.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.head = model, Head(model.get_output_embeddings())
        self.part = _with_head(model, self.head)
        self.embedding: nn.Embedding = model.get_input_embeddings()
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        named = "cache" in inspect.signature(model.forward).parameters  # its name from transformers 5.24 on
        self._cache_name = "cache" if named else "past_key_values"
        table = self.embedding.weight
        body = sum(p.numel() for p in model.parameters()) - table.numel()
        self.overhead = max(_READING, math.ceil(call_cost(table.device) / max(1, body)))  # of a call, in tokens
        self.caches = not self.is_encoder_decoder and self._cache_is_exact()

    def token_nll(self, embeds: Tensor, ids: Tensor) -> Tensor:
        """Returns the cross-entropy of tokens from the second on, (R, T - 1) float32 or wider.

        Args:
            embeds: (R, P, d), the text; its last T positions are the tokens.
            ids: (R, T) int64, the tokens.
        """
        at = torch.arange(embeds.shape[1] - ids.shape[1], embeds.shape[1] - 1, device=embeds.device)
        logits = self.whole(embeds, at.expand(len(embeds), -1))
        return _cross_entropy(logits, ids[:, 1:])

    def whole(self, embeds: Tensor, at: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns the logits (N, k, C) of a causal model at the places `at` (N, k) of texts (N, T, d).

        What is behind the last of a text's places has no part in it, so texts may be padded on the right.
        """
        count, length = embeds.shape[:2]
        padded, places = _padded(embeds, length), _padded(at, length)
        with self._looking(places, rows):
            return self._run(inputs_embeds=padded, use_cache=False).logits[:count]

    def beginning(self, embeds: Tensor) -> Any:
        """Returns the keys and values of what stands first, (R, P, d), for `going_on`."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        with self._looking(
            torch.zeros(len(_padded(embeds, embeds.shape[1])), 1).long().to(embeds.device), _one(embeds)
        ):
            self._run(inputs_embeds=_padded(embeds, embeds.shape[1]), use_cache=True, **{self._cache_name: cache})
        return cache

    def going_on(self, cache: Any, prompts: int, ids: Tensor, at: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns the logits (R, G, k, C) at places of texts that go on from each of R beginnings.

        Args:
            cache: from `beginning`, for R prompts; it is not changed.
            ids: (G, S) int64, the texts, padded on the right.
            at: (G, k) int64, the places in them.
        """
        count, ids = len(ids), _long_enough(ids)
        repeated = _repeated(cache, prompts, count)
        with self._looking(at.repeat(prompts, 1), rows):
            logits = self._run(input_ids=ids.repeat(prompts, 1), use_cache=True, **{self._cache_name: repeated}).logits
        return logits.view(prompts, count, *logits.shape[1:])

    def decoded(self, embeds: Tensor, lengths: Tensor, decoder_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns the logits (N, D, k, C) of an encoder-decoder at all places of D texts that its decoder reads.

        Args:
            embeds: (N, T, d), what the encoder reads, padded on the right.
            lengths: (N,) int64, the lengths without padding.
            decoder_ids: (D, k) int64.
        """
        mask = (torch.arange(embeds.shape[1], device=embeds.device) < lengths[:, None]).long()
        with frozen_products(embeds.device):
            hidden = self.part.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        count, (read, places) = len(embeds), decoder_ids.shape
        hidden = pad_rows(hidden.repeat_interleave(read, 0), MIN_ROWS)
        mask = torch.cat([mask.repeat_interleave(read, 0), mask.new_ones(len(hidden) - count * read, mask.shape[1])])
        ids = pad_rows(_long_enough(decoder_ids).repeat(count, 1), MIN_ROWS)
        with self._looking(torch.arange(places, device=ids.device).expand(len(ids), -1), rows):
            logits = self._run(
                encoder_outputs=(hidden,), attention_mask=mask, decoder_input_ids=ids, use_cache=False
            ).logits
        return logits[: count * read].view(count, read, places, -1)

    def groups(self, lengths: Sequence[int], prompts: int) -> list[tuple[list[int], int]]:
        """Returns which texts are run together, and padded to which length.

        A group's texts may be run in several calls; only that depends on the number of prompts.
        """
        found = []
        for members, length in _plan(tuple(lengths), self.overhead):
            most = max(ROW_MULTIPLE, tokens_at_once(self.embedding.weight.device) // max(1, length * prompts))
            most -= most % ROW_MULTIPLE
            found += [(members[k : k + most], length) for k in range(0, len(members), most)]
        return found

    def _run(self, **given: Any) -> Any:
        with frozen_products(self.embedding.weight.device):
            return self.part(**given)

    def _looking(self, at: Tensor | None, rows: Tensor | None) -> _Looking:
        return _Looking(self.head, at, rows)

    @torch.no_grad()
    def _cache_is_exact(self) -> bool:
        """Whether keys and values kept from a beginning give what the whole text gives."""
        ids = torch.arange(8, device=self.embedding.weight.device) % len(self.embedding.weight)
        embeds, at = self.embedding(ids)[None], torch.full((1, 1), 3, device=ids.device)
        try:
            expected = self.whole(embeds, at + 4)
            found = self.going_on(self.beginning(embeds[:, :4]), 1, ids[None, 4:], at)[0]
        except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError):
            return False
        scale = expected.abs().max().clamp_min(1)
        return bool((found - expected).abs().max() <= scale * torch.finfo(embeds.dtype).eps ** 0.5)


class _Looking:
    """Sets where the head looks, for as long as a call lasts."""

    def __init__(self, head: Head, at: Tensor | None, rows: Tensor | None) -> None:
        self.head, self.at, self.rows = head, at, rows

    def __enter__(self) -> None:
        self.head.at, self.head.rows = self.at, self.rows

    def __exit__(self, *exception: object) -> None:
        self.head.at = self.head.rows = None


def _long_enough(ids: Tensor) -> Tensor:
    """Returns ids (N, S) padded on the right, so that enough tokens attend to what stands before them.

    Where fewer attend, torch's fused attention on a CPU divides the work by how many texts there are, and so rounds by
    it.
    """
    return F.pad(ids, (0, max(0, _MIN_READ - ids.shape[1])))


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Returns the cross-entropy (R, T) of ids (R, T) under logits (R, T, V)."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)


def _one(embeds: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=embeds.device)


def _padded(batch: Tensor, length: int) -> Tensor:
    """Returns the batch with rows appended, so that rows times length is a number that rounds alike."""
    multiple = ROW_MULTIPLE // math.gcd(ROW_MULTIPLE, length)
    least = -(-MIN_ROWS // length)
    count = max(len(batch), least)
    count += -count % multiple
    return torch.cat([batch, batch.new_zeros(count - len(batch), *batch.shape[1:])]) if count > len(batch) else batch


def _repeated(cache: Any, prompts: int, count: int) -> Any:
    """Returns a cache of `prompts` rows with each row `count` times; `cache` keeps its own."""
    repeated = copy.copy(cache)
    repeated.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in repeated.layers:
        layer.keys = layer.keys[:prompts].repeat_interleave(count, 0)
        layer.values = layer.values[:prompts].repeat_interleave(count, 0)
    return repeated


def _with_head(model: Any, head: nn.Module) -> Any:
    """Returns a shallow copy of the model with another head; it shares all parameters and buffers.

    GPT-2's activation, which transformers computes in eight passes over memory, is torch's own in the copy.
    """
    made: dict[nn.Module, nn.Module] = {model.get_output_embeddings(): head}

    def copied(module: nn.Module) -> nn.Module:
        if module not in made:
            if type(module).__name__ == "NewGELUActivation":
                made[module] = nn.GELU(approximate="tanh")
            else:
                made[module] = copy.copy(module)
                children = {name: child and copied(child) for name, child in module._modules.items()}
                made[module].__dict__["_modules"] = children
        return made[module]

    return copied(model)


def _plan(lengths: tuple[int, ...], overhead: int) -> list[tuple[list[int], int]]:
    """Returns groups of texts with the length that each is padded to, so that the fewest tokens are run.

    A call costs as much as `overhead` tokens. A group's number of texts or their length is a multiple of
    `ROW_MULTIPLE`, so that the number of rows of a product rounds alike.
    """
    order = sorted(range(len(lengths)), key=lambda k: (lengths[k], k))
    block = math.ceil(len(order) / _MAX_BLOCKS)
    stops = [min(stop, len(order)) for stop in range(0, len(order) + block, block)]
    best: list[tuple[float, int]] = [(0.0, 0)]  # the least cost up to each stop, and where its last group begins
    for end in range(1, len(stops)):
        longest = lengths[order[stops[end] - 1]]
        best.append(min((best[k][0] + overhead + _tokens(stops[end] - stops[k], longest), k) for k in range(end)))
    found, end = [], len(stops) - 1
    while end:
        members = order[stops[best[end][1]] : stops[end]]
        length = lengths[members[-1]]
        found.append((members, _tokens(len(members), length) // len(members)))
        end = best[end][1]
    return found[::-1]


def _tokens(count: int, length: int) -> int:
    """Returns the tokens that are run for so many texts of at most this length."""
    return count * (length + (-length % ROW_MULTIPLE if count % ROW_MULTIPLE else 0))
