"""GCG with a beam: its steps against a plain loop, and what holds for every method."""

from __future__ import annotations

import re

import pytest
import torch
from inputs import refused
from moving import LENGTH, Scripted, assert_rows_move_alone, assert_scores_are_not_read, plain_loss, setting, walk

import pez_fast
from pez_fast.methods import BeamMethod, GCGMethod
from pez_fast.table import TokenTable


def plain_walk(clip, images, row, method, seed, steps):
    """Returns the best prompt before each of so many steps, in plain lines."""
    table, _, _, ids = setting(clip, images)
    count, each, found = method.beams, method.search_width // method.beams, []
    generator, beam = torch.Generator().manual_seed(seed), [ids[row].clone()] * method.beams
    for step in range(steps):
        losses, pool = [plain_loss(clip, images, row, prompt) for prompt in beam], list(beam)
        found.append(beam[min(range(count), key=lambda k: losses[k][0])])
        ranks = torch.randint(method.top_k, (count * each,), generator=generator).tolist()
        for place, rank in enumerate(ranks):
            b, j = divmod(place, each)
            position = (step * each + j) % LENGTH
            gain = torch.where(table.allowed, table.weight @ -losses[b][1][position], -torch.inf)
            gain[beam[b][position]] = -torch.inf
            pool.append(beam[b].clone())
            pool[-1][position] = gain.topk(method.top_k).indices[rank]
        scored = [loss for loss, _ in losses] + [plain_loss(clip, images, row, p)[0] for p in pool[count:]]
        beam = []
        for k in sorted(range(len(pool)), key=scored.__getitem__):
            if len(beam) < count and not any(torch.equal(pool[k], p) for p in beam):
                beam.append(pool[k])
    return torch.stack(found)


@pytest.mark.parametrize(("beams", "width"), [(1, 6), (2, 6), (3, 13)])
def test_its_steps_are_those_of_a_plain_loop(tiny_clip, images, beams, width):
    method = BeamMethod(beams, width, 20)
    found = torch.stack([e.ids[0] for e in walk(method, tiny_clip, images, [2], seed=3, steps=10)])
    assert torch.equal(found, plain_walk(tiny_clip, images, 2, method, 3, 10))
    assert len(found.unique(dim=0)) > 4


def test_one_beam_is_gcg(tiny_clip, images):
    one, gcg = (walk(m, tiny_clip, images, [0, 1], steps=8) for m in (BeamMethod(1, 8, 20), GCGMethod(8, 20)))
    for a, b in zip(one, gcg, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.loss, b.loss)


def test_a_prompt_that_joins_others_moves_as_if_alone(tiny_clip, images):
    assert_rows_move_alone(BeamMethod(3, 9, 20), tiny_clip, images)


def test_the_score_is_not_read(tiny_clip, images):
    assert_scores_are_not_read(BeamMethod(2, 8, 20), tiny_clip, images)


def test_a_beam_holds_different_prompts_and_nan_is_last():
    table = TokenTable(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    method, begin = BeamMethod(3, 9, 8), torch.tensor([[0, 0, 0]])
    state = method.init(begin, table, 0)
    method.step(state, Scripted(table, lambda ids: torch.where(ids[:, 0] > 0, torch.nan, -ids.sum(1).float())), True)
    beam = state.tensors["beams"][0]
    assert len(beam.unique(dim=0)) == 3 and (beam[:, 0] == 0).all()
    sums = beam.sum(1).tolist()
    assert sums == sorted(sums, reverse=True) and sums[0] > 0
    state = method.init(begin, table, 0)  # nothing else is finite: the prompt itself stays
    method.step(state, Scripted(table, lambda ids: torch.where((ids == 0).all(1), 1.0, torch.nan)), True)
    assert torch.equal(state.tensors["ids"], begin)


def test_a_table_of_one_token():
    table = TokenTable(torch.randn(9, 4), banned=range(1, 9))
    method, begin = BeamMethod(2, 4, 8), torch.tensor([[0, 0]])
    state = method.init(begin, table, 0)
    method.step(state, Scripted(table, lambda ids: ids.sum(1).float()), True)
    assert not state.tensors["beams"].any()


def test_it_refines_a_search(tiny_clip, images):
    options = {"prompt_len": 4, "steps": 10, "refine": 0}
    plain = pez_fast.invert(images[0], tiny_clip, **options)
    found = pez_fast.invert(
        images[0], tiny_clip, prompt_len=4, stages=[(pez_fast.methods.PEZMethod(), 10), (BeamMethod(), 8)]
    )
    assert found.text_score > plain.text_score


BAD = [
    ("beams", 0, "a positive integer"),
    ("search_width", 3, "at least beams, 4"),
    ("top_k", True, "a positive integer"),
]


@pytest.mark.parametrize(("name", "value", "kind"), BAD)
def test_bad_options(name, value, kind):
    with refused(ValueError, re.escape(f"{name} must be {kind}; got {value!r}")):
        BeamMethod(**{name: value})
