"""Frozen models that prompts are learned for."""

from pez_fast.models.clip import ClipEncoder
from pez_fast.models.hf_clip import HFClipEncoder
from pez_fast.models.joint import JointModel, load_joint
from pez_fast.models.loading import load_clip
from pez_fast.models.sentence import SentenceEncoder, load_sentence_encoder
from pez_fast.models.text_tower import TextEncoder

__all__ = [
    "ClipEncoder",
    "HFClipEncoder",
    "JointModel",
    "SentenceEncoder",
    "TextEncoder",
    "load_clip",
    "load_joint",
    "load_sentence_encoder",
]
