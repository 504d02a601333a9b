"""Pre-train a backbone on music without labels, by the objective of music2vec.

    accelerate launch recipes/pretrain.py

runs the quickstart: a small backbone with random weights learns from the music that ships, offline,
in a few minutes on two CPU cores. Your own music, going on from music2vec:

    accelerate launch recipes/pretrain.py --data.source my-music --backbone.source music2vec-v1

The backbone is in the folder model/ of the run: give it to any recipe as --backbone.source. Settings
come from their defaults, then each --config file, then --section.key value.
"""

import sys

from m2v_finetune.config import PretrainingConfig as Config
from m2v_finetune.errors import run_command
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.recipe import run_pretraining
from m2v_finetune.shipped import config_file

QUICKSTART = config_file("pretrain")


def main() -> None:
    """Read the settings and run: m2v_finetune/recipe.py has the steps."""
    config = parse_recipe(Config, sys.argv[1:], description=__doc__, quickstart=QUICKSTART)
    run_pretraining(config)


if __name__ == "__main__":
    run_command(main)
