"""What a callback sees of a search."""

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
    """The progress of targets 0, 1, …: `results` holds those that are finished, `searches` those in work."""
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
    # As if the updates of all targets were made one after the other.
    return Progress(steps // targets, first, [p for p, _ in shown], [s for _, s in shown], refined // targets)
