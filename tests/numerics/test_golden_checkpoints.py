"""The five published layouts against hidden states of the models' own reference code.

The golden checkpoints are tiny, with random weights, and carry each published file's quirks; their
hidden states were computed under transformers 4.38.2.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from support.messages import raises

from m2v_finetune.backbones import load_backbone

NAMES = ("music2vec-v1", "MERT-v0", "MERT-v0-public", "MERT-v1-95M", "MERT-v1-330M")
# Float32 rounds a state of up to 14 by 1e-6 a number, and processors add in other orders: on one without
# AVX-512 the largest state of MERT-v1-330M is 1.2e-5 from the same in float64, and the golden file 1e-5.
TOLERANCE = 1e-5
RELATIVE_TOLERANCE = 2e-6  # of the largest number of a state


@pytest.mark.parametrize("name", NAMES)
def test_every_hidden_state_agrees(name, shared_dir, record_property):
    folder = shared_dir / "golden" / "checkpoints" / name
    golden = np.load(folder / "hidden_states.npy")
    backbone = load_backbone(folder)

    with torch.no_grad():
        states = backbone(torch.from_numpy(np.load(folder / "input_values.npy")))

    assert len(states) == len(golden) == backbone.num_hidden_states
    differences = [np.abs(g - s.numpy()).max() for g, s in zip(golden, states, strict=True)]
    worst = max(differences)
    record_property(f"{name}, worst difference over {len(golden)} hidden states", f"{worst:.2e}")
    for difference, state in zip(differences, golden, strict=True):
        assert difference < max(TOLERANCE, RELATIVE_TOLERANCE * np.abs(state).max())


def test_the_positional_convolution_is_loaded_and_not_random(shared_dir):
    folder = shared_dir / "golden" / "checkpoints" / "MERT-v1-95M"
    saved = torch.load(folder / "pytorch_model.bin", weights_only=True)
    loaded = load_backbone(folder).network.encoder.pos_conv_embed.conv.parametrizations.weight
    assert torch.equal(loaded.original0, saved["encoder.pos_conv_embed.conv.weight_g"])
    assert torch.equal(loaded.original1, saved["encoder.pos_conv_embed.conv.weight_v"])


@pytest.mark.parametrize("name", NAMES)
def test_truncation_keeps_the_lower_states(name, shared_dir):
    folder = shared_dir / "golden" / "checkpoints" / name
    x = torch.from_numpy(np.load(folder / "input_values.npy"))
    whole = load_backbone(folder)
    for kept in range(whole.num_layers):
        cut = load_backbone(folder, num_layers=kept)
        with torch.no_grad():
            expected, states = whole(x), cut(x)
        assert len(states) == kept + 1
        for a, b in zip(states, expected, strict=False):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_states_is_constant_in_training_mode(name, shared_dir):
    folder = shared_dir / "golden" / "checkpoints" / name
    backbone = load_backbone(folder).train()
    x = torch.from_numpy(np.load(folder / "input_values.npy"))
    layers_run = {len(backbone(x)) for _ in range(20)}
    assert layers_run == {backbone.num_hidden_states}


@pytest.mark.parametrize(
    ("switch", "reason"),
    [("feature_extractor_cqt", "a constant-Q"), ("deepnorm", "DeepNorm")],
)
def test_what_no_released_checkpoint_uses_is_refused(switch, reason, shared_dir, tmp_path):
    folder = shutil.copytree(shared_dir / "golden" / "checkpoints" / "MERT-v0", tmp_path / "c")
    folder.chmod(0o755)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({**config, switch: True}))
    with raises("architecture-setting-unsupported", f"{switch} ({reason}"):
        load_backbone(folder)
