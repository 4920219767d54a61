"""CLIP-like models of transformers as encoders of images, texts and prompts."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pez_fast.models.clip import BoundClip, encoded, encoded_images
from pez_fast.models.embedded import EmbeddedModel
from pez_fast.models.fingerprint import text_digest, tokenizer_state, weights_digest
from pez_fast.models.hf_tower import HFTextEncoder, embedding_of, end_of, is_causal, pooled, pools_largest
from pez_fast.models.sentence import in_dtype, learned_slots
from pez_fast.models.vocabulary import Vocabulary, check_prompt_len, check_room

TEXT, VISION = "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"
KINDS = ("CLIPModel", TEXT, "SiglipModel", "Siglip2Model")
_UNTRAINED = re.compile(r"<unused\d+>")  # entries that Gemma's tokenizer keeps free
_PATCHES = ("pixel_values", "pixel_attention_mask", "spatial_shapes")  # of SigLIP 2's image processor


class HFClipEncoder(EmbeddedModel):
    """A frozen CLIP-like model of transformers with its own tokenizer and image processor.

    Texts are read as the model's processor reads them: padded to the whole context and cut to it. Images are opened by
    `load_image`, and resized and normalised by the model's image processor.

    Args:
        model: a `CLIPModel`, `SiglipModel` or `Siglip2Model`, or for texts alone a `CLIPTextModelWithProjection`. It is
            put in evaluation mode and frozen.
        processor: the model's processor, with a tokenizer and an image processor in it, or a tokenizer alone.
        image_processor: the image processor, where `processor` holds none.
        vision_model: a `CLIPVisionModelWithProjection`, for images beside a `CLIPTextModelWithProjection`.
        name: the name that results show. Default: the one of the model's configuration.

    Attributes:
        context_length: tokens that the model reads of a text, special ones included.
        text_only: why the model takes no images, as a sentence; "" if it takes them.

    Raises:
        TypeError: model, tokenizer or vision_model is none of these.
        ValueError: there is no image processor, the two models do not belong together, or no token can be learned.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        image_processor: Any = None,
        vision_model: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        tokenizer = getattr(processor, "tokenizer", processor)
        image_processor = image_processor or getattr(processor, "image_processor", None)
        self.kind = _checked_kind(model)
        _check_parts(self.kind, model, tokenizer, image_processor, vision_model)
        self.model = model.eval().requires_grad_(False)
        self.vision = vision_model.eval().requires_grad_(False) if vision_model is not None else model
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.text_only = ""
        if self.kind == TEXT and vision_model is None:
            self.text_only = f"model {self.name!r} is a {TEXT}, which takes no images without a {VISION} beside it"
        self.embedding = embedding_of(model)
        self.context_length = _context_length(model, processor)
        known = [i for token, i in tokenizer.get_vocab().items() if not _UNTRAINED.fullmatch(token)]
        self.vocabulary = Vocabulary(tokenizer, sorted(i for i in known if i < len(self.embedding.weight)))
        self.vocabulary.special |= self._marks()
        self._parts: dict[torch.dtype, Any] = {self.dtype: model}  # its text part in other dtypes is added

    def _marks(self) -> set[int]:
        """Returns the ids that CLIP would pool in place of the end token, if they were learned."""
        if not is_causal(self.model):
            return set()
        ids, _ = self._read("a")
        end = int(ids[end_of(self.model, ids)])
        return set(range(end, len(self.embedding.weight))) if pools_largest(self.model) else {end}

    def preprocess(self, image: Any) -> Tensor:
        """Returns an image of PIL as the model's image processor gives it.

        Returns:
            (3, H, W); for SigLIP 2 (P, C + 3): P patches of C values, each with its mask and the image's height and
            width in patches.

        Raises:
            TypeError: the model takes no images.
        """
        if self.text_only:
            raise TypeError(self.text_only)
        found = self.image_processor(images=image, return_tensors="pt")
        if self.kind != "Siglip2Model":
            return found["pixel_values"][0]
        patches, mask, shape = (found[name][0] for name in _PATCHES)
        return torch.cat([patches, mask[:, None].to(patches), shape.to(patches).expand(len(patches), -1)], -1)

    def encode_images(self, images: Sequence[Any]) -> Tensor:
        """Returns unit features (N, D) float32 of images, which `load_image` takes; no row depends on the others."""
        return encoded_images(self, images)

    @torch.no_grad()
    def encode_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Returns unit features (N, D) float32 of what `preprocess` gives; no row depends on the others."""
        if self.text_only:
            raise TypeError(self.text_only)
        return encoded(pixels, self._image_features).to(self.device)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns unit features (N, D) float32 of texts; the model's tokenizer cuts a text to the context.

        Raises:
            ValueError: a text holds a token that the model has no embedding for.
        """
        read = [self._read(text) for text in texts]
        if read and read[0][1] is None:
            return encoded([ids for ids, _ in read], lambda part: pooled(self.model, part, None))
        both = [torch.stack([ids, mask]) for ids, mask in read if mask is not None]
        return encoded(both, lambda part: pooled(self.model, part[:, 0], part[:, 1]))

    def text_encoder(
        self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None
    ) -> HFTextEncoder:
        """Returns an encoder of prompts with prompt_len learned tokens between two fixed texts.

        Args:
            dtype: the dtype that the tower runs in. Default: the model's. Another dtype needs a copy of the tower,
                which is kept.

        Raises:
            ValueError: prompt_len is no positive integer; the prompt does not fit into the context; the tokenizer does
                not read a token as itself beside the fixed texts.
        """
        check_prompt_len(prompt_len)
        before, probe, behind = self.vocabulary.around(prefix, suffix)
        text = self.vocabulary.framed([probe], "", "")
        alone, whole = (
            self.tokenizer(text, add_special_tokens=added, padding=False, verbose=False)["input_ids"]
            for added in (False, True)
        )
        used = len(whole) - len(alone) + len(before) + prompt_len + len(behind)
        check_room(prompt_len, used, self.context_length)
        other = next((i for i in self.vocabulary.stable() if i != probe), probe)
        read = [self._read(self.vocabulary.framed([i] * prompt_len, prefix, suffix)) for i in (probe, other)]
        slots = learned_slots([ids for ids, _ in read], probe, prompt_len)
        dtype = dtype or self.dtype
        if dtype not in self._parts:
            images = getattr(self.model, "vision_model", None)
            part = copy.deepcopy(self.model, {} if images is None else {id(images): nn.Identity()})
            self._parts[dtype] = in_dtype(part, dtype)
        return HFTextEncoder(self._parts[dtype], *read[0], slots)

    def bind(self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None) -> BoundClip:
        """Returns the text tower with prompt_len slots between two fixed texts; see `PromptModel`."""
        return BoundClip(self, self.text_encoder(prompt_len, prefix, suffix, dtype), prefix, suffix)

    def fingerprint(self) -> dict[str, str]:
        """Returns what decides the model's results, as plain values: digests of its parts, and the dtype."""
        parts = [self.model] if self.vision is self.model else [self.model, self.vision]
        settings = [self.context_length, pools_largest(self.model), self.tokenizer.padding_side]
        images = "" if self.image_processor is None else self.image_processor.to_json_string()
        return {
            "model's weights": text_digest(" ".join(weights_digest(part) for part in parts)),
            "modules": text_digest(repr(parts)),
            "tokenizer": text_digest(json.dumps([tokenizer_state(self.tokenizer), settings], sort_keys=True)),
            "preprocessing": text_digest(images),
            "model's dtype": str(self.dtype).removeprefix("torch."),
        }

    def _image_features(self, part: Tensor) -> Tensor:
        """Returns the image features (N, D) of what `preprocess` gives, stacked."""
        weight = next(self.vision.parameters())
        part = part.to(weight.device)
        if self.kind == TEXT:
            return self.vision(pixel_values=part.to(weight.dtype)).image_embeds
        given = {"pixel_values": part.to(weight.dtype)}
        if self.kind == "Siglip2Model":
            shapes = part[:, 0, -2:].long().clamp_min(1)  # rows that only fill the batch have none
            given = dict(zip(_PATCHES, (part[..., :-3].to(weight.dtype), part[..., -3].int(), shapes), strict=True))
        found = self.vision.get_image_features(**given)
        return getattr(found, "pooler_output", found)

    def _read(self, text: str) -> tuple[Tensor, Tensor | None]:
        """Returns the ids (S,) of a text in the whole context, and their attention mask where the tokenizer has one."""
        read = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        ids, rows = read["input_ids"][0], len(self.embedding.weight)
        if int(ids.max()) >= rows:
            token = self.tokenizer.convert_ids_to_tokens(int(ids.max()))
            raise ValueError(f"text {text!r} holds the token {token!r}, for which the model has no embedding")
        mask = read.get("attention_mask")
        return ids.to(self.device), None if mask is None else mask[0].to(self.device)

    def __repr__(self) -> str:
        kind, dtype = self.kind, str(self.dtype).removeprefix("torch.")
        return f"HFClipEncoder({self.name!r}, {kind}, {dtype} on {self.device})"


def _kinds(model: Any) -> list[str]:
    return [kind.__name__ for kind in type(model).__mro__]


def _checked_kind(model: Any) -> str:
    found = next((name for name in _kinds(model) if name in KINDS), None)
    if found is None:
        known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        raise TypeError(f"model must be a {known} of transformers; got {type(model).__name__}")
    return found


def _check_parts(kind: str, model: Any, tokenizer: Any, image_processor: Any, vision_model: Any) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(f"processor must be a processor or a tokenizer of transformers; got {type(tokenizer).__name__}")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{type(tokenizer).__name__} has no padding token, and the model reads padded texts")
    if image_processor is None and (kind != TEXT or vision_model is not None):
        raise ValueError(f"image_processor must be given for a {kind}, whose processor holds none; got None")
    if vision_model is None:
        return
    if kind != TEXT:
        raise ValueError(f"vision_model goes with a {TEXT} alone; a {kind} brings its own")
    if VISION not in _kinds(vision_model):
        raise TypeError(f"vision_model must be a {VISION} of transformers; got {type(vision_model).__name__}")
    widths = [part.config.projection_dim for part in (model, vision_model)]
    if widths[0] != widths[1]:
        raise ValueError(f"vision_model gives features of {widths[1]} dimensions, and model of {widths[0]}")


def _context_length(model: Any, processor: Any) -> int:
    """Returns the number of tokens that a text is padded and cut to."""
    tokenizer = getattr(processor, "tokenizer", processor)
    own = (getattr(processor, "text_kwargs", None) or {}).get("max_length")  # SigLIP 2's processor has one
    positions = model.config.get_text_config().max_position_embeddings
    return min(int(limit) for limit in (positions, tokenizer.model_max_length, own) if limit)
