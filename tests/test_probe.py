"""GCG with probe sampling: its steps against a plain loop, and what holds for every method."""

from __future__ import annotations

import math
import re

import pytest
import torch
from inputs import refused
from moving import LENGTH, Scripted, assert_rows_move_alone, assert_scores_are_not_read, plain_loss, setting, walk

import pez_fast
from pez_fast.methods import PEZMethod, ProbeMethod
from pez_fast.methods.probe import _rank_correlation
from pez_fast.table import TokenTable


def plain_walk(clip, images, row, method, seed, steps):
    """Returns the prompt before each of so many steps, and how many exchanges each step tried, in plain lines."""
    table, _, _, ids = setting(clip, images)
    prompt, width, found, counts = ids[row].clone(), method.search_width, [], []
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        found.append(prompt)
        loss, gradient = plain_loss(clip, images, row, prompt)
        drawn, predicted = [], []
        for place, rank in enumerate(torch.randint(method.top_k, (width,), generator=generator).tolist()):
            position = (step * width + place) % LENGTH
            gain = torch.where(table.allowed, table.weight @ -gradient[position], -torch.inf)
            gain[prompt[position]] = -torch.inf
            drawn.append(prompt.clone())
            drawn[-1][position] = gain.topk(method.top_k).indices[rank]
            change = table.weight[drawn[-1][position]] - table.weight[prompt[position]]
            predicted.append(float(change @ gradient[position]))
        losses = {k: plain_loss(clip, images, row, drawn[k])[0] for k in range(method.probes)}
        real, guess = sorted(losses, key=losses.__getitem__), sorted(losses, key=predicted.__getitem__)
        n, spread = method.probes, sum((real.index(k) - guess.index(k)) ** 2 for k in losses)
        agreement = (1 + 1 - 6 * spread / (n * (n * n - 1))) / 2
        more = max(1, math.floor((1 - agreement) * width / method.reduction))
        others = sorted(range(n, width), key=predicted.__getitem__)[:more]
        counts.append(n + len(others))
        losses |= {k: plain_loss(clip, images, row, drawn[k])[0] for k in others}
        best = min(sorted(losses), key=losses.__getitem__)
        if losses[best] < loss:
            prompt = drawn[best]
    return torch.stack(found), counts


@pytest.mark.parametrize(
    "method", [ProbeMethod(12, 4, 2, 20), ProbeMethod(9, 9, 1, 20), ProbeMethod(20, 3, 1, 20)], ids=str
)
def test_its_steps_are_those_of_a_plain_loop(tiny_clip, images, method):
    found = torch.stack([e.ids[0] for e in walk(method, tiny_clip, images, [2], seed=3, steps=9)])
    expected, counts = plain_walk(tiny_clip, images, 2, method, 3, 9)
    assert torch.equal(found, expected) and len(found.unique(dim=0)) > 3
    assert method.probes == method.search_width or len(set(counts)) > 1


def test_a_good_prediction_saves_evaluations_and_a_bad_one_does_not():
    table = TokenTable(torch.arange(40.0)[:, None].repeat(1, 2) / 40)
    begin = torch.tensor([[20, 20]])

    def tried(loss):
        method, seen = ProbeMethod(32, 8, 1, 30), []
        state = method.init(begin, table, 0)
        method.step(state, Scripted(table, lambda ids: seen.append(len(ids)) or loss(ids)), True)
        return seen

    assert tried(lambda ids: ids.sum(1).double())[-1] <= 2  # the gradient of ones predicts it
    assert tried(lambda ids: -ids.sum(1).double())[-1] >= 23


def test_rank_correlation_is_that_of_the_textbook():
    a = torch.tensor([[1.0, 2, 3, 4], [4, 1, 3, 2], [1, 2, 3, 4]])
    b = torch.tensor([[10.0, 20, 30, 40], [1, 2, 3, 4], [4, 3, 2, 1]])
    assert _rank_correlation(a, b).tolist() == pytest.approx([1, -0.4, -1])


def test_a_prompt_that_joins_others_moves_as_if_alone(tiny_clip, images):
    assert_rows_move_alone(ProbeMethod(12, 4, 2, 20), tiny_clip, images)


def test_the_score_is_not_read(tiny_clip, images):
    assert_scores_are_not_read(ProbeMethod(12, 4, 2, 20), tiny_clip, images)


def test_nan_never_wins():
    table = TokenTable(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    method, begin = ProbeMethod(12, 4, 2, 8), torch.tensor([[0, 0, 0]])
    state = method.init(begin, table, 0)
    method.step(state, Scripted(table, lambda ids: torch.where((ids == 0).all(1), 1.0, torch.nan)), True)
    assert torch.equal(state.tensors["ids"], begin)


def test_it_refines_a_search(tiny_clip, images):
    options = {"prompt_len": 4, "steps": 10, "refine": 0}
    plain = pez_fast.invert(images[0], tiny_clip, **options)
    found = pez_fast.invert(images[0], tiny_clip, prompt_len=4, stages=[(PEZMethod(), 10), (ProbeMethod(), 8)])
    assert found.text_score > plain.text_score


BAD = [
    ("search_width", 0, "a positive integer"),
    ("probes", 1, "2 to search_width, 128"),
    ("reduction", 0, "a positive integer"),
]
BAD += [("probes", 200, "2 to search_width, 128"), ("top_k", 1.5, "a positive integer")]


@pytest.mark.parametrize(("name", "value", "kind"), BAD)
def test_bad_options(name, value, kind):
    with refused(ValueError, re.escape(f"{name} must be {kind}; got {value!r}")):
        ProbeMethod(**{name: value})
