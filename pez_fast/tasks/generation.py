"""Images from learned prompts, by a text-to-image pipeline of diffusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from PIL import Image

from pez_fast.images import load_image
from pez_fast.models.diffusion.pipeline import check_fits, check_pipeline, takes
from pez_fast.models.diffusion.text import FedText
from pez_fast.result import finite_or_none

OURS = (  # what generate sets itself
    "prompt",
    "prompt_2",
    "prompt_embeds",
    "pooled_prompt_embeds",
    "generator",
    "latents",
    "output_type",
    "num_images_per_prompt",
    "return_dict",
)


@dataclass
class Generated:
    """Images that a pipeline made from a prompt.

    Attributes:
        prompt, prompt_2: the texts; prompt_2 is None where there is one text. From a soft prompt, `prompt` is the text
            of its result, which the pipeline did not read.
        images: the images, as PIL has them.
        seeds: the seed of each image.
        soft: whether a soft prompt was fed in place of the text.
        similarity: by the model that prompts were learned with, the mean cosine of each image with the original ones;
            empty without them.
        referee_similarity: the same by a second model; empty without one.
        note: "", or one sentence on what to keep in mind.
    """

    prompt: str
    images: list[Image.Image] = field(repr=False)
    seeds: list[int]
    prompt_2: str | None = None
    soft: bool = False
    similarity: list[float] = field(default_factory=list)
    referee_similarity: list[float] = field(default_factory=list)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the images as a dict of plain values."""
        return {name: value for name, value in vars(self).items() if name != "images"}

    def to_json(self, indent: int | None = None) -> str:
        """Returns all but the images as JSON."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)


@overload
def generate(result_or_text: list, pipeline: Any, **options: Any) -> list[Generated]: ...
@overload
def generate(result_or_text: Any, pipeline: Any, **options: Any) -> Generated: ...
def generate(
    result_or_text: Any,
    pipeline: Any,
    *,
    num_images: int = 1,
    seed: int = 0,
    clip: Any = None,
    images: Any = None,
    referee: Any = None,
    **pipeline_options: Any,
) -> Generated | list[Generated]:
    """Makes images from a prompt, or from each of several.

    Each image is made on its own with a seed of its own, `seed`, `seed` + 1, …, so that it does not depend on how many
    are made.

    Args:
        result_or_text: a text or a result; a pair (prompt, prompt_2) of these for Stable Diffusion XL; or a list of
            either. A result with a soft prompt (`SoftPromptMethod`) is fed as embeddings, alone between the special
            tokens; hand in `result.prompt` for its text.
        pipeline: a text-to-image pipeline of diffusers, as `load_pipeline` returns.
        num_images: how many images for each prompt.
        seed: the seed of the first one.
        clip: a model with `encode_images`, as `load_clip` returns, that compares the images with the original ones.
        images: the original ones: what `load_image` takes, or a list of these; for a list of prompts, a list with one
            of either for each.
        referee: a second such model, which did not learn the prompt.
        pipeline_options: for the pipeline, such as num_inference_steps, guidance_scale, negative_prompt, height, width.

    Returns:
        A `Generated`; for a list, a list of them.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it.
    """
    _check_options(pipeline, num_images, seed, pipeline_options)
    several = isinstance(result_or_text, list)
    prompts = [_Prompt(one, pipeline) for one in (result_or_text if several else [result_or_text])]
    if not prompts:
        raise ValueError("result_or_text must hold at least one prompt; got an empty list")
    originals = _originals(images, clip, referee, len(prompts) if several else None)
    found = []
    for prompt, original in zip(prompts, originals, strict=True):
        made = _made(prompt, pipeline, num_images, seed, pipeline_options)
        for model, scores in ((clip, made.similarity), (referee, made.referee_similarity)):
            if model is not None:
                cosines = model.encode_images(made.images)[:, None] * model.encode_images(original)
                scores += cosines.sum(-1).mean(1).tolist()
        found.append(made)
    return found if several else found[0]


class _Prompt:
    """A prompt as a user hands it in: what the pipeline is called with, and its texts."""

    def __init__(self, given: Any, pipeline: Any) -> None:
        parts = given if isinstance(given, tuple) else (given,)
        if not 1 <= len(parts) <= 2:
            raise ValueError(f"result_or_text must be one prompt or a pair of them; got {len(parts)}")
        soft = getattr(parts[0], "soft_prompt", None)
        texts = [_text(part, name) for part, name in zip(parts, ("result_or_text", "prompt_2"), strict=False)]
        if len(texts) == 2 and "prompt_2" not in takes(pipeline):
            raise ValueError(
                f"prompt_2 is for pipelines with two text encoders; {type(pipeline).__name__} reads one prompt; got "
                f"{texts[1]!r}"
            )
        self.texts, self.soft = texts, soft is not None
        if soft is not None:
            if len(texts) == 2:
                raise ValueError("prompt_2 has no place beside a soft prompt; hand in result.prompt for its text")
            self.arguments = _embedded(soft, pipeline)
            return
        for text, name in zip(texts, ("prompt", "prompt_2"), strict=False):
            check_fits(pipeline, text, name)
        self.arguments = dict(zip(("prompt", "prompt_2"), texts, strict=False))


def _text(part: Any, name: str) -> str:
    """Returns the text of a prompt or a result."""
    if getattr(part, "error", None):
        raise ValueError(f"{name} holds no prompt: {part.error}")
    text = getattr(part, "prompt", part)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a text or a result with a prompt; got {type(part).__name__}")
    if not text.strip():
        raise ValueError(f"{name} must not be empty; got {text!r}")
    return text


@torch.no_grad()
def _embedded(soft: Any, pipeline: Any) -> dict[str, Any]:
    """Returns a soft prompt (L, d) as the arguments that a pipeline takes in place of a text."""
    fed = FedText(pipeline)
    embeds = torch.as_tensor(soft)[None].to(fed.device, fed.dtype)
    condition = fed.of_embeds(embeds, fed.open_text(embeds.shape[1]))
    found = {"prompt_embeds": condition.hidden}
    return found if condition.pooled is None else found | {"pooled_prompt_embeds": condition.pooled}


def _made(prompt: _Prompt, pipeline: Any, num_images: int, seed: int, options: dict[str, Any]) -> Generated:
    """Returns the images of a prompt, without scores."""
    made, seeds, hidden = [], [seed + k for k in range(num_images)], 0
    for number in seeds:
        generator = torch.Generator().manual_seed(number)
        told = pipeline(**prompt.arguments, generator=generator, output_type="pil", **options)
        made += told.images
        hidden += sum(map(bool, getattr(told, "nsfw_content_detected", None) or ()))
    note = f"the pipeline's safety checker made {hidden} of {num_images} images black" if hidden else ""
    second = prompt.texts[1] if len(prompt.texts) == 2 else None
    return Generated(prompt.texts[0], made, seeds, second, prompt.soft, note=note)


def _check_options(pipeline: Any, num_images: int, seed: int, options: dict[str, Any]) -> None:
    check_pipeline(pipeline)
    whole = [("num_images", num_images, 1), ("seed", seed, 0)]
    if "num_inference_steps" in options:
        whole.append(("num_inference_steps", options["num_inference_steps"], 1))
    for name, value, least in whole:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer, at least {least}; got {value!r}")
    for name in options:
        if name in OURS:
            raise TypeError(f"{name!r} is not an option of generate, which sets it itself")
        if name not in takes(pipeline):
            raise TypeError(f"{name!r} is neither an option of generate nor one of {type(pipeline).__name__}")


def _originals(images: Any, clip: Any, referee: Any, count: int | None) -> list[list[Image.Image]]:
    """Returns the original images of each prompt; `count` is the number of prompts in a list."""
    for name, model in (("clip", clip), ("referee", referee)):
        if model is not None and not hasattr(model, "encode_images"):
            raise TypeError(f"{name} must come from load_clip, or have encode_images; got {type(model).__name__}")
    if (clip is None and referee is None) != (images is None):
        told = "images is given without clip or referee" if images is not None else "clip and referee need images"
        raise ValueError(f"{told}: similarity is that of the original images and the generated ones, by a model")
    if images is None:
        return [[]] * (count or 1)
    if count is None:
        images = [images]
    elif not isinstance(images, Sequence) or isinstance(images, (str, bytes)) or len(images) != count:
        got = len(images) if isinstance(images, (list, tuple)) else type(images).__name__
        raise ValueError(f"images must be a list with one entry for each of the {count} prompts; got {got}")
    groups = [list(group) if isinstance(group, (list, tuple)) else [group] for group in images]
    if not all(groups):
        raise ValueError("images must hold at least one image for each prompt; got an empty list")
    return [[load_image(image) for image in group] for group in groups]
