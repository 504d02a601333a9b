"""Isophonics: chords of the twelve studio albums of the Beatles, and of Queen, Zweieck and Carole King.

The annotations are ``.lab`` files, ``chordlab/ARTIST/ALBUM/SONG.lab`` in one archive an artist. The
180 songs of the Beatles must be there; the other artists are taken if their archives are. The audio is
not distributed.

**There is no official split; this one is the project's own.** It is by album, and an artist is on more
than one side: Revolver, Magical Mystery Tour, Let It Be and Queen's Greatest Hits II are for testing,
Please Please Me is for validation, everything else is for training. Numbers are not comparable with
published ones, which divide the songs in other ways.

Source: Mauch et al. 2009 and isophonics.net (archives, format); mirdata, ``beatles.py`` and
``queen.py`` (layout, sums); 180 songs as in Harte 2010, "Towards Automatic Extraction of Harmony
Information from Music Signals". Checked against them, not against the archives.
"""

import re
from pathlib import Path

from m2v_finetune.data.benchmarks.archives import unpack
from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row
from m2v_finetune.data.benchmarks.label_checks import check_chords
from m2v_finetune.data.folders import AUDIO_SUFFIXES
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.errors import UserError

INFO = DatasetInfo(
    name="isophonics",
    title="Isophonics Reference Annotations",
    licence="None stated for the annotations. Audio: commercial recordings, not distributed.",
    citation="""\
@inproceedings{mauch2009omras2,
  title = {{OMRAS2} Metadata Project 2009},
  author = {Mauch, Matthias and Cannam, Chris and Davies, Matthew and Dixon, Simon and
            Harte, Christopher and Kolozali, Sefki and Tidhar, Dan and Sandler, Mark},
  booktitle = {Late-breaking session of the 10th International Society for Music Information Retrieval
               Conference (ISMIR)},
  year = {2009},
}
@phdthesis{harte2010towards,
  title = {Towards Automatic Extraction of Harmony Information from Music Signals},
  author = {Harte, Christopher},
  school = {Queen Mary, University of London},
  year = {2010},
}""",
    homepage="http://isophonics.net/content/reference-annotations",
)

LABELS_FOLDER = "labels"
AUDIO_FOLDER = "audio"
NUM_BEATLES_SONGS = 180
# Ends of album names, with letters and digits only: archives write 07_-_Revolver and 07 Revolver.
TEST_ALBUMS = ("revolver", "magicalmysterytour", "letitbe", "greatesthitsii")
VALIDATION_ALBUMS = ("pleasepleaseme",)

INSTRUCTIONS = """\
To get the annotations of Isophonics, save one archive an artist in {root}/labels, and leave it packed:
  http://isophonics.net/files/annotations/The%20Beatles%20Annotations.tar.gz (needed)
    md5 62425c552d37c6bb655a78e4603828cc
  http://isophonics.net/files/annotations/Queen%20Annotations.tar.gz
    md5 fe11217d32bc222ae418425441974046
  http://isophonics.net/files/annotations/Carole%20King%20Annotations.tar.gz
  http://isophonics.net/files/annotations/Zweieck%20Annotations.tar.gz
(sums as mirdata has them; the site knows no https, so they are not fetched for you.)

The audio must be your own: the releases that the annotations were made from are listed at
http://isophonics.net/content/reference-annotations, and other masterings are shifted in time. Name each
song as its annotation, in the same folders, with any suffix of an audio file:
  {root}/audio/The Beatles/07_-_Revolver/01_-_Taxman.flac
for {root}/labels/.../chordlab/The Beatles/07_-_Revolver/01_-_Taxman.lab.
Then run the same command again."""


def rows(root: Path, num_beatles_songs: int = NUM_BEATLES_SONGS) -> list[Row]:
    """Unpack the archives, and list all songs that have chords.

    Args:
        root: Folder of the data set.
        num_beatles_songs: Songs of the Beatles that there must be.

    Returns:
        Rows of ``id`` (``ARTIST/ALBUM/SONG``), ``path``, ``split``, ``chords``, ``artist`` and
        ``album``, by ``id``.

    Raises:
        UserError: An archive is damaged, a song is there twice, or the songs of the Beatles are not
            as many as published.
    """
    for archive in sorted((root / LABELS_FOLDER).glob("*.tar.gz")):
        unpack(archive, archive.with_name(archive.name.removesuffix(".tar.gz")))
    audio = _audio_by_song(root)
    found: dict[str, Row] = {}
    for lab in sorted((root / LABELS_FOLDER).rglob("chordlab/**/*.lab")):
        parts = lab.with_suffix("").parts
        artist, *albums, _ = song = parts[len(parts) - parts[::-1].index("chordlab") :]
        name, path = "/".join(song), lab.relative_to(root).as_posix()
        if name in found:
            raise UserError(
                f"The song '{name}' has two annotations, {found[name]['chords']} and {path} in {root}. "
                "Remove one of these folders.",
                code="benchmark-duplicate-annotation",
            )
        album = "/".join(albums) or artist
        found[name] = {
            "id": name,
            "path": audio.get(name.lower(), f"{AUDIO_FOLDER}/{name}.wav"),
            "split": album_split(album),
            "chords": path,
            "artist": artist,
            "album": album,
        }
    num_found = sum(_letters(row["artist"]) == "thebeatles" for row in found.values())
    if num_found != num_beatles_songs:
        raise UserError(
            f"{root / LABELS_FOLDER} has chords of {num_found} songs of the Beatles, the published "
            f"archive of {num_beatles_songs}.\n\n" + INSTRUCTIONS.format(root=root),
            code="benchmark-count-mismatch",
        )
    return [found[name] for name in sorted(found)]


def album_split(album: str) -> str:
    """Return the side of an album, by the name of its folder.

    >>> [album_split(name) for name in ("07_-_Revolver", "01 Please Please Me", "Greatest Hits III")]
    ['test', 'validation', 'train']
    """
    name = _letters(album)
    if name.endswith(TEST_ALBUMS):
        return "test"
    return "validation" if name.endswith(VALIDATION_ALBUMS) else "train"


def manifests(root: Path, num_beatles_songs: int = NUM_BEATLES_SONGS) -> dict[str, list[Row]]:
    """Return the rows of the one manifest.

    Raises:
        UserError: Errors of `rows`.
    """
    return {"manifest.jsonl": rows(root, num_beatles_songs)}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _audio_by_song(root: Path) -> dict[str, str]:
    """Return the audio files, relative to the root, by ``artist/album/song`` in small letters."""
    folder = root / AUDIO_FOLDER
    return {
        path.relative_to(folder).with_suffix("").as_posix().lower(): path.relative_to(
            root
        ).as_posix()
        for path in sorted(folder.rglob("*"), reverse=True)
        if path.suffix.lower() in AUDIO_SUFFIXES
    }


BENCHMARK = Benchmark(
    info=INFO,
    remote_files=(),
    instructions=INSTRUCTIONS,
    recipes=("chords",),
    manifests=manifests,
    check_labels=check_chords,
)
