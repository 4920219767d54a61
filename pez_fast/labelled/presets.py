"""The data sets of the paper, and two small ones that come with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pez_fast.labelled.examples import HUB, read_examples
from pez_fast.labelled.template import Template
from pez_fast.labelled.verbalizer import Verbalizer

_FOLDER = Path(__file__).parents[1] / "assets" / "reviews"


@dataclass(frozen=True)
class Preset:
    """A data set with what a classification needs.

    Attributes:
        source: "hf:owner/name", or the path of files in which `{split}` stands for a split's name.
        columns: the columns of text.
        label: the column of labels.
        template: a text as `Template.parse` reads it.
        words: the words of the labels 0, 1, 2 and so on; none where the labels are the words.
        train: the name of the split to learn from.
        test: the name of the split to test on.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    label: str
    template: str
    words: tuple[str, ...]
    train: str = "train"
    test: str = "test"

    def read(self, split: str, limit: int | None = None) -> list[dict[str, Any]]:
        """Returns the rows of a split, as `read_examples` does.

        Args:
            split: `train` or `test` of this preset, or another split that its source has.
            limit: the most rows to read.
        """
        if self.source.startswith(HUB):
            return read_examples(self.source, limit, split)
        return read_examples(self.source.replace("{split}", split), limit)

    def parsed_template(self) -> Template:
        """Returns the template."""
        return Template.parse(self.template)

    def verbalizer(self, rows: Sequence[Mapping[str, Any]]) -> Verbalizer:
        """Returns the verbalizer; the labels of `rows` are its words where the preset names none."""
        return Verbalizer(self.words) if self.words else Verbalizer.from_rows(rows, self.label)


_SENTIMENT, _TOPIC = "{{prompt}}{{{}}} It was {{label}}", "{{prompt}}{{{}}} It was about {{label}}"
_POLARITY, _TOPICS = ("negative", "positive"), ("politics", "sports", "business", "technology")
_REVIEWS, _HEADLINES = str(_FOLDER / "reviews_{split}.csv"), str(_FOLDER / "headlines_{split}.csv")

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "sst2",
            "hf:stanfordnlp/sst2",
            ("sentence",),
            "label",
            _SENTIMENT.format("sentence"),
            _POLARITY,
            test="validation",  # the labels of its split "test" are not public
        ),
        Preset("agnews", "hf:fancyzhx/ag_news", ("text",), "label", _TOPIC.format("text"), _TOPICS),
        Preset("amazon", "hf:fancyzhx/amazon_polarity", ("content",), "label", _SENTIMENT.format("content"), _POLARITY),
        Preset("reviews", _REVIEWS, ("text",), "label", _SENTIMENT.format("text"), ()),
        Preset("headlines", _HEADLINES, ("text",), "label", _TOPIC.format("text"), ()),
    )
}
