"""Command `m2v` and its subcommands.

Heavy imports are inside the subcommands, so that `--help` and errors appear immediately.
"""

import argparse
from collections.abc import Sequence

from m2v_finetune import __version__
from m2v_finetune.cli import (
    curve,
    data,
    demo,
    distil,
    embed,
    export,
    models,
    planning,
    predict,
    pretraining,
    report,
    search,
    similar,
    starting,
    train,
)
from m2v_finetune.errors import run_command

DESCRIPTION = """\
  m2v train tagging --data.source songs.csv  train a task, like recipes/tagging.py
  m2v distil MODEL --backbone.num_layers 4   train a smaller model on the outputs of a trained one
  m2v curve tagging --output curve           learning curve: what more labels would bring
  m2v search tagging --over X=... --output D search settings on the validation split
  m2v configs                                list the included settings
  m2v init tagging my-tagger                 copy a recipe and its settings to edit
  m2v backbones                              list the backbones with a short name
  m2v data prepare magnatagatune --root DIR  prepare a benchmark data set
  m2v data check songs.csv                   check every audio file of a data set
  m2v data convert songs.csv                 resample it once, so that training reads faster
  m2v plan --config FILE --memory 11GB       plan memory: the batch sizes that fit
  m2v pretrain-labels --config FILE          compute the labels of masked prediction before a run
  m2v merge RUN/model RUN/model --output X   average the weights of models, or of backbones
  m2v predict MODEL song.mp3                 run a model on audio files
  m2v embed MODEL music/ --output DIR        write a table of embeddings
  m2v similar DIR song.mp3                   find the nearest tracks in a table of embeddings
  m2v evaluate MODEL songs.csv               compute the metrics of a model on labelled tracks
  m2v export transformers MODEL DIR          write a model that transformers loads without this package
  m2v export onnx MODEL FILE                 write a model as an ONNX file
  m2v report RUN [OTHER]                     write the report of a run, or compare two runs
  m2v push runs/tagging-.../model me/tagger  upload a trained model to the Hub
  m2v demo MODEL                             serve a page to try a model
  m2v benchmark --backbone X --root DIR      probe a backbone on every task, next to published results
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand and end the process with its exit code (`run_command`)."""
    run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = build_parser()
    arguments, settings = parser.parse_known_args(argv)
    if settings and not arguments.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    arguments.settings = settings
    arguments.command(arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="m2v", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"m2v-finetune {__version__}")
    parser.set_defaults(takes_settings=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (
        train,
        distil,
        curve,
        search,
        starting,
        models,
        data,
        planning,
        predict,
        embed,
        export,
        demo,
        report,
        similar,
        pretraining,
    ):
        group.add_commands(commands)
    return parser
