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
from pez_fast.models.embedded import EmbeddedModel
from pez_fast.models.familiar import Familiar
from pez_fast.models.fingerprint import text_digest, weights_digest
from pez_fast.models.precision import text_part
from pez_fast.models.text_tower import TextEncoder, token_embedding, unit_features
from pez_fast.models.vocabulary import Vocabulary

_ENCODE_BATCH = 16  # images or texts encoded at once; the number is constant, since a library's rounding depends on it


class ClipEncoder(EmbeddedModel):
    """A frozen CLIP with its tokenizer and preprocessing.

    Args:
        model: an open_clip model; the encoder puts it in evaluation mode and freezes its parameters.
        tokenizer: open_clip's tokenizer of that model.
        preprocess: a function of a PIL image that returns a (3, H, W) tensor.
        name: the name that results show.
        known_ids: the tokens that the model was trained on, if they are known. The other tokens are noise to the model,
            and the "stable" vocabulary leaves them out.
        familiar: how its training images are distributed, if that is known; results then say which images are unlike
            them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        preprocess: Any,
        name: str = "custom",
        known_ids: Sequence[int] | None = None,
        familiar: Familiar | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocess, self.name = tokenizer, preprocess, name
        self.familiar = familiar
        self.vocabulary = Vocabulary(tokenizer, known_ids)
        self.embedding = token_embedding(model)
        self._parts: dict[torch.dtype, Any] = {self.dtype: self.model}  # its text part in other dtypes is added

    @property
    def context_length(self) -> int:
        """The number of tokens of the text tower's context."""
        return int(self.tokenizer.context_length)

    def encode_images(self, images: Sequence[Any]) -> Tensor:
        """Returns unit features (N, D) float32 of images, which `load_image` takes; no row depends on the others."""
        return encoded_images(self, images)

    @torch.no_grad()
    def encode_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Returns unit features (N, D) float32 of preprocessed images, (3, H, W) each; no row depends on the others."""
        return encoded(pixels, lambda part: self.model.encode_image(part.to(self.device, self.dtype)))

    def notes(self, pixels: Sequence[Tensor]) -> list[str]:
        """Returns a sentence for each of preprocessed images that is unlike those of the training, else ""."""
        if self.familiar is None:
            return [""] * len(pixels)
        parts = (pixels[start : start + _ENCODE_BATCH] for start in range(0, len(pixels), _ENCODE_BATCH))
        stacked = (torch.stack(list(part)).to(self.device, self.dtype) for part in parts)
        return [note for part in stacked for note in self.familiar.notes(self.model, part)]

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns unit features (N, D) float32 of texts; open_clip's tokenizer cuts a text to the context."""
        return encoded(self.tokenizer(list(texts)), lambda part: self.model.encode_text(part.to(self.device)))

    def text_encoder(
        self,
        prompt_len: int,
        prefix: str = "",
        suffix: str = "",
        truncate: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> TextEncoder:
        """Returns an encoder of prompts with prompt_len learned tokens between two fixed texts.

        Args:
            truncate: as for `TextEncoder`.
            dtype: the dtype that the tower runs in. Default: the model's. Another dtype needs a copy of the tower,
                which is kept.

        Raises:
            ValueError: the prompt does not fit into the context, or `truncate` would change the result.
        """
        dtype = dtype or self.dtype
        if dtype not in self._parts:
            self._parts[dtype] = text_part(self.model, dtype)
        return TextEncoder(self._parts[dtype], self.vocabulary.template(prompt_len, prefix, suffix), truncate=truncate)

    def bind(self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None) -> BoundClip:
        """Returns the text tower with prompt_len slots between two fixed texts; see `PromptModel`."""
        return BoundClip(self, self.text_encoder(prompt_len, prefix, suffix, dtype=dtype), prefix, suffix)

    def fingerprint(self) -> dict[str, str]:
        """Returns what decides the model's results, as plain values.

        These are digests of the weights and of the preprocessing, and the dtype.
        """
        return {
            "model's weights": weights_digest(self.model),
            "preprocessing": text_digest(repr(self.preprocess)),
            "model's dtype": str(self.dtype).removeprefix("torch."),
        }

    def __repr__(self) -> str:
        return f"ClipEncoder({self.name!r}, {str(self.dtype).removeprefix('torch.')} on {self.device})"


class BoundClip:
    """A CLIP's text tower around learned tokens, with the output "features" (R, D) of unit length; see `BoundModel`.

    Args:
        clip: a `ClipEncoder` or an `HFClipEncoder`.
        encoder: its text encoder, with the tokens around the learned ones.
    """

    def __init__(self, clip: Any, encoder: Any, prefix: str, suffix: str) -> None:
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


def encoded_images(model: Any, images: Sequence[Any]) -> Tensor:
    """Returns a model's unit features (N, D) of images, opened and prepared a few at a time."""
    parts = (images[start : start + _ENCODE_BATCH] for start in range(0, len(images), _ENCODE_BATCH))
    return torch.cat([model.encode_pixels([model.preprocess(load_image(image)) for image in part]) for part in parts])


def encoded(inputs: Sequence[Tensor] | Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the unit features (N, D) of the inputs, encoded in batches of one size."""
    features = []
    for start in range(0, len(inputs), _ENCODE_BATCH):
        part = torch.stack(list(inputs[start : start + _ENCODE_BATCH]))
        features.append(unit_features(encode(pad_rows(part, _ENCODE_BATCH)))[: len(part)])
    return torch.cat(features)
