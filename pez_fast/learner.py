"""From goals to prompts: the search, its polish, and the choice among what they found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from pez_fast.config import Progress, SearchConfig
from pez_fast.encoders import ClipEncoder
from pez_fast.encoders.precision import search_dtype
from pez_fast.engine import Cohort, Encode, Engine, Part, RowObjective, Settings, polish
from pez_fast.memory import prompts_at_once
from pez_fast.objectives import TargetSimilarity
from pez_fast.result import Candidate, PromptResult
from pez_fast.table import TokenTable

T = TypeVar("T")
NOT_BEGUN = "the search was ended before this target was begun"
NOT_FINITE = "no prompt has a finite score for this target"
ROUND = 13  # updates that take about as long as a round of polishing
_KEPT = 4  # projections of each prompt that are kept for the choice at the end, at least
_SCORED = {
    "cpu": 128,
    "cuda": 4096,
}  # prompts scored at once while polishing: a CPU is fastest where they stay in its caches


def learn(goals: Tensor, clip: ClipEncoder, options: SearchConfig) -> list[PromptResult]:
    """One prompt for each goal (T, D), each as if alone, in batches that fit into memory.

    The core of the tasks, for callers that have features already: `weighted_goal` makes goals of them.
    """
    results: list[PromptResult | None] = [None] * len(goals)
    learner = Learner(clip, options)
    report = partial(_tell, learner, options.callback, results) if options.callback else None
    for found in learner.stream(enumerate(goals), report):
        for number, result in found:
            results[number] = result
    ended = learner.ended or "steps"
    return [r or PromptResult(seed=options.seed, model=clip.name, stopped=ended, error=NOT_BEGUN) for r in results]


@dataclass(frozen=True)
class State:
    """What is being learned.

    Attributes:
        cohorts: in work; the first one may be in its polish.
        polished: rounds of its polish that are made; `better` ids (T, L) and scores (T,) that it has reached.
    """

    cohorts: Sequence[Cohort]
    polished: int = 0
    better: tuple[Tensor, Tensor] | None = None

    def updates(self, cohort: Cohort) -> int:
        """Those that a cohort has behind it; all, where it has been ended."""
        return cohort.settings.count if all(cohort.stopped) else cohort.number - 1


Report = Callable[[State], object]


def _tell(
    learner: Learner, callback: Callable[[Progress], object], results: Sequence[PromptResult | None], state: State
) -> object:
    """Tell a callback of the options, for targets 0, 1, … of which `results` holds what is finished."""
    options, targets = learner.options, len(results)
    shown = {k: (r.prompt, r.ids_score) for k, r in enumerate(results) if r is not None}
    made, rounds = len(shown) * options.steps, len(shown) * options.polish
    for cohort in state.cohorts:
        ids, score, _ = learner.best(cohort)
        if state.better is not None and cohort is state.cohorts[0]:
            ids, score = state.better
            rounds += len(score) * state.polished
        shown |= {
            name: (learner.text(i), s) for name, i, s in zip(cohort.part.names, ids.cpu(), score.tolist(), strict=True)
        }
        made += len(score) * state.updates(cohort)
    prompts, scores = zip(*(shown.get(k, ("", math.nan)) for k in range(targets)), strict=True)
    # As if the updates of all targets were made one after the other.
    return callback(Progress(made // targets, options.steps, list(prompts), list(scores), rounds // targets))


class Learner:
    """Learns prompts for a stream of goals.

    Attributes:
        at_once: prompts learned at once.
        ended: why the search ended before its time: "callback" or "interrupt".
    """

    def __init__(self, clip: ClipEncoder, options: SearchConfig) -> None:
        self.clip, self.options = clip, options
        self.table = clip.table(options.vocabulary, options.banned)
        self.dtype = search_dtype(options.dtype, clip.dtype, self.table.dim, clip.device)
        encoder = (options.prompt_len, options.prefix, options.suffix)
        self.encode = clip.text_encoder(*encoder, dtype=self.dtype)
        self.judge = self.encode if self.dtype == clip.dtype else clip.text_encoder(*encoder)
        self.start = _start(self.table, clip, options).to(clip.device)
        fitting = prompts_at_once(
            clip.device, self.encode.blocks, len(self.encode.ids), self.table.dim, self.dtype.itemsize
        )
        self.at_once = options.batch_size or fitting
        self.ended: str | None = None
        self.begun = time.monotonic()

    def stream(
        self, goals: Iterable[tuple[T, Tensor]], report: Report | None = None
    ) -> Iterator[list[tuple[T, PromptResult]]]:
        """Named goals (D,) -> the same names with results, in the order and the groups in which they are finished.

        Goals are asked for when there is room for them. `report` is called every so many steps; True ends the search.
        """
        options = self.options
        settings = Settings(
            options.steps, options.lr, options.weight_decay, options.patience, max(_KEPT, options.top_k), options.impl
        )

        refused: list[tuple[T, PromptResult]] = []

        def usable() -> Iterator[tuple[T, Tensor]]:
            for name, goal in goals:
                if goal.isfinite().all():
                    yield name, goal
                else:  # it would put an end to the others
                    refused.append((name, self._failed()))

        waiting = usable()

        def take(most: int) -> Part | None:
            taken = list(islice(waiting, max(1, most // options.restarts)))
            if not taken:
                return None
            rows = torch.stack([goal for _, goal in taken]).to(self.clip.device).repeat_interleave(options.restarts, 0)
            return Part(tuple(number for number, _ in taken), self.start.repeat(len(taken), 1), TargetSimilarity(rows))

        engine = Engine(
            self.table,
            self._tower(),
            take,
            settings,
            max(self.at_once, options.restarts),
            options.restarts,
            options.every,
            (lambda cohorts: report(State(cohorts))) if report else None,
        )
        for cohort in engine.run():
            self.ended = engine.ended
            try:
                found = self._results(cohort, engine, report)
            except KeyboardInterrupt:  # while polishing: what there was before it
                self.ended = engine.ended = "interrupt"
                found = self._results(cohort, engine, report)
            yield refused + found
            refused.clear()
        self.ended = engine.ended
        if refused:
            yield refused

    def _tower(self) -> Encode:
        if not self.options.compile:
            return self.encode
        self.encode(self.table.weight[self.start])  # prepares the weights, which cannot be traced
        return torch.compile(self.encode, dynamic=False)

    def text(self, ids: Tensor) -> str:
        parts = (self.options.prefix.strip(), self.clip.vocabulary.decode(ids.tolist()), self.options.suffix.strip())
        return " ".join(t for t in parts if t)

    def best(self, cohort: Cohort) -> tuple[Tensor, Tensor, Tensor]:
        """ids (T, L) and score (T,) of each target's best projection so far, and its place among all that are kept for the target."""
        score, place = cohort.best_score.view(len(cohort.part.names), -1).max(1)
        ids = cohort.best_ids.view(len(score), -1, cohort.best_ids.shape[-1])
        return ids[torch.arange(len(score), device=ids.device), place], score, place

    def _results(self, cohort: Cohort, engine: Engine, report: Report | None) -> list[tuple[Any, PromptResult]]:
        """The best of what each target's prompts met, polished unless the search was ended."""
        options, targets = self.options, len(cohort.part.names)
        if not cohort.number:
            return []  # ended before its first step
        each, keep = options.restarts, cohort.best_ids.shape[1]
        goals = cohort.part.objective.rows(torch.arange(0, targets * each, each, device=self.clip.device))
        ids = cohort.best_ids.view(targets, each * keep, -1)
        restart = torch.arange(each).repeat_interleave(keep)
        if options.polish and not engine.ended:
            best, _, place = self.best(cohort)

            def told(number: int, ids: Tensor, score: Tensor) -> bool:
                wanted = report is not None and report(State([cohort, *engine.cohorts], number, (ids, score))) is True
                engine.ended = "callback" if wanted else engine.ended
                return wanted

            polished, _ = polish(
                best, self.table, self.encode, goals, options.polish, options.seed, self._scored_at_once(), told
            )
            ids = torch.cat([ids, polished[:, None]], 1)
            restarts = torch.cat([restart.expand(targets, -1), restart[place.cpu()][:, None]], 1)
        else:
            restarts = restart.expand(targets, -1)
        top = self._best(ids, restarts, goals)
        results = []
        history, steps = cohort.history, cohort.steps.tolist()
        for k, (name, best_of) in enumerate(zip(cohort.part.names, top, strict=True)):
            if not best_of:
                results.append((name, self._failed()))
                continue
            first = best_of[0]
            row = k * each + first.restart
            results.append(
                (
                    name,
                    PromptResult(
                        first.prompt,
                        first.ids,
                        first.ids_score,
                        first.text_score,
                        steps[row],
                        history[row, : steps[row] + 1].tolist(),
                        options.seed,
                        first.restart,
                        self.clip.name,
                        time.monotonic() - self.begun,
                        cohort.stopped[row],
                        best_of,
                    ),
                )
            )
        return results

    def _failed(self) -> PromptResult:
        return PromptResult(seed=self.options.seed, model=self.clip.name, error=NOT_FINITE)

    def _scored_at_once(self) -> int:
        return min(self.at_once, _SCORED.get(self.clip.device.type, 128))

    @torch.no_grad()
    def _best(self, ids: Tensor, restarts: Tensor, goals: RowObjective) -> list[list[Candidate]]:
        """ids (T, C, L), -1 where there are none -> the best prompts of each target by the model's own score of their text."""
        texts: list[dict[str, tuple[Tensor, int]]] = []  # of each target, what they were made of
        for own, restart in zip(ids.cpu(), restarts.tolist(), strict=True):
            texts.append({})
            for i, r in zip(own, restart, strict=True):
                if i[0] >= 0:
                    texts[-1].setdefault(self.text(i), (i, r))
        flat = [(k, text, i, r) for k, own in enumerate(texts) for text, (i, r) in own.items()]
        found: list[list[Candidate]] = [[] for _ in texts]
        if not flat:
            return found
        rows = goals.rows(torch.tensor([k for k, *_ in flat], device=self.clip.device))
        _, text_scores = rows(self.clip.encode_texts([text for _, text, *_ in flat]))
        tokens = torch.stack([i for *_, i, _ in flat]).to(self.clip.device)
        size = self._scored_at_once()
        ids_scores = rows(torch.cat([self.judge(self.table.weight[part]) for part in tokens.split(size)]))[1]
        for (k, text, i, r), by_ids, by_text in zip(flat, ids_scores.tolist(), text_scores.tolist(), strict=True):
            found[k].append(Candidate(text, i.tolist(), by_ids, by_text, r))
        return [sorted(c, key=lambda one: -one.text_score)[: self.options.top_k] for c in found]


def _start(table: TokenTable, clip: ClipEncoder, options: SearchConfig) -> Tensor:
    """(restarts, prompt_len) ids, drawn from (seed, restart) alone."""
    ids = table.allowed.nonzero()[:, 0].cpu()
    drawn = []
    for restart in range(options.restarts):
        generator = torch.Generator().manual_seed((options.seed * 1_000_003 + restart) % 2**63)
        drawn.append(ids[torch.randint(len(ids), (options.prompt_len,), generator=generator)])
    start = torch.stack(drawn)
    if options.init is not None:
        given = clip.vocabulary.encode(options.init)
        if not 0 < len(given) <= options.prompt_len:
            raise ValueError(
                f"init must be 1 to {options.prompt_len} tokens (prompt_len) long; {options.init!r} has {len(given)}"
            )
        start[:, : len(given)] = torch.tensor(given)
    return start
