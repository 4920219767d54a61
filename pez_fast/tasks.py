"""What PEZ is used for with CLIP: inversion of images, shared style, distillation of texts."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pez_fast.encoders import ClipEncoder
from pez_fast.engine import Search, search
from pez_fast.images import load_image
from pez_fast.memory import out_of_memory, prompts_at_once
from pez_fast.objectives import TargetSimilarity, weighted_goal
from pez_fast.result import PromptResult
from pez_fast.table import TokenTable

NOT_BEGUN = "the search was ended before this target was begun"


@dataclass(frozen=True)
class Progress:
    """What a callback sees: after `step` of `steps` updates, the best prompt of each target and its score.

    Where the targets do not fit into one batch, `step` counts the part of all updates that is done, and targets that wait have
    an empty prompt and a score of NaN.
    """

    step: int
    steps: int
    prompts: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Options:
    """The options that every task takes.

    Attributes:
        prompt_len: number of learned tokens.
        steps: updates.
        seed: of the random tokens that the search begins at; the same for every target, whatever else is in the batch.
        lr, weight_decay: of AdamW.
        restarts: prompts tried for each target, in the same batch; the best by `text_score` is returned.
        prefix, suffix: fixed texts around the learned tokens.
        init: a text whose tokens the search begins at (the places that it leaves are drawn).
        banned: words and ids that must not be learned.
        vocabulary: "stable", the tokens that survive being written out and read again, or "full".
        patience: a target ends after so many steps without improvement.
        callback: called with a `Progress` every `every` steps; returning True ends the search.
        batch_size: prompts (targets times restarts) learned at once; by default as many as fit into memory. No result depends on it.
        impl: implementation of the projection.
    """

    prompt_len: int = 16
    steps: int = 3000
    seed: int = 0
    lr: float = 0.1
    weight_decay: float = 0.1
    restarts: int = 1
    prefix: str = ""
    suffix: str = ""
    init: str | None = None
    banned: Sequence[str | int] = ()
    vocabulary: str = "stable"
    patience: int | None = None
    callback: Callable[[Progress], object] | None = None
    every: int = 50
    batch_size: int | None = None
    impl: str = "auto"

    def __post_init__(self) -> None:
        for name in ("prompt_len", "steps", "restarts", "every", "patience", "batch_size"):
            value = getattr(self, name)
            if name in ("patience", "batch_size") and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1; got {self.seed!r}")
        for name, least in (("lr", 0.0), ("weight_decay", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
                raise ValueError(f"{name} must be a finite number, not negative; got {value!r}")


def _options(given: dict[str, Any]) -> Options:
    known = [f.name for f in dataclasses.fields(Options)]
    for name in given:
        if name not in known:
            raise TypeError(f"{name!r} is not an option; the options are {', '.join(known)}")
    return Options(**given)


def invert(images: Any, clip: ClipEncoder, prompt_len: int = 16, steps: int = 3000, seed: int = 0, *,
           weights: Sequence[float] | None = None, **options: Any) -> PromptResult:  # fmt: skip
    """One prompt for one image, or for several that share something (their style, say).

    Args:
        images: what `load_image` takes (a path, a PIL image, bytes, an array), or a list of them.
        clip: from `load_clip`.
        weights: one for each image; a negative one pushes the prompt away from its image.
        prompt_len, steps, seed, options: see `Options`.

    Returns:
        The best prompt met; scores are weighted means over the images. Ctrl-C returns the best so far.

    Raises:
        ValueError, TypeError: an option or image that cannot be used; the sentence names it.
    """
    chosen = _options({"prompt_len": prompt_len, "steps": steps, "seed": seed, **options})
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    _check_clip(clip)
    targets = clip.encode_images([load_image(image) for image in images])
    return learn(weighted_goal(targets, weights)[None], clip, chosen)[0]


def invert_batch(images: Sequence[Any], clip: ClipEncoder, prompt_len: int = 16, steps: int = 3000, seed: int = 0,
                 **options: Any) -> list[PromptResult]:  # fmt: skip
    """One prompt for each image, all learned in one batch; each result is that of `invert` on its image alone.

    An image that cannot be read gives a result with `error` set; the others go on.

    Args and errors: as `invert`.
    """
    chosen = _options({"prompt_len": prompt_len, "steps": steps, "seed": seed, **options})
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise TypeError(f"images must be a list of images; got {type(images).__name__}")
    if not images:
        raise ValueError("images must hold at least one image; got an empty list")
    _check_clip(clip)
    results = [PromptResult(seed=seed, model=clip.name) for _ in images]
    readable, opened = [], []
    for k, image in enumerate(images):
        try:
            opened.append(load_image(image))
            readable.append(k)
        except (ValueError, TypeError) as error:
            results[k].error = str(error)
    if readable:
        for k, result in zip(readable, learn(clip.encode_images(opened), clip, chosen), strict=True):
            results[k] = result
    return results


def distill(text: str, clip: ClipEncoder, ratio: float | None = None, prompt_len: int | None = None, steps: int = 3000, seed: int = 0,
            **options: Any) -> PromptResult:  # fmt: skip
    """A shorter prompt that means the same to the model.

    Args:
        text: the prompt to shorten.
        ratio: tokens of the result over tokens of the text, in (0, 1]; 0.3 where prompt_len is not given either.
        prompt_len: the number of tokens itself, in place of a ratio.
        others and errors: as `invert`.
    """
    _check_clip(clip)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text must not be empty; got {text!r}")
    if ratio is not None and prompt_len is not None:
        raise ValueError(f"ratio and prompt_len exclude each other; got {ratio!r} and {prompt_len!r}")
    tokens = len(clip.vocabulary.encode(text))
    if prompt_len is None:
        ratio = 0.3 if ratio is None else ratio
        if not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1; got {ratio!r}")
        prompt_len = max(1, round(ratio * tokens))
    if tokens > clip.context_length - 2:
        warnings.warn(f"the model reads the first {clip.context_length - 2} of the {tokens} tokens of the text", stacklevel=2)
        prompt_len = min(prompt_len, clip.context_length - 2)
    chosen = _options({"prompt_len": prompt_len, "steps": steps, "seed": seed, **options})
    return learn(clip.encode_texts([text]), clip, chosen)[0]


def _check_clip(clip: object) -> None:
    if not isinstance(clip, ClipEncoder):
        raise TypeError(f"clip must come from load_clip; got {type(clip).__name__}")


def learn(goals: Tensor, clip: ClipEncoder, options: Options) -> list[PromptResult]:
    """One prompt for each goal (T, D), each as if alone, in batches that fit into memory.

    The core of the tasks, for callers that have features already: `weighted_goal` makes goals of them. Where memory runs out
    after all, the batches are halved.
    """
    begun = time.monotonic()
    learner = _Learner(clip, options, len(goals))
    size = max(1, (options.batch_size or learner.prompts_at_once()) // options.restarts)
    results: list[PromptResult] = []
    while len(results) < len(goals):
        part = goals[len(results) : len(results) + size]
        try:
            found = learner.batch(part, results)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
            size = (len(part) + 1) // 2
            continue
        results += found
        ended = next((r.stopped for r in found if r.stopped in ("callback", "interrupt")), None)
        if ended:
            waiting = len(goals) - len(results)
            results += [PromptResult(seed=options.seed, model=clip.name, stopped=ended, error=NOT_BEGUN) for _ in range(waiting)]
    for result in results:
        result.seconds = time.monotonic() - begun
    return results


class _Learner:
    """Searches for prompts of one kind."""

    def __init__(self, clip: ClipEncoder, options: Options, targets: int) -> None:
        self.clip, self.options, self.targets = clip, options, targets
        self.table = clip.table(options.vocabulary, options.banned)
        self.encode = clip.text_encoder(options.prompt_len, options.prefix, options.suffix)
        self.start = _start(self.table, clip, options).to(clip.device)

    def prompts_at_once(self) -> int:
        encode = self.encode
        return prompts_at_once(self.clip.device, encode.blocks, len(encode.ids), self.table.dim, self.clip.dtype.itemsize)

    def text(self, ids: Tensor) -> str:
        parts = (self.options.prefix.strip(), self.clip.vocabulary.decode(ids.tolist()), self.options.suffix.strip())
        return " ".join(t for t in parts if t)

    def batch(self, goals: Tensor, before: list[PromptResult]) -> list[PromptResult]:
        """`restarts` rows of the batch belong to each goal; `before`: what earlier batches found."""
        options, clip = self.options, self.clip
        rows = goals.repeat_interleave(options.restarts, 0)

        def report(state: Search) -> object:
            scores, best = state.best_score.view(len(goals), -1).cpu().max(1)
            ids = state.best_ids.view(len(goals), options.restarts, -1).cpu()
            waiting = self.targets - len(before) - len(goals)
            prompts = [r.prompt for r in before] + [self.text(ids[k, b]) for k, b in enumerate(best.tolist())] + [""] * waiting
            reached = [r.ids_score for r in before] + scores.tolist() + [math.nan] * waiting
            # As if the steps of all targets were made one after the other.
            step = (len(before) * state.count + len(goals) * state.number) // self.targets
            assert options.callback is not None
            return options.callback(Progress(step, state.count, prompts, reached))

        found = search(self.table, self.start.repeat(len(goals), 1), self.encode, TargetSimilarity(rows), options.steps, options.lr,
                       options.weight_decay, options.patience, options.every, report if options.callback else None, options.impl)  # fmt: skip
        texts = [self.text(ids) for ids in found.best_ids.cpu()]
        text_scores = (clip.encode_texts(texts) * rows).sum(-1).cpu()
        history, ids_scores, steps = found.history, found.best_score.tolist(), found.steps.tolist()
        results = []
        for k in range(len(goals)):
            own = range(k * options.restarts, (k + 1) * options.restarts)
            r = max(own, key=lambda row: (float(text_scores[row]), -row))
            results.append(PromptResult(
                prompt=texts[r], ids=found.best_ids[r].tolist(), ids_score=ids_scores[r], text_score=float(text_scores[r]),
                steps=steps[r], history=history[r, : steps[r] + 1].tolist(), seed=options.seed, restart=r - own.start, model=clip.name,
                stopped=found.stopped[r]))  # fmt: skip
        return results


def _start(table: TokenTable, clip: ClipEncoder, options: Options) -> Tensor:
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
            raise ValueError(f"init must be 1 to {options.prompt_len} tokens (prompt_len) long; {options.init!r} has {len(given)}")
        start[:, : len(given)] = torch.tensor(given)
    return start
