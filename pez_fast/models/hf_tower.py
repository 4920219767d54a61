"""Text towers of transformers that take token embeddings: the causal one of CLIP, the bidirectional ones of SigLIP.

The tower runs as it is, over the tokens that its own tokenizer makes of a text, padding included. A hook on its
embedding module puts the learned embeddings in. CLIP's tower runs up to its end token only, since nothing behind it can
reach the position that is pooled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pez_fast._shared.linear import frozen_products
from pez_fast._shared.rows import run_alike
from pez_fast.functional import splice
from pez_fast.models.causal import positions
from pez_fast.models.text_tower import unit_features

_LARGEST = 2  # the end token's id in old configurations, for which CLIP pools the largest id


def is_causal(model: Any) -> bool:
    """Whether the text tower is CLIP's: causal, and pooled at an end token."""
    return hasattr(model, "text_projection")


def embedding_of(model: Any) -> nn.Embedding:
    """Returns the module that turns ids into embeddings."""
    return model.text_model.embeddings.token_embedding


def pools_largest(model: Any) -> bool:
    """Whether CLIP's tower pools the position of the largest id, in place of that of its end token."""
    return is_causal(model) and model.text_model.eos_token_id == _LARGEST


def end_of(model: Any, ids: Tensor) -> int:
    """Returns the position of ids (S,) that the tower pools."""
    if not is_causal(model):
        return len(ids) - 1
    marks = ids if pools_largest(model) else (ids == model.text_model.eos_token_id).int()
    return int(marks.argmax())


def pooled(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the text features (R, D) of ids (R, S), as the model gives them."""
    given = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
    if not hasattr(model, "get_text_features"):
        return model(**given).text_embeds
    found = model.get_text_features(**given)
    return getattr(found, "pooler_output", found)


class HFTextEncoder:
    """Encodes prompts (R, L, d) of token embeddings as unit features (R, D), float32 or wider.

    A row's features do not depend on the other rows or on their number, to the bit: see `run_alike`.

    Args:
        model: a frozen model of transformers.
        ids: (S,) int64, the whole context, with a filler in the slots.
        mask: (S,) int64, the attention mask that the tokenizer gives, or None.
        slots: (L,) int64, the positions of the learned tokens.

    Raises:
        ValueError: the tower is causal and pools no position behind the learned tokens.
    """

    def __init__(self, model: Any, ids: Tensor, mask: Tensor | None, slots: Tensor) -> None:
        self.model, self.embedding, self.slots = model, embedding_of(model), slots
        self.end = end_of(model, ids)
        if self.end <= int(slots[-1]) and is_causal(model):
            token = "the largest id" if pools_largest(model) else f"its end token {model.text_model.eos_token_id}"
            raise ValueError(f"model pools {token}, which its tokenizer does not write behind a text")
        seen = len(ids)
        if is_causal(model):
            seen = self.end + 1
            ids = ids[: positions(self.end, len(ids), self.embedding.weight.dtype)]
        self.ids = ids
        self.mask = None if mask is None or bool(mask[:seen].all()) else mask[: len(ids)]

    @property
    def blocks(self) -> int:
        """The number of the tower's transformer blocks."""
        return len(self.model.text_model.encoder.layers)

    def __call__(self, hard: Tensor) -> Tensor:
        """Returns the features (R, D) of token embeddings (R, L, d)."""
        return unit_features(run_alike(hard, self._run))

    def _run(self, hard: Tensor) -> Tensor:
        rows = len(hard)

        def feed(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return splice(output.detach(), hard, self.slots)

        handle = self.embedding.register_forward_hook(feed)
        try:
            mask = None if self.mask is None else self.mask.expand(rows, -1)
            with frozen_products(hard.device):
                return pooled(self.model, self.ids.expand(rows, -1), mask)
        finally:
            handle.remove()
