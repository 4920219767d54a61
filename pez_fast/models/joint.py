"""Several encoders that read one prompt: generators such as Stable Diffusion XL give a prompt to two of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pez_fast._shared import catalog
from pez_fast.config import Vocabulary as Listed
from pez_fast.config import listed_words
from pez_fast.engine import BoundModel, Outputs
from pez_fast.images import load_image
from pez_fast.models.arguments import checked_name
from pez_fast.models.loading import load_clip
from pez_fast.models.tokenizers import why_not_shared
from pez_fast.table import TokenTable

_NEEDED = ("table", "bind", "embedding", "vocabulary", "context_length", "preprocess", "encode_pixels", "encode_texts")


class JointModel:
    """Encoders that share a tokenizer, as one model: one prompt is learned for all of them.

    The features of a text or an image are those of all encoders side by side, encoder k's times the square root of its
    share of the weights. So they have unit length, and their cosine is the weighted mean of the encoders' cosines: all
    tasks, scores and data sets take this model as they take one encoder. The token table is that of all encoders side
    by side, and a search finds the nearest token in it.

    Args:
        models: two or more encoders such as `load_clip` returns, with the same tokens, on one device.
        weights: a number from 0 on for each encoder, not all 0. An encoder with the weight 0 takes no part in a search:
            the result is that of the others alone. Default: equal weights.
        scales: a positive factor for each encoder's token table, in the joint table alone; every encoder still reads
            its own embeddings. Default: powers of two, so that nothing is rounded, that bring the root mean square of
            each table's entries (of known tokens) near that of the first. AdamW moves all entries of a soft prompt
            alike, so without it an encoder whose table has larger entries would decide more on the nearest token.

    Attributes:
        models: the encoders.
        shares: their weights divided by the sum of the weights.
        scales: the factor of each encoder's table in the joint one.

    Raises:
        ValueError: fewer than two models, other tokens, several devices, or weights or scales that cannot be used.
        TypeError: a model lacks what the tasks on images need.
    """

    def __init__(
        self, models: Sequence[Any], weights: Sequence[float] | None = None, scales: Sequence[float] | None = None
    ) -> None:
        self.models = _checked_models(models)
        given = _numbers("weights", [1.0] * len(self.models) if weights is None else weights, len(self.models))
        if min(given) < 0 or not any(given):
            raise ValueError(f"weights must be 0 or more, and not all 0; got {given}")
        self.shares = [weight / sum(given) for weight in given]
        self._active = [k for k, share in enumerate(self.shares) if share]
        self.vocabulary = self.models[self._active[0]].vocabulary
        self.name = " + ".join(model.name for model in self.models)
        self._tables: dict[tuple, TokenTable] = {}
        self.scales = self._balanced() if scales is None else _numbers("scales", scales, len(self.models))
        if min(self.scales) <= 0:
            raise ValueError(f"scales must be above 0; got {self.scales}")

    @property
    def device(self) -> torch.device:
        """The device of all encoders."""
        return self.models[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds those of the encoders that take part."""
        dtype = self.models[self._active[0]].dtype
        for k in self._active:
            dtype = torch.promote_types(dtype, self.models[k].dtype)
        return dtype

    @property
    def context_length(self) -> int:
        """The number of tokens of the shortest context."""
        return min(self.models[k].context_length for k in self._active)

    def _balanced(self) -> list[float]:
        """Returns the powers of two that bring the entries of all tables to about one size."""
        sizes = [_root_mean_square(model.embedding.weight, model.vocabulary.known_ids) for model in self.models]
        first = sizes[self._active[0]]
        return [2.0 ** round(math.log2(first / size)) if first and size else 1.0 for size in sizes]

    def table(self, vocabulary: Listed = "stable", banned: Sequence[str | int] = ()) -> TokenTable:
        """Returns the tokens (V, Σd) that all encoders allow; see `EmbeddedModel.table` for the arguments.

        Raises:
            ValueError: as there, or no token is left that all encoders allow.
        """
        which = listed_words(vocabulary)
        key = (which, tuple(banned))
        if key not in self._tables:
            tables = [self.models[k].table(which, banned) for k in self._active]
            allowed = torch.stack([table.allowed for table in tables]).all(0)
            if not allowed.any():
                raise ValueError(f"vocabulary={vocabulary!r} leaves no token that all encoders of {self.name} allow")
            scaled = [
                table.weight.to(self.dtype) * self.scales[k] for k, table in zip(self._active, tables, strict=True)
            ]
            self._tables[key] = TokenTable(torch.cat(scaled, -1), ~allowed)
        return self._tables[key]

    def bind(self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None) -> BoundJoint:
        """Returns all text towers with prompt_len slots between two fixed texts; see `PromptModel`."""
        if dtype == self.dtype:
            dtype = None  # encoders of several dtypes keep their own
        bound = [self.models[k].bind(prompt_len, prefix, suffix, dtype=dtype) for k in self._active]
        widths = [self.models[k].embedding.embedding_dim for k in self._active]
        return BoundJoint(self, bound, widths, [self.scales[k] for k in self._active])

    def preprocess(self, image: Any) -> list[Tensor]:
        """Returns what each encoder's own preprocessing makes of a PIL image, (3, H, W) each."""
        return [model.preprocess(image) for model in self.models]

    def encode_pixels(self, pixels: Sequence[Sequence[Tensor]]) -> Tensor:
        """Returns unit features (N, ΣD) float32 of preprocessed images; no row depends on the others."""
        return self.combined([self.models[k].encode_pixels([own[k] for own in pixels]) for k in self._active])

    def encode_images(self, images: Sequence[Any]) -> Tensor:
        """Returns unit features (N, ΣD) float32 of images, which `load_image` takes; no row depends on the others."""
        return self.encode_pixels([self.preprocess(load_image(image)) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns unit features (N, ΣD) float32 of texts, each encoder's own cut to its context."""
        return self.combined([self.models[k].encode_texts(texts) for k in self._active])

    def combined(self, features: Sequence[Tensor]) -> Tensor:
        """Returns the unit features (N, ΣD) of the encoders' own (N, D), of those that have a weight."""
        shares = (self.shares[k] for k in self._active)
        return torch.cat([math.sqrt(share) * own for share, own in zip(shares, features, strict=True)], -1)

    def notes(self, pixels: Sequence[Sequence[Tensor]]) -> list[str]:
        """Returns for each preprocessed image a sentence of the first encoder that finds it unlike its training's."""
        notes = [""] * len(pixels)
        for k in self._active:
            if hasattr(self.models[k], "notes"):
                found = self.models[k].notes([own[k] for own in pixels])
                notes = [note or other for note, other in zip(notes, found, strict=True)]
        return notes

    def fingerprint(self) -> dict[str, str]:
        """Returns what decides the results, as plain values: the encoders', their shares, and the scales."""
        own = {f"encoder {k}: {name}": v for k in self._active for name, v in self.models[k].fingerprint().items()}
        pairs = [(f"{self.shares[k]:.17g}", f"{self.scales[k]:.17g}") for k in self._active]
        return own | {"encoders' shares and scales": ", ".join(f"{share} {scale}" for share, scale in pairs)}

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.3g}" for share in self.shares)
        return f"JointModel({self.name!r}, shares {shares}, {str(self.dtype).removeprefix('torch.')} on {self.device})"


class BoundJoint:
    """The text towers of a `JointModel` around learned tokens; see `BoundModel`.

    Its outputs are "features" (R, ΣD), of unit length, and the own ones of the encoders that have a weight, as
    "features.0", "features.1", …
    """

    def __init__(
        self, joint: JointModel, parts: Sequence[BoundModel], widths: Sequence[int], scales: Sequence[float]
    ) -> None:
        self.joint, self.parts, self.widths, self.scales = joint, parts, list(widths), scales
        self.bytes_per_prompt = sum(part.bytes_per_prompt for part in parts)

    def __call__(self, embeds: Tensor, ids: Tensor) -> Outputs:
        own = [
            part(cut / scale, ids)["features"]
            for part, cut, scale in zip(self.parts, embeds.split(self.widths, -1), self.scales, strict=True)
        ]
        return self._outputs(own)

    def text(self, ids: Sequence[int]) -> str:
        return self.parts[0].text(ids)

    def from_text(self, texts: Sequence[str]) -> Outputs:
        return self._outputs([part.from_text(texts)["features"] for part in self.parts])

    def _outputs(self, own: list[Tensor]) -> Outputs:
        named = {f"features.{k}": part for k, part in zip(self.joint._active, own, strict=True)}
        return {"features": self.joint.combined(own), **named}


def load_joint(
    names: str | Sequence[str | os.PathLike],
    weights: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> JointModel:
    """Loads several encoders that share a tokenizer as one model.

    Args:
        names: "sdxl" or "sd3", for both CLIP encoders of that generator; or two or more names as `load_clip` takes
            them.
        weights: as for `JointModel`.
        device, dtype: as for `load_clip`.

    Returns:
        A `JointModel`.

    Raises:
        ValueError, TypeError, ImportError: as for `load_clip` and `JointModel`, or there is no such name.
    """
    if isinstance(names, str):
        if names not in catalog.JOINT:
            known = ", ".join(catalog.JOINT)
            raise ValueError(f"names must be one of {known}, or a list of names of models; got {names!r}")
        names = catalog.JOINT[names]
    if not isinstance(names, Sequence) or len(names) < 2:
        raise ValueError(f"names must be a list of two or more names of models; got {names!r}")
    named = [checked_name(name) for name in names]
    if weights is not None:
        _numbers("weights", weights, len(named))  # said before anything slow
    return JointModel([load_clip(name, device=device, dtype=dtype) for name in named], weights)


def _checked_models(models: Sequence[Any]) -> list[Any]:
    if not isinstance(models, Sequence) or isinstance(models, str) or len(models) < 2:
        raise ValueError(f"models must be a list of two or more encoders; got {models!r}")
    for model in models:
        missing = [name for name in _NEEDED if not hasattr(model, name)]
        if missing or isinstance(model, JointModel):
            lacks = "which is itself joint" if isinstance(model, JointModel) else f"which lacks {', '.join(missing)}"
            raise TypeError(f"models must hold encoders such as load_clip returns; got {type(model).__name__}, {lacks}")
    for other in models[1:]:
        if other.device != models[0].device:
            raise ValueError(f"models must be on one device; got {models[0].device} and {other.device}")
        reason = why_not_shared(models[0], other)
        if reason:
            raise ValueError(f"models must share their tokens; {models[0].name} and {other.name} do not: {reason}")
    return list(models)


def _numbers(name: str, values: object, count: int) -> list[float]:
    """Returns finite numbers, one for each encoder."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"{name} must be one number for each of the {count} encoders; got {values!r}")
    for value in values:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{name} must be finite numbers; got {value!r}")
    return [float(value) for value in values]


def _root_mean_square(weight: Tensor, known_ids: Sequence[int] | None) -> float:
    """Returns it of the entries of a table (V, d), of the tokens that the model was trained on if they are known."""
    parts = [part.float().square().mean(-1) for part in weight.detach().split(8192)]
    squares = torch.cat(parts)
    return float((squares if known_ids is None else squares[list(known_ids)]).mean().sqrt())
