"""What a callback is told of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pez_fast.config import Progress
from pez_fast.engine import BoundModel, SearchState, Stage
from pez_fast.result import PromptResult


def tell(
    stages: Sequence[Stage],
    bound: BoundModel,
    callback: Callable[[Progress], object],
    results: Sequence[PromptResult | None],
    searches: Sequence[SearchState],
) -> object:
    """Call `callback` for targets 0, 1, … of which `results` holds those that are finished."""
    targets, first, later = len(results), stages[0].num_steps, stages[1:]
    shown = {k: (r.prompt, r.ids_score) for k, r in enumerate(results) if r is not None}
    steps, refined = len(shown) * first, len(shown) * sum(stage.num_steps for stage in later)
    for search in searches:
        keys = search.request.keys
        done = [stage.updates for stage in search.chain]
        ids, score, _ = (search if search.step else search.previous or search).best_rows()
        prompts = [bound.text(i) for i in ids.tolist()]
        shown |= {key: (p, s) for key, p, s in zip(keys, prompts, score.tolist(), strict=True)}
        steps, refined = steps + len(keys) * done[0], refined + len(keys) * sum(done[1:])
    best = [shown.get(k, ("", math.nan)) for k in range(targets)]
    # As if the updates of all targets were made one after the other.
    return callback(Progress(steps // targets, first, [p for p, _ in best], [s for _, s in best], refined // targets))
