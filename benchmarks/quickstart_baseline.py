"""The quickstart's tagger beside a logistic regression on MFCCs of the same clips.

    python benchmarks/quickstart_baseline.py RUN_FOLDER

RUN_FOLDER is that of `accelerate launch recipes/tagging.py`. Both sides are judged on the same test
clips, by the same metrics and the same bootstrap. Writes benchmarks/results/quickstart_baseline.json.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import librosa
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from m2v_finetune.audio.decode import read_audio
from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.tasks.clips import EvaluatedClip
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig

RESULT = Path(__file__).parent / "results" / "quickstart_baseline.json"
SAMPLE_RATE = 16000
NUM_MFCC = 20


def mfcc(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over time of 20 MFCCs (librosa's defaults), at 16 kHz."""
    frames = librosa.feature.mfcc(
        y=read_audio(path, sample_rate=SAMPLE_RATE), sr=SAMPLE_RATE, n_mfcc=NUM_MFCC
    )
    return frames.mean(axis=1), frames.std(axis=1)


def main(run_folder: Path) -> None:
    """Fit the regressions, judge them, and write both sides to the result file."""
    tracks, _ = load_tracks("quickstart", label_column="tags")
    splits = {
        name: [track for track in tracks if track.split == name]
        for name in ("train", "validation", "test")
    }
    task = Tagging.from_tracks(TaggingConfig(), splits)
    features = {name: [mfcc(track.path) for track in members] for name, members in splits.items()}
    targets = {
        name: np.stack([task.targets(t, IDENTITY) for t in members])
        for name, members in splits.items()
    }

    run = json.loads((run_folder / "results.json").read_text())
    environment = json.loads((run_folder / "environment.json").read_text())
    result = {
        "what": "quickstart, test split: macro ROC-AUC and average precision with 95 % intervals",
        "machine": {"processor": platform.machine(), "cpus": environment["num_cpus"]},
        "packages": environment["packages"]
        | {name: version(name) for name in ("librosa", "scikit-learn")},
        "tagger": {
            "command": "accelerate launch recipes/tagging.py",
            "backbone": run["backbone"]["source"],
            "seconds": run["seconds"],
            **run["metrics"],
        },
    }
    for name, columns in {"mean MFCCs": 1, "mean and standard deviation of MFCCs": 2}.items():
        inputs = {
            split: np.stack([np.concatenate(pair[:columns]) for pair in pairs])
            for split, pairs in features.items()
        }
        model = make_pipeline(
            StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=1000))
        )
        model.fit(inputs["train"], targets["train"])
        scores = model.predict_proba(inputs["test"])
        evaluated = [
            EvaluatedClip(target=target, scores=row)
            for target, row in zip(targets["test"], scores, strict=True)
        ]
        metrics = task.summarize(evaluated, seed=0)["metrics"]
        result[f"logistic regression on {name}"] = metrics
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    main(parser.parse_args().run)
