"""What the methods share that move soft prompts by AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pez_fast import ops
from pez_fast._shared.devices import graphs_are_possible
from pez_fast.config import LEARNING_RATE, WEIGHT_DECAY
from pez_fast.methods.checks import check_numbers
from pez_fast.methods.projection import nearest_ids
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable


@dataclass(frozen=True)
class AdamWMethod:
    """The part of a method that moves soft prompts by AdamW (Loshchilov and Hutter 2019, algorithm 2).

    Args:
        lr, weight_decay: options of AdamW.
        impl: the implementation of the nearest-token search.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    lr: float = LEARNING_RATE
    weight_decay: float = WEIGHT_DECAY
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_numbers(self, "lr", "weight_decay")

    def capturable(self, device: torch.device) -> bool:
        """Returns whether a step on the device can be captured as a CUDA graph."""
        return ops.capturable(self.impl, device)

    def init(self, ids: Tensor, table: TokenTable, seed: int = 0) -> PEZState:
        """Returns soft prompts, float32 or wider, at the embeddings of ids (R, L) int64; `seed` is not used."""
        soft = table.weight[ids].to(torch.promote_types(table.dtype, torch.float32))
        options = {"lr": self.lr, "weight_decay": self.weight_decay, "impl": self.impl}
        return PEZState([PEZ(soft, table, **options, capturable=graphs_are_possible(soft.device))])  # type: ignore[arg-type]

    def _nearest(self, state: PEZState, soft: Tensor, table: TokenTable) -> Tensor:
        """Returns the nearest tokens (R, L) int64 of the state's soft prompts (R, L, d)."""
        settings = f"lr={self.lr!r} and weight_decay={self.weight_decay!r}"
        return nearest_ids(soft, table, self.impl, settings, state.updates)


@dataclass(frozen=True)
class PEZState:
    """Soft prompts with their optimisers.

    Attributes:
        optimizers: one `PEZ` for the prompts that have made the same number of steps; their rows follow one another.
    """

    optimizers: Sequence[PEZ]

    def soft_prompts(self) -> Tensor:
        """Returns the soft prompts (R, L, d), float32 or wider; `update` may change them in place."""
        soft = [opt.prompts.detach() for opt in self.optimizers]
        return torch.cat(soft) if len(soft) > 1 else soft[0]

    def updates(self) -> int:
        """Returns the most updates that one of the prompts has had."""
        return max(int(opt.state[opt.prompts]["step"]) if opt.state else 0 for opt in self.optimizers)

    def update(self, gradient: Tensor) -> None:
        """Makes one step of AdamW by the gradient (R, L, d)."""
        sizes = [len(opt.prompts) for opt in self.optimizers]
        for opt, part in zip(self.optimizers, gradient.to(self.optimizers[0].prompts.dtype).split(sizes), strict=True):
            opt.prompts.grad = part
            opt.step()
            opt.prompts.grad = None

    def select(self, rows: Tensor) -> PEZState:
        """Returns the state of some prompts; `rows` (R',) int64 ascend."""
        selected, start = [], 0
        for opt in self.optimizers:
            local_rows = rows[(rows >= start) & (rows < start + len(opt.prompts))] - start
            start += len(opt.prompts)
            if len(local_rows):
                selected.append(opt if len(local_rows) == len(opt.prompts) else opt.select(local_rows))
        return PEZState(selected)

    def join(self, other: PEZState) -> PEZState:
        """Returns the state of these prompts, followed by those of `other`."""
        return PEZState([*self.optimizers, *other.optimizers])
