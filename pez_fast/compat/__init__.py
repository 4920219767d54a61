"""The functions of the original code's `optim_utils.py`, with its arguments and results (Wen et al. 2023).

    from pez_fast.compat import *   # in place of: from optim_utils import *

They work on stock open_clip models; no modified copy is needed, and the original's own copy in a folder `open_clip`
beside the script does no harm. They draw random numbers in the original's order from
torch's global generator, so a seed gives the prompt that it gave there, up to rounding: one pass of the tower over the
prompt's own tokens replaces two passes over the whole context.

The star import also gives the modules and functions that the original's gave to scripts which rely on it.

They keep four properties of the original on purpose, because results depend on them: they draw and learn tokens from
the whole vocabulary, start and end token included; typing the returned text in again may give other tokens; they never
score the projection after the last update; with a negative loss_weight and prompt_bs > 1 they still rank the prompts of
one step by the largest cosine. `pez_fast.invert` has none of these properties.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image

from pez_fast.compat.optimize import optimize_prompt, optimize_prompt_loop
from pez_fast.compat.utilities import (
    decode_ids,
    dot_score,
    download_image,
    get_target_feature,
    initialize_prompt,
    measure_similarity,
    nn_project,
    normalize_embeddings,
    read_json,
    semantic_search,
    set_random_seed,
)

__all__ = [
    "decode_ids",
    "download_image",
    "get_target_feature",
    "initialize_prompt",
    "measure_similarity",
    "nn_project",
    "optimize_prompt",
    "optimize_prompt_loop",
    "read_json",
    "set_random_seed",
    # what scripts took from the original's own imports
    "Any",
    "BytesIO",
    "Image",
    "Mapping",
    "copy",
    "dot_score",
    "json",
    "mean",
    "normalize_embeddings",
    "np",
    "open_clip",
    "random",
    *(["requests"] if find_spec("requests") else []),
    "semantic_search",
    "torch",
]


def __getattr__(name: str) -> Any:
    """The modules of the star import that are slow to import."""
    if name in ("open_clip", "requests") and name in __all__:
        return import_module(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
