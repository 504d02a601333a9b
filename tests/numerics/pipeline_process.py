"""Runs transformers' pipeline on exported folders, in a process that cannot import the package.

    python pipeline_process.py FOLDER ...

Each folder has input.npy, (samples,). The scores and the logits are written beside it, by label; also the
scores that the code of the card finds for each song, a file of the suffix .mp3.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np

sys.modules["m2v_finetune"] = None  # an import of it is an error

from transformers import pipeline  # noqa: E402


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        classify = pipeline("audio-classification", model=str(folder), device="cpu", top_k=None)
        waveform = np.load(folder / "input.npy")
        found = {
            name: {one["label"]: one["score"] for one in classify(waveform, **options)}
            for name, options in (("scores", {}), ("logits", {"function_to_apply": "none"}))
        }
        os.chdir(folder)
        found["card"] = {}
        for song in folder.glob("*.mp3"):
            code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
            names: dict = {}
            exec(code[-1].replace("path/to/model", ".").replace("song.mp3", song.name), names)
            found["card"][song.name] = names["scores"]
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
