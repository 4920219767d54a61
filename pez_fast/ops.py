"""The operators `pez_fast::…`: schemas, fakes, autograd, and which implementations there are.

An operator takes the implementation's name; `choose` turns "auto" into one. The modules of the implementations are
imported when they are first used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor


@dataclass(frozen=True)
class Implementation:
    """Where an implementation lives; why it cannot be used on a device, and why "auto" does not take it (None where it does)."""

    package: str
    unusable: Callable[[str], str | None]
    passed_over: Callable[[str], str | None] = lambda device: None
    capturable: bool = False  # in a CUDA graph: it never looks at a value


def _triton_unusable(device: str) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"it runs on NVIDIA GPUs, not on {device} (but for TRITON_INTERPRET=1, which is for tests)"


def _cpu_unusable(device: str) -> str | None:
    if device != "cpu":
        return f"it runs on the CPU, not on {device}"
    if find_spec("pez_fast._C") is None:
        return "the C++ extension was not built; PEZ_FAST_BUILD=cpu pip install . says why"
    return None


def _cpu_passed_over(device: str) -> str | None:
    return None if instruction_set() != "portable" else "this CPU has neither AVX2 nor AVX512-VNNI"


def _cuda_unusable(device: str) -> str | None:
    if device != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device}"
    if find_spec("pez_fast._C_cuda") is None:
        return "the CUDA extension was not built; PEZ_FAST_BUILD=cuda pip install . says why"
    return None


# In the order in which "auto" prefers them.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "cuda": Implementation("pez_fast._cuda", _cuda_unusable, lambda device: "not yet run on hardware", capturable=True),
    "triton": Implementation(
        "pez_fast._triton", _triton_unusable, lambda device: "not yet run on hardware", capturable=True
    ),
    "cpu": Implementation("pez_fast._cpu", _cpu_unusable, _cpu_passed_over),
    "torch": Implementation("pez_fast._torch", lambda device: None),
}
OPERATIONS = ("nearest", "splice")


def choose(impl: str, device: torch.device) -> str:
    """The implementation to use: any name but "auto" is taken or refused.

    "auto" is what PEZ_FAST_IMPL names, else the first that is usable and not passed over.

    Raises:
        ValueError: no such implementation.
        RuntimeError: it cannot run on this device; the message says why.
    """
    if impl == "auto":
        impl = os.environ.get("PEZ_FAST_IMPL", "auto")
    if impl == "auto":
        kind = device.type
        return next(name for name, i in IMPLEMENTATIONS.items() if not i.unusable(kind) and not i.passed_over(kind))
    if not isinstance(impl, str) or impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of auto, {', '.join(reversed(IMPLEMENTATIONS))}; got {impl!r}")
    reason = IMPLEMENTATIONS[impl].unusable(device.type)
    if reason:
        raise RuntimeError(f"impl={impl!r} cannot run here: {reason}")
    return impl


def capturable(impl: str, device: torch.device) -> bool:
    """Whether the operations can be captured in a CUDA graph with this implementation."""
    return IMPLEMENTATIONS[choose(impl, device)].capturable


def instruction_set() -> str | None:
    """What the C++ extension uses of this CPU: avx512vnni, avxvnni, avx2 or portable; None without it."""
    return None if _cpu_unusable("cpu") else _load("nearest", "cpu").instruction_set()


def _load(operation: str, impl: str):
    return import_module(f"{IMPLEMENTATIONS[impl].package}.{operation}")


def prepare(impl: str, weight: Tensor, ids: Tensor) -> list[Tensor]:
    """What an implementation of `nearest` needs of a table: weight (V, d), ids (K,) -> its tensors."""
    return _load("nearest", impl).prepare(weight, ids)


# What torch.compiler.assume_constant_result does, without importing the compiler: called as it is, not traced.
prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
