"""Train a key finder: one of 24 keys for a track.

    accelerate launch recipes/key.py

runs the quickstart: synthetic music and a small pre-trained backbone, both shipped, offline,
in a few minutes on two CPU cores. Your own music, with music2vec:

    accelerate launch recipes/key.py --data.source songs.csv

A published benchmark: --config configs/key/giantsteps-probe.yaml. Settings come from their
defaults, then each --config file, then --section.key value. The results are in the run folder.
"""

import sys
from dataclasses import dataclass, field

from m2v_finetune.config import RecipeConfig
from m2v_finetune.errors import run_command
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.shipped import config_file
from m2v_finetune.tasks.key import Key, KeyConfig
from m2v_finetune.train import train_task

QUICKSTART = config_file("key")


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """All settings of a key run.

    Args:
        task: What is learned from which labels.
    """

    task: KeyConfig = field(default_factory=KeyConfig)


def main() -> None:
    """Read the settings and run: m2v_finetune/train.py has the steps."""
    config = parse_recipe(Config, sys.argv[1:], description=__doc__, quickstart=QUICKSTART)
    train_task(config, Key)


if __name__ == "__main__":
    run_command(main)
