"""The part of a model card that shows the use of a model in transformers alone."""

import re
from typing import TYPE_CHECKING

from m2v_finetune.calibration import TemperatureScaling
from m2v_finetune.model.native import FUNCTIONS, problem_type

if TYPE_CHECKING:
    from m2v_finetune.model.task_model import TaskModel

HEADING = "## With transformers alone"
MODEL_PLACEHOLDER = "path/to/model"
MEAN = "scores = {label: sum(one[label] for one in windows) / len(windows) for label in windows[0]}"
CALIBRATED = """\
logits = np.array([list(map(own.get, windows[0])) for own in windows])

# The logits of a window are calibrated. For a song, the mean over its windows is calibrated in their place.
calibration = classify.model.config.m2v_finetune["task"]["calibration"]
{of_kind}
scores = dict(zip(windows[0], probabilities.tolist()))"""
TEMPERATURE = """\
temperature = calibration["temperature"]
powers = np.exp(temperature * (logits - logits.max(axis=1, keepdims=True)))
mean = (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)
probabilities = mean ** (1 / temperature) / (mean ** (1 / temperature)).sum()"""
PLATT = """\
label2id = classify.model.config.label2id
slopes, intercepts = (
    np.array([calibration[name][label2id[label]] for label in windows[0]])
    for name in ("slopes", "intercepts")
)
mean = (1 / (1 + np.exp((intercepts - logits) / slopes))).mean(axis=0)
mean = np.clip(mean, np.finfo("float32").tiny, 1 - 2.0**-24)
probabilities = 1 / (1 + np.exp(-slopes * np.log(mean / (1 - mean)) - intercepts))"""


def native_usage(model: "TaskModel", name: str = MODEL_PLACEHOLDER) -> str:
    """Return the section of the card: code that computes the prediction of `TaskModel.predict`.

    Args:
        model: A model that transformers can express.
        name: Folder or repository of the model.
    """
    rate, window, hop = model.backbone.sample_rate, model.window_samples, model.hop_samples
    calibration = getattr(model.task, "calibration", None)
    function = FUNCTIONS[str(problem_type(model))] if calibration is None else "none"
    joined = MEAN
    if calibration is not None:
        of_kind = TEMPERATURE if isinstance(calibration, TemperatureScaling) else PLATT
        joined = CALIBRATED.format(of_kind=of_kind)
    return f"""\
{HEADING}

```python
import numpy as np
from transformers import pipeline
from transformers.pipelines.audio_classification import ffmpeg_read

classify = pipeline(
    "audio-classification", model="{name}", top_k=None, function_to_apply="{function}"
)
with open("song.mp3", "rb") as file:
    audio = ffmpeg_read(file.read(), {rate})

# Windows as in training; the last one ends with the song. A song shorter than a window is padded with zeros.
audio = np.pad(audio, (0, max(0, {window} - len(audio))))
starts = [*range(0, len(audio) - {window}, {hop}), len(audio) - {window}]
found = [classify(audio[start : start + {window}]) for start in starts]
windows = [{{one["label"]: one["score"] for one in own}} for own in found]
{joined}
print(sorted(scores.items(), key=lambda one: -one[1])[:5])
```

`classify` of a whole file would be one window of its length, which the model was not trained on.
`ffmpeg_read` needs the program ffmpeg. Arrays must have {rate} Hz. A batch of unequal lengths is padded,
which changes the results.
"""


def without_native_usage(text: str) -> str:
    """Return the text of a card without the section `native_usage`."""
    before, heading, section = text.partition(HEADING)
    if not heading:
        return text
    following = re.search(r"^## ", section, re.MULTILINE)
    return before + (section[following.start() :] if following else "")
