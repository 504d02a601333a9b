"""GiantSteps: two-minute previews of electronic dance music with the key of each track.

Training and validation (923 / 236) are GiantSteps-MTG-Keys, the test (604) is GiantSteps-Key, two data
sets with keys of different origin. Of the 1,486 tracks of GiantSteps-MTG-Keys the 1,159 with one key
and the highest confidence are used. No artist is in both training and validation; the artists of the
test are not published.

The label file lists each track in pieces of 30 seconds (3,687 / 942 / 2,406) that share its key. A
track here is the whole preview, and is scored as one.

Keys are spelled as in the label file, with flats: ``Db minor``, never C# minor. Genres are kept as the
two data sets spell them, which is not alike (``progressive house`` and ``progressive-house``).

Source: Knees et al. 2015 (GiantSteps-Key); Faraldo et al. 2017 (GiantSteps-MTG-Keys); Korzeniowski and
Widmer 2018, "Genre-Agnostic Key Classification With Convolutional Neural Networks" (the tracks used);
jukemir (the label file and the division by artist).
"""

from collections.abc import Mapping
from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row, require_counts
from m2v_finetune.data.benchmarks.jukemir import SPLITS, label_file, read_labels
from m2v_finetune.data.manifest import DatasetInfo, problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.labels.keys import parse_key

INFO = DatasetInfo(
    name="giantsteps",
    title="GiantSteps-MTG-Keys and GiantSteps-Key",
    licence=(
        "None stated for the annotations. Audio: previews of commercial tracks from Beatport, property "
        "of their owners."
    ),
    citation="""\
@inproceedings{knees2015two,
  title = {Two Data Sets for Tempo Estimation and Key Detection in Electronic Dance Music Annotated
           from User Corrections},
  author = {Knees, Peter and Faraldo, {\\'A}ngel and Herrera, Perfecto and Vogl, Richard and
            B{\\"o}ck, Sebastian and H{\\"o}rschl{\\"a}ger, Florian and Le Goff, Mickael},
  booktitle = {Proceedings of the 16th International Society for Music Information Retrieval
               Conference (ISMIR)},
  pages = {364--370},
  year = {2015},
}
@inproceedings{faraldo2017multi,
  title = {A Multi-Profile Method for Key Estimation in {EDM}},
  author = {Faraldo, {\\'A}ngel and Jord{\\`a}, Sergi and Herrera, Perfecto},
  booktitle = {Proceedings of the AES International Conference on Semantic Audio},
  year = {2017},
}""",
    homepage="https://www.cp.jku.at/datasets/giantsteps/",
)

LABELS = label_file(
    "giantsteps_clips", sha256="16d864c3a32f0c6e2547780c11bd70672045b48df57315cfa1ae6ccda1da5aab"
)
COUNTS = {"train": 923, "validation": 236, "test": 604}

INSTRUCTIONS = """\
To get the audio of GiantSteps (previews by Beatport as MP3, about 3 GB for both sets), use the
downloaders of the two data sets, which check the MD5 of every file:
  git clone https://github.com/GiantSteps/giantsteps-mtg-key-dataset
  git clone https://github.com/GiantSteps/giantsteps-key-dataset
  sed -i 's#http://www.cp.jku.at#https://www.cp.jku.at#' giantsteps-*/audio_dl.sh
  (cd giantsteps-mtg-key-dataset && bash audio_dl.sh)
  (cd giantsteps-key-dataset && bash audio_dl.sh)
  mkdir -p {root}/audio
  mv giantsteps-mtg-key-dataset/audio/*.mp3 giantsteps-key-dataset/audio/*.mp3 {root}/audio/
and run the same command again. A track is {root}/audio/5061.LOFI.mp3; a name with leading
zeros (0005061.LOFI.mp3) will do as well.
What is uncertain: Beatport's own addresses are offline, so everything comes from the mirror at
https://www.cp.jku.at/datasets/giantsteps/ (folders backup and mtg_key_backup), which may lack a file.
The line with sed is for the mirror, which wants https; the second downloader has that already since
March 2025. Of 1,486 files of the first set 1,159 are used; the others do no harm."""


def rows(root: Path, counts: Mapping[str, int] = COUNTS) -> list[Row]:
    """Read the label file into manifest rows, one a track.

    Args:
        root: Folder of the data set.
        counts: Tracks that each split must have.

    Returns:
        Rows of ``id`` (such as ``5061``), ``path`` (``audio/5061.LOFI.mp3``, or with leading zeros
        where only that is there), ``split``, ``key`` (such as ``Eb minor``), ``genre``, ``clips`` (jukemir's
        names of its pieces), and ``artist`` where it is known (not for the test), in the order of the file.

    Raises:
        UserError: The label file does not have the published counts, or a key that is none of the 24.
    """
    found = []
    uids: dict[int, list[str]] = {}
    for uid, clip in read_labels(root, LABELS).items():
        uids.setdefault(clip["extra"]["id"], []).append(uid)
        if clip["clip"]["clip_idx"] > 0:
            continue
        extra = clip["extra"]
        paths = [f"audio/{name}.LOFI.mp3" for name in (extra["id"], f"{extra['id']:07d}")]
        row = {
            "id": str(extra["id"]),
            "path": next((path for path in paths if (root / path).is_file()), paths[0]),
            "split": SPLITS[clip["split"]],
            "key": clip["y"],
            "genre": extra["genre"].strip(),
            "clips": uids[extra["id"]],  # and those that follow
        }
        if "beatport_metadata" in extra:
            row["artist"] = extra["beatport_metadata"]["ARTIST"]
        found.append(row)
    require_counts(found, counts, source=root / LABELS.path)
    wrong = []
    for row in found:
        try:
            parse_key(row["key"])
        except ValueError as error:
            wrong.append(f"track {row['id']}: {error}")
    if wrong:
        raise UserError(
            problem_list(
                f"{root / LABELS.path} has keys that are none",
                wrong,
                "Delete the file, and it is fetched again.",
            ),
            code="benchmark-labels-malformed",
        )
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
    recipes=("key",),
    manifests=manifests,
)
