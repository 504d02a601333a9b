"""Beat annotations of Beat This!, for GTZAN-Rhythm, Ballroom, Hainsworth and SMC.

The annotations of all four come from one archive, CPJKU/beat_this_annotations at one commit: a file
``NAME/annotations/beats/TRACK.beats`` a track, and ``NAME/8-folds.split`` for all but GTZAN. No sum of
the archive is published; the commit in its address pins it, and the counts are checked:

============ ====== ========= ====================================================
data set     tracks downbeats splits
============ ====== ========= ====================================================
gtzan-rhythm 930    yes       fault-filtered, 443 / 197 / 290
ballroom     685    yes       8 folds; 13 of the 698 files are copies of others
hainsworth   222    yes       8 folds
smc          217    no        8 folds
============ ====== ========= ====================================================

Published results are means over eight folds, but for GTZAN (see `gtzan_rhythm`). There are eight
manifests, ``manifest.jsonl`` with fold 0 as the test side and ``fold-1.jsonl`` to ``fold-7.jsonl``. The
folds are the published ones; taking the next fold for validation is this project's own. One manifest
alone is one eighth of the published protocol. Folds separate tracks, not artists.

The audio may be in any folder below the root; it is found by its name. Of two files with one name
the first by path is taken.

Source: CPJKU/beat_this, ``beat_this/dataset/dataset.py`` (layout and use of the folds); Foscarin et
al. 2024 (protocol); the counts 999, 685, 222 and 217 as a reproduction of BeatFM lists them for the same
annotations (Hwang-Tae-Gum/beatFM). Checked against them, not against the archive.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m2v_finetune.data.benchmarks.archives import unpack
from m2v_finetune.data.benchmarks.benchmark import RemoteFile, Row
from m2v_finetune.data.folders import AUDIO_SUFFIXES
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import UserError

COMMIT = "c3c47fd37d3074d9f8119f18bbf460f909609f22"
ARCHIVE = RemoteFile(
    url=f"https://github.com/CPJKU/beat_this_annotations/archive/{COMMIT}.tar.gz",
    path=f"labels/beat_this_annotations-{COMMIT}.tar.gz",
    sha256=None,
)
ARCHIVE_FOLDER = f"beat_this_annotations-{COMMIT}"
LABELS_FOLDER = "labels/beats"
NUM_FOLDS = 8

LICENCE = "Annotations: MIT (CPJKU/beat_this_annotations)."
CITATION = """
@inproceedings{foscarin2024beat,
  title = {Beat This! Accurate Beat Tracking Without {DBN} Postprocessing},
  author = {Foscarin, Francesco and Schl{\\"u}ter, Jan and Widmer, Gerhard},
  booktitle = {Proceedings of the 25th International Society for Music Information Retrieval
               Conference (ISMIR)},
  address = {San Francisco, CA, United States},
  year = {2024},
}
@inproceedings{bock2019multi,
  title = {Multi-Task Learning of Tempo and Beat: Learning One to Improve the Other},
  author = {B{\\"o}ck, Sebastian and Davies, Matthew E. P. and Knees, Peter},
  booktitle = {Proceedings of the 20th International Society for Music Information Retrieval
               Conference (ISMIR)},
  address = {Delft, The Netherlands},
  year = {2019},
}"""
HOMEPAGE = "https://github.com/CPJKU/beat_this_annotations"


@dataclass(frozen=True, kw_only=True)
class FoldedSet:
    """Data set with eight published folds.

    Attributes:
        name: Its folder in the annotations, and the name of the benchmark.
        num_tracks: Tracks in all folds.
        audio_name: Function from the name of an annotation to that of its audio, both without suffix.
    """

    name: str
    num_tracks: int
    audio_name: Callable[[str], str]


def folded_manifests(root: Path, folded: FoldedSet) -> dict[str, list[Row]]:
    """Return the rows of eight manifests, each with another fold as its test side.

    Raises:
        UserError: The folds are not as published, or a track has no annotation.
    """
    folder = unpack_annotations(root, folded.name)
    fold_of = read_folds(root / folder / "8-folds.split", num_tracks=folded.num_tracks)
    audio = _audio_by_name(root)
    rows = []
    for track in fold_of:
        name = folded.audio_name(track)
        # Some collections of these data sets name the audio as the annotation.
        here = (audio[key] for key in (name.lower(), track.lower()) if key in audio)
        rows.append(
            {
                "id": track,
                "path": next(here, f"audio/{name}.wav"),
                "beats": f"{folder}/annotations/beats/{track}.beats",
            }
        )
    require_annotations(root, rows)
    return {
        f"fold-{fold}.jsonl" if fold else "manifest.jsonl": [
            {**row, "split": _split(fold_of[row["id"]], test_fold=fold)} for row in rows
        ]
        for fold in range(NUM_FOLDS)
    }


def read_folds(path: Path, *, num_tracks: int) -> dict[str, int]:
    """Read the folds of a data set: a line a track, its name and its fold with a tab between.

    Returns:
        The fold, from 0 to 7, of each track, in the order of the file.

    Raises:
        UserError: The file is missing, has another line, a track twice or another number of tracks.
    """
    advice = f"Delete {path.parent}, and it is unpacked again."
    if not path.is_file():
        raise UserError(f"{path} is missing. {advice}", code="benchmark-labels-missing")
    folds: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        track, _, fold = line.partition("\t")
        if not track or track in folds or fold not in map(str, range(NUM_FOLDS)):
            raise UserError(
                f"{path}:{number}: expected a new track, a tab and a fold from 0 to 7, found "
                f"'{line}'. {advice}",
                code="benchmark-labels-malformed",
            )
        folds[track] = int(fold)
    if len(folds) != num_tracks:
        raise UserError(
            f"{path} lists {len(folds)} tracks, the published file {num_tracks}. {advice}",
            code="benchmark-count-mismatch",
        )
    return folds


def unpack_annotations(root: Path, name: str) -> str:
    """Unpack the annotations of a data set; return their folder, relative to the root."""
    folder = f"{LABELS_FOLDER}/{name}"
    unpack(root / ARCHIVE.path, root / folder, inside=f"{ARCHIVE_FOLDER}/{name}")
    return folder


def require_annotations(root: Path, rows: list[Row]) -> None:
    """Check that every row has its file of beats.

    Raises:
        UserError: Files are missing; all are listed.
    """
    missing = [row["beats"] for row in rows if not (root / row["beats"]).is_file()]
    if missing:
        raise UserError(
            problem_list(
                f"Annotations are missing in {root}",
                missing,
                f"Delete {root / LABELS_FOLDER}, and they are unpacked again.",
            ),
            code="benchmark-labels-missing",
        )


def _split(fold: int, *, test_fold: int) -> str:
    sides = {test_fold: "test", (test_fold + 1) % NUM_FOLDS: "validation"}
    return sides.get(fold, "train")


def _audio_by_name(root: Path) -> dict[str, str]:
    """Return the audio files below a root, relative to it, by their names without suffix."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix.lower() in AUDIO_SUFFIXES and not file.startswith("."):
                found.setdefault(path.stem.lower(), path.relative_to(root).as_posix())
    return found
