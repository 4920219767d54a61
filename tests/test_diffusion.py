"""Prompts through a diffusion model: its error in predicting noise, beside a plain loop over diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageOps
from pipelines import KINDS, SIDE, build, pipeline_of
from torch.func import functional_call

import pez_fast
from pez_fast.models.diffusion import DiffusionModel, NoiseTask
from pez_fast.objectives import NoiseLoss

LENGTH = 4
PARITY = 1e-5  # of losses, and of gradients relative to the largest; float32


def diffusion(images, kind="sd15", **settings):
    return DiffusionModel(pipeline_of(kind), NoiseTask([image.convert("RGB") for image in images], **settings))


def some_ids(model, rows=2, seed=3):
    """Rows of different tokens."""
    stable = torch.tensor(model.vocabulary.stable())
    return stable[torch.randperm(len(stable), generator=torch.Generator().manual_seed(seed))[: rows * LENGTH]].view(
        rows, LENGTH
    )


def plain_condition(pipeline, text, weights):
    """A text as the unet gets it, by the encoders alone, with these embedding weights."""
    hidden, pooled = [], None
    both = hasattr(pipeline, "text_encoder_2")
    for end, weight in zip(("", "_2"), weights, strict=False):
        encoder, tokenizer = getattr(pipeline, f"text_encoder{end}"), getattr(pipeline, f"tokenizer{end}")
        own = encoder.get_input_embeddings().weight
        name = next(name for name, value in encoder.named_parameters() if value is own)
        length = tokenizer.model_max_length
        ids = tokenizer([text], padding="max_length", max_length=length, return_tensors="pt").input_ids
        found = functional_call(encoder, {name: weight}, (ids,), {"output_hidden_states": True})
        hidden.append(found.hidden_states[-2] if both else found.last_hidden_state)
        pooled = found.text_embeds if end else None
    return torch.cat(hidden, -1), pooled


def plain_losses(pipeline, image, text, weights, noises, timesteps):
    """The loss of each noise, one after the other, by the formulas of the papers."""
    fitted = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), 1)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None] / 127.5 - 1
    latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    hidden, pooled = plain_condition(pipeline, text, weights)
    losses = []
    for noise, t in zip(noises, timesteps.tolist(), strict=True):
        kept = (1 - betas).cumprod(0)[t]
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        added = None
        if pooled is not None:
            added = {"text_embeds": pooled, "time_ids": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).float()}
        told = pipeline.unet(noisy, t, encoder_hidden_states=hidden, added_cond_kwargs=added).sample
        wanted = noise[None]
        if pipeline.scheduler.config.prediction_type == "v_prediction":
            wanted = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        losses.append((told - wanted).square().mean())
    return torch.stack(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradient_and_score_are_those_of_a_plain_loop(kind, images):
    model = diffusion(images[:1], kind)
    bound, ids = model.bind(LENGTH, "a red", "house"), some_ids(model, 1)
    embeds = model.table().weight[ids].clone().requires_grad_()
    loss, _ = NoiseLoss()(bound(embeds, ids, torch.tensor([[7, 5]])), ids)
    (gradient,) = torch.autograd.grad(loss.sum(), embeds)

    pipeline, samples = model.pipeline, model.drawn("7, 5", 4)
    text = bound.text(ids[0].tolist())
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if kind == "sdxl" else [])]
    weights = [encoder.get_input_embeddings().weight.clone().requires_grad_() for encoder in encoders]
    plain = plain_losses(pipeline, images[0], text, weights, samples.noise, samples.timesteps).mean()
    assert abs(float((plain - loss[0]).detach())) < PARITY
    parts = [g[ids[0]] * s for g, s in zip(torch.autograd.grad(plain, weights), model.text.scales, strict=True)]
    expected = torch.cat(parts, -1)
    assert expected.abs().max() > 0
    assert (gradient[0] - expected).abs().max() < PARITY * expected.abs().max()

    with torch.no_grad():
        chosen = model.chosen
        scores = -plain_losses(pipeline, images[0], text, weights, chosen.noise, chosen.timesteps).mean()
        _, score = NoiseLoss()(bound.held_out(embeds.detach(), ids), ids)
        _, as_text = NoiseLoss()(bound.from_text([text]), ids)
    assert abs(float(scores - score[0])) < PARITY and abs(float(scores - as_text[0])) < PARITY


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_the_batch(kind, images):
    model = diffusion(images[:2], kind)
    bound, ids = model.bind(LENGTH), some_ids(model, 3)
    embeds, draws = model.table().weight[ids], torch.tensor([[0, 1], [4, 1], [0, 1]])
    whole, held = bound(embeds, ids, draws)["noise_error"], bound.held_out(embeds, ids)["noise_error"]
    assert whole.shape == (3, 4) and held.shape == (3, 16)
    for row in range(3):
        one = slice(row, row + 1)
        assert torch.equal(bound(embeds[one], ids[one], draws[one])["noise_error"][0], whole[row])
        assert torch.equal(bound.held_out(embeds[one], ids[one])["noise_error"][0], held[row])
    assert torch.equal(bound(embeds, ids)["noise_error"], held), "without draws, they are the held-out noises"


def test_a_result_does_not_depend_on_the_batch_size(images):
    options = {"prompt_len": 3, "steps": 4, "restarts": 3, "held_out": 4, "noises": 2}
    all_at_once, one_by_one = (
        pez_fast.invert_diffusion(images[0], pipeline_of(), **options, batch_size=size) for size in (3, 1)
    )
    assert all_at_once.ids == one_by_one.ids and all_at_once.history == pytest.approx(one_by_one.history, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_learned_tokens_come_back_in_the_text(kind, images):
    pipeline = pipeline_of(kind)
    options = {"prompt_len": 5, "steps": 6, "prefix": "the cat", "held_out": 4, "held_out_every": 3}
    result = pez_fast.invert_diffusion(images[:2], pipeline, **options)
    assert result.error is None and result.prompt.startswith("the cat ")
    for tokenizer in [pipeline.tokenizer, *([pipeline.tokenizer_2] if kind == "sdxl" else [])]:
        assert tokenizer(result.prompt, add_special_tokens=False)["input_ids"][-5:] == result.ids
    assert result.text_score == pytest.approx(result.ids_score, abs=1e-6)
    scored = [k for k, score in enumerate(result.history) if score == score]
    assert scored == [0, 3, 6], "every third step, and the last one, is scored on the held-out noises"
    assert result.text_score >= max(result.history[k] for k in scored) - 1e-6
    error = pez_fast.noise_error(images[:2], ["", result.prompt], pipeline, held_out=4)
    assert float(error[1]) == pytest.approx(-result.text_score, abs=1e-6)
    assert bool(result.note) == (float(error[0]) <= float(error[1]))


def test_draws_depend_on_seed_and_step_alone(images):
    model = diffusion(images[:2], timesteps=(0.2, 0.4), held_out=8)
    a, again, other = model.drawn("0, 1", 50), model.drawn("0, 1", 50), model.drawn("1, 0", 50)
    assert torch.equal(a.noise, again.noise) and torch.equal(a.timesteps, again.timesteps)
    assert not torch.equal(a.noise, other.noise)
    assert 200 <= int(a.timesteps.min()) and int(a.timesteps.max()) < 400
    assert torch.equal(a.latents[0], a.latents[2]) and not torch.equal(a.latents[0], a.latents[1])
    assert model.chosen.timesteps.tolist()[0] == 200 and model.chosen.timesteps.tolist()[-1] == 399
    assert torch.equal(model.chosen.noise, diffusion(images[:2], timesteps=(0.2, 0.4), held_out=8).chosen.noise)
    seeds = [pez_fast.invert_diffusion(images[0], pipeline_of(), prompt_len=2, steps=3, seed=s).ids for s in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_two_encoders_share_the_say_and_an_id(images):
    model = diffusion(images[:1], "sdxl")
    pipeline, width = model.pipeline, 16
    weight, scale = model.table().weight, model.text.scales[1]
    assert torch.equal(weight[:, :width], pipeline.text_encoder.get_input_embeddings().weight)
    assert torch.equal(weight[:, width:] * scale, pipeline.text_encoder_2.get_input_embeddings().weight)
    ratio = float(weight[:, width:].norm(dim=1).mean() / weight[:, :width].norm(dim=1).mean())
    assert 2**-0.5 <= ratio <= 2**0.5
    mark = pipeline.tokenizer_2.pad_token_id
    assert not model.table().allowed[mark] and not model.table("full").allowed[mark]


def test_other_dtypes(images):
    options = {"prompt_len": 2, "steps": 2, "held_out": 2}
    result = pez_fast.invert_diffusion(images[0], pipeline_of(), dtype="bfloat16", **options)
    assert result.text_score == pytest.approx(result.ids_score, abs=1e-6), "the pipeline as it was loaded scores"
    with pytest.raises(ValueError, match=r"dtype must be that of the pipeline \(float32\), .*; got 'float64'"):
        pez_fast.invert_diffusion(images[0], pipeline_of(), dtype="float64", **options)


def test_other_stages_and_callbacks(images):
    seen = []
    options = {"prompt_len": 2, "steps": 3, "held_out": 2, "noises": 1, "every": 1}
    stages = [(pez_fast.methods.GCGMethod(search_width=3, top_k=4), 1)]
    result = pez_fast.invert_diffusion(images[0], pipeline_of(), **options, callback=seen.append)
    assert len(seen) == 4 and seen[-1].prompts[0]
    assert pez_fast.invert_diffusion(images[0], pipeline_of(), prompt_len=2, held_out=2, stages=stages).ids
    assert result.model == "StableDiffusionPipeline"


class NoEncoder:
    components: dict = {}
    tokenizer = None

    def __call__(self, prompt):
        pass


@pytest.mark.parametrize(
    "arguments, kind, said",
    [
        ({"pipeline": object()}, TypeError, "pipeline must be a pipeline of diffusers, .*; got object"),
        ({"pipeline": NoEncoder()}, ValueError, "pipeline must have a unet; this NoEncoder has none"),
        ({"images": []}, ValueError, "images must hold at least one image; got an empty list"),
        ({"images": "no such.png"}, ValueError, "image no such.png does not exist or is no file"),
        ({"images": 3}, TypeError, "image must be a PIL image, .*; got int"),
        ({"timesteps": (0.9, 0.1)}, ValueError, r"timesteps must be two rising shares .*; got \(0.9, 0.1\)"),
        ({"timesteps": 0.5}, ValueError, r"timesteps must be two shares, as \(0.5, 1.0\); got 0.5"),
        ({"noises": 0}, ValueError, "noises must be a positive integer; got 0"),
        ({"held_out": 1.5}, ValueError, "held_out must be a positive integer; got 1.5"),
        ({"prompt_len": 99}, ValueError, "prompt_len must be at most 75: the context has 77 places"),
        ({"prompt_len": 0}, ValueError, "prompt_len must be .*got 0"),
        ({"stepz": 3}, TypeError, "'stepz' is not an option"),
    ],
)
def test_bad_input_is_one_sentence(arguments, kind, said, images):
    given = {"images": images[0], "pipeline": pipeline_of(), "steps": 1, **arguments}
    with pytest.raises(kind, match=said):
        pez_fast.invert_diffusion(**given)


def test_bad_pipelines_are_one_sentence(images):
    pipeline = build()
    pipeline.text_encoder = None
    with pytest.raises(ValueError, match="pipeline must have a text_encoder; this StableDiffusionPipeline has none"):
        pez_fast.invert_diffusion(images[0], pipeline)
    pipeline = build("sdxl")
    pipeline.tokenizer_2.add_tokens("<new>")
    with pytest.raises(ValueError, match="two tokenizers with different vocabularies"):
        pez_fast.invert_diffusion(images[0], pipeline)
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = build()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="pipeline must predict noise; its scheduler FlowMatchEuler"):
        pez_fast.invert_diffusion(images[0], pipeline)


def test_noise_errors_of_bad_prompts_are_one_sentence(images):
    pipeline = pipeline_of()
    for prompts, kind, said in (
        ([], ValueError, "prompts must hold at least one; got an empty list"),
        ("cat", TypeError, "prompts must be a list; got str"),
        (["cat", 3], TypeError, "prompt must be a text; got int"),
        (["the cat " * 40], ValueError, "prompt must have at most 77 tokens, .*; 'the cat the"),
    ):
        with pytest.raises(kind, match=said):
            pez_fast.noise_error(images[0], prompts, pipeline)
