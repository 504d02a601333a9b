"""Train a chord recogniser: major and minor chords of a track over time.

    accelerate launch recipes/chords.py

runs the quickstart: synthetic music and a small pre-trained backbone, both shipped, offline,
in a few minutes on two CPU cores. Your own music, with music2vec:

    accelerate launch recipes/chords.py --data.source songs.csv

A published benchmark: --config configs/chords/isophonics-probe.yaml. Settings come from their
defaults, then each --config file, then --section.key value. The results are in the run folder.
"""

import sys
from dataclasses import dataclass, field

from m2v_finetune.config import RecipeConfig
from m2v_finetune.errors import run_command
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.shipped import config_file
from m2v_finetune.tasks.chords import ChordRecognition, ChordsConfig
from m2v_finetune.train import train_task

QUICKSTART = config_file("chords")


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """All settings of a chord recognition run.

    Args:
        task: What is learned from which labels.
    """

    task: ChordsConfig = field(default_factory=ChordsConfig)


def main() -> None:
    """Read the settings and run: m2v_finetune/train.py has the steps."""
    config = parse_recipe(Config, sys.argv[1:], description=__doc__, quickstart=QUICKSTART)
    train_task(config, ChordRecognition)


if __name__ == "__main__":
    run_command(main)
