"""Adapters: they return the stages of each implementation's search and read its keys; no other module does.

An adapter is made for a table. `query(x)` returns query (np, dp) fp16, error (np,) float32, norm (np,) float64 and
state (np,) int32. `keys(x)` returns (n, tiles, 2) int32 bits, the better key of a tile first; `score` and `group` read
these.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from pez_fast import TokenTable
from pez_fast._shared import halves, resolve_ties
from pez_fast.ops import IMPLEMENTATIONS

TILE = 128  # tokens of a tile
# Tokens and elements are padded to these multiples, which fit the tiles of every implementation.
PADDED, WIDTH = 512, 64


def groups_of_lanes() -> Tensor:
    """(32, 4): the tokens of a tile's groups. Lane t of a quad accumulates the scores of groups 4 p + t."""
    p, t = torch.arange(8)[:, None, None], torch.arange(4)[None, :, None]
    return (16 * p + 2 * t + torch.tensor([0, 1, 8, 9])).reshape(32, 4)


class Adapter:
    """Keys that are float32 scores; the low bits number a group of tokens of a tile, here 32 groups of 4."""

    impl: str
    tile = TILE

    def __init__(self, table: TokenTable) -> None:
        self.table = table
        self.prepared = table.prepared(self.impl)
        # Made here, so that the order and the layout of what an implementation prepares do not matter.
        self.unit, self.residual = halves.half_unit_rows(table.weight, table.ids, PADDED, WIDTH)[:2]
        self.tokens = groups_of_lanes().to(table.device)

    def query(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def keys(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def score(self, keys: Tensor) -> Tensor:
        return (keys & -len(self.tokens)).view(torch.float32)

    def group(self, keys: Tensor) -> Tensor:
        return (keys & (len(self.tokens) - 1)).long()

    def slack(self) -> float:
        """How far a scanned score may be from the product of its fp16 operands."""
        capability = torch.cuda.get_device_capability() if self.table.device.type == "cuda" else (8, 0)
        return halves.scan_slack(self.unit.shape[1], capability, len(self.tokens))

    def found(self, x: Tensor) -> tuple[Tensor, Tensor]:
        search = import_module(f"{IMPLEMENTATIONS[self.impl].package}.nearest").nearest
        return search(x, self.table.weight, self.table.ids, self.prepared)


class Cuda(Adapter):
    impl = "cuda"

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        from pez_fast._cuda.nearest import stages

        return stages(x, self.table.weight, self.table.ids, self.prepared)

    def query(self, x: Tensor) -> dict[str, Tensor]:
        found = self.stages(x)
        return {"query": found["query"], "error": found["error"], "norm": found["norm"], "state": found["kind"]}

    def keys(self, x: Tensor) -> Tensor:
        return self.stages(x)["keys"].view(torch.int32)


class Triton(Adapter):
    """Group g of a tile has its tokens g, g + groups, g + 2 groups, …; the number of rows decides how many groups."""

    impl = "triton"

    def query(self, x: Tensor) -> dict[str, Tensor]:
        from pez_fast._triton.nearest import queries

        return dict(zip(("query", "error", "norm", "state"), queries(x, self.unit.shape[1]), strict=True))

    def keys(self, x: Tensor) -> Tensor:
        from pez_fast._triton import tune
        from pez_fast._triton.nearest import scan_keys

        query = self.query(x)["query"]
        n, tokens = len(x), len(self.table.ids)
        scan = tune.configuration(
            x.device, n, x.shape[1], tokens, lambda scan: scan_keys(query, self.unit, n, tokens, scan)
        )
        self.tile, each = scan.block_v, tune.group_size(n)
        groups = self.tile // each
        self.tokens = torch.arange(self.tile, device=x.device).view(each, groups).T
        # The better key of a tile is the low half of its int64.
        return scan_keys(query, self.unit, n, tokens, scan).view(torch.int32).view(n, -1, 2)


class Torch(Adapter):
    """The same stages in plain torch, with CUDA's groups: for a rehearsal."""

    impl = "torch"

    def query(self, x: Tensor) -> dict[str, Tensor]:
        n, d = x.shape
        finite = x.isfinite().all(-1)
        rows = resolve_ties.power_scaled(torch.where(finite[:, None], x, 0))
        norm = rows.norm(dim=-1)
        unit = rows / torch.where(norm > 0, norm, 1)[:, None]
        query = torch.zeros(n, self.unit.shape[1], dtype=torch.float16, device=x.device)
        query[:, :d] = unit
        error = ((unit - query[:, :d].double()).norm(dim=-1) * (1 + 1e-6) + 1e-12).float()
        return {"query": query, "error": error, "norm": norm, "state": torch.where(finite, (norm == 0).int(), 2).int()}

    def keys(self, x: Tensor) -> Tensor:
        scores = self.query(x)["query"].float() @ self.unit.float().T
        tiles = -(-len(self.table.ids) // TILE)
        best = scores[:, : tiles * TILE].view(len(x), tiles, TILE)[:, :, self.tokens].amax(-1).topk(2, -1)
        return (best.values.view(torch.int32) & -len(self.tokens)) | best.indices.int()


ADAPTERS: dict[str, Callable[[TokenTable], Adapter]] = {"cuda": Cuda, "triton": Triton, "torch": Torch}
