"""Text-to-image pipelines of diffusers as models that prompts are learned for."""

from pez_fast.models.diffusion.model import DiffusionModel, NoiseTask
from pez_fast.models.diffusion.pipeline import load_pipeline
from pez_fast.models.diffusion.text import FedText

__all__ = ["DiffusionModel", "FedText", "NoiseTask", "load_pipeline"]
