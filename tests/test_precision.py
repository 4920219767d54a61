"""Towers in another dtype than the model's: which dtype is taken, what it changes, and that batches change nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from inputs import normal, refused, seeded

import pez_fast
from pez_fast._shared import devices
from pez_fast.models.precision import search_dtype, text_part

CPU = torch.device("cpu")
NARROW, WIDE = 128, 512


@pytest.mark.parametrize("native", [True, False])
def test_the_default_is_the_fastest_that_keeps_quality(monkeypatch, native):
    monkeypatch.setattr(devices, "bfloat16_is_native", lambda: native)
    assert search_dtype(None, torch.float32, WIDE, CPU) == (torch.bfloat16 if native else torch.float32)
    assert search_dtype(None, torch.float32, NARROW, CPU) == torch.float32
    assert search_dtype(None, torch.float64, WIDE, CPU) == torch.float64
    assert search_dtype("bfloat16", torch.float64, NARROW, CPU) == torch.bfloat16
    assert search_dtype(None, torch.float16, WIDE, torch.device("cuda")) == torch.float16
    with refused(ValueError, "dtype='float16' is for GPUs; on a CPU use 'bfloat16' or 'float32'"):
        search_dtype("float16", torch.float32, WIDE, CPU)


def test_a_wrong_dtype_is_a_sentence(tiny_clip, images):
    with refused(ValueError, "dtype must be one of float32, bfloat16, float16, float64, or None; got 'int8'"):
        pez_fast.invert(images[0], tiny_clip, dtype="int8")


def test_a_copy_without_the_image_tower(tiny_clip):
    part = text_part(tiny_clip.model, torch.bfloat16)
    assert {p.dtype for p in part.parameters()} == {torch.bfloat16} and part.attn_mask.dtype == torch.bfloat16
    assert not any(name.startswith("visual") for name, _ in part.named_parameters())
    assert tiny_clip.dtype == torch.float32 and text_part(tiny_clip.model, torch.float32) is tiny_clip.model
    assert (
        tiny_clip.text_encoder(4, dtype=torch.bfloat16).model is tiny_clip.text_encoder(5, dtype=torch.bfloat16).model
    )


def test_a_model_of_several_dtypes_is_run_as_it_is(tiny_clip):
    model = copy.deepcopy(tiny_clip.model)
    model.ln_final.double()
    encoder = pez_fast.models.ClipEncoder(model, tiny_clip.tokenizer, tiny_clip.preprocess)
    assert encoder.text_encoder(4).model is model and model.ln_final.weight.dtype == torch.float64


@pytest.mark.parametrize("truncate", [True, False])
def test_features_are_those_of_the_model_but_for_rounding(tiny_clip, truncate):
    exact, rounded = (tiny_clip.text_encoder(6, "a", "b", truncate, dtype) for dtype in (torch.float32, torch.bfloat16))
    hard = (
        tiny_clip.embedding.weight[torch.randint(1000, (5, 6), generator=torch.Generator().manual_seed(0))]
        .clone()
        .requires_grad_()
    )
    first, second = exact(hard), rounded(hard)
    assert second.dtype == torch.float32
    cosine = (first * second).sum(-1)
    assert (cosine > 0.995).all() and not torch.equal(first, second)
    goal = normal(seeded("goal"), 5, first.shape[1])
    gradients = [torch.autograd.grad((features * goal).sum(), hard)[0].flatten() for features in (first, second)]
    assert gradients[1].dtype == torch.float32 and torch.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 31])
@pytest.mark.parametrize("truncate", [True, False])
def test_a_row_does_not_depend_on_the_others(tiny_clip, rows, truncate):
    encode = tiny_clip.text_encoder(7, truncate=truncate, dtype=torch.bfloat16)
    ids = torch.randint(1000, (40, 7), generator=torch.Generator().manual_seed(0))
    goals = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for part in (slice(None), slice(rows)):
        hard = tiny_clip.embedding.weight[ids[part]].clone().requires_grad_()
        features = encode(hard)
        found.append((features.detach(), torch.autograd.grad((features * goals[part]).sum(), hard)[0]))
    assert torch.equal(found[0][0][:rows], found[1][0]) and torch.equal(found[0][1][:rows], found[1][1])


def test_results_in_bfloat16_are_scored_by_the_model(tiny_clip, images):
    options = {"prompt_len": 4, "steps": 20, "refine": 3, "dtype": "bfloat16", "restarts": 2}
    results = pez_fast.invert_batch(images, tiny_clip, **options)
    targets = tiny_clip.encode_images(images)
    for result, target in zip(results, targets, strict=True):
        assert result.text_score == pytest.approx(
            float((tiny_clip.encode_texts([result.prompt]) * target).sum()), abs=1e-6
        )
        assert result.ids_score == pytest.approx(result.text_score, abs=1e-5)  # in bfloat16 it would be 0.001 beside it
    single = [pez_fast.invert_batch([p], tiny_clip, **options, batch_size=1)[0] for p in images]
    assert [(r.ids, r.text_score, r.history) for r in single] == [(r.ids, r.text_score, r.history) for r in results]


def test_a_compiled_tower_learns_the_same(tiny_clip, images):
    options = {"prompt_len": 4, "steps": 8, "refine": 0}
    plain, compiled = (pez_fast.invert(images[0], tiny_clip, **options, compile=c) for c in (False, True))
    assert compiled.text_score == pytest.approx(plain.text_score, abs=0.05) and len(compiled.history) == 9
    assert compiled.history[0] == pytest.approx(plain.history[0], abs=1e-5)


def test_compile_runs_the_tower_through_torch_compile(tiny_clip, images, monkeypatch):
    """Once, and every step uses what it returned; without the option nothing is compiled."""
    given, batches = [], []

    def recorder(function, **settings):
        given.append((function, settings))

        def compiled(hard, ids):
            batches.append(tuple(hard.shape))
            return function(hard, ids)

        return compiled

    monkeypatch.setattr(torch, "compile", recorder)
    options = {"prompt_len": 4, "steps": 8, "refine": 0}
    plain = pez_fast.invert_batch(images[:2], tiny_clip, **options)
    assert not given
    results = pez_fast.invert_batch(images[:2], tiny_clip, **options, compile=True)
    ((tower, settings),) = given
    assert settings == {"dynamic": False}
    assert batches == [(2, 4, 32)] * 8  # each evaluation with a gradient
    hard = normal(seeded("embeddings"), 3, 4, 32)
    assert torch.equal(tower(hard, None)["features"], tiny_clip.text_encoder(4)(hard))
    assert [(r.ids, r.text_score, r.history) for r in results] == [(r.ids, r.text_score, r.history) for r in plain]
