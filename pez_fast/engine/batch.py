"""All prompts that one stage steps at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pez_fast.engine.evaluate import BatchLimit, Evaluator, Joined
from pez_fast.engine.memory import out_of_memory
from pez_fast.engine.protocols import Outputs
from pez_fast.engine.state import SearchState, Stage
from pez_fast.table import TokenTable

WARM = 3  # steps made before one is captured


class Batch:
    """The prompts of several requests in one stage, one behind another, as one state of the stage's method.

    Nothing in a step waits for the device. On a GPU a step is captured as a CUDA graph where the method can be.

    Attributes:
        searches: what is learned; nothing but `add` and `drop` changes it.
    """

    def __init__(
        self,
        stage: Stage,
        table: TokenTable,
        model: Callable[[Tensor, Tensor], Outputs],
        limit: BatchLimit,
        seed: int,
    ) -> None:
        self.stage, self.table, self.model, self.limit, self.seed = stage, table, model, limit, seed
        self.searches: list[SearchState] = []
        self._state: Any = None
        asked = getattr(stage.method, "capturable", None)
        self._capture = table.device.type == "cuda" and asked is not None and asked(table.device)
        self._changed()

    @property
    def rows(self) -> int:
        """Prompts that are still learned."""
        return sum(len(search.rows) for search in self.searches)

    def add(self, search: SearchState) -> None:
        state = self.stage.method.init(search.request.init_ids, self.table, self.seed)
        self._state = state if self._state is None else self._state.join(state)
        self.searches.append(search)
        self._changed()

    def drop(self, active: list[list[bool]]) -> list[SearchState]:
        """Learn only the active prompts further; gives the searches that have none."""
        flags = [flag for own in active for flag in own]
        self._state = self._state.select(_indices(flags, self.table.device)) if any(flags) else None
        for search, own in zip(self.searches, active, strict=True):
            search.select(_indices(own, self.table.device))
        out = [search for search in self.searches if not len(search.rows)]
        self.searches = [search for search in self.searches if len(search.rows)]
        self._changed()
        return out

    def _changed(self) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0
        objective = Joined([(search.objective, len(search.rows)) for search in self.searches])
        self._evaluate = Evaluator(self.table, self.model, objective, self.limit)

    def advance(self, steps: int) -> None:
        """So many steps of every search; the last step of one that ends with them makes no update."""
        for _ in range(steps):
            last = all(search.steps_left == 1 for search in self.searches)
            if last or not self._capture or self._eager_steps < WARM or not self._replay():
                self._step(update=not last)
                self._eager_steps += 1
            for search in self.searches:
                search.step += 1

    def _step(self, update: bool = True) -> None:
        found = self.stage.method.step(self._state, self._evaluate, update)
        sizes = [len(search.rows) for search in self.searches]
        for search, ids, score in zip(self.searches, found.ids.split(sizes), found.score.split(sizes), strict=True):
            search.record(ids, score)

    def _replay(self) -> bool:
        """One step as a CUDA graph, captured when it is first wanted; False where memory does not suffice for that."""
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
    return torch.tensor(flags, dtype=torch.bool).nonzero()[:, 0].to(device)
