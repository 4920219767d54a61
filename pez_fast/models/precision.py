"""In which precision a text tower is run while prompts are searched for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pez_fast._shared.linear import bfloat16_is_native
from pez_fast.config import DTYPES

_NARROW = 256  # width of a tower up to which a CPU gains nothing from smaller weights: they stay in its caches


def search_dtype(wanted: str | None, model: torch.dtype, width: int, device: torch.device) -> torch.dtype:
    """The dtype named, or by default the fastest that keeps quality: bfloat16 where the device multiplies in it.

    A model that is not float32 was loaded as it is for a reason, and is left so.

    Raises:
        ValueError: no such dtype, or one that the device cannot multiply in.
    """
    if wanted is None:
        if model != torch.float32:
            return model
        if device.type == "cuda":
            fast = not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            fast = device.type == "cpu" and width > _NARROW and bfloat16_is_native()
        return torch.bfloat16 if fast else torch.float32
    if wanted not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {wanted!r}")
    if wanted == "float16" and device.type == "cpu":
        raise ValueError("dtype='float16' is for GPUs; on a CPU use 'bfloat16' or 'float32'")
    return getattr(torch, wanted)


def text_part(model: Any, dtype: torch.dtype) -> Any:
    """The model's text part in another dtype: a copy without the image tower. Gives `model` where nothing is to be changed."""
    if all(p.dtype == dtype for name, p in model.named_parameters() if not name.startswith("visual.")):
        return model
    visual = getattr(model, "visual", None)
    part = copy.deepcopy(model, {id(visual): nn.Identity()} if visual is not None else {})
    for tensor in [*part.parameters(), *part.buffers()]:
        # A mask is made of zeros and infinities, which every floating dtype has.
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return part
