"""How good is a small pre-trained backbone? Probing and fine-tuning beside random weights and MFCCs.

    python scripts/compose_labelled_music.py runs/labelled-music --pieces 240 48 96 --notes-per-family 74 7 22
    python benchmarks/small_backbone.py --rows lora layers full/random

The music is played with a sound font that the pre-training music was not played with. Every number is of
the test split, which is judged once, after the last step. Nothing is chosen by it: rates, steps, pooling and
the length of windows were set by hand on the validation split (`--split validation`).

- `probe/WEIGHTS/100`: the backbone is frozen. WEIGHTS is `pretrained`; `random`, the same architecture
  drawn anew for every seed; `start`, random weights behind the bank of filters that pre-training began
  with; `mfcc`, the mean of 20 MFCCs of a window in place of a backbone; or `mfcc+deviation`, their
  deviation too. All have the same windows and the same head, a linear one, over the mean and the deviation
  of a window's frames. Beats need frames, so there are no MFCCs for them.
- `lora/WEIGHTS/SHARE`, `full/WEIGHTS/SHARE` and `layers/WEIGHTS/SHARE`: fine-tuning with SHARE percent of
  the training labels, the same for both weights. `full` trains the conv encoder too, `layers` keeps it, as
  the recipes do by default.

Layer weighting, heads, losses, tuning, optimizer, step and metrics are the package's, as its recipes use
them. Around them there is a plain loop in place of the recipes': the windows lie at fixed places and stay
in memory, and what a frozen backbone says of them is computed once.

Seeds draw the head, the order, the share of the labels and the random weights. Every finished run is a
line of the result file, and what is there is not run again, so that several processes may work on it at
once (`--tasks`, `--rows`) and a stopped one continues. `--table` writes the tables of docs/small-backbone.md
and docs/earlier-small-backbone.md from the result files, and runs nothing.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any, Literal

import librosa
import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor

from m2v_finetune.backbones import init_backbone, load_backbone
from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.checkpoints import SHIPPED_DIR
from m2v_finetune.backbones.layer_weighting import LayerWeighting
from m2v_finetune.backbones.precomputed import PrecomputedBackbone
from m2v_finetune.config import BackboneConfig, HeadConfig, OptimizerConfig, TuningConfig
from m2v_finetune.data.checking import CheckedTrack, check_splits
from m2v_finetune.data.loader import TrackWindows, Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks import TASKS, Task
from m2v_finetune.training.optimization import (
    build_optimizer,
    learning_rate_factor,
    set_learning_rates,
)
from m2v_finetune.training.sizes import count_parameters
from m2v_finetune.training.standardization import measure_standardization
from m2v_finetune.training.step import take_step

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))
from small_backbone_tables import RESULT, write_pages  # noqa: E402
from start_small_backbone import start_weights  # noqa: E402

DATA = REPOSITORY / "runs" / "labelled-music"
SEEDS = (0, 1, 2)
NUM_MFCC = 20
EVAL_BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """How a task is measured.

    Attributes:
        folder: Of the labelled music, its manifest.
        column: The labels, of which a share has every class; None where there are no classes.
        window_seconds: What the model hears at once.
        batch_size: Windows of a step.
        pooling: Of the frames of a window, where there is one answer for it.
    """

    folder: str
    column: str | None
    window_seconds: float
    batch_size: int
    pooling: Literal["mean", "mean_std"] = "mean_std"

    @property
    def head(self) -> HeadConfig:
        """A linear layer on what it reads standardised."""
        return HeadConfig(kind="linear", pooling=self.pooling, standardize=True, dropout=0.2)


EXPERIMENTS = {
    "tagging": Experiment(folder=".", column="tags", window_seconds=2.0, batch_size=8),
    "key": Experiment(folder=".", column="key", window_seconds=2.0, batch_size=8),
    "instrument": Experiment(
        folder="notes", column="instrument", window_seconds=1.0, batch_size=16
    ),
    "pitch": Experiment(folder="notes", column="pitch", window_seconds=1.0, batch_size=16),
    "beats": Experiment(folder=".", column=None, window_seconds=2.0, batch_size=8, pooling="mean"),
}
LATER_EXPERIMENTS = {
    "genre": Experiment(folder=".", column="style", window_seconds=2.0, batch_size=8),
}
"""Tasks that results before them do not have: their settings are in their lines."""


def experiment_of(task: str) -> Experiment:
    """Return how a task is measured, by its name."""
    return {**EXPERIMENTS, **LATER_EXPERIMENTS}[task]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a backbone is tuned; the same for all weights and tasks.

    Attributes:
        tuning: What learns.
        optimizer: Rates.
        steps: By the share of the labels, in percent.
    """

    tuning: TuningConfig
    optimizer: OptimizerConfig
    steps: dict[int, int]


METHODS = {
    "probe": Method(
        tuning=TuningConfig(method="probe"),
        optimizer=OptimizerConfig(learning_rate=0.003),
        steps={100: 400},
    ),
    "lora": Method(
        tuning=TuningConfig(method="lora", r=8, lora_alpha=16.0),
        optimizer=OptimizerConfig(learning_rate=0.003, backbone_learning_rate=0.003),
        steps={10: 50, 30: 75, 100: 100},
    ),
    "full": Method(
        tuning=TuningConfig(method="full", train_conv_encoder=True),
        optimizer=OptimizerConfig(learning_rate=0.003, backbone_learning_rate=0.001),
        steps={10: 50, 30: 75, 100: 100},
    ),
}
LATER_METHODS = {
    "layers": Method(
        tuning=TuningConfig(method="full"),
        optimizer=OptimizerConfig(learning_rate=0.003, backbone_learning_rate=0.001),
        steps={10: 50, 30: 75, 100: 100},
    ),
}
"""Methods that results before them do not have: their settings are in their lines."""


def method_of(name: str) -> Method:
    """Return a method by its name."""
    return {**METHODS, **LATER_METHODS}[name]


DRAWN = ("start", "random")
PROBED = ("pretrained", "start", "random", "mfcc", "mfcc+deviation")
ROWS = (
    *(f"probe/{weights}/100" for weights in PROBED),
    *(
        f"{method}/{weights}/{share}"
        for method in ("lora", "full", "layers")
        for weights in ("pretrained", "random")
        for share in method_of(method).steps
    ),
)


def main() -> None:
    """Run what was asked for and is not there yet, or write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone",
        type=Path,
        default=SHIPPED_DIR / "filterbank_small",
        help="the folder of the pre-trained backbone; filterbank-small if not given",
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the labelled music")
    parser.add_argument("--result", type=Path, default=RESULT, help="the result file")
    tasks = [*EXPERIMENTS, *LATER_EXPERIMENTS]
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["probe", "lora", "full"],
        metavar="ROW",
        help="such as probe, full/random or lora/pretrained/30",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        default="test",
        help="what is judged; of validation nothing is written, unless --result names another file",
    )
    parser.add_argument("--table", action="store_true", help="write the pages, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        write_pages()
        return
    rows = [row for row in ROWS if f"{row}/".startswith(tuple(f"{r}/" for r in arguments.rows))]
    if not rows:
        parser.error(f"there is no row {' or '.join(arguments.rows)}; rows are {', '.join(ROWS)}")
    if not (arguments.data / "notes" / "manifest.jsonl").is_file():
        parser.error(f"{arguments.data} has no labelled music; compose it first")
    torch.set_num_threads(1)
    run_all(
        arguments.backbone,
        arguments.data,
        arguments.result if arguments.split == "test" or arguments.result != RESULT else None,
        split=arguments.split,
        wanted=[
            (task, row, seed)
            for seed in arguments.seeds
            for row in rows
            for task in arguments.tasks
            if not (task == "beats" and "mfcc" in row)
        ],
    )


def run_all(
    backbone: Path,
    data: Path,
    result: Path | None,
    *,
    split: str,
    wanted: list[tuple[str, str, int]],
) -> None:
    """Run tasks, rows and seeds that are not in the result file, and add a line for each."""
    about = protocol(data)
    weights_digest = _digest(backbone / "model.safetensors")
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    if result is not None and not any("protocol" in line for line in read_lines(result)):
        append(result, {"protocol": digest, "about": about, "machine": machine()})
    musics: dict[str, Music] = {}
    for task, row, seed in wanted:
        if result is not None:
            lines = read_lines(result)
            if any(
                line["protocol"] != digest
                or line.get("backbone_sha256", weights_digest) != weights_digest
                for line in lines
            ):
                raise SystemExit(
                    f"{result} was measured with another backbone, music or settings; give another --result"
                )
            if any(
                (line.get("task"), line.get("row"), line.get("seed")) == (task, row, seed)
                for line in lines
            ):
                continue
        if task not in musics:
            musics[task] = Music(task, data, backbone, split=split)
        name = row.split("/")[0]
        start_time = time.process_time()
        found = run(musics[task], row, seed)
        line = {
            "protocol": digest,
            "task": task,
            "row": row,
            "seed": seed,
            **({"backbone_sha256": weights_digest} if "/pretrained/" in row else {}),
            **({"split": split} if split != "test" else {}),
            **({"method": asdict(method_of(name))} if name in LATER_METHODS else {}),
            **({"experiment": asdict(experiment_of(task))} if task in LATER_EXPERIMENTS else {}),
            **found,
            "cpu_seconds": round(time.process_time() - start_time, 1),
        }
        if result is not None:
            append(result, line)
        print(
            f"{task} {row} seed {seed}: {found['value']:.4f}, {line['cpu_seconds']} s", flush=True
        )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a result file; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, in one write: other processes add theirs."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def protocol(data: Path) -> dict[str, Any]:
    """Return all that runs depend on and that is not in their line."""
    return {
        "clips_sha256": _digest(data / "manifest.jsonl"),
        "notes_sha256": _digest(data / "notes" / "manifest.jsonl"),
        "experiments": {task: asdict(one) for task, one in EXPERIMENTS.items()},
        "methods": {name: asdict(one) for name, one in METHODS.items()},
        "num_mfcc": NUM_MFCC,
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def machine() -> dict[str, Any]:
    """Return where and with what was measured."""
    names = ("torch", "transformers", "peft", "numpy", "librosa")
    return {
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


@dataclass(frozen=True)
class Windows:
    """The windows of some tracks in memory.

    Attributes:
        locations: For each window the number of its track, and where it lies.
        waveforms: (windows, samples).
        targets: (windows, ...), as the task gives them.
    """

    locations: list[tuple[int, Window]]
    waveforms: Tensor
    targets: Tensor


class Music:
    """The labelled music of a task: its tracks, their windows, and what frozen backbones said of these.

    Args:
        task: Its name.
        data: All labelled music; the random backbones go to its folder ``work``.
        backbone: The pre-trained one.
        split: What is judged.
    """

    def __init__(self, task: str, data: Path, backbone: Path, *, split: str) -> None:
        self.experiment = experiment_of(task)
        self.backbone, self.work = backbone, data / "work"
        self.known_states: dict[str, dict[str, Tensor]] = {}
        folder = data / self.experiment.folder
        column = self.experiment.column
        settings = TASKS[task].settings_class(**({"label_column": column} if column else {}))
        tracks, _ = load_tracks(str(folder), label_column=settings.label_column)
        splits = {
            name: [track for track in tracks if track.split == name]
            for name in ("train", "validation", "test")
        }
        self.task: Task = TASKS[task].from_tracks(settings, splits)
        checked, _ = check_splits(splits, on_bad_track="stop", show_progress=False)
        self.grid = load_backbone(str(backbone)).frame_grid
        self.tracks = {"train": checked["train"], "evaluated": checked[split]}
        self.windows = {name: self._read(own) for name, own in self.tracks.items()}

    def _read(self, tracks: list[CheckedTrack]) -> Windows:
        """Read all windows of tracks, where they lie for judging."""
        samples = round(self.experiment.window_seconds * self.grid.sample_rate)
        laid = TrackWindows(
            tracks,
            inputs=self.task.inputs,
            grid=self.grid,
            window_samples=samples,
            hop_samples=round(samples * self.task.hop_fraction),
            on_frames=self.task.on_frames,
        )
        examples = [
            self.task.example(tracks[number], window, None) for number, window in laid.locations
        ]
        waveforms, targets = (
            torch.from_numpy(np.stack(parts)) for parts in zip(*examples, strict=True)
        )
        return Windows(laid.locations, waveforms, targets)

    def share(self, percent: int, seed: int) -> list[int]:
        """Return the training windows that have labels: those of a share of the tracks.

        A smaller share of a seed is part of a larger one, and every class is in each.
        """
        tracks = self.tracks["train"]
        order = list(range(len(tracks)))
        if percent < 100:
            Random(f"{seed}/labels").shuffle(order)
        covered: set[Any] = set()
        needed = []
        for number in order:
            classes = self._classes(tracks[number].track)
            if not classes <= covered:
                covered |= classes
                needed.append(number)
        others = [number for number in order if number not in needed]
        size = max(len(needed), round(len(tracks) * percent / 100))
        kept = set([*needed, *others][:size])
        locations = self.windows["train"].locations
        return [index for index, (number, _) in enumerate(locations) if number in kept]

    def _classes(self, track: Track) -> set[Any]:
        if self.experiment.column is None:
            return set()
        labels = track.columns[self.experiment.column]
        return set(labels) if isinstance(labels, (list, tuple)) else {labels}

    def source(self, weights: str, seed: int) -> Path:
        """Return the folder of a backbone; random weights are drawn and written where they are missing."""
        if weights == "pretrained":
            return self.backbone
        folder = self.work / f"{weights}-{seed}-{os.getpid()}"
        if not folder.is_dir():
            torch.manual_seed(seed)
            drawn = init_backbone(self.backbone, licence="")
            if weights == "start":
                start_weights(drawn)
            folder.mkdir(parents=True)
            drawn.save_pretrained(folder)
        return folder

    def states(self, weights: str, seed: int) -> dict[str, Tensor]:
        """Return what a frozen backbone says of all windows, (windows, states, frames, hidden_size)."""
        if weights in self.known_states:
            return self.known_states[weights]
        waveforms = {name: own.waveforms for name, own in self.windows.items()}
        if weights.startswith("mfcc"):
            found = {name: mfccs(own, self.grid.sample_rate) for name, own in waveforms.items()}
            if weights == "mfcc":
                found = {name: own.mean(dim=2, keepdim=True) for name, own in found.items()}
        else:
            backbone = load_backbone(str(self.source(weights, seed)))
            found = {name: hidden_states(backbone, own) for name, own in waveforms.items()}
        if weights not in DRAWN:
            self.known_states[weights] = found
        return found


@torch.inference_mode()
def hidden_states(backbone: Backbone, waveforms: Tensor) -> Tensor:
    """Return all hidden states of windows, (windows, states, frames, hidden_size)."""
    return torch.cat(
        [
            torch.stack(backbone(backbone.prepare(batch)), dim=1)
            for batch in waveforms.split(EVAL_BATCH_SIZE)
        ]
    )


def mfccs(waveforms: Tensor, sample_rate: int) -> Tensor:
    """Return the MFCCs of windows (librosa's defaults), (windows, 1, frames, NUM_MFCC)."""
    columns = librosa.feature.mfcc(y=waveforms.numpy(), sr=sample_rate, n_mfcc=NUM_MFCC)
    return torch.from_numpy(np.moveaxis(columns, -1, -2).astype(np.float32))[:, None]


class FrozenFeatures(PrecomputedBackbone):
    """Stands in for a frozen backbone whose hidden states were computed before.

    Args:
        states: Of some windows, (windows, hidden states, frames, hidden_size).
    """

    def __init__(self, states: Tensor) -> None:
        super().__init__(states.shape[-1], source="hidden states")
        self.num_hidden_states = states.shape[1]

    def iterate_hidden_states(self, states: Tensor) -> Iterator[Tensor]:
        """Yield the states one after the other, (batch, frames, hidden_size)."""
        yield from states.unbind(1)


def run(music: Music, row: str, seed: int) -> dict[str, Any]:
    """Tune and judge a row of the table; return its metrics."""
    name, weights, share = row.split("/")
    if name == "probe":
        inputs = music.states(weights, seed)
        torch.manual_seed(seed)
        model = probe(music, inputs["train"])
    else:
        inputs = {split: windows.waveforms for split, windows in music.windows.items()}
        source = music.source(weights, seed)
        torch.manual_seed(seed)
        model = TaskModel.build(
            task=music.task,
            backbone=BackboneConfig(source=str(source)),
            head=music.experiment.head,
            tuning=method_of(name).tuning,
            window_seconds=music.experiment.window_seconds,
        )
    labelled = music.share(int(share), seed)
    method = method_of(name)
    steps = method.steps[int(share)]
    fit(model, music, inputs["train"], labelled, method.optimizer, steps=steps, seed=seed)
    values = evaluate(model, music, inputs["evaluated"])
    metric = music.task.selection_metric
    return {
        "metric": music.task.metric_names[metric],
        "value": values[metric],
        "values": values,
        "num_windows": len(labelled),
        "num_trained_parameters": count_parameters(model, trained_only=True),
        "layer_weights": model.layer_weighting.weights().tolist(),
    }


def probe(music: Music, states: Tensor) -> TaskModel:
    """Return a new layer weighting and head on hidden states."""
    task, stand_in = music.task, FrozenFeatures(states)
    return TaskModel(
        backbone=stand_in,
        layer_weighting=LayerWeighting("softmax", stand_in.num_hidden_states),
        head=task.build_head(
            music.experiment.head, hidden_size=stand_in.hidden_size, grid=music.grid
        ),
        head_config=music.experiment.head,
        task=task,
        tuning=METHODS["probe"].tuning,
        window_seconds=music.experiment.window_seconds,
        hop_seconds=music.experiment.window_seconds * task.hop_fraction,
        base_fingerprint=None,
    )


def fit(
    model: TaskModel,
    music: Music,
    inputs: Tensor,
    labelled: list[int],
    optimization: OptimizerConfig,
    *,
    steps: int,
    seed: int,
) -> None:
    """Take optimizer steps; the rates rise and fall as in every recipe.

    Args:
        model: Tuned and headed.
        music: Targets and batch size.
        inputs: What the model takes, of all training windows.
        labelled: The windows that may be used.
        optimization: Rates.
        steps: How many.
        seed: Decides the order.
    """
    targets, size = music.windows["train"].targets, music.experiment.batch_size
    windows = torch.tensor(labelled)
    chunks = windows.split(size)
    measure_standardization(
        model,
        ((inputs[chunk], targets[chunk]) for chunk in chunks),
        accelerator=Accelerator(cpu=True),
        bar=Progress(disable=True),
        num_batches=len(chunks),
    )
    optimizer = build_optimizer(model, optimization)
    generator = torch.Generator().manual_seed(seed)
    # Every window once before any comes again.
    rounds = -(-steps * size // len(windows))
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(rounds)])
    model.train()
    for step, chosen in enumerate(order.split(size)[:steps]):
        chunk = windows[chosen]
        set_learning_rates(
            optimizer,
            learning_rate_factor(step, total_steps=steps, warmup_ratio=optimization.warmup_ratio),
        )
        take_step(
            model,
            optimizer,
            [(inputs[chunk], targets[chunk])],
            loss=music.task.loss,
            max_grad_norm=optimization.max_grad_norm,
        )


@torch.inference_mode()
def evaluate(model: TaskModel, music: Music, inputs: Tensor) -> dict[str, float]:
    """Return the task's metrics of the judged tracks, as the recipes find them."""
    model.eval()
    task, windows, tracks = music.task, music.windows["evaluated"], music.tracks["evaluated"]
    scores = torch.cat([task.activate(model(one).float()) for one in inputs.split(EVAL_BATCH_SIZE)])
    rows = zip(windows.locations, scores.numpy(), strict=True)
    evaluated = []
    for number, of_track in groupby(rows, key=lambda row: row[0][0]):
        spans = ((window, row) for (_, window), row in of_track)
        evaluated.append(task.evaluate_track(tracks[number], task.predict(tracks[number], spans)))
    return task.compute_metrics(evaluated)


if __name__ == "__main__":
    main()
