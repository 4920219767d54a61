"""Prompts behind which a language model writes a given text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pez_fast.config import SearchOptions, config_from, takes_config
from pez_fast.labelled import Template
from pez_fast.models.language.model import LanguageModel
from pez_fast.models.language.task import Examples, LabelModel, LabelTask
from pez_fast.objectives import TextLoss
from pez_fast.prompt_search import search
from pez_fast.result import PromptResult
from pez_fast.tasks.classify import check_lm

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_config
def continuation(
    target_text: str, lm: LanguageModel, template: str = "{prompt} {target}", **options: Unpack[SearchOptions]
) -> PromptResult:
    """Learns a prompt that makes a language model go on with a text.

    The loss is the mean cross-entropy of the text's tokens behind the prompt, as in Zou et al. 2023, equation 2.

    Args:
        target_text: the text.
        lm: from `load_lm`, or a `LanguageModel`.
        template: a text with {prompt} and, behind it, {target}; what stands between them is not scored.

    Returns:
        The best prompt; its scores are the negative loss, so that exp(-score) is the text's perplexity behind it.
        Ctrl-C returns the best prompt so far.

    Raises:
        ValueError, TypeError: an argument or an option cannot be used; the message names it.
    """
    config_from({**options})
    check_lm(lm)
    if not isinstance(target_text, str) or not target_text.strip():
        raise ValueError(f"target_text must not be empty; got {target_text!r}")
    parsed = Template.parse(template, target="target")
    if parsed.columns:
        raise ValueError(
            f"template {template!r} must hold {{prompt}} and {{target}} alone; it has {{{parsed.columns[0]}}}"
        )
    one = Examples([{}], [0])
    model = LabelModel(lm, LabelTask(parsed, [target_text.strip()], one, one, held_out_every=1))
    return search(TextLoss([len(model.labeller.labels[0])]), model, **options)[0]
