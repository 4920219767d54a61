"""All prompts that one stage moves together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pez_fast._shared.devices import graphs_are_possible, out_of_memory
from pez_fast.engine.evaluate import BatchLimit, Evaluator, Joined
from pez_fast.engine.protocols import Outputs
from pez_fast.engine.state import SearchState, Stage
from pez_fast.table import TokenTable

WARMUP_STEPS = 3  # eager steps before a step is captured


class Batch:
    """The prompts of several requests in one stage, in one state of the stage's method.

    No operation of a step waits for the device. On a GPU, a step is captured as a CUDA graph if the method allows it.

    Attributes:
        searches: the searches in the batch, in the order of their rows; only `add` and `drop` change the list.
    """

    def __init__(
        self,
        stage: Stage,
        table: TokenTable,
        model: Callable[..., Outputs],
        limit: BatchLimit,
    ) -> None:
        self.stage, self.table, self.model, self.limit = stage, table, model, limit
        self._stochastic: bool = getattr(model, "stochastic", False)
        self._held_out: Callable[..., Outputs] | None = getattr(model, "held_out", None)
        self.searches: list[SearchState] = []
        self._state: Any = None
        capturable = getattr(stage.method, "capturable", None)
        self._capture = (
            graphs_are_possible(table.device)
            and capturable is not None
            and capturable(table.device)
            and not self._stochastic
        )
        self._rebuild()

    @property
    def rows(self) -> int:
        """The number of prompts that are still learned."""
        return sum(len(search.rows) for search in self.searches)

    def add(self, search: SearchState) -> None:
        """Adds the prompts of a search behind those that are in the batch."""
        state = self.stage.method.init(search.request.init_ids, self.table, search.request.seed)
        self._state = state if self._state is None else self._state.join(state)
        self.searches.append(search)
        self._rebuild()

    def drop(self, active: list[list[bool]]) -> list[SearchState]:
        """Keeps the active prompts and ends the others.

        Args:
            active: for each search, a flag for each of its rows.

        Returns:
            The searches that have no row left; the batch drops them.
        """
        flags = [flag for row_flags in active for flag in row_flags]
        self._keep_soft(active)
        self._state = self._state.select(_indices(flags, self.table.device)) if any(flags) else None
        for search, row_flags in zip(self.searches, active, strict=True):
            search.select(_indices(row_flags, self.table.device))
        ended = [search for search in self.searches if not len(search.rows)]
        self.searches = [search for search in self.searches if len(search.rows)]
        self._rebuild()
        return ended

    def _keep_soft(self, active: list[list[bool]]) -> None:
        """Keeps the soft prompts of the rows that end, if the method has some to keep."""
        if not getattr(self.stage.method, "keeps_state", False):
            return
        soft = self._state.soft_prompts().split([len(row_flags) for row_flags in active])
        for search, row_flags, part in zip(self.searches, active, soft, strict=True):
            ending = _indices([not flag for flag in row_flags], self.table.device)
            search.keep_soft(ending, part[ending])

    def _rebuild(self) -> None:
        """Forgets the captured step and joins the objectives anew, after the rows have changed."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0
        objective = Joined([(search.objective, len(search.rows)) for search in self.searches])
        held_out = self._held_out is not None
        self._evaluate = Evaluator(self.table, self.model, objective, self.limit, held_out)
        self._score = Evaluator(self.table, self._held_out, objective, self.limit) if self._held_out else None

    def advance(self, steps: int) -> None:
        """Makes so many steps of every search; if all searches end with the last step, it makes no update."""
        for _ in range(steps):
            last = all(search.steps_left == 1 for search in self.searches)
            if last or not self._capture or self._eager_steps < WARMUP_STEPS or not self._replay():
                self._step(update=not last)
                self._eager_steps += 1
            for search in self.searches:
                search.step += 1

    def _step(self, update: bool = True) -> None:
        """Makes one step of all prompts and records their scores."""
        sizes = [len(search.rows) for search in self.searches]
        if self._stochastic:
            drawn = [[search.request.seed, search.step] for search in self.searches]
            self._evaluate.draws = torch.tensor(drawn).repeat_interleave(torch.tensor(sizes), dim=0)
        evaluation = self.stage.method.step(self._state, self._evaluate, update)
        scores = evaluation.score if self._score is None else self._held_out_scores(evaluation.ids, self._score)
        for search, ids, score in zip(self.searches, evaluation.ids.split(sizes), scores.split(sizes), strict=True):
            search.record(ids, score)

    def _held_out_scores(self, ids: Tensor, score: Evaluator) -> Tensor:
        """Returns the scores (R,) of prompts ids (R, L) on held-out examples, NaN for searches that are not due."""
        every: int = self.model.held_out_every  # type: ignore[attr-defined]
        due = [search.step % every == 0 or search.steps_left == 1 for search in self.searches]
        flags = [flag for search, flag in zip(self.searches, due, strict=True) for _ in search.rows]
        rows = _indices(flags, ids.device)
        scores = torch.full((len(ids),), torch.nan, dtype=self.searches[0].scores.dtype, device=ids.device)
        if len(rows):
            scores[rows] = score(ids[rows], owner=rows).score.to(scores.dtype)
        return scores

    def _replay(self) -> bool:
        """Replays one step as a CUDA graph, captured at the first call; False if memory does not suffice for it."""
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._step()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self._capture = False
                return False
            self._graph = graph
        self._graph.replay()
        return True


def _indices(flags: list[bool], device: torch.device) -> Tensor:
    """Returns the indices of the true flags, int64 on the device."""
    return torch.tensor(flags, dtype=torch.bool).nonzero()[:, 0].to(device)
