"""GTZAN: 30-second clips of ten genres, 100 each, by the fault-filtered split of 930 clips.

The split (443 / 197 / 290) leaves out 70 clips, replicas and distorted ones, and was made by hand so
that no artist is on two sides. Numbers by a random split are not comparable: GTZAN has 50 exact
replicas, and up to 35 clips of one artist in a genre.

The clip jazz.00054 belongs to the training side. In the copy of the data set on Kaggle this file is
damaged; the original archive has it undamaged. Training without it uses on 442 clips.

Source: Tzanetakis and Cook 2002 (the data); Sturm 2012, "An Analysis of the GTZAN Music Genre
Dataset" (its faults); Kereliuk et al. 2015 (the split); jukemir (the label file and the sum of the
archive).
"""

from collections.abc import Mapping
from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row, require_counts
from m2v_finetune.data.benchmarks.jukemir import SPLITS, label_file, read_labels
from m2v_finetune.data.manifest import DatasetInfo

INFO = DatasetInfo(
    name="gtzan",
    title="GTZAN Genre Collection, fault-filtered",
    licence=(
        "None stated: 30-second clips of commercial recordings, gathered for research without titles "
        "or permissions."
    ),
    citation="""\
@article{tzanetakis2002musical,
  title = {Musical Genre Classification of Audio Signals},
  author = {Tzanetakis, George and Cook, Perry},
  journal = {IEEE Transactions on Speech and Audio Processing},
  volume = {10},
  number = {5},
  pages = {293--302},
  year = {2002},
}
@article{kereliuk2015deep,
  title = {Deep Learning and Music Adversaries},
  author = {Kereliuk, Corey and Sturm, Bob L. and Larsen, Jan},
  journal = {IEEE Transactions on Multimedia},
  volume = {17},
  number = {11},
  pages = {2059--2071},
  year = {2015},
}""",
    homepage="http://marsyas.info/downloads/datasets.html",
)

LABELS = label_file(
    "gtzan_ff", sha256="e67631b455d25bd2be033c4f082bad124fe21153573df2f2d4910abaa9c5e872"
)
COUNTS = {"train": 443, "validation": 197, "test": 290}
SUFFIXES = (".wav", ".au")

INSTRUCTIONS = """\
To get the audio of GTZAN (about 1.2 GB; no licence is stated, so it is for research):
  1. Download the archive genres.tar.gz. Its address in publications is offline:
       http://opihi.cs.uvic.ca/sound/genres.tar.gz
         sha256 24347e0223d2ba798e0a558c4c172d9d4a19c00bb7963fe055d183dadb4ef2c6
     A copy is on Kaggle:
       https://www.kaggle.com/datasets/andradaolteanu/gtzan-dataset-music-genre-classification
     It names the folder genres_original, which has to be renamed to genres, and its
     jazz.00054.wav is damaged; that clip is in the training split.
  2. Unpack it so that the clips are in
       {root}/genres/blues/blues.00000.wav
     and so on for ten genres. Files that end in .au, as in older archives, will do as well.
  3. Run the same command again (with --on-bad-track skip, if jazz.00054 is all that is bad)."""


def rows(root: Path, counts: Mapping[str, int] = COUNTS) -> list[Row]:
    """Read the label file into manifest rows.

    Args:
        root: Folder of the data set.
        counts: Clips that each split must have.

    Returns:
        Rows of ``id`` (such as ``blues.00000``), ``path`` (``genres/blues/blues.00000.wav``, or
        ``.au`` where only that is there), ``split``, ``genre`` and ``clips`` (jukemir's name of the clip),
        in the order of the file.

    Raises:
        UserError: The label file does not have the published counts.
    """
    found = []
    for uid, clip in read_labels(root, LABELS).items():
        name, genre = clip["extra"]["id"], clip["y"]
        paths = [f"genres/{genre}/{name}{suffix}" for suffix in SUFFIXES]
        found.append(
            {
                "id": name,
                "path": next((path for path in paths if (root / path).is_file()), paths[0]),
                "split": SPLITS[clip["split"]],
                "genre": genre,
                "clips": [uid],
            }
        )
    require_counts(found, counts, source=root / LABELS.path)
    return found


def manifests(root: Path, counts: Mapping[str, int] = COUNTS) -> dict[str, list[Row]]:
    """Return the rows of the one manifest.

    Raises:
        UserError: Errors of `rows`.
    """
    return {"manifest.jsonl": rows(root, counts)}


BENCHMARK = Benchmark(
    info=INFO,
    remote_files=(LABELS,),
    instructions=INSTRUCTIONS,
    recipes=("genre",),
    manifests=manifests,
)
