"""Tasks: what a prompt is searched for."""

from pez_fast.tasks.bank import PhraseBank, load_bank
from pez_fast.tasks.classify import evaluate_classifier, learn_classifier, transfer
from pez_fast.tasks.concatenation import concatenate
from pez_fast.tasks.description import describe
from pez_fast.tasks.diffusion import invert_diffusion, noise_error
from pez_fast.tasks.generation import Generated, generate
from pez_fast.tasks.images import invert, invert_batch
from pez_fast.tasks.mixing import mix
from pez_fast.tasks.ratios import distill_study
from pez_fast.tasks.scores import score
from pez_fast.tasks.soft_prompt import save_soft_prompt
from pez_fast.tasks.style import apply_style
from pez_fast.tasks.target_text import continuation
from pez_fast.tasks.texts import distill
from pez_fast.tasks.with_bank import invert_with_bank

__all__ = [
    "concatenate",
    "apply_style",
    "Generated",
    "PhraseBank",
    "continuation",
    "describe",
    "distill",
    "distill_study",
    "evaluate_classifier",
    "generate",
    "invert",
    "invert_batch",
    "invert_diffusion",
    "learn_classifier",
    "mix",
    "noise_error",
    "invert_with_bank",
    "load_bank",
    "save_soft_prompt",
    "score",
    "transfer",
]
