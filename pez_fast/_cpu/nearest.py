"""Nearest token on a CPU: int8 scan in C++ with a certified bound, float64 for what it leaves, near ties settled exactly.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix. The scan reads a quarter of the bytes
of a float32 table, and multiplies four at once with AVX512-VNNI, AVX-VNNI or AVX2 (csrc/cpu/kernels.h has its bound).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast import _C
from pez_fast._shared import settle
from pez_fast._shared.memory import matrix
from pez_fast._shared.threads import threads


def instruction_set() -> str:
    """What the scan uses: avx512vnni, avxvnni, avx2 or portable."""
    return _C.instruction_set()


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> values (T, d/4, 64, 4) uint8, scale and error (T, 64), power and inverse norm (K,)."""
    blocks, quads = -(-len(ids) // _C.TOKENS), -(-weight.shape[1] // 4)
    values = torch.empty(blocks, quads, _C.TOKENS, 4, dtype=torch.uint8)
    scale, error = (torch.empty(blocks, _C.TOKENS, dtype=torch.float32) for _ in range(2))
    power, inverse = (torch.empty(len(ids), dtype=torch.float64) for _ in range(2))
    prepared = [values, scale, error, power, inverse]
    _C.pack(matrix(weight), _table(ids, prepared), threads())
    return prepared


def nearest(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, what was prepared -> ids (N,) int64, cosine (N,) float32.

    `counts` (3,) int64 is added to: rows that the scan decided, rows with several candidates, rows with more than were noted.
    """
    found = torch.empty(len(x), dtype=torch.int64)
    similarity = torch.empty(len(x), dtype=torch.float32)
    rows, tokens, crowded, counted = _C.nearest(
        matrix(x), matrix(weight), _table(ids, prepared), threads(), found.data_ptr(), similarity.data_ptr()
    )
    with torch.autocast("cpu", enabled=False):
        if rows:
            row, at = torch.tensor(rows).unique(return_inverse=True)
            found[row] = settle.settle(x[row], weight, at, torch.tensor(tokens))
        if crowded:
            row = torch.tensor(crowded)
            found[row] = settle.exhaustive(x[row], weight, ids)
            similarity[row] = settle.float64_cosine(x[row], weight[found[row]]).float()
    if counts is not None:
        counts += torch.tensor(counted)
    return found, similarity


def _table(ids: Tensor, prepared: list[Tensor]) -> tuple[int, ...]:
    return ids.data_ptr(), len(ids), *(t.data_ptr() for t in prepared)
