"""AutoPrompt and its variant with projected gradient descent, against plain loops."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from inputs import refused
from moving import LENGTH, Scripted, assert_rows_move_alone, assert_scores_are_not_read, plain_loss, setting, walk

import pez_fast
from pez_fast import reference
from pez_fast.methods import AutoPromptMethod, AutoPromptSGDMethod
from pez_fast.models.loading import BUNDLED
from pez_fast.table import TokenTable

LR = 100.0  # moves tokens of the tiny model


def plain_exchanges(clip, images, row, top_k, seed, steps):
    """Returns the prompts of a row at each of so many steps of AutoPrompt, in plain lines."""
    table, _, _, ids = setting(clip, images)
    prompt, generator, prompts = ids[row].clone(), torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        prompts.append(prompt)
        loss, gradient = plain_loss(clip, images, row, prompt)
        position = int(torch.randint(LENGTH, (1,), generator=generator))
        gain = torch.where(table.allowed, table.weight @ -gradient[position], -torch.inf)
        gain[prompt[position]] = -torch.inf
        tried = [prompt.clone() for _ in range(top_k)]
        for ids, token in zip(tried, gain.topk(top_k).indices, strict=True):
            ids[position] = token
        losses = [plain_loss(clip, images, row, ids)[0] for ids in tried]
        if min(losses) < loss:
            prompt = tried[losses.index(min(losses))]
    return torch.stack(prompts)


def test_its_steps_are_those_of_a_plain_loop(tiny_clip, images):
    found = torch.stack([e.ids[0] for e in walk(AutoPromptMethod(6), tiny_clip, images, [2], seed=3, steps=8)])
    assert torch.equal(found, plain_exchanges(tiny_clip, images, 2, 6, 3, 8))
    assert len(found.unique(dim=0)) > 4


def test_the_steps_of_sgd_are_those_of_a_plain_loop(tiny_clip, images):
    table, _, _, ids = setting(tiny_clip, images)
    banned, prompt = (~table.allowed).nonzero()[:, 0].tolist(), ids[1]
    found = walk(AutoPromptSGDMethod(LR), tiny_clip, images, [1], steps=5)
    for evaluation in found:
        assert torch.equal(evaluation.ids[0], prompt)
        _, gradient = plain_loss(tiny_clip, images, 1, prompt)
        prompt, _ = reference.nearest_token(table.weight[prompt] - LR * gradient, table.weight, banned)
    assert len({tuple(e.ids[0].tolist()) for e in found}) == 5


@pytest.mark.parametrize("method", [AutoPromptMethod(6), AutoPromptSGDMethod(LR)])
def test_a_prompt_that_joins_others_moves_as_if_alone(tiny_clip, images, method):
    assert_rows_move_alone(method, tiny_clip, images)


@pytest.mark.parametrize("method", [AutoPromptMethod(6), AutoPromptSGDMethod(LR)])
def test_the_score_is_not_read(tiny_clip, images, method):
    assert_scores_are_not_read(method, tiny_clip, images)


def test_nan_never_wins_and_the_first_of_equals_does():
    table = TokenTable(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    begin, tried = torch.tensor([[0, 0, 0]]), []
    by_gain = [t for t in table.weight.sum(1).argsort().tolist() if t]  # the gradient is one everywhere

    def loss(ids):
        tried.append(ids)
        here = torch.where((ids == by_gain[0]).any(1), torch.nan, 1.0)
        return torch.where((ids == 0).all(1), 2.0, here)

    state = AutoPromptMethod(3).init(begin, table, 0)
    AutoPromptMethod(3).step(state, Scripted(table, loss), update=True)
    assert sorted(tried[1].sum(1).tolist()) == sorted(by_gain[:3])
    assert state.tensors["ids"].sum() == by_gain[1] and (state.tensors["ids"] != 0).sum() == 1
    few = TokenTable(table.weight, banned=range(2, 9))
    assert AutoPromptMethod(30).step(AutoPromptMethod(30).init(begin, few, 0), Scripted(few, loss), True) is not None


def test_a_step_of_sgd_changes_its_state_in_place(tiny_clip, images):
    """A step captured as a CUDA graph reads and writes the same memory again; the request's ids are left alone."""
    table, _, _, ids = setting(tiny_clip, images)
    before, method = ids.clone(), AutoPromptSGDMethod(1.0)
    state = method.init(ids, table, 0)
    places = {name: value.data_ptr() for name, value in state.items()}
    found = method.step(state, Scripted(table, lambda ids: ids.sum(1) * 1.0), update=True)
    assert {name: value.data_ptr() for name, value in state.items()} == places
    assert torch.equal(ids, before) and torch.equal(found.ids, before) and not torch.equal(state["ids"], before)


def test_a_step_of_sgd_that_is_not_finite(tiny_clip, images):
    with refused(ValueError, r"diverged with lr=1e\+300: soft prompts are not finite after 1 updates"):
        walk(AutoPromptSGDMethod(1e300), tiny_clip, images, [0])


BAD = [(AutoPromptMethod, "top_k", 0, "a positive integer"), (AutoPromptMethod, "top_k", True, "a positive integer")]
BAD += [(AutoPromptSGDMethod, "lr", value, "a finite number, not negative") for value in (-1, float("nan"), "1")]


@pytest.mark.parametrize(("kind", "name", "value", "must_be"), BAD)
def test_bad_options(kind, name, value, must_be):
    with refused(ValueError, re.escape(f"{name} must be {must_be}; got {value!r}")):
        kind(**{name: value})


@pytest.mark.parametrize("method", [AutoPromptMethod(), AutoPromptSGDMethod()])
def test_it_finds_prompts_for_an_image(method):
    emoji = pez_fast.load_clip("emoji", device="cpu")
    image = sorted(Path(BUNDLED["emoji"]).glob("images/*.png"))[0]
    found = pez_fast.invert(image, emoji, prompt_len=4, stages=[(method, 20)])
    assert len(found.history) == 21 and found.text_score > found.history[0] + 0.2
