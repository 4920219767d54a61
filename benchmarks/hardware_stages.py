"""Finds where a wrong id comes from: compares each stage of a search with torch, and says which rows and tiles differ.

The query: the rows as fp16 unit vectors, what rounding took, the norm, the state. The keys: the two best groups of
every tile, compared with torch's own product of the fp16 operands. The decision: whether the keys allowed the right id.
`hardware_adapters.py` returns the stages of each implementation.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from hardware_adapters import ADAPTERS, Adapter
from hardware_smoke import problem
from torch import Tensor

from pez_fast._shared import resolve_ties

if TYPE_CHECKING:
    from hardware_child import Task

SHAPES = [(16, 1003, 61), (300, 1500, 128), (16, 49_408, 1024), (300, 49_408, 1024)]  # rows, tokens, width
TINY = [(7, 203, 61), (130, 512, 64)]
SHOWN = 50
ROWS = 128  # rows of a tile of the scan
ZERO, NOT_A_NUMBER, INFINITE = 1, 2, 3  # the numbers of the rows that hold such values


def stages(task: Task) -> None:
    for n, v, d in TINY if task.tiny else SHAPES:
        x, table = problem(n, v, d, near_ties=v < 2000, device=task.device)
        x[ZERO], x[NOT_A_NUMBER, 0], x[INFINITE, d // 2] = 0, torch.nan, torch.inf
        x[4], x[5] = x[4] * 1e30, x[5] * 1e-30
        adapter, shape = ADAPTERS[task.impl](table), {"rows": n, "tokens": v, "width": d}
        given: dict[str, Any] = {}

        def query(x: Tensor = x, adapter: Adapter = adapter, given: dict[str, Any] = given) -> dict[str, Any]:
            given["query"] = adapter.query(x)
            return check_query(x, given["query"])

        def keys(x: Tensor = x, adapter: Adapter = adapter, given: dict[str, Any] = given) -> dict[str, Any]:
            given["keys"] = adapter.keys(x)
            half = given["query"]["query"][: len(x)]
            return check_keys(adapter, given["keys"], half.double() @ adapter.unit.double().T, adapter.slack())

        def decision(x: Tensor = x, adapter: Adapter = adapter, given: dict[str, Any] = given) -> dict[str, Any]:
            return check_decision(x, adapter, given["query"]["error"][: len(x)], given["keys"])

        for stage in (query, keys, decision):
            task.at(f"the {stage.__name__} of {n} rows in {v} tokens of {d}")
            try:
                task.add({"stage": stage.__name__, **shape, **stage()})
            except Exception as e:
                error = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
                task.add({"stage": stage.__name__, **shape, "error": error})
                if task.device == "cuda":
                    torch.cuda.synchronize()  # a sticky CUDA error ends this process here


def states(x: Tensor) -> Tensor:
    """(n,) int32: 0 where a row has a direction, 1 where it is zero, 2 where it is not finite."""
    return torch.where(~x.isfinite().all(-1), 2, (x == 0).all(-1).int()).int()


def check_query(x: Tensor, found: dict[str, Tensor]) -> dict[str, Any]:
    """Compare query (np, dp) fp16, error (np,), state (np,) and norm (np,), if there is one, with those of x (n, d)."""
    n, d = x.shape
    state = states(x)
    rows = torch.where((state == 0)[:, None], x, 0)
    unit = resolve_ties.unit_rows(rows)
    half = found["query"][:n].double()
    # Half a unit in the last place. Rounding through float32 first may go either way at an exact middle.
    off = ~((half[:, :d] - unit).abs() <= unit.abs() * 2.0**-11 * (1 + 1e-3) + 2.0**-25 * (1 + 1e-3))
    lost = (half[:, :d] - unit).norm(dim=-1)
    error = found["error"][:n].double()
    bad = {
        "query": off.any(-1),
        "padding": (half[:, d:] != 0).any(-1),
        "error": ~((error >= lost * (1 - 1e-9)) & (error <= lost * (1 + 1e-5) + 1e-9)),
        "state": found["state"][:n] != state,
    }
    if "norm" in found:
        true = resolve_ties.power_scaled(rows).norm(dim=-1)
        bad["norm"] = (state == 0) & ~((found["norm"][:n].double() - true).abs() <= 1e-12 * true)
    at = torch.stack(list(bad.values())).any(0).nonzero()[:, 0]
    shown = [
        {
            "row": row,
            "row_of_128": row % ROWS,
            "what": [name for name, rows in bad.items() if rows[row]],
            "columns": off[row].nonzero()[:8, 0].tolist(),
            "norm_of_what_was_lost": float(lost[row]),
            "error": float(error[row]),
            "state": int(found["state"][row]),
        }
        for row in at[:SHOWN].tolist()
    ]
    counts = {f"{name}_off": int(rows.sum()) for name, rows in bad.items()}
    return {"mismatches": len(at), **counts, "examples": shown, "by_row_of_128": _tally(at % ROWS)}


def check_keys(adapter: Adapter, keys: Tensor, product: Tensor, slack: float) -> dict[str, Any]:
    """Compare keys (n, tiles, 2) with the product (n, Kp) of the same fp16 operands, off by up to `slack`.

    A key is wrong if its group does not have its score, if another group is better by more than both scores may be off,
    or if both keys name the same group.
    """
    n, tiles, _ = keys.shape
    score, group = adapter.score(keys).double(), adapter.group(keys)
    product = product[:, : tiles * adapter.tile].view(n, tiles, adapter.tile)
    best = product[:, :, adapter.tokens].amax(-1)  # (n, tiles, groups)
    top = best.topk(min(2, best.shape[-1]), -1)
    named = best.gather(2, group.clamp(0, best.shape[-1] - 1))
    kinds = {
        "score": ~((score - named).abs() <= slack),
        "missed": ~(named >= top.values - 2 * slack),
        "twice": torch.stack([torch.zeros_like(group[..., 0], dtype=torch.bool), group[..., 0] == group[..., 1]], -1),
    }
    wrong = torch.stack(list(kinds.values())).any(0)
    at, largest, shown = wrong.nonzero(), (score - named).abs(), []
    for row, tile, which in at[:SHOWN].tolist():
        here, should = (int(t[row, tile, which]) for t in (group, top.indices))
        shown.append(
            {
                "row": row,
                "row_of_128": row % ROWS,
                "tile": tile,
                "which": ("best", "second")[which],
                "what": [name for name, bad in kinds.items() if bad[row, tile, which]],
                "group": here,
                "tokens": adapter.tokens[here].tolist() if 0 <= here < len(adapter.tokens) else None,
                "score": float(score[row, tile, which]),
                "product": float(named[row, tile, which]),
                "best_group": should,
                "best_tokens": adapter.tokens[should].tolist(),
                "best_product": float(top.values[row, tile, which]),
            }
        )
    return {
        "mismatches": len(at),
        "of": wrong.numel(),
        **{f"{name}_off": int(bad.sum()) for name, bad in kinds.items()},
        "largest_error": float(largest.nan_to_num(torch.inf).max()),
        "slack": slack,
        "examples": shown,
        "by_row_of_128": _tally(at[:, 0] % ROWS),
        "by_tile_parity": _tally(at[:, 1] % 2),
        "by_which": _tally(at[:, 2]),
        "by_group": _tally(group[wrong]),
        "by_best_group": _tally(top.indices[wrong]),
    }


def check_decision(x: Tensor, adapter: Adapter, error: Tensor, keys: Tensor) -> dict[str, Any]:
    """Compare the ids with the oracle's. If the keys allowed the right id, the decision is to blame."""
    table, state = adapter.table, states(x)
    expected = torch.where(state == 2, -1, table.ids[0])
    directed = (state == 0).nonzero()[:, 0]
    expected[directed] = resolve_ties.exhaustive(x[directed], table.weight, table.ids)
    found, similarity = adapter.found(x)
    allowed, candidates, whole = _allowed(adapter, error, keys, expected.clamp_min(0))
    wrong = found != expected
    shown = []
    for row in wrong.nonzero()[:SHOWN, 0].tolist():
        position = int(torch.searchsorted(table.ids, expected[row].clamp_min(0)))
        shown.append(
            {
                "row": row,
                "row_of_128": row % ROWS,
                "found": int(found[row]),
                "expected": int(expected[row]),
                "state": int(state[row]),
                "similarity": float(similarity[row]),
                "tile": position // adapter.tile,
                "in_tile": position % adapter.tile,
                "candidates": int(candidates[row]),
                "whole_tiles": int(whole[row]),
                "to_blame": "the decision" if state[row] or allowed[row] else "the keys",
            }
        )
    return {
        "mismatches": int(wrong.sum()),
        "of": len(wrong),
        "to_blame": dict(Counter(each["to_blame"] for each in shown)),
        "keys_exclude_the_right_one": int((~allowed & (state == 0)).sum()),
        "examples": shown,
        "by_row_of_128": _tally(wrong.nonzero()[:, 0] % ROWS),
        "candidates_per_row": float(candidates[directed].double().mean()),
        "rows_with_whole_tiles": int((whole[directed] > 0).sum()),
    }


def _allowed(adapter: Adapter, error: Tensor, keys: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each row: whether the keys allow the token `right`, the keys that reach the limit, tiles where both do."""
    score, group = adapter.score(keys), adapter.group(keys)
    eps = adapter.residual + error * (1 + adapter.residual) + adapter.slack()
    reaches = score >= (score[..., 0].amax(1) - 2 * eps)[:, None, None]
    position = torch.searchsorted(adapter.table.ids, right)
    row = torch.arange(len(right), device=right.device)
    tile = position // adapter.tile
    its_group = (adapter.tokens[None] == (position % adapter.tile)[:, None, None]).any(-1).int().argmax(-1)
    inside = (reaches[row, tile] & (group[row, tile] == its_group[:, None])).any(-1) | reaches[row, tile, 1]
    return inside, reaches.sum((1, 2)), reaches[..., 1].sum(1)


def _tally(values: Tensor) -> dict[int, int]:
    """How often each value occurs."""
    kinds, counts = values.unique(return_counts=True)
    return dict(zip(kinds.tolist(), counts.tolist(), strict=True))
