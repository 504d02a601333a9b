"""GTZAN-Rhythm, Ballroom, Hainsworth and SMC, by the beat annotations of Beat This!.

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

GTZAN: models of beat tracking are trained on other data and tested on all 999 annotated tracks. Here
it has the fault-filtered split of `gtzan`, as frozen probes need one of its own: MARBLE fetches these
lists and the rhythm annotations in one script. So 69 annotated tracks are in no split, and numbers are
comparable with those of MARBLE and MERT, not with those of beat trackers.

The others: published results are means over eight folds. There are eight manifests, ``manifest.jsonl``
with fold 0 as the test side and ``fold-1.jsonl`` to ``fold-7.jsonl``. The folds are the published
ones; taking the next fold for validation is this project's own. One manifest alone is one eighth of
the published protocol. Folds separate tracks, not artists.

The audio may be in any folder below the root; it is found by its name. Of two files with one name
the first by path is taken.

Source: CPJKU/beat_this, ``beat_this/dataset/dataset.py`` (layout and use of the folds); Foscarin et
al. 2024 (protocol); the download script for GTZAN of a43992899/MARBLE-Benchmark; the counts 999, 685,
222 and 217 as a reproduction of BeatFM lists them for the same annotations (Hwang-Tae-Gum/beatFM).
Checked against them, not against the archive.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from m2v_finetune.data.benchmarks import gtzan
from m2v_finetune.data.benchmarks.label_checks import check_beats
from m2v_finetune.data.benchmarks.prepare import Benchmark, RemoteFile, Row, unpack
from m2v_finetune.data.folders import AUDIO_SUFFIXES
from m2v_finetune.data.manifest import DatasetInfo, problem_list
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

_ANNOTATIONS = "Annotations: MIT (CPJKU/beat_this_annotations)."
_BEAT_THIS = """
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
_HOMEPAGE = "https://github.com/CPJKU/beat_this_annotations"


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


# Audio as its owners name it: Albums-Macumba-01.wav, 001.wav, SMC_001.wav.
BALLROOM = FoldedSet(
    name="ballroom", num_tracks=685, audio_name=lambda track: track.removeprefix("ballroom_")
)
HAINSWORTH = FoldedSet(
    name="hainsworth", num_tracks=222, audio_name=lambda track: track.removeprefix("hainsworth_")
)
SMC = FoldedSet(name="smc", num_tracks=217, audio_name=lambda track: track)


def gtzan_manifests(root: Path, counts: Mapping[str, int] = gtzan.COUNTS) -> dict[str, list[Row]]:
    """Return the rows of the one manifest: those of `gtzan` with ``beats`` in place of ``genre``.

    Args:
        root: Folder of the data set; ``genres`` in it may be shared with `gtzan`.
        counts: Tracks that each split must have.

    Raises:
        UserError: The lists do not have the published counts, or a track has no annotation.
    """
    folder = _unpacked(root, "gtzan")
    found = []
    for row in gtzan.rows(root, counts):
        track = f"gtzan_{row['id'].replace('.', '_')}"
        found.append(
            {
                "id": row["id"],
                "path": row["path"],
                "split": row["split"],
                "beats": f"{folder}/annotations/beats/{track}.beats",
            }
        )
    _require_annotations(root, found)
    return {"manifest.jsonl": found}


def folded_manifests(root: Path, folded: FoldedSet) -> dict[str, list[Row]]:
    """Return the rows of eight manifests, each with another fold as its test side.

    Raises:
        UserError: The folds are not as published, or a track has no annotation.
    """
    folder = _unpacked(root, folded.name)
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
    _require_annotations(root, rows)
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


def _split(fold: int, *, test_fold: int) -> str:
    sides = {test_fold: "test", (test_fold + 1) % NUM_FOLDS: "validation"}
    return sides.get(fold, "train")


def _unpacked(root: Path, name: str) -> str:
    """Unpack the annotations of a data set; return their folder, relative to the root."""
    folder = f"{LABELS_FOLDER}/{name}"
    unpack(root / ARCHIVE.path, root / folder, inside=f"{ARCHIVE_FOLDER}/{name}")
    return folder


def _require_annotations(root: Path, rows: list[Row]) -> None:
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


BENCHMARKS = (
    Benchmark(
        info=DatasetInfo(
            name="gtzan-rhythm",
            title="GTZAN-Rhythm, fault-filtered",
            licence=f"{_ANNOTATIONS} Audio: {gtzan.INFO.licence}",
            citation="""\
@inproceedings{marchand2015gtzan,
  title = {{GTZAN-Rhythm}: Extending the {GTZAN} Test-Set with Beat, Downbeat and Swing Annotations},
  author = {Marchand, Ugo and Fresnel, Quentin and Peeters, Geoffroy},
  booktitle = {Extended abstracts for the Late-Breaking Demo Session of the 16th International
               Society for Music Information Retrieval Conference (ISMIR)},
  address = {Malaga, Spain},
  year = {2015},
}
"""
            + gtzan.INFO.citation
            + _BEAT_THIS,
            homepage=_HOMEPAGE,
        ),
        remote_files=(ARCHIVE, gtzan.LABELS),
        instructions=gtzan.INSTRUCTIONS
        + "\nA folder genres that was made for the data set gtzan will do: link it into {root}.",
        recipes=("beats",),
        manifests=gtzan_manifests,
        check_labels=check_beats,
    ),
    Benchmark(
        info=DatasetInfo(
            name=BALLROOM.name,
            title="Ballroom",
            licence=(
                f"{_ANNOTATIONS} Audio: none stated; 30-second excerpts that the organisers of the "
                "ISMIR 2004 tempo contest distribute for research."
            ),
            citation="""\
@article{gouyon2006experimental,
  title = {An Experimental Comparison of Audio Tempo Induction Algorithms},
  author = {Gouyon, Fabien and Klapuri, Anssi and Dixon, Simon and Alonso, Miguel and
            Tzanetakis, George and Uhle, Christian and Cano, Pedro},
  journal = {IEEE Transactions on Audio, Speech, and Language Processing},
  volume = {14},
  number = {5},
  pages = {1832--1844},
  year = {2006},
}
@inproceedings{krebs2013rhythmic,
  title = {Rhythmic Pattern Modeling for Beat and Downbeat Tracking in Musical Audio},
  author = {Krebs, Florian and B{\\"o}ck, Sebastian and Widmer, Gerhard},
  booktitle = {Proceedings of the 14th International Society for Music Information Retrieval
               Conference (ISMIR)},
  address = {Curitiba, Brazil},
  year = {2013},
}"""
            + _BEAT_THIS,
            homepage=_HOMEPAGE,
        ),
        remote_files=(ARCHIVE,),
        instructions="""\
To get the audio of Ballroom (1.5 GB, 698 excerpts of 30 s), download and unpack one archive:
  https://mtg.upf.edu/ismir2004/contest/tempoContest/data1.tar.gz
    md5 2872a3e52070bc342a4510a95e2fa0b8
  tar -xzf data1.tar.gz -C {root}
The excerpts are then in {root}/BallroomData/ChaChaCha/ and so on (any folder below {root} will do;
13 copies among them are not used). Run the same command again.""",
        recipes=("beats",),
        manifests=partial(folded_manifests, folded=BALLROOM),
        check_labels=check_beats,
    ),
    Benchmark(
        info=DatasetInfo(
            name=HAINSWORTH.name,
            title="Hainsworth",
            licence=f"{_ANNOTATIONS} Audio: excerpts of commercial recordings, not distributed.",
            citation="""\
@article{hainsworth2004particle,
  title = {Particle Filtering Applied to Musical Tempo Tracking},
  author = {Hainsworth, Stephen W. and Macleod, Malcolm D.},
  journal = {EURASIP Journal on Applied Signal Processing},
  volume = {2004},
  number = {15},
  pages = {2385--2395},
  year = {2004},
  doi = {10.1155/S1110865704408099},
}"""
            + _BEAT_THIS,
            homepage=_HOMEPAGE,
        ),
        remote_files=(ARCHIVE,),
        instructions="""\
The audio of Hainsworth (222 excerpts of about a minute) is not public; laboratories that work on beat
tracking pass it on. Put the excerpts into any folder below {root}, with the numbers of the annotations
as their names, such as {root}/audio/001.wav or {root}/audio/hainsworth_001.wav (the names are those in
{root}/labels/beats/hainsworth/annotations/beats), and run the same command again.""",
        recipes=("beats",),
        manifests=partial(folded_manifests, folded=HAINSWORTH),
        check_labels=check_beats,
    ),
    Benchmark(
        info=DatasetInfo(
            name=SMC.name,
            title="SMC MIREX",
            licence=f"{_ANNOTATIONS} Audio: none stated; distributed by its authors for research.",
            citation="""\
@article{holzapfel2012selective,
  title = {Selective Sampling for Beat Tracking Evaluation},
  author = {Holzapfel, Andre and Davies, Matthew E. P. and Zapata, Jos{\\'e} R. and
            Oliveira, Jo{\\~a}o Lobato and Gouyon, Fabien},
  journal = {IEEE Transactions on Audio, Speech, and Language Processing},
  volume = {20},
  number = {9},
  pages = {2539--2548},
  year = {2012},
  doi = {10.1109/TASL.2012.2205244},
}"""
            + _BEAT_THIS,
            homepage=_HOMEPAGE,
        ),
        remote_files=(ARCHIVE,),
        instructions="""\
To get the audio of SMC (217 excerpts of 40 s), download SMC_MIREX.zip. Its published address is
  http://smc.inescporto.pt/data/SMC_MIREX.zip
which may be offline; write to its authors, or look for a copy at their laboratories. Then:
  unzip SMC_MIREX.zip -d {root}
The excerpts are then in {root}/SMC_MIREX/SMC_MIREX_Audio/SMC_001.wav and so on (any folder below
{root} will do). Run the same command again.""",
        recipes=("beats",),
        manifests=partial(folded_manifests, folded=SMC),
        check_labels=check_beats,
    ),
)
