"""McGill Billboard 2.0: chords of songs of the American charts from 1958 to 1991.

The data set samples 1,300 slots of the charts; 890 of them are annotated, which are 740 different
songs, since some songs were in more than one slot. A song is one track here, with the annotation of
one of its slots.

Chords are those of ``full.lab``, as the annotators wrote them. Reducing them to major and minor is
left to the task, which also leaves out chords without such a class.

**The sides are not those of published results.** The test side is every song with a slot above 1,000,
which are the songs that MIREX 2012 tested on and the only published division. The rest is divided
by a hash of the artist, about one in ten for validation; this is the project's own. A song is on one
side only, an artist may have other songs in the test.

The audio is not distributed, so you need your own.

Source: Burgoyne et al. 2011 and the page of the data set (slots, songs, MIREX, licence); mirdata,
``billboard.py`` (addresses, MD5 sums, layout). Checked against them, not against the archive.
"""

import csv
import hashlib
from pathlib import Path

from m2v_finetune.data.benchmarks.archives import unpack
from m2v_finetune.data.benchmarks.benchmark import Benchmark, RemoteFile, Row
from m2v_finetune.data.benchmarks.label_checks import check_chords
from m2v_finetune.data.folders import AUDIO_SUFFIXES
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.errors import UserError

INFO = DatasetInfo(
    name="billboard",
    title="McGill Billboard 2.0",
    licence="Annotations: CC0-1.0. Audio: commercial recordings, not distributed.",
    citation="""\
@inproceedings{burgoyne2011expert,
  title = {An Expert Ground Truth Set for Audio Chord Recognition and Music Analysis},
  author = {Burgoyne, John Ashley and Wild, Jonathan and Fujinaga, Ichiro},
  booktitle = {Proceedings of the 12th International Society for Music Information Retrieval
               Conference (ISMIR)},
  address = {Miami, FL, United States},
  pages = {633--638},
  year = {2011},
}""",
    homepage="https://ddmal.ca/research/The_McGill_Billboard_Project_(Chord_Analysis_Dataset)/",
)

INDEX = RemoteFile(
    url="https://www.dropbox.com/s/o0olz0uwl9z9stb/billboard-2.0-index.csv?dl=1",
    path="labels/billboard-2.0-index.csv",
    sha256=None,
    md5="c47d304c212725998839cf9bb1a417aa",
)
ARCHIVE = RemoteFile(
    url="https://www.dropbox.com/s/t390alzrkx0c9yt/billboard-2.0.1-lab.tar.gz?dl=1",
    path="labels/billboard-2.0.1-lab.tar.gz",
    sha256=None,
    md5="a7b1fa6a7e454bf73ced7c29207aa597",
)
LABELS_FOLDER = "labels/McGill-Billboard"
LABEL_FILE = "full.lab"
AUDIO_FOLDER = "audio"
NUM_SLOTS = 890
FIRST_TEST_SLOT = 1_001
VALIDATION_SHARE = 0.1

INSTRUCTIONS = """\
The annotations of McGill Billboard are free, the audio must be your own. Name each song by the number
of its slot in {root}/labels/billboard-2.0-index.csv, which lists artists and titles, with four digits
and any suffix of an audio file:
  {root}/audio/0003.flac
The annotations fit the version that was in the charts; others are longer or shifted in time. Run the
same command again, with --on-bad-track skip if you have a part of the songs only. Where a song has
several slots one of them is used, whose file is the one that is listed as missing."""


def rows(root: Path, num_slots: int = NUM_SLOTS) -> list[Row]:
    """Unpack the annotations, and list all songs.

    Args:
        root: Folder of the data set.
        num_slots: Annotated slots that there must be.

    Returns:
        Rows of ``id`` (the slot, such as ``0003``), ``path``, ``split``, ``chords``, ``artist`` and
        ``title``, by slot; one a song.

    Raises:
        UserError: A label file is not as published.
    """
    unpack(root / ARCHIVE.path, root / LABELS_FOLDER, inside=Path(LABELS_FOLDER).name)
    names = _read_index(root / INDEX.path)
    slots = sorted(path.parent.name for path in (root / LABELS_FOLDER).glob(f"*/{LABEL_FILE}"))
    unknown = [slot for slot in slots if slot not in names]
    if len(slots) != num_slots or unknown:
        raise UserError(
            f"{root / LABELS_FOLDER} holds {len(slots)} annotations ({LABEL_FILE}), published are "
            f"{num_slots}; {len(unknown)} of them are not in {root / INDEX.path}. Delete {root / 'labels'},"
            " and it is fetched and unpacked again.",
            code="benchmark-count-mismatch",
        )
    slots_of_song: dict[tuple[str, str], list[str]] = {}
    for slot in slots:
        artist, title = names[slot]
        slots_of_song.setdefault((artist.lower(), title.lower()), []).append(slot)
    audio = {
        path.stem: path.relative_to(root).as_posix()
        for path in sorted((root / AUDIO_FOLDER).glob("*"), reverse=True)
        if path.suffix.lower() in AUDIO_SUFFIXES
    }
    found = []
    for song_slots in slots_of_song.values():
        test_slots = [slot for slot in song_slots if int(slot) >= FIRST_TEST_SLOT]
        slot = (test_slots or song_slots)[0]
        artist, title = names[slot]
        found.append(
            {
                "id": slot,
                "path": audio.get(slot, f"{AUDIO_FOLDER}/{slot}.wav"),
                "split": "test" if test_slots else train_or_validation(artist),
                "chords": f"{LABELS_FOLDER}/{slot}/{LABEL_FILE}",
                "artist": artist,
                "title": title,
            }
        )
    return sorted(found, key=lambda row: row["id"])


def train_or_validation(artist: str) -> str:
    """Return the side of an artist's songs that are not for testing, whatever the case of the name."""
    digest = hashlib.sha256(artist.lower().encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if share < VALIDATION_SHARE else "train"


def manifests(root: Path, num_slots: int = NUM_SLOTS) -> dict[str, list[Row]]:
    """Return the rows of the one manifest.

    Raises:
        UserError: Errors of `rows`.
    """
    return {"manifest.jsonl": rows(root, num_slots)}


def _read_index(path: Path) -> dict[str, tuple[str, str]]:
    """Return artist and title of every slot, by its number with four digits."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {
                f"{int(row['id']):04}": (row["artist"], row["title"])
                for row in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not an index of McGill Billboard: it must have the columns id, artist and title "
            f"({error}). Delete it, and it is fetched again.",
            code="benchmark-labels-malformed",
        ) from error


BENCHMARK = Benchmark(
    info=INFO,
    remote_files=(INDEX, ARCHIVE),
    instructions=INSTRUCTIONS,
    recipes=("chords",),
    manifests=manifests,
    check_labels=check_chords,
)
