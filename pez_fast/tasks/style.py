"""A style learned from pictures, applied to new subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pez_fast.result import PromptResult, StyledPrompt
from pez_fast.tasks.checks import checked_texts, most_tokens
from pez_fast.tasks.scores import score


def apply_style(
    style: PromptResult | str, subjects: str | Sequence[str], model: Any, images: Sequence[Any]
) -> list[StyledPrompt]:
    """Puts new subjects and a style prompt together, and scores the new prompts against the style's pictures.

    Both orders are tried, "subject style" and "style subject"; of equal ones the first is taken. The pictures do not
    show the subject, so a score above that of the subject alone says that the prompt carries the style, and no more.

    Args:
        style: what `invert` learned from the pictures, or a text.
        subjects: one text or a list of texts, such as "a cat".
        model: from `load_clip`.
        images: the pictures that share the style, each what `load_image` takes.

    Returns:
        A `StyledPrompt` for each subject, in their order.

    Raises:
        ValueError, TypeError: the style is no prompt, there is no subject or picture, or one that cannot be used; the
            sentence names it.
    """
    text = _style_text(style)
    names = checked_texts("subjects", subjects)
    prompts = [prompt for name in names for prompt in (f"{name} {text}", f"{text} {name}")]
    cosines = score(images, [*names, *prompts], model).T.tolist()  # a row for each text
    most_tokens(prompts, model, "a styled prompt", stacklevel=3)
    alone, composed, found = cosines[: len(names)], cosines[len(names) :], []
    for k, name in enumerate(names):
        pair = [(_mean(composed[n]), n) for n in (2 * k, 2 * k + 1)]
        (best, n), (second, m) = sorted(pair, key=lambda each: -each[0])
        found.append(StyledPrompt(name, prompts[n], best, composed[n], prompts[m], second, _mean(alone[k])))
    return found


def _style_text(style: PromptResult | str) -> str:
    """Returns the style as text.

    Raises:
        ValueError: the result has no prompt, or the text is empty.
        TypeError: it is neither a result nor a text.
    """
    if not isinstance(style, (str, PromptResult)):
        raise TypeError(f"style must be a result of invert or a text; got {type(style).__name__}")
    if isinstance(style, PromptResult) and style.error:
        raise ValueError(f"style has no prompt: {style.error}")
    text = style if isinstance(style, str) else style.prompt
    if not text.strip():
        raise ValueError(f"style must not be empty; got {text!r}")
    return text.strip()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
