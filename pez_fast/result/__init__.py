"""What a task returns."""

from pez_fast.result.classifier import ClassifierResult, ClassifierScores
from pez_fast.result.lengths import LengthRow, LengthRun, LengthStudy, Spread
from pez_fast.result.pictures import Concatenation, Description, DescriptionPart, Distilled, Mix, StyledPrompt
from pez_fast.result.plain import finite_or_none
from pez_fast.result.prompt import Candidate, PromptResult

__all__ = [
    "Candidate",
    "ClassifierResult",
    "ClassifierScores",
    "Concatenation",
    "Description",
    "DescriptionPart",
    "Description",
    "DescriptionPart",
    "Distilled",
    "LengthRow",
    "LengthRun",
    "LengthStudy",
    "Mix",
    "PromptResult",
    "Spread",
    "StyledPrompt",
    "finite_or_none",
]
