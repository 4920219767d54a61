"""The tasks: inversion of images, shared styles, and distillation of texts."""

from pez_fast.tasks.images import invert, invert_batch
from pez_fast.tasks.scores import score
from pez_fast.tasks.texts import distill

__all__ = ["distill", "invert", "invert_batch", "score"]
