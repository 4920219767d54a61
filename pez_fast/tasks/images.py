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
from pez_fast.tasks.referee import ChooseBy, add_referee, check_choice, check_referee

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_config
def invert(
    images: Any,
    model: Any,
    *,
    weights: Sequence[float] | None = None,
    referee: Any = None,
    choose_by: ChooseBy = "model",
    **options: Unpack[SearchOptions],
) -> PromptResult:
    """Learns one prompt for one image, or for several images that share something, such as their style.

    Args:
        images: what `load_image` takes (a path, a PIL image, bytes, an array), or a list of them.
        model: from `load_clip`.
        weights: one number for each image; a negative one pushes the prompt away from its image. Default: equal
            weights.
        referee: a second model from `load_clip`, which takes no part in the search. Its cosine of the text with the
            images stands in the result and in each prompt of `top`; it prepares the images in its own way.
        choose_by: who chooses among the `top_k` prompts: "model", or "referee". `steps`, `history` and `soft_prompt`
            stay those of the model's choice.

    Returns:
        The best prompt that the search met; its scores are weighted means over the images. Ctrl-C returns the best
        prompt so far.

    Raises:
        ValueError, TypeError: an option or an image cannot be used; the message names it.
    """
    check_choice(choose_by, referee, config_from({**options}))
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    check_model(model, "encode_images")
    check_referee(referee, model, "encode_images", "encode_texts")
    if referee is not None:
        images = [load_image(image) for image in images]  # an open file can be read once
    if hasattr(model, "notes"):  # an open file can be read once
        pixels = [model.preprocess(load_image(image)) for image in images]
        features, notes = model.encode_pixels(pixels), model.notes(pixels)
    else:
        features, notes = model.encode_images(images), []
    result = search(Similarity(weighted_target(features, weights)[None]), model, **options)[0]
    result.note = next(filter(None, notes), "")
    if referee is not None:
        add_referee([result], weighted_target(referee.encode_images(images), weights)[None], referee, choose_by)
    return result


@takes_config
def invert_batch(
    images: Sequence[Any],
    model: Any,
    *,
    referee: Any = None,
    choose_by: ChooseBy = "model",
    **options: Unpack[SearchOptions],
) -> list[PromptResult]:
    """Learns one prompt for each image, in batches; each result is that of `invert` on its image alone.

    Args:
        images: a list of what `load_image` takes.
        model: from `load_clip`.
        referee, choose_by: as for `invert`.

    Returns:
        The results in the order of the images. An image that cannot be read has a result with `error` set and does
        not end the others. Ctrl-C returns the best prompts so far.

    Raises:
        ValueError: an option cannot be used, or `images` is empty.
        TypeError: an option does not exist, or `images` is no list.
    """
    config = config_from({**options})
    check_choice(choose_by, referee, config)
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise TypeError(f"images must be a list of images; got {type(images).__name__}")
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    check_model(model, "encode_pixels", "preprocess")
    check_referee(referee, model, "encode_pixels", "preprocess", "encode_texts")
    prepared = [model] if referee is None else [model, referee]
    results = [PromptResult(seed=config.seed, model=model.name) for _ in images]
    loaded = [image_or_error(image, lambda read: [each.preprocess(read) for each in prepared]) for image in images]
    for result, pixels in zip(results, loaded, strict=True):
        result.error = pixels if isinstance(pixels, str) else None
    readable = {k: pixels[0] for k, pixels in enumerate(loaded) if not isinstance(pixels, str)}
    if readable:
        targets = model.encode_pixels(list(readable.values()))
        notes = model.notes(list(readable.values())) if hasattr(model, "notes") else [""] * len(readable)
        for k, result, note in zip(readable, search(Similarity(targets), model, **options), notes, strict=True):
            results[k], result.note = result, note
    if referee is not None and readable:
        seen = referee.encode_pixels([pixels[1] for pixels in loaded if not isinstance(pixels, str)])
        add_referee([results[k] for k in readable], seen, referee, choose_by)
    return results
