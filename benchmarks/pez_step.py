"""Time of one PEZ step against the plain port of the original loop, in one run.

    python benchmarks/pez_step.py --out benchmarks/results/pez_step_cpu.json

Both optimise prompts of 16 tokens through the text tower of a ViT-B-32 (or another shape) with random weights. The plain port
is `pez_fast.reference.optimize_prompt`, in float32: the table normalised at every step, the tower run twice over 77 positions,
one prompt after the other. Parity comes first: in float32, from the same start, both must find the same ids and the same scores;
in another dtype the scores of the start must be those of float32 but for that dtype's rounding. Timed is pez_fast in the dtype
that it takes by default on this device, and in float32.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from provenance import now, write

from pez_fast import reference
from pez_fast.encoders import TextEncoder
from pez_fast.encoders.precision import DTYPES, search_dtype, text_part
from pez_fast.encoders.text import Template
from pez_fast.engine import Part, Settings, batch, pez_steps, search
from pez_fast.objectives import TargetSimilarity
from pez_fast.ops import capturable
from pez_fast.optimizer import PEZ
from pez_fast.table import TokenTable

SHAPES = {"ViT-B-32": (512, 8, 12, 512), "ViT-L-14": (768, 12, 12, 768), "ViT-H-14": (1024, 16, 24, 1024)}
LENGTH, CONTEXT, SOT, EOT = 16, 77, 49406, 49407


def build(name: str) -> torch.nn.Module:
    """A CLIP with that text tower, random weights, and next to no image tower."""
    width, heads, layers, dim = SHAPES[name]
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers}
    return open_clip.CLIP(embed_dim=dim, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)


def setting(model: torch.nn.Module, prompts: int, dtype: torch.dtype = torch.float32):
    ids = torch.tensor([SOT] + [0] * LENGTH + [EOT] + [0] * (CONTEXT - LENGTH - 2))
    encode = TextEncoder(text_part(model, dtype), Template(ids, torch.arange(1, LENGTH + 1), LENGTH + 2))
    generator = torch.Generator().manual_seed(1)
    start = torch.randint(49406, (prompts, LENGTH), generator=generator)
    goals = F.normalize(torch.randn(prompts, model.text_projection.shape[1], generator=generator), dim=-1)
    device = model.token_embedding.weight.device
    return encode, start.to(device), goals.to(device)


def check_parity(model: torch.nn.Module, table: TokenTable, steps: int = 5) -> None:
    encode, start, goals = setting(model, 2)
    ours = list(pez_steps(PEZ(table.weight[start].clone(), table), encode, TargetSimilarity(goals), steps))
    for row in range(2):
        plain = reference.optimize_prompt(
            model, goals[row : row + 1], prompt_len=LENGTH, steps=steps, start=start[row : row + 1]
        )
        for k in range(steps):
            assert torch.equal(ours[k].ids[row], plain.ids[k][0]), f"other ids at step {k}"
            assert abs(float(ours[k].score[row]) - plain.scores[k]) < 2e-5, f"another score at step {k}"


def check_rounding(model: torch.nn.Module, table: TokenTable, dtype: torch.dtype) -> None:
    exact, start, goals = setting(model, 8)
    rounded, *_ = setting(model, 8, dtype)
    with torch.no_grad():
        hard = table.weight[start]
        scores = [TargetSimilarity(goals)(encode(hard))[1] for encode in (exact, rounded)]
    assert (scores[0] - scores[1]).abs().max() < 0.02, f"scores in {dtype} are too far from those in float32"


def check_capture(model: torch.nn.Module, table: TokenTable, dtype: torch.dtype, impl: str) -> bool | None:
    """Whether steps replayed as a CUDA graph find what eager ones do, to the bit; None where nothing is captured."""
    if not table.weight.is_cuda or not capturable(impl, table.device):
        return None
    encode, start, goals = setting(model, 4, dtype)
    found = []
    for warm in (batch.WARM, 1 << 30):
        before, batch.WARM = batch.WARM, warm
        try:
            found.append(
                search(Part((0, 1, 2, 3), start, TargetSimilarity(goals)), table, encode, Settings(20, impl=impl))
            )
        finally:
            batch.WARM = before
    return torch.equal(found[0].best()[0], found[1].best()[0]) and torch.equal(found[0].scores, found[1].scores)


def timed(run, repeats: int, per: int) -> list[float]:
    """Milliseconds for one step of one prompt, of each repeat."""
    run()
    times = []
    for _ in range(repeats):
        begun = now()
        run()
        times.append((now() - begun) * 1e3 / per)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="ViT-B-32")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, help="of the tower; default: the default of this device, and float32"
    )
    parser.add_argument("--compile", action="store_true", help="time torch.compile of the tower as well")
    parser.add_argument(
        "--impl", default="auto", help="of the projection; on a GPU, cuda and triton are captured as a graph"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = build(args.model).to(args.device)
    table = TokenTable(model.token_embedding)
    check_parity(model, table)
    default = search_dtype(None, torch.float32, table.dim, torch.device(args.device))
    dtypes = [DTYPES[name] for name in args.dtypes] if args.dtypes else list(dict.fromkeys([default, torch.float32]))
    for dtype in dtypes:
        check_rounding(model, table, dtype)
    print(f"{args.model}, {LENGTH} tokens, {args.device}, {torch.get_num_threads()} threads; parity holds")
    rows = []

    def report(name: str, prompts: int, times: list[float], plain: float | None, dtype: torch.dtype) -> float:
        low, middle, high = (
            statistics.quantiles(times, n=5)[0],
            statistics.median(times),
            statistics.quantiles(times, n=5)[3],
        )
        ratio, kind = plain / middle if plain else 1.0, str(dtype).removeprefix("torch.")
        row = {
            "name": name,
            "model": args.model,
            "impl": args.impl,
            "dtype": kind,
            "prompts": prompts,
            "ratio": ratio,
            "ms_per_step_and_prompt": middle,
            "q20": low,
            "q80": high,
            "ms_per_step": middle * prompts,
            "prompts_per_second_at_3000_steps": 1000 / (3000 * middle),
        }
        if args.device == "cuda":
            row["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        rows.append(row)
        print(f"{name:44} {middle:9.3f} ms per step and prompt  ({low:.3f} to {high:.3f})  {ratio:6.1f} x", flush=True)
        return middle

    _, start, goals = setting(model, 1)

    def plainly() -> None:
        reference.optimize_prompt(model, goals, prompt_len=LENGTH, steps=args.steps, start=start)

    plain = report("plain port, one prompt", 1, timed(plainly, args.repeats, args.steps), None, torch.float32)
    for dtype, compiled, prompts in itertools.product(dtypes, [False, True] if args.compile else [False], args.prompts):
        encode, starts, targets = setting(model, prompts, dtype)
        encode(table.weight[starts])  # prepares the weights
        run = torch.compile(encode, dynamic=False) if compiled else encode
        if prompts == args.prompts[0] and not compiled:
            same = check_capture(model, table, dtype, args.impl)
            rows.append(
                {
                    "name": "captured steps equal eager ones",
                    "model": args.model,
                    "impl": args.impl,
                    "dtype": str(dtype),
                    "equal": same,
                }
            )
            assert same is not False, "captured steps differ from eager ones"
        settings = Settings(args.steps, keep=4, impl=args.impl)
        part = Part(tuple(range(prompts)), starts, TargetSimilarity(targets))

        def ours(part=part, run=run, settings=settings) -> None:
            search(part, table, run, settings)

        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        # `search` scores the projection after the last update too: one pass more than it has steps.
        name = f"pez_fast, {prompts} prompt{'s' * (prompts > 1)}, {str(dtype).removeprefix('torch.')}{', compiled' * compiled}"
        report(name, prompts, timed(ours, args.repeats, args.steps * prompts), plain, dtype)
    if args.out:
        write(args.out, rows)


if __name__ == "__main__":
    main()
