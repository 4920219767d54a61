"""Prompts for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pez_fast.config import SearchOptions, config_from, takes_config
from pez_fast.images import image_or_error, load_image
from pez_fast.objectives import Similarity, weighted_target
from pez_fast.prompt_search import search
from pez_fast.result import PromptResult
from pez_fast.tasks.checks import check_model

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_config
def invert(
    images: Any, model: Any, *, weights: Sequence[float] | None = None, **options: Unpack[SearchOptions]
) -> PromptResult:
    """Learns one prompt for one image, or for several images that share something, such as their style.

    Args:
        images: what `load_image` takes (a path, a PIL image, bytes, an array), or a list of them.
        model: from `load_clip`.
        weights: one number for each image; a negative one pushes the prompt away from its image. Default: equal
            weights.

    Returns:
        The best prompt that the search met; its scores are weighted means over the images. Ctrl-C returns the best
        prompt so far.

    Raises:
        ValueError, TypeError: an option or an image cannot be used; the message names it.
    """
    config_from({**options})
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    check_model(model, "encode_images")
    if hasattr(model, "notes"):  # an open file can be read once
        pixels = [model.preprocess(load_image(image)) for image in images]
        features, notes = model.encode_pixels(pixels), model.notes(pixels)
    else:
        features, notes = model.encode_images(images), []
    result = search(Similarity(weighted_target(features, weights)[None]), model, **options)[0]
    result.note = next(filter(None, notes), "")
    return result


@takes_config
def invert_batch(images: Sequence[Any], model: Any, **options: Unpack[SearchOptions]) -> list[PromptResult]:
    """Learns one prompt for each image, in batches; each result is that of `invert` on its image alone.

    Args:
        images: a list of what `load_image` takes.
        model: from `load_clip`.

    Returns:
        The results in the order of the images. An image that cannot be read has a result with `error` set and does
        not end the others. Ctrl-C returns the best prompts so far.

    Raises:
        ValueError: an option cannot be used, or `images` is empty.
        TypeError: an option does not exist, or `images` is no list.
    """
    config = config_from({**options})
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise TypeError(f"images must be a list of images; got {type(images).__name__}")
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    check_model(model, "encode_pixels", "preprocess")
    results = [PromptResult(seed=config.seed, model=model.name) for _ in images]
    loaded = [image_or_error(image, model.preprocess) for image in images]
    for result, pixels in zip(results, loaded, strict=True):
        result.error = pixels if isinstance(pixels, str) else None
    readable = {k: pixels for k, pixels in enumerate(loaded) if not isinstance(pixels, str)}
    if readable:
        targets = model.encode_pixels(list(readable.values()))
        notes = model.notes(list(readable.values())) if hasattr(model, "notes") else [""] * len(readable)
        for k, result, note in zip(readable, search(Similarity(targets), model, **options), notes, strict=True):
            results[k], result.note = result, note
    return results
