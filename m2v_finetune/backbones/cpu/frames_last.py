"""The conv encoder on a CPU without gradients: frames last, each convolution as matrix products.

A state is (batch, frames, channels) in memory, so the rows of a product are frames, norms over channels read
memory in order, and nothing is transposed between layers. A frame of a convolution is a run of neighbouring
rows of its input; the products read them in place, without a copy. Weights are those of the modules.

Group normalisation, with a group for each channel over all frames, follows the first convolution. That is
linear, so mean and variance of its output follow from mean and covariance of the samples in a frame, 10 in
all published networks, and the normalisation becomes part of the weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

from m2v_finetune.backbones.cpu import has_own_way


def is_usable(input_values: Tensor) -> bool:
    """Return whether this way applies: on a CPU, without gradients, and not while a model is exported."""
    return has_own_way(input_values) and not torch.is_grad_enabled()


def convolve(layers: Any, input_values: Tensor) -> Tensor:
    """Return the features of the conv encoder.

    The first layer runs in float32, the others in the precision of autocast.

    Args:
        layers: Layers of the conv encoder, a list of modules.
        input_values: (batch, samples).

    Returns:
        (batch, channels, frames), a view of (batch, frames, channels).
    """
    first, *others = layers
    dtype = torch.get_autocast_dtype("cpu")
    if not torch.is_autocast_enabled("cpu"):
        dtype = input_values.dtype
    weights = [_weights(layer.conv, dtype) for layer in others]
    windows = []
    # One by one: the states of a window are small, so that memory is used again while the cache holds it.
    for window in torch.split(input_values, 1):
        with torch.autocast("cpu", enabled=False):
            state = _first_layer(first, window)
        for layer, of_layer in zip(others, weights, strict=True):
            state = _products(layer.conv, of_layer, state.to(dtype))
            state = _norm_and_activate(layer, state)
        windows.append(state)
    return torch.cat(windows).transpose(1, 2)


def _first_layer(layer: Any, input_values: Tensor) -> Tensor:
    """Return the output of the first layer, (batch, frames, channels), of samples (batch, samples)."""
    conv = layer.conv
    norm = getattr(layer, "layer_norm", None)
    frames = input_values.unfold(1, conv.kernel_size[0], conv.stride[0])
    # Detached: another product is chosen for weights that require gradients, which rounds differently.
    weight = conv.weight.detach()[:, 0]
    if not isinstance(norm, nn.GroupNorm):
        bias = None if conv.bias is None else conv.bias.detach()
        return _norm_and_activate(layer, F.linear(frames, weight, bias))
    # A sample of one for the bias: the product adds it without another pass over its output.
    rows = torch.cat([frames, frames.new_ones(*frames.shape[:2], 1)], dim=2)
    return _activate(layer, torch.bmm(rows, _with_group_norm(norm, frames, weight.t())))


def _with_group_norm(norm: nn.GroupNorm, frames: Tensor, weight: Tensor) -> Tensor:
    """Return the weights of each window with the normalisation of their outputs, and the bias as last row.

    A bias of the convolution moves the mean of its output, and is subtracted with it.
    """
    rows = frames.double()
    mean = rows.mean(dim=1, keepdim=True)
    rows = rows - mean
    covariance = rows.transpose(1, 2) @ rows / rows.shape[1]
    wide = weight.double()
    variance = ((covariance @ wide) * wide).sum(dim=1, keepdim=True)
    scale = norm.weight.double() / torch.sqrt(variance.clamp(min=0) + norm.eps)
    shift = norm.bias.double() - (mean @ wide) * scale
    return torch.cat([wide * scale, shift], dim=1).to(weight.dtype)


def _weights(conv: nn.Conv1d, dtype: torch.dtype) -> Tensor:
    """Return the weights of a convolution, (kernel, channels in, channels out)."""
    return conv.weight.to(dtype).permute(2, 1, 0).contiguous()


def _products(conv: nn.Conv1d, weight: Tensor, state: Tensor) -> Tensor:
    """Return the convolution of a window, (1, frames, channels), with its `_weights`."""
    _, num_inputs, channels = state.shape
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    num_frames = (num_inputs - kernel) // stride + 1
    output = state.new_empty(1, num_frames, weight.shape[2])
    [window], [result] = state, output
    # Rows that do not overlap, so that a product reads them in place: as many taps as the stride at once.
    for tap in range(0, kernel, stride):
        taps = weight[tap : tap + stride].flatten(0, 1)
        start = window.storage_offset() + tap * channels
        rows = window.as_strided((num_frames, len(taps)), (stride * channels, 1), start)
        if tap:
            result.addmm_(rows, taps)
        elif conv.bias is None:
            torch.mm(rows, taps, out=result)
        else:
            torch.addmm(conv.bias.to(state.dtype), rows, taps, out=result)
    return output


def _norm_and_activate(layer: Any, state: Tensor) -> Tensor:
    """Return the output of a layer from that of its convolution, which is overwritten."""
    norm = getattr(layer, "layer_norm", None)
    return _activate(layer, state if norm is None else norm(state))


def _activate(layer: Any, state: Tensor) -> Tensor:
    if isinstance(layer.activation, GELUActivation):
        torch.ops.aten.gelu_(state)
        return state
    activated: Tensor = layer.activation(state)
    return activated
