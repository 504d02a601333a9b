"""MagnaTagATune: 29-second clips with the 50 most frequent tags of a listening game.

The split is the usual one, by the folder of the clip: 0 to b for training, c for validation, d to f
for test (12:1:3). It separates albums, but not artists: 56 of 230 are on more than one side.

All 25,860 clips of the split are kept (18,706 / 1,825 / 5,329). Of them 4,752 have none of the 50
tags; they count as negatives of every tag. With a tag there are 15,247 / 1,529 / 4,332. The archive
holds 25,863 files; three of them, the clips 35644, 55753 and 57881, have no content and are in no
split.

Source: Law et al. 2009 (the data); Castellon et al. 2021, "Codified audio language modeling learns
useful representations for music information retrieval" (the label file and sums of the archives).
"""

from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row
from m2v_finetune.data.benchmarks.jukemir import SPLITS, label_file, read_labels
from m2v_finetune.data.manifest import DatasetInfo

INFO = DatasetInfo(
    name="magnatagatune",
    title="MagnaTagATune",
    licence="CC-BY-NC-SA-3.0",
    citation="""\
@inproceedings{law2009evaluation,
  title = {Evaluation of Algorithms Using Games: The Case of Music Tagging},
  author = {Law, Edith and West, Kris and Mandel, Michael I. and Bay, Mert and Downie, J. Stephen},
  booktitle = {Proceedings of the 10th International Society for Music Information Retrieval
               Conference (ISMIR)},
  pages = {387--392},
  year = {2009},
}""",
    homepage="https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
)

LABELS = label_file(
    "magnatagatune", sha256="9bab4d673c60a41ae75ed0f10a743d7a475d760c9d35b30c7b90e6a8c09501e0"
)
REMOTE_FILES = (LABELS,)

INSTRUCTIONS = """\
To get the audio of MagnaTagATune (about 3 GB, CC BY-NC-SA 3.0 by Magnatune):
  1. Download the three parts of one archive:
       https://mirg.city.ac.uk/datasets/magnatagatune/mp3.zip.001
         sha256 f857fe185968773058cc71662c2ef5d8f2d4b7338e3c122cfd52f82dcb9760b9
       https://mirg.city.ac.uk/datasets/magnatagatune/mp3.zip.002
         sha256 fc2e1ec441755556ed1398b1808f1b08b6034372f8bc27394510c0c58cdb52ce
       https://mirg.city.ac.uk/datasets/magnatagatune/mp3.zip.003
         sha256 83a689824c17e82f6eb81cdbc4e4ca239a4cfc1fb41f1a5c80b861caec90450f
     (they are announced at https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset)
  2. Join and unpack them:
       cat mp3.zip.001 mp3.zip.002 mp3.zip.003 > mp3.zip
       unzip mp3.zip -d {root}/mp3
     The clips are then in {root}/mp3/0 to {root}/mp3/f.
  3. Run the same command again.
Three files of the archive have no content. They are in no split and need no repair."""


def rows(root: Path) -> list[Row]:
    """Read the label file into manifest rows.

    Returns:
        25,860 rows of ``id`` (the clip's number), ``path`` (``mp3/f/....mp3``), ``split``, ``tags``
        (0 or more of the 50), ``artist``, ``album`` and ``clips`` (jukemir's name of the clip), in the order
        of the file.
    """
    return [
        {
            "id": clip["extra"]["clip_id"],
            "path": f"mp3/{clip['extra']['mp3_path']}",
            "split": SPLITS[clip["split"]],
            "tags": clip["y"],
            "artist": clip["extra"]["artist"],
            "album": clip["extra"]["album"],
            "clips": [uid],
        }
        for uid, clip in read_labels(root, LABELS).items()
        if clip["split"] is not None
    ]


def manifests(root: Path) -> dict[str, list[Row]]:
    """Return the rows of the one manifest."""
    return {"manifest.jsonl": rows(root)}


BENCHMARK = Benchmark(
    info=INFO,
    remote_files=REMOTE_FILES,
    instructions=INSTRUCTIONS,
    recipes=("tagging",),
    manifests=manifests,
)
