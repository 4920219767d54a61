"""Targets that do not fit into one batch: their results do not depend on the batches."""

from __future__ import annotations

import math

import pytest
import torch

import pez_fast
from pez_fast._shared import devices
from pez_fast.config import SearchConfig
from pez_fast.engine import memory
from pez_fast.engine.batch import Batch
from pez_fast.engine.evaluate import Evaluator
from pez_fast.objectives import Similarity
from pez_fast.prompt_search import NOT_BEGUN, NOT_FINITE, PromptSearch

OPTIONS = {"prompt_len": 5, "steps": 12, "restarts": 2, "refine": 2, "top_k": 3}


def outcomes(results) -> list[tuple]:
    """Returns what must be equal of the results."""
    return [
        (r.prompt, r.ids, r.ids_score, r.text_score, r.steps, r.history, r.restart, r.stop_reason, r.top)
        for r in results
    ]


@pytest.fixture(scope="module")
def whole(tiny_clip, images):
    return outcomes(pez_fast.invert_batch(images, tiny_clip, **OPTIONS, batch_size=1000))


@pytest.mark.parametrize("batch_size", [None, 1, 2, 6, 7])
def test_a_result_does_not_depend_on_the_batch(tiny_clip, images, whole, batch_size):
    assert outcomes(pez_fast.invert_batch(images, tiny_clip, **OPTIONS, batch_size=batch_size)) == whole


@pytest.mark.parametrize("patience", [5, 9])
def test_a_result_does_not_depend_on_the_batch_when_prompts_end_early(tiny_clip, images, patience):
    options = {**OPTIONS, "steps": 60, "patience": patience}
    one = pez_fast.invert_batch(images, tiny_clip, **options, batch_size=2)
    together = pez_fast.invert_batch(images, tiny_clip, **options)
    assert outcomes(one) == outcomes(together)
    assert len({r.steps for r in together}) > 1


def test_waiting_targets_take_free_places(tiny_clip, images, monkeypatch):
    options = {**OPTIONS, "steps": 60, "patience": 5, "refine": 0}
    steps_seen, step = [], Batch._step

    def recorded_step(batch, update=True):
        assert batch.rows <= 6
        steps_seen.append([(search.request.keys, search.step) for search in batch.searches])
        step(batch, update)

    single = [pez_fast.invert_batch([image], tiny_clip, **options)[0] for image in images]
    monkeypatch.setattr(Batch, "_step", recorded_step)
    assert outcomes(pez_fast.invert_batch(images, tiny_clip, **options, batch_size=6)) == outcomes(single)
    together = [searches for searches in steps_seen if len(searches) > 1]
    assert together and any(
        len({step for _, step in searches}) > 1 for searches in together
    )  # two searches at different steps


def test_targets_are_requested_when_there_is_room(tiny_clip, images):
    requested = []

    def targets():
        for k, feature in enumerate(tiny_clip.encode_images(images)):
            requested.append(k)
            yield [k], Similarity(feature[None])

    options = SearchConfig(**{**OPTIONS, "batch_size": 6})
    stream = PromptSearch(tiny_clip, options).stream(targets())
    assert [k for k, _ in next(stream)] == [0, 1, 2] and requested == [0, 1, 2]
    assert [k for found in stream for k, _ in found] == [3, 4, 5, 6, 7]


def test_groups_of_targets_are_cut_to_the_room(tiny_clip, images):
    features = tiny_clip.encode_images(images)
    groups = [(keys, Similarity(features[keys])) for keys in ([0, 1, 2, 3, 4], [], [5, 6])]
    options = SearchConfig(**{**OPTIONS, "batch_size": 6})
    found = [[k for k, _ in part] for part in PromptSearch(tiny_clip, options).stream(groups)]
    assert found == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: …")],
)
def test_out_of_memory_halves_the_batch(tiny_clip, images, whole, error, monkeypatch):
    """In every stage, no evaluation is repeated but the failed one, and no result changes."""
    sizes, evaluate = {True: [], False: []}, Evaluator._evaluate

    def small(self, ids, gradient, *rest):
        sizes[gradient].append(len(ids))
        if len(ids) > 4:
            raise error
        return evaluate(self, ids, gradient, *rest)

    monkeypatch.setattr(Evaluator, "_evaluate", small)
    assert outcomes(pez_fast.invert_batch(images, tiny_clip, **OPTIONS, batch_size=16)) == whole
    # 16 prompts through 12 updates, then 8 targets through 2, in fours; the last evaluations need no gradient
    assert sizes[True] == [16, 8] + [4] * 4 * 12 + [4] * 2 * 2
    assert max(sizes[False]) <= 4


def test_one_prompt_that_does_not_fit_is_an_error(tiny_clip, images, monkeypatch):
    def fail(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Evaluator, "_evaluate", fail)
    with pytest.raises(torch.OutOfMemoryError):
        pez_fast.invert_batch(images, tiny_clip, **OPTIONS)


def test_other_errors_are_not_swallowed(tiny_clip, images, monkeypatch):
    def fail(*args, **more):
        raise RuntimeError("broken")

    monkeypatch.setattr(Batch, "_step", fail)
    with pytest.raises(RuntimeError, match="broken"):
        pez_fast.invert_batch(images, tiny_clip, **OPTIONS)


def test_progress_over_batches(tiny_clip, images):
    seen = []
    pez_fast.invert_batch(images, tiny_clip, **OPTIONS, batch_size=6, callback=seen.append, every=6)
    assert [p.step for p in seen] == [0, 2, 4, 4, 4, 4, 6, 9, 9, 9, 9, 10, 12, 12, 12] and {p.steps for p in seen} == {
        12
    }
    assert [sum(bool(prompt) for prompt in p.prompts) for p in seen] == [3] * 5 + [6] * 5 + [8] * 5
    assert [p.refined for p in seen][-2:] == [(6 * 2 + 2) // 8, 2]
    assert all(
        math.isnan(score) == (not prompt) for p in seen for prompt, score in zip(p.prompts, p.scores, strict=True)
    )


def test_a_search_that_ends_before_all_targets_are_begun(tiny_clip, images):
    results = pez_fast.invert_batch(images, tiny_clip, **OPTIONS, batch_size=6, callback=lambda p: p.step >= 2, every=6)
    assert [r.stop_reason for r in results] == ["callback"] * 8
    assert [r.error for r in results] == [None] * 3 + [NOT_BEGUN] * 5
    assert [bool(r.prompt) for r in results] == [True] * 3 + [False] * 5


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_bad_batch_size(tiny_clip, images, value):
    with pytest.raises(ValueError, match="batch_size must be a positive integer; got"):
        pez_fast.invert_batch(images, tiny_clip, batch_size=value)


def test_memory():
    cpu = torch.device("cpu")
    assert devices.free_bytes(cpu) > 2**20
    small, large = (memory.max_batch_size(cpu, memory.transformer_bytes(12, 18, width, 4)) for width in (64, 1024))
    assert small > large >= 1
    assert memory.max_batch_size(cpu, memory.transformer_bytes(10**6, 10**6, 10**6, 8)) == 1
    assert devices.out_of_memory(torch.OutOfMemoryError()) and devices.out_of_memory(
        RuntimeError("[enforce fail] can't allocate memory")
    )
    assert not devices.out_of_memory(RuntimeError("shapes")) and not devices.out_of_memory(
        ValueError("can't allocate memory")
    )


def test_an_optimiser_selects_rows():
    torch.manual_seed(0)
    table = pez_fast.TokenTable(torch.randn(50, 6))
    opt = pez_fast.PEZ(torch.randn(4, 3, 6), table, lr=0.2, weight_decay=0.3)

    def advance(opt, target):
        for _ in range(3):
            (opt.project()[0] - target).square().sum().backward()
            opt.step()
            opt.zero_grad()

    target, keep = torch.randn(4, 3, 6), torch.tensor([3, 1])
    advance(opt, target)
    selected = opt.select(keep)
    advance(opt, target)
    advance(selected, target[keep])
    assert torch.equal(selected.prompts, opt.prompts[keep])
    assert selected.param_groups[0]["lr"] == 0.2 and selected.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize("refine", [0, 2])
def test_a_target_without_finite_scores_is_an_error_of_its_own(tiny_clip, images, refine):
    targets = tiny_clip.encode_images(images[:3])
    options = {"prompt_len": 4, "steps": 6, "refine": refine}
    whole = pez_fast.search(Similarity(targets), tiny_clip, **options)
    targets[1] = torch.nan
    for some, wrong in ((targets, [1]), (targets[1:2], [0])):
        results = pez_fast.search(Similarity(some), tiny_clip, **options)
        assert [k for k, r in enumerate(results) if r.error] == wrong and results[wrong[0]].error == NOT_FINITE
    found = pez_fast.search(Similarity(targets), tiny_clip, **options)
    assert [outcomes([r]) for r in found[::2]] == [outcomes([r]) for r in whole[::2]]


def test_the_states_of_the_prompts_must_fit_into_memory(tiny_clip, images, monkeypatch):
    """Scores of all steps, kept ids and the optimiser's vectors, for as many prompts as begin together."""
    state = memory.state_bytes(4, 32, 50_000, 4, 4)
    assert state > 2 * 4 * 50_000
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4 * 3 * state)
    options = {"prompt_len": 4, "steps": 50_000, "callback": lambda progress: True}
    sentence = r"restarts must be at most 3, as many as fit into the free memory with 0\.3\d MiB each; got 4"
    with pytest.raises(ValueError, match=sentence):
        pez_fast.invert(images[0], tiny_clip, **options, restarts=4)
    assert pez_fast.invert(images[0], tiny_clip, **options, restarts=3).stop_reason == "callback"
    search = PromptSearch(tiny_clip, SearchConfig(**options, batch_size=1000))
    assert search.limit.rows == 3
