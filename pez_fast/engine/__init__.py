"""The search for many prompts at once."""

from pez_fast.engine.batch import Engine, Take, search
from pez_fast.engine.cohort import Cohort, Part, Settings
from pez_fast.engine.polish import polish
from pez_fast.engine.steps import Encode, RowObjective, Step, pez_steps

__all__ = [
    "Cohort",
    "Encode",
    "Engine",
    "Part",
    "RowObjective",
    "Settings",
    "Step",
    "Take",
    "pez_steps",
    "polish",
    "search",
]
