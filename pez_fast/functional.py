"""The public operations. They check the arguments, once, and call the operators."""

from __future__ import annotations

import torch
from torch import Tensor

from pez_fast import ops
from pez_fast.table import TokenTable


def nearest_token(x: Tensor, table: TokenTable, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """The nearest token by cosine, exactly.

    Same as `F.normalize(x, dim=-1) @ F.normalize(E, dim=-1).T` then `.argmax(-1)` (the projection of Wen et al. 2023),
    without the (N, V) matrix and without rounding: the id is that of the largest cosine of the values given, the lowest
    id on ties. A zero row has cosine 0 with every token.

    Args:
        x: (…, d) floating point, with any number of leading dimensions (also none), or no rows.
        table: a table of d dimensions, on the same device.
        impl: "auto", "torch", "cpu", "triton" or "cuda".

    Returns:
        ids (…) int64, cosine (…) float32. On any device but a CPU a row that is not finite gives id -1 and cosine NaN.

    Raises:
        ValueError: widths or devices differ, or (on a CPU) a row of x is not finite.
        TypeError: x is not a floating-point tensor.
        RuntimeError: the named implementation cannot run here.
    """
    flat, impl = _flat(x, table, impl)
    ids, similarity = ops.nearest(flat.detach(), table.weight, table.ids, table.prepared(impl), impl)
    return ids.view(x.shape[:-1]), similarity.view(x.shape[:-1])


def project(x: Tensor, table: TokenTable, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """Straight-through projection: the nearest tokens' embeddings forward, the identity backward.

    Same as `hard = E[nearest]; hard = x + (hard - x).detach()`, but forward is E[nearest] to the bit.

    Args and errors: as `nearest_token`.

    Returns:
        hard (…, d) in the table's dtype, whose gradient goes to x unchanged (and none to the table); ids (…) int64.
    """
    flat, impl = _flat(x, table, impl)
    ids, _ = ops.nearest(flat.detach(), table.weight, table.ids, table.prepared(impl), impl)
    hard = ops.straight_through(flat, table.weight, ids)
    return hard.view(x.shape), ids.view(x.shape[:-1])


def splice(template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor | None = None, impl: str = "auto") -> Tensor:
    """Write prompts into the slots of templates.

    Same as `out = template.clone(); out[:, slots] = hard[owner]`. The gradient goes to `hard`, summed over the rows
    that carry a prompt (the broadcast B of Wen et al. 2023). The template gets no gradient.

    Args:
        template: (B, S, d) floating point.
        hard: (R, L, d) floating point.
        slots: (L,) int64, positions in the template, all different.
        owner: (B,) int64, the prompt that each row carries. Default: row b carries prompt b; prompt 0 if R == 1.
        impl: as in `nearest_token`.

    Returns:
        (B, S, d) in the template's dtype.

    Raises:
        ValueError: shapes, devices or indices do not fit together; the message names the argument.
        TypeError: a tensor has the wrong dtype.
    """
    for name, value in (("template", template), ("hard", hard)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor; got {kind_of(value)}")
        if value.ndim != 3:
            raise ValueError(f"{name} must have three dimensions; got {tuple(value.shape)}")
    if hard.shape[2] != template.shape[2]:
        raise ValueError(f"hard must be (R, L, {template.shape[2]}) to match template; got {tuple(hard.shape)}")
    if owner is None:
        if hard.shape[0] not in (1, template.shape[0]):
            raise ValueError(
                f"owner must say which of the {hard.shape[0]} prompts each of the {template.shape[0]} rows carries; "
                "got None"
            )
        owner = torch.arange(template.shape[0], device=hard.device) % max(1, hard.shape[0])
    _check_index("slots", slots, (hard.shape[1],), template.shape[1])
    _check_index("owner", owner, (template.shape[0],), hard.shape[0])
    for name, value in (("template", template), ("slots", slots), ("owner", owner)):
        if value.device != hard.device:
            raise ValueError(f"{name} must be on {hard.device} as hard is; got {value.device}")
    if not _compiling() and slots.device.type == "cpu" and len(slots.unique()) < len(slots):
        raise ValueError(f"slots must be all different; got {slots.tolist()}")
    return ops.splice(template.detach(), hard, slots, owner, ops.resolve_impl(impl, hard.device))


def _flat(x: Tensor, table: TokenTable, impl: str) -> tuple[Tensor, str]:
    if not isinstance(table, TokenTable):
        raise TypeError(f"table must be a TokenTable; got {kind_of(table)}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor; got {kind_of(x)}")
    if x.ndim == 0 or x.shape[-1] != table.dim:
        raise ValueError(f"x must be (…, {table.dim}) to match the table; got {tuple(x.shape)}")
    if x.device != table.device:
        raise ValueError(f"x must be on {table.device} as the table is; got {x.device}")
    if not _compiling():
        table.check_unchanged()
    return x.reshape(-1, table.dim), ops.resolve_impl(impl, x.device)


def _check_index(name: str, value: Tensor, shape: tuple[int, ...], end: int) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor; got {kind_of(value)}")
    if value.shape != shape:
        raise ValueError(f"{name} must be {shape}; got {tuple(value.shape)}")
    if _compiling() or value.device.type != "cpu" or not len(value):  # reading the values would wait for another device
        return
    if value.min() < 0 or value.max() >= end:
        wrong = value[(value < 0) | (value >= end)][0]
        raise ValueError(f"{name} must lie from 0 to {end - 1}; got {int(wrong)}")


def _compiling() -> bool:
    return torch.compiler.is_compiling()


def kind_of(value: object) -> str:
    """The name of a wrong argument's type, for an error message."""
    return f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
