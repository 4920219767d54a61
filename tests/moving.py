"""What the tests of methods share: a setting, a search row by row, and the rules that hold for every method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast.engine import BatchLimit, Evaluation, Evaluator
from pez_fast.objectives import Similarity

LENGTH = 5


def setting(clip, images, targets=4):
    """Returns a table, a model of `LENGTH` slots, an objective with a row for each target, and ids to begin at."""
    table = clip.table()
    ids = table.ids[torch.randint(len(table.ids), (targets, LENGTH), generator=torch.Generator().manual_seed(0))]
    return table, clip.bind(LENGTH), Similarity(clip.encode_images(images[:targets])), ids


@dataclass(frozen=True)
class Unscored:
    """An objective without a score, as where the engine scores prompts on held-out examples."""

    objective: Similarity

    def __call__(self, outputs, ids):
        loss, score = self.objective(outputs, ids)
        return loss, torch.full_like(score, torch.nan)

    def select(self, rows):
        return Unscored(self.objective.select(rows))


def walk(method, clip, images, rows, seed=0, steps=4, unscored=False) -> list[Evaluation]:
    """Returns the evaluations of so many steps of some rows of the setting, in a state of their own."""
    table, model, objective, ids = setting(clip, images)
    chosen = torch.tensor(rows)
    wanted = Unscored(objective) if unscored else objective
    evaluate = Evaluator(table, model, wanted.select(chosen), BatchLimit(64, 64))
    state = method.init(ids[chosen], table, seed)
    return [method.step(state, evaluate, update=step < steps - 1) for step in range(steps)]


def assert_rows_move_alone(method, clip, images, values=("ids", "loss", "score", "gradient")) -> None:
    """Asserts that a prompt moves alike alone, in a batch, and beside prompts of other seeds and at other steps.

    One row of seed 0 begins; two of seed 7 join it after two steps, and one of seed 0 after three; then one leaves.
    """
    table, model, objective, ids = setting(clip, images)
    plan = {0: ([0], 0), 2: ([1, 2], 7), 3: ([3], 0)}
    seen: dict[int, list[Evaluation]] = {row: [] for row in range(4)}
    state, order = None, []
    for step in range(6):
        if step in plan:
            rows, seed = plan[step]
            new = method.init(ids[rows], table, seed)
            state, order = (new, rows) if state is None else (state.join(new), order + rows)
        if step == 4:
            state, order = state.select(torch.tensor([0, 2, 3])), [0, 2, 3]
        evaluate = Evaluator(table, model, objective.select(torch.tensor(order)), BatchLimit(64, 64))
        found = method.step(state, evaluate, update=True)
        for place, row in enumerate(order):
            parts = (found.ids, found.loss, found.score, found.gradient)
            seen[row].append(Evaluation(*(part[place].clone() for part in parts)))
    for row, seed in ((0, 0), (1, 7), (2, 7), (3, 0)):
        alone = walk(method, clip, images, [row], seed, len(seen[row]) + 1)
        for a, b in zip(alone[:-1], seen[row], strict=True):
            assert all(torch.equal(getattr(a, name)[0], getattr(b, name)) for name in values), (row, seed)
    batch = walk(method, clip, images, [0, 3], 0, 4)
    for row, place in ((0, 0), (3, 1)):
        for a, b in zip(batch[:3], seen[row], strict=False):
            assert all(torch.equal(getattr(a, name)[place], getattr(b, name)) for name in values)


def assert_scores_are_not_read(method, clip, images) -> None:
    """Asserts that prompts move alike where they have no score."""
    with_scores = walk(method, clip, images, [0, 1], steps=5)
    without = walk(method, clip, images, [0, 1], steps=5, unscored=True)
    assert not torch.equal(with_scores[0].ids, with_scores[-1].ids)
    for a, b in zip(with_scores, without, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.loss, b.loss) and b.score.isnan().all()


def plain_loss(clip, images, row, ids: Tensor, embeds: Tensor | None = None) -> tuple[float, Tensor]:
    """Returns the loss of one prompt ids (L,) for the target `row`, and its gradient (L, d) by the embeddings."""
    table, model, objective, _ = setting(clip, images)
    hard = (table.weight[ids] if embeds is None else embeds)[None].detach().requires_grad_()
    loss, _ = objective.select(torch.tensor([row]))(model(hard, ids[None]), ids[None])
    (gradient,) = torch.autograd.grad(loss.sum(), hard)
    return loss.item(), gradient[0]


class Scripted:
    """An `Evaluate` without a model: it gives the losses of a function of ids (N, L), and gradients of ones."""

    def __init__(self, table, loss) -> None:
        self.table, self.loss = table, loss

    def __call__(self, ids, gradient=False, owner=None, embeds=None):
        loss = self.loss(ids)
        ones = torch.ones(*ids.shape, self.table.dim) if gradient else None
        return Evaluation(ids, loss, torch.full_like(loss, torch.nan), ones)
