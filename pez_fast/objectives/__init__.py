"""Objectives: they turn a model's outputs into a loss and a score for each prompt."""

from pez_fast.objectives.labels import LabelLoss, TextLoss, split_score
from pez_fast.objectives.noise import NoiseLoss
from pez_fast.objectives.similarity import Similarity, weighted_target
from pez_fast.objectives.weighted_sum import WeightedSum

__all__ = ["LabelLoss", "NoiseLoss", "Similarity", "TextLoss", "WeightedSum", "split_score", "weighted_target"]
