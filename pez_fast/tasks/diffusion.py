"""Prompts for images through a diffusion model: those with which it predicts the images' noise best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pez_fast.config import SearchOptions, config_from, takes_config
from pez_fast.images import load_image
from pez_fast.models.diffusion.model import LATE, DiffusionModel, NoiseTask, text_errors
from pez_fast.objectives import NoiseLoss
from pez_fast.prompt_search import search
from pez_fast.result import PromptResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

LEARNING = {"refine": 0}  # a round of the refinement tries many prompts, and here each takes a pass of the denoiser


@takes_config(defaults=LEARNING)
def invert_diffusion(
    images: Any,
    pipeline: Any,
    *,
    timesteps: tuple[float, float] = LATE,
    noises: int = 4,
    held_out: int = 16,
    held_out_every: int = 10,
    **options: Unpack[SearchOptions],
) -> PromptResult:
    """Learns one prompt for one or several images through a diffusion model.

    The loss is the mean squared error of the model's own prediction of noise, at timesteps and noises that are drawn at
    each step (the original's `prompt_inversion_sd`). No CLIP compares the prompt with the images.

    Args:
        images: what `load_image` takes, or a list of them.
        pipeline: a text-to-image pipeline of diffusers with a `UNet2DConditionModel` and text encoders that can be fed
            with embeddings: Stable Diffusion 1.5, 2.1, XL. Its parts are put in evaluation mode and frozen.
        timesteps: the lowest and the highest timestep, as shares of all; 1 is pure noise. The default is the noisier
            half: there the text decides on what is in the image, and with little noise the image itself tells the model
            nearly all (PH2P, Mahajan et al. 2024).
        noises: how many noises are drawn at a step. More make a step steadier and slower.
        held_out: how many noises score the prompts; they are the same ones in every search of these images.
        held_out_every: steps between two such scores.

    Returns:
        The best prompt that the search met; its scores are the negative error on the held-out noises. `note` says so if
        the empty prompt has no larger error. Ctrl-C returns the best prompt so far.

    Raises:
        ValueError, TypeError: an argument or an option cannot be used; the message names it.
    """
    config_from({**options})
    for name, value in (("noises", noises), ("held_out", held_out), ("held_out_every", held_out_every)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}")
    model = DiffusionModel(pipeline, _task(images, timesteps, noises, held_out, held_out_every))
    result = search(NoiseLoss(), model, **options)[0]
    if result.prompt:
        empty = float(text_errors(model, [""]).mean())
        if empty <= -result.text_score:
            result.note = (
                f"the empty prompt has a noise error of {empty:.4f} and this one {-result.text_score:.4f}, so this "
                "prompt tells the model nothing about the images"
            )
    return result


def noise_error(
    images: Any,
    prompts: Sequence[str],
    pipeline: Any,
    *,
    timesteps: tuple[float, float] = LATE,
    held_out: int = 16,
) -> Tensor:
    """Returns a diffusion model's error in predicting the images' noise with each of several prompts.

    Compare it with that of the empty prompt "". Errors of other images, timesteps or pipelines cannot be compared.

    Args:
        images, pipeline, timesteps, held_out: as for `invert_diffusion`.
        prompts: a list of M texts; "" is one.

    Returns:
        (M,) float32, the means over the held-out noises.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it.
    """
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a list; got {type(prompts).__name__}")
    if not prompts:
        raise ValueError("prompts must hold at least one; got an empty list")
    if not isinstance(held_out, int) or isinstance(held_out, bool) or held_out < 1:
        raise ValueError(f"held_out must be a positive integer; got {held_out!r}")
    model = DiffusionModel(pipeline, _task(images, timesteps, NoiseTask.minibatch, held_out, 1))
    return text_errors(model, prompts).mean(1)


def _task(images: Any, timesteps: Any, noises: int, held_out: int, held_out_every: int) -> NoiseTask:
    """Returns the task, with its images read."""
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    shares = tuple(timesteps) if isinstance(timesteps, (list, tuple)) else ()
    if len(shares) != 2 or not all(isinstance(share, (int, float)) for share in shares):
        raise ValueError(f"timesteps must be two shares, as (0.5, 1.0); got {timesteps!r}")
    if not 0 <= shares[0] < shares[1] <= 1:
        raise ValueError(f"timesteps must be two rising shares from 0 to 1; got {timesteps!r}")
    return NoiseTask([load_image(image) for image in images], shares, noises, held_out, held_out_every)
