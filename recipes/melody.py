"""Train a melody extractor: the pitch of the main melody over time.

    accelerate launch recipes/melody.py

runs the quickstart: synthetic music and a small pre-trained backbone, both shipped, offline,
in a few minutes on two CPU cores. Your own music, with music2vec:

    accelerate launch recipes/melody.py --data.source songs.csv

Settings come from their defaults, then the YAML file beside this one (`m2v init` writes it), then
each --config file, then --section.key value. The results are in the run folder.

m2v_finetune/runs.py has the steps of the run, and recipes/beats.py shows them.
"""

import sys

from m2v_finetune.errors import run_command
from m2v_finetune.runs import main

if __name__ == "__main__":
    run_command(lambda: main(["melody", *sys.argv[1:]], recipe=__file__))
