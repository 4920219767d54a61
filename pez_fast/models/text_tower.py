"""Text towers that take token embeddings.

A causal tower runs over the template's own tokens only: nothing after the end token can reach the position that is
pooled. Every other tower runs as it is, over the whole context, and a hook on its embedding module puts the embeddings
in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pez_fast._shared.linear import frozen_products
from pez_fast._shared.rows import run_singly
from pez_fast.functional import splice
from pez_fast.models.causal import CausalTower, positions


@dataclass(frozen=True)
class Template:
    """The token ids around the learned tokens.

    Attributes:
        ids: (S,) int64, the whole context.
        slots: (L,) int64, the positions of the learned tokens.
        end: the position after the last token that is not padding.
    """

    ids: Tensor
    slots: Tensor
    end: int


def token_embedding(model: Any) -> nn.Embedding:
    """Returns the module that turns the ids of an open_clip model's text into embeddings.

    Raises:
        ValueError: the model has no such module.
    """
    tower = getattr(model, "text", model)
    if isinstance(getattr(tower, "token_embedding", None), nn.Embedding):
        return tower.token_embedding
    transformer = getattr(tower, "transformer", None)
    if transformer is not None and hasattr(transformer, "get_input_embeddings"):  # a text tower from transformers
        return transformer.get_input_embeddings()
    raise ValueError(f"model has no token embedding that can be fed: {type(model).__name__}")


def unit_features(features: Tensor) -> Tensor:
    """Returns the features (…, D) divided by their norm, in float32 or wider."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def why_not_truncatable(model: Any) -> str | None:
    """Returns why a tower must see its whole context, or None if the tokens up to the end token are enough.

    The tower's own properties decide: a causal mask, and pooling at the end token.
    """
    tower = getattr(model, "text", model)
    for part in ("positional_embedding", "transformer", "ln_final", "text_projection"):
        if not hasattr(tower, part):
            return f"its text tower has no {part}"
    mask = getattr(tower, "attn_mask", None)
    if mask is None:
        return "its attention is not causal"
    causal = torch.full_like(mask, -torch.inf).triu(1)
    if mask.shape != causal.shape or not torch.equal(mask, causal):
        return "its attention mask is not the causal one"
    if getattr(tower, "cls_emb", None) is not None:
        return "it pools a class token behind the padding"
    if getattr(tower, "use_pad_mask", False):
        return "it masks the padding"
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    if pool not in ("argmax", "eos"):
        return f"it pools {pool!r}, not the end token"
    return None


class TextEncoder:
    """Encodes prompts (R, L, d) of token embeddings as unit features (R, D).

    The features are float32, or float64 if the tower is. A row's features do not depend on the other rows or on their
    number, to the bit. On a CPU, `CausalTower` rounds rows alike but in float64; other towers run them one by one.

    Args:
        model: a frozen open_clip model.
        template: the tokens around the learned tokens.
        truncate: whether to run the tower over the template's own tokens only. Default: if the result is exact.

    Raises:
        ValueError: `truncate` is True, but would change the result.
    """

    def __init__(self, model: Any, template: Template, truncate: bool | None = None) -> None:
        obstacle = why_not_truncatable(model)
        if truncate and obstacle:
            raise ValueError(f"truncate=True would change the result of this model: {obstacle}")
        self.model, self.embedding = model, token_embedding(model)
        self.truncated = obstacle is None if truncate is None else truncate
        self.tower = CausalTower(getattr(model, "text", model)) if self.truncated else None
        device, dtype = self.embedding.weight.device, self.embedding.weight.dtype
        self.end = template.end - 1
        length = positions(self.end, len(template.ids), dtype) if self.truncated else len(template.ids)
        self.slots = template.slots.to(device)
        self.ids = template.ids[:length].to(device)
        with torch.no_grad():
            self.fixed = self.embedding(self.ids[None])

    @property
    def blocks(self) -> int:
        """The number of the tower's transformer blocks, or 12 if it is unknown."""
        transformer = getattr(getattr(self.model, "text", self.model), "transformer", None)
        return len(getattr(transformer, "resblocks", ())) or 12

    def __call__(self, hard: Tensor) -> Tensor:
        """Returns the features (R, D) of token embeddings (R, L, d)."""
        run = self._truncated if self.truncated else self._hooked
        alike = hard.device.type != "cpu" or (self.tower is not None and self.tower.rounds_alike(hard.dtype))
        alike = alike or torch.compiler.is_compiling()  # which would unroll a loop over rows
        return unit_features(run(hard)[: len(hard)] if alike else run_singly(hard, run))

    def _truncated(self, hard: Tensor) -> Tensor:
        assert self.tower is not None
        tower = self.tower.tower
        x = splice(self.fixed.expand(len(hard), -1, -1), hard, self.slots)
        x = self.tower.eos_feature(x + tower.positional_embedding[: len(self.ids)].to(x.dtype), self.end)
        projection = tower.text_projection
        if projection is None:
            return x
        with frozen_products(x.device):
            return projection(x) if isinstance(projection, nn.Module) else F.linear(x, projection.t())

    def _hooked(self, hard: Tensor) -> Tensor:
        def feed(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return splice(output.detach(), hard, self.slots)

        handle = self.embedding.register_forward_hook(feed)
        try:
            return self.model.encode_text(self.ids.expand(len(hard), -1))
        finally:
            handle.remove()
