"""`F.linear` with frozen weights, by the faster of torch's two CPU libraries.

On a CPU torch multiplies float32 matrices with MKL, which uses little of AVX-512 on AMD processors. oneDNN, which torch
also contains, is twice as fast there, and twice as fast again in bfloat16 where the CPU multiplies in it. oneDNN also
rounds a row alike in every batch of 16 rows or more, which MKL does not on Intel processors: there a row's bits depend
on how many rows there are, whatever their number. Where torch lacks oneDNN, and for every other device and dtype, this
is `F.linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pez_fast._shared.rows import MIN_ROWS, pad_rows

FEW = 128  # up to so many rows, reading the weights takes longer than multiplying, so their order in memory matters


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, k), weight (n, k), bias (n,) -> (…, n); the gradient goes to x alone."""
    if _by_onednn(x, weight):
        return _Linear.apply(x, weight, weight.t(), bias)
    return F.linear(x, weight, bias)


class FrozenLinear:
    """`linear` for weights that are used again and again.

    For few rows on a CPU it keeps two copies of the weights, in the orders in which forward and backward read them: 1.3
    to 1.8 times faster. A copy that would change a bit of a product (older oneDNN has such shapes) is not used. The
    first call that needs the copies makes them, so the weights must not change afterwards.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self._ordered: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() > FEW * x.shape[-1] or not _by_onednn(x, self.weight):
            return linear(x, self.weight, self.bias)
        if self._ordered is None:
            with torch.no_grad():
                self._ordered = _ordered(self.weight.detach()), _ordered(self.weight.detach().t())
        return _Linear.apply(x, *self._ordered, self.bias)


def frozen_products(device: torch.device) -> AbstractContextManager:
    """Returns a context in which a torch module's products with frozen weights round a row alike in every batch.

    For models of other libraries, whose layers call `F.linear` or, as GPT-2's do, `torch.addmm`. On a CPU, products of
    few rows are padded to `MIN_ROWS`, and are `linear` where MKL rounds otherwise.
    """
    return _FrozenProducts() if device.type == "cpu" and not torch.compiler.is_compiling() else nullcontext()


class _FrozenProducts(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.linear:
            return _frozen_product(*args, **(kwargs or {}))
        if func is torch.addmm and not kwargs and args[0].dim() == 1:
            return _frozen_product(args[1], args[2].t(), args[0])
        return func(*args, **(kwargs or {}))


def _frozen_product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # named as F.linear does
    learned = weight.requires_grad or (bias is not None and bias.requires_grad)
    if learned or not _by_onednn(input, weight):
        return F.linear(input, weight, bias)
    flat = input.reshape(-1, input.shape[-1])
    product = F.linear if _mkl_rounds_alike(torch.get_num_threads()) else linear
    return product(pad_rows(flat, MIN_ROWS), weight, bias)[: len(flat)].view(*input.shape[:-1], len(weight))


@cache
@torch.no_grad()
def _mkl_rounds_alike(threads: int) -> bool:
    """Whether torch's own float32 products round a row alike in every batch of `MIN_ROWS` rows or more. It is measured.

    On AMD's processors they do, and oneDNN needs up to 0.1 ms more for a call, which is much for a small model.
    """
    generator = torch.Generator().manual_seed(0)
    for k, n in ((64, 64), (64, 256), (384, 384), (512, 512), (1536, 384), (3072, 768)):
        x, weight = torch.randn(512, k, generator=generator), torch.randn(n, k, generator=generator)
        whole = F.linear(x, weight)
        if not all(torch.equal(F.linear(x[:rows], weight), whole[:rows]) for rows in (16, 20, 28, 36, 64, 100, 256)):
            return False
    return True


def _ordered(weight: Tensor) -> Tensor:
    """The weights in oneDNN's own order if that changes no bit of a product, else the weights as they are."""
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    probe = torch.randn(32, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    return ordered if torch.equal(_product(probe, ordered, None), _product(probe, weight, None)) else weight


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != weight.dtype or not x.numel():
        return False  # the compiler has products of its own, and cannot trace these
    return _available() and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _multiplies_bfloat16()))


def bfloat16_is_native() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX512_BF16 or AMX) and oneDNN is there to use it."""
    return _available() and _multiplies_bfloat16()


@cache
def _multiplies_bfloat16() -> bool:
    asks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(ask is not None and ask() for ask in asks)


def _available() -> bool:
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    return torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "").view(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _product(grad, ctx.transposed, None), None, None, None
