"""Settings that are chosen from the training tracks."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.messages import raises

from m2v_finetune.audio.decode import AudioInfo
from m2v_finetune.config import DataConfig, RecipeConfig, TrainingConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track
from m2v_finetune.training.defaults import (
    choose_num_variants,
    choose_window_seconds,
    choose_windows_per_track,
    complete_settings,
)


def tracks(*durations: float) -> list[CheckedTrack]:
    return [
        CheckedTrack(
            track=Track(
                id=str(i), path=Path(), split="train", columns={}, origin="", folder=Path()
            ),
            audio=AudioInfo(sample_rate=1000, num_frames=round(1000 * duration), num_channels=1),
        )
        for i, duration in enumerate(durations)
    ]


def completed(
    config: RecipeConfig, members: list[CheckedTrack], num_processes: int = 1
) -> RecipeConfig:
    run: Any = SimpleNamespace(num_processes=num_processes, unused=[])
    return complete_settings(config, {"train": members}, run)


@pytest.mark.parametrize(
    ("durations", "window_seconds"),
    [
        ([30.0] * 10, 5.0),
        ([1.0] * 10, 1.0),
        ([2.3] * 3, 2.3),
        ([2.39] * 3, 2.3),
        ([0.2] * 10, 1.0),
        # A tenth of short tracks does not shorten the windows of all; more do.
        ([0.5] + [30.0] * 9, 5.0),
        ([3.0] * 2 + [30.0] * 8, 3.0),
        ([4.0], 4.0),
    ],
)
def test_windows_are_no_longer_than_most_tracks(
    durations: list[float], window_seconds: float
) -> None:
    assert choose_window_seconds(tracks(*durations)) == pytest.approx(window_seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("num_tracks", "total_batch"), [(1, 16), (60, 16), (300, 16), (60, 64), (5000, 16)]
)
def test_an_epoch_has_enough_steps_and_no_more_windows_than_that_takes(
    num_tracks: int, total_batch: int
) -> None:
    windows = choose_windows_per_track(num_tracks, total_batch)
    assert num_tracks * windows // total_batch >= 32
    assert windows == 1 or num_tracks * (windows - 1) < 32 * total_batch


def test_settings_that_are_given_stay() -> None:
    data = DataConfig(source="x", window_seconds=3.0, windows_per_track=2)
    config = RecipeConfig(data=data)
    assert completed(config, tracks(1.0, 1.0)) == config


def test_settings_that_are_not_given_are_filled_in() -> None:
    config = RecipeConfig(
        data=DataConfig(source="x"),
        training=TrainingConfig(per_device_batch_size=4, gradient_accumulation_steps=2),
    )
    data = completed(config, tracks(*[2.0] * 64), num_processes=2).data
    assert (data.window_seconds, data.windows_per_track) == (2.0, 8)
    # The same total batch on one process gives the same settings.
    alone = replace(config, training=replace(config.training, per_device_batch_size=8))
    assert completed(alone, tracks(*[2.0] * 64)).data == data


def test_a_hop_longer_than_the_window_that_is_chosen_is_refused() -> None:
    config = RecipeConfig(data=DataConfig(source="x", hop_seconds=4.0))
    with raises("settings-conflict", "hop_seconds"):
        completed(config, tracks(2.0))


def test_vectors_have_no_window_to_choose() -> None:
    config = RecipeConfig(data=DataConfig(source="x", features="vectors"))
    data = completed(config, tracks(1.0, 1.0)).data
    assert data.window_seconds is None
    assert data.windows_per_track == 256


@pytest.mark.parametrize(("duration", "count"), [(1.0, 4), (30.0, 6), (240.0, 16)])
def test_the_cache_holds_as_many_windows_as_a_track_within_limits(
    duration: float, count: int
) -> None:
    assert choose_num_variants(tracks(duration), 5.0) == count
