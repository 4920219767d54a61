"""The loop against the plain one, step by step, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from inputs import normal, seeded

import pez_fast
from pez_fast import reference
from pez_fast.engine import Part, Settings, pez_steps, search
from pez_fast.objectives import TargetSimilarity, weighted_goal
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable


def setting(clip, pictures, rows, prompt_len=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(49408, (rows, prompt_len), generator=generator)
    goals = weighted_goal(clip.encode_images(pictures[:3]))[None].expand(rows, -1)
    return TokenTable(clip.embedding), start, clip.text_encoder(prompt_len), goals


@pytest.mark.parametrize(("seed", "prompt_len"), [(0, 6), (1, 16)])
def test_ids_equal_those_of_the_plain_loop_for_300_steps(tiny_clip64, pictures, seed, prompt_len):
    clip = tiny_clip64
    table, start, encode, goals = setting(clip, pictures, 1, prompt_len, seed)
    plain = reference.optimize_prompt(
        clip.model, clip.encode_images(pictures[:3]), prompt_len=prompt_len, steps=300, batch_size=None, start=start
    )
    opt = PEZ(table.weight[start].clone(), table)
    ours = list(pez_steps(opt, encode, TargetSimilarity(goals), 300))
    assert len(ours) == 301
    assert torch.equal(torch.stack([s.ids for s in ours[:300]]), torch.stack(plain.ids))
    torch.testing.assert_close(
        torch.cat([s.score for s in ours[:300]]), torch.tensor(plain.scores, dtype=torch.float64), rtol=0, atol=1e-9
    )
    assert len({tuple(i.flatten().tolist()) for i in plain.ids}) > 50  # it moves


def run(clip, pictures, rows=3, count=20, every=50, callback=None, **settings):
    table, start, encode, goals = setting(clip, pictures, rows)
    return search(
        Part(tuple(range(rows)), start, TargetSimilarity(goals)),
        table,
        encode,
        Settings(count, **settings),
        every,
        callback,
    )


def test_search_keeps_each_prompts_best_the_last_projection_included(tiny_clip, pictures):
    table, start, encode, goals = setting(tiny_clip, pictures, 3)
    found = run(tiny_clip, pictures)
    assert found.history.shape == (3, 21) and found.stopped == ["steps"] * 3 and found.steps.tolist() == [20] * 3
    assert torch.equal(found.best()[1], found.history.max(1).values)
    torch.testing.assert_close(
        (encode(table.weight[found.best()[0]]) * goals).sum(-1), found.best()[1], rtol=0, atol=1e-6
    )
    assert torch.equal(run(tiny_clip, pictures, count=1).history[:, 0], found.history[:, 0])


UPDATES = {"the defaults": {}, "no decay": {"weight_decay": 0.0}, "much": {"weight_decay": 3.0}, "slow": {"lr": 0.02}}


@pytest.mark.parametrize("update", UPDATES)
def test_search_is_the_plain_loop_to_the_bit(tiny_clip, pictures, update):
    """With the same lr and weight_decay; and not with the others', whose prompts differ."""
    table, start, encode, goals = setting(tiny_clip, pictures, 3)
    found = run(tiny_clip, pictures, **UPDATES[update])
    for name, settings in UPDATES.items():
        opt = PEZ(table.weight[start].clone(), table, **settings)
        steps = list(pez_steps(opt, encode, TargetSimilarity(goals), 20))
        scores = torch.stack([step.score for step in steps], 1)
        best = torch.stack([steps[k].ids[row] for row, k in enumerate(scores.argmax(1).tolist())])
        assert torch.equal(found.history, scores) == (name == update), name
        assert torch.equal(found.best()[0], best) == (name == update), name


@pytest.mark.parametrize("update", [{"weight_decay": 0.0}, {"weight_decay": 3.0}, {"lr": 0.02}], ids=str)
def test_the_options_of_the_update_reach_the_search(tiny_clip, pictures, update):
    """`invert` gives the scores of the plain loop, to the bit, and others than with the defaults."""
    words = "a red apple on blue"
    start = torch.tensor([tiny_clip.vocabulary.encode(words)])
    options = {"prompt_len": start.shape[1], "init": words, "steps": 20, "polish": 0}
    found = pez_fast.invert(pictures[0], tiny_clip, **options, **update)
    table = tiny_clip.table("stable", ())
    goals = weighted_goal(tiny_clip.encode_images(pictures[:1]))[None]
    opt = PEZ(table.weight[start].clone(), table, **update)
    steps = pez_steps(opt, tiny_clip.text_encoder(start.shape[1]), TargetSimilarity(goals), 20)
    assert found.history == [float(step.score) for step in steps]
    assert found.history != pez_fast.invert(pictures[0], tiny_clip, **options).history


def test_one_update_is_scored_after_it(tiny_clip, pictures):
    found = run(tiny_clip, pictures, count=1)
    assert found.history.shape == (3, 2) and (found.best()[1] == found.history.max(1).values).all()


def test_patience_ends_each_prompt_on_its_own(tiny_clip, pictures):
    long = run(tiny_clip, pictures, rows=4, count=150)
    found = run(tiny_clip, pictures, rows=4, count=150, patience=8, every=1)
    assert "patience" in found.stopped and (found.steps < 150).any()
    for row in range(4):
        history, end = long.history[row], int(found.steps[row])
        best = int(history[: end + 1].argmax())
        assert end - best == 8 or end == 150
        assert found.best()[1][row] == history[best]


def test_callback_sees_progress_and_can_end_it(tiny_clip, pictures):
    seen = []
    found = run(tiny_clip, pictures, count=10, every=4, callback=lambda s: seen.append(s.number - 1))
    assert seen == [0, 4, 8, 10] and found.stopped == ["steps"] * 3
    found = run(tiny_clip, pictures, count=10, every=4, callback=lambda s: s.number >= 5)
    assert found.number == 5 and found.stopped == ["callback"] * 3 and found.history.shape == (3, 5)


def test_interrupt_returns_the_best_so_far(tiny_clip, pictures):
    def interrupt(state):
        if state.number == 7:
            raise KeyboardInterrupt

    found = run(tiny_clip, pictures, count=100, every=3, callback=interrupt)
    assert found.stopped == ["interrupt"] * 3 and found.number == 7
    assert torch.equal(found.best()[1], found.history.max(1).values)


def test_an_error_in_a_callback_is_not_swallowed(tiny_clip, pictures):
    with pytest.raises(ZeroDivisionError):
        run(tiny_clip, pictures, callback=lambda s: 1 / 0)


def test_weighted_goal():
    targets = torch.nn.functional.normalize(normal(seeded("weighted goal"), 3, 8), dim=-1)
    torch.testing.assert_close(weighted_goal(targets), targets.mean(0))
    torch.testing.assert_close(weighted_goal(targets, [2, -1, 0]), (2 * targets[0] - targets[1]) / 3)
    for bad in ([1], [0, 0, 0], [float("nan"), 1, 1]):
        with pytest.raises(ValueError, match="weights must be"):
            weighted_goal(targets, bad)
