"""Ballroom: excerpts of ballroom dance music with beats and downbeats.

685 tracks in 8 published folds (`beat_annotations`); 13 of the 698 files are copies of others.
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

# Audio as its owners name it: Albums-Macumba-01.wav.
FOLDS = FoldedSet(
    name="ballroom", num_tracks=685, audio_name=lambda track: track.removeprefix("ballroom_")
)

BENCHMARK = Benchmark(
    info=DatasetInfo(
        name=FOLDS.name,
        title="Ballroom",
        licence=(
            f"{LICENCE} Audio: none stated; 30-second excerpts that the organisers of the "
            "ISMIR 2004 tempo contest distribute for research."
        ),
        citation="""\
@article{gouyon2006experimental,
  title = {An Experimental Comparison of Audio Tempo Induction Algorithms},
  author = {Gouyon, Fabien and Klapuri, Anssi and Dixon, Simon and Alonso, Miguel and
            Tzanetakis, George and Uhle, Christian and Cano, Pedro},
  journal = {IEEE Transactions on Audio, Speech, and Language Processing},
  volume = {14},
  number = {5},
  pages = {1832--1844},
  year = {2006},
}
@inproceedings{krebs2013rhythmic,
  title = {Rhythmic Pattern Modeling for Beat and Downbeat Tracking in Musical Audio},
  author = {Krebs, Florian and B{\\"o}ck, Sebastian and Widmer, Gerhard},
  booktitle = {Proceedings of the 14th International Society for Music Information Retrieval
               Conference (ISMIR)},
  address = {Curitiba, Brazil},
  year = {2013},
}"""
        + CITATION,
        homepage=HOMEPAGE,
    ),
    remote_files=(ARCHIVE,),
    instructions="""\
To get the audio of Ballroom (1.5 GB, 698 excerpts of 30 s), download and unpack one archive:
  https://mtg.upf.edu/ismir2004/contest/tempoContest/data1.tar.gz
    md5 2872a3e52070bc342a4510a95e2fa0b8
  tar -xzf data1.tar.gz -C {root}
The excerpts are then in {root}/BallroomData/ChaChaCha/ and so on (any folder below {root} will do;
13 copies among them are not used). Run the same command again.""",
    recipes=("beats",),
    manifests=partial(folded_manifests, folded=FOLDS),
    check_labels=check_beats,
)
