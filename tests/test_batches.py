"""Targets that do not fit into one batch: the same results, whatever the batches."""

from __future__ import annotations

import math

import pytest
import torch

import pez_fast
from pez_fast import learner, memory
from pez_fast.config import SearchConfig
from pez_fast.engine import Engine

OPTIONS = {"prompt_len": 5, "steps": 12, "restarts": 2, "polish": 2, "top_k": 3}


def told(results) -> list[tuple]:
    return [
        (r.prompt, r.ids, r.ids_score, r.text_score, r.steps, r.history, r.restart, r.stopped, r.top) for r in results
    ]


@pytest.fixture(scope="module")
def whole(tiny_clip, pictures):
    return told(pez_fast.invert_batch(pictures, tiny_clip, **OPTIONS, batch_size=1000))


@pytest.mark.parametrize("batch_size", [None, 1, 2, 6, 7])
def test_a_result_does_not_depend_on_the_batch(tiny_clip, pictures, whole, batch_size):
    assert told(pez_fast.invert_batch(pictures, tiny_clip, **OPTIONS, batch_size=batch_size)) == whole


@pytest.mark.parametrize("patience", [5, 9])
def test_nor_with_prompts_that_end_early(tiny_clip, pictures, patience):
    options = {**OPTIONS, "steps": 60, "patience": patience}
    one = pez_fast.invert_batch(pictures, tiny_clip, **options, batch_size=2)
    together = pez_fast.invert_batch(pictures, tiny_clip, **options)
    assert told(one) == told(together)
    assert len({r.steps for r in together}) > 1


def test_places_that_become_free_are_taken_by_those_that_wait(tiny_clip, pictures, monkeypatch):
    options = {**OPTIONS, "steps": 60, "patience": 5, "polish": 0}
    begun, step = [], Engine._step

    def watched(engine, update=True):
        assert sum(len(c.rows) for c in engine.cohorts) <= 6
        begun.append([(c.part.names, c.number) for c in engine.cohorts])
        step(engine, update)

    alone = [pez_fast.invert_batch([picture], tiny_clip, **options)[0] for picture in pictures]
    monkeypatch.setattr(Engine, "_step", watched)
    assert told(pez_fast.invert_batch(pictures, tiny_clip, **options, batch_size=6)) == told(alone)
    together = [numbers for numbers in begun if len(numbers) > 1]
    assert together and any(
        len({number for _, number in cohorts}) > 1 for cohorts in together
    )  # at different steps of theirs


def test_goals_are_asked_for_when_there_is_room(tiny_clip, pictures):
    asked = []

    def goals():
        for k, goal in enumerate(tiny_clip.encode_images(pictures)):
            asked.append(k)
            yield k, goal

    options = SearchConfig(**{**OPTIONS, "batch_size": 6})
    stream = learner.Learner(tiny_clip, options).stream(goals())
    assert [k for k, _ in next(stream)] == [0, 1, 2] and asked == [0, 1, 2]
    assert [k for found in stream for k, _ in found] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: …")],
)
def test_out_of_memory_halves_the_batch(tiny_clip, pictures, whole, error, monkeypatch):
    sizes, step = [], Engine._step

    def small(engine, update=True):
        sizes.append(sum(len(c.rows) for c in engine.cohorts))
        if sizes[-1] > 4:
            raise error
        step(engine, update)

    monkeypatch.setattr(Engine, "_step", small)
    assert told(pez_fast.invert_batch(pictures, tiny_clip, **OPTIONS, batch_size=16)) == whole
    assert sizes == [16, 8] + [4] * 4 * 13


def test_one_target_that_does_not_fit_is_an_error(tiny_clip, pictures, monkeypatch):
    def none(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "_step", none)
    with pytest.raises(torch.OutOfMemoryError):
        pez_fast.invert_batch(pictures, tiny_clip, **OPTIONS)


def test_other_errors_are_not_swallowed(tiny_clip, pictures, monkeypatch):
    def broken(*args, **more):
        raise RuntimeError("broken")

    monkeypatch.setattr(Engine, "_step", broken)
    with pytest.raises(RuntimeError, match="broken"):
        pez_fast.invert_batch(pictures, tiny_clip, **OPTIONS)


def test_progress_over_batches(tiny_clip, pictures):
    seen = []
    pez_fast.invert_batch(pictures, tiny_clip, **OPTIONS, batch_size=6, callback=seen.append, every=6)
    assert [p.step for p in seen] == [0, 2, 4, 4, 4, 4, 6, 9, 9, 9, 9, 10, 12, 12, 12] and {p.steps for p in seen} == {
        12
    }
    assert [sum(bool(prompt) for prompt in p.prompts) for p in seen] == [3] * 5 + [6] * 5 + [8] * 5
    assert [p.polished for p in seen][-2:] == [(6 * 2 + 2) // 8, 2]
    assert all(
        math.isnan(score) == (not prompt) for p in seen for prompt, score in zip(p.prompts, p.scores, strict=True)
    )


def test_ended_before_all_were_begun(tiny_clip, pictures):
    results = pez_fast.invert_batch(
        pictures, tiny_clip, **OPTIONS, batch_size=6, callback=lambda p: p.step >= 2, every=6
    )
    assert [r.stopped for r in results] == ["callback"] * 8
    assert [r.error for r in results] == [None] * 3 + [learner.NOT_BEGUN] * 5
    assert [bool(r.prompt) for r in results] == [True] * 3 + [False] * 5


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_bad_batch_size(tiny_clip, pictures, value):
    with pytest.raises(ValueError, match="batch_size must be a positive integer; got"):
        pez_fast.invert_batch(pictures, tiny_clip, batch_size=value)


def test_memory():
    cpu = torch.device("cpu")
    assert memory.free_bytes(cpu) > 2**20
    small, large = (memory.prompts_at_once(cpu, 12, 18, width, 4) for width in (64, 1024))
    assert small > large >= 1
    assert memory.prompts_at_once(cpu, 10**6, 10**6, 10**6, 8) == 1
    assert memory.out_of_memory(torch.OutOfMemoryError()) and memory.out_of_memory(
        RuntimeError("[enforce fail] can't allocate memory")
    )
    assert not memory.out_of_memory(RuntimeError("shapes")) and not memory.out_of_memory(
        ValueError("can't allocate memory")
    )


def test_an_optimiser_for_some_of_the_rows():
    torch.manual_seed(0)
    table = pez_fast.TokenTable(torch.randn(50, 6))
    opt = pez_fast.PEZ(torch.randn(4, 3, 6), table, lr=0.2, weight_decay=0.3)

    def go_on(opt, goal):
        for _ in range(3):
            (opt.project()[0] - goal).square().sum().backward()
            opt.step()
            opt.zero_grad()

    goal, keep = torch.randn(4, 3, 6), torch.tensor([3, 1])
    go_on(opt, goal)
    some = opt.rows(keep)
    go_on(opt, goal)
    go_on(some, goal[keep])
    assert torch.equal(some.prompts, opt.prompts[keep])
    assert some.param_groups[0]["lr"] == 0.2 and some.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize("polish", [0, 2])
def test_a_target_without_finite_scores_is_an_error_of_its_own(tiny_clip, pictures, polish):
    goals = tiny_clip.encode_images(pictures[:3])
    options = SearchConfig(prompt_len=4, steps=6, polish=polish)
    whole = learner.learn(goals, tiny_clip, options)
    goals[1] = torch.nan
    for some, wrong in ((goals, [1]), (goals[1:2], [0])):
        results = learner.learn(some, tiny_clip, options)
        assert [k for k, r in enumerate(results) if r.error] == wrong and results[wrong[0]].error == learner.NOT_FINITE
    assert [told([r]) for r in learner.learn(goals, tiny_clip, options)[::2]] == [told([r]) for r in whole[::2]]
