"""Learns a prompt for each of many images in one batch, then one for several: python examples/batch.py [IMAGE ...]"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import pez_fast

IMAGES = Path(pez_fast.__file__).parent / "assets" / "emoji" / "images"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("images", nargs="*", default=[*sorted(map(str, IMAGES.glob("*.png"))), "missing.png"])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--restarts", type=int, default=4, help="searches for each prompt, of which the best one counts")
args = parser.parse_args()
clip = pez_fast.load_clip("emoji")
options = {"prompt_len": 3, "steps": args.steps, "restarts": args.restarts}

print("One prompt for each image; one that cannot be read becomes an entry with its error:")
for image, result in zip(args.images, pez_fast.invert_batch(args.images, clip, **options), strict=True):
    print(f"  {Path(image).stem:22} {result.error or f'{result.text_score:.3f}  {result.prompt}'}")


def fish_on(colour: tuple[int, int, int]) -> Image.Image:
    """Returns the image of the fish with another background."""
    pixels = np.array(Image.open(IMAGES / "tropical fish on pink.png").convert("RGB"))
    pixels[abs(pixels.astype(int) - pixels[0, 0]).max(-1) < 12] = colour
    return Image.fromarray(pixels)


red, blue, yellow = map(fish_on, ((214, 40, 40), (40, 90, 210), (250, 215, 50)))
shared = pez_fast.invert([red, blue, yellow], clip, **options)
print(f"One prompt for a fish on red, on blue and on yellow, which share the fish: {shared.prompt}")
apart = pez_fast.invert([blue, yellow], clip, weights=[1, -0.3], **options)
print(f"One prompt for the fish on blue and, with a negative weight, against that on yellow: {apart.prompt}")
