"""open_clip models as encoders of images, texts and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pez_fast._shared.rows import pad_rows
from pez_fast.engine import Outputs
from pez_fast.engine.memory import transformer_bytes
from pez_fast.images import load_image
from pez_fast.models.fingerprint import text_digest, weights_digest
from pez_fast.models.precision import text_part
from pez_fast.models.text_tower import TextEncoder, token_embedding, unit_features
from pez_fast.models.vocabulary import Vocabulary, embedding_table
from pez_fast.table import TokenTable

_TOGETHER = 16  # images or texts encoded at once: always as many, since how a library rounds depends on the shape


class ClipEncoder:
    """A frozen CLIP with its tokenizer and preprocessing.

    Args:
        model: an open_clip model; it is put in evaluation mode and its parameters are frozen.
        tokenizer: open_clip's tokenizer of that model.
        preprocess: PIL image -> (3, H, W) tensor.
        name: shown in results.
        known_ids: the tokens that the model was trained on, where that is known; the others are noise to it and are
            left out of the "stable" vocabulary.
    """

    def __init__(
        self, model: Any, tokenizer: Any, preprocess: Any, name: str = "custom", known_ids: Sequence[int] | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocess, self.name = tokenizer, preprocess, name
        self.vocabulary = Vocabulary(tokenizer, known_ids)
        self.embedding = token_embedding(model)
        self._tables: dict[tuple, TokenTable] = {}
        self._parts: dict[torch.dtype, Any] = {self.dtype: self.model}  # and its text part in other dtypes

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def context_length(self) -> int:
        return int(self.tokenizer.context_length)

    def table(self, vocabulary: str = "stable", banned: Sequence[str | int] = ()) -> TokenTable:
        """The tokens that may be learned, as what the embedding module puts out for them.

        Args:
            vocabulary: "stable": tokens that survive being written out and read again; "full": all but the special ones.
            banned: ids and words (a word bans every token that contains it).

        Raises:
            ValueError: an unknown vocabulary, a banned id outside it, or nothing left.
        """
        key = (vocabulary, tuple(banned))
        if key not in self._tables:
            self._tables[key] = embedding_table(self.embedding, self.vocabulary, vocabulary, banned)
        return self._tables[key]

    def encode_images(self, images: Sequence[Any]) -> Tensor:
        """Images (what `load_image` takes) -> (N, D) float32 unit features, each independent of the others."""
        parts = (images[start : start + _TOGETHER] for start in range(0, len(images), _TOGETHER))
        return torch.cat([self.encode_pixels([self.preprocess(load_image(image)) for image in part]) for part in parts])

    @torch.no_grad()
    def encode_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Preprocessed images, (3, H, W) each -> (N, D) float32 unit features, each independent of the others."""
        return _encoded(pixels, lambda part: self.model.encode_image(part.to(self.device, self.dtype)))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D) float32 unit features; a text longer than the context is cut as open_clip's tokenizer does."""
        return _encoded(self.tokenizer(list(texts)), lambda part: self.model.encode_text(part.to(self.device)))

    def text_encoder(
        self,
        prompt_len: int,
        prefix: str = "",
        suffix: str = "",
        truncate: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> TextEncoder:
        """An encoder of prompts of prompt_len learned tokens between two fixed texts; see `TextEncoder`.

        dtype: that the tower is run in, by default the model's; another one needs a copy of the tower, which is kept.
        """
        dtype = dtype or self.dtype
        if dtype not in self._parts:
            self._parts[dtype] = text_part(self.model, dtype)
        return TextEncoder(self._parts[dtype], self.vocabulary.template(prompt_len, prefix, suffix), truncate=truncate)

    def bind(self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None) -> BoundClip:
        """The text tower with prompt_len slots between two fixed texts; see `PromptModel`."""
        return BoundClip(self, self.text_encoder(prompt_len, prefix, suffix, dtype=dtype), prefix, suffix)

    def fingerprint(self) -> dict[str, str]:
        """What decides on the model's results, as plain values: digests of weights and preprocessing, and the dtype."""
        return {
            "model's weights": weights_digest(self.model),
            "preprocessing": text_digest(repr(self.preprocess)),
            "model's dtype": str(self.dtype).removeprefix("torch."),
        }

    def __repr__(self) -> str:
        return f"ClipEncoder({self.name!r}, {str(self.dtype).removeprefix('torch.')} on {self.device})"


class BoundClip:
    """A CLIP's text tower around learned tokens: "features" (R, D) of unit length; see `BoundModel`."""

    def __init__(self, clip: ClipEncoder, encoder: TextEncoder, prefix: str, suffix: str) -> None:
        self.clip, self.encoder, self.prefix, self.suffix = clip, encoder, prefix, suffix
        weight = encoder.embedding.weight
        self.bytes_per_prompt = transformer_bytes(
            encoder.blocks, len(encoder.ids), weight.shape[1], weight.dtype.itemsize
        )

    def __call__(self, embeds: Tensor, ids: Tensor) -> Outputs:
        return {"features": self.encoder(embeds)}

    def text(self, ids: Sequence[int]) -> str:
        return self.clip.vocabulary.framed(ids, self.prefix, self.suffix)

    def from_text(self, texts: Sequence[str]) -> Outputs:
        return {"features": self.clip.encode_texts(texts)}


def _encoded(inputs: Sequence[Tensor] | Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Unit features of each of the inputs, encoded in batches of one size."""
    features = []
    for start in range(0, len(inputs), _TOGETHER):
        part = torch.stack(list(inputs[start : start + _TOGETHER]))
        features.append(unit_features(encode(pad_rows(part, _TOGETHER)))[: len(part)])
    return torch.cat(features)
