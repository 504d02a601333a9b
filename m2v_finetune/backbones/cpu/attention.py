"""Attention of the layers: PyTorch's fused kernels, and products on a CPU where those are slow.

On a CPU `scaled_dot_product_attention` has no fused kernel with dropout, and computes that case in float32;
in bfloat16 without matrix units its kernel takes as long as in float32. Here logits and their softmax are in
float32, and the product of weights and values is in the precision of the layers, as in the fused kernels.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from m2v_finetune.backbones.cpu import has_own_way
from m2v_finetune.backbones.cpu.dropout import drop

ATTENTION = "m2v_attention"
"""Name of `attend` among the attentions of transformers."""
PART_LOGITS = 2**23
"""Logits in memory at once in a prediction, 4 bytes each: those of 9 s in the largest published network."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return the attention of a layer, (batch, frames, heads, size), as transformers' attentions do.

    Args:
        module: Attention module.
        query: (batch, heads, frames, size); key and value too.
        key: Keys.
        value: Values.
        attention_mask: Mask; None in all networks here.
        dropout: Probability that a weight of the attention is dropped.
        scaling: Factor of the logits; by default the size to the power of -1/2.
        position_bias: Term of the logits, in networks with relative positions.
        others: Further arguments of transformers.
    """
    if attention_mask is None and position_bias is None and has_own_way(query):
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        if dropout > 0:
            return _products(query, key, value, factor, dropout).transpose(1, 2).contiguous(), None
        # Not in training, whose passes with and without gradients have to be equal.
        if query.dtype == torch.bfloat16 and torch.is_inference_mode_enabled():
            return _in_parts(query, key, value, factor), None
    attended, _ = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        position_bias=position_bias,
        **others,
    )
    return attended, None


def _in_parts(query: Tensor, key: Tensor, value: Tensor, factor: float) -> Tensor:
    """Return the attention (batch, frames, heads, size), window by window and `PART_LOGITS` at once."""
    _, num_heads, num_frames, _ = query.shape
    num_rows = max(1, PART_LOGITS // (num_heads * num_frames))
    attended = torch.empty_like(query.transpose(1, 2))
    for number in range(len(query)):
        window = slice(number, number + 1)
        for start in range(0, num_frames, num_rows):
            rows = slice(start, start + num_rows)
            part = _products(query[window, :, rows], key[window], value[window], factor, 0.0)
            attended[window, rows] = part.transpose(1, 2)
    return attended


def _products(query: Tensor, key: Tensor, value: Tensor, factor: float, dropout: float) -> Tensor:
    """Return the attention (batch, heads, frames, size), by products of (batch x heads) matrices.

    The query may have fewer frames than key and value.
    """
    queries, keys, values = (states.flatten(0, 1) for states in (query, key, value))
    exact = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        logits = torch.bmm(queries.to(exact) * factor, keys.to(exact).transpose(1, 2))
        weights = logits.softmax(-1)
        if dropout > 0:
            weights = drop(weights, dropout)
        return torch.bmm(weights.to(values.dtype), values).view_as(query)


AttentionInterface.register(ATTENTION, attend)
