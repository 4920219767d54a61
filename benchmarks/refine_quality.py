"""Which method refines best: the stage after PEZ, with each method at equal CPU time, on held-out images.

    OMP_NUM_THREADS=1 python benchmarks/refine_quality.py --out benchmarks/results/refine_quality_cpu.json

Every way begins with the same steps of PEZ on the same images (`benchmarks/heldout/`), and then refines with one
method. How many steps of a method take a budget of CPU seconds is found by a short run of it beforehand; the seconds
that the whole run took stand in the results. A row says how good the prompts are, typed in again, and how many hold a
word of the emoji's name.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from emoji_quality import held_out, holds_name
from provenance import write
from torch import Tensor

import pez_fast
from pez_fast.methods import BeamMethod, GCGMethod, PEZMethod, ProbeMethod
from pez_fast.models import ClipEncoder
from pez_fast.objectives import Similarity

WAYS: dict[str, Any] = {
    "GCG, width 32 (the default)": GCGMethod(),
    "GCG, width 16": GCGMethod(search_width=16),
    "GCG, width 64": GCGMethod(search_width=64),
    "GCG, width 128, top 64": GCGMethod(search_width=128, top_k=64),
    "GCG, width 256, top 256": GCGMethod(search_width=256, top_k=256),
    "GCG, width 32, momentum 0.5": GCGMethod(momentum=0.5),
    "GCG, width 32, momentum 0.9": GCGMethod(momentum=0.9),
    "2 beams, width 32": BeamMethod(beams=2),
    "4 beams, width 64": BeamMethod(beams=4, search_width=64),
    "probe sampling, 16 of 128": ProbeMethod(),
    "probe sampling, 8 of 64": ProbeMethod(search_width=64, probes=8),
    "more PEZ, no refinement": PEZMethod(),
}


def run(clip: ClipEncoder, targets: Tensor, stages: list, prompt_len: int) -> tuple[list, float]:
    """Returns the results and the CPU seconds that the search took."""
    begun = time.process_time()
    found = pez_fast.search(Similarity(targets), clip, prompt_len=prompt_len, stages=stages)
    return found, time.process_time() - begun


def steps_in(clip: ClipEncoder, targets: Tensor, method: Any, seconds: float, prompt_len: int) -> int:
    """Returns how many steps of a method take so many CPU seconds, from the difference of two short runs."""
    few, more = 1, 5
    times = [run(clip, targets, [(PEZMethod(), 1), (method, n)], prompt_len)[1] for n in (few, more)]
    return max(1, round(seconds * (more - few) / max(times[1] - times[0], 1e-3)))


def row(
    way: str, steps: int, found: list, seconds: float, budget: float, labels: list[dict], base: list[float] | None
) -> dict[str, Any]:
    """Returns the row of a way, and prints it."""
    text = [r.text_score for r in found]
    named = sum(holds_name(r.prompt, label["name"]) for r, label in zip(found, labels, strict=True))
    values = {
        "name": way,
        "budget": budget,
        "steps": steps,
        "cpu_seconds": seconds,
        "median_text_score": statistics.median(text),
        "mean_text_score": statistics.mean(text),
        "names": named / len(found),
        "better_than_default": None if base is None else sum(a > b for a, b in zip(text, base, strict=True)),
        "text_scores": [round(t, 5) for t in text],
        "prompts": [r.prompt for r in found[:8]],
    }
    print(
        f"{way:30} {steps:5} steps {seconds:7.1f} s   median {values['median_text_score']:.4f}   "
        f"mean {values['mean_text_score']:.4f}   names {values['names']:.1%}",
        flush=True,
    )
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100, help="steps of PEZ before")
    parser.add_argument("--prompt-len", type=int, default=16)
    parser.add_argument("--budgets", type=float, nargs="+", default=[30.0], help="CPU seconds for all images")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    labels, images = held_out(args.images)
    clip = pez_fast.load_clip("emoji")
    targets = clip.encode_images(images)
    run(clip, targets[:1], [(PEZMethod(), 1), (GCGMethod(), 1)], args.prompt_len)  # what is made once
    found, seconds = run(clip, targets, [(PEZMethod(), args.steps)], args.prompt_len)
    rows = [row("PEZ alone", 0, found, seconds, 0.0, labels, None)]
    for budget in args.budgets:
        base = None
        for way in args.ways:
            steps = steps_in(clip, targets, WAYS[way], budget, args.prompt_len)
            stages = [(PEZMethod(), args.steps), (WAYS[way], steps)]
            if way == "more PEZ, no refinement":
                stages = [(PEZMethod(), args.steps + steps)]
            found, seconds = run(clip, targets, stages, args.prompt_len)
            rows.append(row(way, steps, found, seconds, budget, labels, base))
            base = base or [r.text_score for r in found]
            if args.out:
                write(args.out, {"images": len(images), "pez_steps": args.steps, "rows": rows}, final=False)


if __name__ == "__main__":
    main()
