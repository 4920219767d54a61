"""Tiny text-to-image pipelines of diffusers with random weights, built offline: SD 1.5, SD 2.1 and SDXL kinds."""

from __future__ import annotations

from functools import cache

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import (  # noqa: E402
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: E402
from vocabularies import FIXED, corpus  # noqa: E402

CONTEXT, SIDE = 77, 16  # tokens of the context; pixels of an image
KINDS = ("sd15", "sd21", "sdxl")
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def clip_tokens(pad_token="<|endoftext|>"):
    """A tokenizer of CLIP's own class: whole words of the corpus, made of letters that are merged one by one."""
    words = sorted({word.strip(",.;:!?'-").lower() for line in corpus() for word in line.split()})
    words = [word for word in [*FIXED, *words] if word.isascii() and word.isalpha()][:250]
    letters = [*"abcdefghijklmnopqrstuvwxyz!"]
    pieces, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[-2], parts[-1])
            merges += [] if pair in merges else [pair]
            parts[-2:] = ["".join(parts[-2:])]
            pieces.append(parts[-1])
    vocabulary = {piece: k for k, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=CONTEXT)


def text_encoder(tokenizer, width, projected=False):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    with torch.no_grad():  # spread out, so that prompts differ
        encoder.get_input_embeddings().weight.normal_()
    return encoder


def unet(width, **more):
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
        **more,
    )


def vae():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=SIDE, **blocks)


def build(kind="sd15"):
    """A new pipeline: sd15 predicts noise, sd21 velocities, sdxl noise with two text encoders."""
    torch.manual_seed(0)
    tokenizer = clip_tokens()
    if kind == "sdxl":
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        pipeline = StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=text_encoder(tokenizer, 16),
            text_encoder_2=text_encoder(tokenizer, 32, projected=True),
            tokenizer=tokenizer,
            tokenizer_2=clip_tokens("!"),
            unet=unet(48, projection_class_embeddings_input_dim=24 + 6 * 8, **added),
            scheduler=EulerDiscreteScheduler(**BETAS),
            add_watermarker=False,
        )
    else:
        schedulers = {
            "sd15": PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
            "sd21": DDIMScheduler(**BETAS, prediction_type="v_prediction", steps_offset=1, clip_sample=False),
        }
        pipeline = StableDiffusionPipeline(
            vae=vae(),
            text_encoder=text_encoder(tokenizer, 32),
            tokenizer=tokenizer,
            unet=unet(32),
            scheduler=schedulers[kind],
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def pipeline_of(kind="sd15"):
    """The same pipeline for all tests, which must not change it."""
    return build(kind)
