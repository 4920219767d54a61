"""Prompts for images, and for images and texts together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pez_fast.config import SearchOptions, config_from, takes_config
from pez_fast.images import image_or_error, load_image
from pez_fast.objectives import Similarity, weighted_target
from pez_fast.objectives.similarity import checked_weights
from pez_fast.prompt_search import search
from pez_fast.result import PromptResult
from pez_fast.tasks.checks import check_model, checked_texts, most_tokens
from pez_fast.tasks.referee import ChooseBy, add_referee, check_choice, check_referee

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_config
def invert(
    images: Any,
    model: Any,
    *,
    texts: str | Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    referee: Any = None,
    choose_by: ChooseBy = "model",
    **options: Unpack[SearchOptions],
) -> PromptResult:
    """Learns one prompt for targets of any kind: an image, several that share something, texts, or both together.

    Args:
        images: what `load_image` takes (a path, a PIL image, bytes, an array), or a list of them; None or an empty
            list if there are texts.
        model: from `load_clip`; for texts alone also from `load_sentence_encoder`.
        texts: a text or several that the prompt is to be like, beside the images or in their place.
        weights: one number for each target, those of the images first, then those of the texts; a negative one pushes
            the prompt away from its target. Default: equal weights. A text's cosines lie higher than an image's with
            most models, so that at equal weights texts count for more.
        referee: a second model from `load_clip`, which takes no part in the search. Its cosine of the text with the
            images stands in the result and in each prompt of `top`; it prepares the images in its own way.
        choose_by: who chooses among the `top_k` prompts: "model", or "referee". `steps`, `history` and `soft_prompt`
            stay those of the model's choice.

    Returns:
        The best prompt that the search met; its scores are weighted means over the targets. Ctrl-C returns the best
        prompt so far.

    Raises:
        ValueError, TypeError: an option, an image, a text or the weights cannot be used, or there is no target; the
            message names it.
    """
    check_choice(choose_by, referee, config_from({**options}))
    images, found, weights = _targets(images, texts, weights)
    needed = [*(["encode_images"] if images else []), *(["encode_texts"] if found else [])]
    check_model(model, *needed, *(["context_length"] if found else []))
    check_referee(referee, model, *needed, "encode_texts")
    if referee is not None:
        images = [load_image(image) for image in images]  # an open file can be read once
    if found:
        most_tokens(found, model)
    features, note = _features(images, found, model)
    result = search(Similarity(weighted_target(features, weights)[None]), model, **options)[0]
    result.note = note
    if referee is not None:
        seen, _ = _features(images, found, referee)
        add_referee([result], weighted_target(seen, weights)[None], referee, choose_by)
    return result


def _targets(
    images: Any, texts: Any, weights: Sequence[float] | None
) -> tuple[list[Any], list[str], Sequence[float] | None]:
    """Returns the images and the texts of one prompt as lists, and their weights, all checked."""
    images = list(images) if isinstance(images, (list, tuple)) else [] if images is None else [images]
    found = [] if texts is None else checked_texts("texts", texts, may_be_none=True)
    if not images and not found:
        raise ValueError("images must hold at least one image, or texts one text; got neither")
    if weights is not None:
        weights = checked_weights(weights, len(images) + len(found))
    return images, found, weights


def _features(images: Sequence[Any], texts: Sequence[str], model: Any) -> tuple[Tensor, str]:
    """Returns the features (N, D) of images, then of texts, and the first note on an image."""
    parts, note = [], ""
    if images and hasattr(model, "notes"):
        pixels = [model.preprocess(load_image(image)) for image in images]  # an open file can be read once
        parts, note = [model.encode_pixels(pixels)], next(filter(None, model.notes(pixels)), "")
    elif images:
        parts = [model.encode_images(images)]
    if texts:
        parts.append(model.encode_texts(texts))
    return torch.cat(parts), note


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
    check_referee(referee, model, "encode_pixels", "preprocess", "encode_texts")
    results, readable = read_each(images, [model] if referee is None else [model, referee], config.seed)
    if readable:
        targets = model.encode_pixels([pixels[0] for pixels in readable.values()])
        for k, result in zip(readable, search(Similarity(targets), model, **options), strict=True):
            result.note, results[k] = results[k].note, result
    if referee is not None and readable:
        seen = referee.encode_pixels([pixels[1] for pixels in readable.values()])
        add_referee([results[k] for k in readable], seen, referee, choose_by)
    return results


def read_each(images: Any, models: Sequence[Any], seed: int) -> tuple[list[PromptResult], dict[int, list[Tensor]]]:
    """Reads images that are to have a prompt each.

    Args:
        models: the model that learns the prompts, and others that see the images too.

    Returns:
        For each image a result without a prompt, with `error` or `note` set where there is something to say; and the
        images that could be read, by their number, as each model preprocesses them (3, H, W).

    Raises:
        ValueError: `images` is empty.
        TypeError: `images` is no list, or the model cannot read images.
    """
    model = models[0]
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise TypeError(f"images must be a list of images; got {type(images).__name__}")
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    check_model(model, "encode_pixels", "preprocess")
    results = [PromptResult(seed=seed, model=model.name) for _ in images]
    loaded = [image_or_error(image, lambda read: [each.preprocess(read) for each in models]) for image in images]
    readable = {k: pixels for k, pixels in enumerate(loaded) if not isinstance(pixels, str)}
    for result, pixels in zip(results, loaded, strict=True):
        result.error = pixels if isinstance(pixels, str) else None
    if readable and hasattr(model, "notes"):
        for k, note in zip(readable, model.notes([pixels[0] for pixels in readable.values()]), strict=True):
            results[k].note = note
    return results, readable
