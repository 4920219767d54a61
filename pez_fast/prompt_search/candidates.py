"""The final choice among the prompts that a search met, by the model's own score of their text."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast.engine import BatchLimit, BoundModel, Evaluator, SearchState
from pez_fast.result import Candidate
from pez_fast.table import TokenTable


class Scorer:
    """Scores the candidates of targets as text, as a user gets them.

    Args:
        bound: the model of the search, which turns ids into text.
        scoring_model: the model as it was loaded, which scores the ids.
        table: the tokens that may be learned.
        limit: how many prompts are evaluated at once.
        top_k: how many candidates of each target are returned.
    """

    def __init__(
        self, bound: BoundModel, scoring_model: BoundModel, table: TokenTable, limit: BatchLimit, top_k: int
    ) -> None:
        self.bound, self.scoring_model, self.table, self.limit, self.top_k = bound, scoring_model, table, limit, top_k

    @torch.no_grad()
    def best(self, last: SearchState) -> list[list[Candidate]]:
        """Returns the best different prompts of each target over all stages, by falling score of their text."""
        texts = _candidate_texts(last, self.bound)
        flat = [
            (k, text, ids, restart) for k, candidates in enumerate(texts) for text, (ids, restart) in candidates.items()
        ]
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
        for (k, text, ids, restart), ids_score, text_score in zip(
            flat, ids_scores.tolist(), text_scores.tolist(), strict=True
        ):
            found[k].append(Candidate(text, ids.tolist(), ids_score, text_score, restart))
        return [sorted(candidates, key=lambda candidate: -candidate.text_score)[: self.top_k] for candidates in found]


def _candidate_texts(last: SearchState, bound: BoundModel) -> list[dict[str, tuple[Tensor, int]]]:
    """Returns for each target the texts of the prompts that its stages kept, with their ids (L,) and restarts."""
    texts: list[dict[str, tuple[Tensor, int]]] = [{} for _ in last.request.keys]
    restarts: list[int] = []  # the restart of each row of the stage
    for stage in last.chain:
        if stage.previous is None:
            restarts = list(range(len(stage.best_ids) // len(texts))) * len(texts)
        else:
            restarts = [restarts[row] for row in stage.previous.best_rows()[2].tolist()]
        rows_per_target = len(stage.best_ids) // len(texts)
        for row, kept in enumerate(stage.best_ids.cpu()):
            for ids in kept:
                if ids[0] >= 0:
                    texts[row // rows_per_target].setdefault(bound.text(ids.tolist()), (ids, restarts[row]))
    return texts
