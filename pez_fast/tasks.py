"""What PEZ is used for with CLIP: inversion of images, shared style, distillation of texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pez_fast.config import SearchOptions, config_from, takes_config
from pez_fast.encoders import ClipEncoder
from pez_fast.images import image_or_error
from pez_fast.learner import learn
from pez_fast.objectives import weighted_goal
from pez_fast.result import PromptResult

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_config
def invert(
    images: Any, clip: ClipEncoder, *, weights: Sequence[float] | None = None, **options: Unpack[SearchOptions]
) -> PromptResult:
    """One prompt for one image, or for several that share something (their style, say).

    Args:
        images: what `load_image` takes (a path, a PIL image, bytes, an array), or a list of them.
        clip: from `load_clip`.
        weights: one for each image; a negative one pushes the prompt away from its image.

    Returns:
        The best prompt met; scores are weighted means over the images. Ctrl-C returns the best so far.

    Raises:
        ValueError, TypeError: an option or image that cannot be used; the sentence names it.
    """
    config = config_from({**options})
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    _check_clip(clip)
    targets = clip.encode_images(images)
    return learn(weighted_goal(targets, weights)[None], clip, config)[0]


@takes_config
def invert_batch(images: Sequence[Any], clip: ClipEncoder, **options: Unpack[SearchOptions]) -> list[PromptResult]:
    """One prompt for each image, all learned in one batch; each result is that of `invert` on its image alone.

    An image that cannot be read gives a result with `error` set; the others go on.

    Args:
        images: a list of what `load_image` takes.
        clip: from `load_clip`.

    Errors: as `invert`.
    """
    config = config_from({**options})
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise TypeError(f"images must be a list of images; got {type(images).__name__}")
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    _check_clip(clip)
    results = [PromptResult(seed=config.seed, model=clip.name) for _ in images]
    read = [image_or_error(image, clip.preprocess) for image in images]
    for result, found in zip(results, read, strict=True):
        result.error = found if isinstance(found, str) else None
    readable = {k: found for k, found in enumerate(read) if not isinstance(found, str)}
    if readable:
        features = clip.encode_pixels(list(readable.values()))
        for k, result in zip(readable, learn(features, clip, config), strict=True):
            results[k] = result
    return results


@takes_config
def distill(  # type: ignore[misc]  # prompt_len has a meaning of its own here
    text: str,
    clip: ClipEncoder,
    ratio: float | None = None,
    prompt_len: int | None = None,
    **options: Unpack[SearchOptions],
) -> PromptResult:
    """A shorter prompt that means the same to the model.

    Args:
        text: the prompt to shorten.
        ratio: tokens of the result over tokens of the text, in (0, 1]; 0.3 where prompt_len is not given either.
        prompt_len: the number of tokens itself, in place of a ratio.

    Errors: as `invert`.
    """
    _check_clip(clip)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text must not be empty; got {text!r}")
    if ratio is not None and prompt_len is not None:
        raise ValueError(f"ratio and prompt_len exclude each other; got {ratio!r} and {prompt_len!r}")
    tokens = len(clip.vocabulary.encode(text))
    if prompt_len is None:
        ratio = 0.3 if ratio is None else ratio
        if not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1; got {ratio!r}")
        prompt_len = max(1, round(ratio * tokens))
    if tokens > clip.context_length - 2:
        warnings.warn(
            f"the model reads the first {clip.context_length - 2} of the {tokens} tokens of the text", stacklevel=3
        )
        prompt_len = min(prompt_len, clip.context_length - 2)
    config = config_from({**options, "prompt_len": prompt_len})
    return learn(clip.encode_texts([text]), clip, config)[0]


def _check_clip(clip: object) -> None:
    if not isinstance(clip, ClipEncoder):
        raise TypeError(f"clip must come from load_clip; got {type(clip).__name__}")
