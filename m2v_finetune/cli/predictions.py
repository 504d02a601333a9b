"""Table of `m2v predict`: one or several models on any number of tracks."""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from m2v_finetune.cli.catalogue import read_sources, write_table
from m2v_finetune.cli.loading import load_model, warn_of_constant_outputs
from m2v_finetune.errors import UserError

if TYPE_CHECKING:
    from m2v_finetune.catalogue.predictions import Predictions


def write_predictions(
    arguments: argparse.Namespace, sources_of_models: Sequence[str], sources: Sequence[str]
) -> None:
    """Write the predictions of models as a table."""
    other = [name for name in ("timeline", "decide", "on_bad_file") if getattr(arguments, name)]
    if arguments.runtime == "onnx" and len(sources_of_models) > 1:
        other.append("runtime")
    if other:
        option = f"--{other[0].replace('_', '-')}"
        raise UserError(
            f"{option} is not for a table of {len(sources_of_models)} models, as --output "
            f"{arguments.output} asks for: it has the labels of models that decide, and a row with the error "
            "of a bad file. Leave it out; or name a file with a suffix, such as predictions.csv.",
            code="catalogue-option",
        )
    found = read_sources(arguments, sources)
    build = partial(build_predictions, sources_of_models, arguments)
    predictions = write_table(arguments, build, found, format=arguments.format or "parquet")
    for one in predictions.models:
        warn_of_constant_outputs(one.model, one.variation, num_tracks=one.num_tracks)


def build_predictions(
    sources_of_models: Sequence[str], arguments: argparse.Namespace
) -> "Predictions":
    """Return what a table has, with the models on the device of this machine."""
    from m2v_finetune.catalogue.predictions import NamedModel, Predictions, model_name

    return Predictions(
        [
            NamedModel(name=model_name(one), source=one, model=load_model(one, arguments))
            for one in sources_of_models
        ]
    )
