"""Nearest token on a CPU: an int8 scan in C++ with a proven bound, then float64; near ties are resolved exactly.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix. The scan reads a quarter of
the bytes of a float32 table, and multiplies four elements at once with AVX512-VNNI, AVX-VNNI or AVX2
(csrc/cpu/kernels.h states its bound).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast import _C
from pez_fast._shared import resolve_ties
from pez_fast._shared.pointers import matrix
from pez_fast._shared.threads import threads


def instruction_set() -> str:
    """The instruction set of the scan: avx512vnni, avxvnni, avx2 or portable."""
    return _C.instruction_set()


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [values, scale, error, power, inverse].

    values (T, d/4, 64, 4) uint8; scale and error (T, 64) float32; power and inverse norm (K,) float64.
    """
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
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, prepared -> ids (N,) int64, cosine (N,) float32.

    `counts` (3,) int64 is increased by the numbers of rows that the scan decided, of rows with several candidates, and
    of rows whose candidates overflowed the buffer.
    """
    found = torch.empty(len(x), dtype=torch.int64)
    similarity = torch.empty(len(x), dtype=torch.float32)
    rows, tokens, overflowed, counted = _C.nearest(
        matrix(x), matrix(weight), _table(ids, prepared), threads(), found.data_ptr(), similarity.data_ptr()
    )
    with torch.autocast("cpu", enabled=False):
        if rows:
            row, at = torch.tensor(rows).unique(return_inverse=True)
            found[row] = resolve_ties.resolve_ties(x[row], weight, at, torch.tensor(tokens))
        if overflowed:
            row = torch.tensor(overflowed)
            found[row] = resolve_ties.exhaustive(x[row], weight, ids)
            similarity[row] = resolve_ties.float64_cosine(x[row], weight[found[row]]).float()
    if counts is not None:
        counts += torch.tensor(counted)
    return found, similarity


def _table(ids: Tensor, prepared: list[Tensor]) -> tuple[int, ...]:
    return ids.data_ptr(), len(ids), *(t.data_ptr() for t in prepared)
