"""Exchange of single tokens behind the search, and the best different prompts."""

from __future__ import annotations

import pytest
import torch
from inputs import refused

import pez_fast
from pez_fast.engine import polish
from pez_fast.engine.polish import _likely_tokens
from pez_fast.objectives import TargetSimilarity
from pez_fast.table import TokenTable

LENGTH = 5


def setting(clip, pictures, targets=4):
    table = clip.table()
    goals = clip.encode_images(pictures[:targets])
    ids = table.ids[torch.randint(len(table.ids), (targets, LENGTH), generator=torch.Generator().manual_seed(0))]
    return table, clip.text_encoder(LENGTH), TargetSimilarity(goals), ids


def run(clip, pictures, rounds, seed=0, at_once=64, callback=None):
    table, encode, objective, ids = setting(clip, pictures)
    return polish(ids, table, encode, objective, rounds, seed, at_once, callback)


def test_scores_rise_and_are_those_of_the_ids(tiny_clip, pictures):
    table, encode, objective, ids = setting(tiny_clip, pictures)
    before = objective(encode(table.weight[ids]))[1]
    told = []
    found, score = run(tiny_clip, pictures, 6, callback=lambda *state: told.append(state))
    torch.testing.assert_close(objective(encode(table.weight[found]))[1], score)
    assert (score > before).all() and table.allowed[found].all()
    assert [number for number, *_ in told] == [1, 2, 3, 4, 5, 6] and torch.equal(told[-1][1], found)
    levels = torch.stack([before, *(s for *_, s in told)])
    assert (levels.diff(dim=0) >= 0).all()
    changed = [
        (a != b).sum(1).max() for a, b in zip([ids, *(i for _, i, _ in told)], [i for _, i, _ in told], strict=False)
    ]
    assert max(changed) == 1


def test_nothing_depends_on_the_batch_and_all_on_the_seed(tiny_clip, pictures):
    table, encode, objective, ids = setting(tiny_clip, pictures)
    whole, score = run(tiny_clip, pictures, 4)
    for at_once in (1, 7, 1000):
        assert torch.equal(run(tiny_clip, pictures, 4, at_once=at_once)[0], whole)
    for k in range(len(ids)):
        alone = polish(ids[k : k + 1], table, encode, objective.rows(torch.tensor([k])), 4, 0, 64)
        assert torch.equal(alone[0][0], whole[k]) and alone[1][0] == score[k]
    assert not torch.equal(run(tiny_clip, pictures, 4, seed=1)[0], whole)


def test_the_callback_can_end_it(tiny_clip, pictures):
    two, _ = run(tiny_clip, pictures, 2)
    ended, _ = run(tiny_clip, pictures, 9, callback=lambda number, *_: number == 2)
    assert torch.equal(two, ended)


def test_likely_tokens_are_those_with_the_largest_product():
    generator = torch.Generator().manual_seed(0)
    table = TokenTable(torch.randn(50, 8, generator=generator), banned=[3, 7])
    ascent, ids = (
        torch.randn(2, 3, 8, generator=generator),
        table.ids[torch.randint(len(table.ids), (2, 3), generator=generator)],
    )
    found = _likely_tokens(ascent, ids, table, table.weight[table.ids], 10)
    for target in range(2):
        for position in range(3):
            gain = table.weight @ ascent[target, position]
            gain[[3, 7, int(ids[target, position])]] = -torch.inf
            assert found[target, position].tolist() == gain.topk(10).indices.tolist()


def test_a_table_of_few_tokens(tiny_clip, pictures):
    weight = tiny_clip.embedding.weight
    _, encode, objective, _ = setting(tiny_clip, pictures)
    for allowed in (1, 2):
        table = TokenTable(weight, banned=torch.arange(len(weight)) >= allowed)
        found, _ = polish(torch.zeros(4, LENGTH, dtype=torch.int64), table, encode, objective, 2, 0, 64)
        assert (found < allowed).all()


def test_tasks_are_polished_by_default(tiny_clip, pictures):
    options = {"prompt_len": 4, "steps": 10}
    plain = pez_fast.invert_batch(pictures[:3], tiny_clip, **options, polish=0)
    polished = pez_fast.invert_batch(pictures[:3], tiny_clip, **options)
    assert all(a.text_score > b.text_score for a, b in zip(polished, plain, strict=True))
    assert [r.history for r in polished] == [r.history for r in plain]


@pytest.mark.parametrize("value", [-1, 1.5, True, "8"])
def test_bad_polish(tiny_clip, pictures, value):
    with refused(ValueError, f"polish must be an integer, not negative; got {value!r}"):
        pez_fast.invert(pictures[0], tiny_clip, polish=value)


def test_the_best_different_prompts(tiny_clip, pictures):
    options = {"prompt_len": 4, "steps": 30, "restarts": 3, "polish": 2}
    one = pez_fast.invert(pictures[0], tiny_clip, **options)
    many = pez_fast.invert(pictures[0], tiny_clip, **options, top_k=7)
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
    target = tiny_clip.encode_images(pictures[:1])
    torch.testing.assert_close(
        (tiny_clip.encode_texts([c.prompt for c in many.top]) * target).sum(-1), torch.tensor(scores)
    )
    assert many.to_dict()["top"][1]["prompt"] == many.top[1].prompt


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_bad_top_k(tiny_clip, pictures, value):
    with refused(ValueError, f"top_k must be a positive integer; got {value!r}"):
        pez_fast.invert(pictures[0], tiny_clip, top_k=value)


def test_interrupted_while_polishing_the_search_is_kept(tiny_clip, pictures):
    def interrupt(progress):
        if progress.polished:
            raise KeyboardInterrupt

    options = {"prompt_len": 4, "steps": 10}
    plain = pez_fast.invert_batch(pictures[:3], tiny_clip, **options, polish=0)
    results = pez_fast.invert_batch(pictures[:3], tiny_clip, **options, callback=interrupt)
    assert [r.prompt for r in results] == [r.prompt for r in plain]
    ended = pez_fast.invert(pictures[0], tiny_clip, **options, callback=lambda p: p.polished == 2)
    assert ended.text_score >= plain[0].text_score
