"""The choice among the prompts that a search met: by the model's own score of their text."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast.engine import BatchLimit, BoundModel, Evaluator, SearchState
from pez_fast.result import Candidate
from pez_fast.table import TokenTable


class Scorer:
    """Scores the prompts of targets as a user gets them.

    Args:
        bound: writes prompts out. scoring_model: the model as it was loaded, which scores their ids.
        top_k: how many of each target are given.
    """

    def __init__(
        self, bound: BoundModel, scoring_model: BoundModel, table: TokenTable, limit: BatchLimit, top_k: int
    ) -> None:
        self.bound, self.scoring_model, self.table, self.limit, self.top_k = bound, scoring_model, table, limit, top_k

    @torch.no_grad()
    def best(self, last: SearchState) -> list[list[Candidate]]:
        """The best different prompts of each target over all stages, by the score of their text."""
        texts = _pool(last, self.bound)
        flat = [(k, text, ids, restart) for k, own in enumerate(texts) for text, (ids, restart) in own.items()]
        found: list[list[Candidate]] = [[] for _ in texts]
        if not flat:
            return found
        device = self.table.device
        targets = torch.tensor([k for k, *_ in flat], device=device)
        tokens = torch.stack([ids for *_, ids, _ in flat]).to(device)
        rows = len(last.request.init_ids) // len(texts)
        objective = last.request.objective.select(targets * rows)
        _, text_scores = objective(self.bound.from_text([text for _, text, *_ in flat]), tokens)
        ids_scores = Evaluator(self.table, self.scoring_model, objective, self.limit)(tokens).score
        for (k, text, ids, restart), by_ids, by_text in zip(
            flat, ids_scores.tolist(), text_scores.tolist(), strict=True
        ):
            found[k].append(Candidate(text, ids.tolist(), by_ids, by_text, restart))
        return [sorted(own, key=lambda one: -one.text_score)[: self.top_k] for own in found]


def _pool(last: SearchState, bound: BoundModel) -> list[dict[str, tuple[Tensor, int]]]:
    """Of each target, the texts of the prompts that its stages kept, first stage first, with their ids and restarts."""
    texts: list[dict[str, tuple[Tensor, int]]] = [{} for _ in last.request.keys]
    restarts: list[int] = []  # of each row of the stage
    for stage in last.chain:
        if stage.previous is None:
            restarts = list(range(len(stage.best_ids) // len(texts))) * len(texts)
        else:
            restarts = [restarts[row] for row in stage.previous.best_rows()[2].tolist()]
        each = len(stage.best_ids) // len(texts)
        for row, kept in enumerate(stage.best_ids.cpu()):
            for ids in kept:
                if ids[0] >= 0:
                    texts[row // each].setdefault(bound.text(ids.tolist()), (ids, restarts[row]))
    return texts
