"""Beats of a song by an ONNX file, with onnxruntime, numpy and soundfile alone.

The decoder is that of `m2v predict`. It is part of m2v-finetune, but needs numpy only: no torch.

    m2v export onnx runs/beats/model beats.onnx
    ffmpeg -i song.mp3 -ac 1 -ar 16000 song.wav
    pip install --no-deps m2v-finetune; pip install onnxruntime numpy soundfile
    python examples/onnx_beats.py beats.onnx song.wav
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.windows import window_starts
from m2v_finetune.decoding.beats import decode_beats
from m2v_finetune.decoding.joining import FrameJoiner

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
task = json.loads(about.get("m2v_finetune", "{}")).get("task", {}).get("name", "another program")
if task != "beats":
    sys.exit(f"{sys.argv[1]} is a model of {task}. Give a model of beats.")
rate, stride = int(about["sample_rate"]), int(about["frame_stride_samples"])
window, hop = int(about["window_samples"]), int(about["hop_samples"])
field = 1 + round(2 * rate * float(about["first_frame_seconds"]))
grid = FrameGrid(sample_rate=rate, stride_samples=stride, receptive_field_samples=field)
samples, found_rate = soundfile.read(sys.argv[2], dtype="float32", always_2d=True)
if len(samples) == 0:
    sys.exit(f"{sys.argv[2]} has no samples.")
if found_rate != rate:
    sys.exit(f"{sys.argv[2]} has {found_rate} Hz. Convert it to {rate} Hz.")

# Windows that start at frames, cross-faded. Frames of the zeros behind a short song are left out.
starts = window_starts(len(samples), window, hop, multiple_of=stride)
num_frames = max(1, grid.num_frames(min(len(samples), starts[-1] + window)))
song = np.pad(samples.mean(axis=1), (0, max(0, window - len(samples))))
joiner, end = FrameJoiner(num_frames, num_outputs=2), 0
for start in starts:
    logits = session.run(None, {"waveforms": song[None, start : start + window]})[0][0]
    probabilities, first = 1 / (1 + np.exp(-logits)), start // stride
    if first > end:  # a frame across the border of two windows copies the next one
        joiner.add(end, probabilities[:1].repeat(first - end, axis=0))
    joiner.add(first, probabilities)
    end = first + len(probabilities)
beat, downbeat = joiner.result().T
for seconds, position in zip(
    *decode_beats(beat, downbeat, grid.times(num_frames), grid.frame_rate), strict=True
):
    print(f"{seconds:.3f}\t{position}")
