"""Which prompts are learned when: stage by stage, in batches that take new targets when places become free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from pez_fast._shared.devices import fetch
from pez_fast.engine.batch import Batch
from pez_fast.engine.evaluate import BatchLimit
from pez_fast.engine.protocols import Outputs
from pez_fast.engine.state import OnProgress, Request, SearchState, Stage
from pez_fast.table import TokenTable

NextRequest = Callable[[int], Request | None]  # for at most so many prompts; None: no target is left

_PATIENCE_EVERY = 8  # steps between two checks of which prompts have run out of patience


class Scheduler:
    """Learns prompts in batches, through the stages of a search.

    A prompt's result does not depend on the prompts that share its batch. The scheduler takes a new request when at
    least half of the places are free. A later stage runs before an earlier one goes on.

    Args:
        table: the tokens that may be learned.
        model: a function of embeddings (R, L, d) and ids (R, L) that returns outputs; a row must not depend on others.
        next_request: returns the next waiting targets, at most so many prompts (but at least one target's), or None.
        stages: the stages in order; each begins at the best prompts of the one before.
        limit: how many prompts are learned at once; at least `prompts_per_target`.
        prompts_per_target: prompts that are learned for each target.
        patience: a prompt's stage ends after so many steps without improvement; None: never.
        every: steps of the first stage between two calls of `on_progress`; a later stage calls it after every step.
        on_progress: a function that is called with the running searches, those of the latest stage first; True ends
            the run.

    Attributes:
        stop_reason: why the run ended early: "callback" or "interrupt"; else None.
    """

    def __init__(
        self,
        table: TokenTable,
        model: Callable[..., Outputs],
        next_request: NextRequest,
        stages: Sequence[Stage],
        limit: BatchLimit,
        *,
        prompts_per_target: int = 1,
        patience: int | None = None,
        every: int = 50,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.table, self.next_request, self.limit = table, next_request, limit
        self.prompts_per_target, self.patience, self.every, self.on_progress = (
            prompts_per_target,
            patience,
            every,
            on_progress,
        )
        self.batches = [Batch(stage, table, model, limit) for stage in stages]
        self.stop_reason: str | None = None
        self._exhausted = False

    @property
    def searches(self) -> list[SearchState]:
        """The running searches, those of the latest stage first."""
        return [search for batch in reversed(self.batches) for search in batch.searches]

    def run(self) -> Iterator[SearchState]:
        """Yields each search of the last stage when all its prompts have ended; after Ctrl-C, the running ones too."""
        while True:
            self._fill()
            batch = next((b for b in reversed(self.batches) if b.searches), None)
            if batch is None:
                return
            try:
                batch.advance(self._steps_to_next_check(batch))
                ended = self._stop("callback") if self._report(batch) else self._end_finished(batch)
            except KeyboardInterrupt:
                if not any(search.step or search.previous for search in self.searches):
                    raise
                ended = self._stop("interrupt")
            if self.stop_reason or batch is self.batches[-1]:
                yield from (search for search in ended if search.step or search.previous)
                continue
            later = self.batches[self.batches.index(batch) + 1]
            for search in ended:
                later.add(search.next(later.stage))

    def _fill(self) -> None:
        """Takes requests if at least half of the places are free and no later stage has prompts."""
        first, capacity = self.batches[0], max(self.limit.rows, self.prompts_per_target)
        while not (self.stop_reason or self._exhausted or any(batch.searches for batch in self.batches[1:])):
            if first.rows and (2 * first.rows > capacity or first.rows + self.prompts_per_target > capacity):
                return
            request = self.next_request(capacity - first.rows)
            if request is None:
                self._exhausted = True
                return
            dtype = torch.promote_types(self.table.dtype, torch.float32)
            first.add(SearchState(request, first.stage, dtype, self.patience))

    def _period(self, batch: Batch) -> int:
        """Returns the number of steps between two calls of `on_progress` in this batch."""
        return self.every if batch is self.batches[0] else 1

    def _steps_to_next_check(self, batch: Batch) -> int:
        """Returns the number of steps until `on_progress` or patience is due or a search has made all its steps."""
        steps = [s.steps_left for s in batch.searches]
        if self.on_progress is not None:  # after the steps 1, 1 + every, …, which follow 0, every, … updates
            period = self._period(batch)
            steps += [period - (s.step - 1) % period for s in batch.searches]
        if self.patience is not None:
            steps += [_PATIENCE_EVERY - s.step % _PATIENCE_EVERY for s in batch.searches]
        return min(steps)

    def _report(self, batch: Batch) -> bool:
        """Calls `on_progress` if it is due; returns whether it ends the run."""
        period = self._period(batch)
        first_step = (
            1 if batch is self.batches[0] else 2
        )  # a later stage first evaluates prompts whose scores are known
        due = any(s.step >= first_step and ((s.step - 1) % period == 0 or not s.steps_left) for s in batch.searches)
        return self.on_progress is not None and due and self.on_progress(self.searches) is True

    def _end_finished(self, batch: Batch) -> list[SearchState]:
        """Ends the finished prompts, and drops them from the batch if they are at least half of it.

        Returns:
            The searches whose prompts have all ended.
        """
        active = [[True] * len(s.rows) for s in batch.searches]
        if self.patience is not None:
            active = fetch([s.active for s in batch.searches])
        for search, flags in zip(batch.searches, active, strict=True):
            search.end(flags, None if search.steps_left else "steps")
        active = [
            [False] * len(flags) if s.finished else flags for s, flags in zip(batch.searches, active, strict=True)
        ]
        if all(map(any, active)) and 2 * sum(map(sum, active)) > batch.rows:
            return []
        return batch.drop(active)

    def _stop(self, reason: str) -> list[SearchState]:
        """Ends all running searches and returns them."""
        self.stop_reason, ended = reason, []
        for batch in self.batches:
            if batch.searches:
                active = fetch([s.active for s in batch.searches])
                for search, flags in zip(batch.searches, active, strict=True):
                    search.end(flags, reason if search.steps_left else "steps")
                ended += batch.drop([[False] * len(flags) for flags in active])
        return ended
