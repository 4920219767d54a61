"""Nearest token in torch: a float32 scan over blocks of the vocabulary; near ties are resolved exactly.

Same as `F.normalize(x) @ F.normalize(E).T` then `.argmax(-1)`, without the (N, V) matrix and without float32's errors.

The scan compares unit rows. Both unit vectors are rounded to float32 (2^-24 relative each) and the sum of d products
adds at most d 2^-24, in whatever order, so a scanned cosine is within `scan_error(d)` of the true one. A token whose
scanned cosine is more than twice that below the best scanned one cannot win. If one token is left, it has won. Several
are compared in float64, then in double-double where float64 cannot tell them apart, then exactly.

On a device without float64 the CPU makes the unit rows, the device scans them, and the CPU compares the candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pez_fast._shared import resolve_ties
from pez_fast._shared.linear import linear

ROWS = 1024  # queries scanned at once: a block has at most ROWS x resolve_ties.TOKENS scores
ELEMENTS = 1 << 22  # elements of the table prepared at once


def scan_error(d: int) -> float:
    """The bound on |scanned - true| cosine for rows of d elements."""
    return (d + 8) * 2.0**-24


def prepare(weight: Tensor, ids: Tensor) -> list[Tensor]:
    """weight (V, d), ids (K,) allowed rows -> [unit (K, d) float32]: unit rows; a zero row stays zero."""
    unit = torch.empty(len(ids), weight.shape[1], dtype=torch.float32, device=weight.device)
    step = max(1, ELEMENTS // weight.shape[1])
    for start in range(0, len(ids), step):
        unit[start : start + step] = resolve_ties.unit_rows(weight[ids[start : start + step]]).float()
    return [unit]


def nearest(
    x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,) allowed rows ascending, prepared -> ids (N,) int64, cosine (N,) float32.

    `counts` (3,) int64 is increased by the numbers of rows that the scan decided, of rows with several candidates, and
    of rows whose candidates overflowed a buffer (none here).
    """
    (unit,) = prepared
    found = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    similarity = torch.full((len(x),), torch.nan, dtype=torch.float32, device=x.device)
    with _full_precision(x.device.type):
        for start in range(0, len(x), ROWS):
            part = slice(start, start + ROWS)
            _nearest_rows(x[part], weight, ids, unit, found[part], similarity[part], counts)
    return found, similarity


def _nearest_rows(
    x: Tensor, weight: Tensor, ids: Tensor, unit: Tensor, found: Tensor, similarity: Tensor, counts: Tensor | None
) -> None:
    x = resolve_ties.to_float64_device(x)
    finite = x.isfinite().all(-1)
    directed = (finite & (x != 0).any(-1)).nonzero()[:, 0]
    winner = torch.where(finite, resolve_ties.to_float64_device(ids[0]), -1)  # a zero row has cosine 0 with every token
    cosine = torch.where(finite, 0, torch.nan).float()
    if len(directed):
        x = x[directed]
        q = resolve_ties.unit_rows(x).float().to(unit.device)
        rows, kept = resolve_ties.candidates(
            x, weight, ids, lambda start, stop: linear(q, unit[start:stop]), scan_error(x.shape[1])
        )
        if counts is not None:
            several = (torch.bincount(resolve_ties.to_float64_device(rows), minlength=len(x)) > 1).sum()
            counts += torch.stack([len(x) - several, several, torch.zeros_like(several)]).to(counts.device)
        nearest_ids = resolve_ties.resolve_ties(x, weight, rows, ids[kept])
        winner[directed] = nearest_ids
        cosine[directed] = resolve_ties.float64_cosine(x, resolve_ties.gather_rows(weight, nearest_ids)).float()
    found.copy_(winner)
    similarity.copy_(cosine)


@contextmanager
def _full_precision(device: str = "cpu") -> Iterator[None]:
    """Makes torch multiply float32 in full precision: the bound does not hold for TF32 or bfloat16 products."""
    autocast = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [b.fp32_precision for b in backends]
    try:
        for b in backends:
            b.fp32_precision = "ieee"
        with autocast:
            yield
    finally:
        for b, p in zip(backends, before, strict=True):
            b.fp32_precision = p
