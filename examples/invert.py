"""Learns a prompt for one image, with a progress bar: python examples/invert.py [IMAGE] [--prompt-len L] [--steps N]"""

from __future__ import annotations

import argparse
from pathlib import Path

import pez_fast
from pez_fast.report.console import watch

IMAGES = Path(pez_fast.__file__).parent / "assets" / "emoji" / "images"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("image", nargs="?", type=Path, default=IMAGES / "tropical fish on pink.png")
parser.add_argument("--prompt-len", type=int, default=3, help="number of learned tokens")
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()

clip = pez_fast.load_clip("emoji")  # the bundled model; the paper's is load_clip("ViT-H-14", "laion2b_s32b_b79k")
with watch([args.image.name], args.steps) as bar:
    result = pez_fast.invert(
        args.image,
        clip,
        prompt_len=args.prompt_len,
        steps=args.steps,
        restarts=4,  # four searches in one batch, of which the best one counts
        top_k=3,  # the three best prompts that they met
        callback=bar,
        every=bar.every,
    )

print(f"{args.image.name}: {result.prompt}")
for found in result.top:
    print(f"  cosine {found.text_score:.3f}  {found.prompt}")
print(f"{result.steps} steps in {result.seconds:.1f} s")
