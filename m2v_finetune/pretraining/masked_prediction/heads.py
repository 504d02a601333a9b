"""Heads that predict labels and the CQT from the last hidden state."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2v_finetune.pretraining.masked_prediction.cqt import NUM_BINS


class LabelHead(nn.Module):
    """Logits of the labels of one set: cosines of a projected state with learned embeddings of the labels.

    Source: HuBERT (arXiv 2106.07447), equation 3; MERT (arXiv 2306.00107) has a projection for each label
    set, and draws the embeddings from [0, 1).

    Args:
        hidden_size: Size of the states.
        projection_size: Size of projected states and embeddings.
        num_labels: Number of labels.
        temperature: Divisor of the cosine.
    """

    def __init__(
        self, *, hidden_size: int, projection_size: int, num_labels: int, temperature: float
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, projection_size)
        self.embeddings = nn.Parameter(torch.rand(num_labels, projection_size))
        self.temperature = temperature

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (batch, frames, num_labels), in float32, of states (batch, frames, hidden_size)."""
        projected = self.projection(states)
        with torch.autocast(states.device.type, enabled=False):
            projected = F.normalize(projected.float(), dim=-1)
            embeddings = F.normalize(self.embeddings.float(), dim=-1)
            logits: Tensor = projected @ embeddings.T / self.temperature
        return logits


class CqtHead(nn.Module):
    """Prediction of the magnitudes of the CQT.

    Args:
        hidden_size: Size of the states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, NUM_BINS)

    def forward(self, states: Tensor) -> Tensor:
        """Return (batch, frames, NUM_BINS), in float32, of states (batch, frames, hidden_size)."""
        predicted: Tensor = self.projection(states)
        return predicted.float()
