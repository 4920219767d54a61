"""Time of one PEZ step beside the plain port of the original loop, in one run.

    python benchmarks/pez_step.py --out benchmarks/results/pez_step_cpu.json

Both optimise prompts of 16 tokens through the text tower of a ViT-B-32 (or another shape) with random weights. The
plain port is `pez_fast.reference.optimize_prompt`, in float32: at every step it normalises the table and runs the tower
twice over 77 positions, one prompt after the other. The script checks parity first: in float32, from the same start,
both must find the same ids and the same scores; in another dtype the scores of the start must equal those of float32
except for that dtype's rounding. It then times pez_fast in float32 and in the default dtype of the device.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from functools import partial
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from provenance import now, write

from pez_fast import reference
from pez_fast.config import DTYPES
from pez_fast.engine import BatchLimit, Request, Scheduler, SearchState, Stage, batch
from pez_fast.methods import PEZMethod
from pez_fast.models import TextEncoder
from pez_fast.models.precision import search_dtype, text_part
from pez_fast.models.text_tower import Template
from pez_fast.objectives import Similarity
from pez_fast.ops import capturable
from pez_fast.table import TokenTable

SHAPES = {"ViT-B-32": (512, 8, 12, 512), "ViT-L-14": (768, 12, 12, 768), "ViT-H-14": (1024, 16, 24, 1024)}
LENGTH, CONTEXT, SOT, EOT = 16, 77, 49406, 49407


def build(name: str) -> torch.nn.Module:
    """Returns a CLIP with that text tower, random weights, and next to no image tower."""
    width, heads, layers, dim = SHAPES[name]
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers}
    return open_clip.CLIP(embed_dim=dim, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)


class Setting:
    """A tower in a dtype, and prompts with random targets for it."""

    def __init__(self, model: torch.nn.Module, prompts: int, dtype: torch.dtype = torch.float32) -> None:
        ids = torch.tensor([SOT] + [0] * LENGTH + [EOT] + [0] * (CONTEXT - LENGTH - 2))
        template = Template(ids, torch.arange(1, LENGTH + 1), LENGTH + 2)
        encoder = TextEncoder(text_part(model, dtype), template)
        self.tower = lambda embeds, ids: {"features": encoder(embeds)}
        device, generator = model.token_embedding.weight.device, torch.Generator().manual_seed(1)
        self.init_ids = torch.randint(49406, (prompts, LENGTH), generator=generator).to(device)
        targets = torch.randn(prompts, model.text_projection.shape[1], generator=generator)
        self.targets = F.normalize(targets, dim=-1).to(device)

    def search(self, table: TokenTable, steps: int, impl: str = "auto", tower=None, objective=None) -> SearchState:
        """Runs what a task runs, except the final scoring of the texts."""
        rows = len(self.init_ids)
        requests = [Request(tuple(range(rows)), self.init_ids, objective or Similarity(self.targets))]
        stages, limit = [Stage(PEZMethod(impl=impl), steps, top_k=4)], BatchLimit(rows, rows)
        run = Scheduler(table, tower or self.tower, lambda room: requests.pop() if requests else None, stages, limit)
        return next(iter(run.run()))


class Recorded(Similarity):
    """A `Similarity` that records the ids and scores that it sees."""

    def __init__(self, targets: torch.Tensor) -> None:
        super().__init__(targets)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, outputs, ids):
        loss, score = super().__call__(outputs, ids)
        self.seen.append((ids, score))
        return loss, score


def check_parity(model: torch.nn.Module, table: TokenTable, steps: int = 5) -> None:
    """Checks that pez_fast finds the ids and scores of the plain port."""
    setting = Setting(model, 2)
    objective = Recorded(setting.targets)
    setting.search(table, steps, objective=objective)
    for row in range(2):
        one = slice(row, row + 1)
        start, targets = setting.init_ids[one], setting.targets[one]
        plain = reference.optimize_prompt(model, targets, prompt_len=LENGTH, steps=steps, start=start)
        for k in range(steps):
            ids, score = objective.seen[k]
            assert torch.equal(ids[row], plain.ids[k][0]), f"other ids at step {k}"
            assert abs(float(score[row]) - plain.scores[k]) < 2e-5, f"another score at step {k}"


def check_rounding(model: torch.nn.Module, table: TokenTable, dtype: torch.dtype) -> None:
    """Checks that the scores in a dtype differ from those in float32 only by rounding."""
    scores = []
    for kind in (torch.float32, dtype):
        setting = Setting(model, 8, kind)
        with torch.no_grad():
            scores.append(Similarity(setting.targets)(setting.tower(table.weight[setting.init_ids], None), None)[1])
    assert (scores[0] - scores[1]).abs().max() < 0.02, f"scores in {dtype} are too far from those in float32"


def check_capture(model: torch.nn.Module, table: TokenTable, dtype: torch.dtype, impl: str) -> bool | None:
    """Returns whether steps replayed as a CUDA graph equal eager ones to the bit; None if nothing is captured."""
    if not table.weight.is_cuda or not capturable(impl, table.device):
        return None
    setting, found = Setting(model, 4, dtype), []
    for warm in (batch.WARMUP_STEPS, 1 << 30):
        before, batch.WARMUP_STEPS = batch.WARMUP_STEPS, warm
        try:
            found.append(setting.search(table, 20, impl))
        finally:
            batch.WARMUP_STEPS = before
    same_ids = torch.equal(found[0].best_rows()[0], found[1].best_rows()[0])
    return same_ids and torch.equal(found[0].scores, found[1].scores)


def timed(run, repeats: int, per: int) -> list[float]:
    """Returns the milliseconds of one step of one prompt, for each repeat."""
    run()
    times = []
    for _ in range(repeats):
        begun = now()
        run()
        times.append((now() - begun) * 1e3 / per)
    return times


class Report:
    """The rows of the results, printed as they come."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rows = args, []

    def add(self, name: str, prompts: int, times: list[float], plain: float | None, dtype: torch.dtype) -> float:
        fifths, middle = statistics.quantiles(times, n=5), statistics.median(times)
        ratio = plain / middle if plain else 1.0
        row = {
            "name": name,
            "model": self.args.model,
            "impl": self.args.impl,
            "dtype": str(dtype).removeprefix("torch."),
            "prompts": prompts,
            "ratio": ratio,
            "ms_per_step_and_prompt": middle,
            "q20": fifths[0],
            "q80": fifths[3],
            "ms_per_step": middle * prompts,
            "prompts_per_second_at_3000_steps": 1000 / (3000 * middle),
        }
        if self.args.device == "cuda":
            row["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        self.rows.append(row)
        spread = f"({fifths[0]:.3f} to {fifths[3]:.3f})"
        print(f"{name:44} {middle:9.3f} ms per step and prompt  {spread}  {ratio:6.1f} x", flush=True)
        return middle

    def add_capture(self, same: bool | None, dtype: torch.dtype) -> None:
        facts = {"model": self.args.model, "impl": self.args.impl, "dtype": str(dtype), "equal": same}
        self.rows.append({"name": "captured steps equal eager ones", **facts})
        assert same is not False, "captured steps differ from eager ones"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="ViT-B-32")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, help="dtypes of the tower; default: the device's default and float32"
    )
    parser.add_argument("--compile", action="store_true", help="time torch.compile of the tower as well")
    parser.add_argument(
        "--impl",
        default="auto",
        help="implementation of the projection; on a GPU, cuda and triton are captured as a graph",
    )
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    model = build(args.model).to(args.device)
    table = TokenTable(model.token_embedding)
    check_parity(model, table)
    default = search_dtype(None, torch.float32, table.dim, torch.device(args.device))
    named = [getattr(torch, name) for name in args.dtypes or ()]
    dtypes = named or list(dict.fromkeys([default, torch.float32]))
    for dtype in dtypes:
        check_rounding(model, table, dtype)
    print(f"{args.model}, {LENGTH} tokens, {args.device}, {torch.get_num_threads()} threads; parity holds")
    report, one = Report(args), Setting(model, 1)

    def run_plain_port() -> None:
        reference.optimize_prompt(model, one.targets, prompt_len=LENGTH, steps=args.steps, start=one.init_ids)

    plain = report.add(
        "plain port, one prompt", 1, timed(run_plain_port, args.repeats, args.steps), None, torch.float32
    )
    for dtype, compiled, prompts in itertools.product(dtypes, [False, True] if args.compile else [False], args.prompts):
        setting = Setting(model, prompts, dtype)
        setting.tower(table.weight[setting.init_ids], None)  # prepares the weights
        tower = torch.compile(setting.tower, dynamic=False) if compiled else setting.tower
        if prompts == args.prompts[0] and not compiled:
            report.add_capture(check_capture(model, table, dtype, args.impl), dtype)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        kind = str(dtype).removeprefix("torch.") + ", compiled" * compiled
        # A search also scores the projection after the last update, one pass more than it has steps.
        times = timed(
            partial(setting.search, table, args.steps, args.impl, tower=tower), args.repeats, args.steps * prompts
        )
        report.add(f"pez_fast, {prompts} prompt{'s' * (prompts > 1)}, {kind}", prompts, times, plain, dtype)
    if args.out:
        write(args.out, report.rows)


if __name__ == "__main__":
    main()
