"""Checks that a PEZ step replayed as a CUDA graph gives the same bits as the step run eagerly.

    python benchmarks/captured.py --out captured.json

One step projects the soft prompts, splices them into templates, takes the gradient of a loss, and runs AdamW. Eager and
replayed steps begin at the same prompts. After some steps the prompts, the ids of every step and the losses must be
equal. Without a GPU (--device cpu) nothing is captured; the eager step runs twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import captured
from provenance import write
from torch import Tensor

from pez_fast import PEZ, TokenTable, info, splice
from pez_fast.ops import IMPLEMENTATIONS

STEPS = 5


class Loop:
    """Runs PEZ on prompts (R, L, d); the loss is the squared distance of the spliced templates to a goal."""

    def __init__(self, impl: str, device: str, shape: tuple[int, int, int, int]) -> None:
        vocabulary, d, prompts, length = shape
        generator = torch.Generator().manual_seed(0)
        weight, self.start, template, goal = (
            torch.randn(*size, generator=generator).to(device)
            for size in ((vocabulary, d), (prompts, length, d), (prompts, length + 3, d), (prompts, length + 3, d))
        )
        self.template, self.goal, self.impl = template, goal, impl
        self.slots, self.owner = torch.arange(1, length + 1, device=device), torch.arange(prompts, device=device)
        self.prompts = self.start.clone()
        self.opt = PEZ(self.prompts, TokenTable(weight), impl=impl, capturable=device == "cuda")

    def step(self) -> tuple[Tensor, Tensor]:
        """Returns ids (R, L) and the loss before the update."""
        hard, ids = self.opt.project()
        loss = (splice(self.template, hard, self.slots, self.owner, self.impl) - self.goal).square().sum()
        loss.backward()
        self.opt.step()
        return ids, loss.detach()

    def eager_step(self) -> tuple[Tensor, Tensor]:
        self.opt.zero_grad()
        return self.step()

    def reset(self) -> None:
        with torch.no_grad():
            self.prompts.copy_(self.start)
            for state in self.opt.state.values():
                for value in state.values():
                    value.zero_()

    def run(self, step: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Runs STEPS steps from the start; returns their ids and losses, and the prompts after them."""
        self.reset()
        met = [t.clone() for _ in range(STEPS) for t in step()]
        return [*met, self.prompts.detach().clone()]


def check(impl: str, device: str, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    loop = Loop(impl, device, shape)
    eager = loop.run(loop.eager_step)
    again = loop.run(loop.eager_step)
    entry: dict[str, Any] = {
        "impl": impl,
        "shape": shape,
        "steps": STEPS,
        "eager_twice": equal(eager, again),
        "captured": device == "cuda",
    }
    if device != "cuda":
        return entry | {"skipped": "a CUDA graph needs a GPU; the step ran eagerly twice"}
    try:
        replay, result = captured(loop.eager_step)
    except RuntimeError as e:
        return entry | {"replayed_equals_eager": False, "reason": str(e).splitlines()[0]}

    def replayed() -> tuple[Tensor, Tensor]:
        replay()
        return result

    return entry | {"replayed_equals_eager": equal(eager, loop.run(replayed))}


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--impls", nargs="*", choices=IMPLEMENTATIONS, help="default: every usable one")
    parser.add_argument("--tiny", action="store_true", help="a small shape alone, to see that it runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shapes = [(300, 16, 2, 3)] if args.tiny else [(3000, 64, 4, 8), (49_408, 1024, 8, 16), (49_408, 768, 64, 16)]
    usable = [name for name, answer in info(args.device)["implementations"].items() if answer is True]
    impls = [name for name in usable if (name in args.impls if args.impls else IMPLEMENTATIONS[name].capturable)]
    cases = [(impl, shape) for impl in impls for shape in shapes]
    entries: list[dict[str, Any]] = []
    for impl, shape in cases:
        print(f"> a step of {impl}, {shape}", flush=True)
        entries.append(check(impl, args.device, shape))
        print(entries[-1], flush=True)
        if args.out:
            write(args.out, entries, final=len(entries) == len(cases))
    if not all(entry["eager_twice"] and entry.get("replayed_equals_eager", True) for entry in entries):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
