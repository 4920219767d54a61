"""The options of learning a prompt for labelled examples, beside those of the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pez_fast.config import SearchOptions, setting, whole_number

LEARNING: dict[str, Any] = {"prompt_len": 10, "steps": 1000, "refine": 0}  # defaults that differ from `SearchConfig`'s


@dataclass(frozen=True)
class LabelConfig:
    """The options of a classification; the command line's are made from them.

    Raises:
        ValueError: an option has a value that it cannot have; the message names the option and the value.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("template", "verbalizer")

    template: str | None = setting(
        None,
        "A text with {prompt}, {label} and columns of the examples, such as '{prompt}{text} It was {label}'; "
        "by default the preset's.",
    )
    verbalizer: Any = setting(
        None,
        "The word of each label, such as '0=negative,1=positive' (in Python also a dict, or a list for the labels 0, "
        "1, …); by default the preset's, or the labels themselves.",
    )
    label: str | None = setting(None, "The column of the labels; by default the preset's, or 'label'.")
    split: str | None = setting(None, "The split of a data set of the library datasets; by default train.")
    limit: int | None = setting(None, "The most rows that are read.")
    held_out: int | float | None = setting(
        None,
        "How many examples choose the prompt, or which fraction; by default a fifth, but at most 500, and with shots "
        "as many as are learned from.",
    )
    shots: int | None = setting(None, "Learn from so many examples of each label, chosen by the seed.")
    fluency: float = setting(
        0.0,
        "The share λ of the prompt's own cross-entropy in the loss, for causal models; the paper used 0.003.",
    )
    minibatch: int = setting(16, "Examples that a step draws.")
    held_out_every: int = setting(10, "Steps between two scores on the held-out examples.")
    calibrate: bool = setting(False, "Take a label's score relative to the one that it has behind an empty text.")
    split_seed: int = setting(0, "Seed of the choice of held-out examples.")

    def __post_init__(self) -> None:
        share = self.fluency
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"fluency must be from 0 to 1; got {share!r}")
        object.__setattr__(self, "fluency", float(share))
        for name in ("minibatch", "held_out_every", "shots", "limit"):
            value = getattr(self, name)
            if value is not None or name in ("minibatch", "held_out_every"):
                self._set_integer(name, 1, "a positive integer")
        self._set_integer("split_seed", 0, "an integer, not negative")
        if not isinstance(self.calibrate, bool):
            raise ValueError(f"calibrate must be True or False; got {self.calibrate!r}")

    def _set_integer(self, name: str, least: int, kind: str) -> None:
        """Makes a plain int of an option, which may be an integer of numpy's."""
        object.__setattr__(self, name, whole_number(name, getattr(self, name), least, kind))


class LabelOptions(SearchOptions, total=False):
    """The fields of `LabelConfig` and `SearchConfig` as keyword arguments, for type checkers."""

    template: str | None
    verbalizer: Any
    label: str | None
    split: str | None
    limit: int | None
    held_out: int | float | None
    shots: int | None
    fluency: float
    minibatch: int
    held_out_every: int
    calibrate: bool
    split_seed: int


def split_options(options: dict[str, Any]) -> tuple[LabelConfig, dict[str, Any]]:
    """Returns the options of a classification, checked, and the options of the search."""
    known = LabelConfig.__dataclass_fields__
    own = LabelConfig(**{name: value for name, value in options.items() if name in known})
    return own, {name: value for name, value in options.items() if name not in known}
