"""Methods: what moves the ids of prompts."""

from pez_fast.methods.autoprompt import AutoPromptMethod, AutoPromptSGDMethod
from pez_fast.methods.beam import BeamMethod
from pez_fast.methods.fluentprompt import FluentPromptMethod
from pez_fast.methods.gcg import GCGMethod
from pez_fast.methods.pez import PEZMethod
from pez_fast.methods.probe import ProbeMethod
from pez_fast.methods.soft import SoftPromptMethod

__all__ = [
    "AutoPromptMethod",
    "AutoPromptSGDMethod",
    "BeamMethod",
    "FluentPromptMethod",
    "GCGMethod",
    "PEZMethod",
    "ProbeMethod",
    "SoftPromptMethod",
]
