"""SMC MIREX: excerpts that are difficult for beat trackers, with beats and without downbeats.

217 tracks in 8 published folds (`beat_annotations`).
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

# Audio as its owners name it: SMC_001.wav.
FOLDS = FoldedSet(name="smc", num_tracks=217, audio_name=lambda track: track)

BENCHMARK = Benchmark(
    info=DatasetInfo(
        name=FOLDS.name,
        title="SMC MIREX",
        licence=f"{LICENCE} Audio: none stated; distributed by its authors for research.",
        citation="""\
@article{holzapfel2012selective,
  title = {Selective Sampling for Beat Tracking Evaluation},
  author = {Holzapfel, Andre and Davies, Matthew E. P. and Zapata, Jos{\\'e} R. and
            Oliveira, Jo{\\~a}o Lobato and Gouyon, Fabien},
  journal = {IEEE Transactions on Audio, Speech, and Language Processing},
  volume = {20},
  number = {9},
  pages = {2539--2548},
  year = {2012},
  doi = {10.1109/TASL.2012.2205244},
}"""
        + CITATION,
        homepage=HOMEPAGE,
    ),
    remote_files=(ARCHIVE,),
    instructions="""\
To get the audio of SMC (217 excerpts of 40 s), download SMC_MIREX.zip. Its published address is
  http://smc.inescporto.pt/data/SMC_MIREX.zip
which may be offline; write to its authors, or look for a copy at their laboratories. Then:
  unzip SMC_MIREX.zip -d {root}
The excerpts are then in {root}/SMC_MIREX/SMC_MIREX_Audio/SMC_001.wav and so on (any folder below
{root} will do). Run the same command again.""",
    recipes=("beats",),
    manifests=partial(folded_manifests, folded=FOLDS),
    check_labels=check_beats,
)
