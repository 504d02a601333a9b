"""Labels of a song by an ONNX file, with onnxruntime, numpy and soundfile alone.

m2v export onnx runs/songs/model tagger.onnx
ffmpeg -i song.mp3 -ac 1 -ar 16000 song.wav
python examples/onnx_tagging.py tagger.onnx song.wav
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
task = json.loads(about.get("m2v_finetune", "{}")).get("task", {}).get("name", "another program")
if task != "tagging":
    sys.exit(f"{sys.argv[1]} is a model of {task}. Give a model of tagging.")
window, hop = int(about["window_samples"]), int(about["hop_samples"])
samples, rate = soundfile.read(sys.argv[2], dtype="float32", always_2d=True)
if len(samples) == 0:
    sys.exit(f"{sys.argv[2]} has no samples.")
if rate != int(about["sample_rate"]):
    sys.exit(f"{sys.argv[2]} has {rate} Hz. Convert it to {about['sample_rate']} Hz.")
song = samples.mean(axis=1)
song = np.pad(song, (0, max(0, window - len(song))))

# Windows as in training; the last one ends with the song.
starts = [*range(0, len(song) - window, hop), len(song) - window]
logits = [session.run(None, {"waveforms": song[None, s : s + window]})[0][0] for s in starts]
probabilities = np.mean(1 / (1 + np.exp(-np.array(logits))), axis=0)  # the mean over windows
calibration = json.loads(about["calibration"])  # of the log odds of each label, which are finite
if calibration:
    limited = np.clip(probabilities.astype(float), np.finfo("float32").tiny, 1 - 2.0**-24)
    odds = np.log(limited) - np.log1p(-limited)
    odds = odds * calibration["slopes"] + calibration["intercepts"]
    probabilities = 1 / (1 + np.exp(-odds))
for label, probability in sorted(zip(json.loads(about["labels"]), probabilities, strict=True)):
    print(f"{probability:.4f} {label}")
