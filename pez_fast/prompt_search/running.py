"""The search for prompts, with any model, objective and methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from pez_fast.config import SearchConfig, SearchOptions, config_from, takes_config
from pez_fast.engine import BatchLimit, Joined, Objective, Outputs, PromptModel, Request, Scheduler, SearchState, Stage
from pez_fast.engine.memory import max_batch_size, state_bytes
from pez_fast.methods import GCGMethod, PEZMethod
from pez_fast.models.precision import search_dtype
from pez_fast.objectives import WeightedSum
from pez_fast.prompt_search.candidates import Scorer
from pez_fast.prompt_search.progress import progress_of
from pez_fast.prompt_search.starts import begin, first_ids
from pez_fast.result import PromptResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

K = TypeVar("K")
NOT_BEGUN = "the search was ended before this target was begun"
NOT_FINITE = "no prompt has a finite score for this target"
_MIN_KEPT = 4  # the least number of prompts that the first stage keeps for the final choice


@takes_config
def search(
    objective: Objective,
    model: PromptModel,
    count: int | None = None,
    inits: Sequence[str | None] | None = None,
    **options: Unpack[SearchOptions],
) -> list[PromptResult]:
    """Searches for one prompt for each row of an objective, in batches that fit into memory.

    No result depends on the other rows. The tasks call this function; it takes any model and any objective:

        search(Similarity(targets), model, steps=500)

    Args:
        objective: an objective with a row for each target; see `pez_fast.engine.Objective`.
        model: a model such as `load_clip` returns; see `pez_fast.engine.PromptModel`.
        count: the number of targets. Default: `len(objective)`, or 1 if it has no length.
        inits: a text for each target, in place of the option `init`; None for random tokens.

    Returns:
        A list of `PromptResult`, in the order of the rows. After Ctrl-C it holds the best prompts so far. A target
        without a finite score, or one that was not begun, has `error` set.

    Raises:
        ValueError, TypeError: an option cannot be used; the message names it.
        torch.OutOfMemoryError, RuntimeError: a single prompt does not fit into memory.
    """
    config = config_from({**options})
    if count is None:
        count = len(objective) if isinstance(objective, Sized) else 1
    results: list[PromptResult | None] = [None] * count
    if inits is not None and len(inits) != count:
        raise ValueError(f"inits must hold a text for each of the {count} targets; got {len(inits)}")
    prompt_search = PromptSearch(model, config)
    starts = None if inits is None else dict(enumerate(inits))

    def on_progress(searches: Sequence[SearchState]) -> object:
        assert config.callback is not None
        return config.callback(progress_of(prompt_search.stages, prompt_search.bound, results, searches))

    watched = on_progress if config.callback else None
    for found in prompt_search.stream([(range(count), objective)], watched, starts):
        for number, result in found:
            results[number] = result
    reason = prompt_search.stop_reason or "steps"
    missing = partial(PromptResult, seed=config.seed, model=model.name, stop_reason=reason, error=NOT_BEGUN)
    return [result or missing() for result in results]


class PromptSearch:
    """Learns prompts for a stream of targets.

    Args:
        model: see `pez_fast.engine.PromptModel`.
        config: the options.
        max_targets: the most targets that are learned at once. Default: as many as `batch_size` allows.

    Attributes:
        stages: the methods with their numbers of steps.
        stop_reason: why the search ended early: "callback" or "interrupt"; else None.
    """

    def __init__(self, model: PromptModel, config: SearchConfig, max_targets: int | None = None) -> None:
        self.model, self.config = model, config
        self.table = model.table(config.vocabulary, config.banned)  # type: ignore[arg-type]  # a name, or words
        self.dtype = search_dtype(config.dtype, model.dtype, self.table.dim, model.device)
        template = (config.prompt_len, config.prefix, config.suffix)
        self.bound = model.bind(*template, dtype=self.dtype)
        self.scoring_model = self.bound if self.dtype == model.dtype else model.bind(*template)
        self.stages = _stages(config)
        rows = self._max_rows()
        if max_targets is not None:
            rows = min(rows, max_targets * config.restarts)
        self.limit = BatchLimit.of(rows, model.device)
        first_ids(self.table.allowed, model, config, config.seed)  # an `init` that cannot be used is said at once
        self.stop_reason: str | None = None
        self.started = time.monotonic()

    def _max_rows(self) -> int:
        """Returns how many prompts are learned at once: as asked for, or as fit; their states must fit in any case.

        Raises:
            ValueError: the states of one target's prompts do not fit.
        """
        config, device, width = self.config, self.model.device, self.table.dim
        num_steps, top_k = max(s.num_steps for s in self.stages), max(s.top_k for s in self.stages)
        state = state_bytes(config.prompt_len, width, num_steps, top_k, max(4, self.table.dtype.itemsize))
        fit = max_batch_size(device, 2 * state)  # half of what evaluations may take
        if config.restarts > fit:
            raise ValueError(
                f"restarts must be at most {fit}, as many as fit into the free memory with "
                f"{state / 2**20:.2f} MiB each; got {config.restarts}"
            )
        rows = config.batch_size or max_batch_size(device, self.bound.bytes_per_prompt)
        return min(rows, fit)

    def stream(
        self,
        targets: Iterable[tuple[Sequence[K], Objective] | tuple[Sequence[K], Objective, int]],
        on_progress: Callable[[Sequence[SearchState]], object] | None = None,
        inits: Mapping[K, str | None] | None = None,
    ) -> Iterator[list[tuple[K, PromptResult]]]:
        """Yields the results of targets, as (key, result) in groups, when they are finished.

        Args:
            targets: pairs of some targets' keys and an objective with a row for each; a third entry is their seed, in
                place of the options'. The search takes the next pair when it has room.
            on_progress: as for `Scheduler`; True ends the search.
            inits: the text that each target begins at, by key, in place of the option `init`.
        """
        scoring = getattr(self.scoring_model, "held_out", None) or self.scoring_model
        scorer = Scorer(self.bound, scoring, self.table, self.limit, self.config.top_k)
        scheduler = Scheduler(
            self.table,
            self._compiled(),
            _Requests(targets, self.model, self.table.allowed, self.config, inits),
            self.stages,
            self.limit,
            prompts_per_target=self.config.restarts,
            patience=self.config.patience,
            every=self.config.every,
            on_progress=on_progress,
        )
        for last in scheduler.run():
            self.stop_reason = scheduler.stop_reason
            yield list(self._results(last, scorer))
        self.stop_reason = scheduler.stop_reason

    def _compiled(self) -> Callable[..., Outputs]:
        """Returns the model for the search, run through torch.compile if the options say so."""
        if not self.config.compile:
            return self.bound
        if getattr(self.bound, "stochastic", False):
            raise ValueError("compile=True is not for models that run over examples; leave it out")
        ids = first_ids(self.table.allowed, self.model, self.config, self.config.seed).to(self.model.device)
        self.bound(self.table.weight[ids], ids)  # prepares the weights, which torch.compile cannot trace
        compiled = torch.compile(self.bound, dynamic=False)
        # Each number of rows is compiled anew, and only evaluations with a gradient hardly change theirs.
        return lambda embeds, ids: (compiled if embeds.requires_grad else self.bound)(embeds, ids)

    def _results(self, last: SearchState, scorer: Scorer) -> Iterator[tuple[Any, PromptResult]]:
        """Yields the key and the result of each target of a search that has ended."""
        first = last.chain[0]
        history, steps, restarts = first.history, first.steps.tolist(), self.config.restarts
        for k, (key, top) in enumerate(zip(last.request.keys, scorer.best(last), strict=True)):
            if not top:
                yield key, PromptResult(seed=last.request.seed, model=self.model.name, error=NOT_FINITE)
                continue
            for candidate in top:
                candidate.tokens = [self.model.vocabulary.decode([i]).strip() for i in candidate.ids]
            best = top[0]
            row = k * restarts + best.restart
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
                    last.request.seed,
                    best.restart,
                    self.model.name,
                    time.monotonic() - self.started,
                    reason if reason in ("callback", "interrupt") else first.stop_reason[row],
                    tokens=best.tokens,
                    top=top,
                    soft_prompt=None if first.soft_prompts is None else first.soft_prompts[row].cpu(),
                ),
            )


class _Requests:
    """Cuts a stream of targets into requests of at most so many prompts, `restarts` for each target."""

    def __init__(
        self,
        targets: Iterable[tuple[Any, ...]],
        model: PromptModel,
        allowed: Tensor,
        config: SearchConfig,
        inits: Mapping[Any, str | None] | None = None,
    ) -> None:
        self._groups, self._model, self._allowed, self._config = iter(targets), model, allowed, config
        self._inits = inits
        self._left: tuple[Sequence[Any], Objective, int] | None = None  # what did not fit into the room

    def __call__(self, room: int) -> Request | None:
        """Returns a request for the next targets, of several groups of one seed if one does not fill the room.

        At the end it returns None.
        """
        keys: list[Any] = []
        parts: list[tuple[Objective, int]] = []
        seed = self._config.seed
        max_targets = max(1, room // self._config.restarts)
        while len(keys) < max_targets and (group := self._next()) is not None:
            group_keys, objective, group_seed = group
            if keys and group_seed != seed:
                self._left = group
                break
            seed, count = group_seed, min(max_targets - len(keys), len(group_keys))
            keys += group_keys[:count]
            parts.append((self._rows(objective, 0, count, self._config.restarts), count * self._config.restarts))
            if count < len(group_keys):
                self._left = group_keys[count:], self._rows(objective, count, len(group_keys)), seed
        if not keys:
            return None
        texts = None if self._inits is None else [self._inits[key] for key in keys]
        init_ids = begin(self._allowed, self._model, self._config, seed, len(keys), texts)
        return Request(tuple(keys), init_ids.to(self._model.device), self._with_terms(parts), seed)

    def _next(self) -> tuple[Sequence[Any], Objective, int] | None:
        """Returns the next group with its seed, or None."""
        if self._left is not None:
            left, self._left = self._left, None
            return left
        group = next(self._groups, None)
        return None if group is None else (group[0], group[1], group[2] if len(group) > 2 else self._config.seed)

    def _rows(self, objective: Objective, start: int, stop: int, repeats: int = 1) -> Objective:
        """Returns the objective of the targets from `start` to `stop`, with each row repeated."""
        return objective.select(torch.arange(start, stop, device=self._model.device).repeat_interleave(repeats))

    def _with_terms(self, parts: list[tuple[Objective, int]]) -> Objective:
        """Returns the joined objective of the parts, with the terms of the options added."""
        objective = parts[0][0] if len(parts) == 1 else Joined(parts)
        if not self._config.terms:
            return objective
        return WeightedSum([(1.0, objective), *self._config.terms])


def _stages(config: SearchConfig) -> list[Stage]:
    """Returns the stages; the first keeps more prompts, for the final choice by their text."""
    chosen = config.stages
    if chosen is None:
        pez = PEZMethod(config.lr, config.weight_decay, config.impl)
        chosen = [(pez, config.steps), *([(GCGMethod(), config.refine)] if config.refine else [])]
    return [
        Stage(method, num_steps, max(1 if k else _MIN_KEPT, config.top_k))
        for k, (method, num_steps) in enumerate(chosen)
    ]
