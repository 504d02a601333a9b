"""Train a classifier of singing techniques.

    accelerate launch recipes/technique.py

runs the quickstart: synthetic voices and a small pre-trained backbone, both shipped, offline,
in a few minutes on two CPU cores. Your own recordings, with music2vec:

    accelerate launch recipes/technique.py --data.source songs.csv

A published benchmark: --config configs/technique/vocalset-probe.yaml. Settings come from their
defaults, then the YAML file beside this one (`m2v init` writes it), then each --config file, then
--section.key value. The results are in the run folder.

m2v_finetune/runs.py has the steps of the run, and recipes/tagging.py shows them.
"""

import sys

from m2v_finetune.errors import run_command
from m2v_finetune.runs import main

if __name__ == "__main__":
    run_command(lambda: main(["technique", *sys.argv[1:]], recipe=__file__))
