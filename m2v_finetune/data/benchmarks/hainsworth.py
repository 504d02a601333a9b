"""Hainsworth: excerpts of recordings in several styles with beats and downbeats.

222 tracks in 8 published folds (`beat_annotations`).
"""

from functools import partial

from m2v_finetune.data.benchmarks.beat_annotations import (
    ARCHIVE,
    CITATION,
    HOMEPAGE,
    LICENCE,
    FoldedSet,
    folded_manifests,
)
from m2v_finetune.data.benchmarks.benchmark import Benchmark
from m2v_finetune.data.benchmarks.label_checks import check_beats
from m2v_finetune.data.manifest import DatasetInfo

# Audio as its owners name it: 001.wav.
FOLDS = FoldedSet(
    name="hainsworth", num_tracks=222, audio_name=lambda track: track.removeprefix("hainsworth_")
)

BENCHMARK = Benchmark(
    info=DatasetInfo(
        name=FOLDS.name,
        title="Hainsworth",
        licence=f"{LICENCE} Audio: excerpts of commercial recordings, not distributed.",
        citation="""\
@article{hainsworth2004particle,
  title = {Particle Filtering Applied to Musical Tempo Tracking},
  author = {Hainsworth, Stephen W. and Macleod, Malcolm D.},
  journal = {EURASIP Journal on Applied Signal Processing},
  volume = {2004},
  number = {15},
  pages = {2385--2395},
  year = {2004},
  doi = {10.1155/S1110865704408099},
}"""
        + CITATION,
        homepage=HOMEPAGE,
    ),
    remote_files=(ARCHIVE,),
    instructions="""\
The audio of Hainsworth (222 excerpts of about a minute) is not public; laboratories that work on beat
tracking pass it on. Put the excerpts into any folder below {root}, with the numbers of the annotations
as their names, such as {root}/audio/001.wav or {root}/audio/hainsworth_001.wav (the names are those in
{root}/labels/beats/hainsworth/annotations/beats), and run the same command again.""",
    recipes=("beats",),
    manifests=partial(folded_manifests, folded=FOLDS),
    check_labels=check_beats,
)
