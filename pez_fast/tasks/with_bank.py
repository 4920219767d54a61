"""Prompts for images that begin at, or go on from, phrases of a bank."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pez_fast.config import Progress, SearchConfig, SearchOptions, config_from, takes_config, whole_number
from pez_fast.objectives import Similarity
from pez_fast.prompt_search import NOT_BEGUN, search
from pez_fast.result import Description, PromptResult
from pez_fast.tasks.checks import room_of
from pez_fast.tasks.description import Describer, checked_bank, merged, read_targets

if TYPE_CHECKING:
    from typing_extensions import Unpack

USES = ("init", "hold")


@takes_config
def invert_with_bank(
    images: Any,
    model: Any,
    bank: Any = None,
    use: str = "init",
    *,
    max_flavors: int = 2,
    cache: str | os.PathLike | bool | None = None,
    **options: Unpack[SearchOptions],
) -> Any:
    """Learns a prompt for each image, together with the phrases of a bank that describe it.

    Args:
        images: what `load_image` takes, or a list of them; each has phrases of its own.
        model: from `load_clip`.
        bank: as for `describe`.
        use: "init": the search begins at the phrases, as many as fit into `prompt_len`, and may change every token;
            "hold": the phrases stand before the learned tokens and stay.
        max_flavors, cache: as for `describe`.

    Returns:
        A `PromptResult`, or for a list of images a list of them, each the same as alone; one that cannot be read has
        `error` set. With "init" all are learned in one batch; with "hold" those whose phrases are the same share one.
        Ctrl-C returns the best prompts so far.

    Raises:
        ValueError, TypeError: an option, an image or the bank cannot be used; the message names it.
    """
    config = config_from({**options})
    if use not in USES:
        raise ValueError(f"use must be 'init' or 'hold'; got {use!r}")
    if use == "init" and config.init is not None:
        raise ValueError(f"init and use='init' exclude each other; got init={config.init!r}")
    max_flavors = whole_number("max_flavors", max_flavors, 0, "an integer, not negative")
    bank, is_list = checked_bank(bank, model), isinstance(images, (list, tuple))
    errors, features, notes = read_targets(images if is_list else [images], model, is_list)
    learned: list[PromptResult] = []
    if len(features):
        describer = Describer(model, bank, max_flavors, cache=cache)
        describer.banned = tuple(entry.lower() if isinstance(entry, str) else entry for entry in config.banned)
        if use == "hold":
            learned = _held(features, model, describer, config)
        else:
            inits = [_start(describer(row), model, config.prompt_len) for row in features]
            learned = search(Similarity(features), model, inits=inits, **options)
    results = merged(
        errors, learned, notes, lambda error: PromptResult(seed=config.seed, model=model.name, error=error)
    )
    return results if is_list else results[0]


def _start(description: Description, model: Any, prompt_len: int) -> str | None:
    """Returns those phrases of a description that fit into the learned tokens; None if none does."""
    text = ""
    for part in description.parts:
        longer = f"{text} {part.phrase}".strip()
        if len(model.vocabulary.encode(longer)) <= prompt_len:
            text = longer
    return text or None


def _held(features: Tensor, model: Any, describer: Describer, config: SearchConfig) -> list[PromptResult]:
    """Learns prompts behind phrases that stay: a search for each different text."""
    fixed = len(model.vocabulary.encode(config.prefix)) + len(model.vocabulary.encode(config.suffix))
    describer.room = room_of(model) - config.prompt_len - fixed - 1  # a comma
    groups: dict[str, list[int]] = {}
    for k, row in enumerate(features):
        text = describer(row).text
        if not text:
            raise ValueError(
                f"prompt_len must leave room for a phrase of the bank in the context of {room_of(model)} tokens; "
                f"got {config.prompt_len}"
            )
        groups.setdefault(text, []).append(k)
    found = [PromptResult(seed=config.seed, model=model.name, error=NOT_BEGUN) for _ in features]
    for text, rows in groups.items():
        prefix = " ".join(part for part in (config.prefix.strip(), f"{text},") if part)
        watching = _Watching(config, found, rows) if config.callback is not None else None
        part = replace(config, prefix=prefix, callback=watching)
        options = {name: getattr(part, name) for name in SearchConfig.__dataclass_fields__}
        for k, result in zip(rows, search(Similarity(features[rows]), model, **options), strict=True):  # type: ignore[arg-type]
            found[k] = result
        reason = found[rows[0]].stop_reason
        if reason in ("callback", "interrupt"):
            for result in found:
                result.stop_reason = result.stop_reason or reason
            break
    return found


class _Watching:
    """A callback for the search of some of the targets that shows the progress of all."""

    def __init__(self, config: SearchConfig, found: Sequence[PromptResult], rows: Sequence[int]) -> None:
        self._callback, self._found, self._rows = config.callback, found, rows

    def __call__(self, state: Progress) -> object:
        done = [result for result in self._found if not result.error]
        prompts = [result.prompt for result in self._found]
        scores = [result.text_score if not result.error else math.nan for result in self._found]
        for k, prompt, score in zip(self._rows, state.prompts, state.scores, strict=True):
            prompts[k], scores[k] = prompt, score
        step = (len(done) * state.steps + len(self._rows) * state.step) // len(self._found)
        assert self._callback is not None
        return self._callback(Progress(step, state.steps, prompts, scores, state.refined))
