"""Cosines of images and prompts that are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pez_fast.tasks.checks import check_model


def score(images: Sequence[Any], prompts: Sequence[str], model: Any) -> Tensor:
    """Returns the cosine of every image with every prompt.

    Cosines of different models cannot be compared with one another.

    Args:
        images: a list of N images, each what `load_image` takes.
        prompts: a list of M texts; the model's tokenizer cuts one that is longer than the context.
        model: from `load_clip`.

    Returns:
        (N, M) float32 on the model's device. An image's row and a prompt's column depend on nothing else, to the bit.

    Raises:
        ValueError, TypeError: there is no image or no prompt, or one that cannot be used; the sentence names it.
    """
    check_model(model, "encode_images", "encode_texts")
    for name, values in (("images", images), ("prompts", prompts)):
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TypeError(f"{name} must be a list; got {type(values).__name__}")
        if not values:
            raise ValueError(f"{name} must hold at least one; got an empty list")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompts must not be empty; got {prompt!r}")
    return cosines(model.encode_images(list(images)), prompts, model)


def cosines(features: Tensor, prompts: Sequence[str], model: Any) -> Tensor:
    """Returns the cosines (N, M) of unit features (N, D) with the texts of M prompts; see `score`."""
    texts = model.encode_texts(list(prompts))
    return (features[:, None] * texts).sum(-1)  # products of rows round alike in any number
