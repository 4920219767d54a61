"""Fast, exact optimisation of hard prompts (PEZ). Importing this compiles nothing and loads no model library."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pez_fast.version import __version__

if TYPE_CHECKING:
    from pez_fast import compat as compat
    from pez_fast.config import SearchConfig as SearchConfig
    from pez_fast.dataset import study_lengths as study_lengths
    from pez_fast.functional import nearest_token as nearest_token
    from pez_fast.functional import project as project
    from pez_fast.functional import splice as splice
    from pez_fast.information import info as info
    from pez_fast.models import JointModel as JointModel
    from pez_fast.models import load_clip as load_clip
    from pez_fast.models import load_joint as load_joint
    from pez_fast.models import load_sentence_encoder as load_sentence_encoder
    from pez_fast.models.diffusion import load_pipeline as load_pipeline
    from pez_fast.models.language import LanguageModel as LanguageModel
    from pez_fast.models.language import load_lm as load_lm
    from pez_fast.optimizer import PEZ as PEZ
    from pez_fast.prompt_search import search as search
    from pez_fast.result import ClassifierResult as ClassifierResult
    from pez_fast.result import ClassifierScores as ClassifierScores
    from pez_fast.result import Concatenation as Concatenation
    from pez_fast.result import Description as Description
    from pez_fast.result import Distilled as Distilled
    from pez_fast.result import LengthStudy as LengthStudy
    from pez_fast.result import Mix as Mix
    from pez_fast.result import PromptResult as PromptResult
    from pez_fast.result import StyledPrompt as StyledPrompt
    from pez_fast.table import TokenTable as TokenTable
    from pez_fast.tasks import Generated as Generated
    from pez_fast.tasks import PhraseBank as PhraseBank
    from pez_fast.tasks import apply_style as apply_style
    from pez_fast.tasks import concatenate as concatenate
    from pez_fast.tasks import continuation as continuation
    from pez_fast.tasks import describe as describe
    from pez_fast.tasks import distill as distill
    from pez_fast.tasks import distill_study as distill_study
    from pez_fast.tasks import evaluate_classifier as evaluate_classifier
    from pez_fast.tasks import generate as generate
    from pez_fast.tasks import invert as invert
    from pez_fast.tasks import invert_batch as invert_batch
    from pez_fast.tasks import invert_diffusion as invert_diffusion
    from pez_fast.tasks import invert_with_bank as invert_with_bank
    from pez_fast.tasks import learn_classifier as learn_classifier
    from pez_fast.tasks import load_bank as load_bank
    from pez_fast.tasks import mix as mix
    from pez_fast.tasks import noise_error as noise_error
    from pez_fast.tasks import save_soft_prompt as save_soft_prompt
    from pez_fast.tasks import score as score
    from pez_fast.tasks import transfer as transfer

_HOME = {
    "TokenTable": "table",
    "nearest_token": "functional",
    "project": "functional",
    "splice": "functional",
    "PEZ": "optimizer",
    "JointModel": "models",
    "load_clip": "models",
    "load_joint": "models",
    "load_sentence_encoder": "models",
    "load_lm": "models.language",
    "load_pipeline": "models.diffusion",
    "LanguageModel": "models.language",
    "search": "prompt_search",
    "invert": "tasks",
    "invert_batch": "tasks",
    "distill": "tasks",
    "distill_study": "tasks",
    "apply_style": "tasks",
    "describe": "tasks",
    "invert_with_bank": "tasks",
    "load_bank": "tasks",
    "PhraseBank": "tasks",
    "score": "tasks",
    "concatenate": "tasks",
    "mix": "tasks",
    "learn_classifier": "tasks",
    "evaluate_classifier": "tasks",
    "transfer": "tasks",
    "continuation": "tasks",
    "save_soft_prompt": "tasks",
    "study_lengths": "dataset",
    "generate": "tasks",
    "Generated": "tasks",
    "invert_diffusion": "tasks",
    "noise_error": "tasks",
    "PromptResult": "result",
    "Concatenation": "result",
    "Mix": "result",
    "LengthStudy": "result",
    "Distilled": "result",
    "StyledPrompt": "result",
    "ClassifierResult": "result",
    "Description": "result",
    "ClassifierScores": "result",
    "SearchConfig": "config",
    "info": "information",
}
__all__ = ["__version__", "compat", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "compat":
        return import_module("pez_fast.compat")
    if name in _HOME:
        return getattr(import_module(f"pez_fast.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pez_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
