"""Adapters that PEFT does not have. Each is the identity before training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BottleneckAdapter(nn.Module):
    """Small residual network after a sub-layer of a transformer layer, before its skip connection.

    It replaces the last dropout of the sub-layer, and contains it, so that no weight of the backbone
    changes its name.

    Attributes:
        dropout: Dropout of the sub-layer, applied first.
        down: Projection from hidden_size to adapter_size.
        up: Projection back to hidden_size; zero at the start.

    Source: Houlsby et al. (arXiv 1902.00751), with the GELU of Ding and Lerch (arXiv 2411.19371).
    """

    def __init__(self, dropout: nn.Module, *, hidden_size: int, adapter_size: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.down = nn.Linear(hidden_size, adapter_size)
        self.up = nn.Linear(adapter_size, hidden_size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, state: Tensor) -> Tensor:
        """Return the adapted output of the sub-layer, (batch, frames, hidden_size)."""
        state = self.dropout(state)
        return state + self.up(F.gelu(self.down(state)))  # type: ignore[no-any-return]


class ScaleShift(nn.Module):
    """Layer with a trainable scale and shift of its outputs.

    Attributes:
        base_layer: Linear layer or LayerNorm with a bias.
        scale: Trainable scale, (features,); one at the start.
        shift: Trainable shift, (features,); zero at the start.

    Source: SSF, Lian et al. (arXiv 2210.08823). They draw scale and shift with a standard deviation of
    0.02 about these values; here the network starts as it was pre-trained.
    """

    def __init__(self, base_layer: nn.Linear | nn.LayerNorm) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = nn.Parameter(torch.ones_like(base_layer.bias))
        self.shift = nn.Parameter(torch.zeros_like(base_layer.bias))

    def forward(self, state: Tensor) -> Tensor:
        """Return (..., features), in the precision of the layer."""
        output = self.base_layer(state)
        return output * self.scale.to(output.dtype) + self.shift.to(output.dtype)  # type: ignore[no-any-return]

    @torch.no_grad()
    def fold(self) -> nn.Linear | nn.LayerNorm:
        """Merge scale and shift into the weights of the layer, and return the layer."""
        layer = self.base_layer
        layer.weight.mul_(self.scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.mul_(self.scale).add_(self.shift)
        return layer
