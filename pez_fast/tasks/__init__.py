"""Tasks: what a prompt is searched for."""

from pez_fast.tasks.bank import PhraseBank, load_bank
from pez_fast.tasks.classify import evaluate_classifier, learn_classifier, transfer
from pez_fast.tasks.description import describe
from pez_fast.tasks.images import invert, invert_batch
from pez_fast.tasks.scores import score
from pez_fast.tasks.soft_prompt import save_soft_prompt
from pez_fast.tasks.target_text import continuation
from pez_fast.tasks.texts import distill
from pez_fast.tasks.with_bank import invert_with_bank

__all__ = [
    "PhraseBank",
    "continuation",
    "describe",
    "distill",
    "evaluate_classifier",
    "invert",
    "invert_batch",
    "invert_with_bank",
    "learn_classifier",
    "load_bank",
    "save_soft_prompt",
    "score",
    "transfer",
]
