"""The token table: a frozen vocabulary, prepared once for the search of nearest tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pez_fast import ops
from pez_fast._shared.resolve_ties import float64_device, gather_rows, to_float64_device

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CHUNK = 1 << 22  # elements prepared at once


class TokenTable:
    """A frozen table of token embeddings, and what the search over it needs.

    Args:
        weight: (V, d) float64, float32, float16 or bfloat16, or an `nn.Embedding`; it is referred to, not copied.
        banned: tokens that must never be found: ids, or a bool mask (V,).

    Attributes:
        weight: (V, d), detached.
        allowed: (V,) bool: not banned.
        ids: (K,) int64, ascending: the allowed rows; of equal rows only the lowest id.

    The table is frozen by contract: after changing `weight`, call `refresh()`. With `PEZ_FAST_DEBUG=1` every search
    checks that this was not forgotten.

    The table works on every device of torch. If a device has no float64, the CPU prepares the rows, a few million
    elements at a time.

    Raises:
        TypeError: weight is no floating-point tensor or embedding.
        ValueError: a wrong shape, an entry that is not finite, a banned id outside the table, or every token banned.
    """

    def __init__(self, weight: Tensor | nn.Embedding, banned: Tensor | Iterable[int] | None = None) -> None:
        if isinstance(weight, nn.Embedding):
            weight = weight.weight
        if not isinstance(weight, Tensor) or weight.dtype not in _FLOATS:
            kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(
                f"weight must be a float64, float32, float16 or bfloat16 tensor or an nn.Embedding; got {kind}"
            )
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(
                f"weight must be (V, d) with at least one token and one dimension; got {tuple(weight.shape)}"
            )
        ops.warn_of_source_folder()
        self.weight = weight.detach()
        self.allowed = ~self._mask(banned)
        self.refresh()

    def _mask(self, banned: Tensor | Iterable[int] | None) -> Tensor:
        mask = torch.zeros(len(self.weight), dtype=torch.bool, device=self.weight.device)
        if banned is None:
            return mask
        if not isinstance(banned, (Tensor, Iterable)) or isinstance(banned, (str, bytes)):
            raise TypeError(f"banned must be ids or a bool mask; got {type(banned).__name__}")
        if not isinstance(banned, Tensor):
            banned = list(banned)
            wrong = [b for b in banned if not isinstance(b, (int, Tensor)) and not hasattr(b, "__index__")]
            if wrong:
                raise TypeError(f"banned must hold whole numbers; got the {type(wrong[0]).__name__} {wrong[0]!r}")
            banned = torch.tensor(banned, dtype=None if banned else torch.int64)
        if banned.is_floating_point() or banned.is_complex():
            raise TypeError(
                f"banned must be ids or a bool mask; got a {str(banned.dtype).removeprefix('torch.')} tensor"
            )
        banned = banned.to(mask.device)
        if banned.dtype == torch.bool:
            if banned.shape != mask.shape:
                raise ValueError(
                    f"banned must be a mask of shape ({len(mask)},) or ids; got a mask {tuple(banned.shape)}"
                )
            return banned.clone()
        banned = banned.reshape(-1).long()
        outside = banned[(banned < 0) | (banned >= len(mask))]
        if len(outside):
            raise ValueError(f"banned must hold ids from 0 to {len(mask) - 1}; got {int(outside[0])}")
        mask[banned] = True
        return mask

    def refresh(self) -> None:
        """Prepare the table again after a change of `weight`."""
        if not self.allowed.any():
            raise ValueError(f"banned leaves no token: all {len(self.weight)} are banned")
        finite = self.weight.isfinite().all(-1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise ValueError(f"weight must be finite; row {row} is not")
        self._fingerprint: int | None = None
        self.ids = self.allowed.nonzero()[:, 0]
        self.ids = self.ids[self._first_of_equal_rows(to_float64_device(self.ids)).to(self.device)]
        self._prepared: dict[str, list[Tensor]] = {}
        self.prepared(ops.resolve_impl("auto", self.device))
        if debugging():
            self._fingerprint = self.fingerprint()

    def prepared(self, impl: str) -> list[Tensor]:
        """The tensors that an implementation needs of this table; the first call makes them."""
        if impl not in self._prepared:
            self._prepared[impl] = ops.prepare(impl, self.weight, self.ids)
        return self._prepared[impl]

    def _first_of_equal_rows(self, ids: Tensor) -> Tensor:
        """ids (K,) int64 on the float64 device -> (K,) bool there: whether no lower id of `ids` has the same row."""
        few = torch.linspace(0, self.dim - 1, min(8, self.dim), device=self.device).long()
        _, group, size = _row_hashes(self.weight[ids.to(self.device)[:, None], few]).unique(
            return_inverse=True, return_counts=True
        )
        first = torch.ones_like(ids, dtype=torch.bool)
        suspects = (size[group] > 1).nonzero()[:, 0]  # rows that agree with another one in a few columns
        if len(suspects):
            rows = ids[suspects]
            _, group = _row_hashes(self.weight[rows.to(self.device)]).unique(return_inverse=True)
            lowest = torch.full_like(rows, len(self.weight)).scatter_reduce_(0, group, rows, "amin")[group]
            step = max(1, _CHUNK // self.dim)
            for start in range(0, len(rows), step):  # equal hashes do not prove equal rows
                part = slice(start, start + step)
                equal = (gather_rows(self.weight, rows[part]) == gather_rows(self.weight, lowest[part])).all(-1)
                first[suspects[part]] = (lowest[part] == rows[part]) | ~equal
        return first

    def fingerprint(self) -> int:
        """A number that changes with the weights."""
        hashes = _row_hashes(self.weight)
        return int((hashes * (2 * torch.arange(len(hashes), device=hashes.device) + 1)).sum())

    def check_unchanged(self) -> None:
        """Under `PEZ_FAST_DEBUG=1`: raise RuntimeError if the weights changed since they were prepared."""
        if self._fingerprint is not None and self.fingerprint() != self._fingerprint:
            raise RuntimeError("the weights of this TokenTable were changed after it was made; call refresh()")

    @property
    def dim(self) -> int:
        return self.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def __len__(self) -> int:
        return len(self.weight)

    def __repr__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        allowed = f"{len(self.ids)} distinct and allowed"
        return f"TokenTable({len(self)} tokens of {self.dim}, {name} on {self.device}, {allowed})"


def _row_hashes(rows: Tensor) -> Tensor:
    """rows (N, d) -> (N,) int64 on their float64 device: equal rows have equal hashes."""
    generator = torch.Generator().manual_seed(0x9E3779B9)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator)
    factors = factors.to(float64_device(rows.device)) * 2 + 1
    hashes = []
    for part in rows.split(max(1, _CHUNK // rows.shape[1])):
        bits = (to_float64_device(part).double() + 0.0).view(torch.int64)  # + 0.0 turns -0 into 0
        hashes.append(((bits ^ (bits >> 29)) * factors).sum(-1))
    return torch.cat(hashes)


def debugging() -> bool:
    return os.environ.get("PEZ_FAST_DEBUG") == "1"
