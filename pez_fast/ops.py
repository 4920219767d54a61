"""The operators `pez_fast::…`: schemas, fakes, autograd, and the list of implementations.

An operator takes the implementation's name; `resolve_impl` turns "auto" into one. The first use of an implementation
imports its modules.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Implementation:
    """An implementation: its package, why it cannot run on a device, and why "auto" skips it there; None: no reason.

    Every search asks for both reasons, so they are cheap to find.
    """

    package: str
    unavailable_reason: Callable[[torch.device], str | None]
    auto_skip_reason: Callable[[torch.device], str | None] = lambda device: None
    capturable: bool = False  # in a CUDA graph: it never reads a value on the host


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _nvidia_unavailable_reason(device: torch.device) -> str | None:
    """Why the GPU kernels cannot run on this device; no other function knows which GPUs they support."""
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device.type}"
    if device.index is None and torch.cuda.is_available():  # the current card, which may change
        device = torch.device("cuda", torch.cuda.current_device())
    return _card_unavailable_reason(device)


@cache
def _card_unavailable_reason(device: torch.device) -> str | None:
    if torch.version.hip:  # torch calls AMD's GPUs "cuda" as well
        return f"it runs on NVIDIA GPUs, not on AMD's; this torch was built for ROCm {torch.version.hip}"
    if not torch.cuda.is_available():
        return "it runs on NVIDIA GPUs; torch finds none here"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= (8, 0):
        return None
    name = torch.cuda.get_device_name(device)
    return f"it runs on NVIDIA GPUs from compute capability 8.0 on; {name} has {major}.{minor}"


def _triton_unavailable_reason(device: torch.device) -> str | None:
    if not _installed("triton"):
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    reason = _nvidia_unavailable_reason(device)
    return reason and f"{reason} (but for TRITON_INTERPRET=1, which is for tests)"


def _cpu_unavailable_reason(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    if not _installed("pez_fast._C"):
        return _source_folder() or "the C++ extension was not built; PEZ_FAST_BUILD=cpu pip install . says why"
    return None


@cache
def _source_folder() -> str | None:
    """Says that the package comes from a clone without its extension, and not from an installation; None if not so."""
    clone = Path(__file__).parents[1]
    if _installed("pez_fast._C") or not (clone / "setup.py").is_file() or not (clone / "csrc").is_dir():
        return None
    try:
        if f'"{clone.as_uri()}"' in (distribution("pez_fast").read_text("direct_url.json") or ""):
            return None  # an editable installation: pip has said what could not be built
    except PackageNotFoundError:
        pass
    return (
        f"pez_fast comes from its source folder {clone}, where no extension is built; pip install -e {clone} builds it"
    )


def warn_of_source_folder() -> None:
    """Say once that searches are slow because of where the package comes from."""
    if reason := _source_folder():
        warnings.warn(f"searches are slow: {reason}", stacklevel=3)


def _cpu_auto_skip_reason(device: torch.device) -> str | None:
    return None if instruction_set() != "portable" else "this CPU has neither AVX2 nor AVX512-VNNI"


def _cuda_unavailable_reason(device: torch.device) -> str | None:
    reason = _nvidia_unavailable_reason(device)
    if not reason and not _installed("pez_fast._C_cuda"):
        return "the CUDA extension was not built; PEZ_FAST_BUILD=cuda pip install . says why"
    return reason


def _not_yet_run(device: torch.device) -> str:
    return "not yet run on hardware"


# In the order of preference of "auto".
IMPLEMENTATIONS: dict[str, Implementation] = {
    "cuda": Implementation("pez_fast._cuda", _cuda_unavailable_reason, _not_yet_run, capturable=True),
    "triton": Implementation("pez_fast._triton", _triton_unavailable_reason, _not_yet_run, capturable=True),
    "cpu": Implementation("pez_fast._cpu", _cpu_unavailable_reason, _cpu_auto_skip_reason),
    "torch": Implementation("pez_fast._torch", lambda device: None),
}
OPERATIONS = ("nearest", "splice")


def resolve_impl(impl: str, device: torch.device) -> str:
    """The name of the implementation to use. A name other than "auto" is returned or refused.

    "auto" stands for the name in PEZ_FAST_IMPL, else for the first implementation that is available and not skipped.

    Raises:
        ValueError: there is no such implementation.
        RuntimeError: it cannot run on this device; the message says why.
    """
    source = "impl"
    if impl == "auto":
        source, impl = "PEZ_FAST_IMPL", os.environ.get("PEZ_FAST_IMPL") or "auto"
    if impl == "auto":
        return _preferred(device)
    if not isinstance(impl, str) or impl not in IMPLEMENTATIONS:
        raise ValueError(f"{source} must be one of auto, {', '.join(reversed(IMPLEMENTATIONS))}; got {impl!r}")
    reason = _unavailable_reason(impl, device)
    if reason:
        raise RuntimeError(f"{source}={impl!r} cannot run here: {reason}")
    return impl


def _preferred(device: torch.device) -> str:
    usable = (name for name in IMPLEMENTATIONS if not _unavailable_reason(name, device))
    return next(name for name in usable if not IMPLEMENTATIONS[name].auto_skip_reason(device))


def _unavailable_reason(impl: str, device: torch.device) -> str | None:
    return IMPLEMENTATIONS[impl].unavailable_reason(device)


def capturable(impl: str, device: torch.device) -> bool:
    """Whether the operations can be captured in a CUDA graph with this implementation."""
    return IMPLEMENTATIONS[resolve_impl(impl, device)].capturable


def instruction_set() -> str | None:
    """The CPU instruction set that the C++ extension uses: avx512vnni, avxvnni, avx2 or portable; None without it."""
    return None if _cpu_unavailable_reason(torch.device("cpu")) else _load("nearest", "cpu").instruction_set()


def _load(operation: str, impl: str):
    return import_module(f"{IMPLEMENTATIONS[impl].package}.{operation}")


def prepare(impl: str, weight: Tensor, ids: Tensor) -> list[Tensor]:
    """The tensors that `nearest` of an implementation needs of a table: weight (V, d), ids (K,)."""
    return _load("nearest", impl).prepare(weight, ids)


# The same as torch.compiler.assume_constant_result, without importing the compiler: these are called, not traced.
_preferred._dynamo_marked_constant = True  # type: ignore[attr-defined]
_unavailable_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]
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
    """Forward: weight[ids], (N, d) in weight's dtype. Backward: the incoming gradient, in x's dtype, goes to x alone.

    If a row of x was not finite, its id is -1 (on every device but the CPU, which raised) and the result's row is NaN.
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
