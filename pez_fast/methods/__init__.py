"""How the ids of prompts move."""

from pez_fast.methods.gcg import GCGMethod
from pez_fast.methods.pez import PEZMethod

__all__ = ["GCGMethod", "PEZMethod"]
