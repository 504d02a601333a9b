"""MTG-Jamendo: whole tracks with the tags of their uploaders, in four tag sets.

Each tag set has its own tracks and its own manifest, all from split-0, the one of published
results, in which no artist is on two sides:

========== ================ ======= ========== ====== ====
tag set    manifest         train   validation test   tags
========== ================ ======= ========== ====== ====
genre      genre.jsonl      32,572  11,043     11,479 87
instrument instrument.jsonl 14,395  5,466      5,115  40
mood/theme moodtheme.jsonl  9,949   3,802      4,231  56
top 50     top50tags.jsonl  32,136  10,888     11,356 50
========== ================ ======= ========== ====== ====

In the first three a tag is named without its category (``rock``, not ``genre---rock``), which all
of them share. The top 50 mix categories, and there the full name is kept (``instrument---piano``).

Source: Bogdanov et al. 2019; the label files and the README of the data set's repository.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, RemoteFile, Row
from m2v_finetune.data.manifest import SPLITS, DatasetInfo
from m2v_finetune.errors import UserError

INFO = DatasetInfo(
    name="mtg-jamendo",
    title="The MTG-Jamendo Dataset",
    licence=(
        "Metadata and tags: CC BY-NC-SA 4.0. Audio: a Creative Commons licence of each track's "
        "own, listed in audio_licenses.txt of the data set."
    ),
    citation="""\
@inproceedings{bogdanov2019mtg,
  title = {The MTG-Jamendo Dataset for Automatic Music Tagging},
  author = {Bogdanov, Dmitry and Won, Minz and Tovstogan, Philip and Porter, Alastair and
            Serra, Xavier},
  booktitle = {Machine Learning for Music Discovery Workshop, International Conference on Machine
               Learning (ICML 2019)},
  address = {Long Beach, CA, United States},
  year = {2019},
  url = {http://hdl.handle.net/10230/42015},
}""",
    homepage="https://mtg.github.io/mtg-jamendo-dataset/",
)

AUDIO_FOLDER = "audio"
HEADER = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]

INSTRUCTIONS = """\
To get the audio of MTG-Jamendo (156 GB in low quality or 508 GB as 320 kbit/s MP3; each track has a
Creative Commons licence of its own), use the downloader of the data set:
  git clone https://github.com/MTG/mtg-jamendo-dataset
  pip install -r mtg-jamendo-dataset/scripts/requirements.txt
  mkdir -p {root}/audio
  python mtg-jamendo-dataset/scripts/download/download.py --dataset raw_30s --type audio-low \\
      --unpack --remove {root}/audio
and run the same command again. `--type audio` is the larger one, and either will do: a track is
{root}/audio/14/214.low.mp3 or {root}/audio/14/214.mp3.
For mood/theme alone, `--dataset autotagging_moodtheme` is enough (46 GB or 152 GB); then continue
without the missing tracks (--on-bad-track skip) and use moodtheme.jsonl only: the other manifests
are not complete."""


@dataclass(frozen=True, kw_only=True)
class TagSet:
    """Tag set, with the counts of its label files.

    Attributes:
        name: Name of the set in its label files.
        prefix: Common start of its tags that the manifest leaves out; may be empty.
        num_tracks: Tracks by split.
        num_tags: Different tags.
    """

    name: str
    prefix: str
    num_tracks: Mapping[str, int]
    num_tags: int

    def label_path(self, split: str) -> str:
        """Return the path of a split's label file, relative to the root."""
        return f"labels/autotagging_{self.name}-{split}.tsv"


# The files have one line more: their header. 87, 40 and 56 tags as in the repository's README.
TAG_SETS = (
    TagSet(
        name="genre",
        prefix="genre---",
        num_tracks={"train": 32_572, "validation": 11_043, "test": 11_479},
        num_tags=87,
    ),
    TagSet(
        name="instrument",
        prefix="instrument---",
        num_tracks={"train": 14_395, "validation": 5_466, "test": 5_115},
        num_tags=40,
    ),
    TagSet(
        name="moodtheme",
        prefix="mood/theme---",
        num_tracks={"train": 9_949, "validation": 3_802, "test": 4_231},
        num_tags=56,
    ),
    TagSet(
        name="top50tags",
        prefix="",
        num_tracks={"train": 32_136, "validation": 10_888, "test": 11_356},
        num_tags=50,
    ),
)

_FOLDER_URL = (
    "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/"
    "1b4fa8c32e076c73b5175c1703ae805b4109309d/data/splits/split-0/"
)
# Not pinned by a sum: the commit in the address names the content, and `rows` checks its counts.
REMOTE_FILES = tuple(
    RemoteFile(
        url=_FOLDER_URL + Path(tag_set.label_path(split)).name,
        path=tag_set.label_path(split),
        sha256=None,
    )
    for tag_set in TAG_SETS
    for split in SPLITS
)


def rows(root: Path, tag_set: TagSet) -> list[Row]:
    """Read the three label files of a tag set into manifest rows, and check their counts.

    Returns:
        Rows of ``id`` (such as ``track_0786434``), ``path`` (``audio/34/786434.mp3``), ``split``,
        ``tags`` (1 or more), ``artist`` and ``album`` (identifiers), in the order of the files.

    Raises:
        UserError: A label file is not as published: its header, its columns, its number of tracks,
            or the number of tags of the set.
    """
    found: list[Row] = []
    for split in SPLITS:
        of_split = _split_rows(root / tag_set.label_path(split), split, tag_set.prefix)
        if len(of_split) != tag_set.num_tracks[split]:
            raise UserError(
                f"{root / tag_set.label_path(split)} lists {len(of_split)} tracks, the published "
                f"file {tag_set.num_tracks[split]}. Delete it, and it is fetched again.",
                code="benchmark-count-mismatch",
            )
        found += of_split
    tags = {tag for row in found for tag in row["tags"]}
    if len(tags) != tag_set.num_tags:
        raise UserError(
            f"{root / 'labels'}: the label files of '{tag_set.name}' name {len(tags)} tags, the "
            f"published ones {tag_set.num_tags}. Delete autotagging_{tag_set.name}-*.tsv there, "
            "and they are fetched again.",
            code="benchmark-count-mismatch",
        )
    return found


def manifests(root: Path, tag_sets: Sequence[TagSet] = TAG_SETS) -> dict[str, list[Row]]:
    """Return the rows of one manifest a tag set, with the path of the audio that is there.

    Where there is only the low bit rate version of a track, the row names that one.

    Raises:
        UserError: Errors of `rows`.
    """
    found = {f"{tag_set.name}.jsonl": rows(root, tag_set) for tag_set in tag_sets}
    for row in (row for of_set in found.values() for row in of_set):
        low = f"{row['path'].removesuffix('.mp3')}.low.mp3"
        if not (root / row["path"]).is_file() and (root / low).is_file():
            row["path"] = low
    return found


def _split_rows(path: Path, split: str, prefix: str) -> list[Row]:
    lines = path.read_text(encoding="utf-8").splitlines()
    advice = "Delete it, and it is fetched again."
    if not lines or lines[0].split("\t") != HEADER:
        raise UserError(
            f"{path} does not start with the columns {', '.join(HEADER)}, so it is not a label file "
            f"of MTG-Jamendo. {advice}",
            code="benchmark-labels-malformed",
        )
    found = []
    for number, line in enumerate(lines[1:], start=2):
        # The last column repeats: every cell from the sixth on is a tag.
        cells = line.split("\t")
        tags = cells[5:]
        if not tags or not all(tag.startswith(prefix) for tag in tags):
            raise UserError(
                f"{path}:{number}: expected five columns and then tags that start with '{prefix}', "
                f"found '{line}'. {advice}",
                code="benchmark-labels-malformed",
            )
        track, artist, album, audio_path = cells[:4]
        found.append(
            {
                "id": track,
                "path": f"{AUDIO_FOLDER}/{audio_path}",
                "split": split,
                "tags": [tag.removeprefix(prefix) for tag in tags],
                "artist": artist,
                "album": album,
            }
        )
    return found


BENCHMARK = Benchmark(
    info=INFO,
    remote_files=REMOTE_FILES,
    instructions=INSTRUCTIONS,
    recipes=("tagging",),
    manifests=manifests,
)
