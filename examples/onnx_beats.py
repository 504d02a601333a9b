"""Beats of a song by an ONNX file, with onnxruntime, numpy and soundfile alone.

The decoder is a short form of that of `m2v predict`: beats are at steps of 10 ms, and a song has one metre.

    m2v export onnx runs/beats/model beats.onnx
    ffmpeg -i song.mp3 -ac 1 -ar 16000 song.wav
    python examples/onnx_beats.py beats.onnx song.wav
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile


def decode(beat, downbeat):
    """Return steps and positions in the bar of beats, from probabilities of steps of 10 ms.

    The best path goes from beat to beat: a state is the step of a beat, and the interval to the next one.
    The first sixteenth of an interval is its beat. The tempo is from 55 to 215 beats a minute, and changes
    by the ratio r with a probability that falls as exp(-100 |r - 1|). As in Krebs, Böck and Widmer 2015, "An
    Efficient State-Space Model for Joint Tempo and Meter Tracking".
    """
    if beat.max() < 0.05:
        return np.zeros((2, 0), int)
    beat, downbeat = np.clip(beat, 0.01, 0.99), np.clip(downbeat, 0.01, 0.99)
    beat = np.pad(beat, (7, 0), constant_values=0.01)  # so that the first beat starts in the song
    intervals, margin = np.arange(28, 110), 110  # steps without evidence, before and after the song
    parts, columns = -(-intervals // 16), np.arange(len(intervals))
    change = np.exp(-100 * abs(intervals[:, None] / intervals - 1))  # of an interval after another
    change = np.log(change / change.sum(axis=0))
    on, off = (
        np.cumsum(np.pad(one, (margin + 1, margin)))
        for one in (np.log(beat), np.log((1 - beat) / 15))
    )

    def score(step):
        return on[step + parts] - on[step] + off[step + intervals] - off[step + parts]

    end = margin + len(beat)
    best, came_from = np.zeros((end, len(intervals))), np.zeros((end, len(intervals)), int)
    for step in range(margin, end):
        arrived = best[step - intervals, columns] + score(step - intervals) + change
        best[step], came_from[step] = arrived.max(axis=1), arrived.argmax(axis=1)
    last = np.arange(end - margin, end)[:, None]  # beats whose interval the song does not complete
    totals = np.where(last + intervals >= end, best[last[:, 0]] + score(last), -np.inf)
    row, column = np.unravel_index(totals.argmax(), totals.shape)
    step, steps = int(last[row, 0]), []
    while step >= margin:  # a beat is at the peak of its part of the interval
        start = step - margin
        steps.append(start + int(beat[start : start + parts[column]].argmax()))
        column = came_from[step, column]
        step -= int(intervals[column])
    steps = np.array(steps[::-1], int) - 7
    steps = steps[steps >= 0]
    # The metre, and the position of the first beat, under which the downbeats are most likely.
    odds = np.log(downbeat[steps] / (1 - downbeat[steps]))
    metres = [(odds[first::bar].sum(), bar, first) for bar in (3, 4) for first in range(bar)]
    _, bar, first = max(metres)
    return steps, (np.arange(len(steps)) - first) % bar + 1


def main():
    """Print time and position in the bar of each beat."""
    session = onnxruntime.InferenceSession(sys.argv[1])
    about = session.get_modelmeta().custom_metadata_map
    task = json.loads(about.get("m2v_finetune", "{}")).get("task", {}).get("name", "something else")
    if task != "beats":
        sys.exit(f"{sys.argv[1]} is a model of {task}. Give a model of beats.")
    rate, stride = int(about["sample_rate"]), int(about["frame_stride_samples"])
    window, hop = int(about["window_samples"]), int(about["hop_samples"]) // stride * stride
    samples, found_rate = soundfile.read(sys.argv[2], dtype="float32", always_2d=True)
    if len(samples) == 0:
        sys.exit(f"{sys.argv[2]} has no samples.")
    if found_rate != rate:
        sys.exit(f"{sys.argv[2]} has {found_rate} Hz. Convert it to {rate} Hz.")
    # Windows start at frames, and the last one ends with the song; frames of two windows are averaged.
    song = np.pad(samples.mean(axis=1), (0, max(0, window - len(samples))))
    last = (len(song) - window) // stride * stride
    totals = np.zeros((len(song) // stride, 3))  # of beat and downbeat, and the number of windows
    for start in [*range(0, last, hop), last]:
        logits = session.run(None, {"waveforms": song[None, start : start + window]})[0][0]
        rows = slice(start // stride, start // stride + len(logits))
        totals[rows] += np.c_[1 / (1 + np.exp(-logits)), np.ones(len(logits))]
    times = float(about["first_frame_seconds"]) + np.arange(len(totals)) * stride / rate
    is_known = (totals[:, 2] > 0) & (times < len(samples) / rate)
    times, totals = times[is_known], totals[is_known]
    steps = np.arange(times[0], times[-1], 0.01)
    beats = decode(*(np.interp(steps, times, row / totals[:, 2]) for row in totals.T[:2]))
    for step, position in zip(*beats, strict=True):
        print(f"{steps[step]:.3f}\t{position}")


if __name__ == "__main__":
    main()
