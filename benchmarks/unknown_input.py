"""Share of sounds without music, and of held-out pieces, that a quickstart's model flags as unknown.

    python benchmarks/unknown_input.py

Trains the quickstarts of genre and tagging, and predicts their test tracks, silence, white and pink noise,
single sines, and speech by espeak-ng, which must be installed, on each backbone that ships. It compares the
novelty of the model, and each of its two distances alone, with the energy of its logits (Liu et al., arXiv
2010.03759) and the distance to the nearest mean of a class, each with the bound of the same rank on the
validation tracks. The result is in results/unknown_input.json.
"""

import argparse
import itertools
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from m2v_finetune import train
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.files import write_json
from m2v_finetune.model import TaskModel
from m2v_finetune.model.inference import check_file
from m2v_finetune.model.novelty import RATE

RESULT = Path(__file__).parent / "results" / "unknown_input.json"
SAMPLE_RATE, SECONDS, NUM_SOUNDS = 16000, 8, 20
LABELS = {"genre": "style", "tagging": "tags"}
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and runs away through the wet field.",
    "In the morning the committee met to discuss the budget of the following year.",
    "Please leave a message after the tone. Our office is open from nine to five.",
    "She opened the window, looked at the sea, and waited for the boat to come back.",
    "The next train to the airport leaves from platform twelve in about six minutes.",
)
VOICES = ("en-gb", "en-us+f3", "de", "fr+f2")
# Not used to choose the distances, as those above were.
OTHER_TEXTS = (
    "One two three four five six seven eight nine ten, and that is all for today.",
    "La musica e la lingua sono due cose diverse, ma non troppo, no?",
    "We will now read the names of the members who are present at the meeting.",
)
OTHER_VOICES = ("fr", "es", "it", "ru", "en-us", "de+f4")
CASES = (
    ("genre", "filterbank-small"),
    ("tagging", "filterbank-small"),
    ("genre", "random-small"),
)


def sounds(folder: Path) -> dict[str, list[Path]]:
    """Write sounds without music; return their files by kind."""
    rng = np.random.default_rng(0)
    times = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE

    def pink() -> NDArray[np.float64]:
        spectrum = np.fft.rfft(rng.standard_normal(len(times)))
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)))
        return noise / noise.std()

    def level() -> float:
        return float(10 ** rng.uniform(-2.5, -0.7))

    written: dict[str, list[Path]] = {}
    for kind in ("silence", "white noise", "pink noise", "sine"):
        for number in range(1 if kind == "silence" else NUM_SOUNDS):
            if kind == "silence":
                samples = np.zeros_like(times)
            elif kind == "sine":
                hz = 110 * 2 ** rng.uniform(0, 5)
                samples = level() * np.sin(2 * np.pi * hz * times)
            else:
                samples = level() * (
                    pink() if kind == "pink noise" else rng.standard_normal(len(times))
                )
            path = folder / f"{kind}-{number}.wav"
            soundfile.write(path, samples.astype(np.float32), SAMPLE_RATE, subtype="FLOAT")
            written.setdefault(kind, []).append(path)
    for kind, voices, texts in (
        ("speech", VOICES, TEXTS),
        ("other speech", OTHER_VOICES, OTHER_TEXTS),
    ):
        for voice, (number, text) in itertools.product(voices, enumerate(texts)):
            path = folder / f"{kind}-{voice}-{number}.wav"
            subprocess.run(["espeak-ng", "-v", voice, "-w", path, text], check=True)
            written.setdefault(kind, []).append(path)
    return written


def windows_of(model: TaskModel, paths: Sequence[Path]) -> Iterator[tuple[Any, Any]]:
    """Yield features (windows, size) and logits (windows, outputs) of each file."""
    for path in paths:
        checked = check_file(path)
        windows = model.track_windows([checked])
        samples = [windows.inputs(checked, window)[0] for _, window in windows.locations]
        with torch.inference_mode():
            states = model.head_input(torch.from_numpy(np.stack(samples)))
            yield states.mean(dim=1).numpy(), model.head(states).numpy()


def measure(
    task: str, backbone: str, others: Mapping[str, list[Path]], folder: Path
) -> dict[str, Any]:
    """Return the share of flagged sounds of each kind, by score."""
    output = {"output_dir": str(folder / f"{task}-{backbone}")}
    run = train(task, run=output, backbone={"source": backbone})
    model = run.model
    assert model.novelty is not None
    rows = [
        json.loads(line) for line in (QUICKSTART_DIR / "manifest.jsonl").read_text().splitlines()
    ]
    tracks = {
        split: [row for row in rows if row["split"] == split]
        for split in ("train", "validation", "test")
    }
    files = {split: [QUICKSTART_DIR / row["path"] for row in own] for split, own in tracks.items()}
    found = {kind: list(windows_of(model, paths)) for kind, paths in {**files, **others}.items()}
    features = np.concatenate([one for one, _ in found["train"]])
    mean, std = features.mean(axis=0), features.std(axis=0)
    by_class: dict[str, list[Any]] = {}
    for row, (one, _) in zip(tracks["train"], found["train"], strict=True):
        labels = row[LABELS[task]]
        for label in [labels] if isinstance(labels, str) else labels:
            by_class.setdefault(label, []).extend((one - mean) / std)
    centres = np.stack([np.mean(own, axis=0) for own in by_class.values()])

    def nearest(one: Any) -> Any:
        distances = ((one - mean) / std)[:, None] - centres[None]
        return np.sqrt((distances**2).mean(axis=-1)).min(axis=1)

    novelty = model.novelty
    is_tagging = task == "tagging"
    scores = {
        "novelty (both)": lambda one, _: novelty(torch.from_numpy(one)).numpy().max(axis=1),
        "nearest windows": lambda one, _: novelty(torch.from_numpy(one)).numpy()[:, 0],
        "Mahalanobis": lambda one, _: novelty(torch.from_numpy(one)).numpy()[:, 1],
        "energy": lambda _, logits: (
            -np.logaddexp(0, logits).sum(axis=1)
            if is_tagging
            else -np.logaddexp.reduce(logits, axis=1)
        ),
        "nearest class mean": lambda one, _: nearest(one),
    }
    result = {}
    for name, score in scores.items():
        values = {kind: [float(score(*one).mean()) for one in own] for kind, own in found.items()}
        ranked = sorted(values["validation"])
        bound = ranked[-int(-(len(ranked) + 1) * (1 - RATE) // 1) - 1]
        result[name] = {
            kind: float(np.mean([value > bound for value in own]))
            for kind, own in values.items()
            if kind not in ("train", "validation")
        }
    return {
        "num_validation": len(files["validation"]),
        "num_test": len(files["test"]),
        "flagged": result,
    }


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sounds").mkdir()
        others = sounds(folder / "sounds")
        result = {f"{task}, {name}": measure(task, name, others, folder) for task, name in CASES}
    write_json(
        arguments.output,
        {"rate": RATE, "num_sounds": {k: len(v) for k, v in others.items()}, **result},
    )


if __name__ == "__main__":
    main()
