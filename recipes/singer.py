"""Train a classifier of singers.

    accelerate launch recipes/singer.py

runs the quickstart: synthetic voices and a small pre-trained backbone, both shipped, offline,
in a few minutes on two CPU cores. Your own recordings, with music2vec:

    accelerate launch recipes/singer.py --data.source songs.csv

A published benchmark: --config configs/singer/vocalset-probe.yaml. Settings come from their
defaults, then each --config file, then --section.key value. The results are in the run folder.
"""

import sys
from dataclasses import dataclass, field

from m2v_finetune.config import RecipeConfig
from m2v_finetune.errors import run_command
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.shipped import config_file
from m2v_finetune.tasks.singer import Singer, SingerConfig
from m2v_finetune.train import train_task

QUICKSTART = config_file("singer")


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """All settings of a singer run.

    Args:
        task: What is learned from which labels.
    """

    task: SingerConfig = field(default_factory=SingerConfig)


def main() -> None:
    """Read the settings and run: m2v_finetune/train.py has the steps."""
    config = parse_recipe(Config, sys.argv[1:], description=__doc__, quickstart=QUICKSTART)
    train_task(config, Singer)


if __name__ == "__main__":
    run_command(main)
