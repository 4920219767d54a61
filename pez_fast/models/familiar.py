"""Whether an image lies near those that a model was trained on."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

FILE = "familiar.safetensors"  # beside the weights


class Familiar:
    """Features of training images, and the cosine with the nearest of them below which an image is unlike all of them.

    Args:
        features: (K, D) unit features of training images, in any floating dtype.
        least: a cosine; 99% of images of the training's own kind, held out from it, lie above.
    """

    def __init__(self, features: Tensor, least: float) -> None:
        self.features, self.least = F.normalize(features.float(), dim=-1), least

    @staticmethod
    def load(folder: Path | None) -> Familiar | None:
        """Returns what a model's folder holds of it, or None."""
        if folder is None or not (folder / FILE).is_file():
            return None
        from safetensors.torch import load_file

        kept = load_file(folder / FILE)
        return Familiar(kept["features"], float(kept["least"]))

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """Returns the cosine (N,) of unit features (N, D) with the nearest training image."""
        return (features.cpu().float() @ self.features.T).amax(-1)

    def notes(self, features: Tensor) -> list[str]:
        """Returns a sentence for each of unit features (N, D) that is far from all training images, else ""."""
        return [
            ""
            if cosine >= self.least
            else f"the image is unlike those that the model was trained on (nearest: cosine {cosine:.2f}, "
            f"99% of its own kind: above {self.least:.2f}), so the prompt may mean nothing"
            for cosine in self.nearest(features).tolist()
        ]
