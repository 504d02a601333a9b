"""MUSDB18-HQ: 150 songs as stereo WAV files, each a mixture and its stems bass, drums, other, vocals.

The test side is the official one (50 songs). Of the 100 songs for training 14 are for validation: the
list of the ``musdb`` package, which published results share, so 86 / 14 / 50.

The first release, MUSDB18, holds the same songs as ``.stem.mp4`` with five streams in one file, coded
with loss and without anything above 16 kHz. It is not read here. Scores on the two differ a little.

Source: Rafii et al. 2017 and 2019; sigsep/sigsep-mus-db, ``musdb/configs/mus.yaml`` (validation); the
page of the data set at SigSep (counts, terms); torchaudio, ``MUSDB_HQ`` (layout, sum of the archive).
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row, require_counts
from m2v_finetune.data.benchmarks.label_checks import check_stems
from m2v_finetune.data.manifest import DatasetInfo, problem_list
from m2v_finetune.errors import UserError

INFO = DatasetInfo(
    name="musdb18",
    title="MUSDB18-HQ",
    licence=(
        "For academic purposes only; each song has a licence of its own, listed at "
        "https://sigsep.github.io/datasets/musdb.html."
    ),
    citation="""\
@misc{rafii2019musdb18hq,
  title = {{MUSDB18-HQ} - an uncompressed version of {MUSDB18}},
  author = {Rafii, Zafar and Liutkus, Antoine and St{\\"o}ter, Fabian-Robert and
            Mimilakis, Stylianos Ioannis and Bittner, Rachel},
  month = aug,
  year = {2019},
  doi = {10.5281/zenodo.3338373},
  url = {https://doi.org/10.5281/zenodo.3338373},
}""",
    homepage="https://sigsep.github.io/datasets/musdb.html",
)

STEMS = ("bass", "drums", "other", "vocals")
COUNTS = {"train": 86, "validation": 14, "test": 50}
VALIDATION_SONGS = frozenset(
    {
        "Actions - One Minute Smile",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Johnny Lokke - Promises & Lies",
        "Patrick Talbot - A Reason To Leave",
        "Triviul - Angelsaint",
        "Alexander Ross - Goodbye Bolero",
        "Fergessen - Nos Palpitants",
        "Leaf - Summerghost",
        "Skelpolu - Human Mistakes",
        "Young Griffo - Pennies",
        "ANiMAL - Rockshow",
        "James May - On The Line",
        "Meaxic - Take A Step",
        "Traffic Experiment - Sirens",
    }
)

INSTRUCTIONS = """\
To get MUSDB18-HQ (about 23 GB; for academic purposes), download and unpack one archive:
  https://zenodo.org/records/3338373/files/musdb18hq.zip
    sha256 baac80d0483c61d74b2e5f3be75fa557eec52898339e6aa45c1fa48833c5d21d
  unzip musdb18hq.zip -d {root}
The songs are then in {root}/train and {root}/test, a folder each with mixture.wav, bass.wav, drums.wav,
other.wav and vocals.wav. Run the same command again.
MUSDB18 as .stem.mp4 will not do: it is another coding of the same songs."""


def rows(
    root: Path,
    counts: Mapping[str, int] = COUNTS,
    validation_songs: Collection[str] = VALIDATION_SONGS,
) -> list[Row]:
    """List the songs below ``train`` and ``test``.

    Args:
        root: Folder of the data set.
        counts: Songs that each split must have.
        validation_songs: Songs below ``train`` that are for validation.

    Returns:
        Rows of ``id`` (the name of the song's folder), ``path`` (its ``mixture.wav``), ``split``,
        ``stems`` (the folder) and ``artist``, by split and name.

    Raises:
        FileNotFoundError: There is no folder ``train`` or ``test``.
        UserError: A song for validation is missing, or the counts are not the published ones.
    """
    found = []
    for folder in sorted([*(root / "train").iterdir(), *(root / "test").iterdir()]):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        split = folder.parent.name
        if split == "train" and folder.name in validation_songs:
            split = "validation"
        path = folder.relative_to(root).as_posix()
        found.append(
            {
                "id": folder.name,
                "path": f"{path}/mixture.wav",
                "split": split,
                "stems": path,
                "artist": folder.name.partition(" - ")[0],
            }
        )
    names = {row["id"] for row in found}
    missing = [str(root / "train" / song) for song in validation_songs if song not in names]
    if missing:
        raise UserError(
            problem_list(
                "Songs for validation are missing", sorted(missing), INSTRUCTIONS.format(root=root)
            ),
            code="benchmark-audio-missing",
        )
    require_counts(found, counts, source=root, advice=f"\n\n{INSTRUCTIONS.format(root=root)}")
    return found


def manifests(
    root: Path,
    counts: Mapping[str, int] = COUNTS,
    validation_songs: Collection[str] = VALIDATION_SONGS,
) -> dict[str, list[Row]]:
    """Return the rows of the one manifest.

    Raises:
        UserError: Errors of `rows`.
    """
    return {"manifest.jsonl": rows(root, counts, validation_songs)}


BENCHMARK = Benchmark(
    info=INFO,
    remote_files=(),
    instructions=INSTRUCTIONS,
    recipes=("separation",),
    manifests=manifests,
    check_labels=partial(check_stems, stems=STEMS),
)
