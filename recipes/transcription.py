"""Train a transcriber: the notes of a track.

    accelerate launch recipes/transcription.py

runs the quickstart: synthetic music and a small pre-trained backbone, both shipped, offline,
in a few minutes on two CPU cores. Your own music, with music2vec:

    accelerate launch recipes/transcription.py --data.source songs.csv

A published benchmark: --config configs/transcription/maestro-probe.yaml. Settings come from their
defaults, then each --config file, then --section.key value. The results are in the run folder.
"""

import sys
from dataclasses import dataclass, field

from m2v_finetune.config import RecipeConfig
from m2v_finetune.errors import run_command
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.shipped import config_file
from m2v_finetune.tasks.transcription import Transcription, TranscriptionConfig
from m2v_finetune.train import train_task

QUICKSTART = config_file("transcription")


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """All settings of a transcription run.

    Args:
        task: What is learned from which labels.
    """

    task: TranscriptionConfig = field(default_factory=TranscriptionConfig)


def main() -> None:
    """Read the settings and run: m2v_finetune/train.py has the steps."""
    config = parse_recipe(Config, sys.argv[1:], description=__doc__, quickstart=QUICKSTART)
    train_task(config, Transcription)


if __name__ == "__main__":
    run_command(main)
