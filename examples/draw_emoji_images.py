"""Draws the images that ship with the package, and the held-out images of the benchmark.

python examples/draw_emoji_images.py --demo pez_fast/assets/emoji/images --heldout benchmarks/heldout
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import emoji_images
import numpy as np
from PIL import Image

DEMO = (
    ("red apple", "white"),
    ("dog face", "blue"),
    ("sunflower", "purple"),
    ("rocket", "black"),
    ("pizza", "green"),
    ("snowman", "turquoise"),
    ("guitar", "orange"),
    ("tropical fish", "pink"),
)
DEMO_SIZE, HELD_OUT_SIZE, HELD_OUT, HELD_OUT_SEED = 256, 64, 200, 0


def save(path: Path, scene: emoji_images.Scene, glyphs, size: int) -> None:
    pixels = emoji_images.compose([scene], glyphs, size, oversample=4 if size < 128 else 2)[0]
    Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--heldout", type=Path)
    args = parser.parse_args()
    drawn = emoji_images.load_glyphs()
    names, glyphs = [g.name for g in drawn], emoji_images.stack_glyphs(drawn)
    if args.demo:
        args.demo.mkdir(parents=True, exist_ok=True)
        for name, colour in DEMO:
            scene = emoji_images.Scene(
                [names.index(name)], [(0.5, 0.5, 0.75)], emoji_images.COLOUR_NAMES.index(colour), (0, 0, 0)
            )
            save(args.demo / f"{name} on {colour}.png", scene, glyphs, DEMO_SIZE)
    if args.heldout:
        args.heldout.mkdir(parents=True, exist_ok=True)
        labels = []
        for k, scene in enumerate(emoji_images.held_out_scenes(HELD_OUT, len(names), HELD_OUT_SEED)):
            save(args.heldout / f"{k:03}.png", scene, glyphs, HELD_OUT_SIZE)
            labels.append(
                {
                    "file": f"{k:03}.png",
                    "name": names[scene.glyphs[0]],
                    "colour": emoji_images.COLOUR_NAMES[scene.colour],
                }
            )
        (args.heldout / "labels.json").write_text(json.dumps(labels, indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
