"""A diffusion pipeline with images: its error in predicting their noise, as a model that prompts are learned for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from pez_fast.config import Vocabulary as Listed
from pez_fast.engine import Outputs
from pez_fast.engine.memory import SAVED_VALUES
from pez_fast.models.diffusion.pipeline import check_fits, check_pipeline, import_diffusers
from pez_fast.models.diffusion.text import Condition, FedText
from pez_fast.table import TokenTable

LATE = (0.5, 1.0)  # the noisier half of the timesteps, where a text says most (PH2P, Mahajan et al. 2024)
_KINDS = ("epsilon", "v_prediction", "sample")
_PASSES = 2 * 2  # a layer's residual and attention blocks, on the way down and on the way up


@dataclass(frozen=True)
class NoiseTask:
    """What a prompt is learned for.

    Attributes:
        images: the images.
        timesteps: the lowest and the highest timestep, as shares of all; 1 is pure noise.
        minibatch: noises that are drawn at a step, each for one of the images.
        held_out: noises that score the prompts; they are the same ones for every prompt and every seed.
        held_out_every: steps between two such scores.
    """

    images: Sequence[Image.Image]
    timesteps: tuple[float, float] = LATE
    minibatch: int = 4
    held_out: int = 16
    held_out_every: int = 10


@dataclass(frozen=True)
class Samples:
    """Noisy images: (B, C, h, w) latents and noise, timesteps (B,) int64."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor

    def split(self, size: int) -> list[Samples]:
        """Returns them in parts of at most `size`."""
        parts = (self.latents.split(size), self.noise.split(size), self.timesteps.split(size))
        return [Samples(*part) for part in zip(*parts, strict=True)]


class DiffusionModel:
    """A `PromptModel`: a text-to-image pipeline that predicts the noise in images.

    Its output: "noise_error" (R, B), the mean squared error of each of B predictions, as in the training of the
    pipeline. What is predicted is the noise, or for pipelines of that kind the velocity or the image. The images pass
    through the VAE once, with the mean of its latents. The model puts the pipeline's parts in evaluation mode and
    freezes their parameters.

    Args:
        pipeline: of diffusers, with text encoders that `FedText` can feed, a `UNet2DConditionModel` and a VAE.
        task: the images, and how their noise is drawn.

    Raises:
        TypeError, ValueError: the pipeline cannot be used; the message says why.
    """

    def __init__(self, pipeline: Any, task: NoiseTask) -> None:
        check_pipeline(pipeline, "unet", "vae", "scheduler")
        self.pipeline, self.task, self.unet = pipeline, task, pipeline.unet
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        self.text = FedText(pipeline)
        self.vocabulary = self.text.vocabulary
        self.name = str(getattr(pipeline.config, "_name_or_path", "") or type(pipeline).__name__)
        self.noising = _noising(pipeline)
        self.size = _size(pipeline)
        self.latents = self._encoded(task.images)
        if self.latents.shape[1] != self.unet.config.in_channels:
            raise ValueError(
                f"pipeline must predict the noise of an image alone; its unet reads {self.unet.config.in_channels} "
                f"channels, and an image has {self.latents.shape[1]}"
            )
        self.chosen = self.drawn("held out", task.held_out)

    @property
    def device(self) -> torch.device:
        return self.text.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text.dtype

    def table(self, vocabulary: Listed = "stable", banned: Sequence[str | int] = ()) -> TokenTable:
        """Returns the tokens that may be learned; see `EmbeddedModel.table`."""
        return self.text.table(vocabulary, banned)

    def bind(
        self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None
    ) -> BoundDiffusion:
        """Returns the model with prompt_len learned tokens between two fixed texts; see `PromptModel`.

        Args:
            dtype: default the pipeline's own; bfloat16 and float16 are autocast, without a copy of the weights.

        Raises:
            ValueError: the prompt does not fit into the context, or the pipeline cannot be run in the dtype.
        """
        return BoundDiffusion(self, prompt_len, prefix, suffix, dtype or self.dtype)

    def drawn(self, key: str, count: int) -> Samples:
        """Returns noisy images that depend on nothing but the key, the count and the task.

        The images follow one another from a drawn one on. The timesteps of the held-out noises are spread evenly.
        """
        generator = torch.Generator().manual_seed(int(hashlib.sha256(key.encode()).hexdigest()[:15], 16))
        first, last = _bounds(self.task.timesteps, self.noising.config.num_train_timesteps)
        start = int(torch.randint(len(self.latents), (1,), generator=generator))
        if key == "held out":
            timesteps = torch.linspace(first, last, count).round().long()
        else:
            timesteps = torch.randint(first, last + 1, (count,), generator=generator)
        noise = torch.randn(count, *self.latents.shape[1:], generator=generator).to(self.latents)
        image = (torch.arange(count) + start) % len(self.latents)
        return Samples(self.latents[image.to(self.device)], noise, timesteps.to(self.device))

    def errors(self, condition: Condition, samples: Samples) -> Tensor:
        """Returns the mean squared errors (B,) of the predictions under one condition, float32 or wider."""
        found = []
        for part in samples.split(self.task.minibatch):
            count = len(part.timesteps)
            noisy = self.noising.add_noise(part.latents, part.noise, part.timesteps)
            added = self._added(condition, count)
            hidden = condition.hidden.expand(count, -1, -1)
            told = self.unet(noisy, part.timesteps, encoder_hidden_states=hidden, added_cond_kwargs=added).sample
            wide = torch.promote_types(told.dtype, torch.float32)
            difference = told.to(wide) - self._wanted(part).to(wide)
            found.append(difference.square().mean((1, 2, 3)))
        return torch.cat(found)

    def _wanted(self, samples: Samples) -> Tensor:
        """Returns what the pipeline was trained to predict."""
        kind = self.noising.config.prediction_type
        if kind == "v_prediction":
            return self.noising.get_velocity(samples.latents, samples.noise, samples.timesteps)
        return samples.noise if kind == "epsilon" else samples.latents

    def _added(self, condition: Condition, count: int) -> dict[str, Tensor] | None:
        """Returns the pooled text and the sizes that the unet of Stable Diffusion XL reads, else None."""
        if condition.pooled is None:
            return None
        pooled = condition.pooled
        ids = self.pipeline._get_add_time_ids(self.size, (0, 0), self.size, pooled.dtype, pooled.shape[-1])
        return {"text_embeds": pooled.expand(count, -1), "time_ids": ids.to(pooled.device).expand(count, -1)}

    @torch.no_grad()
    def _encoded(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns the latents (N, C, h, w) of images, cut to the pipeline's own size, one after the other."""
        vae = self.pipeline.vae
        too_narrow = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
        if too_narrow:  # this VAE's values overflow
            vae.to(torch.float32)
        found = []
        for image in images:
            fitted = ImageOps.fit(image, self.size[::-1], Image.Resampling.LANCZOS)
            pixels = self.pipeline.image_processor.preprocess(fitted).to(self.device, vae.dtype)
            found.append(vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor)
        if too_narrow:
            vae.to(torch.float16)
        return torch.cat(found).to(self.unet.dtype)


class BoundDiffusion:
    """A `StochasticModel`: a pipeline around learned tokens; `held_out` is the same model on the held-out noises.

    Each prompt is evaluated on its own, with so many noises at once, so that no row depends on the others.
    """

    stochastic = True

    def __init__(self, model: DiffusionModel, prompt_len: int, prefix: str, suffix: str, dtype: torch.dtype) -> None:
        if dtype not in (model.dtype, torch.bfloat16, torch.float16):
            own, asked = (str(one).removeprefix("torch.") for one in (model.dtype, dtype))
            raise ValueError(f"dtype must be that of the pipeline ({own}), 'bfloat16' or 'float16'; got {asked!r}")
        self.model, self.prefix, self.suffix, self.dtype = model, prefix, suffix, dtype
        self.opened = model.text.open_text(prompt_len, prefix, suffix)
        self.held_out_every = model.task.held_out_every
        self.bytes_per_prompt = model.task.minibatch * _unet_bytes(model)

    def __call__(self, embeds: Tensor, ids: Tensor, drawn: Tensor | None = None) -> Outputs:
        """Returns the errors (R, minibatch) for the noises that each row's seed and step draw.

        Without draws, they are those for the held-out noises.
        """
        if drawn is None:
            return self.held_out(embeds, ids)
        keys, samples, found = drawn.tolist(), {}, []
        for row, (seed, step) in enumerate(keys):
            if (seed, step) not in samples:
                samples[seed, step] = self.model.drawn(f"{seed}, {step}", self.model.task.minibatch)
            found.append(self._errors(embeds[row : row + 1], samples[seed, step]))
        return {"noise_error": torch.stack(found)}

    def held_out(self, embeds: Tensor, ids: Tensor) -> Outputs:
        """Returns the errors (R, held_out) for the held-out noises."""
        found = [self._errors(embeds[row : row + 1], self.model.chosen) for row in range(len(embeds))]
        return {"noise_error": torch.stack(found)}

    def text(self, ids: Sequence[int]) -> str:
        """Returns the prompt that a user types in."""
        return self.model.vocabulary.framed(ids, self.prefix, self.suffix)

    @torch.no_grad()
    def from_text(self, texts: Sequence[str]) -> Outputs:
        """Returns the errors for the held-out noises under texts, which the pipeline itself tokenises and encodes."""
        return {"noise_error": text_errors(self.model, texts)}

    def _errors(self, embeds: Tensor, samples: Samples) -> Tensor:
        cast = self.dtype != self.model.dtype
        with torch.autocast(embeds.device.type, self.dtype if cast else None, enabled=cast):
            condition = self.model.text.of_embeds(embeds.to(self.model.dtype), self.opened)
            return self.model.errors(condition, samples)


@torch.no_grad()
def text_errors(model: DiffusionModel, texts: Sequence[str]) -> Tensor:
    """Returns the errors (P, held_out) for the held-out noises under texts.

    Raises:
        TypeError, ValueError: a text is none, or longer than the context.
    """
    for text in texts:
        check_fits(model.pipeline, text)
    return torch.stack([model.errors(model.text.of_text(text), model.chosen) for text in texts])


def _bounds(shares: tuple[float, float], count: int) -> tuple[int, int]:
    """Returns the first and the last of `count` timesteps between two shares of them."""
    first = min(count - 1, round(shares[0] * count))
    return first, max(first, round(shares[1] * count) - 1)


def _noising(pipeline: Any) -> Any:
    """Returns a scheduler that adds noise as in the training of the pipeline."""
    config, kind = pipeline.scheduler.config, type(pipeline.scheduler).__name__
    if config.get("prediction_type", "epsilon") not in _KINDS or "beta_schedule" not in config:
        raise ValueError(f"pipeline must predict noise; its scheduler {kind} is of another kind")
    return import_diffusers().DDPMScheduler.from_config(config)


def _size(pipeline: Any) -> tuple[int, int]:
    """Returns the height and the width of the pipeline's images."""
    sample, factor = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
    height, width = (sample, sample) if isinstance(sample, int) else sample
    return height * factor, width * factor


def _unet_bytes(model: DiffusionModel) -> int:
    """Estimates the bytes that one prediction takes, forward and backward."""
    config, pixels = model.unet.config, model.latents[0, 0].numel()
    layers = config.layers_per_block
    layers = max(layers) if isinstance(layers, (list, tuple)) else layers
    values = sum(width * pixels // 4**k for k, width in enumerate(config.block_out_channels))
    return SAVED_VALUES * _PASSES * layers * values * model.unet.dtype.itemsize
