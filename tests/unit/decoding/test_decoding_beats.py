"""Beats from activations whose answer is known: click tracks, noise, silence, and brute force."""

import math
import time
from fractions import Fraction

import mir_eval
import numpy as np
import pytest
from support.messages import fails

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.decoding import beats as module
from m2v_finetune.decoding.beats import (
    count_bars,
    decode_beats,
    track_beats,
)
from m2v_finetune.metrics.beats import tempo_from_beats

GRIDS = {
    rate: FrameGrid(sample_rate=sample_rate, stride_samples=320, receptive_field_samples=400)
    for rate, sample_rate in ((50, 16000), (75, 24000))
}
TEMPI = (60, 72.5, 80, 97, 120, 133.3, 171, 185, 199, 200)


def frame_times(grid, duration_seconds):
    return grid.times(grid.num_frames(int(duration_seconds * grid.sample_rate)))


def clicks(event_times, times, grid, width_frames=2):
    """A triangle around each event, sampled at the exact frame times."""
    distance = np.abs(times[:, None] - event_times).min(axis=1)
    return np.clip(1 - distance * float(grid.frame_rate) / width_frames, 0, 1)


@pytest.mark.parametrize("beats_per_bar", [3, 4])
@pytest.mark.parametrize("rate", [50, 75])
@pytest.mark.parametrize("bpm", TEMPI)
def test_a_click_track_gives_its_beats_bars_and_tempo(bpm, rate, beats_per_bar):
    grid = GRIDS[rate]
    times = frame_times(grid, 15)
    beats = np.arange(0.1 + bpm / 1000, times[-1], 60 / bpm)
    found, positions = decode_beats(
        clicks(beats, times, grid),
        clicks(beats[1::beats_per_bar], times, grid),
        times,
        grid.frame_rate,
    )
    assert mir_eval.beat.f_measure(beats, found) == 1.0
    assert np.abs(found - beats).max() < 0.25 / rate, "finer than the frames"
    assert positions.tolist() == [(i - 1) % beats_per_bar + 1 for i in range(len(beats))]
    assert tempo_from_beats(found) == pytest.approx(bpm, rel=0.01)


@pytest.mark.parametrize("rate", [50, 75])
@pytest.mark.parametrize("seed", range(4))
def test_beats_are_found_in_noise_where_peaks_alone_are_not_enough(rate, seed):
    """A drifting tempo, off-beats, noise, and one beat in seven missing."""
    generator = np.random.default_rng(seed)
    grid = GRIDS[rate]
    times = frame_times(grid, 40)
    intervals = 60 / generator.uniform(80, 180) * (1 + 0.03 * np.sin(np.arange(150) / 10))
    beats = 0.2 + np.cumsum(intervals)
    beats = beats[beats < 39.5]
    strong = beats[generator.random(len(beats)) > 1 / 7]
    noise = 0.05 * generator.random((2, len(times)))
    off_beats = (beats[:-1] + beats[1:]) / 2
    beat_activation = (
        0.5 * clicks(strong, times, grid) + 0.08 * clicks(off_beats, times, grid) + noise[0]
    )
    downbeat_activation = 0.35 * clicks(beats[::4], times, grid) + noise[1]
    found, positions = decode_beats(beat_activation, downbeat_activation, times, grid.frame_rate)
    assert mir_eval.beat.f_measure(beats, found) > 0.97
    assert mir_eval.beat.f_measure(beats[::4], found[positions == 1]) > 0.97


@pytest.mark.parametrize("seed", range(2))
def test_a_fast_tempo_between_two_whole_frames_is_held_over_missing_beats(seed):
    """A beat at 183 bpm lasts 16.4 frames: on the frames' own grid the tempo is halved."""
    generator = np.random.default_rng(seed)
    grid = GRIDS[50]
    times = frame_times(grid, 30)
    beats = np.arange(0.2 + 0.3 * generator.random(), 29.5, 60 / 183)
    strong = beats[generator.random(len(beats)) > 0.3]
    others = generator.uniform(0, 29, size=60)
    activation = 0.4 * clicks(strong, times, grid) + 0.1 * clicks(others, times, grid)
    activation += 0.05 * generator.random(len(times))
    found, _ = decode_beats(activation, activation, times, grid.frame_rate)
    assert mir_eval.beat.f_measure(beats, found) > 0.97


def test_the_tempo_may_change():
    grid = GRIDS[50]
    times = frame_times(grid, 30)
    beats = 0.5 + np.cumsum([0.5] * 28 + [0.4] * 30)
    activation = clicks(beats, times, grid)
    found, _ = decode_beats(activation, activation, times, grid.frame_rate)
    assert mir_eval.beat.f_measure(beats, found) == 1.0


@pytest.mark.parametrize("level", [0.0, 0.04])
def test_silence_has_no_beats(level):
    grid = GRIDS[50]
    times = frame_times(grid, 20)
    silent = np.full(len(times), level)
    found, positions = decode_beats(silent, silent, times, grid.frame_rate)
    assert found.shape == positions.shape == (0,)


def test_no_beats_before_the_first_or_after_the_last_sound():
    grid = GRIDS[75]
    times = frame_times(grid, 30)
    beats = np.arange(10, 20, 0.5)
    activation = clicks(beats, times, grid)
    found, _ = decode_beats(activation, activation, times, grid.frame_rate)
    assert len(found) == len(beats)


@pytest.mark.parametrize("frame", [0, 1, 30, 59])
def test_one_beat_alone_is_found_at_any_time(frame):
    times = frame_times(GRIDS[50], 1.3)[:60]
    activation = np.zeros(60)
    activation[frame] = 1
    found, positions = decode_beats(activation, activation, times, Fraction(50))
    assert found.tolist() == [times[frame]]
    assert positions.tolist() == [1]


def test_only_tempi_in_the_range_are_found():
    grid = GRIDS[50]
    times = frame_times(grid, 20)
    activation = clicks(np.arange(0.3, 19.9, 0.5), times, grid)
    found, _ = decode_beats(activation, activation, times, grid.frame_rate, min_bpm=50, max_bpm=100)
    assert tempo_from_beats(found) == pytest.approx(60, rel=0.01)
    with fails(ValueError, "min_bpm=119", "max_bpm=119.5"):
        track_beats(activation, grid.frame_rate, min_bpm=119, max_bpm=119.5)


@pytest.mark.parametrize("seed", range(8))
def test_the_search_finds_the_best_path_of_the_whole_state_space(seed, monkeypatch):
    """The reference is a plain Viterbi search over every (interval, position in the beat)."""
    monkeypatch.setattr(module, "BEAT_PARTS", 4)
    monkeypatch.setattr(module, "TEMPO_CHANGE_RATE", 4.0)
    generator = np.random.default_rng(seed)
    intervals = np.arange(3, 7)
    probabilities = generator.random(30) ** 2
    states = [(d, p) for d in intervals.tolist() for p in range(d)]
    log_transition = np.full((len(states), len(states)), -np.inf)
    for d in intervals.tolist():
        weights = np.exp(-module.TEMPO_CHANGE_RATE * np.abs(intervals / d - 1))
        for new, weight in zip(intervals.tolist(), weights / weights.sum(), strict=True):
            log_transition[states.index((d, d - 1)), states.index((new, 0))] = np.log(weight)
        for p in range(d - 1):
            log_transition[states.index((d, p)), states.index((d, p + 1))] = 0.0
    clipped = np.clip(probabilities, module.LEAST_PROBABILITY, 1 - module.LEAST_PROBABILITY)
    in_beat = np.array([p < math.ceil(d / 4) for d, p in states])
    observed = np.where(in_beat, np.log(clipped)[:, None], np.log((1 - clipped) / 3)[:, None])
    # A beat that begins with the track was reached by a transition, as any other.
    scores = np.array([0.0 if p else log_transition[:, i].max() for i, (d, p) in enumerate(states)])
    scores = scores + observed[0]
    came_from = []
    for observation in observed[1:]:
        arrived = scores[:, None] + log_transition
        came_from.append(arrived.argmax(axis=0))
        scores = arrived.max(axis=0) + observation
    path = [int(scores.argmax())]
    for pointers in reversed(came_from):
        path.append(int(pointers[path[-1]]))
    expected = [
        (step, states[state][0])
        for step, state in enumerate(reversed(path))
        if states[state][1] == 0
    ]
    assert module.best_beats(probabilities, intervals) == expected
    assert len(expected) > 3


def test_ten_minutes_take_seconds(record_property):
    grid = GRIDS[50]
    times = frame_times(grid, 600)
    beats = np.arange(0.3, 599.9, 0.5)
    activation = np.clip(1 - np.abs((times - 0.3 + 0.25) % 0.5 - 0.25) * 25, 0, 1)
    started = time.process_time()
    found, _ = decode_beats(activation, activation, times, grid.frame_rate)
    seconds = time.process_time() - started
    record_property("beats of ten minutes at 50 Hz decoded in seconds", f"{seconds:.2f}")
    assert mir_eval.beat.f_measure(beats, found) == 1.0
    assert seconds < 20


# -- bars -----------------------------------------------------------------------------------------


def test_counting_follows_a_change_of_metre():
    reference = [1, 2, 3, 4] * 4 + [1, 2, 3] * 5 + [1, 2, 3, 4] * 2
    downbeats = np.where(np.array(reference) == 1, 0.9, 0.1)
    assert count_bars(downbeats, (3, 4)).tolist() == reference


def test_counting_bridges_missing_and_false_downbeats():
    reference = [3, 4] + [1, 2, 3, 4] * 8
    downbeats = np.where(np.array(reference) == 1, 0.8, 0.1)
    downbeats[[6, 20]] = 0.1
    downbeats[[9, 24]] = 0.7
    assert count_bars(downbeats, (3, 4)).tolist() == reference


@pytest.mark.parametrize("seed", range(5))
def test_counting_finds_the_best_of_all_counts(seed):
    probabilities = np.random.default_rng(seed).random(9)
    states = [(length, position) for length in (2, 3) for position in range(1, length + 1)]

    def score(path):
        total = 0.0
        for beat, (length, position) in enumerate(path):
            p = np.clip(probabilities[beat], 0.01, 0.99)
            total += np.log(p if position == 1 else 1 - p)
            if beat:
                last_length, last = path[beat - 1]
                if position == 1 and last == last_length:
                    total += np.log(0.99 if length == last_length else 0.01)
                elif (length, position) != (last_length, last + 1):
                    return -np.inf
        return total

    def legal(paths, _):
        for path in paths:
            for state in states:
                if score((*path, state)) > -np.inf:
                    yield (*path, state)

    paths = [(state,) for state in states]
    for _ in range(8):
        paths = list(legal(paths, None))
    best = max(paths, key=score)
    assert count_bars(probabilities, (2, 3)).tolist() == [position for _, position in best]


def test_no_beats_are_no_bars():
    assert count_bars(np.zeros(0), (3, 4)).shape == (0,)
