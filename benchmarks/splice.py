"""Measures the time that splice takes, forward alone and with its backward, beside torch's lines for it.

    python benchmarks/splice.py --device cuda --out splice.json

Splice puts prompts into templates. The lines are `out = template.clone(); out[:, slots] = hard[owner]` under autograd.
Nothing is timed unless the outputs are equal and the gradients are equal within rounding. On CUDA "(graph)" is the same
call replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import captured, timed
from provenance import write
from torch import Tensor

from pez_fast import info, splice
from pez_fast.ops import IMPLEMENTATIONS

LINES = "torch's lines"
# Each shape is (templates, positions, width, prompts, slots).
SHAPES = {
    "one prompt": (1, 77, 1024, 1, 16),
    "a batch": (32, 77, 1024, 32, 16),
    "one prompt, many texts": (256, 77, 1024, 1, 16),
    "short, many": (1024, 18, 1024, 1024, 16),
}
TINY = {"a batch": (4, 12, 32, 4, 3)}
Splice = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def arguments(shape: tuple[int, int, int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns template (B, S, d), hard (R, L, d), slots (L,), owner (B,), and the gradient (B, S, d) of the output."""
    b, s, d, prompts, length = shape
    generator = torch.Generator().manual_seed(0)
    template, grad = (torch.randn(b, s, d, generator=generator).to(device) for _ in range(2))
    hard = torch.randn(prompts, length, d, generator=generator).to(device).requires_grad_()
    return template, hard, torch.arange(1, length + 1, device=device), torch.arange(b, device=device) % prompts, grad


def torch_lines(template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor) -> Tensor:
    out = template.clone()
    out[:, slots] = hard[owner]
    return out


def forward(way: Splice, given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return way(*given[:4])


def both(way: Splice, given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Returns the gradient of hard (R, L, d)."""
    return torch.autograd.grad(way(*given[:4]), given[1], given[4])[0]


def ways(device: str, impls: list[str] | None) -> dict[str, Splice]:
    usable = [
        name
        for name, reason in info(device)["implementations"].items()
        if reason is True and (impls is None or name in impls)
    ]
    return {LINES: torch_lines, **{name: partial(splice, impl=name) for name in usable}}


def check(way: Splice, given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], name: str) -> None:
    exact = [t.double() if t.is_floating_point() else t for t in given]
    exact[1] = exact[1].detach().requires_grad_()
    if not torch.equal(forward(way, given), forward(torch_lines, given)):
        raise SystemExit(f"{name} splices something else than torch's lines; nothing was timed")
    want = both(torch_lines, tuple(exact))  # type: ignore[arg-type]
    if not torch.allclose(both(way, given).double(), want, rtol=1e-5, atol=1e-5):
        raise SystemExit(f"{name} has another gradient than torch's lines; nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--impls", nargs="*", choices=IMPLEMENTATIONS, help="default: every usable one")
    parser.add_argument("--tiny", action="store_true", help="a small shape alone, to see that it runs")
    parser.add_argument("--seconds", type=float, default=0.2, help="for the repetitions of a case")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name, shape in (TINY if args.tiny else SHAPES).items():
        given = arguments(shape, args.device)
        print(f"{name}: {shape[0]} templates of {shape[1]} x {shape[2]}, {shape[3]} prompts of {shape[4]}")
        for way, operation in ways(args.device, args.impls).items():
            check(operation, given, way)
            for what, run in (("forward", forward), ("forward and backward", both)):
                call = partial(run, operation, given)
                calls: dict[str, Any] = {way: call}
                if args.device == "cuda":
                    try:
                        calls[f"{way} (graph)"] = captured(call)[0]
                    except RuntimeError as e:
                        print(f"  {way} cannot be captured: {str(e).splitlines()[0]}", file=sys.stderr)
                for label, each in calls.items():
                    took = timed(each, args.device, args.seconds)
                    results.append({"name": label, "what": what, "case": name, "shape": shape, **took._asdict()})
                    quantiles = f"({took.q20 * 1e3:.1f} to {took.q80 * 1e3:.1f})"
                    print(f"  {label:24}{what:22}{took.ms * 1e3:10.1f} us  {quantiles}", flush=True)
    if args.out:
        write(args.out, results)


if __name__ == "__main__":
    main()
