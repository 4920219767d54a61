"""Adapters that let a frozen model be fed token embeddings."""

from pez_fast.encoders.clip import ClipEncoder, load_clip
from pez_fast.encoders.text import TextEncoder

__all__ = ["ClipEncoder", "TextEncoder", "load_clip"]
