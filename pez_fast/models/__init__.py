"""Frozen models that prompts are learned for."""

from pez_fast.models.clip import ClipEncoder
from pez_fast.models.loading import load_clip
from pez_fast.models.text_tower import TextEncoder

__all__ = ["ClipEncoder", "TextEncoder", "load_clip"]
