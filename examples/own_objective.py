"""An objective and stages of your own: python examples/own_objective.py [--avoid orange] [--weight 0.25] [--steps 200]

The objective keeps the prompt away from the meaning of a text. The types of plugs are in pez_fast/engine/protocols.py.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

import pez_fast
from pez_fast.methods import GCGMethod, PEZMethod

IMAGE = Path(pez_fast.__file__).parent / "assets" / "emoji" / "images" / "guitar on orange.png"


@dataclass
class AwayFrom:
    """The loss is the cosine with the features (D,) of a text, which is the same for every target."""

    features: torch.Tensor

    def __call__(self, outputs: dict[str, torch.Tensor], ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cosine = (outputs["features"] @ self.features).clamp(min=0)
        return cosine, -cosine.detach()  # a loss and a score for each prompt

    def select(self, rows: torch.Tensor) -> AwayFrom:
        return self


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--avoid", default="orange")
parser.add_argument("--weight", type=float, default=0.25)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
clip = pez_fast.load_clip("emoji")
avoided = clip.encode_texts([args.avoid])[0]
stages = [(PEZMethod(), args.steps), (GCGMethod(search_width=64), 16)]  # one after the other
for name, terms in (("as it is", []), (f"away from {args.avoid!r}", [(args.weight, AwayFrom(avoided))])):
    result = pez_fast.invert(IMAGE, clip, prompt_len=2, restarts=4, stages=stages, terms=terms)
    cosine = (clip.encode_texts([result.prompt])[0] @ avoided).item()
    print(f"{IMAGE.stem}, {name}: {result.prompt}  (cosine with {args.avoid!r} {cosine:.2f})")
