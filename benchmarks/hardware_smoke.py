"""Checks that an implementation runs and finds the right ids: small shapes, round and ragged, then the full size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from splice import arguments, torch_lines

import pez_fast
from pez_fast._shared import resolve_ties

if TYPE_CHECKING:
    from hardware_child import Task

# Rows, tokens, width. In the ragged tables every seventh token is banned.
SMALL = [(256, 512, 128), (253, 507, 123), (5, 1003, 61), (130, 2000, 96)]
LARGE = [(16, 49_408, 1024), (1024, 49_408, 1024)]
TINY_SMALL, TINY_LARGE = [(16, 256, 64), (13, 203, 61)], [(4, 512, 64), (130, 512, 64)]
SANITIZED = [(5, 1003, 61), (130, 512, 64), (300, 2000, 128)]
SIMILARITY = 1e-6
EXAMPLES = 8


def smoke(task: Task) -> None:
    small, large = (TINY_SMALL, TINY_LARGE) if task.tiny else (SMALL, LARGE)
    for n, v, d in [*small, *large]:
        task.at(f"search of {n} rows in {v} tokens of {d}")
        task.add(searched(task.impl, task.device, n, v, d, near_ties=(n, v, d) in small))
    for name, shape in (("round", (4, 16, 128, 4, 8)), ("ragged", (5, 11, 61, 3, 4))):
        task.at(f"splice, {name}")
        task.add(spliced(task.impl, task.device, name, shape))


def sanitized(task: Task) -> None:
    """Runs every kernel once or twice, for compute-sanitizer."""
    for n, v, d in TINY_SMALL if task.tiny else SANITIZED:
        task.at(f"search of {n} rows in {v} tokens of {d}")
        task.add(searched(task.impl, task.device, n, v, d, near_ties=True))
    task.at("splice")
    task.add(spliced(task.impl, task.device, "ragged", (5, 11, 61, 3, 4)))


def problem(n: int, v: int, d: int, near_ties: bool, device: str) -> tuple[torch.Tensor, pez_fast.TokenTable]:
    """Rows x (n, d) and a table of v tokens; with near ties, its second half is nearly its first."""
    generator = torch.Generator().manual_seed(n * v + d)
    x, weight = (torch.randn(rows, d, generator=generator) for rows in (n, v))
    if near_ties:
        weight[v // 2 :] = weight[: v - v // 2] + 1e-6 * weight[v // 2 :]
    return x.to(device), pez_fast.TokenTable(weight.to(device), range(0, v, 7) if d % 2 else None)


def searched(impl: str, device: str, n: int, v: int, d: int, near_ties: bool) -> dict[str, Any]:
    """The number of ids that are not the oracle's, the number of wrong similarities, and examples of rows."""
    x, table = problem(n, v, d, near_ties, device)
    # The oracle runs first, so that an error of the kernels cannot affect it.
    expected = resolve_ties.exhaustive(x, table.weight, table.ids)
    cosine = resolve_ties.float64_cosine(x, table.weight[expected])
    found, similarity = pez_fast.nearest_token(x, table, impl)
    bad = found != expected
    off = ~bad & ~((similarity.double() - cosine).abs() <= SIMILARITY)
    examples = [
        {
            "row": row,
            "found": int(found[row]),
            "expected": int(expected[row]),
            "similarity": float(similarity[row]),
            "cosine": float(cosine[row]),
        }
        for row in (bad | off).nonzero()[:EXAMPLES, 0].tolist()
    ]
    size = {"rows": n, "tokens": v, "width": d}
    return {"what": "search", **size, "wrong": int(bad.sum()), "similarities_off": int(off.sum()), "examples": examples}


def spliced(impl: str, device: str, name: str, shape: tuple[int, int, int, int, int]) -> dict[str, Any]:
    """The number of wrong elements of the spliced templates and of the gradient."""
    template, hard, slots, owner, grad = arguments(shape, device)
    exact = hard.detach().double().requires_grad_()
    want = torch_lines(template.double(), exact, slots, owner)
    want_grad = torch.autograd.grad(want, exact, grad.double())[0]
    out = pez_fast.splice(template, hard, slots, owner, impl)
    got = torch.autograd.grad(out, hard, grad)[0]
    close = torch.isclose(got.double(), want_grad, rtol=1e-5, atol=1e-5)
    wrong = int((out.double() != want).sum())
    return {"what": "splice", "case": name, "wrong": wrong, "gradient_off": int((~close).sum())}
