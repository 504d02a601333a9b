"""What the frozen part of a network says, kept: the same run, computed once, by any number of processes."""

import fcntl
import gc
import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from support.matrix import exhaustive, slow
from support.messages import names, raises, stops_after
from support.processes import run_ranks
from support.runs import signal_at_step

from m2v_finetune import backbones
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.cli import main
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
from m2v_finetune.data.checking import check_splits, check_tracks
from m2v_finetune.data.feature_store import FeatureStore, evict_unused
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.data.resampling import with_resampled
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.files import file_identity
from m2v_finetune.model import TaskModel
from m2v_finetune.runs import train_task
from m2v_finetune.tasks.beats import BeatsConfig, BeatTracking
from m2v_finetune.tasks.key import Key, KeyConfig
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.training.feature_cache import plan_cache
from m2v_finetune.training.feature_cache.plan import cache_folder
from m2v_finetune.training.training_windows import training_windows

NUM_TRACKS = {"train": 6, "validation": 3, "test": 2}
TASKS = {
    "tagging": (Tagging, TaggingConfig()),
    "key": (Key, KeyConfig()),
    "beats": (BeatTracking, BeatsConfig()),
}
SHIFT = {"name": "pitch_shift", "p": 0.5, "min_semitones": -2, "max_semitones": 2}


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """All settings."""

    task: Any = field(default=None)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Clips of the quickstart, copied, each some seconds long."""
    folder = tmp_path_factory.mktemp("music")
    left, lines = dict(NUM_TRACKS), []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if left[row["split"]]:
            left[row["split"]] -= 1
            for column in ("path", "beats"):
                shutil.copy(QUICKSTART_DIR / row[column], folder)
                row[column] = Path(row[column]).name
            row["tags"] = [tag for tag in row["tags"] if tag in ("drums", "minor", "fast")]
            lines.append(json.dumps(row) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "manifest.jsonl"


@pytest.fixture
def settings(manifest, tmp_path):
    """Settings of a short run, with the task's class."""

    def make(name: str, *, task="tagging", seed=0, resume=False, epochs=3, **sections):
        options: dict[str, Any] = {
            "data": with_data(manifest),
            "backbone": BackboneConfig(source="random-small"),
            "head": HeadConfig(standardize=True),
            "optimizer": OptimizerConfig(learning_rate=1e-2, backbone_learning_rate=1e-3),
            "training": TrainingConfig(
                epochs=epochs, per_device_batch_size=3, eval_batch_size=4, log_every_steps=1
            ),
            "cache": CacheConfig(use="on", folder=str(tmp_path / "cache")),
            "run": RunConfig(
                output_dir=str(tmp_path / name), seed=seed, resume="auto" if resume else "never"
            ),
            **sections,
        }
        task_class, task_config = TASKS[task]
        return Config(**options, task=task_config), task_class

    return make


@pytest.fixture
def recipe(settings, tmp_path):
    """Runs a recipe to the end of its search, and returns what it logged of steps and epochs."""

    def run(name: str, *, is_search=True, **options):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        config, task_class = settings(name, **options)
        train_task(config, task_class, is_search=is_search)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


@pytest.fixture
def planned(settings, tmp_path):
    """The folder of each split of a run, which is not run."""

    def plan(mixed_precision="no", **options):
        config, task_class = settings("run", **options)
        tracks, _ = load_tracks(config.data.source, label_column=config.task.label_column)
        split = split_tracks(
            tracks, group_columns=[], validation_fraction=0.1, test_fraction=0.2, seed=0
        )
        checked, _ = check_splits(split, on_bad_track="stop", show_progress=False)
        task = task_class.from_tracks(config.task, split)
        model = TaskModel.build(
            task=task,
            backbone=config.backbone,
            head=config.head,
            tuning=config.tuning,
            window_seconds=config.data.window_seconds,
        )
        checked = {
            name: with_resampled(members, sample_rate=model.backbone.sample_rate)
            for name, members in checked.items()
        }
        windows = training_windows(model, checked["train"], config)
        run = SimpleNamespace(
            accelerator=SimpleNamespace(mixed_precision=mixed_precision), unused=[]
        )
        cache, _, _ = plan_cache(config, model, windows, checked, run)
        return {name: store.folder for name, store in cache.stores.items()}

    return plan


@pytest.fixture
def computed(monkeypatch):
    """The number of windows of which the network was asked."""
    counts = []
    compute = TaskModel.frozen_features

    def counted(model, waveforms):
        counts.append(len(waveforms))
        return compute(model, waveforms)

    monkeypatch.setattr(TaskModel, "frozen_features", counted)
    return counts


def with_data(manifest, **settings) -> DataConfig:
    given = {"window_seconds": 1.0, "windows_per_track": 1, "num_workers": 0, **settings}
    return DataConfig(source=str(manifest), **given)


def folders(tmp_path) -> dict[str, Path]:
    """The folder of each cached set of windows."""
    return {path.name: path for path in (tmp_path / "cache").iterdir()}


def states(folder: Path) -> np.ndarray:
    return np.load(folder / "features.npy", allow_pickle=False)


def assert_same(lines, others, *, loss=1e-5, metric=1e-4):
    assert len(lines) == len(others)
    for one, other in zip(lines, others, strict=True):
        assert (one["step"], one["epoch"]) == (other["step"], other["epoch"])
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], abs=loss)
            assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=100 * loss)
        else:
            assert one["validation"] == pytest.approx(other["validation"], abs=metric)


CASES: dict[str, dict[str, Any]] = {
    "probe": {},
    "probe, attention": {"head": HeadConfig(pooling="attention")},
    "probe of frames": {"task": "beats"},
    "lora": {"tuning": TuningConfig(method="lora")},
    "top layers, data2vec": {
        "tuning": TuningConfig(method="top_layers", num_top_layers=2),
        "head": HeadConfig(pooling="mean_std"),
    },
    "full": {"tuning": TuningConfig(method="full", train_conv_encoder=False)},
    "augmented": {"task": "key", "augmentation": AugmentationConfig(transforms=[SHIFT])},
}


@pytest.mark.parametrize(
    "case",
    [
        "lora",
        *slow("probe of frames", "augmented"),
        *exhaustive("probe", "probe, attention", "top layers, data2vec", "full"),
    ],
)
def test_the_run_is_the_one_that_computes_all_in_each_epoch(case, recipe, manifest, tmp_path):
    options = {**CASES[case], "data": with_data(manifest, num_variants=2)}
    if "data2vec" in case:
        folder = tmp_path / "data2vec"
        backbones.init_backbone("configs/pretrain/small", licence="").save_pretrained(folder)
        options["backbone"] = BackboneConfig(source=str(folder))
    cached = recipe("cached", **options)
    straight = recipe("straight", **options, cache=CacheConfig(use="off"))
    assert_same(cached, straight)
    assert len({line["loss"] for line in cached if "loss" in line}) == 6


@pytest.mark.slow
def test_float16_is_the_same_to_its_rounding(recipe, manifest, tmp_path):
    options = {"data": with_data(manifest, num_variants=2)}
    half = CacheConfig(use="on", folder=str(tmp_path / "cache"), precision="float16")
    rounded = recipe("half", **options, cache=half)
    assert {states(folder).dtype for folder in folders(tmp_path).values()} == {np.dtype("float16")}
    straight = recipe("straight", **options, cache=CacheConfig(use="off"))
    assert_same(rounded, straight, loss=2e-3, metric=0.1)


@pytest.mark.exhaustive
def test_runs_of_other_seeds_heads_and_learning_rates_share_what_is_there(
    recipe, computed, tmp_path
):
    recipe("first")
    assert sum(computed) > 0
    known = folders(tmp_path)
    assert len(known) == 2  # nothing of the test tracks in a search
    computed.clear()
    recipe(
        "second",
        seed=5,
        head=HeadConfig(kind="linear", dropout=0.5),
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )
    assert computed == []
    assert folders(tmp_path) == known
    recipe("third", is_search=False)
    assert len(folders(tmp_path)) == 3
    assert 0 < sum(computed) < 20


@pytest.mark.slow
def test_what_decides_the_features_makes_another_cache(planned, manifest, tmp_path):
    other = copy_of_backbone(tmp_path / "other")
    same = planned(backbone=BackboneConfig(source=str(other)))
    assert planned() == same
    raw = copy_of_backbone(tmp_path / "raw", preprocessor_config={"do_normalize": False})
    network = copy_of_backbone(tmp_path / "network", config={"layer_norm_eps": 1e-3})
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layers.0.final_layer_norm.bias"][0] += 1e-3
    save_file(tensors, other / "model.safetensors")
    small = "random-small"
    inverted = AugmentationConfig(transforms=[{"name": "polarity_inversion"}])
    changes: dict[str, dict[str, Any]] = {
        "weights": {"backbone": BackboneConfig(source=str(other))},
        "normalisation": {"backbone": BackboneConfig(source=str(raw))},
        "network": {"backbone": BackboneConfig(source=str(network))},
        "layers": {"backbone": BackboneConfig(source=small, num_layers=2)},
        "weighting": {"backbone": BackboneConfig(source=small, layer_weighting="last")},
        "window": {"data": with_data(manifest, window_seconds=1.5)},
        "precision": {"cache": CacheConfig(use="on", precision="float16")},
        "mixed precision": {"mixed_precision": "bf16"},
        "pooling": {"head": HeadConfig(pooling="attention")},
        "what learns": {"tuning": TuningConfig(method="lora")},
        # Of the training windows alone.
        "augmentation": {"augmentation": inverted},
        "other augmentation": {
            "augmentation": AugmentationConfig(
                transforms=[{"name": "polarity_inversion", "p": 1.0}]
            )
        },
        "its task": {"augmentation": inverted, "task": "key"},
        "versions": {"data": with_data(manifest, num_variants=1)},
    }
    of_train, of_validation = {same["train"]}, {same["validation"]}
    for sections in changes.values():
        found = planned(**sections)
        of_train.add(found["train"])
        of_validation.add(found["validation"])
    assert len(of_train) == 1 + len(changes)
    assert len(of_validation) == 1 + len(changes) - 4


def copy_of_backbone(folder: Path, **changes: dict[str, Any]) -> Path:
    """Copy the small backbone, with other values in its files of settings."""
    shutil.copytree(Path(backbones.__file__).with_name("random_small"), folder)
    for name, values in changes.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def test_the_same_samples_at_another_rate_make_another_cache(planned, manifest, tmp_path):
    """Of tracks that are shorter than a window, all else is the same."""
    fast = copy_of_backbone(tmp_path / "fast", preprocessor_config={"sampling_rate": 24_000})
    slow = planned(data=with_data(manifest, window_seconds=30.0))
    found = planned(
        backbone=BackboneConfig(source=str(fast)), data=with_data(manifest, window_seconds=20.0)
    )
    assert not set(found.values()) & set(slow.values())


@pytest.mark.slow
def test_a_converted_set_makes_another_cache(planned, manifest, tmp_path, monkeypatch):
    """Copies are rounded, so that what is said of them differs."""
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "copies"))
    before = planned()
    with pytest.raises(SystemExit, match="0"):
        main(["data", "convert", str(manifest)])
    after = planned()
    assert not set(before.values()) & set(after.values())


@pytest.mark.parametrize(("location", "is_seen"), [(3, True), (-3, True), (100_000, False)])
def test_a_file_is_known_by_its_ends(location, is_seen, tmp_path):
    """Files of an archive often have one time and one size."""
    path = tmp_path / "a.wav"
    content = bytearray(200_000)
    path.write_bytes(content)
    os.utime(path, ns=(5, 5))
    before = file_identity(path)
    content[location] = 1
    path.write_bytes(content)
    os.utime(path, ns=(5, 5))
    assert (file_identity(path) != before) is is_seen
    os.utime(path, ns=(5, 6))
    assert file_identity(path) != before


def test_what_decides_nothing_makes_none(planned, manifest, tmp_path):
    first = planned()
    moved = shutil.copytree(manifest.parent, tmp_path / "moved")  # keeps the times of files
    assert planned(data=with_data(moved / "manifest.jsonl"), seed=3) == first
    assert planned(head=HeadConfig(kind="linear"), task="key") == first
    assert (
        planned(backbone=BackboneConfig(source="random-small", layer_weighting="conv1d")) == first
    )
    audio = next(path for path in moved.iterdir() if path.suffix not in (".jsonl", ".beats"))
    os.utime(audio, ns=(0, 0))
    assert planned(data=with_data(moved / "manifest.jsonl")) != first


@pytest.mark.slow
def test_a_computation_that_died_resumes_where_it_was(recipe, computed, monkeypatch, tmp_path):
    recipe("straight")
    straight = {name: states(path) for name, path in folders(tmp_path).items()}
    shutil.rmtree(tmp_path / "cache")
    total = sum(computed)
    computed.clear()
    compute = TaskModel.frozen_features

    def dies(model, waveforms):
        if len(computed) == 2:
            raise KeyboardInterrupt
        return compute(model, waveforms)

    with monkeypatch.context() as patch:
        patch.setattr(TaskModel, "frozen_features", dies)
        with pytest.raises(KeyboardInterrupt):
            recipe("killed")
    assert computed == [4, 4]
    recipe("resumed")
    assert sum(computed) == total
    for name, path in folders(tmp_path).items():
        np.testing.assert_allclose(states(path), straight[name], rtol=0, atol=1e-5)


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "damage", ["bit", "cut", "pickle", *exhaustive("object array", "shape", "about")]
)
def test_what_is_damaged_is_named_and_computed_again(damage, recipe, computed, capsys, tmp_path):
    straight = recipe("straight", epochs=1)
    total = sum(computed)
    computed.clear()
    folder = next(iter(folders(tmp_path).values()))
    path = folder / ("about.json" if damage == "about" else "features.npy")
    good = states(folder)
    harmed = tmp_path / "harmed"
    if damage == "bit":
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "pickle":
        import pickle

        path.write_bytes(pickle.dumps(Harm(harmed)))
    elif damage == "object array":
        np.save(path, np.array([Harm(harmed)] * len(good), dtype=object), allow_pickle=True)
    elif damage == "shape":
        np.save(path, good[:, :, 1:])
    else:
        path.write_text('{"format_version": 99}')

    assert_same(recipe("again", epochs=1), straight)
    assert not harmed.exists()
    message = "".join(capsys.readouterr().err.split())  # lines are broken anywhere
    if damage == "bit":
        assert f"{folder}hasdamagedfeaturesof1windows.Theyarecomputedagain" in message
        assert sum(computed) == 1
    else:
        assert str(path) in message
        assert "allfeaturesarecomputedagain" in message
        assert 0 < sum(computed) == len(good) < total
    np.testing.assert_allclose(states(folder), good, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_computed_in_parts(recipe, monkeypatch, tmp_path, capsys):
    straight = recipe("straight")
    compute, most = TaskModel.frozen_features, 2

    def refuse(model, waveforms):
        if len(waveforms) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(model, waveforms)

    monkeypatch.setattr(TaskModel, "frozen_features", refuse)
    other = CacheConfig(use="on", folder=str(tmp_path / "other"))
    assert_same(recipe("small", cache=other), straight)
    assert names(capsys.readouterr().err, 4, 2)
    most = 0
    with raises("cache-out-of-memory", "data.window_seconds"):
        recipe("none", cache=CacheConfig(use="on", folder=str(tmp_path / "none")))


def test_a_run_that_resumes_ends_as_the_one_that_was_not_stopped(recipe, monkeypatch):
    straight = recipe("straight")
    with monkeypatch.context() as patch:
        signal_at_step(patch, 3)
        with stops_after(3, 6):
            recipe("stopped")
    assert recipe("stopped", resume=True) == straight


def test_beyond_its_size_the_cache_is_not_used_or_refused(recipe, computed, capsys, tmp_path):
    small = CacheConfig(folder=str(tmp_path / "cache"), max_size="1e6")
    with raises("cache-impossible", "cache.max_size is 1e6"):
        recipe(
            "on",
            head=HeadConfig(pooling="attention"),
            cache=replace(small, use="on"),
        )
    recipe("auto", head=HeadConfig(pooling="attention"), cache=small, epochs=1)
    assert names(capsys.readouterr().err, "cache.max_size")
    assert computed == []
    assert not (tmp_path / "cache").exists()


def test_the_oldest_features_make_room_for_new_ones(tmp_path):
    names = [f"{number:064x}" for number in range(4)]
    for number, name in enumerate([*names, "of the user"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "features.npy").write_bytes(bytes(100))
        (tmp_path / name / "sums.npy").touch()
        os.utime(tmp_path / name / "sums.npy", (number, number))
    kept = [tmp_path / names[0]]
    assert evict_unused(tmp_path, needed_bytes=100, limit_bytes=400, kept=kept) == ([], True)
    deleted, is_enough = evict_unused(tmp_path, needed_bytes=100, limit_bytes=299, kept=kept)
    assert deleted == [tmp_path / names[1], tmp_path / names[2]]
    assert is_enough
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[3], "of the user"}


@pytest.mark.slow
def test_what_another_run_uses_stays(recipe, computed, capsys, monkeypatch, tmp_path):
    """A run that needs room comes while another one writes, then after it."""
    expected = recipe("alone")
    shutil.rmtree(tmp_path / "cache")
    write, came = FeatureStore.write, []

    def another_run_comes(store, *arguments):
        came.append(evict_unused(tmp_path / "cache", needed_bytes=1, limit_bytes=0, kept=[]))
        write(store, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", another_run_comes)
        assert recipe("disturbed") == expected
    assert came
    assert set(map(str, came)) == {"([], False)"}
    gc.collect()  # as where the run is a process that has ended
    found = list(folders(tmp_path).values())
    deleted, _ = evict_unused(tmp_path / "cache", needed_bytes=1, limit_bytes=0, kept=[])
    assert sorted(deleted) == sorted(found)
    assert folders(tmp_path) == {}


@pytest.mark.slow
def test_states_that_a_person_deletes_end_in_a_message(recipe, monkeypatch, tmp_path):
    write = FeatureStore.write

    def deleted(store, *arguments):
        write(store, *arguments)
        shutil.rmtree(store.folder, ignore_errors=True)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", deleted)
        with raises("cache-deleted", "features.npy"):
            recipe("run")
    assert len(recipe("run", resume=True)) > 3


@pytest.mark.exhaustive
def test_a_run_beyond_the_limit_is_reported(recipe, manifest, capsys, tmp_path):
    """What others use stays, and so all together take more."""
    recipe("first", epochs=1)
    lock_files = [(folder / "sums.npy").open("r+b") for folder in folders(tmp_path).values()]
    for file in lock_files:
        fcntl.flock(file, fcntl.LOCK_SH)
    gc.collect()
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.npy"))
    small = CacheConfig(use="on", folder=str(tmp_path / "cache"), max_size=f"{2e-6 * size:.3f}MB")
    other = with_data(manifest, window_seconds=0.9)
    recipe("second", data=other, epochs=1, cache=small)
    assert names(capsys.readouterr().err, "cache.max_size")
    for file in lock_files:
        file.close()
    gc.collect()
    recipe("third", data=with_data(manifest, window_seconds=0.8), epochs=1, cache=small)
    assert not names(capsys.readouterr().err, "cache.max_size")


@pytest.mark.slow
def test_auto_leaves_what_is_trainable_alone(recipe, computed, tmp_path):
    auto = CacheConfig(folder=str(tmp_path / "cache"))
    recipe("lora", tuning=TuningConfig(method="lora"), cache=auto, epochs=1)
    assert computed == []
    with raises("cache-impossible"):
        recipe(
            "full",
            tuning=TuningConfig(method="full", train_conv_encoder=True),
            cache=replace(auto, use="on"),
        )


def test_variants_take_turns_and_are_those_of_every_seed(manifest):
    tracks, _ = load_tracks(str(manifest), label_column="tags")
    checked, _ = check_tracks(tracks, on_bad_track="stop", show_progress=False)
    windows = TrainingWindows(
        tracks=checked,
        example=lambda *_: (),
        grid=FrameGrid(sample_rate=16_000, stride_samples=320, receptive_field_samples=400),
        window_samples=16_000,
        windows_per_track=1,
        augmentation=None,
        seed=0,
        num_variants=2,
    )
    starts = [windows.sample((epoch, 0)).window.start_sample for epoch in range(4)]
    assert starts[:2] == starts[2:]
    assert starts[0] != starts[1]
    other = replace(windows, seed=7)
    assert [other.sample((epoch, 0)).window.start_sample for epoch in range(4)] == starts
    anew = replace(windows, num_variants=None)
    assert len({anew.sample((epoch, 0)).window.start_sample for epoch in range(4)}) == 4
    assert windows.is_random
    assert not replace(windows, window_samples=10**7).is_random


@pytest.mark.exhaustive
def test_two_processes_write_what_one_writes(recipe, repository, manifest, tmp_path):
    recipe("one", epochs=2)
    one = {name: states(path) for name, path in folders(tmp_path).items()}
    shutil.rmtree(tmp_path / "cache")
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.num_workers": 0,
        "backbone.source": "random-small",
        "training.epochs": 2,
        "data.windows_per_track": 1,
        "training.per_device_batch_size": 3,
        "cache.folder": tmp_path / "cache",
        "run.output_dir": tmp_path / "two",
    }
    done = run_ranks(2, [repository / "recipes" / "tagging.py"], settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert names(done.stderr, 2 * NUM_TRACKS["train"], "'train'")
    two = {name: states(path) for name, path in folders(tmp_path).items()}
    assert one.keys() < two.keys()  # and the test tracks
    for name, expected in one.items():
        np.testing.assert_allclose(two[name], expected, rtol=0, atol=1e-5)
        assert np.load(folders(tmp_path)[name] / "sums.npy").all()


def test_the_folder_is_that_of_the_setting_else_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.delenv("M2V_CACHE", raising=False)
    assert cache_folder(None) == tmp_path / "caches" / "m2v-finetune"
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "named"))
    assert cache_folder(None) == tmp_path / "named"
    assert cache_folder(str(tmp_path / "given")) == tmp_path / "given"
