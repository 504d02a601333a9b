"""Problems of the label files of a row: `Benchmark.check_labels` of the data sets.

Each function takes the root and a row, reads the file or folder that the row names, and returns one
text a problem, with file and line. None is left out.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.data.benchmarks.benchmark import MISSING, Row
from m2v_finetune.errors import AudioError
from m2v_finetune.labels.beats import read_beats
from m2v_finetune.labels.chords import read_lab
from m2v_finetune.labels.notes import PIANO_PITCHES, read_midi
from m2v_finetune.labels.problems import LabelError


def check_beats(root: Path, row: Row) -> list[str]:
    """Return the bad lines of the ``.beats`` file of a row."""
    return _problems(read_beats, root / row["beats"])


def check_chords(root: Path, row: Row) -> list[str]:
    """Return the bad lines of the ``.lab`` file of a row."""
    return _problems(read_lab, root / row["chords"])


def check_notes(root: Path, row: Row) -> list[str]:
    """Return the bad events of the MIDI file of a row, such as a pitch that no piano has."""
    read_piano = partial(read_midi, sustain=True, pitch_range=PIANO_PITCHES)
    return _problems(read_piano, root / row["notes"])


def check_stems(root: Path, row: Row, *, stems: tuple[str, ...], suffix: str = ".wav") -> list[str]:
    """Compare the stems of a row with its mixture.

    Args:
        root: Folder of the data set.
        row: With the mixture as its path.
        stems: Names of the stems that the folder must hold.
        suffix: End of their file names.

    Returns:
        The stems that are missing or damaged, or differ from the mixture in length, rate or channels;
        nothing more than that where the mixture itself cannot be read.
    """
    try:
        mixture = inspect_audio(root / row["path"])
    except AudioError:
        mixture = None  # it is reported as the audio of the row
    problems = []
    for stem in stems:
        path = root / row["stems"] / f"{stem}{suffix}"
        if not path.is_file():
            problems.append(f"{path}: {MISSING}")
            continue
        try:
            info = inspect_audio(path)
        except AudioError as error:
            problems.append(str(error))
            continue
        if mixture is not None and info != mixture:
            problems.append(
                f"{path}: {info.num_frames} frames at {info.sample_rate} Hz, "
                f"{info.num_channels} channels; its mixture has {mixture.num_frames} at "
                f"{mixture.sample_rate} Hz, {mixture.num_channels} channels"
            )
    return problems


def _problems(read: Callable[[Path], object], path: Path) -> list[str]:
    try:
        read(path)
    except LabelError as error:
        return list(error.problems)
    return []
