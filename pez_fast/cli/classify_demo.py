"""`pez-fast demo --language`: a prompt for the example reviews, offline."""

from __future__ import annotations

from pathlib import Path

from pez_fast.cli.classify import learned
from pez_fast.cli.classify_options import BUNDLED, LearnFlags

PROMPT_LEN, SOURCE = 5, "reviews"


def language_demo(steps: int, seed: int, out: Path, as_json: bool, history: bool) -> None:
    """Learns a prompt for the preset reviews with the bundled language model, scores it, and draws a sheet."""
    config = {"prompt_len": PROMPT_LEN, "steps": steps, "seed": seed, "refine": 0}
    learned(SOURCE, LearnFlags(model=BUNDLED, config=config, as_json=as_json), sheet=out, history=history)
