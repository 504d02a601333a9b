"""Windows and batches: what an optimizer step sees depends on the seed and the epoch alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import raises

from m2v_finetune.audio.augmentation import Effect, build_augmentation
from m2v_finetune.audio.decode import inspect_audio, read_audio
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import (
    TrackWindows,
    TrainingBatches,
    TrainingWindows,
    Window,
    read_window,
)
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.reading import track_loader, training_loader
from m2v_finetune.data.workers import read_batches

RATE_HZ = 16_000
WINDOW = 4_000
GRID = FrameGrid(sample_rate=RATE_HZ, stride_samples=320, receptive_field_samples=400)
# A track shorter than a window, one of exactly one window, one a sample longer, and long ones;
# two of them are not at the rate of the model.
LENGTHS = {"short": 1_500, "equal": WINDOW, "next": WINDOW + 1, "long": 21_234, "longer": 40_000}


def example(checked, window, augment) -> tuple[np.ndarray, ...]:
    """A task's way to read a window: waveform, where it begins, and a target that follows augmentation."""
    samples, label_transform = read_window(checked, window), IDENTITY
    if augment is not None:
        samples, label_transform = augment(samples)
    first_sample = np.array([window.start_sample], dtype=np.int64)
    number = checked.track.columns["number"]
    return (
        samples,
        first_sample,
        np.array([number, label_transform.offset_seconds], dtype=np.float32),
    )


def inputs(checked, window) -> tuple[np.ndarray, ...]:
    return read_window(checked, window), np.array([checked.track.columns["number"]])


@pytest.fixture(scope="module")
def tracks(tmp_path_factory) -> list[CheckedTrack]:
    folder = tmp_path_factory.mktemp("tracks")
    checked = []
    for number, (name, length) in enumerate(LENGTHS.items()):
        path = folder / f"{name}.wav"
        rate = RATE_HZ if number % 2 == 0 else 22_050
        num_frames = -(-length * rate // RATE_HZ)
        # Never zero, so that what is padded can be told from what is read.
        noise = np.random.default_rng(number).uniform(0.1, 0.5, num_frames)
        soundfile.write(path, noise, rate, subtype="FLOAT")
        columns = {"number": number}
        track = Track(
            id=name,
            path=path,
            split="train",
            columns=columns,
            origin=f"m.csv:{number}",
            folder=folder,
        )
        checked.append(CheckedTrack(track=track, audio=inspect_audio(path)))
    return checked


def windows_of(tracks, *, seed=0, augmentation=None, windows_per_track=3) -> TrainingWindows:
    return TrainingWindows(
        tracks=tracks,
        example=example,
        grid=GRID,
        window_samples=WINDOW,
        windows_per_track=windows_per_track,
        augmentation=augmentation,
        seed=seed,
    )


def batches_of(num_items: int, **changes) -> TrainingBatches:
    settings = {
        "per_device_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "process_index": 0,
        "num_processes": 1,
        "seed": 0,
    }
    return TrainingBatches(num_items=num_items, **(settings | changes))


# -- windows of training --------------------------------------------------------------------------


@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
def test_the_number_of_workers_changes_nothing(tracks, augmented):
    augmentation = None
    if augmented:
        augmentation = build_augmentation(
            [
                {"name": "gain", "p": 0.7, "min_gain_db": -12, "max_gain_db": 6},
                {"name": "shift", "p": 0.7, "rollover": False},
            ],
            sample_rate=RATE_HZ,
            allowed_effects=frozenset(),
            transformed_effects=frozenset(Effect),
            task="tagging",
        )
    runs = []
    for num_workers in (0, 1, 2):
        windows = windows_of(tracks, augmentation=augmentation)
        batches = batches_of(len(windows), seed=7)
        loader = training_loader(windows, batches, num_workers=num_workers)
        run = []
        for epoch in range(2):
            batches.epoch = epoch
            run += [parts for *parts, _ in read_batches(loader)]
        runs.append(run)
    assert len(runs[0]) == 2 * (len(LENGTHS) * 3 // 2)
    for run in runs[1:]:
        for batch, other_batch in zip(runs[0], run, strict=True):
            assert len(batch) == len(other_batch) == 3
            for part, other_part in zip(batch, other_batch, strict=True):
                assert torch.equal(part, other_part)
    epochs = [torch.cat([samples for samples, *_ in half]) for half in (runs[0][:7], runs[0][7:])]
    assert not torch.equal(epochs[0].sort(0).values, epochs[1].sort(0).values)
    offsets = torch.cat([targets[:, 1] for *_, targets in runs[0]])
    assert bool(offsets.any()) is augmented


@pytest.mark.parametrize(("num_workers", "is_persistent"), [(1, True), (1, False), (0, True)])
def test_workers_stay_from_epoch_to_epoch(num_workers, is_persistent, tracks):
    """The same processes read another epoch; unless told otherwise, or without workers."""
    loader = training_loader(
        windows_of(tracks),
        batches_of(len(LENGTHS) * 3),
        num_workers=num_workers,
        **({} if is_persistent else {"is_persistent": False}),
    )
    processes = []
    for _ in range(2):
        batches = iter(loader)
        processes.append([worker.pid for worker in getattr(batches, "_workers", [])])
        list(batches)
    assert (processes[0] == processes[1]) is (is_persistent or num_workers == 0)
    assert len(processes[0]) == num_workers


def test_reading_leaves_the_random_state_of_the_model_alone(tracks):
    windows = windows_of(tracks)
    before = torch.get_rng_state()
    list(training_loader(windows, batches_of(len(windows)), num_workers=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_window_depends_on_seed_epoch_track_and_repeat_alone(tracks):
    windows = windows_of(tracks)
    location = (2, 3 * 4 + 1)  # the second window of the longest track in epoch 2
    samples, first_sample, target = windows[location]
    assert samples.shape == (WINDOW,)
    assert samples.dtype == target.dtype == torch.float32
    assert first_sample.dtype == torch.int64
    assert target.tolist() == [4.0, 0.0]
    for _ in range(3):
        windows[0, 0]
    assert torch.equal(windows[location][0], samples)
    # The other tracks and their order do not count.
    assert torch.equal(windows_of(tracks[:3:-1])[2, 1][0], samples)
    others = [
        windows_of(tracks, seed=1)[location],
        windows[3, location[1]],
        windows[2, location[1] + 1],
    ]
    assert not any(torch.equal(other, samples) for other, *_ in others)


def test_windows_are_parts_of_their_tracks_and_only_short_ones_are_padded(tracks):
    windows = windows_of(tracks, windows_per_track=8)
    assert len(windows) == 8 * len(tracks)
    for number, checked in enumerate(tracks):
        whole = torch.from_numpy(read_audio(checked.track.path, sample_rate=RATE_HZ))
        starts = set()
        for repeat in range(8):
            samples, first_sample, _ = windows[0, number * 8 + repeat]
            assert samples.shape == (WINDOW,)
            if checked.track.id == "short":
                assert torch.equal(samples[: len(whole)], whole)
                assert (samples[len(whole) :] == 0).all()
                continue
            assert (samples != 0).all()
            first_samples = whole[: len(whole) - WINDOW + 8].unfold(0, 8, 1)
            start = int((first_samples - samples[:8]).abs().amax(1).argmin())
            assert torch.allclose(whole[start : start + WINDOW], samples, atol=1e-5)
            assert first_sample.tolist() == [start]
            starts.add(start)
        if checked.track.id.startswith("long"):
            assert len(starts) == 8  # random, not one place


def test_augmentation_is_drawn_for_each_window_and_the_target_follows(tracks):
    shift = {"name": "shift", "p": 1.0, "rollover": False, "fade_duration": 0.0}
    augmentation = build_augmentation(
        [shift],
        sample_rate=RATE_HZ,
        allowed_effects=frozenset(),
        transformed_effects=frozenset({Effect.TIME}),
        task="beats",
    )
    plain = windows_of(tracks)
    shifted = windows_of(tracks, augmentation=augmentation)
    offsets = set()
    for index in range(3 * 2, len(plain)):  # the tracks that fill a window with what is never zero
        samples, first_sample, target = shifted[1, index]
        original, same_sample, _ = plain[1, index]
        assert first_sample == same_sample
        offset = round(float(target[1]) * RATE_HZ)
        expected = torch.zeros(WINDOW)
        kept = slice(max(0, offset), WINDOW + min(0, offset))
        expected[kept] = original[max(0, -offset) : WINDOW - max(0, offset)]
        assert torch.equal(samples, expected)
        offsets.add(offset)
    assert len(offsets) == len(plain) - 6


# -- batches --------------------------------------------------------------------------------------

sizes = st.integers(1, 6)


@settings(max_examples=100, deadline=None)
@given(num_items=st.integers(1, 120), batch=sizes, accumulation=sizes, processes=sizes)
def test_a_total_batch_is_the_same_however_it_is_divided(num_items, batch, accumulation, processes):
    total = batch * accumulation * processes
    (whole,) = [list(batches_of(num_items, per_device_batch_size=total, epoch=3))]
    parts = [
        list(
            batches_of(
                num_items,
                per_device_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                process_index=index,
                num_processes=processes,
                epoch=3,
            )
        )
        for index in range(processes)
    ]
    assert len(whole) == max(1, num_items // total)
    for step, expected in enumerate(whole):
        of_step = slice(step * accumulation, (step + 1) * accumulation)
        items = [item for part in parts for small in part[of_step] for item in small]
        assert sorted(items) == sorted(expected)
        assert all(len(small) == batch for part in parts for small in part[of_step])
    assert all(len(part) == len(whole) * accumulation for part in parts)


def test_one_by_eight_eight_by_one_and_two_processes_see_the_same():
    def steps(**sizes) -> list[set]:
        batches = list(batches_of(30, **sizes))
        per_step = sizes["gradient_accumulation_steps"]
        return [
            {item for batch in batches[n : n + per_step] for item in batch}
            for n in range(0, len(batches), per_step)
        ]

    eight = steps(per_device_batch_size=8, gradient_accumulation_steps=1)
    assert [len(step) for step in eight] == [8, 8, 8]
    assert steps(per_device_batch_size=1, gradient_accumulation_steps=8) == eight
    halves = [
        steps(
            per_device_batch_size=2,
            gradient_accumulation_steps=2,
            num_processes=2,
            process_index=index,
        )
        for index in range(2)
    ]
    assert [a | b for a, b in zip(*halves, strict=True)] == eight
    assert not any(a & b for a, b in zip(*halves, strict=True))


@settings(max_examples=60, deadline=None)
@given(num_items=st.integers(1, 60), batch=sizes, accumulation=sizes, data=st.data())
def test_a_resumed_epoch_resumes_exactly(num_items, batch, accumulation, data):
    sizes = {"per_device_batch_size": batch, "gradient_accumulation_steps": accumulation}
    full = batches_of(num_items, epoch=1, **sizes)
    first_step = data.draw(st.integers(0, full.steps_per_epoch))
    rest = batches_of(num_items, epoch=1, first_step=first_step, **sizes)
    assert list(rest) == list(full)[first_step * accumulation :]
    assert len(rest) == len(list(rest))


def test_an_epoch_uses_an_item_once_and_leaves_less_than_a_total_batch():
    items = [index for batch in batches_of(23, per_device_batch_size=4) for _, index in batch]
    assert len(items) == len(set(items)) == 20
    assert set(items) <= set(range(23))


def test_too_few_items_are_repeated_to_fill_a_batch():
    (batch,) = batches_of(3, per_device_batch_size=8)
    assert {index for _, index in batch} == {0, 1, 2}
    assert len(batch) == 8


def test_order_depends_on_seed_and_epoch():
    orders = [
        [index for batch in batches_of(40, seed=seed, epoch=epoch) for _, index in batch]
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert all(a != b for a, b in pairwise([*orders, orders[0]]))
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert {epoch for batch in batches_of(4, epoch=5) for epoch, _ in batch} == {5}


# -- windows of whole tracks ----------------------------------------------------------------------


def track_windows_of(tracks, *, hop=WINDOW, on_frames=False) -> TrackWindows:
    return TrackWindows(
        tracks,
        inputs=inputs,
        grid=GRID,
        window_samples=WINDOW,
        hop_samples=hop,
        on_frames=on_frames,
    )


@pytest.mark.parametrize("hop", [WINDOW, 1_700, 1])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_windows_of_a_track_cover_every_sample(tracks, hop, num_workers):
    some = tracks[:4] if hop > 1 else tracks[:3]
    windows = track_windows_of(some, hop=hop)
    batches = list(track_loader(windows, batch_size=5, num_workers=num_workers))
    assert not any(bad for *_, bad in batches)
    indices = torch.cat([indices for indices, *_ in batches]).tolist()
    samples = torch.cat([samples for _, (samples, _), _ in batches])
    seen = torch.cat([numbers for _, (_, numbers), _ in batches])[:, 0].tolist()
    assert indices == list(range(len(windows)))
    numbers = [number for number, _ in windows.locations]
    assert seen == numbers  # each window was read of its own track
    assert numbers == sorted(numbers)
    assert samples.shape == (len(windows), WINDOW)
    for number, checked in enumerate(some):
        whole = torch.from_numpy(read_audio(checked.track.path, sample_rate=RATE_HZ))
        covered = torch.zeros(len(whole), dtype=torch.bool)
        rebuilt = torch.zeros_like(whole)
        for (owner, location), waveform in zip(windows.locations, samples, strict=True):
            if owner == number:
                part = slice(location.start_sample, location.start_sample + WINDOW)
                covered[part] = True
                rebuilt[part] = waveform[: len(whole[part])]
                is_padded = bool((waveform == 0).any())
                assert is_padded == (len(whole) < WINDOW)
        assert covered.all()
        assert torch.allclose(rebuilt, whole, atol=1e-5)
    counts = [numbers.count(number) for number in range(len(some))]
    if hop == WINDOW:
        assert counts == [1, 1, 2, 6]


@pytest.mark.parametrize("hop", [WINDOW, 1_700, 100])
def test_windows_on_frames_lie_on_one_grid_over_the_track(tracks, hop):
    windows = track_windows_of(tracks, hop=hop, on_frames=True)
    stride = GRID.stride_samples
    for number, checked in enumerate(tracks):
        starts = [location.start_sample for owner, location in windows.locations if owner == number]
        assert starts[0] == 0
        assert all(start % stride == 0 for start in starts)
        assert all(0 < b - a <= max(hop, stride) for a, b in pairwise(starts))
        length = checked.audio.num_samples(RATE_HZ)
        assert length - stride < max(starts[-1] + WINDOW, length) <= max(length, WINDOW)
        # The frames of all windows are frames of the whole track, but for the last one at most.
        times = [
            location.start_seconds + location.frame_times_seconds
            for owner, location in windows.locations
            if owner == number
        ]
        centres = np.unique(np.concatenate(times).round(9))
        if length >= WINDOW:
            assert GRID.num_frames(length) - len(centres) in (0, 1)
            np.testing.assert_allclose(centres, GRID.times(len(centres)), atol=1e-8)


def test_a_window_has_its_times():
    window = Window(start_sample=8_000, num_samples=WINDOW, grid=GRID)
    assert (window.start_seconds, window.duration_seconds) == (0.5, 0.25)
    times = window.frame_times_seconds
    assert len(times) == 12  # (4000 - 400) // 320 + 1
    # Frame 1 sees the samples 320 to 719 of the window.
    assert times[:2].tolist() == [199.5 / RATE_HZ, 519.5 / RATE_HZ]


def test_read_window_pads_a_short_track_at_its_end(tracks):
    first = Window(start_sample=0, num_samples=WINDOW, grid=GRID)
    short = read_window(tracks[0], first)
    assert (short[:1_500] > 0).all()
    assert not short[1_500:].any()
    assert (read_window(tracks[1], first) > 0).all()


def test_a_file_that_vanished_is_named(tracks):

    path = Path("/gone.wav")
    track = Track(
        id="x", path=path, split="train", columns={}, origin="m.csv:9", folder=path.parent
    )
    gone = CheckedTrack(track=track, audio=tracks[-1].audio)
    with raises("audio-not-found", "/gone.wav"):
        read_window(gone, Window(start_sample=0, num_samples=WINDOW, grid=GRID))
