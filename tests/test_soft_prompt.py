"""Soft prompts: against a plain loop, and what the engine keeps of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from inputs import refused
from moving import assert_rows_move_alone, plain_loss, setting, walk

import pez_fast
from pez_fast import reference
from pez_fast.engine import BatchLimit, Evaluator, Request, Scheduler, Stage
from pez_fast.methods import PEZMethod, SoftPromptMethod
from pez_fast.models.loading import BUNDLED

METHOD = SoftPromptMethod(lr=0.05, weight_decay=0.2)


def test_its_steps_are_those_of_a_plain_loop(tiny_clip64, images):
    table, model, objective, ids = setting(tiny_clip64, images)
    soft = table.weight[ids[1]].clone().requires_grad_()
    plain = torch.optim.AdamW([soft], lr=0.05, weight_decay=0.2)
    banned = (~table.allowed).nonzero()[:, 0].tolist()
    losses = []
    for found in walk(METHOD, tiny_clip64, images, [1], steps=7):
        loss, gradient = plain_loss(tiny_clip64, images, 1, ids[1], soft.detach())
        nearest, _ = reference.nearest_token(soft.detach(), table.weight, banned)
        hard, _ = plain_loss(tiny_clip64, images, 1, nearest)
        assert torch.equal(found.ids[0], nearest)
        assert found.loss.item() == pytest.approx(loss, abs=1e-9)
        assert found.score.item() == pytest.approx(1 - hard, abs=1e-9)
        if found.gradient is not None:
            torch.testing.assert_close(found.gradient[0], gradient, rtol=1e-6, atol=1e-9)
        soft.grad = gradient
        plain.step()
        losses.append(loss)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1


def test_a_prompt_that_joins_others_moves_as_if_alone(tiny_clip, images):
    assert_rows_move_alone(METHOD, tiny_clip, images)


def test_the_tokens_are_not_scored_if_the_engine_does(tiny_clip, images):
    table, model, objective, ids = setting(tiny_clip, images)
    sizes, found = [], []

    def counted(embeds, ids):
        sizes.append(len(embeds))
        return model(embeds, ids)

    for held_out in (False, True):
        evaluate = Evaluator(table, counted, objective, BatchLimit(64, 64))
        evaluate.held_out = held_out
        found.append(METHOD.step(METHOD.init(ids, table, 0), evaluate, update=True))
    assert sizes == [4, 4, 4]
    assert torch.equal(found[0].loss, found[1].loss) and torch.equal(found[0].gradient, found[1].gradient)
    assert found[0].score.isfinite().all() and found[1].score.isnan().all()


def test_the_engine_keeps_them(tiny_clip, images):
    """The soft prompts kept are those that the last evaluation saw."""
    table, model, objective, ids = setting(tiny_clip, images)
    requests = [Request((0, 1, 2, 3), ids, objective)]
    stages, limit = [Stage(METHOD, 5)], BatchLimit(64, 64)
    (search,) = Scheduler(table, model, lambda room: requests.pop() if requests else None, stages, limit).run()
    kept, last = search.soft_prompts, walk(METHOD, tiny_clip, images, [0, 1, 2, 3], steps=6)[-1]
    assert kept.shape == (4, 5, table.dim) and kept.dtype == torch.float32
    loss, _ = objective(model(kept, ids), ids)
    torch.testing.assert_close(loss, last.loss)
    assert not getattr(PEZMethod(), "keeps_state", False)


def test_a_search_that_diverges(tiny_clip, images):
    sentence = r"diverged with lr=1e\+30 and weight_decay=0.5: soft prompts are not finite after 2 updates"
    with refused(ValueError, sentence):
        walk(SoftPromptMethod(lr=1e30, weight_decay=0.5), tiny_clip, images, [0], steps=6)


@pytest.mark.parametrize("kind", [SoftPromptMethod, PEZMethod])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [-1, float("inf"), True, None])
def test_bad_options(kind, name, value):
    with refused(ValueError, re.escape(f"{name} must be a finite number, not negative; got {value!r}")):
        kind(**{name: value})


def test_an_image():
    """The soft prompt comes closer to the image than any hard prompt of the search."""
    emoji, losses = pez_fast.load_clip("emoji", device="cpu"), []

    class Watched(SoftPromptMethod):
        def step(self, state, evaluate, update):
            found = super().step(state, evaluate, update)
            losses.append(float(found.loss))
            return found

    image = sorted(Path(BUNDLED["emoji"]).glob("images/*.png"))[0]
    found = pez_fast.invert(image, emoji, prompt_len=4, stages=[(Watched(), 20)])
    assert len(found.history) == 21 and 1 - losses[-1] > found.text_score and losses[-1] < losses[0] - 0.5
