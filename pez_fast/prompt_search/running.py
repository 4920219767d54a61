"""The search for prompts by any model, objective and methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from pez_fast.config import SearchConfig, SearchOptions, config_from, takes_config
from pez_fast.engine import BatchLimit, Joined, Objective, Outputs, PromptModel, Request, Scheduler, SearchState, Stage
from pez_fast.engine.memory import prompts_at_once
from pez_fast.methods import GCGMethod, PEZMethod
from pez_fast.models.precision import search_dtype
from pez_fast.objectives import WeightedSum
from pez_fast.prompt_search.candidates import Scorer
from pez_fast.prompt_search.progress import progress_of
from pez_fast.result import PromptResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

K = TypeVar("K")
NOT_BEGUN = "the search was ended before this target was begun"
NOT_FINITE = "no prompt has a finite score for this target"
_KEPT = 4  # prompts of the first stage that are kept for the choice at the end, at least


@takes_config
def search(
    objective: Objective, model: PromptModel, count: int | None = None, **options: Unpack[SearchOptions]
) -> list[PromptResult]:
    """One prompt for each row of an objective, each as if alone, in batches that fit into memory.

    The core of the tasks, for any model and any objective:

        search(Similarity(targets), model, steps=500)

    Args:
        objective: of as many rows as there are targets; see `pez_fast.engine.Objective`.
        model: see `pez_fast.engine.PromptModel`; `load_clip` gives one.
        count: the number of targets. Default: `len(objective)`, or 1 where it has none.

    Returns:
        The results in the order of the rows. Ctrl-C returns the best so far; a target without a finite score, or that was
        not begun, has `error` set.

    Raises:
        ValueError, TypeError: an option that cannot be used; the sentence names it.
    """
    config = config_from({**options})
    if count is None:
        count = len(objective) if isinstance(objective, Sized) else 1
    results: list[PromptResult | None] = [None] * count
    running = PromptSearch(model, config)

    def on_progress(searches: Sequence[SearchState]) -> object:
        assert config.callback is not None
        return config.callback(progress_of(running.stages, running.bound, results, searches))

    for found in running.stream([(range(count), objective)], on_progress if config.callback else None):
        for number, result in found:
            results[number] = result
    reason = running.stop_reason or "steps"
    missing = partial(PromptResult, seed=config.seed, model=model.name, stop_reason=reason, error=NOT_BEGUN)
    return [result or missing() for result in results]


class PromptSearch:
    """Learns prompts for a stream of targets.

    Args:
        max_targets: targets learned at once, at most; by default as many as `batch_size` allows.

    Attributes:
        stages: methods and their numbers of steps.
        stop_reason: why the search ended before its time: "callback" or "interrupt".
    """

    def __init__(self, model: PromptModel, config: SearchConfig, max_targets: int | None = None) -> None:
        self.model, self.config = model, config
        self.table = model.table(config.vocabulary, config.banned)
        self.dtype = search_dtype(config.dtype, model.dtype, self.table.dim, model.device)
        template = (config.prompt_len, config.prefix, config.suffix)
        self.bound = model.bind(*template, dtype=self.dtype)
        self.scoring_model = self.bound if self.dtype == model.dtype else model.bind(*template)
        self.init_ids = _init_ids(self.table.allowed, model, config).to(model.device)
        rows = config.batch_size or prompts_at_once(model.device, self.bound.bytes_per_prompt)
        if max_targets is not None:
            rows = min(rows, max_targets * config.restarts)
        self.limit = BatchLimit.of(rows, model.device)
        self.stages = _stages(config)
        self.stop_reason: str | None = None
        self.begun = time.monotonic()

    def stream(
        self,
        targets: Iterable[tuple[Sequence[K], Objective]],
        on_progress: Callable[[Sequence[SearchState]], object] | None = None,
    ) -> Iterator[list[tuple[K, PromptResult]]]:
        """Groups of targets -> their keys with results, in the order and the groups in which they are finished.

        Args:
            targets: the keys of some targets, and the objective with a row for each; asked for when there is room.
            on_progress: called as `Scheduler` says; True ends the search.
        """
        scorer = Scorer(self.bound, self.scoring_model, self.table, self.limit, self.config.top_k)
        scheduler = Scheduler(
            self.table,
            self._compiled(),
            _Requests(targets, self.init_ids, self.config),
            self.stages,
            self.limit,
            prompts_per_target=self.config.restarts,
            patience=self.config.patience,
            seed=self.config.seed,
            every=self.config.every,
            on_progress=on_progress,
        )
        for last in scheduler.run():
            self.stop_reason = scheduler.stop_reason
            yield list(self._results(last, scorer))
        self.stop_reason = scheduler.stop_reason

    def _compiled(self) -> Callable[[Tensor, Tensor], Outputs]:
        if not self.config.compile:
            return self.bound
        self.bound(self.table.weight[self.init_ids], self.init_ids)  # prepares the weights, which cannot be traced
        compiled = torch.compile(self.bound, dynamic=False)
        # Only evaluations with a gradient: their number of rows hardly changes, and each number is compiled anew.
        return lambda embeds, ids: (compiled if embeds.requires_grad else self.bound)(embeds, ids)

    def _results(self, last: SearchState, scorer: Scorer) -> Iterator[tuple[Any, PromptResult]]:
        """The best of what each target's prompts met, over all stages."""
        first = last.chain[0]
        history, steps, each = first.history, first.steps.tolist(), self.config.restarts
        for k, (key, top) in enumerate(zip(last.request.keys, scorer.best(last), strict=True)):
            if not top:
                yield key, PromptResult(seed=self.config.seed, model=self.model.name, error=NOT_FINITE)
                continue
            best = top[0]
            row = k * each + best.restart
            reason = last.stop_reason[k] if last is not first else first.stop_reason[row]
            yield (
                key,
                PromptResult(
                    best.prompt,
                    best.ids,
                    best.ids_score,
                    best.text_score,
                    steps[row],
                    history[row, : steps[row] + 1].tolist(),
                    self.config.seed,
                    best.restart,
                    self.model.name,
                    time.monotonic() - self.begun,
                    reason if reason in ("callback", "interrupt") else first.stop_reason[row],
                    top,
                ),
            )


class _Requests:
    """Targets as they are asked for: so many prompts at once, `restarts` for each target."""

    def __init__(
        self, targets: Iterable[tuple[Sequence[Any], Objective]], init_ids: Tensor, config: SearchConfig
    ) -> None:
        self._groups, self._init_ids, self._config = iter(targets), init_ids, config
        self._left: tuple[Sequence[Any], Objective] | None = None  # of a group that had more than there was room for

    def __call__(self, room: int) -> Request | None:
        """The next targets, of several groups where one does not fill the room."""
        keys: list[Any] = []
        parts: list[tuple[Objective, int]] = []
        most = max(1, room // self._config.restarts)
        while len(keys) < most and (group := self._left or next(self._groups, None)) is not None:
            own, objective = group
            count = min(most - len(keys), len(own))
            keys += own[:count]
            parts.append((self._rows(objective, 0, count, self._config.restarts), count * self._config.restarts))
            self._left = (own[count:], self._rows(objective, count, len(own))) if count < len(own) else None
        if not keys:
            return None
        return Request(tuple(keys), self._init_ids.repeat(len(keys), 1), self._with_terms(parts))

    def _rows(self, objective: Objective, start: int, stop: int, repeats: int = 1) -> Objective:
        return objective.select(torch.arange(start, stop, device=self._init_ids.device).repeat_interleave(repeats))

    def _with_terms(self, parts: list[tuple[Objective, int]]) -> Objective:
        objective = parts[0][0] if len(parts) == 1 else Joined(parts)
        if not self._config.terms:
            return objective
        return WeightedSum([(1.0, objective), *self._config.terms])


def _stages(config: SearchConfig) -> list[Stage]:
    """Methods with their steps. More prompts are kept of the first, for the choice by their text at the end."""
    chosen = config.stages
    if chosen is None:
        pez = PEZMethod(config.lr, config.weight_decay, config.impl)
        chosen = [(pez, config.steps), *([(GCGMethod(), config.refine)] if config.refine else [])]
    return [
        Stage(method, num_steps, max(1 if k else _KEPT, config.top_k)) for k, (method, num_steps) in enumerate(chosen)
    ]


def _init_ids(allowed: Tensor, model: PromptModel, config: SearchConfig) -> Tensor:
    """(restarts, prompt_len) ids, drawn from (seed, restart) alone."""
    ids = allowed.nonzero()[:, 0].cpu()
    drawn = []
    for restart in range(config.restarts):
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + restart) % 2**63)
        drawn.append(ids[torch.randint(len(ids), (config.prompt_len,), generator=generator)])
    start = torch.stack(drawn)
    if config.init is not None:
        given = model.vocabulary.encode(config.init)
        if not 0 < len(given) <= config.prompt_len:
            raise ValueError(
                f"init must be 1 to {config.prompt_len} tokens (prompt_len) long; {config.init!r} has {len(given)}"
            )
        start[:, : len(given)] = torch.tensor(given)
    return start
