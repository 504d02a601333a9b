"""How many tracks an hour does `m2v predict` write to a table, in which memory, and beside what else?

    python benchmarks/catalogue.py [--tracks N] [--backbone NAME] [--contenders ...] [--cores N]

Tracks of 5 s are cut from the clips that ship, and written as FLAC; more tracks than `NUM_FILES` are links to
the same files. Each contender runs in a process of its own, held to one core and one thread; with more
`--cores` each uses them as it does by itself, with a worker for each core where it has workers:

- `table`: `m2v predict tags tracks --output DIR`;
- `four`: the same with four models of one backbone, tags, genre, key and emotion;
- `files`: `m2v predict tags FILES --output predictions.jsonl`, file by file;
- `script`: the model exported for transformers, `librosa.load`, and one call of the network a file;
- `network`: the network of `table` alone, on one batch in memory again and again: no table can be faster.

Models are not trained; weights are random where the backbone does not ship. Loading is not counted. Seconds
are those of the processor, so that other programs on the machine matter less, and of the clock; on several
cores, the rate is that by the clock. The resident
memory of the process is read every half second; its peak in each quarter of the time is kept. Results are
added to benchmarks/results/catalogue.json.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from songs import environment

RESULT = Path(__file__).parent / "results" / "catalogue.json"
AUDIO = Path(__file__).parents[1] / "m2v_finetune" / "data" / "quickstart" / "audio"
NUM_FILES = 1000
BATCH_SIZE = 16
TRACK_SECONDS = 5.0
LOOK_SECONDS = 0.5
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TASKS = {"tags": "tagging", "genre": "genre", "key": "key", "emotion": "emotion"}
CONTENDERS = ("table", "four", "files", "script", "network")


def main() -> None:
    """Measure the contenders, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tracks", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--backbone", default="filterbank-small", help="(default: %(default)s)")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--cores", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
        print(json.dumps(RUNS[arguments.run](arguments.folder)))
        return
    result: Path = arguments.result
    found = json.loads(result.read_text()) if result.is_file() else {"backbones": {}}
    cores = arguments.cores
    place = f"{arguments.backbone}, {arguments.tracks} tracks"
    if cores > 1:
        place += f", {cores} cores"
    rows = found["backbones"].setdefault(place, {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tracks(folder / "tracks", arguments.tracks)
        write_models(folder, arguments.backbone)
        for contender in arguments.contenders:
            measured = subprocess.run(
                [
                    *(sys.executable, __file__, "--run", contender, "--folder", folder),
                    *("--cores", str(cores)),
                ],
                stdout=subprocess.PIPE,
                env=os.environ | ({"OMP_NUM_THREADS": "1"} if cores == 1 else {}),
                check=True,
            )
            row = json.loads(measured.stdout)
            row["tracks"] = arguments.tracks
            seconds = row["processor_seconds" if cores == 1 else "seconds"]
            row["tracks_an_hour"] = round(3600 * arguments.tracks / seconds)
            rows[contender] = row
            print(contender, row, flush=True)
            found["environment"] = environment()
            result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def write_tracks(folder: Path, number: int) -> None:
    """Cut tracks from the clips that ship, at other places in each round."""
    folder.mkdir()
    clips = sorted(AUDIO.glob("*.ogg"))
    generator = np.random.default_rng(0)
    files: list[Path] = []
    for index, clip in enumerate(itertools.islice(itertools.cycle(clips), number)):
        path = folder / f"{index:06d}.flac"
        if index >= NUM_FILES:
            path.hardlink_to(files[index % NUM_FILES])
            continue
        samples, rate = soundfile.read(clip, dtype="float32")
        length = round(TRACK_SECONDS * rate)
        start = int(generator.integers(0, len(samples) - length, endpoint=True))
        soundfile.write(path, samples[start : start + length], rate)
        files.append(path)


def write_models(folder: Path, backbone: str) -> None:
    """Write a model of each task, and that of tags for transformers."""
    import torch

    from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
    from m2v_finetune.model import TaskModel
    from m2v_finetune.parsing import parse_recipe, recipe_config
    from m2v_finetune.tasks import TASKS as ALL_TASKS

    torch.manual_seed(0)
    shared = None
    for name, task_name in TASKS.items():
        config = parse_recipe(
            recipe_config(ALL_TASKS[task_name]),
            ["--data.source=quickstart"],
            description="",
            quickstart=Path(),
        )
        model = TaskModel.build(
            task=ALL_TASKS[task_name].from_settings(config.task),
            backbone=BackboneConfig(source=backbone),
            head=HeadConfig(kind="linear"),
            tuning=TuningConfig(method="probe"),
            window_seconds=TRACK_SECONDS,
            with_weights=backbone.endswith("-small"),
        )
        shared = shared or model.backbone.state_dict()
        model.backbone.load_state_dict(shared)
        model.save_pretrained(folder / name, weights="all")
        if name == "tags":
            model.save_pretrained(folder / "native", native=True)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Watch:
    """Seconds, and the resident memory every half second, of a block in this process."""

    def __enter__(self) -> "Watch":
        self.looks: list[int] = []
        self.is_done = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.start, self.worked = time.perf_counter(), time.process_time()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.processor_seconds = time.process_time() - self.worked
        self.is_done.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.is_done.wait(LOOK_SECONDS):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.looks.append(pages * PAGE_BYTES)

    def row(self) -> dict[str, Any]:
        """Return what was measured."""
        looks = self.looks
        quarters = [looks[i * len(looks) // 4 : (i + 1) * len(looks) // 4] for i in range(4)]
        peaks = [max(quarter, default=0) for quarter in quarters]
        return {
            "seconds": round(self.seconds, 2),
            "processor_seconds": round(self.processor_seconds, 2),
            "peak_bytes_by_quarter": peaks,
            "growth_from_second_to_last_quarter": round(peaks[3] / peaks[1] - 1, 4)
            if peaks[1]
            else None,
        }


def run_table(folder: Path, names: tuple[str, ...] = ("tags",)) -> dict[str, Any]:
    """Write a table, reading in the same process."""
    from m2v_finetune.catalogue.predictions import NamedModel, Predictions
    from m2v_finetune.catalogue.run import run_catalogue
    from m2v_finetune.catalogue.sources import read_items
    from m2v_finetune.model import TaskModel

    analysis = Predictions(
        [
            NamedModel(name=name, source=name, model=TaskModel.from_pretrained(folder / name))
            for name in names
        ]
    )
    with Watch() as watch:
        items = read_items([str(folder / "tracks")], standard_input=sys.stdin.buffer).items
        done = run_catalogue(
            analysis,
            items,
            folder / f"table-{len(names)}",
            batch_size=BATCH_SIZE,
            num_workers=0 if num_cores() == 1 else num_cores(),
            show_progress=False,
        )
    assert done.num_computed == len(items)
    assert not done.errors
    return watch.row() | {"passes": len(analysis.passes)}


def run_files(folder: Path) -> dict[str, Any]:
    """Predict file by file into one file."""
    from m2v_finetune.model import TaskModel
    from m2v_finetune.prediction import Rendering, predict_files

    model = TaskModel.from_pretrained(folder / "tags")
    with Watch() as watch:
        predict_files(
            model,
            sorted((folder / "tracks").iterdir()),
            rendering=Rendering(format="json"),
            output=folder / "predictions.jsonl",
            on_bad_file="stop",
        )
    return watch.row()


def run_script(folder: Path) -> dict[str, Any]:
    """Do what a script with transformers and librosa does."""
    import librosa
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    extractor = AutoFeatureExtractor.from_pretrained(folder / "native")
    model = AutoModelForAudioClassification.from_pretrained(folder / "native").eval()
    with Watch() as watch, (folder / "script.jsonl").open("w") as output:
        for path in sorted((folder / "tracks").iterdir()):
            audio, rate = librosa.load(path, sr=extractor.sampling_rate)
            inputs = extractor(audio, sampling_rate=rate, return_tensors="pt")
            with torch.no_grad():
                scores = model(**inputs).logits.sigmoid()[0].tolist()
            output.write(json.dumps({"path": str(path), "scores": scores}) + "\n")
    return watch.row()


def run_network(folder: Path) -> dict[str, Any]:
    """Compute as many windows as there are tracks, without reading or writing any."""
    import torch

    from m2v_finetune.model import TaskModel
    from m2v_finetune.threads import batches_at_once, in_order

    model = TaskModel.from_pretrained(folder / "tags")
    noise = 0.1 * torch.randn(BATCH_SIZE, model.window_samples)
    num_batches = -(-len(list((folder / "tracks").iterdir())) // BATCH_SIZE)

    def scores(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(batch)

    with Watch() as watch:
        for _ in in_order(scores, [noise] * num_batches, at_once=batches_at_once(model)):
            pass
    return watch.row()


RUNS = {
    "table": run_table,
    "four": lambda folder: run_table(folder, tuple(TASKS)),
    "files": run_files,
    "script": run_script,
    "network": run_network,
}


if __name__ == "__main__":
    main()
