"""What results.json tells of a run of given settings on one CPU.

That real runs tell the truth is tested in tests/recipes/test_card_facts.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2v_finetune.audio.decode import AudioInfo
from m2v_finetune.config import RecipeConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.track_results import write_track_results


def training_facts(config: RecipeConfig, **changes: Any) -> dict[str, Any]:
    """What a run of these settings on one CPU does; that real runs say so is tested with the recipes."""
    is_probe = config.tuning.method == "probe"
    rate, backbone_rate = (1e-3, None) if is_probe else (1e-4, 3e-4)
    return {
        "device": "cpu",
        "mixed_precision": "no",
        "num_processes": 1,
        "optimizer": config.optimizer.name,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "peak_learning_rates": {"head and layer weights": rate}
        | ({} if backbone_rate is None else {"backbone": backbone_rate}),
        "layer_decay": config.optimizer.layer_decay,
        "num_warmup_steps": 12,
        "num_scheduled_steps": 120,
        "max_epochs": config.training.epochs,
        "stopped_early": True,
        "device_batch_size": 16,
        "num_accumulated": config.training.gradient_accumulation_steps,
        "total_batch_size": 16 * config.training.gradient_accumulation_steps,
        "tuning": config.tuning.used(),
        "layer_weighting": config.backbone.layer_weighting,
        "spec_augment": False,
        "window_seconds": config.data.window_seconds,
        "windows_per_track": 1,
        "num_variants": None,
        "num_longer_tracks": 100,
        "num_shorter_tracks": 0,
        **changes,
    }


def backbone_facts(config: RecipeConfig, *, licence: str = "cc-by-nc-4.0", **changes: Any) -> Any:
    return {
        "source": config.backbone.source,
        "revision": None,
        "licence": licence,
        "num_layers": 12,
        "num_published_layers": 12,
        **changes,
    }


def results_of_tracks(
    run: RunFolder, evaluated: Sequence[Any], *, paths: Sequence[Path] = ()
) -> None:
    """Write test_tracks.jsonl of a run, with the names of audio files that are there, or of none."""
    checked = []
    for number in range(len(evaluated)):
        path = paths[number] if paths else Path(f"/nowhere/{number}.wav")
        track = Track(
            id=path.name, path=path, split="test", columns={}, origin="", folder=path.parent
        )
        audio = AudioInfo(sample_rate=8000, num_frames=8000, num_channels=1)
        checked.append(CheckedTrack(track=track, audio=audio))
    write_track_results(run.test_tracks, checked, evaluated)
