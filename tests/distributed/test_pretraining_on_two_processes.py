"""Pre-training by two processes on CPU against one: the same losses, teacher and backbone."""

import json

import pytest
import torch
from support.processes import run_ranks
from support.runs import read_metrics

from m2v_finetune.training.checkpoint_files import STATE_FILE, checkpoints_in

ARCHITECTURE = {
    "model_type": "data2vec-audio",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 12],
    "conv_kernel": [40, 16],
    "conv_stride": [20, 16],
    "num_conv_pos_embeddings": 2,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.05,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}


OBJECTIVES = {
    "data2vec": {"pretrain.num_target_layers": 2, "pretrain.ema_start": 0.5},
    "masked_prediction": {
        "objective": "masked_prediction",
        "masked_prediction.log_mel_clusters": 6,
        "masked_prediction.chroma_clusters": 4,
        "masked_prediction.fit_frames": 500,
        "masked_prediction.mix_probability": 0.5,
        "masked_prediction.mix_max_seconds": 0.6,
        "masked_prediction.freeze_backbone_steps": 1,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["data2vec", "masked_prediction"])
def test_two_processes_give_what_one_gives(
    repository, small_manifest, tmp_path, objective, monkeypatch
):
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
    lines, ends = [], []
    for processes in (1, 2):
        # Each fits and labels for itself, so that both ways are compared.
        monkeypatch.setenv("M2V_CACHE", str(tmp_path / f"cache-{processes}"))
        settings = {
            "data.source": small_manifest,
            "data.window_seconds": 1,
            "data.num_workers": 0,
            "backbone.architecture": tmp_path,
            **OBJECTIVES[objective],
            "training.epochs": 2,
            "training.per_device_batch_size": 8 // processes,
            "training.log_every_steps": 1,
            "run.output_dir": tmp_path / str(processes),
        }
        recipe = repository / "recipes" / "pretrain.py"
        done = run_ranks(processes, [recipe], settings)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"x {processes} processes = 8" in " ".join(done.stderr.split())
        lines.append(read_metrics(tmp_path / str(processes)))
        [*_, last] = checkpoints_in(tmp_path / str(processes) / "checkpoints")
        ends.append(torch.load(last / STATE_FILE, weights_only=True)["trained"])
    assert len(lines[0]) == len(lines[1]) == 2 * 2 + 2
    for one, two in zip(*lines, strict=True):
        for found, expected in ((two, one), (two.get("validation", {}), one.get("validation", {}))):
            numbers = {k: v for k, v in expected.items() if isinstance(v, float)}
            assert {k: found[k] for k in numbers} == pytest.approx(numbers, rel=1e-4)
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0, atol=2e-5, msg=name)
