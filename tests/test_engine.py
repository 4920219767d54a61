"""The search against the plain loop, step by step, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from inputs import normal, seeded

import pez_fast
from pez_fast import reference
from pez_fast.config import SearchConfig
from pez_fast.engine import BatchLimit, Evaluator, Request, Scheduler, Stage
from pez_fast.methods import PEZMethod
from pez_fast.objectives import Similarity, weighted_target
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable


class Recorded(Similarity):
    """A `Similarity` that records the ids that it sees."""

    def __init__(self, targets, seen):
        super().__init__(targets)
        self.seen = seen

    def __call__(self, outputs, ids):
        self.seen.append(ids)
        return super().__call__(outputs, ids)

    def select(self, rows):
        return Recorded(self.targets[rows], self.seen)


def setting(clip, images, rows, prompt_len=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    init_ids = torch.randint(49408, (rows, prompt_len), generator=generator)
    targets = weighted_target(clip.encode_images(images[:3]))[None].expand(rows, -1)
    return TokenTable(clip.embedding), init_ids, clip.bind(prompt_len), targets


def run(clip, images, rows=3, num_steps=20, every=50, callback=None, patience=None, seen=None, seed=0, length=6, **pez):
    """Runs one request through the scheduler, as the tasks, the data sets and the command line do."""
    table, init_ids, model, targets = setting(clip, images, rows, length, seed)
    requests = [Request(tuple(range(rows)), init_ids, Recorded(targets, [] if seen is None else seen))]
    on_progress = None if callback is None else lambda searches: callback(searches[0])
    (found,) = Scheduler(
        table,
        model,
        lambda room: requests.pop() if requests else None,
        [Stage(PEZMethod(**pez), num_steps)],
        BatchLimit(rows, rows),
        patience=patience,
        every=every,
        on_progress=on_progress,
    ).run()
    return found


@pytest.mark.parametrize(("seed", "prompt_len"), [(0, 6), (1, 16)])
def test_ids_equal_those_of_the_plain_loop_for_300_steps(tiny_clip64, images, seed, prompt_len):
    """The search that users run and the oracle have the same ids and scores at every step."""
    clip = tiny_clip64
    _, init_ids, _, _ = setting(clip, images, 1, prompt_len, seed)
    plain = reference.optimize_prompt(
        clip.model, clip.encode_images(images[:3]), prompt_len=prompt_len, steps=300, batch_size=None, start=init_ids
    )
    seen = []
    found = run(clip, images, rows=1, num_steps=300, seen=seen, seed=seed, length=prompt_len)
    assert len(seen) == 301 and torch.equal(torch.stack(seen[:300]), torch.stack(plain.ids))
    scores = torch.tensor(plain.scores, dtype=torch.float64)
    torch.testing.assert_close(found.history[0, :300], scores, rtol=0, atol=1e-9)
    assert len({tuple(i.flatten().tolist()) for i in plain.ids}) > 50  # the prompt moves


def plain_loop(init_ids, table, model, targets, steps, **update):
    """Runs README's loop, with autograd through `PEZ.project`; returns ids and scores of each step."""
    opt = PEZ(table.weight[init_ids].clone(), table, **update)
    objective, found = Similarity(targets), []
    for _ in range(steps + 1):
        hard, ids = opt.project()
        loss, score = objective(model(hard, ids), ids)
        found.append((ids, score))
        loss.sum().backward()
        opt.step()
        opt.zero_grad()
    return found


def test_search_keeps_each_prompts_best_the_last_projection_included(tiny_clip, images):
    table, _, model, targets = setting(tiny_clip, images, 3)
    found = run(tiny_clip, images)
    assert found.history.shape == (3, 21) and found.stop_reason == ["steps"] * 3 and found.steps.tolist() == [20] * 3
    ids, score, rows = found.best_rows()
    assert torch.equal(score, found.history.max(1).values) and rows.tolist() == [0, 1, 2]
    features = model(table.weight[ids], ids)["features"]
    torch.testing.assert_close((features * targets).sum(-1), score, rtol=0, atol=1e-6)
    assert torch.equal(run(tiny_clip, images, num_steps=1).history[:, 0], found.history[:, 0])


UPDATES = {"the defaults": {}, "no decay": {"weight_decay": 0.0}, "much": {"weight_decay": 3.0}, "slow": {"lr": 0.02}}


@pytest.mark.parametrize("update", UPDATES)
def test_search_is_the_plain_loop_to_the_bit(tiny_clip, images, update):
    """The prompts equal those of the loop with the same lr and weight_decay, and differ from the others'."""
    setup = setting(tiny_clip, images, 3)
    found = run(tiny_clip, images, **UPDATES[update])
    for name, settings in UPDATES.items():
        steps = plain_loop(setup[1], setup[0], *setup[2:], 20, **settings)
        scores = torch.stack([score for _, score in steps], 1)
        best = torch.stack([steps[k][0][row] for row, k in enumerate(scores.argmax(1).tolist())])
        assert torch.equal(found.history, scores) == (name == update), name
        assert torch.equal(found.best_rows()[0], best) == (name == update), name


@pytest.mark.parametrize("update", [{"weight_decay": 0.0}, {"weight_decay": 3.0}, {"lr": 0.02}], ids=str)
def test_the_options_of_the_update_reach_the_search(tiny_clip, images, update):
    """`invert` gives the plain loop's scores to the bit, and other scores than with the defaults."""
    words = "a red apple on blue"
    start = torch.tensor([tiny_clip.vocabulary.encode(words)])
    options = {"prompt_len": start.shape[1], "init": words, "steps": 20, "refine": 0}
    found = pez_fast.invert(images[0], tiny_clip, **options, **update)
    table, targets = tiny_clip.table("stable", ()), weighted_target(tiny_clip.encode_images(images[:1]))[None]
    steps = plain_loop(start, table, tiny_clip.bind(start.shape[1]), targets, 20, **update)
    assert found.history == [float(score) for _, score in steps]
    assert found.history != pez_fast.invert(images[0], tiny_clip, **options).history


def test_one_update_is_scored_after_it(tiny_clip, images):
    found = run(tiny_clip, images, num_steps=1)
    assert found.history.shape == (3, 2) and (found.best_rows()[1] == found.history.max(1).values).all()


def test_patience_ends_each_prompt_on_its_own(tiny_clip, images):
    long = run(tiny_clip, images, rows=4, num_steps=150)
    found = run(tiny_clip, images, rows=4, num_steps=150, patience=8, every=1)
    assert "patience" in found.stop_reason and (found.steps < 150).any()
    for row in range(4):
        history, end = long.history[row], int(found.steps[row])
        best = int(history[: end + 1].argmax())
        assert end - best == 8 or end == 150
        assert found.best_rows()[1][row] == history[best]


def test_callback_sees_progress_and_can_end_it(tiny_clip, images):
    seen = []
    found = run(tiny_clip, images, num_steps=10, every=4, callback=lambda s: seen.append(s.step - 1))
    assert seen == [0, 4, 8, 10] and found.stop_reason == ["steps"] * 3
    found = run(tiny_clip, images, num_steps=10, every=4, callback=lambda s: s.step >= 5)
    assert found.step == 5 and found.stop_reason == ["callback"] * 3 and found.history.shape == (3, 5)


def test_interrupt_returns_the_best_so_far(tiny_clip, images):
    def interrupt(state):
        if state.step == 7:
            raise KeyboardInterrupt

    found = run(tiny_clip, images, num_steps=100, every=3, callback=interrupt)
    assert found.stop_reason == ["interrupt"] * 3 and found.step == 7
    assert torch.equal(found.best_rows()[1], found.history.max(1).values)


def test_an_error_in_a_callback_is_not_swallowed(tiny_clip, images):
    with pytest.raises(ZeroDivisionError):
        run(tiny_clip, images, callback=lambda s: 1 / 0)


def test_weighted_target():
    targets = torch.nn.functional.normalize(normal(seeded("weighted goal"), 3, 8), dim=-1)
    torch.testing.assert_close(weighted_target(targets), targets.mean(0))
    torch.testing.assert_close(weighted_target(targets, [2, -1, 0]), (2 * targets[0] - targets[1]) / 3)
    for bad in ([1], [0, 0, 0], [float("nan"), 1, 1]):
        with pytest.raises(ValueError, match="weights must be"):
            weighted_target(targets, bad)


class Scored:
    """An objective whose rows are numbers: a prompt's score is the number of its row."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, outputs, ids):
        return (outputs["features"].sum(-1) * 0 - self.rows), self.rows

    def select(self, rows):
        return Scored(self.rows[rows])


class Failing:
    """A model that runs out of memory when more than `max_rows` prompts come at once."""

    def __init__(self, max_rows, error):
        self.max_rows, self.error, self.sizes = max_rows, error, []

    def __call__(self, embeds, ids):
        self.sizes.append(len(embeds))
        if len(embeds) > self.max_rows:
            raise self.error
        return {"features": embeds.sum(1)}


ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: …")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("gradient", [False, True])
def test_an_evaluation_that_does_not_fit_is_made_in_smaller_chunks(error, gradient):
    table, ids = TokenTable(torch.eye(5)), torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0], [0, 0], [1, 1]])
    model, limit = Failing(2, error), BatchLimit(7, 7)
    found = Evaluator(table, model, Scored(torch.arange(7.0)), limit)(ids, gradient=gradient)
    assert model.sizes == [7, 4, 2, 2, 2, 1] and limit.size(gradient) == 2
    assert found.score.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert (found.gradient is not None) == gradient
    owner = torch.tensor([6, 6, 0, 3, 3, 2, 1])
    assert Evaluator(table, model, Scored(torch.arange(7.0)), limit)(ids, owner=owner).score.tolist() == owner.tolist()


def test_a_single_prompt_that_does_not_fit_and_other_errors_are_raised():
    table, ids = TokenTable(torch.eye(5)), torch.tensor([[0, 1], [1, 2]])
    for error, sizes in ((ERRORS[0], [2, 1]), (RuntimeError("broken"), [2])):
        model = Failing(0, error)
        with pytest.raises(type(error), match=str(error)):
            Evaluator(table, model, Scored(torch.arange(2.0)), BatchLimit(2, 2))(ids)
        assert model.sizes == sizes


def test_an_objective_without_gradient_is_refused_where_one_is_needed():
    class Flat(Scored):
        def __call__(self, outputs, ids):
            return self.rows, self.rows

    evaluate = Evaluator(TokenTable(torch.eye(5)), Failing(9, None), Flat(torch.arange(2.0)), BatchLimit(2, 2))
    ids = torch.tensor([[0, 1], [1, 2]])
    assert evaluate(ids).score.tolist() == [0, 1]
    with pytest.raises(ValueError, match="the loss of Flat does not depend on the embeddings"):
        evaluate(ids, gradient=True)


BAD_PLUGS = [
    ("stages", [], "stages must hold at least one pair of a method and its number of steps; got none"),
    ("stages", [PEZMethod()], "stages must be pairs of a method and its number of steps; got PEZMethod"),
    ("stages", [("pez", 3)], "stages must be pairs of a method and its number of steps; got"),
    ("stages", [(PEZMethod(), 0)], "stages must have positive numbers of steps; got 0"),
    ("terms", [Similarity(torch.ones(1, 2))], "terms must be pairs of a weight and an objective; got"),
    ("terms", [(1.0, "short")], "terms must be pairs of a weight and an objective; got"),
    ("terms", [(float("nan"), Similarity(torch.ones(1, 2)))], "terms must have finite weights; got nan"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), BAD_PLUGS)
def test_bad_stages_and_terms(name, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        SearchConfig(**{name: value})
