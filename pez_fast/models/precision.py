"""The dtype that a text tower runs in during a search."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pez_fast._shared.devices import bfloat16_is_fast
from pez_fast.config import DTYPES

_NARROW_WIDTH = 256  # up to this width a tower's weights stay in a CPU's caches, and smaller weights gain nothing


def search_dtype(requested: str | None, model: torch.dtype, width: int, device: torch.device) -> torch.dtype:
    """Returns the requested dtype, or by default the fastest one that keeps quality.

    The default is bfloat16 if the device multiplies in it. It keeps the dtype of a model that is not float32, since its
    user chose that dtype.

    Args:
        requested: the name of a dtype, or None for the default.
        model: the dtype of the model.
        width: the width of the text tower.
        device: the device of the model.

    Raises:
        ValueError: the dtype is unknown, or the device cannot multiply in it.
    """
    if requested is None:
        if model != torch.float32:
            return model
        wide_enough = device.type != "cpu" or width > _NARROW_WIDTH
        fast = wide_enough and bfloat16_is_fast(device)
        return torch.bfloat16 if fast else torch.float32
    if requested not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {requested!r}")
    if requested == "float16" and device.type == "cpu":
        raise ValueError("dtype='float16' is for GPUs; on a CPU use 'bfloat16' or 'float32'")
    return getattr(torch, requested)


def text_part(model: Any, dtype: torch.dtype) -> Any:
    """Returns a copy of the model without the image tower, in another dtype; `model` itself if it has that dtype."""
    if all(p.dtype == dtype for name, p in model.named_parameters() if not name.startswith("visual.")):
        return model
    visual = getattr(model, "visual", None)
    part = copy.deepcopy(model, {id(visual): nn.Identity()} if visual is not None else {})
    for tensor in [*part.parameters(), *part.buffers()]:
        # An attention mask holds only zeros and infinities, which every floating dtype has.
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return part
