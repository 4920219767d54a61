"""The engine: it searches for many prompts at once, with any model, objective and method."""

from pez_fast.engine.evaluate import BatchLimit, Evaluator, Joined
from pez_fast.engine.protocols import (
    BoundModel,
    Evaluate,
    Evaluation,
    Method,
    Objective,
    Outputs,
    PromptModel,
    State,
    StochasticModel,
    Vocabulary,
)
from pez_fast.engine.scheduler import Scheduler
from pez_fast.engine.state import Request, SearchState, Stage, TensorState

__all__ = [
    "BatchLimit",
    "BoundModel",
    "Evaluate",
    "Evaluation",
    "Evaluator",
    "Joined",
    "Method",
    "Objective",
    "Outputs",
    "PromptModel",
    "Request",
    "Scheduler",
    "SearchState",
    "Stage",
    "State",
    "StochasticModel",
    "TensorState",
    "Vocabulary",
]
