"""Language models: how they are loaded, run over many prompts, and asked for labels."""

from pez_fast.models.language.model import LanguageModel, load_lm
from pez_fast.models.language.task import Examples, LabelModel, LabelTask

__all__ = ["Examples", "LabelModel", "LabelTask", "LanguageModel", "load_lm"]
