"""MAESTRO 3.0.0: piano performances of a competition, with the notes that the piano recorded.

The split is the official one (962 / 137 / 177 performances). No composition is on two sides; a composer
may be.

Source: Hawthorne et al. 2019, and the page of the data set (counts, columns, sums).
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from m2v_finetune.data.benchmarks.benchmark import Benchmark, RemoteFile, Row, require_counts
from m2v_finetune.data.benchmarks.label_checks import check_notes
from m2v_finetune.data.manifest import SPLITS, DatasetInfo
from m2v_finetune.errors import UserError

INFO = DatasetInfo(
    name="maestro",
    title="MAESTRO 3.0.0",
    licence="CC-BY-NC-SA-4.0",
    citation="""\
@inproceedings{hawthorne2019enabling,
  title = {Enabling Factorized Piano Music Modeling and Generation with the {MAESTRO} Dataset},
  author = {Hawthorne, Curtis and Stasyuk, Andriy and Roberts, Adam and Simon, Ian and
            Huang, Cheng-Zhi Anna and Dieleman, Sander and Elsen, Erich and Engel, Jesse and
            Eck, Douglas},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2019},
  url = {https://openreview.net/forum?id=r1lYRjC9F7},
}""",
    homepage="https://magenta.tensorflow.org/datasets/maestro",
)

FOLDER = "maestro-v3.0.0"
# No sum of this file is published; the address names the version, and `rows` checks the counts.
LABELS = RemoteFile(
    url="https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0.csv",
    path=f"{FOLDER}/maestro-v3.0.0.csv",
    sha256=None,
)
COUNTS = {"train": 962, "validation": 137, "test": 177}
COLUMNS = (
    "canonical_composer",
    "canonical_title",
    "split",
    "midi_filename",
    "audio_filename",
)

INSTRUCTIONS = """\
To get MAESTRO 3.0.0 (101 GB, 120 GB unpacked; CC BY-NC-SA 4.0), download and unpack one archive:
  https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0.zip
    sha256 6680fea5be2339ea15091a249fbd70e49551246ddbd5ca50f1b2352c08c95291
  unzip maestro-v3.0.0.zip -d {root}
(it is announced at https://magenta.tensorflow.org/datasets/maestro). Audio and MIDI are then in
{root}/maestro-v3.0.0/2004 and so on. Run the same command again."""


def rows(root: Path, counts: Mapping[str, int] = COUNTS) -> list[Row]:
    """Read the table of performances into manifest rows.

    Args:
        root: Folder of the data set.
        counts: Performances that each split must have.

    Returns:
        Rows of ``id`` (such as ``2018/MIDI-Unprocessed_...``), ``path``, ``split``, ``notes`` (the
        MIDI file), ``composer`` and ``title``, in the order of the file.

    Raises:
        UserError: The table has other columns or splits, or not the published counts.
    """
    table = root / LABELS.path
    advice = "Delete it, and it is fetched again."
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(
                f"{table} has no column {', '.join(missing)}. {advice}",
                code="benchmark-labels-malformed",
            )
        found = []
        for performance in reader:
            if performance["split"] not in SPLITS:
                raise UserError(
                    f"{table}:{reader.line_num}: the split '{performance['split']}' is none of "
                    f"{', '.join(SPLITS)}. {advice}",
                    code="benchmark-labels-malformed",
                )
            audio = performance["audio_filename"]
            found.append(
                {
                    "id": Path(audio).with_suffix("").as_posix(),
                    "path": f"{FOLDER}/{audio}",
                    "split": performance["split"],
                    "notes": f"{FOLDER}/{performance['midi_filename']}",
                    "composer": performance["canonical_composer"],
                    "title": performance["canonical_title"],
                }
            )
    require_counts(found, counts, source=table)
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
    recipes=("transcription",),
    manifests=manifests,
    check_labels=check_notes,
)
