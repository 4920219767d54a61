"""Which prompts are learned when: in batches whose places are filled again as they become free, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pez_fast.engine.batch import Batch
from pez_fast.engine.evaluate import BatchLimit
from pez_fast.engine.protocols import Outputs
from pez_fast.engine.state import OnProgress, Request, SearchState, Stage, fetch
from pez_fast.table import TokenTable

NextRequest = Callable[[int], Request | None]  # up to so many prompts, one target's at least; None: there are no more

_PATIENCE_EVERY = 8  # steps between looks at which prompts are finished


class Scheduler:
    """Learns prompts in batches, through stages of several methods.

    Every prompt is learned as if it were alone: no result depends on what shares its batch. A new request is taken when at
    least half of the places are free. A later stage runs before an earlier one goes on.

    Args:
        model: embeddings (R, L, d) and ids (R, L) -> outputs, each row's independent of the others.
        next_request: gives the targets that wait.
        stages: each begins at the best prompts of the one before.
        limit: how many prompts are learned at once, at least `prompts_per_target`.
        patience: a prompt's stage ends after so many steps without improvement.
        every: steps of the first stage between two calls of `on_progress`, which sees every step of the others.
        on_progress: called with the searches in work, those of the latest stage first; True ends all.

    Attributes:
        stop_reason: why all was ended before its time: "callback" or "interrupt".
    """

    def __init__(
        self,
        table: TokenTable,
        model: Callable[[Tensor, Tensor], Outputs],
        next_request: NextRequest,
        stages: Sequence[Stage],
        limit: BatchLimit,
        *,
        prompts_per_target: int = 1,
        patience: int | None = None,
        seed: int = 0,
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
        self.batches = [Batch(stage, table, model, limit, seed) for stage in stages]
        self.stop_reason: str | None = None
        self._exhausted = False

    @property
    def searches(self) -> list[SearchState]:
        """In work, those of the latest stage first."""
        return [search for batch in reversed(self.batches) for search in batch.searches]

    def run(self) -> Iterator[SearchState]:
        """Searches in their last stage, each when all of its prompts have ended; after Ctrl-C those in work too."""
        while True:
            self._fill()
            batch = next((b for b in reversed(self.batches) if b.searches), None)
            if batch is None:
                return
            try:
                batch.advance(self._steps_to_next_look(batch))
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
        """Take requests if at least half of the places are free and no later stage has work."""
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
        return self.every if batch is self.batches[0] else 1

    def _steps_to_next_look(self, batch: Batch) -> int:
        """Steps after which somebody wants to look, or a search has had all."""
        wanted = [s.steps_left for s in batch.searches]
        if self.on_progress is not None:  # after the steps 1, 1 + every, …: where 0, every, … updates have been made
            period = self._period(batch)
            wanted += [period - (s.step - 1) % period for s in batch.searches]
        if self.patience is not None:
            wanted += [_PATIENCE_EVERY - s.step % _PATIENCE_EVERY for s in batch.searches]
        return min(wanted)

    def _report(self, batch: Batch) -> bool:
        """Call `on_progress` where it is time; whether it asks for the end."""
        period = self._period(batch)
        begun = 1 if batch is self.batches[0] else 2  # a later stage evaluates first what is known already
        due = any(s.step >= begun and ((s.step - 1) % period == 0 or not s.steps_left) for s in batch.searches)
        return self.on_progress is not None and due and self.on_progress(self.searches) is True

    def _end_finished(self, batch: Batch) -> list[SearchState]:
        """End the prompts that are finished, and go on without them where they are half of the batch; the searches that ended."""
        active = [[True] * len(s.rows) for s in batch.searches]
        if self.patience is not None:
            active = fetch([s.active for s in batch.searches])
        for search, own in zip(batch.searches, active, strict=True):
            search.end(own, None if search.steps_left else "steps")
        active = [[False] * len(own) if s.finished else own for s, own in zip(batch.searches, active, strict=True)]
        if all(map(any, active)) and 2 * sum(map(sum, active)) > batch.rows:
            return []
        return batch.drop(active)

    def _stop(self, reason: str) -> list[SearchState]:
        """End all that is in work."""
        self.stop_reason, ended = reason, []
        for batch in self.batches:
            if batch.searches:
                active = fetch([s.active for s in batch.searches])
                for search, own in zip(batch.searches, active, strict=True):
                    search.end(own, reason if search.steps_left else "steps")
                ended += batch.drop([[False] * len(own) for own in active])
        return ended
