"""How good is a backbone on sound that it was not trained on? Beside random weights, MFCCs and a CQT.

    python benchmarks/real_sound.py runs/real-sound
    python benchmarks/held_out_sound.py --backbone filterbank-small
    python benchmarks/held_out_sound.py --backbone runs/small-backbone/model --name new
    python benchmarks/held_out_sound.py --table

Composed music is the quickstart's, whose sound fonts (FluidR3_GM for training the probe, MuseScore_General
for testing it) no music of the new pre-training is played with; `--composed` takes more of it, as
scripts/compose_labelled_music.py writes. Real sound is what benchmarks/real_sound.py finds in Debian
packages. A backbone is frozen, and a track is one window. Rows:

- the backbone, and random weights of its architecture (drawn anew for each seed): mean and standard deviation
  over time of all its hidden states; for beats, all states of each frame.
- MFCCs: mean and standard deviation of 20. CQT: mean of 84 semitones, in dB.
- beats: librosa's beat tracker, which is not trained.

The probe is the same for all rows: standardised features, and a logistic regression whose penalty is chosen
by a fifth of the training tracks. For beats it is a linear layer on frames. Beats of real songs are learned
from the composed clips and the training songs. A seed draws nine tenths of the training tracks, and the
random weights. Intervals are Student's t over three seeds (95 %): they do not hold the spread of other test
tracks.

Nothing is chosen by the test split, which is evaluated by default; trials use `--split validation`. Features
are kept beside the real sound, results in benchmarks/results/held_out_sound.jsonl; what is there is not
computed again.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from held_out_features import RATE_HZ, mean_cqt, mfccs, pooled, states
from held_out_features import kept as kept_features
from held_out_probes import evaluate_beats, evaluate_clips, track_beats

from m2v_finetune.audio.decode import read_audio
from m2v_finetune.backbones import init_backbone, load_backbone
from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.checkpoints import SHIPPED_DIR
from m2v_finetune.data.checking import CheckedTrack, check_splits
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.tasks import TASKS

REPOSITORY = Path(__file__).parent.parent
QUICKSTART = REPOSITORY / "m2v_finetune" / "data" / "quickstart"
RESULT = REPOSITORY / "benchmarks" / "results" / "held_out_sound.jsonl"
SEEDS = (0, 1, 2)
TRAINING_SHARE = 0.9
BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mfcc": lambda samples: pooled(mfccs(samples)),
    "cqt": mean_cqt,
}
BEAT_TRACKER = "librosa"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A task on a set.

    Attributes:
        task: Name in `TASKS`.
        folder: Manifest, below the folder of composed ("composed") or real ("real") sound.
        column: Column of the labels.
        also_train: A set whose training tracks are added.
    """

    task: str
    folder: str
    column: str
    also_train: str | None = None


EXPERIMENTS = {
    "tagging": Experiment(task="tagging", folder="composed", column="tags"),
    "genre": Experiment(task="genre", folder="composed", column="style"),
    "key": Experiment(task="key", folder="composed", column="key"),
    "instrument": Experiment(task="instrument", folder="composed/notes", column="instrument"),
    "pitch": Experiment(task="pitch", folder="composed/notes", column="pitch"),
    "beats": Experiment(task="beats", folder="composed", column="beats"),
    "instrument, real": Experiment(task="instrument", folder="real/notes", column="instrument"),
    "instrument, other library": Experiment(
        task="instrument", folder="real/notes-by-library", column="instrument"
    ),
    "pitch, real": Experiment(task="pitch", folder="real/notes", column="pitch"),
    "drums, real": Experiment(task="instrument", folder="real/drums", column="instrument"),
    "stems, real": Experiment(task="instrument", folder="real/stems", column="instrument"),
    "albums, real": Experiment(task="genre", folder="real/albums", column="genre"),
    "beats, real": Experiment(
        task="beats", folder="real/songs", column="beats", also_train="composed"
    ),
}


class Sound:
    """The tracks of an experiment, and their features.

    Attributes:
        task: The task, with the labels of the training tracks.
        tracks: Training and evaluated tracks.
    """

    def __init__(self, name: str, folders: dict[str, Path], *, split: str) -> None:
        self.folders = folders
        one = EXPERIMENTS[name]
        settings = TASKS[one.task].settings_class(label_column=one.column)
        splits = self._splits(one.folder, one.column)
        if one.also_train is not None:
            more = self._splits(one.also_train, one.column)
            splits["train"] = [*more["train"], *splits["train"]]
            splits["validation"] = splits["validation"] or more["validation"]
        self.task = TASKS[one.task].from_tracks(settings, splits)
        present = {split: members for split, members in splits.items() if members}
        checked, _ = check_splits(present, on_bad_track="stop", show_progress=False)
        self.tracks = {"train": checked["train"], "evaluated": checked[split]}
        self.name = name

    def _splits(self, folder: str, column: str) -> dict[str, list[Any]]:
        first, _, rest = folder.partition("/")
        path = self.folders[first] / rest
        tracks, _ = load_tracks(str(path), label_column=column, allow_outside=True)
        return {
            split: [track for track in tracks if track.split == split]
            for split in ("train", "validation", "test")
        }

    def features(
        self, name: str, about: str, compute: Callable[[np.ndarray], np.ndarray]
    ) -> dict[str, list[np.ndarray]]:
        """Return the features of all tracks, one array a track.

        Args:
            name: Of the features.
            about: What they depend on, beside the tracks.
            compute: From a waveform.
        """
        found = {}
        for part, tracks in self.tracks.items():
            paths = [str(checked.track.path.resolve()) for checked in tracks]
            key = "\n".join([about, *paths])
            found[part] = kept_features(
                self.folders["features"],
                f"{name}-{part}".replace("/", "-"),
                key,
                lambda tracks=tracks: [compute(_waveform(checked)) for checked in tracks],
            )
        return found


def _waveform(checked: CheckedTrack) -> np.ndarray:
    return read_audio(checked.track.path, sample_rate=RATE_HZ)


def drawn(count: int, seed: int) -> list[int]:
    """Return the training tracks of a seed, in order."""
    numbers = list(range(count))
    Random(f"{seed}/held out").shuffle(numbers)
    return sorted(numbers[: round(TRAINING_SHARE * count)])


def of_backbone(backbone: Backbone, task: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes a backbone's features for a task."""
    if task == "beats":
        return lambda samples: states(backbone, samples).astype(np.float16)
    return lambda samples: pooled(states(backbone, samples))


def random_backbone(architecture: Path, seed: int) -> Backbone:
    """Return random weights of an architecture, for inference."""
    torch.manual_seed(seed)
    return init_backbone(architecture, licence="").eval()


def evaluate(sound: Sound, row: str, seed: int, source: Path | None) -> dict[str, float]:
    """Return the metrics of a row, by the name of each.

    Args:
        sound: Tracks.
        row: ``mfcc``, ``cqt``, ``librosa``, or ``random ...``, else a trained backbone.
        seed: Draws the training tracks, and random weights.
        source: Folder of the backbone, or of the architecture.
    """
    task = sound.task
    if row == BEAT_TRACKER:
        return track_beats(task, sound.tracks["evaluated"], _waveform)
    if row in BASELINES:
        features, grid = sound.features(row, row, BASELINES[row]), None
    else:
        assert source is not None
        is_random = row.startswith("random")
        backbone = random_backbone(source, seed) if is_random else load_backbone(str(source))
        config = (source / "config.json").read_text()
        weights = f"random {seed} {config}" if is_random else digest(source / "model.safetensors")
        kind = "frames" if task.name == "beats" else "pooled"
        features = sound.features(
            f"{row}-{seed}" if is_random else row,
            f"{kind} {weights}",
            of_backbone(backbone, task.name),
        )
        grid = backbone.frame_grid
    used = drawn(len(sound.tracks["train"]), seed)
    if task.name == "beats":
        assert grid is not None
        return evaluate_beats(task, sound.tracks, features, used, grid=grid, seed=seed)
    return evaluate_clips(task, sound.tracks, features, used, seed=seed)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of(name: str | None, source: Path | None) -> list[tuple[str, Path | None]]:
    """Return the rows of a run: baselines, and a backbone with its random weights."""
    rows: list[tuple[str, Path | None]] = [(row, None) for row in (*BASELINES, BEAT_TRACKER)]
    if name is not None:
        rows += [(name, source), (f"random {name}", source)]
    return rows


def is_possible(row: str, task: str) -> bool:
    """Return whether a row has an answer for a task: baselines of clips have no frames."""
    return row not in BASELINES if task == "beats" else row != BEAT_TRACKER


def main() -> None:
    """Evaluate what is not there yet, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", help="filterbank-small, or a folder; none: baselines alone")
    parser.add_argument("--name", help="of its row (default: that of the backbone)")
    parser.add_argument("--composed", type=Path, default=QUICKSTART)
    parser.add_argument("--real", type=Path, default=REPOSITORY / "runs" / "real-sound")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--tasks", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--only", action="store_true", help="the backbone's row alone")
    parser.add_argument("--table", action="store_true", help="write the page, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        from held_out_table import write_page

        write_page(arguments.result)
        return
    if arguments.split != "test" and arguments.result == RESULT:
        parser.error("--split validation needs another --result")
    torch.set_num_threads(1)
    name, source = arguments.name or arguments.backbone, None
    if arguments.backbone is not None:
        shipped = SHIPPED_DIR / arguments.backbone.replace("-", "_")
        source = shipped if shipped.is_dir() else Path(arguments.backbone)
    folders = {"composed": arguments.composed, "real": arguments.real}
    folders["features"] = arguments.real / "features"
    done = read(arguments.result)
    weights = digest(source / "model.safetensors")[:12] if source else None
    for task in arguments.tasks:
        sound = None
        for row, folder in rows_of(name, source):
            if not is_possible(row, EXPERIMENTS[task].task) or (arguments.only and row != name):
                continue
            for seed in arguments.seeds:
                if (row, task, seed) in done:
                    if row == name and done[row, task, seed].get("weights") != weights:
                        raise SystemExit(
                            f"{arguments.result} has a row {name} of other weights; give a --name"
                        )
                    continue
                sound = sound or Sound(task, folders, split=arguments.split)
                start = time.process_time()
                values = evaluate(sound, row, seed, folder)
                metric = sound.task.selection_metric
                line = {
                    "row": row,
                    "task": task,
                    "seed": seed,
                    "metric": sound.task.metric_names[metric],
                    "value": values[metric],
                    "values": values,
                    "num_train": len(drawn(len(sound.tracks["train"]), seed)),
                    "num_evaluated": len(sound.tracks["evaluated"]),
                    "split": arguments.split,
                    "cpu_seconds": round(time.process_time() - start, 1),
                    **({"weights": weights} if row == name else {}),
                }
                arguments.result.parent.mkdir(parents=True, exist_ok=True)
                with arguments.result.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(
                    f"{task} | {row} | {seed}: {line['value']:.4f}, {line['cpu_seconds']} s",
                    flush=True,
                )


def read(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the lines of a result file by row, task and seed; none if there is no file."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["row"], line["task"], line["seed"]): line for line in lines}


if __name__ == "__main__":
    main()
