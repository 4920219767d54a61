"""FluentPrompt against a plain loop."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from inputs import refused
from moving import LENGTH, assert_rows_move_alone, assert_scores_are_not_read, plain_loss, setting, walk

import pez_fast
from pez_fast import reference
from pez_fast.methods import FluentPromptMethod
from pez_fast.models.loading import BUNDLED

METHOD = FluentPromptMethod(steps=4, lr=50.0, beta_start=5e-3, beta_end=4e-5)  # moves tokens of the tiny model


def test_its_steps_are_those_of_a_plain_loop(tiny_clip, images):
    table, _, _, ids = setting(tiny_clip, images)
    banned, prompt, generator = (~table.allowed).nonzero()[:, 0].tolist(), ids[1], torch.Generator().manual_seed(3)
    found = walk(METHOD, tiny_clip, images, [1], seed=3, steps=7)
    betas = [5e-3, 1e-3, 2e-4, 4e-5, 4e-5, 4e-5, 4e-5]  # a fifth of the one before, then the last one
    for evaluation, beta in zip(found, betas, strict=True):
        assert torch.equal(evaluation.ids[0], prompt)
        _, gradient = plain_loss(tiny_clip, images, 1, prompt)
        drawn = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (1,), generator=generator)))
        noise = math.sqrt(2 * METHOD.lr * beta) * torch.randn(LENGTH, table.dim, generator=drawn)
        soft = table.weight[prompt] - METHOD.lr * gradient + noise
        prompt, _ = reference.nearest_token(soft, table.weight, banned)
    assert len({tuple(e.ids[0].tolist()) for e in found}) == 7


def test_the_noise_falls_geometrically():
    method = FluentPromptMethod(steps=5)
    assert [method.beta(step) for step in range(7)] == pytest.approx([1, 0.1, 0.01, 0.001, 1e-4, 1e-4, 1e-4])
    assert FluentPromptMethod(steps=1).beta(0) == 1


def test_the_noise_is_standard_normal_and_new_in_each_step_and_for_each_seed(tiny_clip, images):
    table, _, _, ids = setting(tiny_clip, images)
    method = FluentPromptMethod(steps=1, lr=0.5, beta_start=1.0, beta_end=1.0)
    state = method.init(ids[:2], table, 0).join(method.init(ids[2:], table, 1))
    soft, noise = torch.zeros(4, 200, table.dim), []
    for _ in range(3):
        noise.append(method._noise(state, soft))
        state.move(ids)
    assert torch.equal(noise[0][0], noise[0][1])
    different = torch.stack([part for n in noise for part in (n[0], n[2])]).flatten(1)
    assert different.corrcoef().fill_diagonal_(0).abs().max() < 0.06
    assert different.mean().abs() < 0.02 and (different.std() - 1).abs() < 0.02


def test_a_prompt_that_joins_others_moves_as_if_alone(tiny_clip, images):
    assert_rows_move_alone(METHOD, tiny_clip, images)


def test_the_score_is_not_read(tiny_clip, images):
    assert_scores_are_not_read(METHOD, tiny_clip, images)


def test_a_step_that_is_not_finite(tiny_clip, images):
    sentence = r"diverged with lr=1e\+300, beta_start=1.0 and beta_end=0.0001: soft prompts are not finite after 1 upd"
    with refused(ValueError, sentence):
        walk(FluentPromptMethod(steps=3, lr=1e300), tiny_clip, images, [0])


BAD = [("steps", 0, "a positive integer"), ("lr", -1.0, "a finite number, not negative")]
BAD += [(name, 0.0, "positive, as β falls geometrically") for name in ("beta_start", "beta_end")]


@pytest.mark.parametrize(("name", "value", "kind"), BAD)
def test_bad_options(name, value, kind):
    with refused(ValueError, re.escape(f"{name} must be {kind}; got {value!r}")):
        FluentPromptMethod(**{"steps": 3, name: value})


def test_it_finds_prompts_for_an_image():
    emoji = pez_fast.load_clip("emoji", device="cpu")
    image = sorted(Path(BUNDLED["emoji"]).glob("images/*.png"))[0]
    found = pez_fast.invert(image, emoji, prompt_len=4, stages=[(FluentPromptMethod(steps=20), 20)])
    assert len(found.history) == 21 and found.text_score > found.history[0] + 0.2
