"""What saves memory changes no result, and saves what it says."""

import numpy as np
import pytest
import torch
from support.models import PUBLISHED
from torch.utils._python_dispatch import TorchDispatchMode

from m2v_finetune.backbones import backbone as backbone_module
from m2v_finetune.backbones import load_backbone
from m2v_finetune.backbones.cpu import as_elsewhere
from m2v_finetune.backbones.layer_weighting import LayerWeighting

WINDOWS, SAMPLES = 4, 16000


def build(trainable: str, *, checkpointing: bool = True, spec_augment: bool = False):
    """Return random-small in training mode; ``trainable``: nothing, top, layers or all."""
    backbone = load_backbone("random-small", spec_augment=spec_augment).train()
    backbone.gradient_checkpointing = checkpointing
    backbone.requires_grad_(trainable in ("layers", "all"))
    if trainable == "layers":
        backbone.network.feature_extractor.requires_grad_(False)
    if trainable == "top":
        backbone.network.encoder.layers[-1].requires_grad_(True)
    return backbone


def waveforms(windows=WINDOWS):
    return 0.1 * torch.randn(windows, SAMPLES, generator=torch.Generator().manual_seed(0))


def state_bytes(backbone):
    return 4 * WINDOWS * backbone.num_frames(SAMPLES) * backbone.hidden_size


def kept_bytes(backbone, weighting, *, mean=False):
    """The bytes of storages, weights aside, that autograd keeps for the backward pass."""
    weighting = LayerWeighting(weighting, backbone.num_hidden_states)
    weights = {
        p.untyped_storage().data_ptr() for m in (backbone, weighting) for p in m.parameters()
    }
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = backbone.iterate_hidden_states(waveforms())
        combined = weighting(state.mean(dim=1) if mean else state for state in states)
    assert combined.requires_grad or not kept
    return sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("trainable", ["layers", "all"])
def test_the_layer_weighting_shares_what_checkpointing_keeps(trainable):
    """The input of each layer is kept once for both; only the last state is the weighting's own."""
    backbone = build(trainable)
    own = kept_bytes(backbone, "softmax") - kept_bytes(backbone, "last")
    assert own == pytest.approx(state_bytes(backbone), rel=0.05)


@pytest.mark.parametrize("trainable", ["nothing", "top", "layers", "all"])
def test_of_averaged_states_the_layer_weighting_keeps_next_to_nothing(trainable):
    backbone = build(trainable)
    own = kept_bytes(backbone, "softmax", mean=True) - kept_bytes(backbone, "last", mean=True)
    assert 0 < own < 0.2 * state_bytes(backbone)


def test_below_the_first_trainable_layer_nothing_is_kept():
    """Without checkpointing: what a layer keeps of its own, and of the frozen ones, their states."""
    top = build("top", checkpointing=False)
    layer = kept_bytes(top, "last")
    assert layer < 0.3 * kept_bytes(build("layers", checkpointing=False), "last")
    states = kept_bytes(top, "softmax") - layer
    assert states == pytest.approx(top.num_layers * state_bytes(top), rel=0.05)
    assert kept_bytes(build("nothing"), "last") == 0


def test_with_checkpointing_the_conv_encoder_keeps_its_input_and_output():
    more = kept_bytes(build("all"), "last") - kept_bytes(build("layers"), "last")
    assert more <= 1.1 * waveforms().nbytes
    plain = [
        kept_bytes(build(trainable, checkpointing=False), "last") for trainable in ("all", "layers")
    ]
    assert plain[0] - plain[1] > 20 * waveforms().nbytes


class LargestTensor(TorchDispatchMode):
    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("trainable", ["nothing", "all"])
def test_the_conv_encoder_goes_in_chunks(trainable, monkeypatch):
    """A window at once makes no other features and gradients, and no tensor exceeds the batch."""
    found, largest = [], []
    for batch_size in (WINDOWS, 1):
        monkeypatch.setattr(backbone_module, "CONV_CHUNK_SAMPLES", batch_size * SAMPLES)
        backbone = build(trainable)
        # Without gradients a CPU would compute window by window in any case.
        with as_elsewhere(), LargestTensor() as mode:
            features = backbone.encode(waveforms())
        largest.append(mode.numbers)
        if trainable == "all":
            features.square().mean().backward()
        gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
        found.append([features.detach(), *gradients])
    assert len(found[0]) == (1 if trainable == "nothing" else 10)
    for whole, chunks in zip(*found, strict=True):
        torch.testing.assert_close(chunks, whole, rtol=1e-4, atol=1e-5)
    assert largest[0] > 3 * WINDOWS * SAMPLES
    assert largest[1] == WINDOWS * SAMPLES  # the batch itself


def test_checkpointing_recomputes_the_same_masks():
    """SpecAugment draws from numpy, whose state torch's checkpointing does not bring back."""
    found = []
    for checkpointing in (False, True):
        backbone = build("all", checkpointing=checkpointing, spec_augment=True)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        backbone(waveforms())[-1].square().mean().backward()
        found.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


class Functions(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()
        self.masks = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        if "scaled_dot_product" in function.__name__:
            self.masks.append((kwargs or {}).get("attn_mask"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_fused_attention_equals_attention_written_out(name, shared_dir):
    folder = shared_dir / "golden" / "checkpoints" / name
    backbone = load_backbone(folder)
    x = torch.from_numpy(np.load(folder / "input_values.npy"))
    states, names, masks = [], [], []
    for implementation in (None, "eager"):
        if implementation:
            backbone.network.config._attn_implementation = implementation
        with torch.no_grad(), Functions() as mode:
            states.append(backbone(x))
        masks += mode.masks
        names.append({n for n in mode.names if "scaled_dot_product" in n or "softmax" in n})
    assert all("scaled_dot_product" in n for n in names[0])
    assert masks == [None] * backbone.num_layers  # a mask would rule out the fastest kernels
    assert names[1] == {"_softmax.default"}
    for fused, written_out in zip(*states, strict=True):
        torch.testing.assert_close(fused, written_out, rtol=0, atol=1e-5)
