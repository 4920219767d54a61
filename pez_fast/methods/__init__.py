"""Methods: what moves the ids of prompts."""

from pez_fast.methods.gcg import GCGMethod
from pez_fast.methods.pez import PEZMethod

__all__ = ["GCGMethod", "PEZMethod"]
