"""The model card of real runs against what they did: the optimizer that stepped, the batches, the windows."""

import json
import re
from dataclasses import dataclass, field, replace

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from m2v_finetune import runs as training_command
from m2v_finetune.config import (
    AugmentationConfig,
    BackboneConfig,
    CacheConfig,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    RecipeConfig,
    RunConfig,
    TrainingConfig,
    TuningConfig,
)
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    task: TaggingConfig = field(default_factory=TaggingConfig)


@pytest.fixture
def train(small_manifest, tmp_path, monkeypatch):
    """Run a recipe; return the rows of the card's table of the method, the card, and the loop."""
    loops = []

    class KeptLoop(Trainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            loops.append(self)

    monkeypatch.setattr(training_command, "Trainer", KeptLoop)

    def run(*, resume=False, is_search=False, data=None, **sections):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        config = Config(
            data=DataConfig(
                source=str(small_manifest),
                num_workers=0,
                **{"windows_per_track": 1, **(data or {})},
            ),
            run=RunConfig(output_dir=str(tmp_path / "run"), resume="auto" if resume else "never"),
            **{"backbone": BackboneConfig(source="random-small"), **sections},
        )
        training_command.train_task(config, Tagging, is_search=is_search)
        if is_search:
            return None
        text = (tmp_path / "run" / "model" / "README.md").read_text()
        return (
            dict(re.findall(r"^\| ([A-Z][^|]*) \| (.*) \|$", text, re.MULTILINE)),
            text,
            loops[-1],
        )

    return run


def test_a_probe_by_the_defaults(train):
    rows, text, loop = train(
        data={"window_seconds": 2.0},
        training=TrainingConfig(epochs=2, per_device_batch_size=4),
        head=HeadConfig(kind="linear", standardize=True),
    )
    assert type(loop.optimizer).__name__ == "AdamW"
    assert rows["Optimizer"].startswith("AdamW, weight decay 0.01")
    assert "over 1 step, then half a cosine to zero at step 8" in rows["Optimizer"]
    assert rows["Windows"] == (
        "2 s; 1 random window of a track in an epoch, drawn 2 times, in turns; the prediction for a track is "
        "made from windows every 2 s"
    )
    assert rows["Batch"] == "4 windows a step: 4 on a device"
    assert rows["Precision and device"] == "float32, on CPU"
    assert rows["Length"].startswith("2 epochs of at most 2; 8 steps; ")
    assert rows["Peak learning rates"] == (
        f"{loop.optimizer.param_groups[0]['peak_lr']:g} for head and layer weights"
    )
    assert rows["Augmentation"] == "none"
    assert "standardised" in rows["Head"]
    assert "Resumed" not in rows
    assert "Tracks: 16 for train, 8 for validation, 12 for test." in text
    assert "they repeat the run" in text


@pytest.mark.slow
def test_full_tuning_by_adafactor_resumed_with_more_epochs(train, tmp_path):
    settings = {
        "data": {"window_seconds": 1.0, "windows_per_track": 2},
        "backbone": BackboneConfig(source="random-small", num_layers=2, layer_weighting="last"),
        "tuning": TuningConfig(method="full"),
        "optimizer": OptimizerConfig(name="adafactor", warmup_ratio=0.0, layer_decay=0.5),
        "augmentation": AugmentationConfig(transforms=[{"name": "gain"}]),
        "cache": CacheConfig(use="off"),
    }
    training = TrainingConfig(epochs=1, per_device_batch_size=4, gradient_accumulation_steps=2)
    train(is_search=True, training=training, **settings)
    assert not (tmp_path / "run" / "resumes.jsonl").exists()
    longer = replace(training, epochs=2, per_device_batch_size=8, gradient_accumulation_steps=1)
    rows, text, loop = train(resume=True, training=longer, **settings)
    assert type(loop.optimizer).__name__ == "Adafactor"
    assert rows["Optimizer"].startswith("Adafactor")
    assert "AdamW" not in text
    assert "; half a cosine to zero at step 8;" in rows["Optimizer"]
    assert rows["Windows"].startswith("1 s; 2 random windows of a track in an epoch; ")
    assert rows["Batch"] == "8 windows a step: 8 on a device"
    assert rows["Length"].startswith("2 epochs of at most 2; 8 steps; ")
    assert rows["Backbone"] == "`random-small`, the first 2 of 4 layers"
    learning_rates = [
        group["peak_lr"] for group in loop.optimizer.param_groups if "head" in group["name"]
    ]
    assert rows["Peak learning rates"].startswith(f"{learning_rates[0]:g} for the head, ")
    assert "times 0.5 for each layer below" in rows["Peak learning rates"]
    assert rows["Augmentation"] == "gain"
    assert rows["Resumed"].startswith("1 time; with other settings from then on: ")
    assert "`training.epochs` 2 (1 before)" in rows["Resumed"]
    assert "`training.per_device_batch_size` 8 (4 before)" in rows["Resumed"]
    assert str(tmp_path) not in text
    assert "they repeat the run" not in text
    assert "the last hidden state alone" in text
    [line] = (tmp_path / "run" / "resumes.jsonl").read_text().splitlines()
    assert json.loads(line)["changed"]["training.epochs"] == [1, 2]


@pytest.mark.exhaustive
def test_clips_shorter_than_a_window_with_spec_augment(train):
    rows, text, _ = train(
        data={"window_seconds": 10.0},
        backbone=BackboneConfig(source="random-small", spec_augment=True, num_layers=1),
        tuning=TuningConfig(method="lora"),
        training=TrainingConfig(epochs=1, per_device_batch_size=8),
        cache=CacheConfig(use="off"),
    )
    assert rows["Windows"].startswith(
        "10 s; 1 window of a track in an epoch; 16 training tracks padded with silence; "
    )
    assert rows["Augmentation"] == "SpecAugment as in the checkpoint's config"
    assert rows["Length"].startswith("1 epoch of at most 1; 2 steps; ")
    assert rows["Tuning"].startswith("LoRA, rank 2")
    assert "pre-training" not in text.split("## Limits")[1].split("##")[0]  # it had none
