"""Shortens a long prompt and combines texts with weights: python examples/distill.py [TEXT] [--ratio R] [--steps N]"""

from __future__ import annotations

import argparse

import pez_fast

LONG = "a picture of a snowman next to a rocket on a black background"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("text", nargs="?", default=LONG)
parser.add_argument("--ratio", type=float, default=0.3, help="tokens of the short prompt over those of the text")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--restarts", type=int, default=4, help="searches for each prompt, of which the best one counts")
args = parser.parse_args()
clip = pez_fast.load_clip("emoji")

short = pez_fast.distill(args.text, clip, ratio=args.ratio, steps=args.steps, restarts=args.restarts)
print(f"{args.text}\n  -> {short.prompt}  (cosine {short.text_score:.3f}, {len(short.ids)} tokens)")

# The prompt of several texts is close to those with a positive weight and far from those with a negative one.
texts, weights = ["a pizza and a guitar on a green background", "a pizza"], [1, -0.3]
mixed = pez_fast.distill(texts, clip, prompt_len=2, weights=weights, steps=args.steps, restarts=args.restarts)
print("\n".join(f"{weight:+} {text}" for weight, text in zip(weights, texts, strict=True)))
print(f"  -> {mixed.prompt}")
