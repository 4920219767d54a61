"""What the scans must write, computed on the host: scores as tensor cores add them, and keys from them."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast import _C

TILE = 128


def scores(query: Tensor, unit: Tensor, capability: tuple[int, int]) -> Tensor:
    """query (n, width) and unit (tokens, width) float16 -> (n, tokens) float32; tokens is a multiple of TILE."""
    rule = (8, 24) if capability < (9, 0) else (16, 25)
    query, unit, width = query.contiguous(), unit.contiguous(), unit.shape[1]
    out = torch.empty(len(query), len(unit))
    for row in range(len(query)):
        for first in range(0, len(unit), TILE):
            place = out[row, first : first + TILE].data_ptr()
            _C.add_as_tensor_cores(query[row].data_ptr(), unit[first].data_ptr(), width, rule, place)
    return out


def packed(score: Tensor, group: Tensor, groups: int) -> Tensor:
    """Scores whose low bits are replaced by the number of their group."""
    return ((score.view(torch.int32) & -groups) | group.int()).view(torch.float32)


def two_best(score: Tensor, groups: int) -> Tensor:
    """score (…, groups): the best token's of each group -> (…, 2) float32, the two largest keys."""
    return packed(score.contiguous(), torch.arange(groups), groups).topk(2).values


def cuda_keys(query: Tensor, unit: Tensor, n: int, capability: tuple[int, int]) -> Tensor:
    """As csrc/cuda/keys.h: group 4 p + t has the tokens 16 p + 2 t + {0, 1, 8, 9}. -> (n, tiles, 2) float32"""
    found = scores(query[:n], unit, capability).view(n, -1, 8, 2, 4, 2)  # tile, p, 8, t, 1
    return two_best(found.amax((3, 5)).flatten(2), 32)


def triton_keys(
    query: Tensor, unit: Tensor, n: int, tiles: int, block_v: int, group_size: int, capability: tuple[int, int]
) -> Tensor:
    """As kernels/triton/scan.py: group g has the tokens g, g + groups, … -> (n, tiles) int64, the better one low."""
    groups, tokens = block_v // group_size, tiles * block_v
    padded = torch.zeros(-(-tokens // TILE) * TILE, unit.shape[1], dtype=unit.dtype)
    padded[:tokens] = unit[:tokens]
    found = scores(query[:n], padded, capability)[:, :tokens].reshape(n, tiles, group_size, groups).amax(2)
    best = two_best(found, groups).view(torch.int32).long()
    return (best[..., 1] << 32) | (best[..., 0] & 0xFFFFFFFF)
