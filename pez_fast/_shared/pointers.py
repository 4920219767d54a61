"""Tensors as the extensions take them: addresses, sizes, strides."""

from __future__ import annotations

import torch
from torch import Tensor

TYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


def matrix(x: Tensor) -> tuple[int, int, int, int, int, int]:
    """x (N, d) -> its address, type, rows, columns and strides."""
    return x.data_ptr(), TYPES[x.dtype], *x.shape, *x.stride()
