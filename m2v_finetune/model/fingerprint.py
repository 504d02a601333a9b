"""Hash of all that decides what a model predicts."""

import hashlib
import json
from dataclasses import asdict

from m2v_finetune.backbones.network_parts import settings_beside_weights
from m2v_finetune.model.task_model import TaskModel


def model_fingerprint(model: TaskModel) -> str:
    """Return a SHA-256 of all that decides what a model predicts, wherever it was loaded from."""
    settings = {
        "task": model.task.to_dict(),
        "window_samples": model.window_samples,
        "hop_samples": model.hop_samples,
        "sample_rate": model.backbone.sample_rate,
        "normalize": model.backbone.normalize,
        "backbone": settings_beside_weights(getattr(model.backbone, "settings", {})),
        "tuning": asdict(model.tuning),
        "layer_weighting": model.layer_weighting.kind,
        "head": asdict(model.head_config),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
