"""Beats of a song by an ONNX file, with onnxruntime, numpy and soundfile alone.

The decoder is that of `m2v predict`. It is part of m2v-finetune, but needs numpy only: no torch.

    m2v export onnx runs/beats/model beats.onnx
    ffmpeg -i song.mp3 -ac 1 -ar 16000 song.wav
    pip install --no-deps m2v-finetune; pip install onnxruntime numpy soundfile
    python examples/onnx_beats.py beats.onnx song.wav
"""

import sys
from fractions import Fraction

import numpy as np
import onnxruntime
import soundfile

from m2v_finetune.audio.windows import window_starts
from m2v_finetune.decoding.beats import decode_beats
from m2v_finetune.decoding.joining import FrameJoiner

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
rate, stride = int(about["sample_rate"]), int(about["frame_stride_samples"])
window, hop = int(about["window_samples"]), int(about["hop_samples"])
samples, found_rate = soundfile.read(sys.argv[2], dtype="float32", always_2d=True)
if found_rate != rate:
    sys.exit(f"{sys.argv[2]} has {found_rate} Hz. Convert it to {rate} Hz.")
song = samples.mean(axis=1)
song = np.pad(song, (0, max(0, window - len(song))))

# Windows that overlap and start at frames, cross-faded.
starts = window_starts(len(song), window, hop, multiple_of=stride)
frames = [session.run(None, {"waveforms": song[None, s : s + window]})[0][0] for s in starts]
joiner = FrameJoiner(starts[-1] // stride + len(frames[-1]), num_outputs=2)
for start, logits in zip(starts, frames, strict=True):
    joiner.add(start // stride, 1 / (1 + np.exp(-logits)))
beat, downbeat = joiner.result().T
times = float(about["first_frame_seconds"]) + np.arange(len(beat)) * stride / rate
for seconds, position in zip(
    *decode_beats(beat, downbeat, times, Fraction(rate, stride)), strict=True
):
    print(f"{seconds:.3f}\t{position}")
