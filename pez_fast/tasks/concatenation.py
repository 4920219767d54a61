"""Several prompts as one text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

from torch import Tensor

from pez_fast.result import Concatenation, PromptResult
from pez_fast.tasks.checks import check_model, checked_texts, room_of
from pez_fast.tasks.scores import cosines

ALL_ORDERS = 4  # the most prompts whose orders are all tried
NAMED = 8  # words that a note names


def concatenate(prompts: Sequence[str | PromptResult], model: Any, images: Any = None) -> Concatenation:
    """Joins prompts into one text that the model reads whole, in the order that scores best.

    A text that does not fit into the context loses its weakest words. A word is worth what its own prompt loses of the
    cosine with its own image when that word alone is left out. Half of what is too much is cut from those that are
    worth least, whichever prompt they stand in; then the rest is measured anew, until the text fits. Of a prompt that
    alone is longer than the context, what the model would not read is cut before. Each prompt keeps a word. Where every
    prompt is a single word, characters are cut in place of words.

    Of up to 4 prompts all orders are tried. Of more, one prompt after the other is put where the mean cosine is
    highest, and the order in which they are given is tried too.

    Args:
        prompts: P texts or results; a result with an error is left out, and its image with it.
        model: from `load_clip`; without images also from `load_sentence_encoder`.
        images: what `load_image` takes, or a list of N. Where N is P, each prompt has its own image, in the same order;
            else the mean of all images is every prompt's own. Without images the text is held to the prompts that are
            joined, each by its own text.

    Returns:
        A `Concatenation` with the text and its cosine with each image.

    Raises:
        ValueError, TypeError: there is no prompt, an argument cannot be used, or so many prompts do not fit; the
            message names it.
    """
    check_model(model, "encode_texts", "context_length", *([] if images is None else ["encode_images"]))
    texts = _texts(prompts)
    given = None if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    if given is None:
        targets = own = model.encode_texts(list(texts.values()))
    else:
        if not given:
            raise ValueError("images must hold at least one image; got an empty list")
        paired = len(given) == len(prompts)
        targets = model.encode_images([given[k] for k in texts] if paired else given)
        own = targets if paired else targets.mean(0).expand(len(texts), -1)
    return join(texts, len(prompts), own, targets, model)


def join(texts: dict[int, str], count: int, own: Tensor, targets: Tensor, model: Any) -> Concatenation:
    """Joins texts; see `concatenate`.

    Args:
        texts: P texts, each with its number among `count` prompts.
        own: (P, D) what each text is for.
        targets: (N, D) what the whole is scored against.
    """
    limit, numbers = room_of(model), list(texts)
    parts, cut = _fitted(list(texts.values()), own, model, limit)
    tried = _orders(parts, targets, model, limit)
    order, scores = tried[0]
    prompt = _joined(parts, order, model)
    found = Concatenation(
        prompt,
        [numbers[k] for k in order],
        [""] * count,
        [[] for _ in range(count)],
        scores,
        _mean(scores),
        [([numbers[k] for k in other], _mean(values)) for other, values in tried],
        len(model.vocabulary.encode(prompt)),
        limit,
        model.name,
    )
    for k, number in enumerate(numbers):
        found.parts[number], found.cut[number] = parts[k], cut[k]
    found.note = _note(found, count - len(texts))
    return found


def _texts(prompts: Any) -> dict[int, str]:
    """Returns the texts of prompts and results that have one, by their number."""
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a list of texts or results; got {type(prompts).__name__}")
    if not prompts:
        raise ValueError("prompts must hold at least one prompt; got an empty list")
    failed = [prompt.error for prompt in prompts if isinstance(prompt, PromptResult) and prompt.error]
    if len(failed) == len(prompts):
        raise ValueError(f"prompts must hold a result with a prompt; the first has the error {failed[0]!r}")
    plain = [prompt.prompt if isinstance(prompt, PromptResult) else prompt for prompt in prompts]
    left = [k for k, prompt in enumerate(prompts) if not (isinstance(prompt, PromptResult) and prompt.error)]
    return dict(zip(left, checked_texts("prompts", [plain[k] for k in left]), strict=True))


def _joined(parts: Sequence[str], order: Sequence[int], model: Any) -> str:
    """Returns the text of parts in an order, beginning as the model's learned texts begin."""
    return model.vocabulary.lead + " ".join(parts[k] for k in order)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _orders(parts: Sequence[str], targets: Tensor, model: Any, limit: int) -> list[tuple[tuple[int, ...], list[float]]]:
    """Returns the orders that were tried with the cosine of each target, the best mean first."""

    def scored(orders: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], list[float]]]:
        rows = cosines(targets, [_joined(parts, order, model) for order in orders], model).T.tolist()
        return sorted(zip(orders, rows, strict=True), key=lambda pair: -_mean(pair[1]))

    given = tuple(range(len(parts)))
    if len(parts) <= ALL_ORDERS:
        tried = scored(list(permutations(given)))
    else:
        best: tuple[int, ...] = ()
        for k in given:
            best = scored([(*best[:at], k, *best[at:]) for at in range(len(best) + 1)])[0][0]
        tried = scored(list(dict.fromkeys([best, given])))
    return [
        pair
        for pair in tried
        if pair[0] == given or len(model.vocabulary.encode(_joined(parts, pair[0], model))) <= limit
    ]


def _fitted(texts: Sequence[str], own: Tensor, model: Any, limit: int) -> tuple[list[str], list[list[str]]]:
    """Returns texts that fit into `limit` tokens when joined, and the words that were cut from each."""
    lead = model.vocabulary.lead

    def count(text: str) -> int:
        return len(model.vocabulary.encode(lead + text))

    begun = [_readable(text.removeprefix(lead).strip(), limit, count) for text in texts]
    parts, cut = [part for part, _ in begun], [list(words) for _, words in begun]
    while (excess := count(" ".join(parts)) - limit) > 0:
        glue = " " if any(len(part.split()) > 1 for part in parts) else ""
        units = [part.split() if glue else list(part) for part in parts]
        chosen = _weakest(parts, units, glue, own, model, -(-excess // 2))
        if not any(chosen):
            raise ValueError(f"prompts must fit into the {limit} tokens that the model reads; got {len(parts)} of them")
        for k, (row, places) in enumerate(zip(units, chosen, strict=True)):
            cut[k] += [row[at] for at in sorted(places)]
            parts[k] = glue.join(unit for at, unit in enumerate(row) if at not in places)
    return parts, cut


def _weakest(
    parts: Sequence[str], units: Sequence[Sequence[str]], glue: str, own: Tensor, model: Any, most: int
) -> list[set[int]]:
    """Returns for each part the places of the units that cost it least: at most `most` of all, and never all of one."""
    costs: list[tuple[float, int, int]] = []
    for k, row in enumerate(units):
        if len(row) > 1:
            shorter = [glue.join([*row[:at], *row[at + 1 :]]) for at in range(len(row))]
            before, *after = cosines(own[k : k + 1], [parts[k], *shorter], model)[0].tolist()
            costs += [(before - value, k, -at) for at, value in enumerate(after)]
    chosen: list[set[int]] = [set() for _ in units]
    for _, k, at in sorted(costs):
        if sum(map(len, chosen)) < most and len(chosen[k]) < len(units[k]) - 1:
            chosen[k].add(-at)
    return chosen


def _readable(text: str, limit: int, count: Callable[[str], int]) -> tuple[str, list[str]]:
    """Returns the part of a text from its beginning that has at most `limit` tokens, and what is cut from it."""
    if count(text) <= limit:
        return text, []
    units, glue = text.split(), " "
    if count(units[0]) > limit:
        units, glue = list(text), ""
    fit = bisect_right(range(1, len(units) + 1), limit, key=lambda n: count(glue.join(units[:n])))
    return glue.join(units[:fit]), units[fit:] if glue else [text[fit:]]


def _note(found: Concatenation, left_out: int) -> str:
    """Returns one sentence on what the text lacks, or ""."""
    words = [word for cut in found.cut for word in cut]
    named = " ".join(words[:NAMED]) + (" ..." if len(words) > NAMED else "")
    noun = "word was" if len(words) == 1 else "words were"
    said = [f"the model reads {found.limit} tokens, so {len(words)} {noun} cut: {named}"] if words else []
    if left_out:
        said.append(
            f"{left_out} of {len(found.parts)} results had no prompt and {'was' if left_out == 1 else 'were'} left out"
        )
    return "; ".join(said)
