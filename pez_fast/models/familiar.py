"""Whether an image is like those that a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = "familiar.safetensors"  # beside the weights


class Familiar:
    """The distribution of the training images in a layer of the image tower, and a distance that few of them exceed.

    The distance is that of Mahalanobis (Lee et al. 2018, "A simple unified framework for detecting out-of-distribution
    samples"), between the layer's output, averaged over its places, and the mean of the training images. The features
    at the tower's end do not tell kinds of images apart: they hold only what captions say.

    Args:
        layer: the name of a module of the model that puts out (N, C, H, W).
        mean: (C,).
        whiten: (C, C); with it the training images have unit covariance.
        most: a distance; 98% of images of the training's own kind, held out from it, lie nearer.
    """

    def __init__(self, layer: str, mean: Tensor, whiten: Tensor, most: float) -> None:
        self.layer, self.mean, self.whiten, self.most = layer, mean.float(), whiten.float(), most

    @staticmethod
    def load(folder: Path | None) -> Familiar | None:
        """Returns what a model's folder holds of it, or None."""
        if folder is None or not (folder / FILE).is_file():
            return None
        from safetensors import safe_open

        with safe_open(folder / FILE, "pt") as file:
            layer, most = (file.metadata()[name] for name in ("layer", "most"))
            return Familiar(layer, file.get_tensor("mean"), file.get_tensor("whiten"), float(most))

    def save(self, folder: Path) -> None:
        """Writes it into a model's folder, the matrix in float16."""
        from safetensors.torch import save_file

        metadata = {"layer": self.layer, "most": f"{self.most:.4f}"}
        save_file({"mean": self.mean, "whiten": self.whiten.half().contiguous()}, folder / FILE, metadata)

    @torch.no_grad()
    def distances(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Returns the distance (N,) of preprocessed images (N, 3, H, W), on the model's device and in its dtype."""
        pooled: list[Tensor] = []
        layer = model.get_submodule(self.layer)
        hook = layer.register_forward_hook(lambda _, __, output: pooled.append(output.mean((-2, -1)).float().cpu()))
        try:
            encode: Any = model.encode_image
            encode(pixels)
        finally:
            hook.remove()
        return ((pooled[0] - self.mean) @ self.whiten).norm(dim=-1)

    def notes(self, model: nn.Module, pixels: Tensor) -> list[str]:
        """Returns a sentence for each of images (N, 3, H, W) that is unlike the training's, else ""."""
        return [
            ""
            if distance <= self.most
            else f"the image is unlike those that the model was trained on (distance {distance:.0f}, 98% of theirs: "
            f"below {self.most:.0f}), so the prompt may mean nothing"
            for distance in self.distances(model, pixels).tolist()
        ]
