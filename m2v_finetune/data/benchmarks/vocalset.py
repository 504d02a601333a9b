"""VocalSet 1.2: recordings of 20 professional singers, without accompaniment, by technique.

Two manifests, in which a file is a track and is scored as one:

- ``singer.jsonl``: all recordings; ``singer`` is one of f1 to f9 and m1 to m11.
- ``technique.jsonl``: those of the ten techniques of the published task, `TECHNIQUES`.

**The splits are not those of published results, and numbers are not comparable with them.** No list of
files is published, only the test singers of the technique task (f2, f8, m3, m5, m10). They are
the test side here. All else is drawn here by a hash of the recording's name, the same everywhere, in
the shares of MARBLE: for singers a test side of 20 per cent, and in both tasks a validation side of 40
per cent of the rest. So no recording is on two sides; singers are new in the test of the
technique task and known in its validation. MARBLE also scores chunks of 3 seconds, not recordings.

The singer is taken from the folder, because some 30 files have no singer in their name, and
m9_caro_vibrato.wav in the folder male8 has another one. The technique too is the folder's; the folder
``vibrado`` of female2 is taken as vibrato. Files whose names end in ``(1)`` are second copies of
others and are left out.

Source: Wilkins et al. 2018 and the lists of singers in the archive; for the shares and the test
singers MARBLE (arXiv 2306.10548), benchmark/tasks/VocalSet/preprocess.py; for the names of files the
corrections in that script and in chrispla/mir_ref. Checked against them, not against the archive.
"""

import hashlib
from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row
from m2v_finetune.data.manifest import DatasetInfo, problem_list
from m2v_finetune.errors import UserError

INFO = DatasetInfo(
    name="vocalset",
    title="VocalSet 1.2",
    licence="CC-BY-4.0",
    citation="""\
@inproceedings{wilkins2018vocalset,
  title = {{VocalSet}: A Singing Voice Dataset},
  author = {Wilkins, Julia and Seetharaman, Prem and Wahl, Alison and Pardo, Bryan},
  booktitle = {Proceedings of the 19th International Society for Music Information Retrieval
               Conference (ISMIR)},
  pages = {468--474},
  year = {2018},
}""",
    homepage="https://zenodo.org/records/1442513",
)

# The two archives of the record hold the same tree under different names.
AUDIO_FOLDERS = ("FULL", "data_by_singer")
SINGERS = {f"female{number}": f"f{number}" for number in range(1, 10)} | {
    f"male{number}": f"m{number}" for number in range(1, 12)
}
TECHNIQUE_TEST_SINGERS = frozenset({"f2", "f8", "m3", "m5", "m10"})
TECHNIQUES = (
    "belt",
    "breathy",
    "inhaled",
    "lip_trill",
    "spoken",
    "straight",
    "trill",
    "trillo",
    "vibrato",
    "vocal_fry",
)
MISSPELLED_TECHNIQUES = {"vibrado": "vibrato"}
SINGER_TEST_SHARE = 0.2
VALIDATION_SHARE = 0.4

INSTRUCTIONS = """\
To get VocalSet (CC BY 4.0), download one archive of https://zenodo.org/records/1442513, either
  https://zenodo.org/records/1442513/files/VocalSet11.zip (2.1 GB)
    md5 0c09396242f946e7111ad7d8fc649b81
or VocalSet1-2.zip of the same record (5.6 GB: the same recordings sorted in three ways), and unpack it:
  unzip VocalSet11.zip -d {root}
The recordings are then in {root}/FULL/female1/arpeggios/belt/ and so on
(data_by_singer in place of FULL in the larger archive). Run the same command again."""


def recordings(root: Path) -> list[Row]:
    """List the recordings below a root.

    Returns:
        Rows of ``id`` (the path below ``FULL`` without suffix), ``path``, ``singer`` and ``technique``
        (the folder's, not only the ten), by path.

    Raises:
        UserError: There is no recording, or not all 20 singers have some.
    """
    folder = next((root / name for name in AUDIO_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(
            f"There is neither a folder {' nor '.join(AUDIO_FOLDERS)} in {root}.\n\n"
            + INSTRUCTIONS.format(root=root),
            code="benchmark-audio-missing",
        )
    found = []
    for path in sorted(folder.glob("*/*/*/*.wav")):
        singer_folder, _, technique, name = path.relative_to(folder).parts
        if singer_folder in SINGERS and not name.startswith(".") and not path.stem.endswith("(1)"):
            found.append(
                {
                    "id": path.relative_to(folder).with_suffix("").as_posix(),
                    "path": path.relative_to(root).as_posix(),
                    "singer": SINGERS[singer_folder],
                    "technique": MISSPELLED_TECHNIQUES.get(technique, technique),
                }
            )
    singers = {row["singer"] for row in found}
    silent = [str(folder / name) for name, singer in SINGERS.items() if singer not in singers]
    if silent:
        raise UserError(
            problem_list(
                "Singers of VocalSet without a recording (singer/context/technique/*.wav)",
                silent,
                INSTRUCTIONS.format(root=root),
            ),
            code="benchmark-audio-missing",
        )
    return found


def singer_split(recording: str) -> str:
    """Return the side of a recording, by its ``id``, for the classification of singers."""
    if _draw("singer test", recording) < SINGER_TEST_SHARE:
        return "test"
    return _train_or_validation("singer validation", recording)


def technique_split(recording: str, singer: str) -> str:
    """Return the side of a recording, by its ``id`` and singer, for the classification of techniques."""
    if singer in TECHNIQUE_TEST_SINGERS:
        return "test"
    return _train_or_validation("technique validation", recording)


def manifests(root: Path) -> dict[str, list[Row]]:
    """Return the rows of both manifests; each has the one label column of its task.

    Raises:
        UserError: Errors of `recordings`; or a technique of the ten is missing on a side.
    """
    by_singer, by_technique = [], []
    for row in recordings(root):
        common = {"id": row["id"], "path": row["path"]}
        split = singer_split(row["id"])
        by_singer.append({**common, "split": split, "singer": row["singer"]})
        if row["technique"] in TECHNIQUES:
            split = technique_split(row["id"], row["singer"])
            by_technique.append({**common, "split": split, "technique": row["technique"]})
    sides = {(row["split"], row["technique"]) for row in by_technique}
    missing = [
        f"{technique}, {split}"
        for technique in TECHNIQUES
        for split in ("train", "validation", "test")
        if (split, technique) not in sides
    ]
    if missing:
        raise UserError(
            problem_list(
                f"Techniques of VocalSet without a recording in {root}",
                missing,
                INSTRUCTIONS.format(root=root),
            ),
            code="benchmark-audio-missing",
        )
    return {"singer.jsonl": by_singer, "technique.jsonl": by_technique}


def _train_or_validation(purpose: str, recording: str) -> str:
    return "validation" if _draw(purpose, recording) < VALIDATION_SHARE else "train"


def _draw(purpose: str, recording: str) -> float:
    """Return a number from 0 to 1 that depends on the two texts only."""
    digest = hashlib.sha256(f"{purpose}/{recording}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


BENCHMARK = Benchmark(
    info=INFO,
    remote_files=(),
    instructions=INSTRUCTIONS,
    recipes=("singer", "technique"),
    manifests=manifests,
)
