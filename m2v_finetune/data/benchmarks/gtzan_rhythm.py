"""GTZAN-Rhythm: the fault-filtered tracks of GTZAN with beats and downbeats.

Models of beat tracking are trained on other data and tested on all 999 annotated tracks. Here GTZAN has
the fault-filtered split of `gtzan`, as frozen probes need one of its own: MARBLE fetches these lists and
the rhythm annotations in one script. So 69 annotated tracks are in no split, and numbers are comparable
with those of MARBLE and MERT, not with those of beat trackers.

Source: the download script for GTZAN of a43992899/MARBLE-Benchmark; the annotations of
`beat_annotations`.
"""

from collections.abc import Mapping
from pathlib import Path

from m2v_finetune.data.benchmarks import gtzan
from m2v_finetune.data.benchmarks.beat_annotations import (
    ARCHIVE,
    CITATION,
    HOMEPAGE,
    LICENCE,
    require_annotations,
    unpack_annotations,
)
from m2v_finetune.data.benchmarks.benchmark import Benchmark, Row
from m2v_finetune.data.benchmarks.label_checks import check_beats
from m2v_finetune.data.manifest import DatasetInfo


def manifests(root: Path, counts: Mapping[str, int] = gtzan.COUNTS) -> dict[str, list[Row]]:
    """Return the rows of the one manifest: those of `gtzan` with ``beats`` in place of ``genre``.

    Args:
        root: Folder of the data set; ``genres`` in it may be shared with `gtzan`.
        counts: Tracks that each split must have.

    Raises:
        UserError: The lists do not have the published counts, or a track has no annotation.
    """
    folder = unpack_annotations(root, "gtzan")
    found = []
    for row in gtzan.rows(root, counts):
        track = f"gtzan_{row['id'].replace('.', '_')}"
        found.append(
            {
                "id": row["id"],
                "path": row["path"],
                "split": row["split"],
                "beats": f"{folder}/annotations/beats/{track}.beats",
            }
        )
    require_annotations(root, found)
    return {"manifest.jsonl": found}


BENCHMARK = Benchmark(
    info=DatasetInfo(
        name="gtzan-rhythm",
        title="GTZAN-Rhythm, fault-filtered",
        licence=f"{LICENCE} Audio: {gtzan.INFO.licence}",
        citation="""\
@inproceedings{marchand2015gtzan,
  title = {{GTZAN-Rhythm}: Extending the {GTZAN} Test-Set with Beat, Downbeat and Swing Annotations},
  author = {Marchand, Ugo and Fresnel, Quentin and Peeters, Geoffroy},
  booktitle = {Extended abstracts for the Late-Breaking Demo Session of the 16th International
               Society for Music Information Retrieval Conference (ISMIR)},
  address = {Malaga, Spain},
  year = {2015},
}
"""
        + gtzan.INFO.citation
        + CITATION,
        homepage=HOMEPAGE,
    ),
    remote_files=(ARCHIVE, gtzan.LABELS),
    instructions=gtzan.INSTRUCTIONS
    + "\nA folder genres that was made for the data set gtzan will do: link it into {root}.",
    recipes=("beats",),
    manifests=manifests,
    check_labels=check_beats,
)
