"""EmoMusic: 744 clips of 45 seconds with the mean arousal and valence that listeners gave them.

Both columns are in the data set's own unit: the mean, over ten or more listeners, of ratings of the
whole clip on nine points, 1 (low) to 9 (high). The means are between 1.6 and
8.4. The label file also holds them standardised by mean and deviation of its 619 development clips;
those are not used here, and R2 is the same in both units.

The split (504 / 115 / 125) has the evaluation set of MediaEval 2013 as its test side. The development
set is divided by artist, so none is in training and validation; the official evaluation set was not
made so, and 52 of its 112 artists are also on another side.

Source: Soleymani et al. 2013 (the data); jukemir (the label file, the division of the development set,
and the sum of the archive).
"""

from collections.abc import Mapping
from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row, require_counts
from m2v_finetune.data.benchmarks.jukemir import SPLITS, label_file, read_labels
from m2v_finetune.data.manifest import DatasetInfo

INFO = DatasetInfo(
    name="emomusic",
    title="EmoMusic (1000 Songs, MediaEval 2013)",
    licence=(
        "Music: Creative Commons licences of each track's own, from the Free Music Archive. Ratings: "
        "the terms on the homepage."
    ),
    citation="""\
@inproceedings{soleymani20131000,
  title = {1000 Songs for Emotional Analysis of Music},
  author = {Soleymani, Mohammad and Caro, Micheal N. and Schmidt, Erik M. and Sha, Cheng-Ya and
            Yang, Yi-Hsuan},
  booktitle = {Proceedings of the 2nd ACM International Workshop on Crowdsourcing for Multimedia
               (CrowdMM)},
  pages = {1--6},
  year = {2013},
}""",
    homepage="https://cvml.unige.ch/databases/emoMusic/",
)

LABELS = label_file(
    "emomusic", sha256="4a3e5e1fb94f7f08d4dc8fb14ca323596ac0d4a1ce503d595102f50165966fa0"
)
COUNTS = {"train": 504, "validation": 115, "test": 125}

INSTRUCTIONS = """\
To get the audio of EmoMusic (Creative Commons licences of each track's own):
  1. Read the terms at https://cvml.unige.ch/databases/emoMusic/ and request access there if the
     archive is not open. It was at
       http://cvml.unige.ch/databases/emoMusic/clips_45sec.tar.gz
         sha256 3994a5d5fefc27f9540d1a69cd7f1294c68e6cb311ce49765021e2e9c7a1057b
  2. Unpack it:
       tar -xzf clips_45sec.tar.gz -C {root}
     The clips are then in {root}/clips_45seconds, such as 2.mp3.
  3. Run the same command again."""


def rows(root: Path, counts: Mapping[str, int] = COUNTS) -> list[Row]:
    """Read the label file into manifest rows.

    Args:
        root: Folder of the data set.
        counts: Clips that each split must have.

    Returns:
        Rows of ``id`` (such as ``2``), ``path`` (``clips_45seconds/2.mp3``), ``split``, ``arousal``
        and ``valence`` (1 to 9), ``artist`` and ``clips`` (jukemir's name of the clip), in the order of
        the file.

    Raises:
        UserError: The label file does not have the published counts.
    """
    found = []
    for uid, clip in read_labels(root, LABELS).items():
        song, ratings = clip["extra"]["songs_info"], clip["extra"]["static_annotations"]
        found.append(
            {
                "id": song["song_id"],
                "path": f"clips_45seconds/{song['file_name']}",
                "split": SPLITS[clip["split"]],
                "arousal": float(ratings["mean_arousal"]),
                "valence": float(ratings["mean_valence"]),
                "artist": song["Artist"],
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
    recipes=("emotion",),
    manifests=manifests,
)
