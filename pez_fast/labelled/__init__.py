"""Labelled examples, and how a language model reads them: templates, verbalizers, presets and choices of rows.

Messages count rows from 1.
"""

from pez_fast.labelled.config import LEARNING, LabelConfig, LabelOptions, split_options
from pez_fast.labelled.examples import read_examples
from pez_fast.labelled.presets import PRESETS, Preset
from pez_fast.labelled.sampling import draws, few_shot, split_rows
from pez_fast.labelled.template import Template, separator
from pez_fast.labelled.verbalizer import Verbalizer

__all__ = [
    "LEARNING",
    "PRESETS",
    "LabelConfig",
    "LabelOptions",
    "Preset",
    "Template",
    "Verbalizer",
    "draws",
    "few_shot",
    "read_examples",
    "separator",
    "split_options",
    "split_rows",
]
