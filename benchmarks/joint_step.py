"""Time of one PEZ step for two encoders that share a prompt, beside a plain loop over both, in one run.

    python benchmarks/joint_step.py --out benchmarks/results/joint_step_cpu.json

The encoders have the shapes of Stable Diffusion XL's two text towers (or others), random weights, and next to no image
tower. The plain loop keeps one soft prompt in float32, finds the nearest tokens in both tables side by side, which it
normalises at every step, runs both towers over 77 positions, and learns one prompt after the other. Parity is checked
first: from the same start both must find the same ids, and the same scores to 2e-5, for five steps.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from pez_step import LENGTH, Recorded, timed
from provenance import write
from torch import Tensor

from pez_fast._shared.catalog import Entry, find
from pez_fast.cli.timing import random_clip
from pez_fast.config import DTYPES
from pez_fast.engine import BatchLimit, Request, Scheduler, Stage
from pez_fast.methods import PEZMethod
from pez_fast.models import JointModel
from pez_fast.objectives import Similarity


def build(names: list[str], device: str) -> JointModel:
    """Returns encoders of these shapes as one model, with unequal weights."""
    torch.manual_seed(0)
    found: list[Entry | None] = [find(name) for name in names]
    models = [random_clip(entry, device) for entry in found if entry is not None]
    for model in models:  # entries as large as those of trained tables, so that prompts differ
        with torch.no_grad():
            model.embedding.weight.normal_(generator=torch.Generator(device).manual_seed(1)).mul_(0.4)
    return JointModel(models, [0.6, 0.4])


class PlainLoop:
    """The loop of the original over two encoders, for one prompt."""

    def __init__(self, joint: JointModel, init_ids: Tensor, target: Tensor) -> None:
        self.joint, self.target, self.table = joint, target, joint.table()
        template = joint.vocabulary.template(LENGTH)
        self.slots, self.ids = template.slots.to(joint.device), template.ids.to(joint.device)
        self.prompt = self.table.weight[init_ids].float().clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.prompt], lr=0.1, weight_decay=0.1)
        self.seen: list[tuple[Tensor, float]] = []

    def step(self) -> None:
        cosines = F.normalize(self.prompt.detach(), dim=-1) @ F.normalize(self.table.weight.float(), dim=-1).T
        ids = cosines.masked_fill(~self.table.allowed, -torch.inf).argmax(-1)
        hard = self.table.weight[ids].detach().requires_grad_()
        parts = hard.split([model.embedding.embedding_dim for model in self.joint.models], -1)
        score, begin = torch.zeros((), device=hard.device), 0
        for model, part, scale, share in zip(
            self.joint.models, parts, self.joint.scales, self.joint.shares, strict=True
        ):
            features = self.encode(model.model, part / scale)
            end = begin + len(features)
            score = score + share**0.5 * (features * self.target[begin:end]).sum()
            begin = end
        (self.prompt.grad,) = torch.autograd.grad(1 - score, hard)
        self.optimizer.step()
        self.seen.append((ids, float(score.detach())))

    def encode(self, model: torch.nn.Module, embeds: Tensor) -> Tensor:
        """Returns the unit features (D,) of one prompt, over the whole context."""
        whole = model.token_embedding(self.ids).index_copy(0, self.slots, embeds)
        x = model.transformer((whole + model.positional_embedding)[None], attn_mask=model.attn_mask)
        return F.normalize(model.ln_final(x[0, self.ids.argmax()]) @ model.text_projection, dim=-1)


class Setting:
    """Both towers in a dtype, and prompts with random targets for them."""

    def __init__(self, joint: JointModel, prompts: int, dtype: torch.dtype = torch.float32) -> None:
        self.table, self.tower = joint.table(), joint.bind(LENGTH, dtype=dtype)
        generator = torch.Generator().manual_seed(1)
        chosen = torch.randint(len(self.table.ids), (prompts, LENGTH), generator=generator)
        self.init_ids = self.table.ids[chosen.to(joint.device)]
        sizes = [model.model.text_projection.shape[1] for model in joint.models]
        drawn = [F.normalize(torch.randn(prompts, size, generator=generator), dim=-1) for size in sizes]
        self.targets = joint.combined(drawn).to(joint.device)

    def search(self, steps: int, impl: str = "auto", objective: Similarity | None = None) -> None:
        """Runs what a task runs, except the final scoring of the texts."""
        rows = len(self.init_ids)
        requests = [Request(tuple(range(rows)), self.init_ids, objective or Similarity(self.targets))]
        stages, limit = [Stage(PEZMethod(impl=impl), steps, top_k=4)], BatchLimit(rows, rows)
        run = Scheduler(self.table, self.tower, lambda room: requests.pop() if requests else None, stages, limit)
        next(iter(run.run()))


def check_parity(joint: JointModel, impl: str, steps: int = 5) -> None:
    """Checks that pez_fast finds the ids and the scores of the plain loop."""
    setting = Setting(joint, 2)
    objective = Recorded(setting.targets)
    setting.search(steps, impl, objective)
    for row in range(2):
        plain = PlainLoop(joint, setting.init_ids[row], setting.targets[row])
        for k in range(steps):
            plain.step()
            ids, score = objective.seen[k]
            assert torch.equal(ids[row], plain.seen[k][0]), f"other ids at step {k}"
            assert abs(float(score[row]) - plain.seen[k][1]) < 2e-5, f"another score at step {k}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sdxl-l", "sdxl-g"], help="short names of the shapes")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="dtypes of pez_fast")
    parser.add_argument("--impl", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    joint, rows = build(args.models, args.device), []
    check_parity(joint, args.impl)
    print(f"{joint.name}, {args.device}, {torch.get_num_threads()} threads; parity holds", flush=True)
    one = Setting(joint, 1)
    loop = PlainLoop(joint, one.init_ids[0], one.targets[0])

    def plain() -> None:
        for _ in range(args.steps):
            loop.step()

    works = {("plain loop", 1, "float32"): plain}
    for dtype, prompts in itertools.product(args.dtypes, args.prompts):
        setting = Setting(joint, prompts, getattr(torch, dtype))
        works["pez_fast", prompts, dtype] = partial(setting.search, args.steps, args.impl)
    for (name, prompts, dtype), work in works.items():
        found = timed(work, args.repeats, args.steps * prompts)
        row = {"name": name, "models": args.models, "impl": args.impl, "dtype": dtype, "prompts": prompts}
        rows.append(row | {"ms_per_step_and_prompt": statistics.median(found), "least": min(found), "most": max(found)})
        print(
            f"{name}, {prompts}, {dtype}: {rows[-1]['ms_per_step_and_prompt']:.2f} ms per step and prompt", flush=True
        )
    if args.out:
        write(args.out, rows)


if __name__ == "__main__":
    main()
