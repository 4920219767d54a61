"""How much of a text's meaning shorter and shorter prompts keep."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pez_fast.config import Progress, SearchConfig, SearchOptions, config_from, takes_config
from pez_fast.objectives import Similarity
from pez_fast.prompt_search import NOT_BEGUN, search
from pez_fast.result import Distilled, PromptResult
from pez_fast.tasks.checks import check_model, checked_texts, room_of
from pez_fast.tasks.texts import checked_ratio

if TYPE_CHECKING:
    from typing_extensions import Unpack

RATIOS = (0.7, 0.5, 0.3, 0.1)  # those of the paper
Pair = tuple[int, int]  # the number of a text, and the number of learned tokens


@takes_config
def distill_study(  # type: ignore[misc]  # the ratios replace the option prompt_len
    texts: str | Sequence[str],
    model: Any,
    ratios: Sequence[float] = RATIOS,
    prompt_len: None = None,
    **options: Unpack[SearchOptions],
) -> list[Distilled]:
    """Shortens each text to several ratios of its tokens.

    Each result is that of `distill` with this text and this ratio alone. Prompts of one length are learned in one
    batch, and ratios that come to the same length are learned once.

    Args:
        texts: one text or a list of texts, each shortened for itself.
        model: from `load_clip` or `load_sentence_encoder`.
        ratios: tokens of a result divided by tokens of its text, each in (0, 1].
        prompt_len: follows from the ratios and cannot be given.

    Returns:
        A row for each text and ratio, the ratios of a text after one another as given. After Ctrl-C, prompts that were
        not begun have `error` set.

    Raises:
        ValueError: an option, a text or a ratio cannot be used, or a text is so short that a ratio leaves no token; the
            message names it.
        TypeError: an option does not exist, or the model lacks what the task needs.
    """
    if prompt_len is not None:
        raise ValueError(f"prompt_len follows from the ratios; leave it out (got {prompt_len!r})")
    config = config_from({**options})
    check_model(model, "encode_texts", "context_length")
    found = checked_texts("texts", texts)
    shares = _checked_ratios(ratios)
    counts = [len(model.vocabulary.encode(text)) for text in found]
    room = room_of(model)
    lengths = {
        (k, ratio): _length(text, count, ratio, room)
        for k, (text, count) in enumerate(zip(found, counts, strict=True))
        for ratio in shares
    }
    if max(counts) > room:
        warnings.warn(f"the model reads the first {room} of the {max(counts)} tokens of a text", stacklevel=3)
    pairs = sorted({(k, length) for (k, _), length in lengths.items()}, key=lambda pair: (pair[1], pair[0]))
    model.bind(pairs[-1][1], config.prefix, config.suffix)  # a prompt that has no room is said before any search
    own = {**options}
    if config.callback is not None:
        own["callback"] = _OverAll(config, list(lengths.items()), len(pairs))
    results = _learned(pairs, model.encode_texts(found), model, config, own)
    return [Distilled(found[k], counts[k], ratio, results[k, lengths[k, ratio]]) for k, ratio in lengths]


def _checked_ratios(ratios: Sequence[float]) -> list[float]:
    if isinstance(ratios, (str, bytes)) or not isinstance(ratios, Sequence):
        raise TypeError(f"ratios must be a list of numbers; got {ratios!r}")
    if not ratios:
        raise ValueError("ratios must hold at least one ratio; got an empty list")
    return list(dict.fromkeys(checked_ratio("ratios", ratio) for ratio in ratios))


def _length(text: str, tokens: int, ratio: float, room: int) -> int:
    """Returns how many tokens a ratio of a text's tokens is, at most `room`."""
    length = round(ratio * tokens)
    if length < 1:
        raise ValueError(
            f"text {text!r} has {tokens} token{'s' * (tokens != 1)}, of which the ratio {ratio} leaves none"
        )
    return min(length, room)


def _learned(
    pairs: Sequence[Pair], targets: Any, model: Any, config: SearchConfig, options: dict[str, Any]
) -> dict[Pair, PromptResult]:
    """Returns the result of each text and length; after a callback's True or Ctrl-C, the rest is not begun."""
    results: dict[Pair, PromptResult] = {}
    for length in dict.fromkeys(length for _, length in pairs):
        group = [pair for pair in pairs if pair[1] == length]
        if config.callback is not None:
            options["callback"].begin(group, results)
        found = search(Similarity(targets[[k for k, _ in group]]), model, **options | {"prompt_len": length})
        results |= zip(group, found, strict=True)
        reason = next((r.stop_reason for r in found if r.stop_reason in ("callback", "interrupt")), None)
        if reason:
            missing = PromptResult(seed=config.seed, model=model.name, stop_reason=reason, error=NOT_BEGUN)
            return {pair: results.get(pair, replace(missing)) for pair in pairs}
    return results


class _OverAll:
    """The callback of a group's search, which tells the study's own callback of all its rows.

    The steps are counted as if the updates of all prompts were made one after the other.

    Args:
        config: the options of the study.
        rows: the number of the text and the ratio of each row, and how many tokens that is.
        count: the number of different prompts.
    """

    def __init__(self, config: SearchConfig, rows: Sequence[tuple[tuple[int, float], int]], count: int) -> None:
        self.callback, self.count = config.callback, count
        self.later = sum(steps for _, steps in config.stages[1:]) if config.stages else config.refine
        self.rows = [(k, length) for (k, _), length in rows]
        self.begin([], {})

    def begin(self, group: Sequence[Pair], results: dict[Pair, PromptResult]) -> None:
        """Makes ready for the search of a group, with the results of those before."""
        self.group = group
        self.finished = {pair: (result.prompt, result.ids_score) for pair, result in results.items()}

    def __call__(self, state: Progress) -> object:
        best = self.finished | dict(zip(self.group, zip(state.prompts, state.scores, strict=True), strict=True))
        shown = [best.get(row, ("", math.nan)) for row in self.rows]
        step, refined = (
            (len(self.finished) * whole + len(self.group) * made) // self.count
            for whole, made in ((state.steps, state.step), (self.later, state.refined))
        )
        assert self.callback is not None
        return self.callback(Progress(step, state.steps, [p for p, _ in shown], [s for _, s in shown], refined))
