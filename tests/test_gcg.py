"""GCG by itself and as the second stage of a search, and the best different prompts."""

from __future__ import annotations

import re

import pytest
import torch
from inputs import refused
from moving import LENGTH, Scripted, assert_rows_move_alone, assert_scores_are_not_read, plain_loss, setting, walk

import pez_fast
from pez_fast.engine import BatchLimit, Request, Scheduler, Stage
from pez_fast.methods import GCGMethod
from pez_fast.methods.gains import top_gain_tokens
from pez_fast.table import TokenTable


def run(clip, images, num_steps, seed=0, max_rows=64, callback=None, rows=None, table=None):
    """Returns ids (T, L) and scores (T,) after so many steps of GCG."""
    default_table, model, objective, ids = setting(clip, images)
    rows = torch.arange(len(ids)) if rows is None else rows
    ids = ids[rows] if table is None else table.ids[torch.zeros(len(rows), LENGTH, dtype=torch.int64)]
    requests = [Request(tuple(rows.tolist()), ids, objective.select(rows), seed)]
    (found,) = Scheduler(
        default_table if table is None else table,
        model,
        lambda room: requests.pop() if requests else None,
        [Stage(GCGMethod(), num_steps)],
        BatchLimit.of(max_rows, ids.device),
        every=1,
        on_progress=None if callback is None else lambda searches: callback(searches[0]),
    ).run()
    return found.best_rows()[:2]


def test_scores_rise_and_are_those_of_the_ids(tiny_clip, images):
    table, model, objective, ids = setting(tiny_clip, images)
    before = objective(model(table.weight[ids], ids), ids)[1]
    seen = []
    found, score = run(tiny_clip, images, 6, callback=lambda search: seen.append(search.best_rows()[:2]))
    torch.testing.assert_close(objective(model(table.weight[found], found), found)[1], score)
    assert (score > before).all() and table.allowed[found].all()
    assert len(seen) == 7 and torch.equal(seen[0][0], ids) and torch.equal(seen[-1][0], found)
    scores = torch.stack([s for _, s in seen])
    assert torch.equal(scores[0], before) and (scores.diff(dim=0) >= 0).all()
    changed = [int((a != b).sum(1).max()) for (a, _), (b, _) in zip(seen, seen[1:], strict=False)]
    assert max(changed) == 1


def test_nothing_depends_on_the_batch_and_all_on_the_seed(tiny_clip, images):
    whole, score = run(tiny_clip, images, 4)
    for max_rows in (1, 7, 1000):
        assert torch.equal(run(tiny_clip, images, 4, max_rows=max_rows)[0], whole)
    for k in range(len(whole)):
        single = run(tiny_clip, images, 4, rows=torch.tensor([k]))
        assert torch.equal(single[0][0], whole[k]) and single[1][0] == score[k]
    assert not torch.equal(run(tiny_clip, images, 4, seed=1)[0], whole)


def plain_walk(clip, images, row, method, seed, steps):
    """Returns the prompts of a row after each of so many steps of GCG, in plain lines."""
    table, _, _, ids = setting(clip, images)
    prompt, width, prompts = ids[row].clone(), method.search_width, []
    generator, mean = torch.Generator().manual_seed(seed), torch.zeros(LENGTH, table.dim)
    for step in range(steps):
        prompts.append(prompt)
        loss, gradient = plain_loss(clip, images, row, prompt)
        mean = method.momentum * mean + (1 - method.momentum) * gradient
        ranks, tried = torch.randint(method.top_k, (width,), generator=generator).tolist(), []
        for place, rank in enumerate(ranks):
            position = (step * width + place) % LENGTH
            gain = torch.where(table.allowed, table.weight @ -mean[position], -torch.inf)
            gain[prompt[position]] = -torch.inf
            tried.append(prompt.clone())
            tried[-1][position] = gain.topk(method.top_k).indices[rank]
        losses = [plain_loss(clip, images, row, ids)[0] for ids in tried]
        if min(losses) < loss:
            prompt = tried[losses.index(min(losses))]
    return torch.stack(prompts)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_its_steps_are_those_of_a_plain_loop(tiny_clip, images, momentum):
    method = GCGMethod(3, 20, momentum)
    found = torch.stack([e.ids[0] for e in walk(method, tiny_clip, images, [2], seed=3, steps=12)])
    assert torch.equal(found, plain_walk(tiny_clip, images, 2, method, 3, 12))
    assert 3 < len(found.unique(dim=0)) < 12


def test_momentum_changes_the_search(tiny_clip, images):
    plain, mean = (walk(GCGMethod(8, 20, m), tiny_clip, images, [2], steps=8)[-1].ids for m in (0.0, 0.8))
    assert not torch.equal(plain, mean)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_prompt_that_joins_others_moves_as_if_alone(tiny_clip, images, momentum):
    """Prompts of other seeds and at other steps share a state, and each takes the draws of its own seed and step."""
    assert_rows_move_alone(GCGMethod(8, 20, momentum), tiny_clip, images)


def test_the_score_is_not_read(tiny_clip, images):
    assert_scores_are_not_read(GCGMethod(8, 20), tiny_clip, images)


@pytest.mark.parametrize("nan", [True, False])
def test_nan_never_wins_and_the_first_of_equals_does(nan):
    """Of exchanges of equal loss the first is taken; one whose loss is NaN is not, and is left for a finite one."""
    table = TokenTable(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    method, begin = GCGMethod(6, 8), torch.tensor([[0, 0, 0]])
    tried = []

    def loss(ids):
        tried.append(ids)
        here = torch.nan if nan else 2.0
        return torch.where((ids == begin).all(1), here, torch.where(ids[:, 0] > 0, torch.nan, 1.0))

    state = method.init(begin, table, 0)
    method.step(state, Scripted(table, loss), update=True)
    first = next(ids for ids in tried[1] if ids[0] == 0)
    assert torch.equal(state.tensors["ids"][0], first)
    method.step(state, Scripted(table, lambda ids: torch.full((len(ids),), torch.nan)), update=True)
    assert torch.equal(state.tensors["ids"][0], first)


BAD = [("search_width", 0, "a positive integer"), ("top_k", 1.5, "a positive integer")]
BAD += [("momentum", -0.1, "a finite number, not negative"), ("momentum", 1.0, "below 1")]


@pytest.mark.parametrize(("name", "value", "kind"), BAD)
def test_bad_options(name, value, kind):
    with refused(ValueError, re.escape(f"{name} must be {kind}; got {value!r}")):
        GCGMethod(**{name: value})


def test_the_callback_can_end_it(tiny_clip, images):
    two, _ = run(tiny_clip, images, 2)
    ended, _ = run(tiny_clip, images, 9, callback=lambda search: search.step == 3)
    assert torch.equal(two, ended)


def test_likely_tokens_are_those_with_the_largest_product():
    generator = torch.Generator().manual_seed(0)
    table = TokenTable(torch.randn(50, 8, generator=generator), banned=[3, 7])
    ascent = torch.randn(2, 3, 8, generator=generator)
    ids = table.ids[(ascent @ table.weight[table.ids].T).argmax(-1)]  # they would have the largest gain
    found = top_gain_tokens(ascent, ids, table, table.weight[table.ids], 10)
    for target in range(2):
        for position in range(3):
            gain = table.weight @ ascent[target, position]
            gain[[3, 7, int(ids[target, position])]] = -torch.inf
            assert found[target, position].tolist() == gain.topk(10).indices.tolist()


def test_a_table_of_few_tokens(tiny_clip, images):
    weight = tiny_clip.embedding.weight
    for allowed in (1, 2):
        table = TokenTable(weight, banned=torch.arange(len(weight)) >= allowed)
        found, _ = run(tiny_clip, images, 2, table=table)
        assert (found < allowed).all()


def test_tasks_refine_by_default(tiny_clip, images):
    options = {"prompt_len": 4, "steps": 10}
    plain = pez_fast.invert_batch(images[:3], tiny_clip, **options, refine=0)
    refined = pez_fast.invert_batch(images[:3], tiny_clip, **options)
    assert all(a.text_score > b.text_score for a, b in zip(refined, plain, strict=True))
    assert [r.history for r in refined] == [r.history for r in plain]


@pytest.mark.parametrize("value", [-1, 1.5, True, "8"])
def test_bad_refine(tiny_clip, images, value):
    with refused(ValueError, f"refine must be an integer, not negative; got {value!r}"):
        pez_fast.invert(images[0], tiny_clip, refine=value)


def test_the_best_different_prompts(tiny_clip, images):
    options = {"prompt_len": 4, "steps": 30, "restarts": 3, "refine": 2}
    one = pez_fast.invert(images[0], tiny_clip, **options)
    many = pez_fast.invert(images[0], tiny_clip, **options, top_k=7)
    assert len(one.top) == 1 and len(many.top) == 7 and len({c.prompt for c in many.top}) == 7
    scores = [c.text_score for c in many.top]
    assert scores == sorted(scores, reverse=True)
    for result in (one, many):
        first = result.top[0]
        assert (first.prompt, first.ids, first.text_score, first.restart) == (
            result.prompt,
            result.ids,
            result.text_score,
            result.restart,
        )
    target = tiny_clip.encode_images(images[:1])
    torch.testing.assert_close(
        (tiny_clip.encode_texts([c.prompt for c in many.top]) * target).sum(-1), torch.tensor(scores)
    )
    assert many.to_dict()["top"][1]["prompt"] == many.top[1].prompt


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_bad_top_k(tiny_clip, images, value):
    with refused(ValueError, f"top_k must be a positive integer; got {value!r}"):
        pez_fast.invert(images[0], tiny_clip, top_k=value)


def test_interrupted_while_refining_the_search_is_kept(tiny_clip, images):
    def interrupt(progress):
        if progress.refined == 2:
            raise KeyboardInterrupt

    options = {"prompt_len": 4, "steps": 10}
    plain = pez_fast.invert_batch(images[:3], tiny_clip, **options, refine=0)
    results = pez_fast.invert_batch(images[:3], tiny_clip, **options, callback=interrupt)
    assert all(a.text_score >= b.text_score for a, b in zip(results, plain, strict=True))
    assert [r.stop_reason for r in results] == ["interrupt"] * 3 and [r.history for r in results] == [
        r.history for r in plain
    ]
    ended = pez_fast.invert(images[0], tiny_clip, **options, callback=lambda p: p.refined == 2)
    assert ended.text_score >= plain[0].text_score and ended.stop_reason == "callback"
