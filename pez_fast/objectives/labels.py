"""The loss of labels behind texts, for classification by a language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pez_fast.engine import Outputs


class LabelLoss:
    """Cross-entropy of the true labels, with λ parts of the prompt's own cross-entropy: (1 − λ) task + λ fluency.

    This is the loss of Wen et al. 2023, section 5. The score is the accuracy; between prompts of one accuracy the
    smaller loss decides, see `split_score`.

    Args:
        fluency: λ for each row, in [0, 1].
    """

    def __init__(self, fluency: Sequence[float] | Tensor) -> None:
        self.fluency = torch.as_tensor(fluency, dtype=torch.float64, device="cpu")

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.fluency)

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss (R,) and the score (R,) of prompts ids (R, L)."""
        scores, classes = outputs["label_scores"], outputs["classes"]
        loss = F.cross_entropy(scores.flatten(0, 1), classes.flatten(), reduction="none").view(classes.shape).mean(1)
        if "prompt_nll" in outputs:
            share = self.fluency.to(loss)
            loss = (1 - share) * loss + share * outputs["prompt_nll"]
        accuracy = (scores.detach().argmax(-1) == classes).to(loss.dtype).mean(1)
        return loss, joined_score(accuracy, loss.detach(), classes.shape[1])

    def select(self, rows: Tensor) -> LabelLoss:
        """Returns the objective of some rows; `rows` (R',) int64 may repeat a row."""
        return LabelLoss(self.fluency[rows.cpu()])


class TextLoss:
    """The mean cross-entropy of a text's tokens behind each prompt; the score is its negative.

    Args:
        lengths: (R,) the number of tokens of each row's text.
    """

    def __init__(self, lengths: Sequence[int] | Tensor) -> None:
        self.lengths = torch.as_tensor(lengths)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.lengths)

    def __call__(self, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss (R,) and the score (R,) of prompts ids (R, L)."""
        loss = -outputs["label_scores"][:, 0, 0] / self.lengths.to(outputs["label_scores"])
        return loss, -loss.detach()

    def select(self, rows: Tensor) -> TextLoss:
        """Returns the objective of some rows; `rows` (R',) int64 may repeat a row."""
        return TextLoss(self.lengths[rows.to(self.lengths.device)])


def joined_score(accuracy: Tensor, loss: Tensor, examples: int) -> Tensor:
    """Returns one number that orders prompts by accuracy, and by loss where accuracies are equal.

    It is the accuracy less loss / (1 + loss) of half the step between two accuracies. A loss that is not finite gives
    NaN.
    """
    return accuracy - 0.5 / examples * (loss / (1 + loss))


def split_score(score: float, examples: int) -> tuple[float, float]:
    """Returns the accuracy and the loss that a score of `joined_score` was made from."""
    right = round(score * examples + 0.25)  # what is taken off is less than half an example
    share = min(max(2 * (right - score * examples), 0.0), 1 - 1e-9)
    return right / examples, share / (1 - share)
