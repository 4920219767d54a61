"""The operators `pez_fast::…`: schemas, fakes, autograd, and which implementations there are.

An operator takes the implementation's name; `choose` turns "auto" into one. The modules of the implementations are
imported when they are first used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor


@dataclass(frozen=True)
class Implementation:
    """Where an implementation lives, and why it cannot be used on a device (None where it can)."""

    package: str
    unusable: Callable[[str], str | None]


IMPLEMENTATIONS: dict[str, Implementation] = {
    "torch": Implementation("pez_fast._torch", lambda device: None),
    "cpu": Implementation("pez_fast._C", lambda device: "this release has no C++ extension"),
    "triton": Implementation("pez_fast._triton", lambda device: "this release has no Triton kernels"),
    "cuda": Implementation("pez_fast._C", lambda device: "this release has no CUDA extension"),
}
OPERATIONS = ("nearest", "splice")


def choose(impl: str, device: torch.device) -> str:
    """The implementation to use: "auto" takes the first usable one, any other name is taken or refused.

    Raises:
        ValueError: no such implementation.
        RuntimeError: it cannot run on this device; the message says why.
    """
    if impl == "auto":
        return next(name for name in ("cuda", "triton", "cpu", "torch") if not IMPLEMENTATIONS[name].unusable(device.type))
    if not isinstance(impl, str) or impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of auto, {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    reason = IMPLEMENTATIONS[impl].unusable(device.type)
    if reason:
        raise RuntimeError(f"impl={impl!r} cannot run here: {reason}")
    return impl


def _load(operation: str, impl: str):
    return import_module(f"{IMPLEMENTATIONS[impl].package}.{operation}")


@torch.library.custom_op("pez_fast::nearest", mutates_args=())
def nearest(x: Tensor, weight: Tensor, ids: Tensor, prepared: list[Tensor], impl: str) -> tuple[Tensor, Tensor]:
    """x (N, d), weight (V, d), ids (K,), what the implementation prepared -> ids (N,) int64, cosine (N,) float32."""
    found, similarity = _load("nearest", impl).nearest(x, weight, ids, prepared)
    if x.device.type == "cpu" and (found < 0).any():
        raise ValueError(f"x must be finite; row {int((found < 0).nonzero()[0])} is not")
    return found, similarity


@nearest.register_fake
def _(x, weight, ids, prepared, impl):
    return x.new_empty(len(x), dtype=torch.int64), x.new_empty(len(x), dtype=torch.float32)


@torch.library.custom_op("pez_fast::straight_through", mutates_args=())
def straight_through(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Forward weight[ids], (N, d) in weight's dtype; backward the incoming gradient, in x's dtype, onto x alone.

    Where x was not finite the id is -1 (on a GPU, where nothing raises) and the row is NaN.
    """
    rows = weight[ids.clamp_min(0)]
    return rows if x.device.type == "cpu" else rows.masked_fill((ids < 0)[:, None], torch.nan)


@straight_through.register_fake
def _(x, weight, ids):
    return weight.new_empty(x.shape)


straight_through.register_autograd(
    lambda ctx, grad: (grad.to(ctx.dtype), None, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "dtype", inputs[0].dtype),
)


@torch.library.custom_op("pez_fast::splice", mutates_args=())
def splice(template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor, impl: str) -> Tensor:
    """template (B, S, d), hard (R, L, d), slots (L,), owner (B,) -> (B, S, d) in the template's dtype."""
    return _load("splice", impl).splice(template, hard, slots, owner)


@splice.register_fake
def _(template, hard, slots, owner, impl):
    return torch.empty_like(template, memory_format=torch.contiguous_format)


@torch.library.custom_op("pez_fast::splice_backward", mutates_args=())
def splice_backward(grad: Tensor, slots: Tensor, owner: Tensor, prompts: int, impl: str) -> Tensor:
    """grad (B, S, d) -> (prompts, L, d), accumulated in float32 or wider."""
    return _load("splice", impl).splice_backward(grad, slots, owner, prompts)


@splice_backward.register_fake
def _(grad, slots, owner, prompts, impl):
    wide = torch.promote_types(grad.dtype, torch.float32)
    return grad.new_empty((prompts, slots.shape[0], grad.shape[2]), dtype=wide)


def _splice_context(ctx, inputs, output):
    _, hard, slots, owner, ctx.impl = inputs
    ctx.save_for_backward(slots, owner)
    ctx.prompts, ctx.dtype = hard.shape[0], hard.dtype


def _splice_gradient(ctx, grad):
    slots, owner = ctx.saved_tensors
    return None, splice_backward(grad, slots, owner, ctx.prompts, ctx.impl).to(ctx.dtype), None, None, None


splice.register_autograd(_splice_gradient, setup_context=_splice_context)
