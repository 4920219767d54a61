"""One prompt for several images, in two ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pez_fast.config import SearchOptions, config_from, takes_config
from pez_fast.objectives import Similarity, weighted_target
from pez_fast.prompt_search import search
from pez_fast.result import Concatenation, Mix, PromptResult
from pez_fast.tasks.checks import check_model
from pez_fast.tasks.concatenation import join
from pez_fast.tasks.images import read_each
from pez_fast.tasks.scores import cosines

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_config
def mix(images: Sequence[Any], model: Any, **options: Unpack[SearchOptions]) -> Mix:
    """Learns a prompt for each image and one for all of them, in one batch, and joins the former.

    The joined prompt has the tokens of all prompts, and the shared one as many as one of them: at equal `prompt_len`
    the joined one has more room.

    Args:
        images: a list of what `load_image` takes. One that cannot be read does not end the others.
        model: from `load_clip`.

    Returns:
        A `Mix`: the prompts of the images as `invert_batch` gives them, the joined one as `concatenate` gives it, and
        the shared one as `invert` gives it. Ctrl-C returns the best prompts so far.

    Raises:
        ValueError: an option cannot be used, `images` is empty, or none can be read.
        TypeError: an option does not exist, or `images` is no list.
    """
    config = config_from({**options})
    check_model(model, "encode_texts", "context_length")
    each, readable = read_each(images, [model], config.seed)
    if not readable:
        raise ValueError(f"images must hold at least one image that can be read: {each[0].error}")
    targets = model.encode_pixels([pixels[0] for pixels in readable.values()])
    *found, shared = search(Similarity(torch.cat([targets, weighted_target(targets)[None]])), model, **options)
    for k, result in zip(readable, found, strict=True):
        result.note, each[k] = each[k].note, result
    learned = {k: row for row, k in enumerate(readable) if not each[k].error}
    if learned:
        own = targets[list(learned.values())]
        joined = join({k: each[k].prompt for k in learned}, len(each), own, targets, model)
    else:
        joined = Concatenation(model=model.name, error=found[0].error)

    def scores(result: PromptResult) -> list[float]:
        return [] if result.error else cosines(targets, [result.prompt], model)[:, 0].tolist()

    return Mix(each, joined, shared, list(readable), list(map(scores, each)), scores(shared))
