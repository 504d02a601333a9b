"""NSynth: single notes of four seconds, by instrument, pitch and velocity.

The split is the official one (289,205 / 12,678 / 4,096). No instrument of the training side is on
another. There are 11 instrument families: bass, brass, flute, guitar, keyboard, mallet, organ, reed,
string, synth_lead, vocal. By the accounts below the test side has ten of them, all but synth_lead, so
that a mean over classes there is one over ten; this was not checked in the archives, and of the
validation side nothing is known to this project. Most pitches are between 21 and 108, the keys of a
piano; some notes are below and above, from 9 to 120.

The labels are in the archives beside the audio, so nothing is fetched.

Known faults, which are kept as published: all notes of brass_acoustic_046 from 84 up, 71 of the test
side, are noise (magenta/magenta issue 2092), and a few test notes have the same content.

Source: Engel et al. 2017 and the data set's page; TensorFlow Datasets, ``nsynth`` (the sides share no
instrument with training); magenta/magenta issue 1143 and MARBLE's NSynthP_dataset.py (pitches);
embeddings-benchmark/mteb pull request 5111 (families of the test side, in a set derived from it).
"""

import json
from collections.abc import Mapping
from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row, require_counts
from m2v_finetune.data.manifest import DatasetInfo, problem_list
from m2v_finetune.errors import UserError

INFO = DatasetInfo(
    name="nsynth",
    title="The NSynth Dataset",
    licence="CC-BY-4.0",
    citation="""\
@inproceedings{engel2017neural,
  title = {Neural Audio Synthesis of Musical Notes with {WaveNet} Autoencoders},
  author = {Engel, Jesse and Resnick, Cinjon and Roberts, Adam and Dieleman, Sander and
            Norouzi, Mohammad and Eck, Douglas and Simonyan, Karen},
  booktitle = {Proceedings of the 34th International Conference on Machine Learning (ICML)},
  pages = {1068--1077},
  year = {2017},
}""",
    homepage="https://magenta.tensorflow.org/datasets/nsynth",
)

# The archives use `valid`.
FOLDERS = {"train": "nsynth-train", "validation": "nsynth-valid", "test": "nsynth-test"}
COUNTS = {"train": 289_205, "validation": 12_678, "test": 4_096}

INSTRUCTIONS = """\
To get NSynth (about 25 GB, CC BY 4.0), download the three archives of JSON and WAV:
  http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-train.jsonwav.tar.gz
  http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-valid.jsonwav.tar.gz
  http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-test.jsonwav.tar.gz
(they are announced at https://magenta.tensorflow.org/datasets/nsynth) and unpack them:
  mkdir -p {root}
  for part in train valid test; do tar -xzf nsynth-$part.jsonwav.tar.gz -C {root}; done
There are then {root}/nsynth-train/examples.json, {root}/nsynth-train/audio, and the same for
nsynth-valid and nsynth-test. Run the same command again."""


def rows(root: Path, counts: Mapping[str, int] = COUNTS) -> list[Row]:
    """Read the three ``examples.json`` of the archives into manifest rows.

    Args:
        root: Folder of the data set.
        counts: Notes that each split must have.

    Returns:
        Rows of ``id`` (such as ``bass_synthetic_009-010-025``: instrument, pitch, velocity), ``path``
        (``nsynth-test/audio/bass_synthetic_009-010-025.wav``), ``split``, ``instrument`` (family) and
        ``pitch`` (MIDI number).

    Raises:
        UserError: A label file is missing or not JSON, or has not the published count.
    """
    files = {split: root / folder / "examples.json" for split, folder in FOLDERS.items()}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(
            problem_list(
                "Label files of NSynth are missing", missing, INSTRUCTIONS.format(root=root)
            ),
            code="benchmark-labels-missing",
        )
    found = []
    for split, path in files.items():
        try:
            notes = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(
                f"{path} is not JSON ({error}). Unpack its archive again.",
                code="benchmark-labels-malformed",
            ) from error
        found += [
            {
                "id": name,
                "path": f"{FOLDERS[split]}/audio/{name}.wav",
                "split": split,
                "instrument": note["instrument_family_str"],
                "pitch": note["pitch"],
            }
            for name, note in notes.items()
        ]
    require_counts(found, counts, source=root, advice="Unpack the archives again.")
    return found


def manifests(root: Path, counts: Mapping[str, int] = COUNTS) -> dict[str, list[Row]]:
    """Return the rows of the one manifest, which serves both tasks.

    Raises:
        UserError: Errors of `rows`.
    """
    return {"manifest.jsonl": rows(root, counts)}


BENCHMARK = Benchmark(
    info=INFO,
    remote_files=(),
    instructions=INSTRUCTIONS,
    recipes=("instrument", "pitch"),
    manifests=manifests,
)
