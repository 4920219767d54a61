"""The progress of a search, for callbacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pez_fast.config import Progress
from pez_fast.engine import BoundModel, SearchState, Stage
from pez_fast.result import PromptResult


def progress_of(
    stages: Sequence[Stage],
    bound: BoundModel,
    results: Sequence[PromptResult | None],
    searches: Sequence[SearchState],
) -> Progress:
    """Returns the progress of a search.

    Args:
        stages: the stages of the search.
        bound: the model that turns ids into text.
        results: the result of each target, or None if it is not finished.
        searches: the running searches; their keys are the targets' indices in `results`.
    """
    targets, first, later = len(results), stages[0].num_steps, stages[1:]
    best = {k: (r.prompt, r.ids_score) for k, r in enumerate(results) if r is not None}
    steps, refined = len(best) * first, len(best) * sum(stage.num_steps for stage in later)
    for search in searches:
        keys = search.request.keys
        updates = [stage.updates for stage in search.chain]
        ids, score, _ = (search if search.step else search.previous or search).best_rows()
        prompts = [bound.text(i) for i in ids.tolist()]
        best |= {key: (p, s) for key, p, s in zip(keys, prompts, score.tolist(), strict=True)}
        steps, refined = steps + len(keys) * updates[0], refined + len(keys) * sum(updates[1:])
    shown = [best.get(k, ("", math.nan)) for k in range(targets)]
    # The counts are as if the updates of all targets were made one after the other.
    return Progress(steps // targets, first, [p for p, _ in shown], [s for _, s in shown], refined // targets)
